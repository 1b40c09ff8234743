"""Step 4, what the article's first table should have shown: a 13B-shaped Llama on a GPU, by precision.

Random weights: memory and time do not depend on what the weights are. Beside each decode time
stands its limit, the time that reading the weights and the KV cache once takes at this machine's measured
bandwidth. A precision that does not fit is a row that says so.
"""

import time
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedConfig, PreTrainedModel, StaticCache

from authoring.gpu import graphs
from authoring.gpu.plan import Settings
from authoring.gpu.results import Results, attempt, first_line, free, peak_gb
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


def measure_into(settings: Settings, results: Results) -> None:
    """Add rows "format", "batch": bytes, prefill and decode, each beside its limit.

    Args:
        settings: of the run.
        results: gets the rows.
    """
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


def add_rows(results: Results, shape: str, name: str, device: str, bandwidth: float,
             matmul: dict[torch.dtype, float], prompt: int, new: int) -> None:
    """Add one row a batch size. A batch that does not fit is a row with its error.

    Args:
        results: gets the rows.
        shape: a key of SHAPES.
        name: a key of FORMATS.
        device: "cuda" or "cpu".
        bandwidth: measured, of reading memory, in bytes/s.
        matmul: measured speed of matrix products by dtype, in FLOP/s.
        prompt: tokens of each prompt.
        new: decode steps that are timed.
    """
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
    rows = [row for row in results.rows if row["format"] == name and "error" not in row]
    if name.startswith("INT8"):
        for row in rows:
            row["no CUDA graph because"] = "its search for outliers waits for the GPU"
        results.write()
    else:
        add_graph_steps(results, rows, model, device, prompt, new)


def add_graph_steps(results: Results, rows: list[dict[str, Any]], model: PreTrainedModel, device: str,
                    prompt: int, new: int) -> None:
    """Add to rows the time of a decode step as a CUDA graph, or why there is none.

    Called last for a model, because a capture that fails may take CUDA along; all other figures are kept.

    Args:
        results: has the rows.
        rows: each with its "batch".
        model: the model.
        device: "cuda".
        prompt: tokens of each prompt.
        new: decode steps that are timed.
    """
    for row in rows:
        free()
        try:
            seconds = graph_step(model, row["batch"], device, prompt, new)
            row["decode step as a CUDA graph (ms)"] = 1e3 * seconds
        except Exception as error:
            row["no CUDA graph because"] = first_line(error)
        results.write()


# ---- the model -------------------------------------------------------------------------------------------


def build(shape: str, name: str, device: str) -> LlamaForCausalLM:
    """A Llama with random weights on the device, its blocks' linear layers in the named format.

    Nothing passes through the CPU. A quantized model begins in 16 bits and is rounded block by block.

    Args:
        shape: a key of SHAPES.
        name: a key of FORMATS.
        device: "cuda" or "cpu".

    Returns:
        The model, for inference.
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


def quantized_linear(linear: torch.nn.Linear, name: str, dtype: torch.dtype) -> torch.nn.Module:
    """The bitsandbytes layer that stands for a torch.nn.Linear, quantized on the linear's device.

    Args:
        linear: the layer, 16-bit float weight [outputs, inputs], without bias.
        name: a key of FORMATS that names bitsandbytes.
        dtype: that NF4 computes in, torch.bfloat16 or torch.float16.

    Returns:
        Linear8bitLt or Linear4bit.
    """
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


def linear_weights(config: PreTrainedConfig) -> int:
    """Weights of the blocks' linear layers: each does a multiplication and an addition for each token.

    Args:
        config: of a Llama.

    Returns:
        Their number.
    """
    width, kv = config.hidden_size, config.num_key_value_heads * config.head_dim
    block = 2 * width * width + 2 * width * kv + 3 * width * config.intermediate_size
    return config.num_hidden_layers * block


def kv_bytes(config: PreTrainedConfig, dtype: torch.dtype, tokens: int) -> int:
    """Keys and values that one decode step reads: 2 x layers x width x bytes x tokens.

    Args:
        config: of a Llama.
        dtype: of the cache.
        tokens: in the cache.

    Returns:
        Bytes for one sequence.
    """
    width = config.num_key_value_heads * config.head_dim
    return 2 * config.num_hidden_layers * width * dtype.itemsize * tokens


# ---- times -----------------------------------------------------------------------------------------------


@torch.inference_mode()
def phases(model: PreTrainedModel, batch: int, device: str, prompt_tokens: int,
           new_tokens: int) -> tuple[measure.Latency, measure.Latency]:
    """Time prefill and decode of a batch of random prompts of equal length.

    Args:
        model: the model.
        batch: sequences.
        device: the model's.
        prompt_tokens: of each.
        new_tokens: decode steps that are timed.

    Returns:
        (of prefill, of one decode step), in seconds.
    """
    prompt = torch.randint(0, model.config.vocab_size, (batch, prompt_tokens), device=device)
    first = measure.latency(lambda: model(prompt, logits_to_keep=1, use_cache=False), warmup=0, repeats=1)
    repeats = max(1, min(5, int(PREFILL_SECONDS / first.median)))
    prefill = measure.latency(lambda: model(prompt, logits_to_keep=1), warmup=0, repeats=repeats)
    state = model(prompt, use_cache=True, logits_to_keep=1)

    def step() -> None:
        nonlocal state
        token = state.logits[:, -1:].argmax(-1)
        state = model(token, past_key_values=state.past_key_values, use_cache=True, logits_to_keep=1)

    return prefill, measure.latency(step, warmup=3, repeats=new_tokens)


@torch.inference_mode()
def graph_step(model: PreTrainedModel, batch: int, device: str, prompt_tokens: int, new_tokens: int) -> float:
    """Time a decode step that is replayed as one CUDA graph, without Python between its kernels.

    It needs a cache whose shapes and position stay in place on the GPU: transformers' StaticCache. Our own
    static layer counts its tokens in Python and returns the filled part, so its steps differ in shape.

    Args:
        model: the model.
        batch: sequences.
        device: "cuda".
        prompt_tokens: of each.
        new_tokens: replays that are timed.

    Returns:
        Seconds, the median.

    Raises:
        RuntimeError: something in the step cannot be recorded.
    """
    cache = StaticCache(config=model.config, max_cache_len=prompt_tokens + 2 * new_tokens + 16)
    prompt = torch.randint(0, model.config.vocab_size, (batch, prompt_tokens), device=device)
    model(prompt, past_key_values=cache, logits_to_keep=1)
    token = prompt[:, :1].clone()

    graph = graphs.record(lambda: model(token, past_key_values=cache, logits_to_keep=1))
    return measure.latency(graph.replay, warmup=2, repeats=new_tokens).median
