"""Tables and integers against bitsandbytes, torch and exact rational arithmetic."""

from fractions import Fraction

import bitsandbytes.functional as bnb
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from course_utils import formats as f
from tests.unit.formats.common import same


def test_e2m1_table():
    positive = [0.0, 0.5, 1, 1.5, 2, 3, 4, 6]
    assert same(f.value_table(f.E2M1), torch.tensor(positive + [-x for x in positive]))


def test_nf4_table_is_that_of_bitsandbytes():
    table = f.normal_float_table()
    assert torch.equal(table, bnb.get_4bit_type("nf4", device="cpu"))
    padded = bnb.create_normal_map()  # 16 values and zeros up to 256, computed with scipy
    assert torch.equal(table, torch.cat([padded[:8], padded[-8:]]))
    assert (table == 0).sum() == 1 and (table < 0).sum() == 7


@given(
    st.lists(st.floats(-100, 100, width=32), min_size=2, max_size=20, unique=True),
    st.lists(st.floats(-200, 200, width=32), min_size=1, max_size=20),
)
@settings(deadline=None)
def test_nearest_code_in_exact_arithmetic(table, values):
    table = sorted(table)
    codes = f.nearest_code(torch.tensor(values).double(), torch.tensor(table).double())
    for value, code in zip(values, codes.tolist(), strict=True):
        distances = [abs(Fraction(value) - Fraction(entry)) for entry in table]
        assert code == distances.index(min(distances))


@pytest.mark.parametrize("bits", [4, 8])
def test_integers_are_twos_complement(bits):
    codes = torch.arange(2**bits)
    values = f.decode_int(codes, bits)
    wanted = codes.to(torch.int8) if bits == 8 else ((codes << 4).to(torch.int8) >> 4)
    assert torch.equal(values, wanted.float())
    largest = 2 ** (bits - 1) - 1
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, 1000.0, -1000.0, largest, -largest])
    rounded = f.decode_int(f.encode_int(x, bits), bits)
    assert rounded.tolist() == [0, 2, 2, 0, -2, largest, -largest, largest, -largest]


@pytest.mark.parametrize("call, error, message", [
    (lambda: f.value_table(f.TF32), ValueError, "TF32 would have 2\\*\\*19"),
])  # fmt: skip
def test_errors_say_what_to_do(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
