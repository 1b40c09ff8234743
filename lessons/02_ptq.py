# %% [markdown] name="title" goal="What 8, 4, 3 and 2 bits a weight cost in perplexity and save in bytes"
# # Post-training quantization
#
# A trained model is a list of real numbers, each in 32 or 16 bits. How few bits can we keep before the
# model notices? **Quantization** stores each number as a small integer. **Post-training** means that the
# model is finished: nothing is trained again, the numbers are only rounded.
#
# You will derive the two ways of rounding, round a real model to 8, 4, 3 and 2 bits, and read off what it
# costs. Then come the numbers that flow *through* the model: they are harder, and you will see why. At
# the end the library that most people use for this answers a question in 8 and in 4 bits, and is timed.
#
# You need {lesson:one_token} (parameters, perplexity) and {lesson:formats} (number formats).

# %% name="imports"
import math
import os
from functools import partial

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from course_utils import data, explore, measure, models, plots, records, shapes
from course_utils.quantize import activations, affine, layerwise, packed
from course_utils.quantize.affine import Scheme

plots.style()

# %% [markdown] name="model-text"
# ## The model, the text and the yardstick
#
# Everything below is measured on one model and one text, so that only the quantization differs. The
# yardstick is the perplexity on Wikipedia articles that we use for nothing else. To stay quick we read
# the first 224 tokens of two articles. That is enough to see a ruin, and far too little to rank methods that
# lie close together. For those the course keeps a measurement on 16,384 tokens; it comes after each table.
#
# A second, different text serves for **calibration**: watching what flows through the model.

# %% name="load" tolerance=0.02
model, tokenizer = models.load_lm(LM, device=DEVICE)
shapes.require(model, "ptq")
articles = data.windows(data.wikipedia_tokens(tokenizer, "heldout", 2 * 1024), 1024)
heldout = articles[:, :224].flatten()
articles = data.windows(data.wikipedia_tokens(tokenizer, "calibration", 3 * 1024), 1024)
calibration = articles[:, :512]



def perplexity():
    return measure.perplexity(model, heldout, window=224, batch_size=1).value


linears = layerwise.block_linears(model)
original = {name: layer.weight.detach() for name, layer in linears.items()}  # never changed below
fp32 = measure.perplexity(model, heldout, window=224, batch_size=1)
print(fp32)

# %% [markdown] name="what-is-quantized"
# Which numbers do we round? A block of the model holds seven **linear layers**: matrices `[out, in]` that
# a vector of `in` numbers is multiplied with. They are most of the model. The embedding table and the
# norms stay as they are, in this lesson as in most libraries.

# %% name="shares"
in_linears = sum(weight.numel() for weight in original.values())
hidden = model.config.hidden_size
everything = sum(parameter.numel() for parameter in model.parameters())
print(f"{len(linears)} linear layers hold {in_linears:,} of {everything:,} parameters "
      f"({in_linears / everything:.1%}).")

# %% [markdown] name="absmax-text"
# ## Absmax: one factor, and round
#
# We want integers. The simplest way: divide by a **scale**, and round.
#
# $$q = \mathrm{round}(x / s) \qquad x \approx s \cdot q$$
#
# With $b$ bits there are $2^b$ integers, from $-2^{b-1}$ to $2^{b-1}-1$: with 4 bits from -8 to 7. The
# scale is the distance of two neighbours on the grid, so the rounding error is at most $s/2$. A small
# scale is good; but the largest number must still fit. So the largest absolute value, the **absmax**,
# decides:
#
# $$s = \frac{\max |x|}{\text{edge of the grid}}$$
#
# What is the edge? There are two habits. The *mirrored* grid leaves the lowest integer unused and takes
# $2^{b-1}-1$ (for 8 bits 127): INT8 kernels like it. The *full* grid takes $2^{b-1}-\frac12$ and uses
# every integer; the largest positive value is cut by half a step, as in any rounding. With 8 bits
# nobody sees the difference. With 3 bits the mirrored grid wastes one level of eight.

# %% name="absmax-by-hand"
row = original[next(iter(original))][0, :8].float().cpu().clone()
bits = 3
scale = row.abs().max() / (2 ** (bits - 1) - 0.5)
q = torch.clamp(torch.round(row / scale), -4, 3)
print("weights  ", " ".join(f"{x:7.3f}" for x in row.tolist()))
print("integers ", " ".join(f"{x:7.0f}" for x in q.tolist()), f"   scale {scale:.4f}")
print("restored ", " ".join(f"{x:7.3f}" for x in (q * scale).tolist()))
print(f"largest error {(q * scale - row).abs().max() / scale:.2f} of a step")

# %% [markdown] name="ex-absmax-text"
# **Your turn.** Write the scale. Each row, that is the last dimension, gets its own. Mind a row of zeros.

# %% name="ex-absmax" exercise="course_utils.quantize.affine:absmax_scale" points=2

# %% [markdown] name="zero-point-text"
# ## Zero point: a range that is not symmetric
#
# Absmax spends as many integers below zero as above. Weights in a small group are seldom so even: if they
# run from -0.1 to 0.3, half of the negative integers stay unused. So measure both ends:
#
# $$s = \frac{\max x - \min x}{2^b - 1} \qquad z = \mathrm{round}(-\min x / s) \qquad x \approx s\,(q - z)$$
#
# The integers now run from 0 to $2^b-1$, and the **zero point** $z$ is the one that means 0.0. It is an
# integer itself, so 0.0 stays exact: padding and zeros in the data cost no error. For that the range must
# contain 0; where it does not, it is stretched. The price is one more number to store beside each scale.

# %% name="plot-grids"
def lopsided(values):
    """0 when the values reach as far to both sides, 1 when all have one sign."""
    return ((values.max() + values.min()) / (values.max() - values.min())).abs().item()


best = max(original, key=lambda name: lopsided(original[name][0, :64]))
group = original[best][0, :64].float().cpu().clone()
fig, axes = plt.subplots(2, 1, figsize=(7.5, 3.2), sharex=True)
grids = {}
for axis, symmetric in zip(axes, (True, False), strict=True):
    scheme = Scheme(bits=3, group=64, symmetric=symmetric)
    step, zero = affine.parameters(group, scheme)
    grids[symmetric] = affine.from_integers(torch.arange(scheme.qmin, scheme.qmax + 1), step, zero)
    axis.vlines(grids[symmetric], 0, 1, color=plots.PALETTE["vermilion"], lw=1.5)
    axis.plot(group, torch.linspace(0.1, 0.9, 64), "o", ms=4, color=plots.PALETTE["blue"])
    axis.set(yticks=[], title=f"{'absmax' if symmetric else 'zero point'}: step {step.item():.3f}")
axes[1].set_xlabel("weight")
plots.show(fig, f"Sixty-four neighbouring weights of {best} as dots, from {group.min():.2f} to "
           f"{group.max():.2f}. Vertical lines are the eight levels of a 3-bit grid. Absmax reaches equally "
           "far to both sides; zero point covers just the range of the weights, with closer lines.")

# %% [markdown] name="ex-zero-point-text"
# **Your turn.** Scale and zero point of each row, as floats that hold whole numbers where they must.

# %% name="ex-zero-point" exercise="course_utils.quantize.affine:zero_point_params" points=2

# %% [markdown] name="groups-text"
# ## How many weights share a scale?
#
# The error is at most half a step, and the step grows with the largest value among those that share the
# scale. One large weight in a matrix makes the step large for all of them. So let fewer share:
#
# - **per tensor**: one scale for the whole matrix;
# - **per channel**: one for each row, that is for each output;
# - **per group**: one for each 64 (or 32, or 128) neighbours in a row.
#
# Nothing is free: scales have to be stored. With 4 bits, groups of 64 and scales in 16 bits, a weight
# costs $4 + 16/64 = 4.25$ bits; with a zero point of 4 bits on top $4 + 20/64 = 4.31$. The group has to
# divide the row: this model is 576 wide, and 128 does not divide 576. The library says so:

# %% name="group-128"
try:
    affine.quantize(torch.ones(2, 576), Scheme(bits=4, group=128))
except ValueError as error:
    print(error)

# %% [markdown] name="ex-groups-text"
# **Your turn.** Round a matrix in groups, full symmetric grid, and return real numbers again: about 7
# lines. You may call `affine.absmax_scale`. Raise `ValueError` when the group does not divide the width.

# %% name="ex-groups" exercise="inline" points=3
def fake_quantize_groups(weight: Tensor, bits: int, group: int) -> Tensor:
    """The weight [out, in] rounded to `bits`-bit integers, one absmax scale for each `group` neighbours.

    Full grid: integers from -2^(bits-1) to 2^(bits-1) - 1, scale = absmax / (2^(bits-1) - 1/2).
    Raises ValueError when `group` does not divide the width. Returns the dtype of `weight`.
    """
    ### BEGIN SOLUTION
    rows, width = weight.shape
    if width % group:
        raise ValueError(f"group {group} does not divide the width {width}")
    values = weight.reshape(rows, width // group, group)
    scale = affine.absmax_scale(values, bits)
    q = torch.round(values / scale).clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return (q * scale).reshape(rows, width)
    ### END SOLUTION


# %% [markdown] name="explore-text"
# 3 bits in groups of 16 and 4 bits with one scale a row take about the same room. Which of the two stays
# closer to the weights of this matrix? Guess first, then run the cell and move the sliders. (Without a
# running kernel you see three states.)

# %% name="explore" tolerance=0.02
matrix = original[next(iter(original))].float().clone()  # a view would keep the whole file of weights
width = matrix.shape[1]
explore.explore(
    partial(explore.draw_rounding, weight=matrix),
    still=[{"bits": 3, "group": 16}, {"bits": 4, "group": width}, {"bits": 4, "group": 64}],
    bits=range(2, 9),
    group=sorted({group for group in (8, 16, 32, 64, 128, 256, width) if width % group == 0}),
)

# %% [markdown] name="table-text"
# ## Bits against perplexity
#
# Now the whole model: every linear layer is rounded (**round to nearest**), then the perplexity is
# measured. This is *fake* quantization: the rounded numbers are stored as floats again. It shows the
# damage exactly, and saves no memory yet. A model that guesses blindly among all tokens would have a
# perplexity of the vocabulary's size, 49,152; values in the thousands mean that nothing is left, so they
# are shown as such. Where a grid is ruined with some bits, fewer bits are not tried.

# %% name="table" tolerance=0.04
def rounded_call(scheme):
    """Each layer rounds its weight when it is called: the model itself is not changed, nothing is copied."""

    def call(name, layer, x):
        return F.linear(x, affine.fake_quantize(layer.weight, scheme), layer.bias)

    return call


def rounded(scheme):
    """Perplexity with every linear layer rounded by the scheme, and bits a weight over all layers."""
    shapes = [weight.shape for weight in original.values()]
    stored = sum(affine.bits_per_weight(scheme, width, rows) * rows * width for rows, width in shapes)
    with activations.linear_calls(model, rounded_call(scheme)):
        return perplexity(), stored / in_linears


def readable(value):
    return f"{value:.2f}" if value < 1000 else "over 1,000"


schemes = [Scheme(bits, group) for bits in (8, 4, 3, 2) for group in ("tensor", None, 64)]
schemes = [s for s in schemes if s not in (Scheme(3, "tensor"), Scheme(2, "tensor"), Scheme(2, None))]
schemes += [Scheme(bits, 64, symmetric=False) for bits in (4, 3)]
results = {scheme: rounded(scheme) for scheme in tqdm(schemes, leave=False)}
rows = {"FP32": {"bits a weight": "32", "perplexity": readable(fp32.value)}}
for scheme, (value, stored) in results.items():
    rows[str(scheme)] = {"bits a weight": f"{stored:.3f}", "perplexity": readable(value)}
print(f"{len(heldout):,} tokens, window 224")
measure.table(rows)

# %% name="plot-curve"
fig, axis = plt.subplots()
curves = (("tensor", "per tensor", "s"), (None, "per channel", "o"), (64, "groups of 64", "^"))
for shared, label, marker in curves:
    points = [results[Scheme(bits, shared)] for bits in (2, 3, 4, 8) if Scheme(bits, shared) in results]
    axis.plot([stored for _, stored in points], [min(p, 1e6) for p, _ in points], marker=marker, label=label)
points = [results[Scheme(bits, 64, symmetric=False)] for bits in (3, 4)]
axis.plot([stored for _, stored in points], [p for p, _ in points], "D--", label="groups of 64, zero point")
axis.axhline(fp32.value, color=plots.PALETTE["black"], lw=1, ls="--", label="FP32")
axis.axhline(model.config.vocab_size, color="gray", lw=1, ls=":", label="blind guessing")
axis.set(yscale="log", xlabel="bits a weight, scales and zero points counted", ylabel="perplexity",
         title="Rounding to nearest: bits against perplexity")
axis.legend()
plots.show(fig, "Perplexity over bits a weight for round to nearest, log scale, cut at one million. All "
           "curves meet FP32 at 8 bits, except per tensor, which is "
           f"{results[Scheme(8, 'tensor')][0] / fp32.value - 1:.0%} above. At 4 bits per tensor is "
           "ruined, groups of 64 lie lowest. At 3 bits only groups keep some sense, lower with a zero point. "
           "At 2 bits groups fail too.")

# %% [markdown] name="table-record-text"
# Now the same on 16,384 tokens, compared window by window with FP32 (`course bench ptq_ranking` repeats it).

# %% name="table-record"
record = records.load("bench_ptq_ranking")
ranked = {}


def say(name, other):
    """A comparison from the record."""
    print(measure.compare(ranked[name], ranked[other]).sentence(name, other))


if record is None:
    print("no recorded run yet: course bench ptq_ranking makes one")
else:
    print(records.provenance_line(record))
    ranked = {row["method"]: measure.Perplexity(**row["result"]) for row in record["results"]["rows"]}
    for name, result in ranked.items():
        print(f"{name:32} perplexity {readable(result.value)}")
    print()
    for name, other in (
        ("INT8, a scale a row", "FP32"),
        ("INT8, a scale a matrix", "INT8, a scale a row"),
        ("INT4, groups of 64", "INT4, a scale a row"),
        ("INT4, groups of 64, zero point", "INT4, groups of 64"),
        ("INT3, groups of 64, zero point", "INT3, groups of 64"),
    ):
        say(name, other)

# %% [markdown] name="table-meaning"
# Read the first sentence with care. Either it shows a difference, then its size is what 8 bits cost; or it
# does not, then the interval says how much they could cost at most.
#
# At 4 bits it is the *sharing* that decides, and what a group has of its own: a quarter of a bit a weight
# buys it. Rounding to nearest ends between 4 and 3 bits. {Lesson:gptq} and {lesson:awq} push that limit,
# {lesson:qat} trains against it.
#
# This is a small model: published losses at 4 bits for models with billions of parameters are a few percent.
# And its weights come out of a 4-bit file ({lesson:one_token}).

# %% [markdown] name="predict-saving-text"
# ## What is really saved?
#
# **Predict first.** The linear layers (79 % of the parameters) go from FP32 to INT8, with one 16-bit
# scale for each row. The embedding (21 %) and the norms stay in FP32. By how many percent does the
# *model* shrink?

# %% name="predict-saving" predict="ptq.predict_saving" points=1
### BEGIN SOLUTION
prediction = 100 * 0.79 * (1 - 1 / 4)  # percent: three of four bytes, on 79 % of the parameters
### END SOLUTION

# %% [markdown] name="packed-text"
# To save memory the integers must be stored as integers. `packed.QuantLinear` is a linear layer whose
# weight is a row of bytes: two 4-bit integers in each, or eight 3-bit integers in three. When it is
# called it unpacks them, multiplies by the scales, and then does an ordinary matrix product.

# %% name="packed"
before = measure.weight_bytes(model).total
packed_bytes = {}
for scheme in (Scheme(8), Scheme(4, 64)):
    layers = packed.replace_linears(model, scheme)
    packed_bytes[scheme] = measure.weight_bytes(model).total
    held = sum(measure.weight_bytes(layer).total for layer in layers.values())
    computed = sum(affine.bits_per_weight(scheme, w.shape[1]) * w.numel() / 8 for w in original.values())
    if scheme.bits == 4:
        answer = models.ask(model, tokenizer, "What is the capital of France?", max_new_tokens=8)
    print(f"{scheme}: linear layers {held / 1e6:.2f} MB (computed {computed / 1e6:.2f}), model "
          f"{packed_bytes[scheme] / 1e6:.1f} MB: {1 - packed_bytes[scheme] / before:.1%} less than FP32")
    for name, layer in linears.items():  # the float layers go back to their places
        model.set_submodule(name, layer)
layers = layer = None  # frees the packed layers
measure.release_memory()

# %% [markdown] name="packed-answers-text"
# Does the model packed into 4 bits still answer? The words are the same kind of check as in
# {lesson:one_token}: a glance, no measurement.

# %% name="packed-answers"
print(answer)

# %% [markdown] name="activations-text"
# ## Activations: the numbers that flow through
#
# So far only the weights are integers. The inputs of a layer, the **activations**, are still floats, and
# so is the matrix product. Hardware can multiply 8-bit integers much faster than floats, but it needs
# *both* sides as integers. Can activations be rounded to 8 bits as harmlessly as weights?
#
# Let us look at real ones. `layerwise.collect_statistics` walks through the model block by block, feeds
# it the calibration text, and notes what goes into every linear layer: here the largest absolute value of
# each input channel, and a sample of whole input vectors.

# %% name="statistics"
def absmax_and_sample():
    return layerwise.Together(top=layerwise.AbsMax(), sample=layerwise.Sample(128))


statistics = layerwise.collect_statistics(model, calibration, absmax_and_sample)
absmax = {name: statistic.top.absmax for name, statistic in statistics.items()}
print(f"{calibration.numel():,} calibration tokens, {len(absmax)} layers")
measure.release_memory()

# %% name="outliers" tolerance=0.05
kinds = list(dict.fromkeys(name.rsplit(".", 1)[1] for name in absmax))
rows = {}
for kind in kinds:
    tops = torch.stack([top.max() for name, top in absmax.items() if name.endswith(kind)])
    usual = torch.stack([top.median() for name, top in absmax.items() if name.endswith(kind)])
    rows[kind] = {"usual channel": f"{usual.median():.2f}", "largest, median layer": f"{tops.median():.1f}",
                  "largest of all": f"{tops.max():.1f}", "in block": int(tops.argmax())}
measure.table(rows)

# %% name="plot-outliers" tolerance=0.05 atol=0.1
spiky = max(absmax, key=lambda name: (absmax[name].max() / absmax[name].median()).item())
fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6))
left.plot(absmax[spiky].cpu(), lw=0.8)
left.set(xlabel="input channel", ylabel="largest |activation|", yscale="log",
         title=spiky.removeprefix("model."))
groups = shapes.input_groups(model)
drawn = [names[0].rsplit(".", 1)[1] for names in (groups[0], groups[-2], groups[-1])]  # q, gate, down
for kind in drawn:
    right.plot([top.max().item() for name, top in absmax.items() if name.endswith(kind)], label=kind)
right.axhline(6, color=plots.PALETTE["black"], lw=1, ls=":", label="6.0")
right.set(xlabel="block", yscale="log", title="Largest input of each block")
right.legend()
plots.show(fig, f"Left: largest absolute input of each channel of {spiky}, log scale: a typical channel "
           f"reaches {absmax[spiky].median():.1f}, a few rise far above, one to {absmax[spiky].max():.0f}. "
           f"Right: largest input over the depth of the model for {drawn[0]}, {drawn[1]} and {drawn[2]}; "
           f"{drawn[2]} is far above the other two in a few blocks.")

# %% [markdown] name="outliers-meaning"
# A few channels are ten to more than a thousand times as large as the usual one. They are called
# **outliers**. Most language models that were looked at have them; models with a gate behind their
# attention hardly do (Qiu et al., "Gated Attention for Large Language Models", arXiv 2505.06708). The
# largest sit at the input of `down_proj` in a few blocks.
#
# **Predict first.** Suppose the largest value at the input of such a layer is 2400. One scale serves the
# whole tensor, integers go from -127 to 127. How far apart are two neighbouring values that can still be
# told apart?

# %% name="predict-step" predict="ptq.predict_step" points=1
### BEGIN SOLUTION
prediction = 2400 / 127
### END SOLUTION

# %% name="rounded-to-zero" tolerance=0.1
x = statistics[spiky].sample.inputs
static, _ = activations.quantize_static(x, absmax[spiky].max())
per_token, _ = activations.quantize_per_token(x)
print(f"{spiky}: largest input {absmax[spiky].max():.0f}, typical |x| {x.abs().median():.2f}")
print(f"rounded to 0 with one scale for all:      {(static == 0).float().mean():.1%}")
print(f"rounded to 0 with one scale for a token:  {(per_token == 0).float().mean():.1%}")

# %% [markdown] name="static-dynamic-text"
# Two ways to choose the scale of activations:
#
# - **static**: one number for each layer, found on calibration text and then fixed. Nothing has to be
#   computed at run time. All tokens share the scale of the largest one ever seen.
# - **dynamic**: the scale is computed from the values themselves, while the model runs. It can be one for
#   the whole tensor, or one for each token (row): then an outlier spoils only its own token.
#
# The number of bits is 8 in both cases. What is dynamic is the scale, not the precision. Here it is for
# two tokens of the sample:

# %% name="dynamic-scales" tolerance=0.05
order = x.abs().amax(dim=1).argsort()
q, scales = activations.quantize_per_token(x[order[[0, -1]]])
for name, values, scale in zip(("the calmest token", "the wildest token"), q, scales, strict=True):
    print(f"{name}: scale {scale.item():.4f}, integers from {values.min():.0f} to {values.max():.0f}: 8 bits")

# %% [markdown] name="w8a8-text"
# Weights in INT8 per channel and activations in INT8 is called **W8A8**. What does each way cost?

# %% name="w8a8" tolerance=0.1
def per_tensor_call(name, layer, x):
    """Dynamic, but one scale for the whole tensor."""
    q, scale = activations.quantize_static(x, x.abs().max())
    return F.linear(q * scale, layer.weight, layer.bias)


int8 = Scheme(8, full_range=False)
spiky_weight = original[spiky].float().clone()  # from here on the weights of the model are INT8
layerwise.round_to_nearest(model, int8)
w8a8 = {"FP32": fp32.value}
for label, call in {
    "W8A8 dynamic, a scale a token": activations.dynamic_call,
    "W8A8 dynamic, a scale a tensor": per_tensor_call,
    "W8A8 static, a scale a layer": activations.static_call(absmax),
}.items():
    with activations.linear_calls(model, call):
        w8a8[label] = perplexity()
measure.table({label: {"perplexity": round(value, 2)} for label, value in w8a8.items()})

# %% name="w8a8-record"
if ranked:
    for name, other in (
        ("W8A8, a scale a token", "INT8, a scale a row"),
        ("W8A8, a scale a tensor", "W8A8, a scale a token"),
        ("W8A8, static", "W8A8, a scale a tensor"),
    ):
        say(name, other)

# %% [markdown] name="w8a8-meaning"
# The bits are the same in all three. What differs is how many values share a scale, and so how far a few huge
# ones spoil it for the others. Two well-known methods deal with them.
#
# ## LLM.int8(): keep the outliers out
#
# Dettmers and others (arXiv 2208.07339) take the outlier channels out of the product. A channel where
# some token reaches 6.0 is multiplied in floating point, everything else in 8 bits:
#
# $$x W^T = \underbrace{x_{\text{regular}} W_{\text{regular}}^T}_{\text{INT8}}
#         + \underbrace{x_{\text{outlier}} W_{\text{outlier}}^T}_{\text{float}}$$
#
# **Your turn.** Split both factors.

# %% name="ex-split" exercise="course_utils.quantize.activations:split_outliers" points=2

# %% name="llm-int8" tolerance=0.04
taken, channels = 0, 0


def llm_int8_call(name, layer, x):
    global taken, channels
    outlier = activations.split_outliers(x, layer.weight)[2].shape[-1]
    taken, channels = taken + outlier, channels + x.shape[-1]
    return activations.llm_int8_linear(x, layer.weight, layer.bias, threshold=6.0)


def original_model():
    """The model as it was loaded. The changed one leaves the memory first: there is room for one.

    (Its weights are one block of memory. A single slice of a weight, held by a variable, keeps all of it:
    that is why slices are cloned above.)
    """
    global model, tokenizer, linears, original
    model = tokenizer = linears = original = None
    measure.release_memory()
    model, tokenizer = models.load_lm(LM, device=DEVICE)


original_model()
with activations.linear_calls(model, llm_int8_call):
    w8a8["LLM.int8(), threshold 6.0"] = perplexity()
print(f"perplexity {w8a8['LLM.int8(), threshold 6.0']:.2f} against "
      f"{w8a8['W8A8 dynamic, a scale a token']:.2f} without the split and {fp32.value:.2f} in FP32")

# %% name="llm-int8-share" tolerance=0.1
print(f"{taken / channels:.1%} of the input channels were multiplied in floating point.")

# %% [markdown] name="llm-int8-meaning"
# The split works, and it costs: the channels have to be found, gathered and multiplied apart, for each
# input anew. In the paper it is slower than FP16 below 6.7 billion parameters. Keep that in mind for the
# timing at the end.
#
# Is our version what the library does? Not quite. Ours multiplies the outlier channels with weights as they
# were; bitsandbytes has the whole weight in INT8 and takes the outlier columns out of that, rounded. The same
# weight and the same real input through its `Linear8bitLt`: errors are root mean squares, as a share of the
# output's own. And the perplexity of both, from the record.

# %% name="bnb-layer" tolerance=0.1 atol=0.03
from bitsandbytes.nn import Linear8bitLt  # noqa: E402

weight = spiky_weight
theirs = Linear8bitLt(weight.shape[1], weight.shape[0], bias=False, has_fp16_weights=False, threshold=6.0)
theirs.load_state_dict({"weight": weight.cpu()})
with torch.no_grad():
    theirs = theirs.to(DEVICE)(x)
    ours = activations.llm_int8_linear(x, weight)
    exact = x @ weight.T
size = exact.square().mean().sqrt()
of_ours, of_theirs, between = (100 * (a - b).square().mean().sqrt() / size
                               for a, b in ((ours, exact), (theirs, exact), (ours, theirs)))  # fmt: skip
print(f"in percent of the output's size: error of ours {of_ours:.2f}, of bitsandbytes {of_theirs:.2f}, "
      f"difference of the two {between:.2f}")
if ranked:
    say("LLM.int8(), ours", "W8A8, a scale a token")
    say("LLM.int8(), bitsandbytes", "LLM.int8(), ours")

# %% [markdown] name="smooth-text"
# ## SmoothQuant: move the difficulty into the weights
#
# Xiao and others (arXiv 2211.10438) keep everything in 8 bits and a static scale. Divide each input
# channel by a factor $s_j$ and multiply the matching column of the weight by it. The product is the same,
# but now the activations are tamer and the weights a little wilder:
#
# $$x W^T = (x / s)\,(W s)^T \qquad s_j = \frac{\max|x_j|^{\alpha}}{\max|W_j|^{1-\alpha}}$$
#
# The exponent $\alpha$ says how much of the difficulty is moved. The division takes no time at all
# where a **norm** comes before the layer: the norm multiplies each channel by a weight anyway, so it
# takes $1/s_j$ along.
#
# **Your turn.**

# %% name="ex-smoothing" exercise="course_utils.quantize.activations:smoothing_scale" points=2

# %% [markdown] name="fold-text"
# First the promise: before anything is rounded, the smoothed model must compute what the original did.

# %% name="fold"
prompt = heldout[:64].unsqueeze(0).to(DEVICE)
with torch.inference_mode():
    plain = model(prompt).logits
    activations.smooth(model, {name: statistic.top for name, statistic in statistics.items()}, alpha=0.5)
    smoothed = model(prompt).logits
agree = (plain - smoothed).abs().max() < 1e-3 * plain.abs().max()
print("the logits agree to one part in a thousand" if agree else "the logits differ: the folding is wrong")

# %% [markdown] name="sweep-text"
# Which layers can it reach? `q`, `k`, `v` read the first norm of a block, `gate` and `up` the second. `o`
# and `down` read no norm, and `down` is where the largest outliers are. So the sweep gives the five
# reachable kinds a static scale, and `o` and `down` one scale a token.

# %% name="sweep" tolerance=0.1
readers = shapes.norm_readers(model)  # of each norm, by name inside a block
reached = tuple(name for names in readers for name in names)


def mixed_call(largest):
    static_call = activations.static_call(largest)

    def call(name, layer, x):
        return (static_call if name.endswith(reached) else activations.dynamic_call)(name, layer, x)

    return call


sweep = {}
tops = {name: statistic.top for name, statistic in statistics.items()}
for alpha in (None, 0.25, 0.5, 0.75, 0.9):
    original_model()
    largest = absmax if alpha is None else activations.smooth(model, tops, alpha)
    layerwise.round_to_nearest(model, int8)
    with activations.linear_calls(model, mixed_call(largest)):
        sweep[alpha] = perplexity()
    print(f"{'not smoothed' if alpha is None else f'alpha {alpha:.2f}':14} perplexity {sweep[alpha]:.2f}")

# %% name="plot-smooth"
original_model()
query = readers[0][0]
name = max((name for name in absmax if name.endswith(query)), key=lambda name: absmax[name].max().item())
shared = [model.get_submodule(name.removesuffix(query) + other) for other in readers[0]]  # q, k, v
w_absmax = torch.cat([layer.weight.detach() for layer in shared]).abs().amax(dim=0)
factor = activations.smoothing_scale(absmax[name], w_absmax, 0.5)
fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6))
for values, color in ((absmax[name], "vermilion"), (absmax[name] / factor, "blue")):
    left.plot(values.cpu(), lw=0.8, color=plots.PALETTE[color])
left.set(xlabel="input channel", ylabel="largest |activation|", yscale="log",
         title=name.removeprefix("model."))
left.legend(["before", "after, alpha 0.5"])
alphas = [alpha for alpha in sweep if alpha is not None]
right.plot(alphas, [sweep[alpha] for alpha in alphas], "o-", label="smoothed")
right.axhline(sweep[None], color=plots.PALETTE["vermilion"], ls="--", label="not smoothed")
right.axhline(fp32.value, color=plots.PALETTE["black"], ls=":", label="FP32")
right.set(xlabel="alpha", ylabel="perplexity", xticks=alphas, title="Static W8A8 of the layers after a norm")
right.legend()
plots.show(fig, "Left: largest input of each channel of one query layer, log scale. Before smoothing one "
           "channel stands far above the rest, after smoothing with alpha 0.5 all are closer together. "
           "Right: perplexity over alpha, the unsmoothed model as a dashed and FP32 as a dotted line.")

# %% name="smooth-reading"
if ranked:
    say("static after norms, smoothed", "static after norms")
    say("static after norms, smoothed", "W8A8, a scale a token")

# %% [markdown] name="smooth-meaning"
# The record has alpha 0.5, set in advance: the lowest of the sweep was found on the text that scores it.
# Smoothing does not reach the largest outliers of this model, at the input of
# `down`: for those it takes a scale a token, the split of LLM.int8(), or a rotation of the channels
# (QuaRot, SpinQuant).
#
# ## What "dynamic quantization" means
#
# The term is often misread as *the model picks its precision by the input*. torch has a function of that
# name, and it can be asked. We hand it the original model and look at one layer before and after two
# inputs of very different size.

# %% name="torch-dynamic" tolerance=0.05
shared = None
speeds = {"FP32": measure.generation_speed(model, tokenizer, prompt_tokens=64, new_tokens=8, repeats=1)}
sizes = {"FP32": before}
said = {"FP32": models.ask(model, tokenizer, "What is the capital of France?", max_new_tokens=8)}
where = model.name_or_path
torch_dynamic = torch.ao.quantization.quantize_dynamic(
    model.to("cpu"), {name: torch.ao.quantization.per_channel_dynamic_qconfig for name in absmax},
    dtype=torch.qint8, inplace=True)
layer = torch_dynamic.get_submodule(spiky)
print(type(layer).__name__, "with weights in", layer.weight().dtype)
with torch.inference_mode():
    for factor in (1, 1000):
        layer(factor * x.cpu())
        print(f"after inputs times {factor}: still {layer.weight().dtype}")
    w8a8["torch.ao quantize_dynamic"] = perplexity()
print(f"perplexity {w8a8['torch.ao quantize_dynamic']:.1f}")

# %% [markdown] name="torch-dynamic-meaning"
# The type of the layer is fixed when it is made: 8 bits, whatever comes. What it computes anew for each
# input is the scale (and zero point) of the activations: one for the whole tensor. Two causes of its bad
# perplexity are known, and were not measured apart here. The outliers at the input of `down` set the scale
# for all tokens, as in the row *a scale a tensor* above. And on most processors it uses only 7 of the 8 bits
# of the activations, so that 16-bit sums cannot overflow.

# %% [markdown] name="bnb-text"
# ## The library that people use
#
# bitsandbytes is the usual way to load a model in 8 or 4 bits. Many tutorials write it like this. Does it
# work?

# %% name="claim-c5-try"
torch_dynamic = layer = model = statistics = None
measure.release_memory()
try:
    AutoModelForCausalLM.from_pretrained(where, load_in_8bit=True)
    c5 = None
except TypeError as error:
    c5 = str(error)
    print("TypeError:", c5)

# %% [markdown] name="bnb-load-text"
# Today the wish goes into a config. **NF4** is the 4-bit format of {lesson:formats} with 16 unevenly spaced
# levels, one scale for each 64 weights. Four versions of the model answer the same question; each is
# weighed and timed. Mind one trap when you save such a model: with bitsandbytes 0.50 on a CPU an NF4
# model that was saved *after* its first forward pass loads as garbage, without any error. Save first, run
# later.

# %% name="bnb" timing=true
os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"  # transformers then loads weight by weight: less memory
versions = {
    "BF16": dict(dtype=torch.bfloat16),
    "INT8 bitsandbytes": dict(
        dtype=torch.float32,
        quantization_config=BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=6.0)),
    "NF4 bitsandbytes": dict(
        dtype=torch.float32,
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)),
}
quality = {"FP32": fp32.value}
for label, options in versions.items():
    with measure.frequent_collection():  # bitsandbytes leaves FP32 copies behind for the garbage collector
        model = AutoModelForCausalLM.from_pretrained(where, device_map=DEVICE, **options).eval()
        for rest in model.parameters():  # what was not quantized is a view of the whole FP32 file: copy it
            rest.data = rest.data.clone() if rest.dtype == torch.float32 else rest.data
    measure.release_memory()
    sizes[label] = measure.weight_bytes(model).total
    said[label] = models.ask(model, tokenizer, "What is the capital of France?", max_new_tokens=8)
    speeds[label] = measure.generation_speed(model, tokenizer, prompt_tokens=64, new_tokens=8, repeats=1)
    quality[label] = perplexity()
    model = None
    measure.release_memory()
print(measure.machine_card())
ratio = {label: speeds[label].decode_rate / speeds["FP32"].decode_rate for label in speeds}
measure.table({label: (speeds[label], {"decode, FP32 = 1": round(ratio[label], 2)}) for label in speeds})

# %% name="bnb-quality" tolerance=0.04
measure.table({label: {"weights (MB)": round(sizes[label] / 1e6, 1), "perplexity": round(quality[label], 2),
                       "answer": said[label]} for label in sizes})

# %% name="bnb-slower" timing=true
slower = [label for label in speeds if speeds[label].decode.q25 > speeds["FP32"].decode.q75]
print("Of the steps on this machine, three quarters took longer than three quarters of FP32's:",
      ", ".join(slower) or "none")
print("The prompt, read once by each, FP32 = 1:", ", ".join(
    f"{label} {now.prefill_rate / speeds['FP32'].prefill_rate:.2f}" for label, now in speeds.items()))

# %% [markdown] name="bnb-meaning"
# Fewer bytes are not automatically more speed. Decoding is bound by the bytes that are read
# ({lesson:one_token}): the bound of 8 bits is up to 4 times that of 32, that of 4 bits up to 8 times. But the
# integers have to be unpacked, scaled, split at the outliers and multiplied by a kernel made for it. Where
# that kernel is missing, the work eats the gain. {Lesson:engines} meets engines whose kernels do it.
#
# ## What would not replicate elsewhere, and what holds anyway
#
# - The perplexities belong to this model, this text and this window. Published losses of larger models are
#   smaller.
# - Speeds belong to this processor and these library versions. On a GPU the order of the table is
#   another.
# - That the step follows the largest value, that fewer values to a scale leave a smaller error and that an
#   unquantized embedding limits the saving, holds everywhere. Outliers are the trouble of the activations of
#   most language models, not of all (see above).
#
# ## Recap
#
# - Absmax: scale = largest |x| / edge. Zero point: the range may be lopsided, one more integer to store.
#   Error: at most half a step.
# - Count the overhead: 4 bits in groups of 64 are 4.25 bits a weight.
# - Weights alone: 8 bits with a scale a row change next to nothing, 4 bits in groups are usable, below that
#   round to nearest fails.
# - Activations: a scale a token, or split (LLM.int8()), or smooth; one static scale for all fails on
#   outliers.
# - Dynamic quantization computes scales at run time. The bit width is fixed.
#
# ## The claims settled here

# %% name="claim-c2"
whole = 1 - packed_bytes[Scheme(8)] / before
layers_only = 1 - affine.bits_per_weight(Scheme(8), hidden) / 32
against_half = 1 - affine.bits_per_weight(Scheme(8), hidden) / 16
print(f"C2: {'too low' if whole > 0.4 else 'right'}. The article says that 8 bits save up to 40 %.")
print(f"    Quantized weights shrink by {layers_only:.0%} against FP32, by {against_half:.0%} against FP16.")
print(f"    The whole model shrinks by {whole:.0%} against FP32, because {1 - in_linears / everything:.0%} "
      "of the parameters stay as they are.")

# %% name="claim-c3" timing=true
byte_limit = {"INT8 bitsandbytes": sizes["FP32"] / sizes["INT8 bitsandbytes"],
              "NF4 bitsandbytes": sizes["FP32"] / sizes["NF4 bitsandbytes"]}
claimed = {"INT8 bitsandbytes": 1200 / 70, "NF4 bitsandbytes": 1200 / 50}
beyond = all(times > byte_limit[label] and times > ratio[label] for label, times in claimed.items())
print(f"C3 (speed): {'false' if beyond else 'not refuted here'}. "
      "FP32 1200 ms, INT8 70 ms, INT4 50 ms would be 17 and 24 times faster.")
print("    At equal distance from its bound, fewer bytes give at most 4 and 8 times, for weights alone.")
for label, article in claimed.items():
    print(f"    {label}: the bytes of this model allow {byte_limit[label]:.1f} times, measured "
          f"{ratio[label]:.2f} times. The article says {article:.0f} times.")

# %% name="claim-c3-quality" tolerance=0.15 atol=0.3
said_of, lines = [], []
article = (("'Less than 1 %' for INT8", "LLM.int8(), bitsandbytes", 1),
           ("'About 2 %' for 4 bits", "NF4, bitsandbytes", 2))  # fmt: skip
for label, name, percent in article if ranked else ():
    rise = measure.compare(ranked[name], ranked["FP32"])
    low, high = (100 * math.expm1(nats) for nats in (rise.low, rise.high))
    said_of.append("too optimistic" if low > percent else "right" if high < percent else "not settled")
    lines.append(f"    {label} is {said_of[-1]} for perplexity: {low:.1f} to {high:.1f} % (95 %), on "
                 f"{ranked[name].tokens:,} tokens.")
verdict = said_of[0] if len(set(said_of)) == 1 else "not the same for both" if said_of else "not settled here"
print(f"C3 (quality): {verdict}. "
      f"Perplexity {fp32.value:.2f} in FP32, {quality['INT8 bitsandbytes']:.2f} with INT8, "
      f"{quality['NF4 bitsandbytes']:.2f} with NF4, on {fp32.tokens} tokens.")
print("\n".join(lines))

# %% name="claim-c5"
print("C5:", "outdated. from_pretrained no longer takes load_in_8bit; "
      "pass quantization_config=BitsAndBytesConfig(load_in_8bit=True)." if c5 and "load_in_8bit" in c5
      else "still accepted by this version of transformers.")

# %% name="claim-c18"
print("C18: false. The layer of quantize_dynamic kept 8 bits whatever its input; only scales are dynamic.")
if ranked:
    print("    How many values share a scale matters:")
    say("W8A8, a scale a tensor", "W8A8, a scale a token")
