"""Bytes of weights and peak memory against known allocations."""

import gc
import time
import weakref

import psutil
import pytest
import torch

from course_utils import measure


def test_weight_bytes_of_plain_layers():
    model = torch.nn.Sequential(torch.nn.Linear(10, 20), torch.nn.Linear(20, 5, bias=False).bfloat16())
    result = measure.weight_bytes(model)
    assert result.total == 4 * (10 * 20 + 20) + 2 * 20 * 5
    assert result.by_module == {"0": 880, "1": 200}
    assert result.by_dtype == {"float32": 880, "bfloat16": 200}
    assert "0.00 MB" in str(result)


def test_tied_weights_count_once():
    model = torch.nn.ModuleDict({name: torch.nn.Linear(8, 8, bias=False) for name in "ab"})
    model["b"].weight = model["a"].weight
    assert measure.weight_bytes(model).total == 256
    model["b"].weight = torch.nn.Parameter(model["a"].weight.data)  # another parameter, the same memory
    assert measure.weight_bytes(model).total == 256
    model["b"].weight = torch.nn.Parameter(model["a"].weight.data.clone())
    assert measure.weight_bytes(model).total == 512


def test_a_view_keeps_its_whole_base_alive():
    model = torch.nn.Module()
    model.weight = torch.nn.Parameter(torch.zeros(1000)[:10])
    assert measure.weight_bytes(model).total == 4000


def test_packed_buffers_and_empty_tensors_count_as_stored():
    model = torch.nn.Module()
    model.register_buffer("packed", torch.zeros(6, 10, dtype=torch.uint8))
    model.register_buffer("scales", torch.zeros(6, dtype=torch.float16), persistent=False)
    model.register_buffer("nothing", torch.zeros(0))
    assert measure.weight_bytes(model).by_dtype == {"uint8": 60, "float16": 12}


def test_weight_bytes_of_a_tied_language_model(model):
    # Beside the parameters lie the rotary embedding's tables, which transformers counts as we do.
    assert measure.weight_bytes(model).total == model.get_memory_footprint()
    assert measure.weight_bytes(model).total >= 4 * model.num_parameters()


def test_bitsandbytes_scales_are_counted():
    bnb = pytest.importorskip("bitsandbytes")
    layer = bnb.nn.Linear4bit(256, 128, bias=False, quant_type="nf4", compress_statistics=False)
    layer.load_state_dict({"weight": torch.randn(128, 256)})
    layer = layer.to("cpu")
    n = 128 * 256
    nibbles, scales, nf4_table = n // 2, 4 * n // 64, 4 * 16
    assert measure.weight_bytes(layer).total == nibbles + scales + nf4_table


def test_torchao_weights_are_counted_as_packed():
    torchao = pytest.importorskip("torchao.quantization")
    layer = torch.nn.Sequential(torch.nn.Linear(256, 128, bias=False))
    torchao.quantize_(layer, torchao.Int8WeightOnlyConfig())
    result = measure.weight_bytes(layer)
    weights, zero_points, scales = 128 * 256, 128, 4 * 128
    assert result.total == weights + zero_points + scales


def test_weight_bytes_refuses_what_holds_no_bytes():
    with pytest.raises(TypeError, match="Module"):
        measure.weight_bytes(torch.zeros(3))
    with torch.device("meta"), pytest.raises(ValueError, match="meta"):
        measure.weight_bytes(torch.nn.Linear(3, 3))


def test_peak_memory_sees_an_allocation_that_is_gone_at_the_end():
    with measure.peak_memory() as peak:
        block = torch.ones(50_000_000)  # 200 MB
        time.sleep(0.1)
        del block
    assert 190e6 < peak.increase < 260e6
    assert "inside the block" in str(peak)


def test_peak_memory_of_nothing_is_nothing():
    with measure.peak_memory() as peak:
        pass
    assert peak.increase < 20e6


def test_peak_memory_is_complete_after_an_error():
    with pytest.raises(RuntimeError, match="on purpose"), measure.peak_memory() as peak:
        raise RuntimeError("on purpose")
    assert peak.peak >= peak.start > 0


def test_peak_memory_refuses_a_negative_interval():
    with pytest.raises(ValueError, match="interval"), measure.peak_memory(interval=-1):
        pass


def test_release_memory_gives_freed_memory_back():
    pieces = [torch.ones(200_000) for _ in range(400)]  # 320 MB in pieces that the C library keeps when freed
    full = psutil.Process().memory_info().rss
    del pieces
    measure.release_memory()
    assert psutil.Process().memory_info().rss < full - 200e6


class Circle:
    """Something that only the garbage collector frees."""

    def __init__(self):
        self.itself = self


def circles_left_after_work():
    """Circles that grew old before they were dropped, and are still there after some further allocation."""
    circles = [Circle() for _ in range(100)]
    alive = [weakref.ref(circle) for circle in circles]
    gc.collect(0), gc.collect(1)  # they have survived two collections: only a full one looks at them now
    del circles
    work = [[] for _ in range(5000)]
    assert len(work) == 5000
    return sum(ref() is not None for ref in alive)


def test_frequent_collection_frees_old_circles_that_python_would_leave():
    before, frozen = gc.get_threshold(), gc.get_freeze_count()
    kept = [[] for _ in range(200_000)]  # so many live objects that a full collection would not pay
    gc.collect()
    assert circles_left_after_work() > 90, "Python cleans up by itself now: is this still needed?"
    with measure.frequent_collection():
        assert circles_left_after_work() == 0
    assert (gc.get_threshold(), gc.get_freeze_count(), len(kept)) == (before, frozen, 200_000)


def test_frequent_collection_ends_after_an_error():
    before = gc.get_threshold()
    with pytest.raises(KeyError), measure.frequent_collection():
        raise KeyError
    assert gc.get_threshold() == before
