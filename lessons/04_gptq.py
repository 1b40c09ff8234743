# %% [markdown] name="title" goal="Output error and perplexity of GPTQ; a checkpoint others read"
# # GPTQ
#
# {Lesson:ptq} rounded every weight to the nearest value of a coarse grid. Can we choose better values on the
# *same* grid, with the same bytes in the end?
#
# We can, because nobody looks at the weights. What the next layer sees is the *output*, a sum over many
# inputs, and in a sum errors can cancel. **GPTQ** rounds one column of weights at a time and lets the
# columns still to come make up for the error. You will build it in three steps, measure each on the real
# model, find out when it fails, and write a file that other libraries load.
#
# You need {lesson:ptq}: scales, groups, round to nearest.

# %% name="imports"
import importlib.metadata
import importlib.util
import inspect
import math
import re
import tempfile
import time
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from IPython.utils.capture import capture_output
from torch import Tensor  # noqa: F401 - the exercises name it
from transformers import AutoModelForCausalLM

from course_utils import data, engines, measure, models, plots, records, shapes
from course_utils.quantize import affine, checkpoint, gptq, layerwise
from course_utils.quantize.affine import Scheme

plots.style()
warnings.filterwarnings("ignore", module="torchao|bitsandbytes|optimum")

# %% name="load"
model, tokenizer = models.load_lm(LM, device=DEVICE)
shapes.require(model, "gptq")
text = data.wikipedia_tokens(tokenizer, "calibration", 8192 + 2048)
calibration = data.windows(text[:4096], 512)
fresh = data.windows(text[8192:], 512)  # neither calibrated on nor scored: to choose settings with
heldout = data.wikipedia_tokens(tokenizer, "heldout", 3072)
print(f"text to calibrate on: {calibration.numel():,} tokens; to choose settings with: {fresh.numel():,}; "
      f"to score: {len(heldout):,}")

# %% [markdown] name="output-text"
# ## What should be small?
#
# Take one linear layer with weights $W$, one row for each output. Its inputs are the rows of $X$, one for
# each token. After rounding $W$ to $Q$, the output is off by
#
# $$\frac{1}{n}\lVert X W^T - X Q^T \rVert^2 = \tfrac{1}{2}\,\mathrm{tr}\,(W-Q)\,H\,(W-Q)^T
#   \qquad\text{with}\qquad H = \frac{2}{n} X^T X .$$
#
# All that the error needs to know about the text is in $H$, a square matrix with one row and one column
# for each input. It is called the **Hessian**: the matrix of second derivatives of the squared error. Its
# diagonal says how large each input is. The rest says which inputs move together, and that is where
# errors can cancel.
#
# **Predict first.** The widest layers here, `down_proj`, have 1,536 inputs and 576 outputs. How many
# bytes is one of their Hessians in FP32?

# %% name="predict-hessian-bytes" predict="gptq.predict_hessian_bytes" points=1
### BEGIN SOLUTION
prediction = 1536 * 1536 * 4  # bytes: every input with every input
### END SOLUTION

# %% [markdown] name="hessian-text"
# The text does not pass through the model in one piece. It comes in batches, and batches may differ in
# size. The Hessian must come out the same however the text was cut.
#
# **Your turn.** Accumulate it.

# %% name="ex-hessian" exercise="course_utils.quantize.layerwise:Hessian" points=2

# %% [markdown] name="collect-text"
# Now the real thing: the inputs of three layers in the middle of the model, on the calibration text and on
# fresh text. The text that scores the model in the end is not touched: whoever chooses settings on it has
# seen the exam. A **hook** is a function that torch calls whenever a layer runs; here it hands the layer's
# input to the statistic. We also keep the Hessians of shorter pieces of the calibration text for later.

# %% name="collect"
BLOCK = shapes.place(model, 2 / 5)
groups = shapes.input_groups(model, BLOCK)
LAYERS = {name.partition(f".{BLOCK}.")[2]: model.get_submodule(name)
          for name in (groups[0][0], groups[-2][0], groups[-1][-1])}
QUERY, GATE, DOWN = LAYERS  # self_attn.q_proj, which a block calls first; mlp.gate_proj; mlp.down_proj


def hessians(model, windows, keep_at):
    """{tokens: {layer: Hessian}} of the model, after so many tokens of the windows."""
    statistics = {name: layerwise.Hessian() for name in LAYERS}
    hooks = [layer.register_forward_pre_hook(
        lambda _, args, name=name: statistics[name].add(args[0].flatten(0, -2)))  # its rows are tokens
        for name, layer in LAYERS.items()]
    found = {}
    blocks = shapes.block_list(model)
    behind = blocks[BLOCK + 1:]
    del blocks[BLOCK + 1:]  # they are not needed
    with torch.inference_mode():
        for n, window in enumerate(windows, start=1):
            model.base_model(window[None].to(DEVICE), use_cache=False)
            if n * len(window) in keep_at:
                found[n * len(window)] = {name: s.matrix.clone() for name, s in statistics.items()}
    blocks.extend(behind)
    for hook in hooks:
        hook.remove()
    return found


SIZES = (512, 1024, 2048, 4096)
on_calibration = hessians(model, calibration, SIZES)
on_fresh = hessians(model, fresh, (2048,))[2048]
for name, matrix in on_calibration[4096].items():
    print(f"block {BLOCK}, {name:18} Hessian {list(matrix.shape)}, {matrix.nbytes / 1e6:.1f} MB")

# %% [markdown] name="picture-text"
# Are the inputs really related? This is a corner of the Hessian of `q_proj`, scaled so that the diagonal
# is 1. If inputs were independent it would be white outside the diagonal.

# %% name="plot-hessian" atol=2
matrix = on_calibration[4096][QUERY].cpu()
size = matrix.diagonal().sqrt()
relation = (matrix / size[:, None] / size[None, :])[:96, :96]
short = QUERY.rpartition(".")[2]
fig, ax = plt.subplots(figsize=(5, 4.2))
image = ax.imshow(relation, cmap="RdBu", vmin=-0.3, vmax=0.3)
fig.colorbar(image, ax=ax, extend="both", label="how far two inputs move together")
ax.set(xlabel="input", ylabel="input", title=f"How inputs of {short} are related")
ax.grid(visible=False)
beside = relation[~torch.eye(len(relation), dtype=torch.bool)].abs()
plots.show(fig, f"Square map of the first {len(relation)} inputs of {short} against each other. Beside the "
                f"diagonal, which is 1, most pairs are pale: {(beside > 0.1).float().mean():.0%} of them are "
                f"beyond 0.1 in size, the largest is {beside.max():.2f}.")

# %% [markdown] name="obq-text"
# ## Step 1: one row, exactly
#
# Suppose weight $j$ of a row has just been rounded and is off by $e_j$. How should the weights that are
# not rounded yet move, so that the output changes least? The squared error is a quadratic bowl, so the
# answer is one formula:
#
# $$\Delta w = -\,\frac{e_j}{[H^{-1}]_{jj}}\,[H^{-1}]_{:,j}
#   \qquad\text{at the cost}\qquad \frac{e_j^2}{2\,[H^{-1}]_{jj}} .$$
#
# Then weight $j$ is done: remove it from $H^{-1}$ and go on with the rest. This is the **Optimal Brain
# Quantizer** (OBQ; arXiv 2208.11580, an offspring of a method of 1993 that removed weights). It is greedy:
# next comes always the weight that costs least.
#
# One detail: a Hessian of few tokens is nearly singular, its inverse huge. So a small constant goes onto
# the diagonal, 1 % of its mean. That is called **damping**.

# %% name="obq" tolerance=0.1 atol=0.1
scheme = Scheme(bits=4)  # one scale a row
ROWS = 12  # of each layer


def one_row(row, damped, order):
    scale, zero = affine.parameters(row[None], scheme)

    def nearest(w):
        return affine.from_integers(affine.to_integers(w, scale[0], zero[0], scheme), scale[0], zero[0])

    half_a_step = 1.001 * scale.item() / 2
    return gptq.optimal_brain_row(row, damped, nearest, order, limit=half_a_step)


obq, some, turns, obq_seconds = {}, {}, {}, 0.0
row_error = {order: [] for order in ("round to nearest", "greedy", "natural")}
for name in (QUERY, GATE):
    weight = LAYERS[name].weight.detach().cpu()
    some[name] = weight[torch.linspace(0, len(weight) - 1, ROWS).long()].clone()
    del weight  # held by a variable, one weight keeps the memory of the whole model
    H = on_calibration[4096][name].cpu()
    damped = H + 0.01 * H.diagonal().mean() * torch.eye(len(H))
    found = {"round to nearest": affine.fake_quantize(some[name], scheme)}
    for order in ("greedy", "natural"):
        start = time.perf_counter()
        rows, turns[name, order] = zip(*(one_row(row, damped, order) for row in some[name]), strict=True)
        found[order] = torch.stack(rows)
        obq_seconds += time.perf_counter() - start
    obq[name] = found["natural"]
    for order, rounded in found.items():
        row_error[order] += [gptq.output_error(a[None], b[None], H)
                             for a, b in zip(some[name], rounded, strict=True)]  # fmt: skip
log_error = {order: [math.log(max(error, 1e-30)) for error in errors]  # a row may have no error at all
             for order, errors in row_error.items()}  # fmt: skip


def times(order, other):
    """How many times as large one order's error is as another's: geometric mean of the rows."""
    compared = measure.compare(log_error[order], log_error[other], what="rows")
    mean, low, high = (math.exp(x) for x in (compared.difference, compared.low, compared.high))
    return compared, f"{mean:.2f} times (95 %: {low:.2f} to {high:.2f}, {compared.pairs} rows)"


for order, other in (("greedy", "round to nearest"), ("natural", "round to nearest"), ("natural", "greedy")):
    print(f"output error, {order} over {other}: {times(order, other)[1]}")

# %% name="obq-turns"
layer = LAYERS[QUERY].weight.detach().cpu().clone()
H = on_calibration[4096][QUERY].cpu()
largest = int(H.diagonal().argmax())
size = (H[largest, largest] / H.diagonal().median()).sqrt().item()
turn = {order: [visited.index(largest) + 1 for visited in turns[QUERY, order]]
        for order in ("greedy", "natural")}  # fmt: skip
print(f"Input {largest} is {size:.0f} times as large as the median input. Its turn, of {len(H)}:")
for order, when in turn.items():
    print(f"{order:8} {', '.join(map(str, when))} in the {ROWS} rows of {QUERY}")

# %% [markdown] name="order-text"
# "natural" is the same quantizer without the choice: it takes the weights from left to right. The last line
# compares the two, row by row.
#
# The paper found that the greedy order is hardly worth its price. If it even hurts here, the turns suggest
# why. Cheap weights come first, so the weight on the largest input is left to the end. Then it has to be
# rounded as well, and no weight is left to make up for it. {Lesson:ptq} met such inputs.
#
# The order is also what makes OBQ slow: each row chooses its own, so each row needs its own inverse.
#
# ## Step 2: all rows at once
#
# With one order for all rows, all rows share $H$, and so they share every inverse on the way. And
# the inverses need not be computed one after another. Write $H^{-1} = U^T U$ with $U$ upper
# triangular, its **Cholesky factor**. Row $j$ of $U$ holds the step for column $j$, after columns
# $0 \ldots j-1$ are gone. One decomposition replaces all the removals.
#
# **Your turn.** One column of all rows: `rounded` is what it becomes. Divide its error by $U_{jj}$ and
# take error times row $j$ of $U$ away from the weights.

# %% name="ex-column-update" exercise="course_utils.quantize.gptq:column_update" points=3

# %% [markdown] name="same-text"
# Equality before speed. The exact quantizer in natural order, row by row, against GPTQ on the same rows:

# %% name="same"
fast = gptq.gptq(some[QUERY], H, scheme).dequantize()
different = (fast - obq[QUERY]).abs() > 1e-6
print(f"{different.sum().item()} of {different.numel():,} weights differ between GPTQ and natural OBQ.")

# %% name="same-speed" timing=true
start = time.perf_counter()
gptq.gptq(layer, H, scheme)
seconds = time.perf_counter() - start
one_by_one = obq_seconds / (4 * ROWS) * len(layer)  # two layers, two orders
print(f"GPTQ, all {len(layer)} rows: {seconds:.2f} s. OBQ would take {one_by_one:.0f} s: "
      f"{one_by_one / seconds:.0f} times as long.")

# %% [markdown] name="steps-text"
# ## Step 3: groups and orders
#
# Two things are left.
#
# - **Groups.** With group 64 a scale serves 64 neighbours. When is it chosen? By the time a group's turn
#   comes, its weights have been moved by all columns before it. The paper takes the scale from the weights
#   *as they are now*. The other way, **static groups**, takes all scales from the original weights, before
#   anything moves. (A scale from a copy that misses only the latest updates is neither. It comes from code
#   that works through 128 columns at a time, GPTQModel's for one, and meets every second group of 64.)
# - **Order.** Columns that come first have many others to make up for them. So it pays to round the
#   columns with the largest inputs first: **act-order**. It scatters a group's columns over the matrix,
#   and the file needs a table, `g_idx`, of who belongs where. The "grouped" order only moves whole groups and
#   columns inside a group: no table. Static groups need none either: they stay groups of neighbours in
#   whatever order the columns are rounded.

# %% name="steps" tolerance=0.05
name = QUERY
H_new = on_fresh[name].cpu()
energy = {"calibration": gptq.output_error(layer, torch.zeros_like(layer), H),
          "fresh": gptq.output_error(layer, torch.zeros_like(layer), H_new)}
rows = {}
for label, scheme in {"per channel": Scheme(4), "group 64": Scheme(4, 64), "group 32": Scheme(4, 32),
                      "group 64, 3 bit": Scheme(3, 64),
                      "group 64, asymmetric": Scheme(4, 64, symmetric=False)}.items():
    variants = {"round to nearest": affine.fake_quantize(layer, scheme)}
    for order in gptq.ORDERS:
        variants[f"GPTQ, {order}"] = gptq.gptq(layer, H, scheme, order=order).dequantize()
    variants["GPTQ, activation, static groups"] = gptq.gptq(
        layer, H, scheme, order="activation", static_groups=True).dequantize()
    rows[label] = {
        variant: round(1e4 * gptq.output_error(layer, q, H_new) / energy["fresh"], 1)
        for variant, q in variants.items()}
print(f"block {BLOCK}, {name}: error on fresh text, in 1/10,000 of the output's energy")
measure.table(rows)

# %% name="steps-reading" tolerance=0.05
gains = [row["round to nearest"] / row["GPTQ, natural"] for row in rows.values()]
print(f"GPTQ divides this layer's output error by {min(gains):.1f} to {max(gains):.1f}, at the same bytes.")

# %% [markdown] name="predict-new-text-text"
# The table also compares orders: rounding the largest inputs first lowers this layer's error on each grid. So
# the order matters; what the paper could do without is that each *row* chooses its own.
#
# ## When does it fail?
#
# A factor like that in every layer should bring a 4-bit model close to the original. Early trials with this
# model were sobering: the error of the layers fell a lot, perplexity hardly moved. Why?
#
# Look at the widest layer. `down_proj` has 1,536 inputs. Give GPTQ only 2,048 tokens to learn how they go
# together.
#
# **Predict.** On *new* text, is its output error with 4 bits in groups of 64 better or worse than that of
# round to nearest? Answer "better" or "worse".

# %% name="predict-new-text" predict="gptq.predict_new_text" points=1
### BEGIN SOLUTION
prediction = "worse"  # 2,048 tokens are few for 1,536 inputs
### END SOLUTION

# %% name="overfit" tolerance=0.05
name, scheme = DOWN, Scheme(4, 64)
down = LAYERS[name].weight.detach().cpu().clone()
H_new = on_fresh[name].cpu()
nearest = affine.fake_quantize(down, scheme)
DAMPINGS = (0.01, 0.2, 1.0)
seen, unseen = {}, {}
for tokens in SIZES:
    H_n = on_calibration[tokens][name].cpu()
    for damping in DAMPINGS:
        q = gptq.gptq(down, H_n, scheme, damping=damping).dequantize()
        seen[tokens, damping] = gptq.output_error(down, q, H_n) / gptq.output_error(down, nearest, H_n)
        unseen[tokens, damping] = gptq.output_error(down, q, H_new) / gptq.output_error(down, nearest, H_new)
print(f"block {BLOCK}, {name}: output error of GPTQ / round to nearest (below 1: GPTQ's is the smaller)")
measure.table({f"{tokens:,} tokens": {
    "on the text it saw": round(seen[tokens, 0.01], 2),
    **{f"new text, damping {d:g}": round(unseen[tokens, d], 2) for d in DAMPINGS}} for tokens in SIZES})

# %% name="plot-overfit" tolerance=0.1 atol=0.03
fig, ax = plt.subplots(figsize=(7, 3.6))
colors = (plots.PALETTE["vermilion"], plots.PALETTE["orange"], plots.PALETTE["blue"])
for damping, color in zip(DAMPINGS, colors, strict=True):
    ax.plot(SIZES, [unseen[n, damping] for n in SIZES], "o-", color=color,
            label=f"new text, damping {damping:g}")
ax.plot(SIZES, [seen[n, 0.01] for n in SIZES], "o--", color=colors[0], label="text it saw, damping 0.01")
ax.axhline(1, color="black", linewidth=1)
ax.set_xscale("log", base=2)
ax.set_xticks(SIZES, [f"{n:,}" for n in SIZES])
ax.set(xlabel="calibration tokens", ylabel="error / round to nearest",
       title=f"{DOWN.rpartition('.')[2]}: GPTQ overfits")
ax.legend()
few = SIZES[2]
plots.show(
    fig,
    "Lines of GPTQ's output error relative to round to nearest against the number of calibration tokens. On "
    f"the text it saw it is always below 1. On new text with {few:,} tokens it is "
    f"{unseen[few, 0.01]:.2f} with damping 0.01 and {unseen[few, 1.0]:.2f} with damping 1; all lines fall "
    "with more text.",
)

# %% name="overfit-reading" tolerance=0.05
print(f"With {few:,} tokens and damping 0.01, GPTQ has {seen[few, 0.01]:.2f} times the error of round to "
      f"nearest on the text it saw,")
print(f"but {unseen[few, 0.01]:.2f} times on new text: "
      f"{'more than by doing nothing clever' if unseen[few, 0.01] > 1 else 'still less'}.")
lowest = min(DAMPINGS, key=lambda d: unseen[few, d])
print(f"Damping {lowest:g} makes it {unseen[few, lowest]:.2f}.")

# %% [markdown] name="overfit-explained"
# That may be the answer; the records further down ask it of the whole model. A Hessian of 1,536 inputs has
# 1.2 million different entries, and 2,048 tokens cannot tell them. GPTQ then cancels errors along relations
# that hold in this text only. It is **overfitting**, as in training. And it hides: the error that the method
# reports, on the text it saw, looks wonderful.
#
# There are two cures. More text: the paper takes 128 pieces of 2,048 tokens, 262,144 in all. Or more
# damping, which tells the method to trust the relations less; with infinite damping it *is* round to
# nearest. For as little text as a lesson can afford, the usual 0.01 looks far too small on this layer. Is it
# too small for the model? Keep the question in mind. First we stay with the paper's 0.01, and take act-order
# with static groups, which needs no table.
#
# This model's weights come out of a 4-bit file ({lesson:one_token}). How much that changes was not measured
# here.
#
# ## The whole model
#
# Block by block: measure what goes into the layers of a block, quantize them, let the text pass through
# the quantized block, and go on. So a later block is fitted to the inputs that it will really get, with the
# errors of the earlier ones in them. First round to nearest, then GPTQ, on the same held-out text.

# %% name="whole-nearest" tolerance=0.02
SCHEME = Scheme(bits=4, group=64)
quality = {"FP32": measure.perplexity(model, heldout)}
layerwise.round_to_nearest(model, SCHEME)
quality["round to nearest"] = measure.perplexity(model, heldout)
for label, result in quality.items():
    print(f"{label:18} {result}")
model = None  # frees the memory before the model is loaded anew
LAYERS.clear()
measure.release_memory()

# %% name="whole-gptq"
model, tokenizer = models.load_lm(LM, device=DEVICE)
kept = {}
start = time.perf_counter()
reports = gptq.quantize_model(model, calibration, SCHEME, order="activation", static_groups=True, keep=kept)
gptq_seconds = time.perf_counter() - start
print(f"{len(reports)} layers quantized with {calibration.numel():,} calibration tokens.")

# %% name="whole-gptq-time" timing=true
print(f"GPTQ over the whole model took {gptq_seconds:.0f} s here.")
print(measure.machine_card())

# %% name="whole-result" tolerance=0.05 atol=0.03
measure.release_memory()
quality["GPTQ"] = measure.perplexity(model, heldout)
measure.ranking(quality, "FP32")

# %% name="whole-reading" timing=true
print(measure.compare(quality["GPTQ"], quality["round to nearest"]).sentence("GPTQ", "round to nearest"))

# %% name="plot-layers" tolerance=0.1 atol=0.03
kinds = list(dict.fromkeys(report.name.rsplit(".", 1)[1] for report in reports))
fig, ax = plt.subplots(figsize=(7.5, 3.6))
for kind, color in zip(kinds, plt.cm.viridis(torch.linspace(0, 0.95, len(kinds)).numpy()), strict=True):
    chosen = [report for report in reports if report.name.endswith(kind)]
    ax.plot([r.gptq_error / r.nearest_error for r in chosen], ".-", color=color, label=kind)
ax.axhline(1, color="black", linewidth=1)
ax.set(xlabel="block", ylabel="error / round to nearest", ylim=(0, 1.1),
       title="Output error on the calibration text, layer by layer")
ax.legend(ncols=4, fontsize=8)
middle = sorted(r.gptq_error / r.nearest_error for r in reports)[len(reports) // 2]
plots.show(fig, "One line for each kind of layer, over the blocks: GPTQ's output error relative to round to "
                f"nearest, on the text it saw. Half of the layers are below {middle:.2f}.")

# %% [markdown] name="record-text"
# ## More bits, more groups, more text
#
# A table over many settings takes much longer than a lesson may. It was run once and recorded; `course bench
# gptq_sweep` makes it again on your machine.

# %% name="record-sweep"
sweep = records.load("bench_gptq_sweep")
if sweep:
    print(records.provenance_line(sweep))
    label = "{method}, {bits} bit, {where}{asym}{how}"
    table = {}
    settings = [row for row in sweep["results"]["rows"] if row["calibration text"] == 0]
    for row in settings:
        where = f"group {row['group']}" if row["group"] else "per channel"
        how = ""
        if row["order"]:
            how = f", {row['calibration tokens']:,} tokens, {row['order']}, damping {row['damping']:g}"
            how += ", static groups" if row["static groups"] else ""
        asym = "" if row["symmetric"] else ", asymmetric"
        title = "FP32" if row["bits"] == 32 else label.format(**row, where=where, how=how, asym=asym)
        table[title] = {"perplexity": round(row["perplexity"], 2), "tokens scored": row["tokens scored"]}
    found = measure.table(table)
else:
    found = "No recorded run yet: `course bench gptq_sweep` makes one."
found

# %% [markdown] name="sweep-text"
# 2,044 tokens a row: read large differences from this table, no small ones. Now the damping. On new text the
# layer above had a smaller error with 0.2 than with 0.01. Is it so for the whole model? And would the answer
# be the same with another calibration text of the same size? The record has three.

# %% name="sweep-reading"
if sweep:
    by_text = {}
    for row in sweep["results"]["rows"]:
        if (row["bits"], row["group"], row["symmetric"], row["order"], row["calibration tokens"]) == (
                4, 64, True, "activation", 4096):
            by_text.setdefault(row["damping"], []).append(row["perplexity"])
    for damping, found in sorted(by_text.items()):
        mean = sum(found) / len(found)
        print(f"damping {damping:4g}: perplexity {', '.join(f'{p:.2f}' for p in found)} "
              f"with {len(found)} calibration texts; from lowest to highest "
              f"{(max(found) - min(found)) / mean:.1%}")

# %% [markdown] name="ranking-text"
# Three texts give three answers, so 2,044 tokens and 4,096 tokens of calibration do not settle it. Another
# record gives each setting 8,192 tokens of calibration text and measures on 16,384 held-out tokens, window by
# window (`course bench weight_only_ranking`, grids with zero points). Which damping, which order, and what is
# a clipped range worth?

# %% name="ranking"
record = records.load("bench_weight_only_ranking")
ranked = {}
if record is None:
    print("no recorded run yet: course bench weight_only_ranking makes one")
else:
    print(records.provenance_line(record))
    ranked = {(row["method"], row["bits"]): measure.Perplexity(**row["result"])
              for row in record["results"]["rows"]}  # fmt: skip
    for bits in (4, 3):
        print(f"\n{bits} bits, groups of 64; FP32 has perplexity {ranked['FP32', 32].value:.2f}")
        for name, other in (
            ("GPTQ, damping 0.01", "rounding"),
            ("GPTQ, damping 0.2", "GPTQ, damping 0.01"),
            ("GPTQ, damping 0.01, natural order", "GPTQ, damping 0.01"),
            ("GPTQ, damping 0.01, natural order", "rounding"),
            ("GPTQ, damping 0.01, + clip", "GPTQ, damping 0.01"),
        ):
            if (name, bits) not in ranked:  # order and damping were tried at 4 bits only
                continue
            a, b = ranked[name, bits], ranked[other, bits]
            print(f"{a.value:7.2f} against {b.value:6.2f}  {measure.compare(a, b).sentence(name, other)}")

# %% name="ranking-damping"
if ranked:
    more = measure.compare(ranked["GPTQ, damping 0.2", 4], ranked["GPTQ, damping 0.01", 4])
    print("The layer's error on new text asked for more damping. The model's perplexity "
          + ("agrees." if more.verdict == "better" else "does not bear that out: with more text and zero\n"
             "points, what one layer said did not carry over to the whole model."))

# %% [markdown] name="tools-text"
# The error of single layers guides to big differences, and may mislead about small ones: what one layer gets
# wrong, later layers may correct or repeat, and only the last output counts.
#
# ## The libraries people use
#
# Two libraries carry this method.
#
# - **GPTQModel** is the living one; transformers loads GPTQ checkpoints through it.
# - **AutoGPTQ** is what most tutorials still name. Its last release is of March 2024, and it needs a
#   transformers that the rest of this course has left behind. So it gets an environment of its own, and we
#   call it as a process that answers in JSON. If it crashes or hangs, the lesson goes on.

# %% name="auto-gptq" timing=true
answer = engines.run("auto-gptq", {"task": "versions"}, timeout=60)
print(answer.values["versions"] if answer else answer)

# %% [markdown] name="bench-text"
# Side by side on the same windows of text, the same bits and the same group, in one run (`course bench
# gptq`). The standard errors are paired, window by window, and one calibration text was used. They do not
# contain what another text would change; above you saw that for texts of half the size.

# %% name="record-bench"
bench = records.load("bench_gptq")
if bench:
    print(records.provenance_line(bench))
    found = measure.table({
        row["method"]: {
            "perplexity": round(row["perplexity"], 2), "CPU seconds": round(row["cpu seconds"]),
            "peak MB": round(row["peak MB"]), "calibration tokens": row["calibration tokens"]}
        for row in bench["results"]["rows"]})
else:
    found = "No recorded run yet: `course bench gptq` makes one."
found

# %% name="bench-reading"
if bench:
    by_name = {row["method"].split(" 0")[0]: row for row in bench["results"]["rows"]}
    theirs = by_name["GPTQModel, its defaults"]
    for row in by_name.values():
        if row.get("its standard error") and row["method"] not in ("round to nearest", "FP32"):
            print(f"{row['method']}: perplexity {row['perplexity'] / theirs['perplexity'] - 1:+.1%} against "
                  f"GPTQModel's defaults (standard error {row['its standard error']:.1%}), "
                  f"{row['cpu seconds'] / theirs['cpu seconds']:.2f} times the CPU time.")
    if "AutoGPTQ" in by_name:
        against = by_name["AutoGPTQ"]["perplexity"] / by_name["round to nearest"]["perplexity"] - 1
        print(f"AutoGPTQ with its defaults (damping 0.01): {against:+.1%} against round to nearest "
              "(one calibration text; the error was not recorded).")

# %% [markdown] name="format-text"
# ## A file that others read
#
# What does a 4-bit weight look like on disk? The GPTQ format stores four tensors for each layer: `qweight`
# with the integers, `scales`, `qzeros` with the zero points, and `g_idx`. Eight integers of 4 bits, eight
# **nibbles**, share one 32-bit word; the first is in the lowest bits.
#
# **Your turn.** Pack eight nibbles into a word, and take them out again. Mind the sign: when the eighth
# nibble is 8 or more, the highest bit is set and the `int32` is negative.

# %% name="ex-pack" exercise="course_utils.quantize.checkpoint:pack_nibbles" points=2

# %% name="ex-unpack" exercise="course_utils.quantize.checkpoint:unpack_nibbles" points=2

# %% [markdown] name="zeros-text"
# One trap is famous. A symmetric 4-bit grid goes from -8 to 7; stored without a sign it goes from 0 to 15
# with zero point 8. The first tools wrote the zero point minus one, and so did everybody after them. Version
# 2 of the format stores it as it is.

# %% name="zeros"
zero = torch.full((1, 8), 8)
for version in checkpoint.FORMATS:
    word = checkpoint.zeros_to_words(zero, 4, version).item() & 0xFFFFFFFF
    print(f"{version:8} eight zero points of 8 are the word 0x{word:08X}")

# %% [markdown] name="save-text"
# Now write the model we quantized, and load it with transformers (which calls GPTQModel). Does it say the
# same? GPTQModel packs the weights anew when it loads them, which takes much memory for a moment. So that
# comparison loads the first blocks only, in both.

# %% name="save"
measure.release_memory()  # a file is put together in memory before it is written
with tempfile.TemporaryDirectory() as place:
    folder = checkpoint.save(Path(place) / "smollm2-gptq-4bit", model, tokenizer, kept)
    file_bytes = (folder / "model.safetensors").stat().st_size
    prompt = heldout[None, :128]
    with torch.inference_mode():
        ours = model(prompt.to(DEVICE)).logits.float().cpu()
    one_layer = next(iter(kept))
    del model, kept  # room for the next two models
    measure.release_memory()
    again, _ = checkpoint.load(folder)
    with torch.inference_mode():
        own_reader = again.to(DEVICE)(prompt.to(DEVICE)).logits.cpu()
        blocks = max(1, len(shapes.block_list(again)) // 3)
        del shapes.block_list(again)[blocks:]
        first_blocks = again(prompt.to(DEVICE), use_cache=False).logits.float().cpu()
    del again
    measure.release_memory()
    loaded = importlib.util.find_spec("gptqmodel") is not None
    if loaded:
        with capture_output():  # it tells much about itself
            their_model = AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, num_hidden_layers=blocks)  # fmt: skip
            for layer in shapes.block_list(their_model):  # the first pass packs weights anew, leaves holes
                layer.register_forward_hook(lambda *_: measure.release_memory(garbage=False))
            with torch.inference_mode(), torch.compiler.set_stance("force_eager"):
                theirs = their_model(prompt).logits.float()
        kind = type(their_model.get_submodule(one_layer)).__name__
        del their_model
    else:
        print("GPTQModel is not installed: pip install -e '.[libraries]' (or `make course`)")
print(f"largest difference between our model and our reader: {(own_reader - ours).abs().max().item():g}")

# %% name="save-theirs" timing=true
print(f"model.safetensors: {file_bytes / 1e6:.0f} MB, its embedding in FP32")
if loaded:
    off = (theirs - first_blocks).abs().mean() / first_blocks.abs().mean()
    print(f"transformers reads the layers as {kind};")
    print(f"after {blocks} blocks its logits are off by {off:.2%} on average: its kernel computes in half "
          "precision.")

# %% [markdown] name="replicate"
# ## What would not replicate elsewhere, and what holds anyway
#
# - The interval of C4 counts rows. They come from two layers of one block, and the rows of a layer share
#   their inputs: it says how rows differ, not how layers or models do.
# - How much GPTQ gains depends on the model and the text. Large models have more room, and tools use
#   sixty times as much calibration text. OPT-125M in the paper, 4 bits per channel: 27.66, rounded 37.28,
#   GPTQ 31.12 (WikiText-2, arXiv 2210.17323).
# - Our baseline was a 4-bit file before we began ({lesson:one_token} says what is known of that).
# - That errors cancel along related inputs, that one order can serve all rows, and that a fitted method must
#   be judged on text it has not seen: these hold everywhere.
#
# ## Recap
#
# - What counts is the output. The Hessian $2X^TX/n$ holds all that the text says about it.
# - Round a column, move the columns to come: one row of a Cholesky factor says how.
# - Take a group's scale from the weights as they are when its turn comes, or from the original ones (static
#   groups). Know which one a tool takes before you compare it with another.
# - Many inputs need much text. The error on the calibration text says nothing about that, and the error of
#   one layer on new text need not decide for the model.
# - A checkpoint is packed integers, scales, zero points (by one of two conventions) and group numbers.
#
# ## The claims settled here
#
# C4: {claim:C4}. C6: {claim:C6}, or the AutoGPTQ that came after it.

# %% name="claim-c4" tolerance=0.1 atol=0.1
print('C4: false. The paper is called "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained '
      'Transformers"')
print("    (Frantar, Ashkboos, Hoefler, Alistarh, arXiv 2210.17323). It drops the greedy order of OBQ.")
order, against = times("natural", "greedy")
print(f"    Measured: without that order a row's error is {against} as large: "
      f"{order.verdict}.")
print(f"    Against round to nearest it is {times('natural', 'round to nearest')[1]} as large.")

# %% name="claim-c6"
from transformers.quantizers import quantizer_gptq  # noqa: E402

source = inspect.getsource(quantizer_gptq)
pins = engines.find("auto-gptq").requirements.read_text()
needs = re.search(r"^transformers==(\S+)", pins, re.MULTILINE)[1]
here = importlib.metadata.version("transformers")
release = re.search(r"^auto-gptq==(\S+)", pins, re.MULTILINE)[1]
print(f"C6: stale. AutoGPTQ {release} needs transformers {needs}, the course has {here.split('.')[0]}.x.")
print(f"    The GPTQ loader of transformers asks for gptqmodel: {'gptqmodel' in source}; for auto_gptq: "
      f"{'auto_gptq' in source}.")
if loaded:
    print("    Our checkpoint above was read by that loader; no setup_cuda.py was run.")
