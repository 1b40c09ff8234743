"""Exercises of the lesson on the KV cache."""

from types import SimpleNamespace

import torch

from course_utils import costs
from course_utils.checking import Case, Exercise, Mistake, Prediction
from course_utils.kvcache import layers, prefix, quantized

# --- kv_bytes_per_token -----------------------------------------------------------------------------------


def _config(layers, heads, kv_heads, head_dim, hidden=None):
    return SimpleNamespace(num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv_heads,
                           head_dim=head_dim, hidden_size=hidden or heads * head_dim)  # fmt: skip


SMOLLM = _config(30, 9, 3, 64)


def _bytes_cases():
    return [
        Case(SMOLLM, 16, label="SmolLM2-135M in BF16"),
        Case(SMOLLM, 32, label="the same in FP32"),
        Case(SMOLLM, label="no bits given"),
        Case(_config(40, 40, 40, 128), 16, label="LLaMA-13B: a key for each query head"),
        Case(_config(80, 64, 8, 128), 4, label="Llama-3-70B, keys and values in INT4"),
        Case(_config(18, 8, 1, 256, hidden=3072), 8, label="heads wider than the hidden size, INT8"),
        Case(_config(3, 4, 1, 5), 3, label="3 bits: bytes of all layers together, rounded down"),
        Case(_config(5, 6, 3, 7), bits=1, label="1 bit, odd sizes"),
    ]


def _draw_configs(numbers):
    def config():
        kept = numbers.randint(1, 9)
        return _config(numbers.randint(1, 60), kept * numbers.randint(1, 4), kept, numbers.randint(1, 200))

    return [Case(config(), numbers.randint(1, 32)) for _ in range(4)]


KV_BYTES_PER_TOKEN = Exercise(
    reference=costs.kv_bytes_per_token,
    cases=_bytes_cases,
    draw=_draw_configs,
    exact_dtype=True,
    mistakes=[
        Mistake(
            "half of it. A token leaves a key and a value in each layer.",
            lambda c, bits=16: c.num_hidden_layers * c.num_key_value_heads * c.head_dim * bits // 8,
        ),
        Mistake(
            "the query heads counted. Queries are used once and thrown away; which heads are kept?",
            lambda c, bits=16: 2 * c.num_hidden_layers * c.num_attention_heads * c.head_dim
            * bits // 8,
        ),
        Mistake(
            "the hidden size taken for the width of a key. That is head_dim for each key-value head.",
            lambda c, bits=16: 2 * c.num_hidden_layers * c.hidden_size * bits // 8,
        ),
        Mistake(
            "one layer only. Each layer has keys and values of its own.",
            lambda c, bits=16: 2 * c.num_key_value_heads * c.head_dim * bits // 8,
        ),
        Mistake(
            "one head only. Each key-value head has a key and a value of head_dim numbers.",
            lambda c, bits=16: 2 * c.num_hidden_layers * c.head_dim * bits // 8,
        ),
        Mistake(
            "bits. A byte has 8 of them.",
            lambda c, bits=16: 2 * c.num_hidden_layers * c.num_key_value_heads * c.head_dim * bits,
        ),
        Mistake(
            "16 bits a number whatever `bits` says.",
            lambda c, bits=16: costs.kv_bytes_per_token(c, 16),
        ),
        Mistake(
            "numbers, not bytes. How many bytes does one number of so many bits take?",
            lambda c, bits=16: costs.kv_bytes_per_token(c, 8),
        ),
    ],
    hint="What is kept for one token in one layer, for one head? Then count layers, heads and bytes.",
)


# --- window_mask ------------------------------------------------------------------------------------------


def _mask_cases():
    return [
        Case(6, 3, label="six tokens, a window of 3"),
        Case(6, 3, 1, label="the first token is seen besides"),
        Case(7, 2, 4, label="more first tokens than the window has"),
        Case(5, 1, label="a window of 1: a token sees itself only"),
        Case(5, 9, 2, label="a window longer than the text"),
        Case(1, 1, label="a text of one token"),
        Case(6, 2, 1, torch.float16, label="FP16"),
        Case(5, 2, dtype=torch.bfloat16, label="BF16"),
        Case(8, 3, sinks=2, dtype=torch.float64, label="FP64"),
        Case(4, 0, label="a window of no token", raises=ValueError),
        Case(4, 2, -1, label="a negative number of first tokens", raises=ValueError),
    ]


def _mask(tokens, window, sinks=0, dtype=torch.float32, *, wider=0, causal=True, sinks_too=True,
          turned=False, low=None, seen=0.0, batch=True):
    """layers.window_mask with one thing done wrongly."""
    layers.window_mask(1, window, sinks)  # refuses what it refuses
    query, key = torch.arange(tokens)[:, None], torch.arange(tokens)[None, :]
    if turned:
        query, key = key, query
    visible = (query - key < window + wider) | ((key < sinks) & sinks_too)
    visible = visible & (key <= query) if causal else visible
    hidden = torch.finfo(dtype).min if low is None else low
    mask = torch.full((tokens, tokens), seen, dtype=dtype).masked_fill(~visible, hidden)
    return mask[None, None] if batch else mask


def _draw_masks(numbers):
    return [Case(numbers.randint(1, 12), numbers.randint(1, 9), numbers.randint(0, 4)) for _ in range(5)]


def _mask_with_early_sinks(tokens, window, sinks=0, dtype=torch.float32):
    mask = layers.window_mask(tokens, window, sinks, dtype)
    mask[..., :sinks] = 0
    return mask


WINDOW_MASK = Exercise(
    reference=layers.window_mask,
    cases=_mask_cases,
    draw=_draw_masks,
    exact_dtype=True,
    mistakes=[
        Mistake("a token sees what comes after it. Only keys up to the query itself may be seen.",
                lambda *args, **kw: _mask(*args, causal=False, **kw)),
        Mistake("the first tokens are seen even by tokens that stand before them. Only keys up to the query "
                "itself may be seen.", _mask_with_early_sinks),
        Mistake("one token too many. The window counts the token itself.",
                lambda *args, **kw: _mask(*args, wider=1, **kw)),
        Mistake("the first tokens are not seen besides: `sinks` of them always are.",
                lambda *args, **kw: _mask(*args, sinks_too=False, **kw)),
        Mistake("rows and columns exchanged. The query is the row, the key the column.",
                lambda *args, **kw: _mask(*args, turned=True, **kw)),
        Mistake("ones and zeros. The mask is added to the scores: what may be seen gets 0, the rest the "
                "lowest number of the dtype.",
                lambda *args, **kw: _mask(*args, seen=1.0, low=0.0, **kw)),
        Mistake("minus infinity. The lowest number of the dtype is asked for: a row of infinities only would "
                "become NaN in the softmax.",
                lambda *args, **kw: _mask(*args, low=float("-inf"), **kw)),
        Mistake("the two dimensions in front are missing: batch and heads, each of size 1.",
                lambda *args, **kw: _mask(*args, batch=False, **kw)),
    ],
    hint="Make a column of query positions and a row of key positions. When may this query see that key? Two "
         "conditions must hold, and the second has two ways to hold.",
)


# --- reusable ---------------------------------------------------------------------------------------------


def _reusable_cases():
    return [
        Case([5, 6, 7, 8], [5, 6, 9, 8], label="alike for two tokens, and once more behind"),
        Case([5, 6, 7], [5, 6, 7, 1, 2], label="the new prompt goes on"),
        Case([5, 6, 7], [5, 6, 7], label="the same prompt"),
        Case([5, 6, 7, 1, 2], [5, 6, 7], label="the kept prompt is longer"),
        Case([5, 6, 7], [9, 6, 7], label="nothing in common at the start"),
        Case([], [1, 2], label="nothing kept"),
        Case([4], [4], label="one token, the same"),
        Case((5, 6, 7, 3), (5, 6, 7, 4), label="tuples, the last token differs"),
        Case([0, 0, 0, 1], [0, 0, 0, 0, 0], label="token 0"),
    ]


def _common(kept, ids):
    """Tokens in common from the start."""
    n = 0
    while n < min(len(kept), len(ids)) and kept[n] == ids[n]:
        n += 1
    return n


def _draw_prompts(numbers):
    def case():
        common = [numbers.randrange(3) for _ in range(numbers.randint(0, 6))]
        kept, ids = (common + [numbers.randrange(3) for _ in range(numbers.randint(1, 4))] for _ in range(2))
        return Case(kept, ids)

    return [case() for _ in range(6)]


REUSABLE = Exercise(
    reference=prefix.reusable,
    cases=_reusable_cases,
    draw=_draw_prompts,
    exact_dtype=True,
    mistakes=[
        Mistake("the whole new prompt. The model must read at least one of its tokens to say what comes "
                "next.", _common),
        Mistake("always one token less than is in common. That is only needed when the whole new prompt is.",
                lambda kept, ids: max(0, _common(kept, ids) - 1)),
        Mistake("tokens counted that agree behind a difference. What stands before a token changes its keys.",
                lambda kept, ids: min(sum(a == b for a, b in zip(kept, ids, strict=False)), len(ids) - 1)),
    ],
    hint="Walk along both while they agree. Where must the walk end at the latest?",
)


# --- predictions ------------------------------------------------------------------------------------------

TOKENS = 8192  # of context, for the prediction


def context_megabytes():
    """The KV cache of 8,192 tokens of SmolLM2-135M in BF16, in MB."""
    return TOKENS * costs.kv_bytes_per_token(SMOLLM) / 1e6


EXERCISES = [
    Prediction(
        id="predict_context_megabytes",
        answer=context_megabytes,
        rtol=0.06,
        unit="MB",
        mistakes=[
            (lambda: context_megabytes() / 2, "half of it: keys and values are kept, both."),
            (lambda: 3 * context_megabytes(), "the query heads counted. Only key-value heads are kept."),
            (lambda: 2 * context_megabytes(), "FP32 counted: BF16 takes 2 bytes a number."),
            (lambda: context_megabytes() / 30, "one layer only: there are 30."),
        ],
        hint="For one token: 2 (key and value) times layers times key-value heads times 64 numbers. Then "
             "bytes, then tokens.",
    ),
    KV_BYTES_PER_TOKEN,
    WINDOW_MASK,
    Prediction(
        id="predict_bits",
        answer=lambda: quantized.bits_per_number(4, 32, 64),
        rtol=0.005,
        unit="bits",
        mistakes=[
            (4, "the codes alone. Each group brings a scale and a minimum along."),
            (4.375, "the minimum forgotten: a group has two numbers of 16 bits."),
            (5.5, "both overheads added. Half of the numbers are keys and have the one, half values."),
            (5, "that is right for the keys. A value's group is its token's 64 channels."),
            (4.5, "that is right for the values. The keys' groups have 32 tokens."),
        ],
        hint="Keys: 32 numbers share 2 x 16 bits. Values: 64 numbers share as much. Then the mean.",
    ),
    REUSABLE,
]
