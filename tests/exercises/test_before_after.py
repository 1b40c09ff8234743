"""Lesson before_after: wrong answers are rejected for their reason, right ones written otherwise pass."""

import math
import operator
from fractions import Fraction

from course_utils import compressed, costs, data, distill, measure
from course_utils.quantize import gptq, packed
from course_utils.quantize.affine import Scheme

# --- stored_bytes -----------------------------------------------------------------------------------------


def _numbers(c):
    """(matrices of the blocks, tables, norms), each counted by itself."""
    q, kv = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    layer = c.hidden_size * (2 * q + 2 * kv + 3 * c.intermediate_size)
    tables = c.vocab_size * c.hidden_size * (2 - c.tie_word_embeddings)
    return c.num_hidden_layers * layer, tables, c.hidden_size * (1 + 2 * c.num_hidden_layers)


def _bytes_counted(config, block_bits, table_bits, norm_bits=32):
    matrices, tables, norms = _numbers(config)
    bits = block_bits * matrices + table_bits * tables + norm_bits * norms
    return int(-(-bits // 8))


def _bytes_by_difference(config, block_bits, table_bits, norm_bits=32):
    _, tables, norms = _numbers(config)
    rest = costs.parameter_count(config) - tables - norms
    return math.ceil(sum(n * bits / 8 for n, bits in ((rest, block_bits), (tables, table_bits),
                                                       (norms, norm_bits))))


def _with(change):
    def answer(config, block_bits, table_bits, norm_bits=32):
        matrices, tables, norms = _numbers(config)
        return math.ceil(change(config, matrices, tables, norms, block_bits, table_bits, norm_bits) / 8)

    return answer


# --- pareto_front -----------------------------------------------------------------------------------------


def _front_by_sweep(points):
    """From left to right: whoever is lower than all before, and equals of the last one."""
    front, lowest, last = [], math.inf, None
    for name, point in sorted(points.items(), key=lambda item: item[1]):
        if point[1] < lowest or point == last or not front:
            front.append(name)
            lowest, last = point[1], point
    return front


def _front_by_pairs(points):
    beaten = {a for a, p in points.items() for q in points.values()
              if q != p and q[0] <= p[0] and q[1] <= p[1]}
    return sorted((name for name in points if name not in beaten), key=points.__getitem__)


def _kept(points, beats):
    return sorted((n for n, p in points.items() if not any(beats(q, p) for m, q in points.items() if m != n)),
                  key=points.__getitem__)


# --- ranked -----------------------------------------------------------------------------------------------


def _groups(quality, against_first=True):
    groups = []
    for name in sorted(quality, key=lambda n: (quality[n].nll, list(quality).index(n))):
        other = groups[-1][0 if against_first else -1] if groups else None
        if other and measure.compare(quality[name], quality[other]).verdict == "no difference shown":
            groups[-1].append(name)
        else:
            groups.append([name])
    return groups


def _ranked_by_groups(quality, cost):
    place = list(quality).index
    left, order = list(quality), []
    while left:
        best = sorted(left, key=lambda n: (quality[n].value, place(n)))[0]
        group = [n for n in left if measure.compare(quality[n], quality[best]).verdict != "worse"]
        group.sort(key=lambda n: (cost[n], place(n)))
        order, left = order + group, [n for n in left if n not in group]
    return order


def _ranked_by_runs(quality, cost):
    place = list(quality).index
    return tuple(n for group in _groups(quality) for n in sorted(group, key=lambda n: (cost[n], place(n))))


def _ranked_recursively(quality, cost):
    if not quality:
        return []
    best = min(quality.values(), key=lambda result: result.nll)
    group = [n for n, r in quality.items() if r is best or measure.compare(best, r).verdict != "better"]
    rest = {n: r for n, r in quality.items() if n not in group}
    return sorted(group, key=cost.get) + _ranked_recursively(rest, cost)


# --- combined ---------------------------------------------------------------------------------------------


def _combined_in_full(model, windows, cut=3, steps=64):
    """The same steps, spelled out."""
    kept, train = compressed.blocks_to_keep(model, windows, cut)
    student = distill.make_student(model, kept, train)
    distill.heal(student, model, data.windows(windows.flatten(), 64), steps=steps, lr=5e-4)
    for parameter in student.parameters():
        parameter.data = parameter.detach().clone()
    integers = {}
    gptq.quantize_model(student, windows, Scheme(4, 64, symmetric=False), order="activation",
                        static_groups=True, keep=integers)
    for name, weight in integers.items():
        student.set_submodule(name, packed.QuantLinear.from_quantized(weight))
    packed.replace_embedding(student, Scheme(8))
    return student


def _combined_by_file(model, windows, cut=3, steps=64):
    """A deep copy owns its memory, too."""
    import copy

    student = copy.deepcopy(compressed.healed(model, windows, cut, steps))
    student = compressed.gptq_packed(student, windows)
    packed.replace_embedding(student, compressed.INT8)
    return student


def _steps(own=True, heal=True, table=compressed.INT8, scheme=compressed.INT4, by=compressed.gptq_packed):
    def answer(model, windows, cut=3, steps=64):
        kept, train = compressed.blocks_to_keep(model, windows, cut)
        student = distill.make_student(model, kept, train if heal else [])
        if heal:
            distill.heal(student, model, data.windows(windows.flatten(), 64), steps=steps, lr=5e-4)
        student = compressed.owned(student) if own else student
        by(student, windows, scheme)
        if table:
            packed.replace_embedding(student, table)
        return student

    return answer


def _nearest(model, windows, scheme):
    packed.replace_linears(model, scheme, progress=False)


WRONG = {
    "predict_combined_megabytes": [(85.7, "three are gone"), (165.0, "in FP32"), (67.0, "in 4 bits"),
                                   (538, "too high")],
    "stored_bytes": [
        (_with(lambda c, m, t, n, b, w, o: m * b + t / (2 - c.tie_word_embeddings) * w + n * o), "are two"),
        (_with(lambda c, m, t, n, b, w, o: m * b + t * w + n * b), "norms counted in"),
        (_with(lambda c, m, t, n, b, w, o: m * b + t * w), "norms forgotten"),
        (_with(lambda c, m, t, n, b, w, o: (m + t + n) * b), "everything counted"),
        (_with(lambda c, m, t, n, b, w, o: 8 * (m * b + t * w + n * o)), "bits, not bytes|expected"),
        (lambda config, block_bits, table_bits, norm_bits=32: round(
            sum(map(operator.mul, _numbers(config), (block_bits, table_bits, norm_bits))) / 8),
         "rounded up, though"),
        (_with(lambda c, m, t, n, b, w, o: m * b + (m - m) + 2 * t * w + n * o), "expected"),
    ],
    "combined": [
        (_steps(own=False), "memory of its own|changes"),
        (_steps(heal=False), "not healed"),
        (_steps(table=None), "largest matrix"),
        (_steps(by=_nearest), "rounded to nearest"),
        (_steps(table=compressed.INT4), "it gets INT8"),
        (_steps(scheme=Scheme(3, 64, symmetric=False)), "logits"),
        (lambda model, windows, cut=3, steps=64: None, "is a `return` missing"),
    ],
    "pareto_front": [
        (lambda points: _kept(points, lambda q, p: q[0] < p[0] and q[1] < p[1]), "Equal in one"),
        (lambda points: _kept(points, lambda q, p: q[0] <= p[0] and q[1] <= p[1]), "beat each other"),
        (lambda points: _kept(points, lambda q, p: q[0] < p[0] or q[1] < p[1]), "either number"),
        (lambda points: [n for n in points if n in _front_by_pairs(points)], "not in order"),
        (lambda points: _front_by_pairs(points)[::-1], "second number"),
    ],
    "ranked": [
        (lambda quality, cost: sorted(quality, key=lambda n: quality[n].value), "perplexity alone"),
        (lambda quality, cost: sorted(cost, key=cost.get), "cost alone"),
        (lambda quality, cost: [n for g in _groups(quality, False) for n in sorted(g, key=cost.get)],
         "one before it"),
        (lambda quality, cost: _ranked_by_groups(quality, {name: -figure for name, figure in cost.items()}),
         "larger cost"),
        (_ranked_by_runs, "ends at the first that is shown"),
        (lambda quality, cost: _ranked_recursively(
            dict(sorted(quality.items(), key=lambda item: item[1].nll)), cost), "where two cost the same"),
        (lambda quality, cost: _ranked_by_groups(quality, cost)[::-1], "worst comes first"),
    ],
}

def _bytes_as_fractions(config, block_bits, table_bits, norm_bits=32):
    widths = (Fraction(bits) for bits in (block_bits, table_bits, norm_bits))
    return math.ceil(sum(n * bits for n, bits in zip(_numbers(config), widths, strict=True)) / 8)


RIGHT = {
    "predict_combined_megabytes": [80.0, 27 * 3.539e6 * 4.3125 / 8e6 + 49_152 * 576 / 1e6],
    "stored_bytes": [_bytes_counted, _bytes_by_difference, _bytes_as_fractions],
    "combined": [_combined_in_full, _combined_by_file],
    "pareto_front": [_front_by_sweep, _front_by_pairs],
    "ranked": [_ranked_by_groups, _ranked_recursively],
}
