"""Exercises of the lesson on a phone."""

import itertools
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np

from course_utils import costs
from course_utils.checking import Case, Exercise, Mistake, Prediction
from course_utils.checking.cases import seeded
from course_utils.phone import blocks, budget, decode
from course_utils.phone.toy import ToyGraph

# --- needed_bytes -----------------------------------------------------------------------------------------


def _config(layers, hidden, mlp, heads, kv_heads, head_dim, vocabulary, tied=False):
    return SimpleNamespace(
        num_hidden_layers=layers, hidden_size=hidden, intermediate_size=mlp, num_attention_heads=heads,
        num_key_value_heads=kv_heads, head_dim=head_dim, vocab_size=vocabulary, tie_word_embeddings=tied)


LLAMA_13B = _config(40, 5120, 13_824, 40, 40, 128, 32_000)
SMOLLM = _config(30, 576, 1536, 9, 3, 64, 49_152, tied=True)


def _bytes_cases():
    return [
        Case(LLAMA_13B, 2048, 4, 128, label="LLaMA-13B, 4 bits in groups of 128, 2,048 tokens"),
        Case(LLAMA_13B, 2048, 16, label="the same in 16 bits, without scales"),
        Case(LLAMA_13B, 512, 4, 128, 8, label="a KV cache in INT8"),
        Case(SMOLLM, 1024, 4, 64, label="SmolLM2-135M: tied embeddings"),
        Case(SMOLLM, 1024, 4, 64, chunk=256, label="a prompt read 256 tokens at a time"),
        Case(SMOLLM, 0, 32, cache_bits=32, label="an empty cache, FP32"),
        Case(_config(3, 30, 70, 5, 1, 7, 101), 9, 3, 10, 4, 2, label="odd sizes"),
    ]


def _with(change):
    """needed_bytes with other figures: change(right, config, context, bits, group, cache_bits, chunk)."""

    def wrong(config, context, bits, group=None, cache_bits=16, chunk=1):
        right = budget.needed_bytes(config, context, bits, group, cache_bits, chunk)
        return right | change(right, config, context, bits, group, cache_bits, chunk)

    return wrong


def _draw_needs(numbers):
    def config():
        kept, width = numbers.randint(1, 8), numbers.randint(2, 128)
        heads = kept * numbers.randint(1, 4)
        return _config(numbers.randint(1, 60), heads * width, numbers.randint(8, 9000), heads, kept, width,
                       numbers.randint(50, 60_000), tied=numbers.random() < 0.5)

    return [Case(config(), numbers.randint(0, 4096), numbers.choice([3, 4, 8]),
                 numbers.choice([None, 32, 64]), numbers.choice([8, 16]), numbers.randint(1, 300))
            for _ in range(4)]


NEEDED_BYTES = Exercise(
    reference=budget.needed_bytes,
    cases=_bytes_cases,
    draw=_draw_needs,
    mistakes=[
        Mistake(
            "the scales left out. Each group of weights stores one, too.",
            _with(lambda r, c, n, bits, *_: {
                "weights": costs.bytes_at_bits(costs.weights_read(c), bits),
                "table": costs.bytes_at_bits(costs.parameter_count(c) - costs.weights_read(c), bits)}),
        ),
        Mistake(
            "the table counted among the weights that a step reads. An untied embedding is only looked up.",
            _with(lambda r, *_: {"weights": r["weights"] + r["table"]}),
        ),
        Mistake(
            "a table where the embedding is tied. Then it is the output layer, which is counted already.",
            _with(lambda r, c, n, bits, group, *_: {
                "table": costs.bytes_at_bits(c.vocab_size * c.hidden_size, bits, group)}),
        ),
        Mistake(
            "the cache of one token. All tokens of the context lie in it.",
            _with(lambda r, c, n, bits, group, cache_bits, chunk: {
                "cache": costs.kv_bytes_per_token(c, cache_bits)}),
        ),
        Mistake(
            "the cache in 16 bits whatever `cache_bits` says.",
            _with(lambda r, c, n, *_: {"cache": n * costs.kv_bytes_per_token(c)}),
        ),
        Mistake(
            "the cache in as many bits as the weights. It has bits of its own.",
            _with(lambda r, c, n, bits, *_: {"cache": n * costs.kv_bytes_per_token(c, bits)}),
        ),
        Mistake(
            "activations of one token. Those of the whole chunk are alive together.",
            _with(lambda r, c, *_: {
                "activations": 4 * (c.hidden_size + 2 * c.intermediate_size + c.vocab_size)}),
        ),
        Mistake(
            "activations of the whole context. Only the tokens that are read now have any.",
            _with(lambda r, c, n, *_: {
                "activations": 4 * (n * (c.hidden_size + 2 * c.intermediate_size) + c.vocab_size)}),
        ),
        Mistake(
            "a row of scores for each token of the chunk. One row is enough: the next token is asked for.",
            _with(lambda r, c, n, b, g, cb, chunk: {
                "activations": 4 * chunk * (c.hidden_size + 2 * c.intermediate_size + c.vocab_size)}),
        ),
        Mistake(
            "one large matrix of the MLP. Gate and up both have a result.",
            _with(lambda r, c, n, b, g, cb, chunk: {
                "activations": 4 * (chunk * (c.hidden_size + c.intermediate_size) + c.vocab_size)}),
        ),
        Mistake(
            "activations counted as numbers. An FP32 number takes 4 bytes.",
            _with(lambda r, *_: {"activations": r["activations"] // 4}),
        ),
    ],
    hint="Four figures, one after the other. `costs` has parameter_count, weights_read, bytes_at_bits and "
         "kv_bytes_per_token.",
)


# --- what_runs --------------------------------------------------------------------------------------------


def _need(weights, table, cache, activations):
    return {"weights": weights, "table": table, "cache": cache, "activations": activations}


def _runs_cases():
    models = {"large": _need(6.6e9, 1e8, 8e8, 2e5), "small": _need(7e7, 0, 2e7, 2e5),
              "middle": _need(6e8, 4e7, 5e7, 2e5)}
    return [
        Case(8e9, 50e9, models, label="all of them fit"),
        Case(4e9, 50e9, models, label="the large one does not fit"),
        Case(1e6, 50e9, models, label="none fits"),
        Case(100, 30, {"to the last byte": _need(60, 20, 15, 5), "one more": _need(60, 20, 15, 6)},
             label="one fits to the last byte"),
        Case(100, 30, {"cache": _need(60, 0, 41, 0), "table": _need(60, 41, 0, 0),
                       "activations": _need(60, 0, 0, 41)}, label="each part alone is one too much"),
        Case(100, 60, {"table": _need(30, 50, 10, 0), "none": _need(60, 0, 30, 0),
                       "cache": _need(20, 0, 60, 1)}, label="a large table, a large cache"),
    ]


def _of_all(models, free, bound, fits=lambda need, free: sum(need.values()) <= free, reverse=True):
    found = [(name, bound(need)) for name, need in models.items() if fits(need, free)]
    return sorted(found, key=lambda item: item[1], reverse=reverse)


def _bound(bandwidth):
    return lambda need: bandwidth / (need["weights"] + need["cache"])


def _draw_memories(numbers):
    def case():
        read = numbers.sample(range(40, 110), 5)  # all different: the order of two equally fast is left open
        caches = [numbers.randint(0, 20) for _ in read]
        models = {f"model {i}": _need(both - cache, numbers.randint(0, 20), cache, numbers.randint(0, 5))
                  for i, (both, cache) in enumerate(zip(read, caches, strict=True))}
        return Case(numbers.randint(60, 130), numbers.randint(10, 99), models)

    return [case() for _ in range(4)]


WHAT_RUNS = Exercise(
    reference=budget.what_runs,
    cases=_runs_cases,
    draw=_draw_memories,
    mistakes=[
        Mistake(
            "only the weights compared with the memory. Table, cache and activations need room, too.",
            lambda free, read, models: _of_all(models, free, _bound(read), lambda n, f: n["weights"] <= f),
        ),
        Mistake(
            "one that fits to the last byte left out.",
            lambda free, read, models: _of_all(models, free, _bound(read), lambda n, f: sum(n.values()) < f),
        ),
        Mistake(
            "the cache left out of the speed. Each step reads the keys and values of all tokens.",
            lambda free, read, models: _of_all(models, free, lambda need: read / need["weights"]),
        ),
        Mistake(
            "everything read in each step. The table is only looked up, activations stay in the processor.",
            lambda free, read, models: _of_all(models, free, lambda need: read / sum(need.values())),
        ),
        Mistake(
            "seconds for a token. Asked is how many tokens fit into a second.",
            lambda free, read, models: [(name, 1 / speed) for name, speed in
                                        budget.what_runs(free, read, models)],
        ),
        Mistake(
            "the slowest first.",
            lambda free, read, models: _of_all(models, free, _bound(read), reverse=False),
        ),
        Mistake(
            "in the order of the models, not of their speed.",
            lambda free, read, models: [(name, _bound(read)(need)) for name, need in models.items()
                                        if sum(need.values()) <= free],
        ),
    ],
    hint="Two questions for each model: do its four figures together fit? And how many bytes does one step "
         "read?",
)


# --- integers ---------------------------------------------------------------------------------------------


def _integer_cases():
    random = np.random.default_rng(seeded(13))
    def draw(*shape):
        return random.integers(0, 256, shape, dtype=np.uint8)

    return [
        Case(draw(3, 2, 8), label="3 rows, 2 blocks of 16 integers"),
        Case(draw(3, 2, 8), label="the same shape, other numbers"),
        Case(draw(2, 1, 32), label="one block of 64"),
        Case(np.arange(256, dtype=np.uint8).reshape(4, 2, 32), label="every byte there is"),
        Case(np.zeros((1, 1, 8), np.uint8), label="only zeros"),
        Case(draw(4, 6, 8)[::2, ::3], label="rows and blocks taken out of a larger array"),
    ]


def _nibbles(stored):
    return stored & 15, stored >> 4


INTEGERS = Exercise(
    reference=blocks.integers,
    cases=_integer_cases,
    exact_dtype=True,
    mistakes=[
        Mistake(
            "the high half first. Of the two integers in a byte, which comes first?",
            lambda stored: np.stack(_nibbles(stored)[::-1], -1).reshape(len(stored), -1).astype(np.int8) - 8,
        ),
        Mistake(
            "the 8 not taken off.",
            lambda stored: np.stack(_nibbles(stored), -1).reshape(len(stored), -1).astype(np.int8),
        ),
        Mistake(
            "read as two's complement. These integers are stored with 8 added.",
            lambda stored: ((blocks.integers(stored) + 8).astype(np.int8) << 4) >> 4,
        ),
        Mistake(
            "first all low halves of a block, then all high ones. That is how GGUF's Q4_0 lies; here the two "
            "of a byte are neighbours.",
            lambda stored: np.concatenate(_nibbles(stored), -1).reshape(len(stored), -1).astype(np.int8) - 8,
        ),
        Mistake(
            "unsigned numbers, in which 3 - 8 is 251. Make them int8 before 8 is taken off.",
            lambda stored: np.stack(_nibbles(stored), -1).reshape(len(stored), -1) - 8,
        ),
        Mistake(
            "the blocks still a dimension of their own. A row of the weight is asked for.",
            lambda stored: blocks.integers(stored).reshape(*stored.shape[:2], -1),
        ),
    ],
    hint="`& 15` keeps the low half of a byte, `>> 4` moves the high half down. How do the two become "
         "neighbours?",
)


# --- generate ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Toy:
    """The made-up model that a session is opened on.

    Attributes:
        seed: of its numbers.
        layers: how many.
    """

    seed: int
    layers: int


def _generate_cases():
    ends, never = Toy(5, 2), Toy(6, 2)
    zero = next(toy for toy in (Toy(seed, 2) for seed in itertools.count(seeded(20)))
                if 0 in _written(toy, [2, 2, 3], 7)[:-1])
    absent = min(set(range(ToyGraph.VOCABULARY)) - set(_written(never, [2, 2, 3], 4)))
    return [
        Case(Toy(1, 2), [3, 1, 4, 1, 5], 6, label="five tokens, six more"),
        Case(Toy(2, 2), [3, 1, 4, 1, 5], 6, label="the same with another model"),
        Case(Toy(3, 3), [7], 9, label="one token, a model of three layers"),
        Case(Toy(4, 1), [2, 7, 1, 8, 2, 8], 1, label="one new token"),
        Case(ends, [1, 6, 1, 8], 12, _written(ends, [1, 6, 1, 8], 12)[3], label="a token that ends the text"),
        Case(never, [2, 2, 3], 4, absent, label="a token that would end it and does not come"),
        Case(Toy(7, 2), (9, 3), 5, label="a tuple as the prompt"),
        Case(zero, [2, 2, 3], 7, 0, label="the token with the id 0 ends the text"),
        Case(Toy(8, 2), [4, 4, 6], 0, label="no new token"),
    ]


def _written(toy, prompt, new_tokens):
    return decode.generate(ToyGraph(toy.seed, toy.layers), prompt, new_tokens)


def _generate(answer, toy, prompt, new_tokens, *stop):
    session = ToyGraph(toy.seed, toy.layers)
    return {"result": answer(session, prompt, new_tokens, *stop), "tokens read by all passes": session.read}


def _loop(feed=lambda ids: ids, kept=lambda ids: len(ids) - 1, cached=True, whole=False, order=lambda p: p,
          spare=False, end=lambda written: written):
    """A decode loop with one thing in it that may be done otherwise."""

    def wrong(session, prompt, new_tokens, stop=None):
        past = {v.name: v.shape for v in session.get_inputs() if v.name.startswith("past_")}
        empty = {name: np.zeros((1, shape[1], 0, shape[3]), np.float32) for name, shape in past.items()}
        cache, ids, written = empty, list(prompt), []
        while len(written) < new_tokens + spare and stop not in written:
            seen = next(iter(cache.values())).shape[2] + len(ids)
            scores, *present = session.run(None, {
                "input_ids": np.array([ids], np.int64), "attention_mask": np.ones((1, seen), np.int64),
                "kept": np.array([kept(ids)], np.int64)} | cache)
            cache = dict(zip(past, order(present), strict=True)) if cached else empty
            written.append(int(scores[0, -1].argmax()))
            ids = [*prompt, *written] if whole else written[-1:]
        return end(written[:new_tokens])

    return wrong


def _without_stop(session, prompt, new_tokens, stop=None):
    return decode.generate(session, prompt, new_tokens)


def _stop_dropped(session, prompt, new_tokens, stop=None):
    written = decode.generate(session, prompt, new_tokens, stop)
    return written[:-1] if written and written[-1] == stop else written


def _draw_toys(numbers):
    return [Case(Toy(numbers.randint(100, 10_000), numbers.randint(1, 3)),
                 [numbers.randrange(ToyGraph.VOCABULARY) for _ in range(numbers.randint(1, 9))],
                 numbers.randint(1, 12)) for _ in range(3)]


GENERATE = Exercise(
    reference=decode.generate,
    cases=_generate_cases,
    draw=_draw_toys,
    call=_generate,
    mistakes=[
        Mistake(
            "the cache thrown away. What comes out as present goes in as past of the next pass.",
            _loop(cached=False),
        ),
        Mistake(
            "the whole text read again in each pass. With a cache only the newest token is read.",
            _loop(cached=False, whole=True),
        ),
        Mistake(
            "keys and values exchanged. Outputs come in the order of the inputs: key, value, key, value.",
            _loop(order=lambda present: [present[i ^ 1] for i in range(len(present))]),
        ),
        Mistake(
            "the layers exchanged. Outputs come in the order in which the cache goes in.",
            _loop(order=lambda present: present[2:] + present[:2]),
        ),
        Mistake(
            "the scores after the first token of the prompt. The next token comes after the last one.",
            _loop(kept=lambda ids: 0),
        ),
        Mistake(
            "one pass too many. Nobody asks what comes after the last token.",
            _loop(spare=True),
        ),
        Mistake("`stop` not looked at.", _without_stop),
        Mistake("`if stop` is false of the id 0, too: compare with None, or with the token.",
                lambda session, prompt, new_tokens, stop=None: decode.generate(
                    session, prompt, new_tokens, stop or None)),
        Mistake("a token is written though none was asked for: look at new_tokens before the first pass.",
                lambda session, prompt, new_tokens, stop=None: decode.generate(
                    session, prompt, max(1, new_tokens), stop)),
        Mistake("the token that ends the text dropped. It is kept as the last one.", _stop_dropped),
        Mistake(
            "the prompt in front. Only the new ids are asked for.",
            lambda session, prompt, new_tokens, stop=None: [
                *prompt, *decode.generate(session, prompt, new_tokens, stop)],
        ),
    ],
    hint="Write one pass first: its four kinds of inputs, for the prompt and an empty cache. What changes in "
         "the second pass?",
)


# --- predictions ------------------------------------------------------------------------------------------

PHONE = next(phone for phone in budget.PHONES if "8533" in phone.name)  # for the second prediction


def weights_13b():
    """GB of LLaMA-13B in 4 bits, in groups of 128 with scales of 16 bits."""
    return costs.bytes_at_bits(costs.parameter_count(LLAMA_13B), 4, 128) / 1e9


def tokens_13b():
    """Tokens a second that LPDDR5X-8533 allows LLaMA-13B in 4 bits, with an empty cache."""
    return costs.decode_bound(costs.bytes_at_bits(costs.weights_read(LLAMA_13B), 4, 128), PHONE.bandwidth)


EXERCISES = [
    Prediction(
        id="predict_weights",
        answer=weights_13b,
        rtol=0.02,
        unit="GB",
        mistakes=[
            (lambda: costs.parameter_count(LLAMA_13B) / 2e9, "the integers alone. Each group has a scale."),
            (lambda: costs.parameter_count(LLAMA_13B) * 2 / 1e9, "that is 16 bits a weight."),
            (lambda: costs.parameter_count(LLAMA_13B) * 4 / 1e9, "that is 32 bits a weight."),
            (lambda: weights_13b() * 8, "bits. A byte has 8 of them."),
        ],
        hint="Bits of a weight: 4, and its share of a scale. Then 13.0 billion times that, in bytes.",
    ),
    NEEDED_BYTES,
    Prediction(
        id="predict_tokens",
        answer=tokens_13b,
        rtol=0.1,
        unit="tokens/s",
        mistakes=[
            (lambda: 1 / tokens_13b(), "seconds for a token. How many of these fit into a second?"),
            (lambda: tokens_13b() / 4, "that is the bound in 16 bits."),
        ],
        hint="A step reads the weights once. How often can that be done in a second?",
    ),
    WHAT_RUNS,
    INTEGERS,
    GENERATE,
]
