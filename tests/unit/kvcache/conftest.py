"""The tiny model, one for each file: a test must leave it as it is."""

import pytest

from tests.unit.kvcache.common import tiny_llama


@pytest.fixture(scope="module")
def model():
    return tiny_llama()
