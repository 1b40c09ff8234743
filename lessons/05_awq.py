# %% [markdown] name="title" goal="Find the weights that matter by what flows through them, and spare them"
# # AWQ
#
# GPTQ ({lesson:gptq}) repairs the error of one weight with the weights next to it. AWQ, *activation-aware
# weight quantization* (Lin et al., 2023), asks another question: do all weights matter alike? And if some
# matter more, can they be rounded more finely without storing a single bit more?
#
# You will find those weights, see what it is worth to spare them, and then build the trick that makes it
# free: a scale for each channel, folded into the layer before. At the end weight-only methods of
# {lesson:formats} to {lesson:awq} meet in one picture: bits against perplexity.
#
# You need {lesson:ptq}: scale, zero point, groups, and round to nearest (**RTN**).

# %% name="imports"
import copy
import inspect
import tempfile

import matplotlib.pyplot as plt
import torch
import transformers
from torch import Tensor, nn  # noqa: F401  in the signatures of the exercises
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

from course_utils import data, measure, models, plots, records, shapes
from course_utils.quantize import affine, awq, awq_format, hqq, layerwise
from course_utils.quantize.affine import Scheme

plots.style()

# %% [markdown] name="baseline-text"
# ## Where we start
#
# The usual model and two pieces of Wikipedia from different articles: **calibration** text, which the
# method may look at, and **held-out** text, on which it is judged. Both are short, so that the lesson stays
# short. We work at 3 bits with a scale and a zero point for each group of 64 weights. There rounding hurts
# enough to be seen, and four methods can be told apart.

# %% name="baseline" tolerance=0.02
model, tokenizer = models.load_lm(LM, device=DEVICE)
shapes.require(model, "awq")
blocks = shapes.block_list(model)
EARLY, MIDDLE, LATE = (shapes.place(model, share) for share in (2 / 15, 1 / 3, 2 / 3))  # blocks to look at
n_heldout, n_calibration = (2048, 1024) if PROFILE == "cpu" else (32_768, 16_384)
heldout = data.wikipedia_tokens(tokenizer, "heldout", n_heldout).to(DEVICE)
calibration = data.windows(data.wikipedia_tokens(tokenizer, "calibration", n_calibration), 256).to(DEVICE)
scheme = Scheme(bits=3, group=64, symmetric=False)
fp32 = measure.perplexity(model, heldout, window=512)
print("FP32:", fp32)

# %% [markdown] name="rtn-text"
# The experiments of this lesson change the weights in place, one after the other. Between them the weights
# have to come back. A second copy in memory would cost 425 MB, so the copy goes to a temporary folder, a
# file for each block.

# %% name="rtn" tolerance=0.02
originals = tempfile.TemporaryDirectory()
for i, block in enumerate(blocks):
    torch.save(block.state_dict(), f"{originals.name}/{i}.pt")


def restore():
    """Put the weights of all blocks back as they were loaded."""
    for i, block in enumerate(blocks):
        block.load_state_dict(torch.load(f"{originals.name}/{i}.pt"))


layerwise.round_to_nearest(model, scheme)
rtn = measure.perplexity(model, heldout, window=512)
restore()
print(f"{scheme}, round to nearest: perplexity {rtn.value:.2f}")

# %% [markdown] name="importance-text"
# ## Do all channels matter alike?
#
# A linear layer computes `y = W x`. Column *j* of `W` meets input **channel** *j* and nothing else. If a
# weight of that column is off by *e*, the output is off by `e * x_j`. So an error costs most where the
# input is large. How large each channel is can only be learned by running text through the model.
#
# **Your turn.** Measure it: the mean size of each channel over all tokens.

# %% name="ex-channel-importance" exercise="course_utils.quantize.awq:channel_importance" points=2

# %% [markdown] name="importance-measured-text"
# `layerwise.walk` is the calibration walk of {lesson:gptq}. Here it changes nothing. It notes the mean size
# of each channel for the input of every layer, and keeps 256 inputs of four blocks for later.

# %% name="importance-measured" tolerance=0.05
importance, sample = {}, {}
blocks_kept = [f"model.layers.{i}" for i in (0, EARLY, MIDDLE, LATE)]


def note(block):
    for name, seen in block.statistics.items():
        importance[f"{block.name}.{name}"] = seen.importance.mean
        if block.name in blocks_kept:
            sample[f"{block.name}.{name}"] = seen.sample.inputs
    return False  # no weight was changed


layerwise.walk(
    model, calibration, note,
    lambda: layerwise.Together(importance=layerwise.MeanAbs(), sample=layerwise.Sample(256)),
    progress=False,
)  # fmt: skip
gate = f"model.layers.{MIDDLE}.mlp.gate_proj"
weight = model.get_submodule(gate).weight.detach().clone()
value_weight = blocks[EARLY].self_attn.v_proj.weight.detach().clone()  # for the end
values = importance[gate].sort(descending=True).values
norms = weight.norm(dim=0).sort(descending=True).values
print(f"{gate}: {len(values)} input channels")
print(f"largest mean |x| over the median: {values[0] / values.median():.1f}")
print(f"largest column norm over the median: {norms[0] / norms.median():.1f}")

# %% name="plot-importance"
fig, (left, right) = plt.subplots(1, 2, figsize=(7.5, 3.2), sharey=True)
for ax, numbers, title in (
    (left, values / values.median(), "activations: mean |x|"),
    (right, norms / norms.median(), "weights: norm of the column"),
):
    ax.bar(range(len(numbers)), numbers.cpu(), width=1.0, color=plots.PALETTE["blue"])
    ax.set(title=title, xlabel="channel, largest first")
left.set_ylabel("relative to the median")
plots.show(
    fig,
    "Two bar charts of one layer's input channels, sorted. Left: the mean size of the activations is very "
    "uneven, a few channels stand many times above the median. Right: the norms of the weight's columns are "
    "nearly even.",
)

# %% [markdown] name="salient-text"
# The weights do not tell the channels apart, the activations do. Now the experiment that AWQ's authors
# begin with (table 1 of the paper). Round all weights to 3 bits, but keep 1 % of each layer's columns as
# they were. Choose those columns in three ways: the largest activations, the largest weights, or at random.
#
# **Predict first.** What does that cost? With 99 % of the columns at 3 bits (a 16-bit scale and a 3-bit zero
# point for each group of 64 weights) and 1 % of them in 16 bits: how many bits does a weight take on
# average?

# %% name="predict-mixed-bits" predict="awq.predict_mixed_bits" points=1
### BEGIN SOLUTION
prediction = 0.99 * (3 + (16 + 3) / 64) + 0.01 * 16  # bits
### END SOLUTION

# %% [markdown] name="salient-predict-text"
# And which of the three choices will help most? Make up your mind before you run the next cell.

# %% name="salient" tolerance=0.03
salient = {"none kept": rtn}
for by in ("random", "weight", "activation"):
    awq.keep_salient(model, importance, scheme, by=by, fraction=0.01)
    salient[by] = measure.perplexity(model, heldout, window=512)
    restore()
for by, result in salient.items():
    print(f"1 % of the channels kept by {by:11} perplexity {result.value:6.2f}" if by != "none kept"
          else f"no channel kept                       perplexity {result.value:6.2f}")  # fmt: skip

# %% name="salient-reading" tolerance=0.1 atol=0.1
for by in ("random", "weight", "activation"):
    print(measure.compare(salient[by], rtn).sentence(f"1 % kept by {by}", "none kept"))

# %% [markdown] name="why-not-mixed"
# So one channel in a hundred, found by its activations, carries much of the damage. Keep those in FP16 and be
# done? The
# price is not the memory, it is the hardware. A matrix of mixed precision needs two kernels and an index
# that scatters and gathers. LLM.int8() in {lesson:ptq} does exactly that, and pays in speed. Can the same
# weights be protected with every weight at 3 bits?
#
# ## Scaling instead
#
# Take one weight *w* and its input *x*. Multiply the weight by *s* and divide the input by *s*: the product
# stays `w x`. Now round:
#
# $$Q(w \cdot s) \cdot \frac{x}{s}, \qquad Q(w) = \Delta \cdot \text{round}(w / \Delta)$$
#
# The rounding itself errs by a quarter of a step on average, whatever is rounded. So the error of the output
# is
#
# $$\text{error} = \Delta' \cdot \text{RoundErr} \cdot x \cdot \frac{1}{s}$$
#
# Here Δ' is the step after scaling. The step depends on the largest weight of the group only. As long as the
# scaled weight does not become the largest one, Δ' = Δ.
#
# **Predict.** One channel of a group is scaled by *s* = 2 and the group's range does not change. The error
# that this channel brings into the output becomes how many times what it was?

# %% name="predict-scaled-error" predict="awq.predict_scaled_error" points=1
### BEGIN SOLUTION
prediction = 1 / 2  # times the error before
### END SOLUTION

# %% [markdown] name="scaled-error-text"
# Measure it on a real layer. Scale its 1 % most important channels by *s*, round, and look at the error of
# these channels and of all others apart. Both are relative to the errors at *s* = 1.

# %% name="scaled-error" tolerance=0.05
x = sample[gate]
channels = awq.salient_channels(importance[gate], 0.01)
others = torch.ones(weight.shape[1], dtype=torch.bool, device=weight.device)
others[channels] = False


def errors_at(s):
    """Mean squared output error that the important channels bring in, and that the others bring in."""
    scale = torch.ones(weight.shape[1], device=weight.device)
    scale[channels] = s
    error = awq.scaled_fake_quantize(weight, scale, scheme) - weight
    parts = (x[:, channels] @ error[:, channels].T, x[:, others] @ error[:, others].T, x @ error.T)
    return [part.square().mean().item() for part in parts]


sizes = [1, 1.25, 1.5, 2, 3, 4, 8, 16]
curves = torch.tensor([errors_at(s) for s in sizes]).sqrt()
for s, row in zip(sizes, curves / curves[0], strict=True):
    print(f"s = {s:5.2f}: important channels {row[0]:.2f}, others {row[1]:.2f}, all together {row[2]:.2f}")

# %% name="plot-scaled-error"
fig, ax = plt.subplots(figsize=(7.5, 3.6))
for column, label, color in ((0, "the 1 % important channels", "vermilion"), (1, "all others", "blue"),
                             (2, "together", "black")):  # fmt: skip
    ax.plot(sizes, curves[:, column] / curves[0, column], "o-", color=plots.PALETTE[color], label=label)
ax.plot(sizes, [1 / s for s in sizes], "--", color="#999999", linewidth=1, label="1 / s")
ax.set(xscale="log", xlabel="scale s of the important channels", ylabel="output error, s = 1 is 1",
       title=f"What a scale saves and what it costs ({scheme})")  # fmt: skip
ax.set_xticks(sizes, [f"{s:g}" for s in sizes])
ax.minorticks_off()
ax.set_ylim(0, 2.5)
ax.legend()
plots.show(
    fig,
    "Output error against the scale of the important channels. Their own error falls, at first nearly as "
    "1 over s. The error of all other channels grows, slowly at first and faster beyond s = 2, because the "
    "scaled weights widen the range of their groups. The sum has a minimum in between.",
)

# %% [markdown] name="scale-exercise-text"
# The derivation holds for small *s*. Beyond that the scaled columns set the range of their groups, Δ' grows,
# and everyone else pays. In between lies an optimum. AWQ does not look for 576 scales one by one. It ties
# them to the importance *a* by one number, the **ratio**:
#
# $$s_j = a_j^{\,\text{ratio}}$$
#
# Ratio 0 leaves all channels alone (round to nearest). Ratio 1 would make all channels equally large.
# Two details of the reference code: a scale is at least 0.0001, so that a channel that is always 0 does not
# end as 0/0; and all scales are divided by the square root of largest times smallest, which centres them
# around 1.
#
# **Your turn.**

# %% name="ex-awq-scale" exercise="course_utils.quantize.awq:awq_scale" points=2

# %% [markdown] name="search-text"
# Which ratio? Try 20 of them, from 0 to 0.95, and keep the one whose output is closest to the original's on
# the sample. For *gate* and *up*, which share an input, the output of the whole MLP is compared; for *q*, *k*
# and *v* the output of the attention; for *down* its own.

# %% name="search" tolerance=0.1
searches = {}
for i in (0, MIDDLE, LATE):
    block = blocks[i]
    for label, layers, inspected, name in (
        ("gate, up", [block.mlp.gate_proj, block.mlp.up_proj], block.mlp, "gate_proj"),
        ("down", [block.mlp.down_proj], block.mlp.down_proj, "down_proj"),
    ):
        name = f"model.layers.{i}.mlp.{name}"
        with torch.no_grad():
            searches[f"block {i}, {label}"] = awq.search_scale(
                layers, importance[name], scheme,
                lambda module=inspected, inputs=sample[name]: module(inputs),
            )  # fmt: skip
for label, search in searches.items():
    print(f"{label:18} squared error {search.gain:.2f} times smaller than with round to nearest")

# %% name="plot-search"
fig, ax = plt.subplots(figsize=(7.5, 3.6))
palette = [plots.PALETTE[c] for c in ("blue", "sky", "vermilion", "orange", "green", "purple")]
for (label, search), color in zip(searches.items(), palette, strict=True):
    ax.plot(search.ratios, [error / search.errors[0] for error in search.errors], color=color, label=label)
    ax.plot(search.ratio, 1 / search.gain, "o", color=color)
ax.axhline(1, color="#999999", linewidth=1, linestyle=":")
ax.set(xlabel="ratio", ylabel="squared error, ratio 0 is 1", title="The search over ratios", ylim=(0.3, 2))
ax.legend(ncols=2, fontsize=9)
plots.show(
    fig,
    "Six curves of output error against the ratio, one for each of two groups of layers in blocks 0, "
    f"{MIDDLE} and {LATE}. All begin at 1. Most fall to a minimum, marked with a dot, and rise again; large "
    "ratios end above 1, where no scaling is.",
)

# %% [markdown] name="fold-text"
# ## Folding: the division costs nothing
#
# The weights are multiplied by *s*, so the input has to be divided by *s*. Doing that for each token would
# cost time. But the input came out of something: of a norm, whose weight multiplies each channel, or of a
# linear layer, whose rows are the channels. Divide *that* weight once, and the division is done for ever.
#
# **Your turn.** The previous module is a norm (weight: one number a channel) or a linear layer (weight: one
# row a channel), perhaps with a bias. Several layers may read its output.

# %% name="ex-fold-scale" exercise="course_utils.quantize.awq:fold_scale" points=3

# %% [markdown] name="fold-measured-text"
# In a Llama block there are four places to try. *norm* → *q, k, v* and *norm* → *gate, up* are plain. *up* →
# *down* works because *down* reads `silu(gate) * up`: a factor of *up* is still a factor after the product.
# (A factor of *gate* is not: `silu` bends it.) The fourth is *v* → *o*. What comes out of the attention is a
# weighted mean of values, so a factor of *v* would pass, but look at the shapes:

# %% name="gqa"
attention = blocks[MIDDLE].self_attn
config = model.config
print(f"v puts out {attention.v_proj.out_features} channels, o reads {attention.o_proj.in_features}.")
print(f"{config.num_attention_heads} query heads share {config.num_key_value_heads} value heads.")
for group in awq.scaling_groups(blocks[MIDDLE]):
    print(f"{type(group.previous).__name__:12} -> {', '.join(group.layers)}")

# %% [markdown] name="gqa-text"
# With grouped-query attention each value channel is read by three query heads and so meets three channels of
# *o*. Each of the three would want a scale of its own; *v* can be divided by one only. The reference code
# skips this place when the shapes differ, and so do we. In models with as many value heads as query heads
# (LLaMA-13B) it is used, and the list above would have four lines.
#
# Is folding really exact? Take a block of the real model, fold arbitrary scales between 1/8 and 8 into it at
# all its places, put it back and compare the logits before and after. Nothing is rounded yet.

# %% name="fold-measured" timing=true
folded = copy.deepcopy(blocks[MIDDLE])
generator = torch.Generator().manual_seed(0)
for group in awq.scaling_groups(folded):
    width = next(iter(group.layers.values())).in_features
    awq.fold_scale(group.previous, list(group.layers.values()),
                   (8 ** (2 * torch.rand(width, generator=generator) - 1)).to(DEVICE))  # fmt: skip
with torch.inference_mode():
    before = model(heldout[None, :256]).logits
    kept, blocks[MIDDLE] = blocks[MIDDLE], folded
    after = model(heldout[None, :256]).logits
    blocks[MIDDLE] = kept
fold_error = ((after - before).abs().max() / before.abs().max()).item()
print(f"largest difference of a logit: {fold_error:.1e} of the largest logit (float32 resolves 6e-08)")
del before, after, folded

# %% [markdown] name="clip-text"
# ## Clipping
#
# One more search is part of AWQ. The largest weight of a group sets the step for all others. Cutting it off
# makes its own error larger and everyone else's smaller. `awq.search_clip` tries to shrink each group's
# range, down to one half in ten steps, and keeps what changes the group's contribution to the output least.
# *q* and *k* are left alone: what matters there is their product, and an error in one says little about it.

# %% name="clip" tolerance=0.05
bounds = awq.search_clip(weight, x, scheme)
largest = affine.to_groups(weight, scheme).abs().amax(dim=-1)
clipped = awq.clip(weight, bounds)


def output_error(quantized):
    """Squared error of the layer's output, relative to the output itself."""
    return ((x @ (quantized - weight).T).square().mean() / (x @ weight.T).square().mean()).item()


errors = {
    "round to nearest": output_error(affine.fake_quantize(weight, scheme)),
    "clipped for least weight error": output_error(affine.fake_quantize(weight, scheme, clip_search=True)),
    "clipped for least output error": output_error(affine.fake_quantize(clipped, scheme)),
}
print(f"{(bounds < largest).float().mean():.0%} of the groups are clipped")
for label, error in errors.items():
    print(f"{label:32} output error {error:.4f}")

# %% [markdown] name="whole-text"
# ## The whole model
#
# Block by block: measure importance, search ratios, fold, clip, round; then go on with the outputs of the
# block as it is now. This takes some tens of seconds on two cores: every weight is rounded about 30 times.

# %% name="whole" tolerance=0.15
originals.cleanup()
choices = awq.awq(model, calibration, scheme, progress=False)
ours = measure.perplexity(model, heldout, window=512)
bits = affine.bits_per_weight(scheme, config.hidden_size)
mixed = 0.99 * bits + 0.01 * 16
print(f"FP32                                perplexity {fp32.value:6.2f}  32    bits a weight")
print(f"round to nearest                    perplexity {rtn.value:6.2f}  {bits:.2f}")
print(f"1 % of the channels kept in 16 bits perplexity {salient['activation'].value:6.2f}  {mixed:.2f}")
print(f"AWQ with clipping                   perplexity {ours.value:6.2f}  {bits:.2f}")

# %% name="plot-choices"
fig, (left, right) = plt.subplots(1, 2, figsize=(7.5, 3.2))
for suffix, label, color in (("q_proj", "q, k, v", "blue"), ("gate_proj", "gate, up", "orange"),
                             ("down_proj", "down", "vermilion")):  # fmt: skip
    chosen = [choice for choice in choices if choice.name.endswith(suffix)]
    left.plot([choice.search.ratio for choice in chosen], ".-", linewidth=1, color=plots.PALETTE[color])
    right.plot([choice.search.gain for choice in chosen], ".-", linewidth=1, color=plots.PALETTE[color],
               label=label)  # fmt: skip
left.set(title="chosen ratio", xlabel="block")
right.set(title="squared error, times smaller", xlabel="block", yscale="log")
right.set_yticks([1, 2, 5, 10, 20, 50, 100], ["1", "2", "5", "10", "20", "50", "100"])
right.minorticks_off()
right.legend(fontsize=9)
plots.show(
    fig,
    f"Left: the ratio chosen in each of the {len(blocks)} blocks for the three groups of layers, mostly "
    "between 0.2 and 0.6. Right, on a logarithmic axis: how many times smaller the squared output error is "
    "than with round to nearest. Mostly between 1 and 5 times; one layer stands far above all others.",
)

# %% [markdown] name="stored-text"
# No weight has more than 3 bits, and the loss of rounding is much smaller. But two things were done at once:
# scaling and clipping. Which of them is it? A fair answer needs all four combinations, and more text than a
# lesson can afford. The course keeps a measurement on 16,384 held-out tokens, with 8,192 tokens of
# calibration text (`course bench weight_only_ranking`).

# %% name="two-by-two"
larger = records.load("bench_weight_only_ranking")
ranked, four = {}, {}  # method -> perplexity, at 3 and at 4 bits
if larger is None:
    print("no recorded run yet: course bench weight_only_ranking makes one")
else:
    print(records.provenance_line(larger))
    ranked, four = ({row["method"]: measure.Perplexity(**row["result"]) for row in larger["results"]["rows"]
                     if row["bits"] == bits} for bits in (3, 4))  # fmt: skip
    print("perplexity at 3 bits        not clipped   clipped")
    for label, plain, with_clip in (("not scaled", "rounding", "AWQ clip"),
                                    ("scaled", "AWQ scale", "AWQ scale + clip")):  # fmt: skip
        print(f"{label:25} {ranked[plain].value:10.2f}  {ranked[with_clip].value:10.2f}")
    print()
    for name, other in (
        ("AWQ scale", "rounding"),
        ("AWQ clip", "rounding"),
        ("AWQ scale + clip", "AWQ scale"),
        ("AWQ scale + clip", "AWQ clip"),
        ("AWQ clip", "rounding + clip"),
        ("AWQ scale", "1 % of the channels in 16 bits"),
        ("AWQ scale + clip", "1 % of the channels in 16 bits"),
    ):
        print(measure.compare(ranked[name], ranked[other]).sentence(name, other))

# %% [markdown] name="two-by-two-reading"
# ("Rounding + clip" chooses each range by the error of the weights, "AWQ clip" by the error of the output.)
# Read the last two lines together: whether AWQ reaches the model of mixed precision, and by which of its two
# parts.
#
# Back to the scales. In most blocks scaling makes the squared error one to five times smaller. One layer
# stands out. What is different about its input?

# %% name="spike" tolerance=0.1
best = max(choices, key=lambda choice: choice.search.gain)
sizes = best.search.importance.sort(descending=True).values
print(f"{best.name}: squared error {best.search.gain:.0f} times smaller, ratio {best.search.ratio:g}")
print(f"largest mean |x| over the median: {sizes[0] / sizes.median():.0f}, "
      f"second largest: {sizes[1] / sizes.median():.0f}")  # fmt: skip

# %% [markdown] name="spike-reading"
# One channel stands far above the rest, so there is much to gain by sparing its column. Single channels that
# become huge at a few tokens are known from many models, as *massive activations* (Sun et al., arXiv
# 2402.17762).
#
# What is stored? Look at the weights as they are now. With 3 bits, a group of 64 can hold at most 8 different
# values. Count them in 32 rows of every layer.

# %% name="stored"
def different_values(weight, group):
    """How many different values each group of a weight [out, in] holds: [out, groups]."""
    ordered = affine.to_groups(weight.detach(), Scheme(4, group)).sort(dim=-1).values
    return 1 + (ordered.diff(dim=-1) > 0).sum(dim=-1)


levels = [int(different_values(layer.weight[:32], scheme.group).max())
          for layer in layerwise.block_linears(model).values()]  # fmt: skip
print(f"{len(levels)} layers. Different values in a group: {max(levels)} at most, in every layer between "
      f"{min(levels)} and {max(levels)}; {scheme.bits} bits can tell {2**scheme.bits} apart.")  # fmt: skip

# %% [markdown] name="words-text"
# ## How AWQ is written to a file
#
# The format that AWQ's kernels read holds 4-bit weights, eight in an int32, along the *output* channels, in a
# strange order. Can you find it? Here the numbers 0 to 7 stand for eight output channels. The word is printed
# in hexadecimal: one digit for each number, the lowest bits on the right.

# %% name="words"
word = awq_format.pack_words(torch.arange(8).reshape(1, 8))
print(f"channels 0 1 2 3 4 5 6 7 -> 0x{word.item() & 0xFFFFFFFF:08x}")
print("read back:", awq_format.unpack_words(word).tolist()[0])
layer = affine.quantize(blocks[0].mlp.gate_proj.weight, Scheme(4, 64, symmetric=False))
tensors = awq_format.pack(layer)
for name, tensor in tensors.items():
    print(f"{name:8} {str(tensor.dtype):14} {list(tensor.shape)}")
stored = sum(tensor.nbytes for tensor in tensors.values())
print(f"{8 * stored / layer.q.numel():.4f} bits a weight in the file, {4 + (16 + 4) / 64:.4f} computed")
same = torch.equal(affine.dequantize(awq_format.unpack(tensors)), affine.dequantize(layer))
print("weights read back equal:", same)

# %% [markdown] name="words-reading"
# From the lowest bits: channels 0, 2, 4, 6, then 1, 3, 5, 7. A GPU takes two of them out of a word with one
# mask, 16 bits apart, and gets neighbouring channels in one 32-bit register. `awq_format.save` writes a whole
# folder; transformers loads it (through GPTQModel), and the course's tests compare the logits.
#
# ## A rival without data: HQQ
#
# AWQ and GPTQ need text. *Half-quadratic quantization* (Badri and Shaji, 2023) needs none. It keeps the step
# and moves the zero point of each group, now a real number, to where most weights fit well. A few large
# errors are allowed: instead of squares it makes the sum of |error|^0.7 small. Two steps are repeated:
#
# 1. `shrink`: decide which errors are outliers, and set all small ones to 0;
# 2. the zero point with the smallest squared error for the rest is a mean.

# %% name="shrink"
errors = torch.tensor([-0.8, -0.3, -0.1, -0.02, 0.0, 0.02, 0.1, 0.3, 0.8])
print("error  ", [f"{e:6.3f}" for e in errors.tolist()])
print("outlier", [f"{e + 0.0:6.3f}" for e in hqq.shrink(errors, beta=10.0).tolist()])

# %% [markdown] name="grid-text"
# ## A trap in this model, and in others
#
# The course's model was stored with 4 bits before it came to us (format Q4_1: groups of 32, each with a step
# and a minimum). The FP32 weights that we quantize already lie on a 4-bit grid. That makes 4-bit
# comparisons on it unfair: a method that happens to hit the old grid loses almost nothing. Look at one fresh
# matrix: how many different values does a group of 32 hold, and what is the relative error of each method?

# %% name="grid" tolerance=0.03
different = different_values(weight, 32).float()
print(f"different values in a group of 32: {different.mean():.1f} on average, {int(different.max())} at most")
scale = awq.awq_scale(importance[gate], 0.5)
trials = {}
for group in (32, 64):
    asymmetric = Scheme(4, group, symmetric=False)
    trials[f"RTN, symmetric, group {group}"] = affine.fake_quantize(weight, Scheme(4, group))
    trials[f"RTN, asymmetric, group {group}"] = affine.fake_quantize(weight, asymmetric)
    trials[f"HQQ, group {group}"] = hqq.hqq_fake_quantize(weight, asymmetric)
    trials[f"AWQ scale 0.5, asymmetric, group {group}"] = awq.scaled_fake_quantize(weight, scale, asymmetric)
for label, quantized in trials.items():
    print(f"{label:38} {((quantized - weight).norm() / weight.norm()).item():7.2%} of the weight's size")

# %% [markdown] name="grid-reading"
# At group 32, HQQ finds the weights again almost without error. That says nothing about HQQ: it begins at
# the group's minimum, with a zero point that is a real number, and that *is* the old grid. Round to nearest
# with a whole zero point has the same groups and the same step, but its grid must contain 0 and is shifted
# by up to half a step: it errs by 8 %, as if there had been no old grid. So at 4 bits and group 32, leave
# HQQ out of the comparison. At group 64 two old groups share a new one, and at 3 bits there are not enough
# levels: there nobody finds the old grid again. The lines of AWQ show something else: scaling makes the error
# of the *weights* larger. It is the error of the output that gets smaller. Other published checkpoints were
# quantized before, too; look before you compare.
#
# ## Everything in one picture
#
# All methods at many settings take longer than a lesson should. The following figures were recorded by
# `course bench weight_only`, on the same text and with the same functions as above. GPTQ is the one of
# {lesson:gptq}, with act-order and static groups. All methods got 1,024 tokens of calibration text there,
# which is little for GPTQ, and 2,044 tokens are scored: this table gives the picture, not the order.

# %% name="record"
record = records.load("bench_weight_only")
rows = record["results"]["rows"] if record else []
if record:
    print(records.provenance_line(record))
    print(f"{rows[0]['tokens scored']:,} tokens scored, window {rows[0]['window']}, "
          f"{rows[0]['calibration tokens']:,} tokens of calibration text")  # fmt: skip
else:
    print("No recorded run yet. Make one with: course bench weight_only")

# %% [markdown] name="record-check-text"
# A record is worth something if it can be repeated. Three of its figures were measured in this lesson, too.

# %% name="record-check" tolerance=0.15
found = {(r["method"], r["bits"], r["group"], r["symmetric"]): r["perplexity"] for r in rows}
for method, here in (("FP32", fp32), ("round to nearest", rtn), ("AWQ + clip", ours)):
    key = (method, 32, None, True) if method == "FP32" else (method, 3, 64, False)
    if key in found and models.is_embedded(model):
        print(f"{method:16} recorded {found[key]:.2f}, measured here {here.value:.2f}")

# %% name="table" tolerance=0.001
METHODS = ["round to nearest", "HQQ", "GPTQ", "AWQ", "AWQ + clip"]
table = {}
for bits_, group, symmetric in dict.fromkeys(tuple(key[1:]) for key in found if key[0] in METHODS):
    line = {method: found.get((method, bits_, group, symmetric)) for method in METHODS}
    label = str(Scheme(bits_, group, symmetric))
    table[label] = {method: "" if value is None else f"{value:.1f}" for method, value in line.items()}
measure.table(table) if table else print("nothing recorded")

# %% [markdown] name="table-reading"
# The order comes from the larger measurement of above: 16,384 tokens, and 8,192 tokens of calibration text
# for each method. Is AWQ ahead of GPTQ at 3 bits, is GPTQ with clipped ranges ahead of both, and what does
# one bit more buy?

# %% name="order"
if ranked:
    for name in sorted(ranked, key=lambda name: ranked[name].nll):
        print(f"3 bits  {name:33} {ranked[name].value:8.2f}")
    print()
    for name, other in (
        ("AWQ scale + clip", "GPTQ, damping 0.01"),
        ("GPTQ, damping 0.01, + clip", "GPTQ, damping 0.01"),
        ("GPTQ, damping 0.01, + clip", "AWQ scale + clip"),
    ):
        print(f"3 bits: {measure.compare(ranked[name], ranked[other]).sentence(name, other)}")
    for name, other in (("AWQ scale + clip", "GPTQ, damping 0.01"),
                        ("AWQ scale + clip", "GPTQ, damping 0.01, + clip")):  # fmt: skip
        print(f"4 bits: {measure.compare(four[name], four[other]).sentence(name, other)}")
    lowest = min(ranked, key=lambda name: ranked[name].nll)
    print(measure.compare(ranked[lowest], four["rounding"]).sentence(
        f"{lowest} at 3 bits", "plain rounding at 4 bits"))  # fmt: skip

# %% [markdown] name="order-reading"
# AWQ asks the activations where to be careful, clipping asks them what to cut off. GPTQ needs enough text to
# know its correlations ({lesson:gptq}); AWQ needs one mean for each channel, and a sample of inputs for its
# two searches.
#
# One thing asks for an explanation: HQQ's perplexity in the table before, three times that of plain
# rounding at 3 bits on 2,044 tokens, although it makes the error of the weights smaller. Look at one layer,
# the values (*v*) of block 4. The first token of a text is special here (*attention sink*, Xiao et al.,
# arXiv 2309.17453): heads look at it when they have nothing else to look at, so its value should be close
# to nothing.

# %% name="exact-zero" tolerance=0.05
x = sample[f"model.layers.{EARLY}.self_attn.v_proj"]
first = x[:: len(x) // len(calibration)]  # the first token of each window
channel = int(first.abs().mean(dim=0).argmax())
print(f"at a first token |x| of channel {channel} is {first[:, channel].abs().mean():.1f}, "
      f"the median channel has {first.abs().median():.2f}")  # fmt: skip
print(f"mean |w| in the column of channel {channel}: {value_weight[:, channel].abs().mean():.3f}, "
      f"in all columns {value_weight.abs().mean():.3f}")  # fmt: skip
print(f"squared length of a first token's value {(first @ value_weight.T).square().sum(dim=1).mean():.1f}, "
      f"of any token's {(x @ value_weight.T).square().sum(dim=1).mean():.1f}")  # fmt: skip
for bits_, group in ((4, None), (3, 64)):
    trial = Scheme(bits_, group, symmetric=False)
    print(trial)
    for label, quantized in (("round to nearest", affine.fake_quantize(value_weight, trial)),
                             ("HQQ", hqq.hqq_fake_quantize(value_weight, trial))):  # fmt: skip
        error = quantized - value_weight
        print(f"  {label:16} mean |error| of all weights {error.abs().mean():.4f}, "
              f"of column {channel} {error[:, channel].abs().mean():.4f}; "
              f"squared error of a first token's value {(first @ error.T).square().sum(dim=1).mean():.2f}")

# %% [markdown] name="exact-zero-reading"
# The model keeps the value of the first token small by small weights in the column of its one huge channel.
# Round to nearest has an integer for 0.0 exactly, its zero point. A weight much smaller than a step becomes
# 0, and its error is only its own small size. HQQ's zero point is a real number. 0.0 falls between two
# steps, and all small weights of a group end up at the same wrong value. The huge channel multiplies that,
# and every later token looks at the result. A method without data cannot know which column that is. That this
# is what ruins the perplexity fits, but one layer does not prove it: it was not tried what HQQ reaches with
# that column kept exact.

# %% name="plot-all"
if not any(row["method"] == "AWQ + clip" for row in rows):
    print("No complete record, so no picture: course bench weight_only goes on where it stopped.")
else:
    limit = 200
    fig, ax = plt.subplots(figsize=(7.5, 4.4))
    marks = {"round to nearest": ("black", "x"), "NF4": ("purple", "D"), "HQQ": ("green", "v"),
             "GPTQ": ("orange", "s"), "AWQ": ("sky", "^"), "AWQ + clip": ("blue", "o")}  # fmt: skip
    for method, (color, mark) in marks.items():
        points = [(r["bits a weight"], r["perplexity"]) for r in rows
                  if r["method"] == method and (method == "NF4" or not r["symmetric"])
                  and r["perplexity"] < limit]  # fmt: skip
        if points:
            ax.plot(*zip(*points, strict=True), mark, color=plots.PALETTE[color], markersize=7, label=method)
    floor = found[("FP32", 32, None, True)]
    ax.axhline(floor, color="#999999", linewidth=1, linestyle=":")
    ax.set(yscale="log", xlabel="bits a weight, scales and zero points counted", ylabel="perplexity",
           title="Weight-only quantization, SmolLM2-135M", ylim=(floor * 0.95, limit))  # fmt: skip
    ax.text(ax.get_xlim()[1], floor, "FP32", ha="right", va="bottom", color="#555555")
    ticks = [t for t in (20, 25, 30, 40, 60, 100, 200) if floor * 0.95 < t <= limit]
    ax.set_yticks(ticks, [str(t) for t in ticks])
    ax.minorticks_off()
    ax.legend(fontsize=9)
    plots.show(
        fig,
        "Perplexity against bits a weight for round to nearest, NF4, HQQ, GPTQ, AWQ and AWQ with clipping, "
        "all but NF4 with zero points. The axis of the perplexity is logarithmic, FP32 is a dotted line at "
        "the bottom. Three clusters: 3 bits in groups of 64 on the left, 4 bits per channel and 4 bits in "
        "groups of 64 on the right. The table above has the same figures.",
    )
    hidden = sum(r["perplexity"] >= limit for r in rows)
    print(f"{hidden} of {len(rows)} points lie above {limit} and are left out of the picture.")

# %% [markdown] name="library-text"
# ## Beside the library
#
# AutoAWQ, which most tutorials name, is no longer maintained. Its code lives on in GPTQModel; LLM Compressor
# (vLLM) has another. `course bench awq` quantizes the model with GPTQModel's AWQ and with ours, on the same
# text, and measures both with the same function.
#
# GPTQModel 7.6 needs one expression mended for that. After each trial of a scale it puts the weights back
# from a copy, which is no copy when they are FP32 on a CPU already: every trial starts from what the trials
# before it rounded. Unmended, the model ended at a perplexity of about 1.9 million, without any error
# message. Always measure what a library gives you. Its search differs from ours: its scales look at the
# weights too, $s = \text{importance}^r / w^{1-r}$, where $w$ is the size of a channel's weights beside the
# largest of their group. Do the two end at different perplexities? What does that term change, and what does
# clipping? Two more rows take these apart: ours with that term, and ours without clipping.

# %% name="library" timing=true
bench = records.load("bench_awq")
if bench:
    print(records.provenance_line(bench))
    by_method = {row["method"]: row for row in bench["results"]["rows"]}
    found = {name: measure.Perplexity(**row["result"]) for name, row in by_method.items()}
    theirs = next(iter(found))
    print(f"{by_method['ours']['calibration tokens']} calibration tokens, "
          f"{found['ours'].tokens:,} tokens scored")
    for first, second in (("ours", theirs), ("ours, with the size of the weights", theirs),
                          ("ours, with the size of the weights", "ours"), ("ours, without clipping", "ours")):
        print(measure.compare(found[first], found[second]).sentence(first, second))
    share = by_method["ours"]["cpu seconds"] / by_method[theirs]["cpu seconds"]
    print(f"Ours takes {share:.2f} times the CPU seconds of GPTQModel.")
    compared = measure.ranking(found, theirs)
else:
    compared = "No recorded run yet. Make one with: course bench awq"
compared

# %% [markdown] name="replicate"
# ## What would not replicate elsewhere, and what holds anyway
#
# - The size of the gain. AWQ's paper reports Llama-2-7B at 4 bits and group 128: 5.73 rounded, 5.60 with AWQ,
#   5.47 in FP16. Here the losses are larger and so are the differences.
# - HQQ at 4 bits and group 32. This model's weights were on that grid before (see above). Choose another
#   model by the parameter `LM`.
# - AWQ's perplexity at 3 bits to the last per cent. Many ratios of the search give nearly the same error.
#   A processor that sums in another order may pick others: the recorded figure above, from another machine,
#   is not this lesson's. The errors count the text only, not this. So a difference of a few per cent at 3
#   bits need not hold elsewhere.
# - 2,048 tokens are little text. Methods are compared on the same windows, which makes differences far more
#   reliable than the perplexities themselves; each comes with its error.
# - What holds: activations are far more uneven than weights; a scale moves error from the channels that
#   matter to those that do not; folding is exact; nothing is stored but integers of one width.
#
# ## Recap
#
# - An error in a weight costs what flows through it. The mean of |x| finds the channels that matter.
# - Keeping 1 % of the channels in FP16 helps, but mixes precisions. Scaling them by *s* divides their error
#   by *s* until they set the range of their group.
# - `s = importance^ratio`, of 20 ratios the one with the smallest error of the output, folded into the layer
#   before.
# - *v* → *o* cannot be folded when query heads share value heads.
# - HQQ needs no data. Check what grid a checkpoint's weights already lie on before you compare.
#
# ## The claims settled here
#
# C21: {claim:C21}. C6, its half on AWQ: which library do tutorials name, and which one does transformers
# load AWQ checkpoints with? The second is asked of the installed code.

# %% name="claim-c21" tolerance=0.25 atol=0.1
same_bits = max(levels) <= 2**scheme.bits
undone = measure.compare(ours, rtn)
if same_bits and undone.verdict == "better":
    print("C21: half right. Activations decide, but no strategy changes from weight to weight:")
    print(f"    all {len(levels)} layers hold {scheme.bits}-bit integers, no mixed precision is stored.")
    print(f"    Channels are scaled before rounding, by importance^ratio; {len(choices)} ratios were chosen.")
    print(f"    With that and clipping, perplexity is {ours.value:.1f} instead of {rtn.value:.1f}, in FP32 "
          f"{fp32.value:.1f}:")
    print(f"    {undone.sentence('AWQ', 'rounding')}.")
else:
    print(f"C21: not confirmed here. One width {same_bits}; {undone.sentence('AWQ', 'rounding')}.")

# %% name="claim-c6"
loader = inspect.getsource(AUTO_QUANTIZER_MAPPING["awq"].validate_environment).lower()
asks = [name for name in ("autoawq", "gptqmodel") if name in loader]
print(f"C6: {'stale' if 'autoawq' not in asks else 'still true'} for AWQ, too. To load an AWQ checkpoint, "
      f"transformers {transformers.__version__} asks for {' and '.join(asks)}.")  # fmt: skip
