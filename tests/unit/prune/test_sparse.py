"""The sparse formats: nothing is lost, and the bytes are what they are said to be."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from course_utils.prune import sparse, unstructured

SETTINGS = settings(max_examples=60, deadline=None)
WIDTHS = st.integers(1, 40)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@st.composite
def matrices(draw, columns=WIDTHS):
    rows, width = draw(st.integers(1, 8)), draw(columns)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31 - 1)))
    weight = torch.randn(rows, width, generator=generator)
    there = torch.rand(rows, width, generator=generator) < draw(st.floats(0, 1))
    return (weight * there).to(draw(st.sampled_from(DTYPES)))


def _same(a, b):
    assert a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)


@SETTINGS
@given(matrices())
def test_bitmask_and_csr_give_back_every_matrix(weight):
    for name in ("bitmask", "csr"):
        stored = sparse.FORMATS[name].pack(weight)
        _same(stored.unpack(), weight)
        nonzeros = int((weight != 0).sum())
        assert stored.nbytes == sparse.storage_bytes(*weight.shape, nonzeros, name, 8 * weight.element_size())


@SETTINGS
@given(matrices(st.sampled_from([4, 8, 20, 32])))
def test_two_four_gives_back_every_matrix_of_its_kind(weight):
    weight = weight * unstructured.n_m_mask(weight.abs())  # some groups have fewer than two nonzeros
    stored = sparse.TwoFour.pack(weight)
    _same(stored.unpack(), weight)
    bits = 8 * weight.element_size()
    assert stored.nbytes == sparse.storage_bytes(*weight.shape, int((weight != 0).sum()), "2:4", bits)


@SETTINGS
@given(matrices(st.sampled_from([4, 8, 20])))
def test_products_equal_those_of_the_dense_matrix(weight):
    weight = weight.float() * unstructured.n_m_mask(weight.float().abs())
    x = torch.randn(2, 3, weight.shape[1], generator=torch.Generator().manual_seed(0))
    for kind in sparse.FORMATS.values():
        torch.testing.assert_close(kind.pack(weight).matmul(x), F.linear(x, weight), rtol=1e-5, atol=1e-5)


def test_known_sizes():
    half = 512 * 1024 // 2
    assert sparse.storage_bytes(512, 1024, half, "dense") == 512 * 1024 * 2
    assert sparse.storage_bytes(512, 1024, half, "bitmask") * 8 / (512 * 1024) == 9  # bits a weight
    assert sparse.storage_bytes(512, 1024, half, "2:4") * 8 / (512 * 1024) == 9
    csr = sparse.storage_bytes(512, 1024, half, "csr")  # equals dense, but for the starts of the rows
    assert csr - 513 * 4 == sparse.storage_bytes(512, 1024, half, "dense")


def test_csr_agrees_with_torch():
    torch.manual_seed(0)
    weight = torch.randn(6, 10) * (torch.rand(6, 10) < 0.4)
    ours, theirs = sparse.CSR.pack(weight), weight.to_sparse_csr()
    assert torch.equal(ours.starts, theirs.crow_indices().int())
    assert torch.equal(ours.columns, theirs.col_indices().to(torch.int16))
    assert torch.equal(ours.values, theirs.values())


@pytest.mark.parametrize(("function", "message"), [
    (lambda: sparse.Bitmask.pack(torch.ones(4)), "matrix"),
    (lambda: sparse.CSR.pack(torch.zeros(1, 40000)), "16 bits"),
    (lambda: sparse.TwoFour.pack(torch.ones(2, 6)), "groups of 4"),
    (lambda: sparse.TwoFour.pack(torch.tensor([[1.0, 0, 0, 2], [1, 1, 0, 1]])), "row 1 has more"),
    (lambda: sparse.storage_bytes(2, 2, 1, "zip"), "format must be"),
])
def test_bad_input_is_named(function, message):
    with pytest.raises(ValueError, match=message):
        function()
