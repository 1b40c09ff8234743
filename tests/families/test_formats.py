"""All matrices of every family are put into a number format, experts among them, and come back."""

import pytest
import torch

from course_utils import formats
from tests.families.models import FAMILIES, logits, off, tiny


@pytest.mark.parametrize("family", FAMILIES)
def test_every_matrix_is_converted(family):
    model, fresh = tiny(family), tiny(family)
    with formats.converting(model) as put_weights_in:
        result = put_weights_in("NVFP4")
        matrices = {name: p for name, p in fresh.named_parameters() if p.ndim > 1}
        assert result.weights == sum(matrix.numel() for matrix in matrices.values())
        for name, matrix in matrices.items():
            rows = formats.convert(matrix.detach().reshape(-1, matrix.shape[-1]), "NVFP4")[0]
            assert torch.equal(model.get_parameter(name), rows.view_as(matrix))
        assert 4 < result.bits < 5 and off(model, logits(fresh)) > 0.01
        uneven = any(matrix.shape[-1] % 64 for matrix in matrices.values())
        with pytest.raises(ValueError, match="blocks of 64 do not divide" if uneven else "no format 'none'"):
            put_weights_in("NF4" if uneven else "none")
        assert all(torch.equal(model.get_parameter(name), matrix) for name, matrix in matrices.items())
    assert off(model, logits(fresh)) == 0
