"""How ONNX Runtime's MatMulNBits stores a weight, and how it is read from a file.

A weight [rows, inputs] of b bits lies in blocks of `block` neighbours of a row, each block in block * b / 8
bytes: uint8 [rows, blocks, bytes]. Of two 4-bit integers in a byte the first has the low half. Integers
are stored with 2^(b-1) added, so that none is negative; without zero points that is what the operator takes
off again. Scales are FP32 [rows, blocks].
(https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.MatMulNBits)
"""

import json
from pathlib import Path

import numpy as np
from torch import Tensor

from course_utils.quantize import packed
from course_utils.quantize.affine import Quantized
from course_utils.quantize.gptq import GPTQWeight


def to_blocks(weight: GPTQWeight | Quantized) -> tuple[Tensor, Tensor]:
    """A weight as MatMulNBits stores it: the same integers, the same scales.

    Args:
        weight: symmetric, in groups of neighbours.

    Returns:
        Integers uint8 [rows, blocks, bytes], scales float32 [rows, blocks].

    Raises:
        ValueError: the operator cannot hold the weight.
    """
    scheme, (rows, width) = weight.scheme, weight.q.shape
    block = scheme.group
    if not scheme.symmetric or scheme.bits not in (4, 8):
        raise ValueError(f"MatMulNBits is written here for symmetric weights of 4 or 8 bits, not {scheme}")
    if not isinstance(block, int) or block < 16 or block & (block - 1):
        raise ValueError(f"MatMulNBits takes groups of 16, 32, 64, ... neighbours, not {scheme}")
    if isinstance(weight, GPTQWeight) and bool((weight.g_idx.diff() < 0).any()):
        raise ValueError("the groups of this weight are no neighbours (act-order): MatMulNBits has no place "
                         "for that")
    stored = packed.pack(weight.q.int() - scheme.qmin, scheme.bits)
    return stored.reshape(rows, width // block, -1), weight.scale.float().contiguous()


def integers(stored: np.ndarray) -> np.ndarray:
    """The signed 4-bit integers of a weight, as MatMulNBits stores them.

    Args:
        stored: uint8 [rows, blocks, bytes]. A byte holds two integers, the first in its low four bits. 8 was
            added to each.

    Returns:
        int8 [rows, blocks * bytes * 2], from -8 to 7.
    """
    pairs = np.stack([stored & 15, stored >> 4], axis=-1)
    return pairs.reshape(len(stored), -1).astype(np.int8) - 8


def index(folder: str | Path) -> dict[str, dict]:
    """Where the layers of an exported model lie in its file of weights.

    Args:
        folder: from `export.onnx_folder`.

    Returns:
        Layer -> {"bits": of an integer, "integers": place, "scales": place}, a place being {"offset": first
        byte in model.onnx.data, "shape": as at the top of this file}.
    """
    return json.loads((Path(folder) / "index.json").read_text(encoding="utf-8"))


def read(folder: str | Path, layer: str) -> tuple[np.ndarray, np.ndarray]:
    """The bytes and the scales of a layer, straight from the exported file.

    Args:
        folder: as for `index`.
        layer: its name.

    Returns:
        uint8 [rows, blocks, bytes], float32 [rows, blocks]; mapped from the file, not copied.

    Raises:
        KeyError: there is no such layer in the file.
    """
    entry = index(folder)[layer]
    file = Path(folder) / "model.onnx.data"
    places = (entry["integers"], np.uint8), (entry["scales"], np.float32)
    return tuple(np.memmap(file, dtype, "r", place["offset"], tuple(place["shape"]))
                 for place, dtype in places)
