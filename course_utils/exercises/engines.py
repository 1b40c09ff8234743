"""Exercises of the lesson on engines."""

import numpy as np

from course_utils import costs
from course_utils.checking import Case, Exercise, Mistake, Prediction
from course_utils.checking.cases import seeded
from course_utils.engines import agreement, graph

# --- decode_bound -----------------------------------------------------------------------------------------


def _bound_cases():
    return [
        Case(538_060_032, 20e9, label="SmolLM2-135M in FP32 at 20 GB/s"),
        Case(86_000_000, 20e9, 5_898_240, label="INT4, and 256 tokens of cache"),
        Case(86_000_000, 20e9, 5_898_240, 16, label="the same, 16 sequences at once"),
        Case(26_031_738_880, 77e9, 1_677_721_600, 4, label="LLaMA-13B in FP16 on a phone, 4 sequences"),
        Case(0, 20e9, 5_898_240, 3, label="no weights: only the cache is read"),
        Case(2e-7, 3e-7, 5e-8, label="tiny figures are figures"),
        Case(86_000_000, 0, label="no bandwidth", raises=ValueError),
        Case(86_000_000, -0.5, label="a negative bandwidth", raises=ValueError),
        Case(0, 20e9, label="nothing to read", raises=ValueError),
        Case(0, 20e9, batch=8, label="nothing to read, 8 sequences", raises=ValueError),
        Case(100, 20e9, -30, 4, label="fewer bytes than none", raises=ValueError),
    ]


def _draw_bounds(numbers):
    return [Case(numbers.randint(10**6, 10**10), numbers.uniform(1e9, 1e12), numbers.randint(0, 10**8),
                 numbers.randint(1, 64)) for _ in range(4)]


DECODE_BOUND = Exercise(
    reference=costs.decode_bound,
    cases=_bound_cases,
    draw=_draw_bounds,
    mistakes=[
        Mistake(
            "seconds for a step. Asked is how many tokens fit into a second.",
            lambda weights, bandwidth, cache=0, batch=1: (weights + batch * cache) / bandwidth,
        ),
        Mistake(
            "the cache left out. Each step reads the keys and values of all earlier tokens, too.",
            lambda weights, bandwidth, cache=0, batch=1: batch * bandwidth / weights,
        ),
        Mistake(
            "the weights read once for each sequence. A step reads them once for the whole batch.",
            lambda weights, bandwidth, cache=0, batch=1: bandwidth / (weights + cache),
        ),
        Mistake(
            "steps a second. A step gives a token to each sequence of the batch.",
            lambda weights, bandwidth, cache=0, batch=1: bandwidth / (weights + batch * cache),
        ),
        Mistake(
            "one cache for all. Each sequence has keys and values of its own.",
            lambda weights, bandwidth, cache=0, batch=1: batch * bandwidth / (weights + cache),
        ),
        Mistake(
            "bits taken for bytes. Both figures are in bytes already.",
            lambda weights, bandwidth, cache=0, batch=1: costs.decode_bound(8 * weights, bandwidth, 8 * cache,
                                                                            batch),
        ),
    ],
    hint="What does one step read once, and what once for each sequence? How many tokens does it give?",
)


# --- mean_kl ----------------------------------------------------------------------------------------------


def _kl_cases():
    random = np.random.default_rng(seeded(11))
    reference = random.normal(size=(5, 7)) * 3
    near = reference + 0.1 * random.normal(size=reference.shape)
    close = reference + 1e-3 * random.normal(size=reference.shape)
    wide = random.normal(size=(8, 5))
    return [
        Case(reference, near, label="logits that are slightly off"),
        Case(reference, reference + np.arange(5)[:, None], label="a constant added to each position"),
        Case(reference[:1], -reference[:1], label="one position, turned upside down"),
        Case(1000 * reference, 1000 * near, label="logits in the thousands"),
        Case(1000 * reference, -1000 * reference, label="logits in the thousands, turned upside down"),
        Case(reference.astype(np.float32), near.astype(np.float32), label="float32"),
        Case(reference.astype(np.float32), close.astype(np.float32), label="float32, almost equal"),
        Case(reference.astype(np.float16), near.astype(np.float16), label="float16"),
        Case(reference, near.astype(np.float32), label="float64 against float32"),
        Case(wide.T[:, ::2], wide.T[:, 1::2], label="arrays that are strided views"),
        Case(reference, near[:1], label="one position against five", raises=ValueError),
        Case(reference[:1], near, label="five positions against one", raises=ValueError),
        Case(reference, near[:, :1], label="one logit against seven", raises=ValueError),
        Case(reference, near.T, label="as many numbers in another shape", raises=ValueError),
        Case(reference, near[:, :6], label="another vocabulary", raises=ValueError),
    ]


def _log_p(logits):
    logits = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def _naive(reference, logits):
    p, q = (np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True) for x in (reference, logits))
    return float((p * np.log(p / q)).sum(axis=-1).mean())


def _smoothed(reference, logits, least=1e-12):
    p, q = (np.exp(_log_p(x)) for x in (reference, logits))
    return float((p * np.log((p + least) / (q + least))).sum(axis=-1).mean())


MEAN_KL = Exercise(
    reference=agreement.mean_kl,
    cases=_kl_cases,
    rtol=1e-4,
    atol=1e-9,
    mistakes=[
        Mistake(
            "KL the other way round. The expectation is over the reference's probabilities.",
            lambda reference, logits: agreement.mean_kl(logits, reference),
        ),
        Mistake(
            "the sum over positions. Asked is the mean.",
            lambda reference, logits: len(reference) * agreement.mean_kl(reference, logits),
        ),
        Mistake(
            "the mean over the vocabulary too. KL is a sum over the tokens that could come.",
            lambda reference, logits: agreement.mean_kl(reference, logits) / reference.shape[-1],
        ),
        Mistake(
            "cross-entropy. Subtract the entropy of the reference: equal logits have a KL of 0.",
            lambda reference, logits: float(-(np.exp(_log_p(reference)) * _log_p(logits)).sum(-1).mean()),
        ),
        Mistake(
            "bits. With the natural logarithm it is nats.",
            lambda reference, logits: agreement.mean_kl(reference, logits) / np.log(2),
        ),
        Mistake(
            "the logits taken for log-probabilities. A constant added to them must change nothing.",
            lambda reference, logits: float(
                (np.exp(_log_p(reference)) * (reference - logits)).sum(-1).mean()),
        ),
        Mistake(
            "a small number added before the logarithm, which cuts off what is very unlikely. A log-softmax "
            "of the logits needs none.",
            lambda reference, logits: _smoothed(reference, logits),
        ),
        Mistake(
            "exp overflows. Take the largest logit of a position out before exp, or use a log-softmax.",
            _naive,
        ),
    ],
    hint="KL is an expectation. Under whose probabilities, and of which difference? Then: the mean of what?",
)


# --- missing_parts ----------------------------------------------------------------------------------------

ARTICLE = [("input_ids", [1, 8])], [("logits", [1, 8, 49152])]


def _graph(layers=2, past="past", mask=True, tokens="tokens", cached="cached", present=None):
    """Inputs and outputs of a decoder; past: what the cache's tensors are called."""
    state = ["batch", 3, cached, 64]
    names = [f"{past}.{layer}.{kind}" for layer in range(layers) for kind in ("key", "value")]
    inputs = [("input_ids", ["batch", tokens])]
    inputs += [("attention_mask", ["batch", "all"])] if mask else []
    inputs += [(name, state) for name in names]
    given = len(names) if present is None else present
    outputs = [("logits", ["batch", tokens, 49152])]
    outputs += [(f"present.{number}", ["batch", 3, "all", 64]) for number in range(given)]
    return inputs, outputs


def _graph_cases():
    inputs, outputs = _graph()
    return [
        Case(*ARTICLE, label="exported as in the article"),
        Case(*_graph(), label="complete"),
        Case(*_graph(past="layer"), label="complete, with other names"),
        Case(*_graph(layers=0, present=4), label="the cache comes out and does not go in"),
        Case(*_graph(present=0), label="the cache goes in and does not come out"),
        Case(*_graph(cached=128), label="the cache has a fixed length"),
        Case(*_graph(mask=False, tokens=1), label="one token at a time, no mask"),
        Case(*_graph(tokens=None), label="a dynamic dimension without a name"),
        Case(*_graph(present=6), label="more comes out than goes in"),
        Case(inputs[:-1] + [(inputs[-1][0], ["batch", 3, 128, 64])], outputs,
             label="one tensor of the cache has a fixed length"),
        Case(inputs[::-1] + [("pixels", [1, "images", 3, 96, 96])], outputs[::-1],
             label="another order, and pictures of five dimensions"),
        Case(inputs, outputs + [("attentions", ["layers", "batch", 9, "tokens", "all"])],
             label="a tensor of five dimensions comes out"),
        Case(*_graph(tokens=8), label="8 tokens at a time"),
        Case([("input_ids", [1, "tokens"])] + inputs[1:], outputs, label="one text at a time, of any length"),
        Case(*_graph(cached=None), label="the cache's dynamic length without a name"),
        Case(inputs[:2] + [(inputs[2][0], ["batch", 3, 128, 64])] + inputs[3:], outputs,
             label="the first tensor of the cache has a fixed length"),
        Case([("position_mask", ["batch", "all"])] + _graph(mask=False)[0], outputs,
             label="a mask of another name"),
        Case(*([("attention_bias", ["batch", "all"])] + part for part in _graph(mask=False)),
             label="a bias of the attention, which is no mask"),
        Case(_graph(mask=False)[0], outputs + [("attention_mask", ["batch", "all"])],
             label="the mask comes out and does not go in"),
    ]


def _draw_graphs(numbers):
    def case():
        layers = numbers.randint(0, 5)
        return Case(*_graph(layers, numbers.choice(["past", "layer", "kv"]), numbers.random() < 0.5,
                            numbers.choice(["tokens", 1, 8]), numbers.choice(["cached", 64]),
                            numbers.choice([0, 2 * layers])))

    return [case() for _ in range(5)]


def _with(change):
    """missing_parts with its answer changed: change(inputs, outputs, the right answer)."""

    def wrong(inputs, outputs):
        return change(inputs, outputs, graph.missing_parts(inputs, outputs))

    return wrong


MISSING_PARTS = Exercise(
    reference=graph.missing_parts,
    cases=_graph_cases,
    draw=_draw_graphs,
    mistakes=[
        Mistake(
            "what the graph has. Asked is what it lacks.",
            _with(lambda inputs, outputs, right: {"cache", "mask", "dynamic length"} - right),
        ),
        Mistake(
            "only the inputs looked at. Keys and values must come out again, as many as went in.",
            _with(lambda inputs, outputs, right: right - {"cache"}
                  | ({"cache"} if not (past := [s[2] for _, s in inputs if len(s) == 4])
                     or any(isinstance(length, int) for length in past) else set())),
        ),
        Mistake(
            "only the outputs looked at. Who cannot hand the cache back in has to read everything again.",
            _with(lambda inputs, outputs, right: right - {"cache"}
                  | ({"cache"} if not [s for _, s in outputs if len(s) == 4] else set())),
        ),
        Mistake(
            "the cache recognised by its name. Exporters name it differently; its four dimensions tell.",
            _with(lambda inputs, outputs, right: right
                  | ({"cache"} if not [n for n, _ in inputs if n.startswith("past")] else set())),
        ),
        Mistake(
            "the cache recognised by a name among the inputs only. Its tensors have four dimensions.",
            _with(lambda inputs, outputs, right: right - {"cache"}
                  | (set() if any("past" in name for name, _ in inputs) else {"cache"})),
        ),
        Mistake(
            "a cache of fixed length accepted. It has to grow by a token each step.",
            _with(lambda inputs, outputs, right: right - {"cache"}
                  | ({"cache"} if not sum(len(s) == 4 for _, s in inputs) == sum(
                      len(s) == 4 for _, s in outputs) > 0 else set())),
        ),
        Mistake(
            "any number in the shape of input_ids taken for a fixed length. The second is the tokens.",
            _with(lambda inputs, outputs, right: right - {"dynamic length"} | (
                {"dynamic length"} if any(isinstance(size, int) for size in dict(inputs)["input_ids"])
                else set())),
        ),
        Mistake(
            "another input taken for the mask. It is called attention_mask, not only something like it.",
            _with(lambda inputs, outputs, right: right - {"mask"} | (
                set() if any("mask" in name for name, _ in inputs) else {"mask"})),
        ),
        Mistake(
            "the batch looked at instead of the tokens. input_ids is [batch, tokens].",
            _with(lambda inputs, outputs, right: right - {"dynamic length"}
                  | ({"dynamic length"} if isinstance(dict(inputs)["input_ids"][0], int) else set())),
        ),
        Mistake(
            "a dimension without a name taken for fixed. Only a number is fixed.",
            _with(lambda inputs, outputs, right: right
                  | ({"dynamic length"} if dict(inputs)["input_ids"][1] is None else set())),
        ),
        Mistake(
            "a list. A set out of the three names is asked for.",
            _with(lambda inputs, outputs, right: sorted(right)),
        ),
    ],
    hint="Write the three questions one after the other. The cache's tensors are those with four dimensions.",
)


# --- predictions ------------------------------------------------------------------------------------------

PROMPT, NEW = 64, 64  # tokens, for the first prediction


def tokens_read_without_cache():
    """Tokens that all passes together read when the graph has no cache: 64 + 65 + ... + 127."""
    return sum(range(PROMPT, PROMPT + NEW))


EXERCISES = [
    DECODE_BOUND,
    Prediction(
        id="predict_tokens_read",
        answer=tokens_read_without_cache,
        rtol=0.02,
        unit="tokens",
        mistakes=[
            (PROMPT + NEW - 1, "that is with a cache: each token is read once."),
            (PROMPT * NEW, "the prompt alone is read each time. The tokens written so far are read, too."),
            ((PROMPT + NEW) * NEW, "the whole text each time. The first pass reads the prompt only."),
        ],
        hint="The first pass reads 64 tokens, the second 65, and so on, 64 times.",
    ),
    MISSING_PARTS,
    MEAN_KL,
]
