"""Float32 numbers to try, and when two tensors are the same."""

import torch
from hypothesis import strategies as st

finite_float32 = st.floats(width=32, allow_nan=False, allow_infinity=False)


def same(a, b):
    """Equal bit for bit (so -0 is not 0), any NaN being as good as another."""
    a, b = a.float(), b.float()
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(
        a.nan_to_num().view(torch.int32), b.nan_to_num().view(torch.int32)
    )


def from_bits(bits, dtype=torch.float32, integer=torch.int32):
    return torch.as_tensor(bits).to(integer).view(dtype)


def sweep():
    """Float32 numbers of every exponent and sign, at and beside every place where a format may round."""
    high = torch.arange(2**16) << 16  # every sign, exponent and upper 7 bits of the mantissa
    low = torch.tensor([0, 1, 0x0FFF, 0x1000, 0x1001, 0x7FFF, 0x8000, 0x8001, 0xFFFF])
    random = torch.randint(0, 2**32, (2**20,), generator=torch.Generator().manual_seed(0))
    return from_bits(torch.cat([(high[:, None] + low).flatten(), random]))
