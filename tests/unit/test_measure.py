"""`measure` against independent computations: transformers' own loss, known allocations, known sleeps."""

import gc
import math
import subprocess
import time
import weakref

import pandas as pd
import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from course_utils import measure

VOCABULARY = 97


@pytest.fixture(scope="module")
def model():
    """A random Llama that is far from uniform, so that a wrong perplexity differs from a right one."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=True,
        initializer_range=0.3, attention_dropout=0.5)  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(0, VOCABULARY, (300,), generator=torch.Generator().manual_seed(1))


class Words:
    """A tokenizer for tests: a token for each word, as transformers returns it."""

    def __call__(self, text, add_special_tokens=True):
        return {"input_ids": [len(word) for word in text.split()]}


# --- perplexity -------------------------------------------------------------------------------------------


def loss_per_window(model, tokens, window):
    """Independent: transformers' own loss of each window, weighted by the tokens it scores."""
    total = scored = 0
    for piece in tokens.split(window):
        if len(piece) < 2:
            continue
        with torch.no_grad():
            total += model(piece[None], labels=piece[None]).loss.item() * (len(piece) - 1)
        scored += len(piece) - 1
    return math.exp(total / scored), scored


def documented_loop(model, tokens, window, stride):
    """Independent: the strided loop of transformers' documentation ("Perplexity of fixed-length models"),
    with the number of scored tokens counted, not estimated."""
    total = scored = previous_end = 0
    for begin in range(0, len(tokens), stride):
        end = min(begin + window, len(tokens))
        labels = tokens[None, begin:end].clone()
        labels[:, : -(end - previous_end)] = -100
        valid = (labels[:, 1:] != -100).sum().item()
        with torch.no_grad():
            total += model(tokens[None, begin:end], labels=labels).loss.item() * valid
        scored += valid
        previous_end = end
        if end == len(tokens):
            break
    return math.exp(total / scored), scored


@pytest.mark.parametrize("window", [2, 64, 100, 128])
def test_windows_match_transformers_loss(model, tokens, window):
    expected, scored = loss_per_window(model, tokens, window)
    result = measure.perplexity(model, tokens, window=window)
    assert result.value == pytest.approx(expected, rel=1e-5)
    assert (result.tokens, result.window, result.stride, result.device) == (scored, window, window, "cpu")
    assert result.nll == pytest.approx(math.log(result.value))


@pytest.mark.parametrize(("window", "stride"), [(64, 1), (64, 16), (100, 99), (128, 50)])
def test_strides_match_the_documented_loop(model, tokens, window, stride):
    expected, scored = documented_loop(model, tokens[:200], window, stride)
    result = measure.perplexity(model, tokens[:200], window=window, stride=stride)
    assert result.value == pytest.approx(expected, rel=1e-5)
    assert result.tokens == scored == 199  # all but the very first


def test_window_and_stride_matter_for_this_model(model, tokens):
    values = {round(measure.perplexity(model, tokens, *cut).value, 3) for cut in ((16,), (128,), (128, 64))}
    assert len(values) == 3  # or the tests above could not tell them apart


@pytest.mark.parametrize("batch_size", [1, 3, 1000])
def test_batch_size_changes_nothing(model, tokens, batch_size):
    reference = measure.perplexity(model, tokens, window=32)
    result = measure.perplexity(model, tokens, window=32, batch_size=batch_size)
    assert result.value == pytest.approx(reference.value, rel=1e-5)
    assert result.tokens == reference.tokens


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 80), st.integers(2, 80), st.integers(1, 80))
def test_every_token_with_context_is_scored_once(n, window, stride):
    from course_utils.measure.quality import _spans

    window, stride = min(window, n), min(stride, window, n)
    scored = [i for _, first, end in _spans(n, window, stride) for i in range(first, end)]
    assert len(scored) == len(set(scored))
    expected = set(range(1, n)) if stride < window else {i for i in range(n) if i % window}
    assert set(scored) == expected


def test_a_uniform_model_has_the_vocabulary_as_perplexity(tokens):
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    model = LlamaForCausalLM(config)
    torch.nn.init.zeros_(model.lm_head.weight)
    assert measure.perplexity(model, tokens, window=50).value == pytest.approx(VOCABULARY, rel=1e-5)


def test_perplexity_switches_dropout_off_and_puts_everything_back(model, tokens):
    expected = measure.perplexity(model, tokens, window=64)
    model.train()
    model.model.layers[0].eval()
    before = [module.training for module in model.modules()]
    try:
        assert measure.perplexity(model, tokens, window=64) == expected
        assert [module.training for module in model.modules()] == before
    finally:
        model.eval()


def test_perplexity_in_bf16_scores_in_float32(model, tokens):
    half = LlamaForCausalLM(model.config).to(torch.bfloat16).eval()
    half.load_state_dict(model.state_dict())
    with torch.no_grad():
        logits = half(tokens[None, :64]).logits[0].float()
    expected = torch.nn.functional.cross_entropy(logits[:-1], tokens[1:64]).exp().item()
    assert measure.perplexity(half, tokens[:64], window=64).value == pytest.approx(expected, rel=1e-5)


def test_a_ruined_model_gives_a_number_not_an_error(model, tokens):
    ruined = LlamaForCausalLM(model.config).eval()
    torch.nn.init.constant_(ruined.model.norm.weight, 1e6)
    assert measure.perplexity(ruined, tokens, window=64).value == math.inf
    torch.nn.init.constant_(ruined.model.norm.weight, math.nan)
    assert math.isnan(measure.perplexity(ruined, tokens, window=64).value)


def test_perplexity_says_everything_needed_to_compare_it(model, tokens):
    text = str(measure.perplexity(model, tokens, window=64, stride=32))
    for part in ("perplexity", "nats per token", "299 tokens scored", "window 64", "stride 32", "cpu"):
        assert part in text


@pytest.mark.parametrize(
    ("text", "options", "error", "match"),
    [
        (torch.tensor([], dtype=torch.long), {}, ValueError, "0 tokens"),
        (torch.tensor([1]), {}, ValueError, "1 tokens"),
        (torch.rand(50), {}, TypeError, "float32"),
        (torch.ones(50, dtype=torch.bool), {}, TypeError, "bool"),
        ("a text", {}, TypeError, "str"),
        ([1, 2, 3], {}, TypeError, "list"),
        (torch.ones(1, 50, dtype=torch.long), {}, ValueError, "flatten"),
        (torch.ones(50, dtype=torch.long), {"window": 51}, ValueError, "from 2 to 50"),
        (torch.ones(50, dtype=torch.long), {"window": 1}, ValueError, "window"),
        (torch.ones(50, dtype=torch.long), {"window": 8.0}, ValueError, "window"),
        (torch.ones(50, dtype=torch.long), {"window": 16, "stride": 17}, ValueError, "stride"),
        (torch.ones(50, dtype=torch.long), {"window": 16, "stride": 0}, ValueError, "stride"),
        (torch.ones(200, dtype=torch.long), {"window": 129}, ValueError, "128 positions"),
        (torch.full((50,), VOCABULARY), {"window": 16}, ValueError, "tokenizer"),
        (torch.full((50,), -1), {"window": 16}, ValueError, "-1"),
        (torch.ones(50, dtype=torch.long), {"window": 16, "batch_size": 0}, ValueError, "batch_size"),
    ],
)
def test_perplexity_refuses_what_it_cannot_score(model, text, options, error, match):
    with pytest.raises(error, match=match):
        measure.perplexity(model, text, **options)


# --- accuracy ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("correct", "total"), [(0, 7), (7, 7), (1, 3), (830, 1000)])
def test_interval_matches_scipy(correct, total):
    from scipy.stats import binomtest

    labels = torch.ones(total, dtype=torch.long)
    predictions = torch.cat([torch.ones(correct), torch.zeros(total - correct)]).long()
    result = measure.accuracy(predictions, labels)
    expected = binomtest(correct, total).proportion_ci(method="wilson")
    assert (result.correct, result.total, result.value) == (correct, total, correct / total)
    assert (result.low, result.high) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_accuracy_of_logits_takes_the_largest():
    logits = torch.tensor([[0.1, 0.9], [3.0, -1.0], [0.0, 0.5]])
    assert measure.accuracy(logits, torch.tensor([1, 0, 0])).correct == 2
    assert measure.accuracy([1, 0, 1], [1, 0, 0]).correct == 2
    assert "66.7% (2 of 3" in str(measure.accuracy([1, 0, 1], [1, 0, 0]))


@pytest.mark.parametrize(
    ("predictions", "labels", "error", "match"),
    [
        ([1, 0], [1], ValueError, "do not fit"),
        (torch.rand(3, 2, 2), torch.zeros(3), ValueError, "do not fit"),
        ([], [], ValueError, "no examples"),
        ([0.2, 0.8], [0, 1], TypeError, "whole numbers"),
        ([0, 1], [0.0, 1.0], TypeError, "whole numbers"),
    ],
)
def test_accuracy_refuses_what_does_not_fit(predictions, labels, error, match):
    with pytest.raises(error, match=match):
        measure.accuracy(predictions, labels)


# --- weight bytes -----------------------------------------------------------------------------------------


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


# --- peak memory ------------------------------------------------------------------------------------------


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


# --- latency and speed ------------------------------------------------------------------------------------


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


# --- the machine card and tables --------------------------------------------------------------------------


def test_machine_card_names_machine_and_versions():
    import psutil
    import transformers

    card = measure.machine_card()
    assert card.cpu and card.cores >= 1
    assert card.memory == psutil.virtual_memory().total
    assert (card.torch, card.transformers) == (torch.__version__, transformers.__version__)
    assert card.threads == torch.get_num_threads()
    text = str(card)
    for part in (card.cpu, card.torch, "GB", card.date):
        assert part in text


def test_machine_card_names_the_commit_of_a_checkout(tmp_path):
    from course_utils.measure.machine import commit_of

    assert commit_of(tmp_path) == ""
    git = ["git", "-C", str(tmp_path), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run([*git, "init", "-q"], check=True)
    assert commit_of(tmp_path) == ""  # no commit yet
    (tmp_path / "file").write_text("1")
    subprocess.run([*git, "add", "file"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "one"], check=True)
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
    assert commit_of(tmp_path) == head.stdout.strip()
    (tmp_path / "file").write_text("2")
    assert commit_of(tmp_path) == head.stdout.strip() + "+"


def test_table_puts_results_side_by_side(model, tokens):
    result = measure.perplexity(model, tokens, window=64)
    nbytes = measure.weight_bytes(model)
    frame = measure.table({"FP32": (result, nbytes, {"bits": 32}), "again": (result, nbytes, {"bits": 16})})
    assert isinstance(frame, pd.DataFrame)
    assert list(frame.index) == ["FP32", "again"]
    assert list(frame.columns) == ["perplexity", "tokens scored", "window", "weights (MB)", "bits"]
    assert frame.loc["FP32", "perplexity"] == round(result.value, 2)
    everything = [
        measure.machine_card(), measure.latency(lambda: None, 0, 2), measure.accuracy([1], [1]),
        measure.bandwidth(nbytes=8_000_000, repeats=1), measure.matmul_speed(n=64, repeats=1),
        measure.generation_speed(model, Words(), 8, 2, 1), measure.PeakMemory(1, 2, 3),
    ]  # fmt: skip
    for one in everything:
        assert len(measure.table([one])) == 1


def test_a_sentence_in_a_table_is_shown_whole():
    note = "not installed. Install it with: course engines install onnxruntime-genai"
    table = measure.table({"an engine": {"note": note}})
    assert note in table._repr_html_() and note in repr(table)


def test_table_refuses_what_has_no_row():
    with pytest.raises(TypeError, match="int"):
        measure.table([3])
    with pytest.raises(ValueError, match="row"):
        measure.table([])


@pytest.mark.slow
def test_the_real_model_has_the_documented_perplexity_and_size():
    from course_utils import data, models

    model, tokenizer = models.load_lm()
    assert measure.weight_bytes(model).total == pytest.approx(538.06e6, rel=1e-3)
    tokens = data.wikipedia_tokens(tokenizer, "heldout", 1024)
    result = measure.perplexity(model, tokens, window=512)
    assert result.value == pytest.approx(loss_per_window(model, tokens, 512)[0], rel=1e-4)
    assert 15 < result.value < 45


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
