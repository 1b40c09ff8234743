"""What the article's first table should have shown: a 13B-shaped Llama on a GPU, by precision.

    python -m authoring.record_gpu                     # needs a GPU with about 60 GB for the FP32 row
    python -m authoring.record_gpu --shape tiny --device cpu --out trial   # tries the code anywhere

Random weights: memory and time do not depend on what the weights are. Beside each decode time
stands its limit, the time that reading the weights and the KV cache once takes at this machine's measured
bandwidth. A precision that does not fit is a row that says so. Writes recorded/gpu_13b.json.
"""

import argparse
import gc
import subprocess

import bitsandbytes as bnb
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from course_utils import measure, records

SHAPES = {
    "13b": dict(hidden_size=5120, intermediate_size=13824, num_hidden_layers=40, num_attention_heads=40,
                num_key_value_heads=40, vocab_size=32000, max_position_embeddings=4096),
    "tiny": dict(hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
                 num_key_value_heads=4, vocab_size=512, max_position_embeddings=4096),
}
FORMATS = {"FP32": torch.float32, "FP16": torch.float16, "BF16": torch.bfloat16,
           "INT8 (bitsandbytes)": torch.float16, "NF4 (bitsandbytes)": torch.bfloat16}
PROMPT_TOKENS, NEW_TOKENS, BATCHES = 512, 32, (1, 16)


def quantized_linear(linear, name, dtype):
    """The bitsandbytes layer that stands for a torch.nn.Linear, quantized on the linear's device."""
    rows, columns = linear.weight.shape
    device = linear.weight.device
    weight = linear.weight.data.to("cpu")
    if name.startswith("INT8"):
        layer = bnb.nn.Linear8bitLt(columns, rows, bias=False, has_fp16_weights=False, threshold=6.0)
        layer.weight = bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    else:
        layer = bnb.nn.Linear4bit(columns, rows, bias=False, quant_type="nf4", compute_dtype=dtype)
        layer.weight = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4")
    return layer.to(device)  # moving to the device is what quantizes


def build(shape, name, device):
    """A Llama with random weights on the device, its block's linear layers in the named format."""
    dtype = FORMATS[name]
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = LlamaForCausalLM(LlamaConfig(**SHAPES[shape], tie_word_embeddings=False)).eval()
    finally:
        torch.set_default_dtype(torch.float32)
    if "bitsandbytes" in name:
        for layer in model.model.layers:
            for part in (layer.self_attn, layer.mlp):
                for child, linear in list(part.named_children()):
                    if isinstance(linear, torch.nn.Linear):
                        setattr(part, child, quantized_linear(linear, name, dtype))
    return model


def kv_bytes(config, dtype, tokens):
    """Bytes of keys and values that one decode step reads: 2 x layers x width x bytes x tokens."""
    width = config.num_key_value_heads * config.head_dim
    return 2 * config.num_hidden_layers * width * dtype.itemsize * tokens


@torch.inference_mode()
def phases(model, batch, device):
    """(Latency of prefill, Latency of one decode step) for a batch of equal prompts."""
    prompt = torch.randint(0, model.config.vocab_size, (batch, PROMPT_TOKENS), device=device)
    prefill = measure.latency(lambda: model(prompt, logits_to_keep=1), warmup=1, repeats=3)
    state = model(prompt, use_cache=True, logits_to_keep=1)

    def step():
        nonlocal state
        token = state.logits[:, -1:].argmax(-1)
        state = model(token, past_key_values=state.past_key_values, use_cache=True)

    return prefill, measure.latency(step, warmup=3, repeats=NEW_TOKENS)


def rows_of(shape, name, device, bandwidth):
    """One row a batch size."""
    model = build(shape, name, device)
    weights = measure.weight_bytes(model).total
    embedding = model.get_input_embeddings().weight.nbytes  # a lookup reads a few rows of it, not all
    for batch in BATCHES:
        prefill, decode = phases(model, batch, device)
        kv = batch * kv_bytes(model.config, FORMATS[name], PROMPT_TOKENS + NEW_TOKENS // 2)
        yield {"format": name, "batch": batch, "weights (GB)": weights / 1e9,
               "KV cache (GB)": kv / 1e9,
               "peak GPU memory (GB)": torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else None,
               "prefill (ms)": 1e3 * prefill.median, "decode step (ms)": 1e3 * decode.median,
               "decode limit by bandwidth (ms)": 1e3 * (weights - embedding + kv) / bandwidth.read}


def record(shape, device):
    """Rows for every format; an error (a format that does not fit) is a row of its own."""
    bandwidth, rows = measure.bandwidth(device), []
    for name in FORMATS:
        print(f"{name} ...", flush=True)
        try:
            rows += rows_of(shape, name, device, bandwidth)
        except (RuntimeError, NotImplementedError, ValueError) as error:
            rows.append({"format": name, "error": str(error).splitlines()[0]})
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
    return {"shape": shape, "prompt tokens": PROMPT_TOKENS, "new tokens": NEW_TOKENS,
            "bandwidth (GB/s)": bandwidth.read / 1e9, "rows": rows}


def driver_version():
    """Version of the NVIDIA driver, "" without one."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return ""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="13b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", default="gpu_13b", help="name of the file in recorded/")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("no GPU here. --shape tiny --device cpu --out trial tries the code without one")
    results = record(options.shape, options.device)
    versions = {"bitsandbytes": bnb.__version__, "cuda": torch.version.cuda, "driver": driver_version()}
    path = records.save(options.out, results, **versions)
    print(measure.table(results["rows"]).to_string(index=False))
    print(f"written to {path}")


if __name__ == "__main__":
    main()
