"""Exercises of the lesson that puts everything side by side."""

import functools
import itertools
import math
from types import SimpleNamespace

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from course_utils import advice, compressed, costs, distill
from course_utils.checking import Case, Exercise, Mistake, Prediction
from course_utils.checking.cases import seeded
from course_utils.measure import Perplexity
from course_utils.quantize import packed
from course_utils.quantize.affine import bits_per_weight

# --- stored_bytes -----------------------------------------------------------------------------------------


def _config(layers, hidden, inner, heads, kv_heads, vocabulary, tied, head_dim=None):
    return SimpleNamespace(
        num_hidden_layers=layers, hidden_size=hidden, intermediate_size=inner, num_attention_heads=heads,
        num_key_value_heads=kv_heads, head_dim=head_dim or hidden // heads, vocab_size=vocabulary,
        tie_word_embeddings=tied)  # fmt: skip


SMOLLM = _config(30, 576, 1536, 9, 3, 49_152, True)
LLAMA_13B = _config(40, 5120, 13_824, 40, 40, 32_000, False)


def _bytes_cases():
    return [
        Case(SMOLLM, 4.3125, 8.03125, label="SmolLM2: blocks in INT4, groups of 64; table in INT8, of 512"),
        Case(SMOLLM, 4.3125, 32, label="the same, table left in FP32"),
        Case(SMOLLM, 16, 16, 16, label="all of it in 16 bits"),
        Case(LLAMA_13B, 4.3125, 16, 16, label="LLaMA-13B: two tables, not tied"),
        Case(LLAMA_13B, 8, 8, label="LLaMA-13B in INT8, norms in FP32"),
        Case(_config(2, 16, 40, 4, 2, 50, True, head_dim=8), 3.5, 9, label="wide heads"),
        Case(_config(1, 5, 7, 1, 1, 3, True), 3.3, 8.1, label="a toy: bytes rounded up"),
        Case(_config(1, 5, 7, 1, 1, 3, True), 3.2, 8.1, label="a toy: rounded up, though little is over"),
    ]


def _parts(config):
    """(numbers in the blocks' matrices, in one table, in the norms)."""
    table = config.vocab_size * config.hidden_size
    norms = (2 * config.num_hidden_layers + 1) * config.hidden_size
    copies = 1 if config.tie_word_embeddings else 2
    return costs.parameter_count(config) - copies * table - norms, table, norms


def _bytes(c, block, table, norm=32, *, copies=None, of_norms=None, up=True):
    matrices, one, norms = _parts(c)
    copies = (1 if c.tie_word_embeddings else 2) if copies is None else copies
    bits = matrices * block + copies * one * table + norms * (norm if of_norms is None else of_norms(block))
    return math.ceil(bits / 8) if up else int(bits // 8)


def _draw_sizes(numbers):
    def config():
        kept, width = numbers.randint(1, 8), numbers.randint(2, 64)
        heads = kept * numbers.randint(1, 3)
        return _config(numbers.randint(1, 40), heads * width, numbers.randint(8, 4000), heads, kept,
                       numbers.randint(50, 50_000), numbers.random() < 0.5)

    return [Case(config(), numbers.randint(3, 16) + 0.3125, numbers.randint(4, 32)) for _ in range(4)]


STORED_BYTES = Exercise(
    reference=costs.stored_bytes,
    cases=_bytes_cases,
    draw=_draw_sizes,
    rtol=1e-12,
    mistakes=[
        Mistake("the token table counted twice where the output layer is the same matrix, or once where it "
                "is not: what does tie_word_embeddings say?",
                lambda c, b, t, n=32: _bytes(c, b, t, n, copies=2 if c.tie_word_embeddings else 1)),
        Mistake("one table for every model. Without tied embeddings there are two.",
                lambda c, b, t, n=32: _bytes(c, b, t, n, copies=1)),
        Mistake("the norms counted in the blocks' bits. They stay as they are.",
                lambda c, b, t, n=32: _bytes(c, b, t, n, of_norms=lambda block: block)),
        Mistake("the norms forgotten.", lambda c, b, t, n=32: _bytes(c, b, t, 0)),
        Mistake("everything counted in the blocks' bits. The token table has a width of its own.",
                lambda c, b, t, n=32: math.ceil(costs.parameter_count(c) * b / 8)),
        Mistake("bits, not bytes.", lambda c, b, t, n=32: 8 * _bytes(c, b, t, n)),
        Mistake("bytes rounded down: the last bits need a byte, too.",
                lambda c, b, t, n=32: _bytes(c, b, t, n, up=False)),
    ],
    hint="`parameter_count` counts all. Which of its numbers are in the token table, and which in norms?",
)


# --- pareto_front -----------------------------------------------------------------------------------------


def _points_cases():
    return [
        Case({"small": (1.0, 9.0), "good": (5.0, 2.0), "beaten": (6.0, 3.0), "middle": (3.0, 4.0)},
             label="one point is beaten in both"),
        Case({"a": (2.0, 5.0), "b": (2.0, 4.0), "c": (1.0, 8.0)}, label="equally large, one better"),
        Case({"a": (1.0, 5.0), "b": (3.0, 5.0), "c": (4.0, 1.0)}, label="equally good, one smaller"),
        Case({"z": (2.0, 2.0), "a": (2.0, 2.0), "c": (3.0, 3.0)}, label="two equal points"),
        Case({"only": (7.0, 7.0)}, label="one point"),
        Case({"d": (4.0, 1.0), "c": (3.0, 2.0), "b": (2.0, 3.0), "a": (1.0, 4.0)}, label="none is beaten"),
        Case({"ruined": (0.5, math.inf), "full": (538.0, 17.6), "worse": (600.0, math.inf)},
             label="a ruined model: its perplexity is infinite"),
        Case({"a": (1.0, 1.0), "b": (2.0, 2.0), "c": (3.0, 3.0)}, label="one beats all"),
        Case({}, label="no points"),
    ]


def _front(points, beats, key=lambda item: item[1]):
    kept = [(name, p) for name, p in points.items()
            if not any(beats(q, p) for other, q in points.items() if other != name)]
    return [name for name, _ in sorted(kept, key=key)]


def _better(q, p):
    return q[0] <= p[0] and q[1] <= p[1] and q != p


def _draw_points(numbers):
    return [Case({f"model {i}": (float(numbers.randint(1, 9)), float(numbers.randint(1, 9)))
                  for i in range(numbers.randint(2, 9))}) for _ in range(5)]


PARETO_FRONT = Exercise(
    reference=advice.pareto_front,
    cases=_points_cases,
    draw=_draw_points,
    mistakes=[
        Mistake("a point goes only when another is smaller in both numbers. Equal in one and smaller in the "
                "other beats it, too.",
                lambda points: _front(points, lambda q, p: q[0] < p[0] and q[1] < p[1])),
        Mistake("two equal points beat each other, and both are gone.",
                lambda points: _front(points, lambda q, p: q[0] <= p[0] and q[1] <= p[1])),
        Mistake("a point goes when another is smaller in either number: only a point that is the best in "
                "both would stay.",
                lambda points: _front(points, lambda q, p: q[0] < p[0] or q[1] < p[1])),
        Mistake("the points that are beaten.",
                lambda points: sorted((n for n, p in points.items()
                                       if any(_better(q, p) for q in points.values())),
                                      key=lambda n: points[n])),
        Mistake("not in order: by the first number, then by the second.",
                lambda points: [n for n, p in points.items()
                                if not any(_better(q, p) for q in points.values())]),
        Mistake("in the order of the second number.",
                lambda points: _front(points, _better, key=lambda item: item[1][::-1])),
    ],
    hint="Write down for one point what another one needs to beat it. May they be equal in one number?",
)


# --- ranked -----------------------------------------------------------------------------------------------


def _perplexity(nll, noise=0.0, windows=8, seed=0):
    """A perplexity whose windows scatter around nll, in nats a token; what is hard is common to all."""
    hardness = torch.linspace(-0.5, 0.5, windows)
    own = torch.randn(windows, generator=torch.Generator().manual_seed(seeded(seed))) * noise
    sums = (100 * (nll + hardness + own - own.mean())).tolist()
    counts = (100,) * windows
    return Perplexity(math.exp(nll), nll, sum(counts), 100, 100, "cpu", tuple(sums), counts, f"{windows}")


def _ranked_cases():
    clear = {"good": _perplexity(2.0, 0.01, seed=1), "bad": _perplexity(3.0, 0.01, seed=2),
             "fair": _perplexity(2.5, 0.01, seed=3)}
    tied = {"best": _perplexity(2.0, 0.05, seed=4), "as good": _perplexity(2.01, 0.05, seed=5),
            "worse": _perplexity(2.6, 0.05, seed=6), "as bad": _perplexity(2.605, 0.05, seed=7)}
    # Each of a chain is not shown to differ from the next, but the first and the last do differ.
    noisy = {"noisy": _perplexity(2.06, 0.3, seed=10), "clear": _perplexity(2.04, 0.005, seed=11),
             "leading": _perplexity(2.0)}
    chain = {"first": _perplexity(2.0), "second": _perplexity(2.015, 0.1, seed=9),
             "third": _perplexity(2.03)}
    return [
        Case(clear, {"good": 9, "bad": 1, "fair": 2}, label="all differences are shown"),
        Case(tied, {"best": 5, "as good": 3, "worse": 1, "as bad": 2}, label="two groups"),
        Case(tied, {"best": 3, "as good": 5, "worse": 2, "as bad": 1}, label="the same at other costs"),
        Case(chain, {"first": 3, "second": 2, "third": 1}, label="a chain"),
        Case({"b": _perplexity(2.0), "a": _perplexity(2.0), "c": _perplexity(2.0)}, {"b": 1, "a": 1, "c": 1},
             label="all the same: their order stays"),
        Case(noisy, {"leading": 2, "clear": 3, "noisy": 1}, label="one shown to be worse, a noisy one not"),
        Case({"later": _perplexity(2.001, 0.05, seed=12), "sooner": _perplexity(2.0, 0.05, seed=13)},
             {"sooner": 1, "later": 1}, label="equal cost, no difference shown: their order stays"),
        Case({"only": _perplexity(2.0)}, {"only": 1}, label="one model"),
        Case({}, {}, label="none"),
        Case({"ruined": _perplexity(math.inf), "works": _perplexity(2.0)}, {"ruined": 1, "works": 2},
             label="a ruined model"),
        Case({"a": _perplexity(2.0), "b": _perplexity(2.0, windows=9)}, {"a": 1, "b": 2},
             raises=ValueError, label="perplexities of different texts"),
    ]


def _all_alike(left, shown):
    return [name for name in left if not shown(name, left[0])]


def _run(left, shown):
    return list(itertools.takewhile(lambda name: not shown(name, left[0]), left))


def _chain(left, shown):
    after = itertools.takewhile(lambda pair: not shown(*pair), itertools.pairwise(left))
    return [left[0], *(name for _, name in after)]


def _ranked(quality, cost, group=_all_alike, by=lambda cost, quality, name: cost[name]):
    """Like `ranked`, with other groups: group(names left, by perplexity; is a difference shown) -> first."""
    from course_utils import measure

    left, order = sorted(quality, key=lambda name: quality[name].nll), []
    while left:
        found = group(left, lambda a, b: measure.compare(quality[a], quality[b]).shown)
        order += sorted(sorted(found, key=list(quality).index), key=lambda name: by(cost, quality, name))
        left = [name for name in left if name not in found]
    return order


RANKED = Exercise(
    reference=advice.ranked,
    cases=_ranked_cases,
    mistakes=[
        Mistake("perplexity alone decides. Where no difference is shown, the cost should.",
                lambda quality, cost: sorted(quality, key=lambda name: quality[name].nll)),
        Mistake("cost alone decides.", lambda quality, cost: sorted(quality, key=lambda name: cost[name])),
        Mistake("each model is compared with the one before it. A chain of small steps becomes one group, "
                "though its ends differ: compare with the best of the group.",
                lambda quality, cost: _ranked(quality, cost, group=_chain)),
        Mistake("the group ends at the first that is shown to be worse. A noisier one behind it may not be "
                "shown to be: look at all that are left.",
                lambda quality, cost: _ranked(quality, cost, group=_run)),
        Mistake("where two cost the same, by perplexity. The order of `quality` stays.",
                lambda quality, cost: advice.ranked(
                    {name: quality[name] for name in sorted(quality, key=lambda name: quality[name].nll)},
                    cost)),
        Mistake("within a group the larger cost comes first.",
                lambda quality, cost: _ranked(quality, cost, by=lambda c, q, name: -c[name])),
        Mistake("the worst comes first.", lambda quality, cost: _ranked(quality, cost)[::-1]),
    ],
    hint="Take the best of those left. Who is not shown to be worse? What decides among them? Then?",
)


# --- combined ---------------------------------------------------------------------------------------------


@functools.cache
def _toy(seed=0, tied=True):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=96, hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=tied, head_dim=16)
    with torch.random.fork_rng():
        return LlamaForCausalLM(config).eval()


def _toy_text(seed=0):
    return torch.randint(0, 96, (4, 128), generator=torch.Generator().manual_seed(seeded(seed)))


def _combined_cases():
    return [
        Case(_toy(), _toy_text(), 1, 3, label="4 blocks, one goes, three steps of healing"),
        Case(_toy(1), _toy_text(1), 2, 2, label="another model, two blocks go"),
    ]


def _look(combine, model, windows, cut, steps):
    """What the small model holds."""
    small = combine(model, windows, cut, steps)
    if not isinstance(small, torch.nn.Module):
        return small
    found = {"blocks": len(small.model.layers),
             "packed layers of the blocks": sum(isinstance(layer, packed.QuantLinear)
                                                for layer in small.model.layers.modules()),
             "kind of token table": type(small.get_input_embeddings()).__name__}  # fmt: skip
    with torch.no_grad():
        found["logits"] = small(windows[:1, :32], use_cache=False).logits.detach()
    return found


def _combine(model, windows, cut, steps, *, heal=True, own=True, table=compressed.INT8, late=False,
             blocks=compressed.INT4, method=compressed.gptq_packed):
    """`combined` with one thing done differently."""
    if heal:
        student = compressed.healed(model, windows, cut, steps)
    else:
        student = distill.make_student(model, compressed.blocks_to_keep(model, windows, cut)[0], train=[])
    student = compressed.owned(student) if own else student
    if late and table:
        packed.replace_embedding(student, table)
    method(student, windows, blocks)
    if table and not late:
        packed.replace_embedding(student, table)
    return student


def _rounded(model, windows, scheme):
    packed.replace_linears(model, scheme, progress=False)


COMBINED = Exercise(
    reference=compressed.combined,
    cases=_combined_cases,
    call=_look,
    rtol=1e-3,
    atol=1e-4,
    mistakes=[
        Mistake("the student still shares memory with its teacher when GPTQ writes its weights: that changes "
                "the teacher, too. `owned` gives it memory of its own.",
                functools.partial(_combine, own=False)),
        Mistake("cut and not healed.", functools.partial(_combine, heal=False)),
        Mistake("the token table left as it is. It is the largest matrix of this model.",
                functools.partial(_combine, table=None)),
        Mistake("the blocks rounded to nearest. GPTQ chooses better integers at the same bytes.",
                functools.partial(_combine, method=_rounded)),
        Mistake("the token table in the blocks' 4 bits: it gets INT8.",
                functools.partial(_combine, table=compressed.INT4)),
        Mistake("AWQ in place of GPTQ.", functools.partial(_combine, method=compressed.awq_packed)),
        Mistake("the token table packed first: GPTQ then calibrates on what a rounded table gives. That is "
                "not wrong, but another order than asked for.", functools.partial(_combine, late=True)),
    ],
    hint="Four steps, each a function of `compressed` or `packed`. Which of them write into weights, and "
         " whose weights are those?",
)


# --- predictions ------------------------------------------------------------------------------------------


def combined_megabytes(blocks=27, table_bits=8 + 16 / 576):
    """MB of the combined model."""
    config = _config(blocks, 576, 1536, 9, 3, 49_152, True)
    return costs.stored_bytes(config, bits_per_weight(compressed.INT4, 576), table_bits) / 1e6


EXERCISES = [
    Prediction(
        id="predict_combined_megabytes",
        answer=combined_megabytes,
        rtol=0.05,
        unit="MB",
        mistakes=[
            (lambda: combined_megabytes(30), "all 30 blocks counted: three are gone."),
            (lambda: combined_megabytes(table_bits=32), "the token table counted in FP32: it gets INT8."),
            (lambda: combined_megabytes(table_bits=4.3125), "the token table counted in 4 bits: it gets 8."),
        ],
        hint="27 blocks of 3.54 million weights at 4.31 bits; a table of 49,152 x 576 numbers at 8.",
    ),
    STORED_BYTES,
    COMBINED,
    PARETO_FRONT,
    RANKED,
]
