"""AutoGPTQ 0.7.1 as a process, in an environment with an older transformers than the course's.

Request {"task": "versions"}: the versions that matter.
Request {"task": "quantize", "model": folder, "tokens": [[...], ...], "heldout": [[...], ...], "bits": 4,
         "group_size": 64 or -1, "sym": true, "desc_act": false, "damp_percent": 0.01, "threads": 2,
         "save": folder or null}
    quantizes the model on the windows of tokens and measures it on the windows of held-out text.
    Answer: perplexity and perplexity_before (mean over all predicted tokens), quantize_seconds, peak_bytes,
    versions.
"""

import importlib.metadata
import json
import math
import os
import sys
import time
from typing import TYPE_CHECKING

from protocol import answer, peak

if TYPE_CHECKING:  # what the quoted hints name
    from transformers import LlamaForCausalLM


def versions() -> dict[str, str]:
    """Versions of the packages that matter, and of Python."""
    names = ("auto_gptq", "transformers", "torch", "accelerate", "numpy")
    return {name: importlib.metadata.version(name) for name in names} | {"python": sys.version.split()[0]}


def load_model(folder: str) -> "LlamaForCausalLM":
    """A Llama from a folder written by transformers 5, which 4.46 cannot read as it stands.

    Raises:
        ValueError: the folder holds something else, or a kind of rotary embedding that 4.46 does not know.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
        settings = json.load(file)
    if settings.get("model_type") != "llama":
        raise ValueError(f"only Llama models are supported here, {folder} is {settings.get('model_type')!r}")
    rope = settings.pop("rope_parameters", None)
    if rope:  # 5.x keeps the base of the rotary embedding in here; 4.x would take its default of 10,000
        if rope.get("rope_type", "default") != "default":
            raise ValueError(f"rotary embedding of type {rope['rope_type']!r} is not supported here")
        settings["rope_theta"] = rope["rope_theta"]
    settings.pop("dtype", None)
    config = LlamaConfig(**settings)
    return LlamaForCausalLM.from_pretrained(folder, config=config, torch_dtype=torch.float32).eval()


def perplexity(model: "LlamaForCausalLM", windows: list[list[int]]) -> float:
    """Perplexity: exp of the mean negative log-likelihood of tokens 2 ... n of each window of token ids."""
    import torch

    total, count = 0.0, 0
    with torch.inference_mode():
        for window in windows:
            ids = torch.tensor([window])
            logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
            total += torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
            count += len(window) - 1
    return math.exp(total / count)


def quantize(request: dict) -> dict:
    """Quantize the model and measure it before and after; request and answer as at the top of this file."""
    import torch

    torch.set_num_threads(int(request.get("threads") or torch.get_num_threads()))
    import auto_gptq.modeling._base as base
    from auto_gptq import BaseQuantizeConfig
    from auto_gptq.modeling.llama import LlamaGPTQForCausalLM

    # The library takes it for granted that there is a GPU: its first device is named CUDA_0, and it waits for
    # that device now and then. On a CPU the first device is the CPU, and there is nothing to wait for.
    base.CUDA_0 = torch.device("cpu")
    torch.cuda.synchronize = lambda *_: None

    model = load_model(request["model"])
    before = perplexity(model, request["heldout"])
    config = BaseQuantizeConfig(
        bits=request["bits"], group_size=request["group_size"], sym=request["sym"],
        desc_act=request["desc_act"], damp_percent=request["damp_percent"])
    wrapped = LlamaGPTQForCausalLM(model, False, config)
    examples = [{"input_ids": window, "attention_mask": [1] * len(window)} for window in request["tokens"]]
    start = time.perf_counter()
    cpu = time.process_time()
    wrapped.quantize([{k: torch.tensor(v) for k, v in e.items()} for e in examples], use_cuda_fp16=False)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    if request.get("save"):
        wrapped.save_quantized(request["save"], use_safetensors=True)
    # What was packed computes in half precision, which few CPUs do well: measure in FP32.
    after = perplexity(wrapped.model.float(), request["heldout"])
    return {"perplexity": after, "perplexity_before": before, "quantize_seconds": seconds,
            "quantize_cpu_seconds": cpu, "peak_bytes": peak(), "versions": versions()}


def task(request: dict) -> dict:
    """The answer described at the top of this file."""
    tasks = {"versions": lambda _: {"versions": versions()}, "quantize": quantize}
    if request.get("task") not in tasks:
        raise ValueError(f"unknown task {request.get('task')!r}: known are {', '.join(tasks)}")
    return tasks[request["task"]](request)


if __name__ == "__main__":
    answer(task)
