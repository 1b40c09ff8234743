"""Times of known sleeps; the phases of generation; the machine's limits."""

import time

import pytest
import torch

from course_utils import measure
from tests.unit.measure.common import VOCABULARY, Words


def test_latency_of_a_known_sleep():
    result = measure.latency(lambda: time.sleep(0.02), warmup=1, repeats=5)
    assert len(result.samples) == 5
    assert result.fastest >= 0.02  # a sleep is never shorter; how much longer depends on the machine
    assert result.fastest <= result.q25 <= result.median <= result.q75 <= result.slowest


def test_warm_up_calls_are_made_and_not_counted():
    calls = []
    result = measure.latency(lambda: calls.append(1), warmup=2, repeats=3)
    assert len(calls) == 5
    assert len(result.samples) == 3


def test_latency_of_one_sample_has_no_spread():
    result = measure.latency(lambda: None, warmup=0, repeats=1)
    assert result.q25 == result.median == result.q75 == result.slowest


def test_latency_prints_units():
    from course_utils.measure.speed import _latency

    assert str(_latency([0.001, 0.002, 0.003])) == (
        "median 2.00 ms (middle half 1.50 to 2.50, range 1.00 to 3.00, n = 3)"
    )
    assert "median 2.00 s" in str(_latency([2.0]))
    assert "median 20.0 µs" in str(_latency([2e-5]))


@pytest.mark.parametrize(
    ("options", "match"),
    [({"warmup": -1}, "warmup"), ({"repeats": 0}, "repeats"), ({"repeats": 2.5}, "repeats")],
)
def test_latency_refuses_bad_counts(options, match):
    with pytest.raises(ValueError, match=match):
        measure.latency(lambda: None, **options)


def test_latency_refuses_a_result_in_place_of_a_function():
    with pytest.raises(TypeError, match="lambda"):
        measure.latency(time.sleep(0))


def test_generation_speed_runs_the_phases_it_reports(model):
    lengths = []
    hook = model.model.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    try:
        speed = measure.generation_speed(model, Words(), prompt_tokens=50, new_tokens=4, repeats=2)
    finally:
        hook.remove()
    assert lengths == [50] * 3 + [1] * 6  # one prefill and two steps warm up
    assert (len(speed.prefill.samples), len(speed.decode.samples)) == (2, 4)
    assert speed.prefill_rate == pytest.approx(50 / speed.prefill.median)
    assert speed.decode_rate == pytest.approx(1 / speed.decode.median)
    for part in ("prefill", "decode", "tokens/s", "float32", "cpu", "threads"):
        assert part in str(speed)


def test_generation_speed_refuses_another_models_tokenizer(model):
    def foreign(text, add_special_tokens=True):
        return {"input_ids": [VOCABULARY] * 5}

    with pytest.raises(ValueError, match=f"gives token id {VOCABULARY}, but the model knows 0 to"):
        measure.generation_speed(model, foreign, prompt_tokens=5, new_tokens=1)


def test_generation_speed_with_a_cache_matches_no_cache(model):
    """The cached steps that are timed must compute what an uncached pass computes."""
    prompt = torch.randint(0, VOCABULARY, (1, 20), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        cache = model(prompt[:, :-1], use_cache=True).past_key_values
        step = model(prompt[:, -1:], past_key_values=cache).logits
        whole = model(prompt).logits[:, -1:]
    torch.testing.assert_close(step, whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "match"),
    [({"prompt_tokens": 0}, "prompt_tokens"), ({"new_tokens": 0}, "new_t"), ({"prompt_tokens": 126}, "128")],
)
def test_generation_speed_refuses_what_does_not_fit(model, options, match):
    with pytest.raises(ValueError, match=match):
        measure.generation_speed(model, Words(), **({"new_tokens": 4} | options))


def test_machine_limits_are_positive_and_say_how():
    bandwidth = measure.bandwidth(nbytes=8_000_000, repeats=2)
    assert bandwidth.read > 0 and bandwidth.copy > 0 and bandwidth.nbytes == 8_000_000
    assert "GB/s" in str(bandwidth) and "8 MB" in str(bandwidth)
    matmul = measure.matmul_speed(n=64, repeats=2)
    assert matmul.flops > 0 and "GFLOP/s" in str(matmul) and "float32" in str(matmul)


def test_machine_limits_refuse_sizes_that_measure_nothing():
    with pytest.raises(ValueError, match="nbytes"):
        measure.bandwidth(nbytes=1000)
    with pytest.raises(ValueError, match="n must be"):
        measure.matmul_speed(n=4)
