"""Greedy decoding with ONNX Runtime: the model is a graph, its KV cache goes in and out as tensors.

Inputs and outputs of the graph are described in course_utils/engines/onnxruntime/onnx_export.py.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # what the quoted hints name
    from onnxruntime import InferenceSession


def open_session(
    folder: str | Path, threads: int = 2, graph: str = "model.onnx"
) -> "InferenceSession":
    """A session of ONNX Runtime on an exported model.

    Args:
        folder: holds model.onnx and the weights beside it.
        threads: that compute.
        graph: which file; "unpacked.onnx" is the one for the browser.

    Returns:
        The session.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        str(Path(folder) / graph), options, providers=["CPUExecutionProvider"])


def generate(
    session: "InferenceSession", prompt: Sequence[int], new_tokens: int, stop: int | None = None
) -> list[int]:
    """Write tokens after a prompt, always the most likely one.

    The graph's inputs: input_ids int64 [1, tokens], the tokens that are read now; attention_mask int64 [1,
    past + tokens], all ones; kept int64 [n], places among the tokens read now whose scores are wanted; and,
    in this order, past_key_0, past_value_0, past_key_1, ..., each FP32 [1, KV heads, past, head dim], with
    past = 0 at first. Outputs: the scores FP32 [1, n, vocabulary], then the cache with the new tokens, in
    the same order as it goes in.

    Args:
        session: `get_inputs()` gives objects with `name` and `shape`; `run(None, feeds)` gives all outputs.
        prompt: token ids, at least one.
        new_tokens: so many are written, fewer when `stop` comes.
        stop: the id that ends a text; it is kept as the last one. None: nothing does.

    Returns:
        The new ids.
    """
    past = {value.name: value.shape for value in session.get_inputs() if value.name.startswith("past_")}
    cache = {name: np.zeros((1, shape[1], 0, shape[3]), np.float32) for name, shape in past.items()}
    ids, seen, written = list(prompt), 0, []
    while len(written) < new_tokens and stop not in written:
        seen += len(ids)
        feeds = {"input_ids": np.array([ids], np.int64), "attention_mask": np.ones((1, seen), np.int64),
                 "kept": np.array([len(ids) - 1], np.int64)}
        scores, *present = session.run(None, feeds | cache)
        cache = dict(zip(past, present, strict=True))
        ids = [int(scores[0, -1].argmax())]
        written += ids
    return written
