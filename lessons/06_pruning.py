# %% [markdown] name="title" goal="Perplexity at 50 % and 2:4 zeros by five methods; what zeros save"
# # Unstructured pruning
#
# The lessons before this one gave each weight fewer bits. Here we give some weights none at all: they become
# zero. Which ones can go, how many, and what does a zero save?
#
# The usual first example picks half of the weights by chance. You will see what that does to a real language
# model, then choose better in three steps: by size (**magnitude**), by size and input (**Wanda**), and with
# the other weights making up for the loss (**SparseGPT**). Then comes the question that decides whether any
# of it is worth doing: what do zeros cost in memory and in time?
#
# From {lesson:one_token} you need perplexity. SparseGPT stands on {lesson:gptq} (the Hessian); the rest does
# not.

# %% name="imports"
import inspect
import math  # noqa: F401 - the exercises name it
import tempfile
import warnings

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import Tensor  # noqa: F401 - the exercises name it
from torch.nn.utils import prune as torch_prune
from transformers import DataCollatorWithPadding, Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from course_utils import data, finetune, measure, models, plots, records, shapes
from course_utils.prune import sparse, sparsegpt, unstructured
from course_utils.quantize import gptq, layerwise

plots.style()
warnings.filterwarnings("ignore", message=".*CSR tensor support is in beta.*")

# %% [markdown] name="zero-text"
# ## What does a zero save?
#
# Ask this first, because the answer surprises many. Take a matrix of this model's size. In a copy of it, set
# half of the numbers to zero.
#
# **Predict.** How many times as long does the product with the half-empty matrix take?

# %% name="predict-speed" predict="pruning.predict_speed" points=1
### BEGIN SOLUTION
prediction = 1.0  # same shape, same bytes, same operations
### END SOLUTION

# %% name="zero-time" timing=true
generator = torch.Generator().manual_seed(0)
full = torch.randn(1536, 576, generator=generator)
half = full * (torch.rand(full.shape, generator=generator) < 0.5)
x = torch.randn(64, 576, generator=generator)
ratios = []
for _ in range(15):  # in turns, so that a disturbance hits both
    a, b = (measure.latency(lambda w=w: F.linear(x, w), warmup=5, repeats=20).median for w in (full, half))
    ratios.append(b / a)
print(f"half of the numbers zero: {sorted(ratios)[7]:.2f} times as long (median of 15 comparisons)")
print(f"bytes: {full.nbytes:,} and {half.nbytes:,}")

# %% [markdown] name="zero-reading"
# The bytes are the same, and so is the time, give or take what else the machine does. A zero is a number like
# any other: it is stored in 4 bytes, read, and multiplied. To gain from zeros one must *store* the matrix in
# another way, and have code that reads it. We come back to that. First: how many zeros does the model bear?
#
# ## Which weights can go?
#
# Every method here is a **score** for each weight. The lowest scores go.
#
# - **Random.** No reason at all: the baseline.
# - **Magnitude.** The size $|W|$. A small weight adds little to the sum (Han and others, arXiv 1506.02626).
#
# What does magnitude overlook? A weight is multiplied by an input. A small weight on a large input may add
# more than a large weight on a small one. Are the inputs of a layer of different size? We let text pass
# through the model and measure the length of each input: the root of the sum of its squares over all tokens,
# $\lVert x_j \rVert_2$. One pass serves all layers. For one layer we keep its Hessian too.

# %% name="load"
model, tokenizer = models.load_lm(LM, device=DEVICE)
shapes.require(model, "pruning")
n_calibration, n_heldout = (2048, 1024) if PROFILE == "cpu" else (32_768, 32_768)
calibration = data.windows(data.wikipedia_tokens(tokenizer, "calibration", n_calibration), 512)
heldout = data.wikipedia_tokens(tokenizer, "heldout", n_heldout)
dense = measure.perplexity(model, heldout)
print(f"calibration text: {calibration.numel():,} tokens")
print("dense:", dense)

# %% name="collect"
middle = shapes.place(model, 2 / 5)
first = [names[0] for names in shapes.input_groups(model, middle)]  # q, o, gate, down
LAYER = first[0]
hessian = layerwise.Hessian()
hook = model.get_submodule(LAYER).register_forward_pre_hook(
    lambda _, args: hessian.add(args[0].flatten(0, -2)))
norms = layerwise.collect_statistics(model, calibration, unstructured.InputNorm)
hook.remove()
norms = {name: statistic.norm for name, statistic in norms.items()}
length = norms[LAYER].sort(descending=True).values
print(f"{LAYER}: {len(length)} inputs; the longest is {length[0] / length.median():.0f} times as long "
      f"as the median, the shortest {length[-1] / length.median():.2f} times")

# %% name="plot-norms" tolerance=0.1 atol=1
fig, ax = plt.subplots(figsize=(7.5, 3.6))
spread = {}
for name, color in zip(first, ("blue", "green", "orange", "vermilion"), strict=False):
    kind = name.partition(f".{middle}.")[2]
    values = norms[name].sort(descending=True).values.cpu()
    spread[kind] = (values[0] / values.median()).item()
    ax.semilogy(torch.linspace(0, 100, len(values)), values / values.median(), color=plots.PALETTE[color],
                label=kind)
ax.set(xlabel="inputs, longest first (%)", ylabel="length / median", title=f"Inputs of block {middle}")
ax.legend()
low, high = min(spread.values()), max(spread.values())
plots.show(fig, f"{len(spread)} falling lines, vertical axis logarithmic: the length of each input of a "
                "layer, longest first, over the median. Most inputs lie within a factor of three of the "
                f"median. A few stand out: the longest is {low:.0f} to {high:.0f} times the median.")

# %% [markdown] name="wanda-text"
# Inputs differ, and a few stand out. **Wanda** ("pruning by weights and activations", arXiv 2306.11695)
# multiplies the two:
#
# $$S_{ij} = |W_{ij}| \cdot \lVert x_j \rVert_2$$
#
# It has a second idea: weights compete only within one output, a row of $W$. So no output loses most of its
# weights to save those of another.
#
# **Your turn.** Compute the score from the weight and the inputs.

# %% name="ex-wanda" exercise="course_utils.prune.unstructured:wanda_score" points=2

# %% [markdown] name="torch-text"
# PyTorch has pruning built in: `torch.nn.utils.prune`. `random_unstructured` is the article's choice,
# `l1_unstructured` is magnitude. Is its mask ours? Equality first, on five real layers and at three
# sparsities. **Sparsity** is the share of zeros.

# %% name="torch-mask"
def of_torch(weight, sparsity):
    """The mask that torch's magnitude pruning gives a weight."""
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = torch.nn.Parameter(weight.detach(), requires_grad=False)
    torch_prune.l1_unstructured(layer, "weight", amount=sparsity)
    return layer.weight_mask.bool()


def differing(weight, sparsity):
    """How many entries of torch's mask are not ours, and how many of these off the border's size."""
    ours = unstructured.keep_highest(unstructured.magnitude_score(weight), sparsity)
    differs, border = ours != of_torch(weight, sparsity), weight.abs()[~ours].max()
    return differs.sum().item(), (differs & (weight.abs() != border)).sum().item()


some = [(name, linear.weight) for name, linear in layerwise.block_linears(model).items()][::45]
for sparsity in (0.1, 0.5, 0.9):
    different, elsewhere = map(sum, zip(*(differing(weight, sparsity) for _, weight in some), strict=True))
    total = sum(weight.numel() for _, weight in some)
    print(f"{sparsity:.0%} of {len(some)} layers: {different} of {total:,} mask entries differ from torch's, "
          f"{elsewhere} of them where the weight is not of the border's size")

# %% [markdown] name="torch-reading"
# The same mask, up to ties: of weights of exactly equal size on the border either may go. This model has
# such ties, because its weights came out of a 4-bit file.
#
# ## One layer, four ways
#
# What counts is the layer's *output*. Here is its error at 50 %, as a share of the output's energy, on the
# calibration text. SparseGPT is in the table already; its turn to be explained comes right after.

# %% name="one-layer" tolerance=0.05
del some  # a slice of the model in a variable would keep the whole model in memory
W, H = model.get_submodule(LAYER).weight.detach().clone(), hessian.matrix
generator = torch.Generator().manual_seed(0)
wanda = unstructured.wanda_score(W, norms[LAYER][None])
pruned = {
    "random": W * unstructured.keep_highest(unstructured.random_score(W, generator), 0.5),
    "magnitude": W * unstructured.keep_highest(unstructured.magnitude_score(W), 0.5),
    "magnitude, within rows": W * unstructured.keep_highest(unstructured.magnitude_score(W), 0.5, "row"),
    "Wanda's score, within the layer": W * unstructured.keep_highest(wanda, 0.5),
    "Wanda (within rows)": W * unstructured.keep_highest(wanda, 0.5, "row"),
    "SparseGPT": sparsegpt.sparsegpt(W, H, 0.5, damping=0.1),
}
energy = gptq.output_error(W, torch.zeros_like(W), H)
layer_error = {name: gptq.output_error(W, w, H) / energy for name, w in pruned.items()}
print(f"{LAYER}, half of the weights zero")
measure.table({name: {"output error (% of the energy)": round(100 * error, 2),
                      "zeros (%)": round(100 * (pruned[name] == 0).float().mean().item(), 2)}
               for name, error in layer_error.items()})

# %% [markdown] name="sparsegpt-text"
# ## Let the others make up for it
#
# Random, magnitude and Wanda leave the weights that stay as they were. **SparseGPT** (arXiv 2301.00774) does
# not: whenever a weight becomes zero, the weights to its right in the same row move, so that the output
# changes least. That is GPTQ's step from {lesson:gptq}, with a simpler grid: keep the weight, or make it
# zero. The Hessian $H = 2X^TX/n$ and its Cholesky factor are the same, and our code calls the same functions.
#
# Which weights go? Those whose removal costs least, after the others have moved: the cost is
# $w_j^2 / (2\,[H^{-1}]_{jj})$. SparseGPT decides for 128 columns at a time, with the weights as they are by
# then.
#
# If inputs had nothing to do with each other, $H$ would be diagonal, and the cost would be
# $w_j^2 \lVert x_j \rVert^2 / n$: Wanda's score, squared. So Wanda's score is SparseGPT's cost without
# relations between inputs. Its weights compete within a row, SparseGPT's within 128 columns of all rows, and
# it has no update.
#
# ## The whole model at 50 %
#
# All linear layers of all blocks, on held-out text. Embedding, output layer and norms stay as they are. Write
# down a guess for random pruning first; the dense model's perplexity is printed above.

# %% name="guess"
my_guess_for_random = None  # perplexity: replace None by a number

# %% name="simple-methods" tolerance=0.05
def short(number):
    """Three digits: 44.2, 343, 116,000,000."""
    return f"{float(f'{number:.3g}'):,.10g}"


def fresh():
    """The dense model again. Two of them do not fit into 2 GB: `del` the old one first."""
    measure.release_memory()
    return models.load_lm(LM, device=DEVICE)[0]


def by_size(name, weight):
    return unstructured.magnitude_score(weight)


def by_wanda(name, weight):
    return unstructured.wanda_score(weight, norms[name][None])


generator = torch.Generator().manual_seed(0)
recipes = {
    "random": dict(score=lambda name, weight: unstructured.random_score(weight, generator)),
    "magnitude": dict(score=by_size),
    "Wanda": dict(score=by_wanda, per="row"),
}
at_half = {"dense": dense}
for name, recipe in recipes.items():
    unstructured.prune_model(model, sparsity=0.5, **recipe)
    at_half[name] = measure.perplexity(model, heldout)
    zeros = unstructured.share_of_zeros(model)
    print(f"{name:9} {zeros:.2%} zeros, perplexity {short(at_half[name].value)}")
    del model
    model = fresh()

# %% name="sparsegpt"
reports = sparsegpt.sparsegpt_model(model, calibration, 0.5, damping=0.1)
measure.release_memory()
ratios = sorted(report.sparsegpt_error / report.wanda_error for report in reports)
above = sum(ratio > 1 for ratio in ratios)
print(f"{len(reports)} layers pruned; in {above} of them SparseGPT's output error is above Wanda's.")

# %% name="at-half" tolerance=0.05
at_half["SparseGPT"] = measure.perplexity(model, heldout)
print(f"SparseGPT's error is {ratios[len(ratios) // 2]:.2f} times Wanda's in the median layer.")
if my_guess_for_random is not None:
    print(f"You guessed {my_guess_for_random} for random.")
measure.table({name: {"perplexity": short(result.value), "times dense": short(result.value / dense.value)}
               for name, result in at_half.items()})

# %% [markdown] name="at-half-reading-text"
# Which of two neighbours in that table leaves the better model? Two windows of text cannot say: an error
# needs several. The course keeps a measurement on 16,384 held-out tokens, 32 windows, with 4,096 tokens of
# calibration text (`course bench pruning_ranking`). There Wanda goes block by block, as its paper does.

# %% name="at-half-reading"
ranked = records.load("bench_pruning_ranking")
if ranked is None:
    print("no recorded run yet: course bench pruning_ranking makes one")
else:
    print(records.provenance_line(ranked))
    kept = {(row["method"], row["sparsity"]): measure.Perplexity(**row["result"])
            for row in ranked["results"]["rows"]}  # fmt: skip
    for (method, sparsity), result in kept.items():
        print(f"{method:21} {sparsity:5} perplexity {short(result.value)}")
    print()
    for sparsity in ("50 %", "2:4"):
        for name, other in (("Wanda", "magnitude, per layer"), ("SparseGPT", "Wanda")):
            print(measure.compare(kept[name, sparsity], kept[other, sparsity]).sentence(
                f"{sparsity}: {name}", other))  # fmt: skip
    for name in ("magnitude, per layer", "Wanda", "SparseGPT"):
        print(measure.compare(kept[name, "2:4"], kept[name, "50 %"]).sentence(
            f"{name} at 2:4", "at 50 % anywhere"))  # fmt: skip

# %% [markdown] name="at-half-text"
# The papers, whose models are larger, report: OPT-125M, WikiText-2, 50 %: dense 27.66, magnitude 193,
# SparseGPT 36.85. LLaMA-7B: dense 5.68, magnitude 17.29, Wanda 7.26, SparseGPT 7.22 (arXiv 2301.00774 and
# 2306.11695).
#
# Two things take less work here than in the papers. They calibrate with 262,144 tokens, we with 2,048; so we
# damp the Hessian more, with 0.1 instead of 0.01. (In {lesson:gptq} a layer's error asked for that; the
# perplexity there did not confirm it.) And our Wanda takes the inputs of the dense model, in one pass for
# everything below; the paper measures each block after pruning the ones before it.
#
# ## From 10 to 70 %
#
# Many more runs than a lesson may take, so they were recorded once (`course bench pruning` makes the record
# again on your machine). There Wanda goes block by block, and the texts are longer.

# %% name="record" tolerance=0.02
record = records.load("bench_pruning")
if record:
    print(records.provenance_line(record))
    rows = record["results"]["rows"]
    base = next(row for row in rows if row["method"] == "dense")
    curves = {}
    for row in sorted(rows, key=lambda row: row["sparsity"]):
        if row["sparsity"].endswith("%") and row["method"] != "dense" and row["damping"] in (None, 0.1):
            curves.setdefault(row["method"], {})[row["sparsity"]] = row["perplexity"]
    print(f"dense {base['perplexity']:.2f}, on {base['tokens scored']:,} tokens")
    found = measure.table({method: {share: short(value) for share, value in by_share.items()}
                           for method, by_share in curves.items()})
else:
    found = "No recorded run yet: `course bench pruning` makes one."
found

# %% name="plot-sparsity"
if record:
    colors = dict(zip(("random", "magnitude, per layer", "magnitude, global", "Wanda", "SparseGPT"),
                      ("black", "orange", "green", "sky", "vermilion"), strict=True))
    fig, ax = plt.subplots(figsize=(7.5, 4.2))
    for method, by_share in curves.items():
        points = [(0, base["perplexity"])] + [(int(s.split()[0]), v) for s, v in by_share.items()]
        ax.plot(*zip(*points, strict=True), "o-", color=plots.PALETTE[colors[method]], label=method)
    ax.set_yscale("log")
    ax.set(ylim=(0.8 * base["perplexity"], 1e4), xlabel="sparsity (%)", ylabel="perplexity (log scale)",
           title="Sparsity against perplexity")
    ax.legend()
    knees = {method: max([s for s, v in by_share.items() if v < 1.2 * base["perplexity"]], default="0 %")
             for method, by_share in curves.items()}
    plots.show(fig, f"Five lines that rise with sparsity, from perplexity {base['perplexity']:.1f} at 0 %. "
                    "The highest sparsity measured with a perplexity less than 20 % above that: "
                    + "; ".join(f"{method} {share}" for method, share in knees.items())
                    + ". Beyond that each line bends upwards.")

# %% [markdown] name="record-reading"
# Four of the lines have a knee: before it the line is nearly flat, beyond it perplexity climbs steeply. They
# differ in where it lies. Random pruning has no flat part in this table: the first 10 % ruin the model.

# %% [markdown] name="nm-text"
# ## Two of four
#
# Half of the weights *anywhere* is hard to use: code that reads such a matrix must find out where the next
# number is. NVIDIA's GPUs since Ampere have a rule that hardware can follow: of each four neighbours in a
# row, at most two are nonzero. That is **2:4**, "two of four"; n:m in general. The share of zeros is the
# same, 50 %, with less freedom.
#
# Any score will do. The competition is now among four weights.
#
# **Your turn.** Write the mask.

# %% name="ex-nm" exercise="course_utils.prune.unstructured:n_m_mask" points=3

# %% name="two-four" tolerance=0.05
del model
model = fresh()
unstructured.prune_model(model, by_wanda, (2, 4))
two_four = measure.perplexity(model, heldout)
print(f"Wanda, half of the weights zero: anywhere {short(at_half['Wanda'].value)}, "
      f"2:4 {short(two_four.value)}, dense {dense.value:.1f}")

# %% name="two-four-valid"
def crowded(weight):
    """How many groups of four neighbours have more than two nonzeros."""
    return ((weight != 0).reshape(-1, 4).sum(dim=1) > 2).sum().item()


bad = {name: crowded(linear.weight) for name, linear in layerwise.block_linears(model).items()}
print(f"{sum(bad.values())} groups of four in {len(bad)} layers have more than two nonzeros")

# %% name="two-four-record" tolerance=0.02
if record:
    print(f"recorded on {base['tokens scored']:,} tokens, dense {base['perplexity']:.1f}")
    half_rows = {(row["method"], row["sparsity"]): short(row["perplexity"]) for row in rows
                 if row["damping"] in (None, 0.1)}
    found = measure.table({method: {"50 % anywhere": half_rows[method, "50 %"], "2:4": value}
                           for (method, sparsity), value in half_rows.items() if sparsity == "2:4"})
found

# %% [markdown] name="two-four-reading"
# The share of zeros is the same, the freedom is not. What that costs each method stands above, among the
# sentences from 16,384 tokens.

# %% [markdown] name="storage-text"
# ## What zeros save in memory
#
# To leave zeros out, say where the others are. Three ways, here with values of 16 bits:
#
# - **Bitmask.** One bit for each weight: is it there? Then the values that are.
# - **CSR**, compressed sparse rows. Each value that is there comes with the number of its column, 16 bits.
#   Another number for each row says where it starts.
# - **2:4, packed.** Two values of each four neighbours, and 2 bits for the place of each.
#
# **Predict.** From which share of zeros on, in percent, does CSR take less memory than the dense matrix?

# %% name="predict-csr" predict="pruning.predict_csr_share" points=1
### BEGIN SOLUTION
prediction = 50  # a value that stays takes 16 + 16 bits: twice as many. So half of them must be gone
### END SOLUTION

# %% [markdown] name="bytes-text"
# **Your turn.** How many bytes does each format take?

# %% name="ex-bytes" exercise="course_utils.prune.sparse:storage_bytes" points=3

# %% [markdown] name="pack-text"
# Now pack a real block for real, and count the bytes of the tensors that come out. The model in memory is
# the one that Wanda pruned to 2:4. Its weights are rounded to BF16 first: the same values come back.

# %% name="pack"
block = {name: linear.weight.detach().to(torch.bfloat16)
         for name, linear in layerwise.linears_of(shapes.block_list(model)[middle]).items()}
weights = sum(w.numel() for w in block.values())
rows_of_table = {"dense": {"MB": sum(w.nbytes for w in block.values()) / 1e6, "bits a weight": 16.0}}
for format, kind in sparse.FORMATS.items():
    stored = {name: kind.pack(w) for name, w in block.items()}
    back = all(torch.equal(stored[name].unpack(), w) for name, w in block.items())
    size = sum(s.nbytes for s in stored.values())
    formula = sum(sparse.storage_bytes(*w.shape, int((w != 0).sum()), format) for w in block.values())
    rows_of_table[format] = {"MB": round(size / 1e6, 3), "bits a weight": round(8 * size / weights, 2),
                             "as computed": size == formula, "comes back exactly": back}
measure.table(rows_of_table).fillna("")

# %% name="plot-bytes"
W = full[:512, :512].to(torch.bfloat16)
shares = torch.linspace(0, 1, 101)
bits, dots = {}, {}
for format in ("bitmask", "csr"):
    bits[format] = [8 * sparse.storage_bytes(*W.shape, round(W.numel() * (1 - s.item())), format) / W.numel()
                    for s in shares]
    kept = [W * unstructured.keep_highest(unstructured.magnitude_score(W), s / 10) for s in range(1, 10)]
    dots[format] = [8 * sparse.FORMATS[format].pack(w).nbytes / W.numel() for w in kept]
fig, ax = plt.subplots(figsize=(7.5, 3.8))
ax.axhline(16, color="black", linewidth=1.5, label="dense")
for format, color in (("bitmask", "blue"), ("csr", "vermilion")):
    ax.plot(100 * shares, bits[format], color=plots.PALETTE[color], label=format)
    ax.plot(range(10, 100, 10), dots[format], "o", color=plots.PALETTE[color], markersize=5)
ax.plot([50], [9], "s", color=plots.PALETTE["green"], markersize=9, label="2:4")
ax.set(xlabel="sparsity (%)", ylabel="bits a weight", ylim=(0, 33), title="Storage, values of 16 bits")
ax.legend()
pays = {format: next(i for i, b in enumerate(bits[format]) if b < 16) for format in bits}
plots.show(fig, "Two falling lines and a level one. Dense is level at 16 bits a weight. The bitmask starts "
                f"at 17 and is below dense from {pays['bitmask']} % zeros on. CSR starts at 32 and is below "
                f"dense from {pays['csr']} % on. Measured dots lie on both lines. 2:4 is one point: 9 bits "
                "at 50 %.")

# %% name="bytes-reading"
print(f"CSR needs {pays['csr']} % zeros before it saves anything; the bitmask needs {pays['bitmask']} %.")
total = sum(linear.weight.numel() for linear in layerwise.block_linears(model).values())
rest = sum(p.numel() for p in model.parameters()) - total
for label, bits_each in (("dense, BF16", 16), ("2:4 or bitmask at 50 %, BF16", 9),
                         ("dense, 4 bits (quantized)", 4.25)):
    print(f"{label:28} {(total * bits_each + rest * 16) / 8e6:6.1f} MB for the whole model")

# %% [markdown] name="bytes-explained"
# At 50 % the least that these formats reach with 16-bit values is 9 bits a weight. {Lesson:ptq} has 4.25
# bits a weight, in fewer bytes; {lesson:gptq} shows what perplexity that leaves. The two can be combined: at
# 4 bits a value, half of them zero, a bitmask takes 4 x 0.5 + 1 = 3 bits.
#
# ## What zeros save in time
#
# One product, $XW^T$ with $W$ of 24,576 x 576 (as much as 16 `gate_proj` layers hold), in two situations:
# one token at a time (decode) and 64 tokens at once (prefill). The CSR product is torch's own kernel, with
# values and column numbers of 32 bits. Only the product is timed, not the conversion.

# %% name="time-sparse" timing=true
del model
measure.release_memory()
generator = torch.Generator().manual_seed(0)
tall = torch.randn(24_576, 576, generator=generator)
order = torch.rand(tall.shape, generator=generator)  # a weight is zero at every sparsity above its number
xs = {n: torch.randn(n, 576, generator=generator) for n in (1, 64)}
repeats = {1: 15, 64: 4}


def seconds(product, n):
    return measure.latency(product, warmup=2, repeats=repeats[n]).median


dense_time = {n: seconds(lambda x=x: F.linear(x, tall), n) for n, x in xs.items()}
dense_time[1] = min(dense_time[1], seconds(lambda: tall @ xs[1][0], 1))  # the faster way to write it
shares = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
csr_ratio, csr_rate = {n: [] for n in xs}, []
for share in shares:
    kernel = sparse.CSR.pack(tall * (order >= share)).kernel()
    for n, x in xs.items():
        csr_ratio[n].append(seconds(lambda x=x, kernel=kernel: kernel @ x.T, n) / dense_time[n])
    held = sum(part.nbytes for part in (kernel.values(), kernel.col_indices(), kernel.crow_indices()))
    csr_rate.append(held / (csr_ratio[1][-1] * dense_time[1]) / 1e9)
starts = {n: next((s for s, r in zip(shares, csr_ratio[n], strict=True) if r < 1), None) for n in xs}
for n in xs:
    text = ", ".join(f"{s:.0%}: {r:.2f}" for s, r in zip(shares, csr_ratio[n], strict=True))
    print(f"{n:2} tokens at once, time of CSR / dense at a sparsity of  {text}")
    print(f"   faster than dense from {starts[n]:.0%} on" if starts[n] else "   never faster than dense here")
can = measure.bandwidth(device=DEVICE).read / 1e9
print(f"bytes read a second, one token: dense {tall.nbytes / dense_time[1] / 1e9:.1f} GB/s, CSR at "
      f"{shares[0]:.0%} zeros {csr_rate[0]:.1f}, at {shares[-2]:.0%} {csr_rate[-2]:.1f}; "
      f"this machine's memory gives {can:.1f}")
print(measure.machine_card())

# %% name="plot-time" timing=true
fig, ax = plt.subplots(figsize=(7.5, 3.6))
for n, color in ((1, "blue"), (64, "vermilion")):
    ax.semilogy([100 * s for s in shares], csr_ratio[n], "o-", color=plots.PALETTE[color],
                label=f"{n} token{'s' if n > 1 else ''} at once")
ax.axhline(1, color="black", linewidth=1.5)
ax.set(xlabel="sparsity (%)", ylabel="time / dense (log scale)", title="CSR product against the dense one")
ax.legend()
plots.show(fig, "Two falling lines of the time of a CSR product over that of the dense one, against "
                "sparsity from 30 to 99 %, with a level line at 1, where both take the same time. "
                + "; ".join(f"{n} at once: from {r[0]:.2g} down to {r[-1]:.2g}" for n, r in csr_ratio.items())
                + ".")

# %% name="unpack-time" timing=true
small = tall[:1536]
as_two_four = small * unstructured.n_m_mask(unstructured.magnitude_score(small))
base_time = measure.latency(lambda: F.linear(xs[1], small), warmup=5, repeats=30).median
for format in ("bitmask", "2:4"):
    stored = sparse.FORMATS[format].pack(as_two_four)
    ratio = measure.latency(lambda s=stored: s.matmul(xs[1]), warmup=1, repeats=5).median / base_time
    print(f"{format:8} unpacked first, then multiplied: {ratio:,.0f} times the dense product of one token")

# %% [markdown] name="time-reading"
# - With one token at a time, bytes count most. CSR in 32 bits reads 8 bytes for each weight that stays, dense
#   4 for every weight: by bytes alone the two meet at 50 %. If CSR is the faster one before that, it is no
#   merit of the zeros: then the dense product of one token leaves memory speed unused. If it needs more
#   zeros, CSR's kernel does. The line of GB/s says how much of it each of them reaches.
# - With 64 tokens each weight is used 64 times, and arithmetic counts. A dense product loads many neighbours
#   at once, CSR picks inputs one by one; but CSR, too, reads a weight once for all 64. Whether it then needs
#   more zeros or fewer before it is the faster one, the two lines above say for this machine.
# - A matrix, or most of it, may fit into the processor's caches. Then its GB/s can exceed the memory's.
# - Any gain here is one against dense FP32: beside dense BF16, at 2
#   bytes a weight, the bytes of this kernel break even at 75 %.
# - Bitmask and 2:4 have no kernel in torch on a CPU. To unpack first, in torch operations, takes far longer
#   than the product. These formats save memory on disk, not time.
# - 2:4 is made for the matrix units of NVIDIA GPUs, which skip the zeros. The next table says what that
#   gives: products with the MLP's matrices of 7B and 13B models, pruned to 2:4, beside the dense ones. The
#   errors are distances from the FP32 product of the same pruned matrix.

# %% name="record-gpu"
records.gpu_table("gpu_sparse_2_4", [
    "matrix", "tokens", "sparse (us)", "dense (us)", "dense / sparse", "bytes / dense bytes",
    "error of sparse", "error of dense"], dtype="float16", kernel="cuSPARSELt")

# %% name="record-gpu-reading"
recorded = records.load("gpu_sparse_2_4")
if recorded:
    products = [row for row in recorded["results"]["rows"] if "sparse (us)" in row]
    few = [row for row in products if row["tokens"] < 4096]
    for kind in ("sparse (us)", "dense (us)"):
        times = [row[kind] for row in few]
        print(f"{kind}, 1 to 1,024 tokens: {min(times):,.0f} to {max(times):,.0f}")
    for dtype in ("float16", "bfloat16"):
        ratios = [row["dense / sparse"] for row in products
                  if row["tokens"] == 4096 and row["dtype"] == dtype]  # fmt: skip
        print(f"{dtype} at 4,096 tokens: dense / sparse {min(ratios):.2f} to {max(ratios):.2f}")
    share = products[0]["bytes / dense bytes"]
    print(f"bytes: {share:.4f} of dense, {16 * share:g} bits a weight in 16 bits")

# %% [markdown] name="record-gpu-verdict"
# The bytes are those of the formula above, and the errors are those of a dense product. The time is a
# disappointment. Up to 1,024 tokens a sparse product takes about as long whatever its size, while the
# dense one grows with it: what is timed there is hardly the product. Calls from Python were timed, and
# torch's sparse tensor has more to do at each call. How much of the time is the call, this run did not
# separate: that takes products recorded as a CUDA graph, which `course gpu-run` measures from now on. Each
# product was measured once. So the record has a gain at 4,096 tokens in FP16 with the matrices of 13B only;
# with those of 7B, in BF16, and for fewer tokens it has none.

# %% [markdown] name="masks-text"
# ## What masks cost
#
# `torch.nn.utils.prune` stores nothing sparsely. What it does to a model: here to the classifier of
# {lesson:qat}, MiniLM with 6 blocks, which tells good from bad film reviews. Half of the weights of each
# layer go. Then `prune.remove` makes the zeros permanent.

# %% name="masks"
del order
classifier, classifier_tokenizer = finetune.load_classifier(DEVICE)
reviews = data.reviews("test")[:400]
four = [text for text, _ in reviews[:4]]
sentences = classifier_tokenizer(four, padding=True, return_tensors="pt").to(DEVICE)
layers = layerwise.block_linears(classifier)


def state():
    """Bytes of weights, masks and products, and seconds for four sentences."""
    held = measure.weight_bytes(classifier).total
    # With a mask, `weight` is no parameter but the product of weight_orig and weight_mask, kept as well.
    held += sum(layer.weight.nbytes for layer in layers.values() if hasattr(layer, "weight_orig"))
    with measure.evaluating(classifier):
        return held, measure.latency(lambda: classifier(**sentences), warmup=5, repeats=40).median


accuracy = {"dense": finetune.evaluate(classifier, classifier_tokenizer, reviews)}
states = {"dense": state()}
for layer in layers.values():
    torch_prune.l1_unstructured(layer, "weight", amount=0.5)
states["with masks"] = state()
for layer in layers.values():
    torch_prune.remove(layer, "weight")
states["zeros made permanent"] = state()
measure.table({name: {"MB": round(held / 1e6, 1)} for name, (held, _) in states.items()})

# %% name="masks-time" timing=true
for name, (_, time) in states.items():
    print(f"{name:21} {time / states['dense'][1]:.2f} times the dense model's time")

# %% [markdown] name="masks-reading"
# With masks each pruned layer holds the weight as it was, the mask (a float for each weight!) and their
# product: three times its memory. The embeddings have no mask, so the whole model grows less. The product is
# computed again in each pass, so time goes *up*. Made permanent, the model has the size of the dense one, and
# its speed.
#
# ## Training on
#
# Masks do have a use: while the rest of the weights is trained on. The optimizer moves every weight, zeros
# too, so something must hold them. A callback of transformers' `Trainer` can do it after each step:

# %% name="hold-zeros"
print(inspect.getsource(unstructured.HoldZeros))

# %% [markdown] name="retrain-text"
# The classifier again, now with more zeros than it bears: magnitude, per layer. Then 30 short steps with 16
# sentences each, embeddings frozen. That is about 20 seconds.

# %% name="retrain"
SPARSITY, STEPS = 0.75, 30
unstructured.prune_model(classifier, by_size, SPARSITY)
accuracy["pruned"] = finetune.evaluate(classifier, classifier_tokenizer, reviews)

lessons = data.reviews("train")[:800]
ids = classifier_tokenizer([text for text, _ in lessons], truncation=True, max_length=finetune.MAX_LENGTH)
examples = [{"input_ids": i, "label": label} for i, (_, label) in zip(ids["input_ids"], lessons, strict=True)]
classifier.base_model.embeddings.requires_grad_(False)
with tempfile.TemporaryDirectory() as folder:
    arguments = TrainingArguments(
        folder, max_steps=STEPS, per_device_train_batch_size=16, learning_rate=3e-4, warmup_steps=3, seed=0,
        use_cpu=DEVICE == "cpu", save_strategy="no", logging_strategy="no", report_to="none",
        disable_tqdm=True)
    trainer = Trainer(classifier, arguments, train_dataset=examples, callbacks=[unstructured.HoldZeros()],
                      data_collator=DataCollatorWithPadding(classifier_tokenizer))
    trainer.remove_callback(PrinterCallback)
    trainer.train()
classifier.eval()
zeros = unstructured.share_of_zeros(classifier)
print(f"zeros after training: {zeros:.2%}")

# %% name="retrained" atol=12
accuracy["trained on"] = finetune.evaluate(classifier, classifier_tokenizer, reviews)
measure.table(accuracy)

# %% name="retrain-reading" timing=true
print(measure.compare(accuracy["pruned"], accuracy["dense"]).sentence(
    f"With {SPARSITY:.0%} zeros the classifier", "dense"))  # fmt: skip
print(measure.compare(accuracy["trained on"], accuracy["pruned"]).sentence(
    f"After {STEPS} steps of training it", "before them"))  # fmt: skip

# %% [markdown] name="replicate"
# ## What would not replicate elsewhere, and what holds anyway
#
# - Perplexities are of this model and this text. LLaMA-7B's grows by a quarter at 50 % with Wanda, this small
#   model's more than doubles.
# - Our baseline came out of a 4-bit file ({lesson:one_token}). Whether the original in 16 bits gives the same
#   order was not measured.
# - At which sparsity CSR starts to pay in *time* depends on the CPU, its caches and the kernel.
# - Bytes are the same everywhere: 9 bits a weight for bitmask and 2:4 at 50 % in 16 bits; CSR breaks even at
#   50 %.
#
# ## Recap
#
# - A pruning method is a score, and a rule for who competes with whom.
# - Magnitude looks at the weight, Wanda also at its input. SparseGPT lets the other weights make up for it.
# - A method that looks at the weights has a knee. Where it lies tells such methods apart.
# - 2:4 has less freedom than 50 % anywhere, and is the pattern that hardware can use.
# - Zeros save nothing until they are stored in another way and read by code made for it.
# - Zeros can be held while the rest is trained on. How much a short training brought back was printed with
#   its error.
#
# {Lesson:structured} takes out whole rows, heads and layers instead: less freedom still, but what is left is
# an ordinary, smaller matrix.
#
# ## The claim settled here
#
# C8: {claim:C8}.

# %% name="claim-c8" tolerance=0.05
chosen = ", ".join(f"{name} {short(at_half[name].value)}" for name in ("magnitude", "Wanda", "SparseGPT"))
of_dense = {name: held / states["dense"][0] for name, (held, _) in states.items()}
saves = of_dense["zeros made permanent"] < 0.99
print(f"C8: {'not refuted here' if saves else 'false'}. Random pruning at 50 % takes perplexity from "
      f"{dense.value:.1f} to {short(at_half['random'].value)}.")
print(f"    Choosing the weights: {chosen}.")
print(f"    And the zeros save {'memory' if saves else 'nothing'}: {of_dense['zeros made permanent']:.2f} "
      f"times the memory of the dense classifier, {of_dense['with masks']:.2f} times with torch's masks.")
print(f"    In 16 bits, a bitmask takes less than dense from {pays['bitmask']} % zeros on, CSR from "
      f"{pays['csr']} %.")

# %% name="claim-c8-time" timing=true
slower = {name: time / states["dense"][1] for name, (_, time) in states.items()}
print(f"    Time with zeros made permanent: {slower['zeros made permanent']:.2f} times dense; with masks "
      f"{slower['with masks']:.2f} times.")
where = f"from {starts[1]:.0%} zeros on" if starts[1] else f"not even at {shares[-1]:.0%} zeros"
print(f"    One token through CSR is faster than dense {where}.")
