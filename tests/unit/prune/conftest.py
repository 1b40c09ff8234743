"""What several files of these tests share."""

import pytest

from tests.unit.prune.small_models import MODELS


@pytest.fixture(params=MODELS)
def architecture(request):
    return request.param
