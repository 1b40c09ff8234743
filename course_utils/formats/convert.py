"""Any tensor in any format, and a whole model in one format after another."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from course_utils.formats.block_scaled import BLOCKS, quantize
from course_utils.formats.floats import E2M1, FLOATS, TF32, round_to

FORMATS = FLOATS | BLOCKS


def convert(x: torch.Tensor, name: str) -> tuple[torch.Tensor, int]:
    """Round a tensor to a format.

    Plain floats saturate where x is out of range. TF32 takes 4 bytes: it exists inside matrix units only.

    Args:
        x: float32, float16 or bfloat16.
        name: of the format, one of FORMATS.

    Returns:
        (x rounded, float32 of the same shape; the bytes it takes in the format, scales included).

    Raises:
        TypeError: x has another dtype.
        ValueError: the name is unknown, or the values or the shape of x do not fit the format (see `round_to`
            and `quantize`).
    """
    if name not in FORMATS:
        raise ValueError(f"no format {name!r}; there are {', '.join(FORMATS)}")
    if name in BLOCKS:
        quantized = quantize(x, BLOCKS[name])
        return quantized.dequantize(), quantized.nbytes
    bits = 32 if name == TF32.name else FLOATS[name].bits
    return round_to(x, FLOATS[name], saturate=True), -(-x.numel() * bits // 8)


def mxfp4_rounded_up(weight: torch.Tensor) -> torch.Tensor:
    """MXFP4 with the smallest power of two as scale that cuts nothing off; the standard rounds down.

    Args:
        weight: float [out, in], in a multiple of 32.

    Returns:
        What it becomes, float32 of the same shape. A block of zeros stays one.

    Raises:
        RuntimeError: the width is no multiple of 32.
    """
    blocks = weight.float().reshape(*weight.shape[:-1], -1, 32)
    largest = blocks.abs().amax(dim=-1, keepdim=True)
    scale = 2.0 ** (torch.where(largest > 0, largest, 1.0) / E2M1.largest).log2().ceil()
    return (round_to(blocks / scale, E2M1) * scale).view_as(weight)


@dataclass(frozen=True)
class Conversion:
    """What a model's weights became in a format.

    Attributes:
        name: of the format.
        nbytes: true bytes of all parameters: matrices in the format, scales included, the rest as it was.
        weights: number of weights that were converted.
        bits: bits of such a weight, scales included.
        error: |converted - original| / |original|, Euclidean norms over all converted weights.
    """

    name: str
    nbytes: int
    weights: int
    bits: float
    error: float

    def row(self) -> dict[str, float]:
        """The figures as a row of `measure.table`.

        Returns:
            Column -> value.
        """
        return {
            "bits per weight": round(self.bits, 3),
            "MB": round(self.nbytes / 1e6, 1),
            "weight error (%)": float(f"{100 * self.error:.3g}"),
        }


@contextmanager
def converting(model: torch.nn.Module) -> Iterator[Callable[[str], Conversion]]:
    """Put the matrices of a model into one format after another; at the end they are what they were.

    Each call starts from the original weights and leaves the values that the format can hold in the model, in
    the model's own dtype. Vectors (norms, biases) stay. The originals wait in files in a temporary folder:
    one model in memory is enough.

    Args:
        model: its parameters with two dimensions or more are converted (three: the experts of a mixture).

    Yields:
        A function: name of a format -> Conversion. It raises what `convert` raises, and the weights are then
        the original ones.

    Example:
        with formats.converting(model) as put_weights_in:
            print(put_weights_in("NF4"))
            print(measure.perplexity(model, tokens))
    """
    matrices = [parameter for parameter in model.parameters() if parameter.dim() >= 2]
    others = sum(parameter.nbytes for parameter in model.parameters() if parameter.dim() < 2)
    count = sum(matrix.numel() for matrix in matrices)
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{n}.pt" for n in range(len(matrices))]
        for matrix, file in zip(matrices, files, strict=True):
            torch.save(matrix.detach().clone(), file)

        def originals() -> Iterator[tuple[torch.nn.Parameter, torch.Tensor]]:
            for matrix, file in zip(matrices, files, strict=True):
                yield matrix, torch.load(file, map_location=matrix.device)

        def put_back() -> None:
            for matrix, original in originals():
                matrix.data.copy_(original)

        def put_weights_in(name: str) -> Conversion:
            nbytes, lost, size = 0, 0.0, 0.0
            progress = tqdm(originals(), desc=name, total=len(files), unit="matrix", leave=False, delay=3)
            for matrix, original in progress:
                try:
                    values, taken = convert(original, name)
                except (TypeError, ValueError):
                    put_back()
                    raise
                matrix.data.copy_(values)
                nbytes += taken
                size += original.float().norm().item() ** 2
                lost += values.sub_(original).norm().item() ** 2
            return Conversion(name, nbytes + others, count, 8 * nbytes / count, (lost / size) ** 0.5)

        try:
            yield put_weights_in
        finally:
            put_back()
