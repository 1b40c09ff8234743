"""Step 4, what the article's first table should have shown: a 13B-shaped Llama on a GPU, by precision.

Random weights: memory and time do not depend on what the weights are. Beside each decode time
stands its limit, the time that reading the weights and the KV cache once takes at this machine's measured
bandwidth. A precision that does not fit is a row that says so.
"""

import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM, StaticCache

from authoring.gpu.results import attempt, first_line, free, peak_gb
from course_utils import measure

TITLE = "LLaMA-13B's shape with random weights, by precision"
SHAPES = {
    "13b": dict(hidden_size=5120, intermediate_size=13824, num_hidden_layers=40, num_attention_heads=40,
                num_key_value_heads=40, vocab_size=32000, max_position_embeddings=4096),
    "tiny": dict(hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
                 num_key_value_heads=4, vocab_size=512, max_position_embeddings=4096),
}
FORMATS = {"BF16": torch.bfloat16, "NF4 (bitsandbytes)": torch.bfloat16,
           "INT8 (bitsandbytes)": torch.float16, "FP16": torch.float16, "FP32": torch.float32}
BATCHES = (1, 16)
PROMPT_TOKENS, NEW_TOKENS = 512, 16
PREFILL_SECONDS = 1.5  # repeats of a prefill end after so long: FP32 at batch 16 takes seconds


def measure_into(settings, results):
    """Rows "format", "batch": bytes, prefill and decode, each beside its limit."""
    shape, device = ("tiny" if settings.small else "13b"), settings.device
    prompt, new = (8, 2) if settings.small else (PROMPT_TOKENS, NEW_TOKENS)
    bandwidth = measure.bandwidth(device, nbytes=2**26 if settings.small else None).read
    matmul = {dtype: measure.matmul_speed(device, dtype, n=256 if settings.small else None).flops
              for dtype in (torch.bfloat16, torch.float16, torch.float32)}
    results.note(shape=shape, **{"prompt tokens": prompt, "new tokens": new,
                                 "bandwidth (GB/s)": bandwidth / 1e9, "FP32 products": "no TF32"})
    free()
    for name in FORMATS:
        attempt(results, {"format": name},
                lambda name=name: add_rows(results, shape, name, device, bandwidth, matmul, prompt, new))


def add_rows(results, shape, name, device, bandwidth, matmul, prompt, new):
    """One row a batch size. A batch that does not fit is a row with its error."""
    started = time.perf_counter()
    model = build(shape, name, device)
    measure.synchronize()
    built = {"seconds to build": time.perf_counter() - started, "peak while building (GB)": peak_gb()}
    weights = measure.weight_bytes(model).total
    embedding = model.get_input_embeddings().weight.nbytes  # a lookup reads a few rows of it, not all
    for batch in BATCHES:
        free()
        kv = batch * kv_bytes(model.config, FORMATS[name], prompt + new // 2)
        products = batch * prompt * 2 * linear_weights(model.config)
        row = {"format": name, "batch": batch, "weights (GB)": weights / 1e9, "KV cache (GB)": kv / 1e9}
        limits = {"prefill limit by arithmetic (ms)": 1e3 * products / matmul[FORMATS[name]],
                  "decode limit by bandwidth (ms)": 1e3 * (weights - embedding + kv) / bandwidth}
        try:
            prefill, decode = phases(model, batch, device, prompt, new)
        except torch.OutOfMemoryError as error:
            results.add(**row, error=first_line(error))
            continue
        row |= {"peak GPU memory (GB)": peak_gb(), "prefill (ms)": 1e3 * prefill.median,
                "decode step (ms)": 1e3 * decode.median} | limits
        row["decode (tokens/s)"] = batch / decode.median
        if batch == BATCHES[0]:
            row |= built
        results.add(**row)
    if device == "cpu":
        return
    for row in [row for row in results.rows if row["format"] == name and "error" not in row]:
        free()  # last, because a capture that fails may take CUDA along; the rows above are kept
        try:
            if name.startswith("INT8"):
                raise NotImplementedError("its search for outliers waits for the GPU")
            seconds = graph_step(model, row["batch"], device, prompt, new)
            row["decode step as a CUDA graph (ms)"] = 1e3 * seconds
        except Exception as error:
            row["no CUDA graph because"] = first_line(error)
        results.write()


# ---- the model -------------------------------------------------------------------------------------------


def build(shape, name, device):
    """A Llama with random weights on the device, its blocks' linear layers in the named format.

    Nothing passes through the CPU. A quantized model begins in 16 bits and is rounded block by block.
    """
    dtype = FORMATS[name]
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = LlamaForCausalLM(LlamaConfig(**SHAPES[shape], tie_word_embeddings=False)).eval()
    finally:
        torch.set_default_dtype(before)
    model.requires_grad_(False)
    if "bitsandbytes" in name:
        for layer in model.model.layers:
            for part in (layer.self_attn, layer.mlp):
                for child, linear in list(part.named_children()):
                    if isinstance(linear, torch.nn.Linear):
                        setattr(part, child, quantized_linear(linear, name, dtype))
    return model


def quantized_linear(linear, name, dtype):
    """The bitsandbytes layer that stands for a torch.nn.Linear, quantized on the linear's device."""
    import bitsandbytes as bnb

    weight = linear.weight.data
    rows, columns = weight.shape
    with torch.device("meta"):  # the layer would fill a weight of its own with random numbers first
        if name.startswith("INT8"):
            layer = bnb.nn.Linear8bitLt(columns, rows, bias=False, has_fp16_weights=False, threshold=6.0)
        else:
            layer = bnb.nn.Linear4bit(columns, rows, bias=False, quant_type="nf4", compute_dtype=dtype)
    if name.startswith("INT8"):  # Int8Params rounds only what comes from the CPU
        codes, scales, _ = bnb.functional.int8_vectorwise_quant(weight.half())
        layer.weight = bnb.nn.Int8Params(codes, requires_grad=False, has_fp16_weights=False, CB=codes,
                                         SCB=scales)
    else:
        params = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4", module=layer)
        layer.weight = params.to(weight.device)  # this is what rounds
    return layer


def linear_weights(config):
    """Weights of the blocks' linear layers: each does a multiplication and an addition for each token."""
    width, kv = config.hidden_size, config.num_key_value_heads * config.head_dim
    block = 2 * width * width + 2 * width * kv + 3 * width * config.intermediate_size
    return config.num_hidden_layers * block


def kv_bytes(config, dtype, tokens):
    """Bytes of keys and values that one decode step reads: 2 x layers x width x bytes x tokens."""
    width = config.num_key_value_heads * config.head_dim
    return 2 * config.num_hidden_layers * width * dtype.itemsize * tokens


# ---- times -----------------------------------------------------------------------------------------------


@torch.inference_mode()
def phases(model, batch, device, prompt_tokens, new_tokens):
    """(Latency of prefill, Latency of one decode step) for a batch of equal prompts."""
    prompt = torch.randint(0, model.config.vocab_size, (batch, prompt_tokens), device=device)
    first = measure.latency(lambda: model(prompt, logits_to_keep=1, use_cache=False), warmup=0, repeats=1)
    repeats = max(1, min(5, int(PREFILL_SECONDS / first.median)))
    prefill = measure.latency(lambda: model(prompt, logits_to_keep=1), warmup=0, repeats=repeats)
    state = model(prompt, use_cache=True, logits_to_keep=1)

    def step():
        nonlocal state
        token = state.logits[:, -1:].argmax(-1)
        state = model(token, past_key_values=state.past_key_values, use_cache=True, logits_to_keep=1)

    return prefill, measure.latency(step, warmup=3, repeats=new_tokens)


@torch.inference_mode()
def graph_step(model, batch, device, prompt_tokens, new_tokens):
    """Seconds of a decode step that is replayed as one CUDA graph, without Python between its kernels."""
    cache = StaticCache(config=model.config, max_cache_len=prompt_tokens + 2 * new_tokens + 16)
    prompt = torch.randint(0, model.config.vocab_size, (batch, prompt_tokens), device=device)
    model(prompt, past_key_values=cache, logits_to_keep=1)
    token = prompt[:, :1].clone()

    def step():
        model(token, past_key_values=cache, logits_to_keep=1)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return measure.latency(graph.replay, warmup=2, repeats=new_tokens).median
