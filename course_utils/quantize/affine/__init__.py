"""Affine quantization: a real number x is stored as an integer q, with x ~ scale * (q - zero).

Symmetric ("absmax")     q in [-2^(b-1), 2^(b-1) - 1], zero = 0.
Asymmetric ("zero point") q in [0, 2^b - 1], zero is an integer of that range; 0.0 is always exact.

Two symmetric grids are in use, and `Scheme.full_range` picks one:

- True (default): scale = absmax / (2^(b-1) - 1/2). All 2^b integers are used. The largest positive value is
  clipped by at most half a step, so the error stays within scale / 2. This is the grid of the GPTQ reference
  code (Quantizer.find_params: scale = 2 absmax / (2^b - 1), zero 2^(b-1) in unsigned storage), so checkpoints
  in that format hold exactly our integers plus 2^(b-1).
- False ("restricted"): scale = absmax / (2^(b-1) - 1). The lowest integer stays unused, the grid is a mirror
  image of itself. LLM.int8() and most INT8 kernels use it: 127 instead of 127.5. At 8 bits the two hardly
  differ; at 3 bits the restricted grid loses one level of eight, at 2 bits one of four.

Weights are matrices [out, in], as in nn.Linear. A scale is shared by the whole matrix ("tensor"), by one row
(an output channel, group=None), or by `group` neighbours in a row.

schemes   what a matrix is quantized to, and how many bits that takes
grids     scale and zero point of some numbers; to integers and back
matrices  whole matrices: quantize, dequantize, both in one

Sources: Jacob et al., arXiv 1712.05877 (zero point); Frantar et al., arXiv 2210.17323 (groups).
"""

from course_utils.quantize.affine.grids import (
    absmax_scale,
    from_integers,
    parameters,
    search_clip,
    to_integers,
    zero_point_params,
)
from course_utils.quantize.affine.matrices import (
    check_weight,
    dequantize,
    fake_quantize,
    quantize,
    to_groups,
)
from course_utils.quantize.affine.schemes import Quantized, Scheme, bits_per_weight, check_group

__all__ = [
    "Quantized", "Scheme", "absmax_scale", "bits_per_weight", "check_group", "check_weight", "dequantize",
    "fake_quantize", "from_integers", "parameters", "quantize", "search_clip", "to_groups", "to_integers",
    "zero_point_params",
]  # fmt: skip
