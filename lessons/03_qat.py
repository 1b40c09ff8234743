# %% [markdown] name="title" goal="What training with the rounding errors in place wins back, and its price"
# # Quantization-aware training
#
# {Lesson:ptq} rounded a finished model. Weights in 8 bits changed little, in 2 bits they ruined it. Can it
# learn to live with its rounding errors, if they are already there while it is trained? That is
# **quantization-aware training**, QAT for short. Rounding a finished model is called **post-training
# quantization**, PTQ.
#
# There is one obstacle. Training follows slopes, and rounding has none. You will see the problem in a
# picture, write the trick that everybody uses against it, build a layer on it, and train a real text
# classifier in four settings. Each is measured with and without QAT on the same held-out sentences. At
# the end you can say when the training pays.
#
# You need {lesson:ptq} (scale, zero point, per channel) and an idea of what a training loop does. The model
# is small enough to be trained here: MiniLM, an encoder with 6 layers, that tells positive from negative
# sentences about films. So the parameter `LM` above is not used in this lesson.

# %% name="imports"
import copy
import importlib.util
import inspect
import math

import matplotlib.pyplot as plt
import pandas as pd
import torch
import torch.nn.functional as F  # noqa: F401 (the exercises use it)
from torch import Tensor, nn  # noqa: F401

from course_utils import data, finetune, measure, plots, records
from course_utils.quantize import affine, qat
from course_utils.quantize.affine import Scheme  # noqa: F401
from course_utils.quantize.qat import fake_quantize  # noqa: F401
from course_utils.quantize.straight_through import StraightThrough

plots.style()

# %% [markdown] name="staircase-text"
# ## The obstacle: a staircase has no slope
#
# **Fake quantization** rounds a number to the grid and gives back the value on the grid as a float:
#
# $$\hat x = s \cdot \mathrm{clip}(\mathrm{round}(x / s),\ q_{min},\ q_{max})$$
#
# The model then computes with exactly the errors that the integers will make, while everything is still a
# float and can be trained. As a function of $x$ it is a staircase.
#
# **Predict first.** What is the slope of `round(x)` at x = 2.3?

# %% name="predict-slope" predict="qat.predict_slope" points=1
### BEGIN SOLUTION
prediction = 0  # a small pace from 2.3 to either side changes nothing
### END SOLUTION

# %% name="plot-staircase"
x = torch.linspace(-6.5, 6.5, 1301, requires_grad=True)
stairs = torch.clamp(torch.round(x), -4, 3)  # 3 bits, scale 1
stairs.sum().backward()
true_slope = x.grad.clone()
x.grad = None
qat.straight_through(x, -4, 3).sum().backward()

fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6))
left.plot(x.detach(), x.detach(), "--", color="gray", lw=1, label="not rounded")
left.plot(x.detach(), stairs.detach(), color=plots.PALETTE["vermilion"], label="rounded, 3 bits")
left.set(title="what the model computes", xlabel="x / scale", ylabel="result")
left.legend()
right.plot(x.detach(), true_slope, color=plots.PALETTE["vermilion"], label="true slope")
right.plot(x.detach(), x.grad, color=plots.PALETTE["blue"], label="straight-through")
right.set(title="slope that training sees", xlabel="x / scale", ylabel="slope", ylim=(-0.1, 1.3))
right.legend(loc="upper right")
plots.show(fig, "Left: a staircase of eight steps from -4 to 3 along the diagonal, flat beyond both ends. "
           "Right: the true slope is 0 everywhere. Straight through it is 1 from -4.5 to 3.5, 0 outside.")

# %% [markdown] name="staircase-result"
# The true slope is 0 on every step (at the jumps there is none, and torch says 0 as well). Training moves
# each weight a little against its slope. With a slope of 0 it moves nothing, for ever.
#
# ## The trick: go straight through
#
# The **straight-through estimator** (STE; Bengio and others, 2013) simply lies to the backward pass:
# round on the way forward, and on the way back pretend that nothing was rounded. From afar the staircase
# *is* the diagonal, so the diagonal's slope of 1 points the right way on average. Only where a value was
# clipped is the slope 0, and rightly: beyond the last step, moving a little changes nothing even from
# afar.
#
# How does one lie to autograd? `detach()` cuts a value off from the gradient: it counts as a constant.
#
# $$\text{nearest} = x + \underbrace{(\mathrm{round}(x) - x)}_{\text{detached: a constant}}$$
#
# The value is $\mathrm{round}(x)$. The slope is that of the first $x$, which is 1.
#
# **Your turn.** `steps` is x / scale, a value counted in steps of the grid. Round it, clip it, and let the
# gradient pass. Mind the order: what counts as clipped is decided after rounding.

# %% name="ex-straight-through" exercise="course_utils.quantize.qat:straight_through" points=3

# %% [markdown] name="function-text"
# The same can be said in a second way, in which forward and backward are written out: an
# `autograd.Function`. It is longer, and leaves nothing to puzzle over. So write your own function first, then
# read the class `StraightThrough` in `course_utils/quantize/straight_through.py`. Do the two agree?

# %% name="function"
x = torch.linspace(-6, 6, 500)
slopes = []
for function in (StraightThrough.apply, qat.straight_through):
    values = x.clone().requires_grad_()
    result = function(values, -4, 3)
    result.sum().backward()
    slopes.append(values.grad)
print("same gradient both ways:", torch.equal(*slopes))

# %% [markdown] name="toy-text"
# Does the lie help? A toy: 8 weights that may only take the four values of a 2-bit grid must imitate a
# linear function. We start from zero weights and take 200 steps of plain gradient descent, once with the
# true slope and once straight through.

# %% name="toy" tolerance=0.02
generator = torch.Generator().manual_seed(0)
inputs = torch.randn(200, 8, generator=generator)
targets = inputs @ torch.tensor([-2.0, -1.0, 0.0, 1.0, -1.0, 1.0, -2.0, 0.0])
toy = {}
for name, rounding in (
    ("true slope", lambda w: torch.clamp(torch.round(w), -2, 1)),
    ("straight-through", lambda w: qat.straight_through(w, -2, 1)),
):
    weight = torch.zeros(8, requires_grad=True)
    toy[name] = []
    for _ in range(200):
        loss = (inputs @ rounding(weight) - targets).square().mean()
        (slope,) = torch.autograd.grad(loss, weight)
        weight.data -= 0.01 * slope
        toy[name].append(loss.item())
    print(f"{name:17} loss {toy[name][0]:6.2f} at the start, {toy[name][-1]:6.2f} after 200 steps")

# %% [markdown] name="fake-quantize-text"
# ## From the trick to a layer
#
# With a scale and a zero point around it, the trick becomes fake quantization. This is the library's, and
# all that follows stands on it:

# %% name="fake-quantize"
print(inspect.getsource(qat.fake_quantize))

# %% [markdown] name="layer-text"
# A linear layer multiplies inputs with weights. A kernel for integers needs both as integers, so we round
# both:
#
# - the **weight** [out, in] to a symmetric grid, one scale for each row (output channel);
# - the **input** to a grid with a zero point, one scale for each token, taken as it comes. Inputs after the
#   activation function are mostly positive, and a zero point does not waste half of the integers on them.
#
# `affine.parameters(values, scheme)` of {lesson:ptq} returns scale and zero point of each row. Scales are
# constants to the gradient: take them from detached values.
#
# The short name of a setting counts the bits: **W4A8** has 4-bit weights and 8-bit activations (inputs).
#
# **Your turn.** The fake-quantized linear layer.

# %% name="ex-fake-quant-linear" exercise="course_utils.quantize.qat:fake_quant_linear" points=3

# %% [markdown] name="layer-check-text"
# Does it really compute what integers would? Take a layer, train nothing, and put real packed integers in
# its place. `convert` stores the weight as integers of 4 bits, two in each byte, and rounds inputs as
# before.

# %% name="layer-check" atol=0.00001
torch.manual_seed(0)
layer = qat.FakeQuantLinear(nn.Linear(384, 1536), qat.spec("W4A8"))
stored = qat.ConvertedLinear(layer)
tokens = torch.randn(100, 384)
with torch.no_grad():
    difference = (layer(tokens) - stored(tokens)).abs().max().item()
print(f"largest difference between fake-quantized and stored integers: {difference:.5f}")
print(f"weight as floats {layer.weight.numel() * 4:,} bytes, packed {stored.linear.packed.numel():,} bytes")

# %% [markdown] name="model-text"
# ## A real classifier
#
# Now the real thing. MiniLM has been fine-tuned in FP32 on about 8,000 sentences from film reviews, each
# rated by people: label 1 if the rating is positive, 0 if it is negative. That took three to four minutes
# when the course was set up, and was kept.
#
# Which parts do we quantize? The 36 linear layers of its 6 blocks. The embedding table, the norms, the
# products inside attention and the small head that decides stay in FP32.
#
# We measure on held-out sentences. Each answer is right or wrong, so with few sentences the share of
# right answers is uncertain; the **95 % confidence interval** says how much. To keep this lesson short we use
# the first 400 of the 2,014 held-out sentences, at most 40 tokens each. All of them would make the intervals
# less than half as wide.

# %% name="load" atol=16
base, tokenizer = finetune.load_classifier(DEVICE)
training = data.reviews("train")
heldout = data.reviews("test")[:400]
texts, labels = [text for text, _ in heldout], torch.tensor([label for _, label in heldout])
print(f"{len(training):,} sentences to train on, {len(heldout):,} held out; two of them:")
for text, label in heldout[:2]:
    print(f"  {label}  {text}")

accuracy, seconds, losses = {}, {}, {}


def score(name, model):
    """Accuracy of a model on the held-out sentences, kept under its name with the single answers."""
    logits = finetune.predict(model, tokenizer, texts, batch_size=64)
    accuracy[name] = measure.accuracy(logits, labels)
    print(f"{name:14} {accuracy[name]}")


score("FP32", base)

# %% [markdown] name="predict-zeros-text"
# ## First without training
#
# `prepare` puts our layer in the place of each linear layer. Without training, the model then computes what
# post-training quantization gives.
#
# At 2 bits a grid has four levels: -2, -1, 0 and 1 times the scale, and absmax makes the scale so large
# that the largest weight of the row just fits: it lies at 1.5 steps.
#
# **Predict.** What share of the weights becomes exactly 0 at 2 bits, in percent? The weights of a row
# look roughly like a bell curve, and the largest of 384 is about 3 standard deviations from 0. Within 15
# % of the right number is close enough.

# %% name="predict-zeros" predict="qat.predict_zeros" points=1
### BEGIN SOLUTION
# 1.5 steps are about 3 standard deviations, so half a step is 1: 68 % of a bell curve lies within.
# The weights of a trained model have longer tails than a bell curve, so a few more.
prediction = 75  # percent
### END SOLUTION

# %% name="ptq" atol=40
SETTINGS = ["W8A8", "W4A8", "W4A4", "W2A8"]
for setting in SETTINGS:
    score(f"PTQ {setting}", qat.prepare(copy.deepcopy(base), qat.spec(setting)))

# %% [markdown] name="ptq-text"
# With two possible answers, guessing is right half of the time. Keep that in mind when you read the last
# line: at 50 % nothing would be left of the model.
#
# ## Now with training
#
# QAT starts from the same fine-tuned model, with the rounding errors in place, and trains on. Each
# setting gets the same 16 steps of 16 sentences, in the same order, with the same dropout: 256 sentences,
# about one in thirty of those that the FP32 model was trained on. The embeddings stay frozen, as they were
# then. The learning rate begins at 0.00005, half of what the FP32 model had, and falls to 0.
#
# Is the comparison fair? QAT also gets more *training* than the model it is compared with. So watch W8A8:
# its rounding errors are tiny, so whatever it gains comes from the additional steps and not from QAT.

# %% name="qat" atol=60
STEPS, BATCH, LR = 16 if PROFILE == "cpu" else 64, 16, 5e-5


def train(name, model):
    """The same steps on the same sentences for every model."""
    measure.release_memory()
    run = finetune.train(model, tokenizer, training, steps=STEPS, batch_size=BATCH, lr=LR, seed=1)
    losses[name], seconds[name] = run.smoothed(3), run.seconds
    score(name, model)


for setting in SETTINGS:
    two_bit = qat.prepare(copy.deepcopy(base), qat.spec(setting))  # the last one, W2A8, is used again
    train(f"QAT {setting}", two_bit)

# %% name="qat-time" timing=true
for name, value in seconds.items():
    print(f"{name:14} {value / 60:.2f} minutes for {STEPS} steps ({value / STEPS:.2f} s a step)")
print(f"at this speed, one pass over all {len(training):,} sentences takes "
      f"{value / STEPS * len(training) / BATCH / 60:.1f} minutes")

# %% [markdown] name="losses-text"
# The loss of a step says as much about its 16 sentences as about the model: some are harder than others,
# and all four settings see the same ones. So look at the curves together. W8A8 is nearly the FP32 model.
# What a setting loses to its rounding is the distance to that curve, and that is drawn on the right.

# %% name="plot-losses" tolerance=0.1 atol=0.1
colors = dict(zip(SETTINGS, ("green", "orange", "purple", "blue"), strict=True))
fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8))
for setting in SETTINGS:
    curve, control = losses[f"QAT {setting}"], losses["QAT W8A8"]
    style = {"color": plots.PALETTE[colors[setting]], "label": setting}
    left.plot(range(1, STEPS + 1), curve, **style)
    right.plot(range(1, STEPS + 1), [a - b for a, b in zip(curve, control, strict=True)], **style)
left.axhline(math.log(2), color="gray", ls="--", lw=1, label="guessing")
left.set(title="loss (mean of the last 3 steps)", xlabel="step", ylabel="loss (nats)", ylim=0)
left.legend(ncols=2, fontsize=9)
right.set(title="above the loss of W8A8, same sentences", xlabel="step", ylabel="difference (nats)")
apart = [losses["QAT W2A8"][i] - losses["QAT W8A8"][i] for i in (0, -1)]
plots.show(fig, "Left: training loss against the step for four settings, and a dashed line at 0.69 for "
           "guessing. Right: distance to the loss of W8A8. "
           f"W2A8 begins {apart[0]:.2f} nats above it and ends {apart[1]:.2f} above.")

# %% [markdown] name="clipped-text"
# ## Another scale, before any training
#
# So far the scale of a row was whatever its largest weight asked for. At 2 bits most weights become 0 so, as
# you saw. A smaller scale clips a few large weights and gives the many small ones a finer step. Was QAT
# compared with a PTQ that nobody would use? The fair baseline takes, for each row, the scale with the least
# **squared error**: try forty scales from absmax downwards, keep the best. It needs no data.

# %% name="clipped" atol=20
clipped = qat.prepare(copy.deepcopy(base), qat.spec("W2A8", learned=True))
for layer in qat.fake_quant_layers(clipped).values():
    scale, _ = affine.search_clip(layer.weight.detach(), layer.spec.weight, steps=40, smallest=0.2)
    layer.scale.data.copy_(scale)
score("PTQ W2A8 clipped", clipped)
print("PTQ, " + measure.compare(accuracy["PTQ W2A8 clipped"], accuracy["PTQ W2A8"]).sentence(
    "the scale of least squared error", "absmax"))  # fmt: skip
del clipped

# %% [markdown] name="lsq-text"
# ## A scale that learns
#
# The least squared error of the weights is not yet what counts. Which scale does the *task* ask for? Let
# training decide, as it decides about weights. That is **LSQ**, learned step size quantization (Esser and
# others, 2020).
#
# How does the result change with the scale? $\hat x = s \cdot q$ with $q \approx x / s$ straight through,
# so the product rule gives
#
# $$\frac{\partial \hat x}{\partial s} = q - \frac{x}{s} \ \text{ inside the grid,} \qquad q_{min} \text{ or }
# q_{max} \ \text{ where } x \text{ was clipped.}$$
#
# `fake_quantize` computes this already, once the scale asks for a gradient. One thing is left. The
# gradients of all $n$ values that share a scale are added up, so the scale would be pulled much harder
# than a single weight. LSQ multiplies its gradient by $g = 1 / \sqrt{n\, q_{max}}$. (With the optimizer
# used here, AdamW, that matters less than in the paper, which used gradient descent with momentum: Adam makes
# all steps about as large as the learning rate, whatever the size of the gradient. That has a risk of its
# own.
# At 8 bits a scale is about 0.001, and a few steps could carry it below 0. So our layer keeps each scale
# above a tenth of the one that absmax gives.)
#
# **Your turn.** Change the gradient of the scale but not its value. The `detach` trick does that as well.

# %% name="ex-learned-scale" exercise="course_utils.quantize.qat:learned_scale" points=3

# %% [markdown] name="lsq-train-text"
# LSQ begins with the scale $2 \cdot \mathrm{mean}|x| / \sqrt{q_{max}}$, smaller than that of absmax. How
# good is that scale before any training, and how good after the same 16 steps?

# %% name="lsq" atol=60
model = qat.prepare(copy.deepcopy(base), qat.spec("W2A8", learned=True))
layers = qat.fake_quant_layers(model)
score("PTQ W2A8 LSQ", model)
first = torch.cat([layer.scale.detach().clone().flatten() for layer in layers.values()])
absmax = torch.cat(
    [affine.parameters(layer.weight.detach(), layer.spec.weight)[0].flatten() for layer in layers.values()]
)
train("QAT W2A8 LSQ", model)

# %% name="lsq-scales" tolerance=0.05 atol=0.3
last = torch.cat([layer.scale.detach().flatten() for layer in layers.values()])
print(f"LSQ's first scale is {(first / absmax).median():.2f} of absmax's (median over {len(first):,} rows)")
print(f"training then changed it by {100 * ((last - first).abs() / first).median():.1f} % (median)")
del model, layers  # memory for the next one

# %% [markdown] name="torchao-text"
# ## The library people use
#
# PyTorch's own library for this is **torchao**. `QATConfig` with step "prepare" swaps in its
# fake-quantized layers, with "convert" it stores the integers. We ask it for the same grids, 2-bit
# weights by channel and 8-bit inputs by token, and give it the same sentences in the same order. If our
# layer is right, its loss must follow ours.

# %% name="torchao" atol=60
if importlib.util.find_spec("torchao"):
    from torchao.quantization import Int8DynamicActivationIntxWeightConfig, PerAxis, quantize_
    from torchao.quantization.qat import QATConfig
    from torchao.quantization.qat.linear import FakeQuantizedLinear

    grids = Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int2, weight_granularity=PerAxis(0))
    model = copy.deepcopy(base)
    quantize_(
        model, QATConfig(grids, step="prepare"),
        filter_fn=lambda module, name: isinstance(module, nn.Linear) and ".layer." in name,
    )  # fmt: skip
    train("torchao W2A8", model)
    quantize_(
        model, QATConfig(grids, step="convert"),
        filter_fn=lambda module, name: isinstance(module, FakeQuantizedLinear),
    )  # fmt: skip
    apart = max(abs(a - b) for a, b in zip(losses["torchao W2A8"], losses["QAT W2A8"], strict=True))
    pairs = zip(accuracy["torchao W2A8"].right, accuracy["QAT W2A8"].right, strict=True)
    print(f"largest distance of the two loss curves: {apart:.3f} nats")
    print(f"same verdict on {sum(a == b for a, b in pairs) / len(texts):.1%} of the sentences")
else:
    print("torchao is not installed: pip install torchao==0.18.0, then run this cell again")

# %% name="torchao-time" timing=true
if "torchao W2A8" in seconds:
    ratio = seconds["torchao W2A8"] / seconds["QAT W2A8"]
    print(f"torchao took {ratio:.2f} times as long as our layers for the same {STEPS} steps")
print(measure.machine_card())

# %% [markdown] name="convert-text"
# ## Real integers at the end
#
# Fake quantization saves nothing: the weights are still floats, and the rounding costs time. Only `convert`
# makes the model small. The answers must stay the same.

# %% name="convert" tolerance=0.02 atol=3
model = two_bit
before = measure.weight_bytes(model.bert.encoder).total
converted = qat.convert(copy.deepcopy(model))
after = measure.weight_bytes(converted.bert.encoder).total
some = texts[:100]
agree = [finetune.predict(either, tokenizer, some).argmax(dim=1) for either in (model, converted)]
print(f"the six blocks: {before / 1e6:.2f} MB in training, {after / 1e6:.2f} MB converted")
print(f"same verdict on {int((agree[0] == agree[1]).sum())} of {len(some)} sentences")
embedding = measure.weight_bytes(model.bert.embeddings).total
print(f"the embedding table, which we left alone: {embedding / 1e6:.2f} MB")

# %% [markdown] name="verdict-text"
# ## When does the training pay?
#
# All settings side by side, with their intervals:

# %% name="plot-accuracy" atol=15
fig, axis = plt.subplots(figsize=(8, 4.2))
fp32 = accuracy["FP32"]
axis.axhspan(100 * fp32.low, 100 * fp32.high, color="gray", alpha=0.2, label="FP32, 95 % interval")
axis.axhline(50, color="gray", ls="--", lw=1, label="guessing")
columns = [*SETTINGS, "W2A8 LSQ"]
for offset, kind, color in ((-0.12, "PTQ", "vermilion"), (0.12, "QAT", "blue")):
    found = [accuracy[f"{kind} {setting}"] for setting in columns]
    value = [100 * a.value for a in found]
    spread = [[100 * (a.value - a.low) for a in found], [100 * (a.high - a.value) for a in found]]
    axis.errorbar([i + offset for i in range(len(columns))], value, spread, fmt="o", capsize=4,
                  color=plots.PALETTE[color], label=kind)
axis.set_xticks(range(len(columns)), columns)
axis.set(ylabel="right answers (%)", title=f"accuracy on {len(heldout):,} held-out sentences")
axis.legend(loc="lower left")
described = "; ".join(
    f"{setting} {100 * accuracy[f'PTQ {setting}'].value:.0f} and {100 * accuracy[f'QAT {setting}'].value:.0f}"
    for setting in columns
)
plots.show(fig, f"Accuracy in percent with 95 % intervals for PTQ and QAT: {described}. FP32 has "
           f"{100 * fp32.value:.0f}.")

# %% name="table" atol=20
measure.table(accuracy)

# %% [markdown] name="paired-text"
# Two overlapping intervals do not settle which of two models has learned more. Both answered the *same*
# sentences, so only those count on which they differ: `measure.compare` counts how many the first alone
# gets right, and how many the second alone. If the two were equally good, each of these sentences would be
# a toss of a coin. **McNemar's exact test** asks how rare so uneven a count would then be.

# %% name="verdict" atol=20
for setting in [*SETTINGS, "W2A8 LSQ"]:
    lost = measure.compare(accuracy[f"PTQ {setting}"], accuracy["FP32"])
    won = measure.compare(accuracy[f"QAT {setting}"], accuracy[f"PTQ {setting}"])
    print(f"{setting:8}  PTQ against FP32 {lost.difference:+6.1f} ± {lost.error:.1f} points,  "
          f"QAT against PTQ {won.difference:+6.1f} ± {won.error:.1f} points")

# %% [markdown] name="advice-text"
# From these numbers, a rule. How much may be lost is yours to say; here it is 8 points, a margin that 400
# sentences can tell apart from 0. QAT is *not needed* where the whole interval of PTQ's loss lies within it.
# Where the whole interval lies beyond, the question is whether training is shown to help. In between, more
# sentences are needed before anything can be said.

# %% name="advice" atol=20
MARGIN = 8  # points
for setting in SETTINGS:
    lost = measure.compare(accuracy[f"PTQ {setting}"], accuracy["FP32"])
    won = measure.compare(accuracy[f"QAT {setting}"], accuracy[f"PTQ {setting}"])
    if lost.low > -MARGIN:
        print(f"{setting}: QAT is not needed. PTQ loses less than {MARGIN} points.")
    elif lost.high > -MARGIN:
        print(f"{setting}: {len(texts)} sentences do not settle whether PTQ loses {MARGIN} points.")
    elif won.verdict == "better":
        print(f"{setting}: QAT helps. PTQ loses more than {MARGIN} points, training gets some of them back.")
    else:
        print(f"{setting}: QAT is not shown to help in so few steps.")

# %% [markdown] name="longer-text"
# Is that the last word on QAT? 16 steps are few, and one run is one run: with another order of the sentences
# it ends elsewhere. The course keeps a longer measurement: 128 steps of 16 sentences, a quarter of a pass
# over the training sentences, at a learning rate of 0.0001, each setting with four **seeds** (orders of the
# sentences and dropout), measured on all 2,014 held-out sentences. The intervals below say how far another
# order of the training sentences might lead; how far other *held-out* sentences might, they do not say.
# `course bench qat` runs it on your machine.
#
# It asks three more things. Does the starting scale still matter after training? What do the same steps do
# for FP32 itself? And are labels needed? In the setting *taught by FP32* nobody says what is right: the
# FP32 model's own probabilities are the target. That is **distillation**, the subject of
# {lesson:distillation}.

# %% name="longer"
record = records.load("bench_qat")
if record is None:
    print("no recorded run yet: course bench qat makes one")
else:
    print(records.provenance_line(record))
    rows = pd.DataFrame(record["results"]["rows"])
    rows["accuracy (%)"] = 100 * rows["accuracy"]
    found = rows.groupby(["what", "steps"], sort=False)["accuracy (%)"]
    print(pd.DataFrame({"mean accuracy (%)": found.mean(), "runs": found.count(),
                        "standard deviation of the runs": found.std()}).round(1).to_string())

# %% name="longer-verdict"
if record is not None:
    untrained = {row["what"]: 100 * row["accuracy"] for row in record["results"]["rows"] if not row["steps"]}
    trained = {}  # setting -> accuracy in percent, one a seed, the seeds in one order
    for row in sorted(record["results"]["rows"], key=lambda row: row["seed"]):
        if row["steps"]:
            trained.setdefault(row["what"], []).append(100 * row["accuracy"])
    runs = len(trained["absmax"])

    def gain(a, b):
        """Compare two lists of accuracies, run by run."""
        return measure.compare(a, b, higher_is_better=True, unit="points")

    for name in ("absmax", "least squared error, learned", "LSQ, learned"):
        print(gain(trained[name], [untrained[name]] * runs).sentence(f"{name}: after training", "before"))
    print(gain([untrained["LSQ, learned"]] * runs, trained["absmax"]).sentence(
        "LSQ's first scale, not trained,", "absmax, trained"))
    print(gain(trained["least squared error, learned"], trained["LSQ, learned"]).sentence(
        "Trained, beginning with the least squared error", "beginning with LSQ's"))
    print(gain(trained["LSQ, learned, taught by FP32"], trained["LSQ, learned"]).sentence(
        "Taught by FP32, without labels,", "taught by labels"))
    print(gain(trained["LSQ, learned"], trained["FP32, trained on"]).sentence(
        "2 bits, trained,", "FP32, trained by the same steps"))

# %% [markdown] name="elsewhere"
# ## What would not replicate, and what holds anyway
#
# - The accuracies depend on the model, the task and the steps. Another seed moves them by a point or two,
#   and so does another processor: sums are rounded in another order, and training makes small differences
#   grow.
# - 16 steps are few, chosen so that this lesson stays short. The longer run above shows what more steps do.
#   Neither is the many thousand steps that papers on QAT take.
# - A classifier with two answers forgives more than a language model that chooses among 49,152 tokens. Do
#   not read the 4-bit rows as a promise for text generation; {lesson:gptq} measures that.
# - What holds: rounding has no slope; the straight-through estimator trains in spite of it; QAT can only
#   win back what PTQ lost; the choice of the scale comes before the training.
#
# ## Recap
#
# - Fake quantization rounds and stays a float; the straight-through estimator lets the gradient pass where
#   nothing was clipped.
# - A QAT layer rounds weight and input as the integers will, in every step. It saves nothing until it is
#   converted.
# - A scale can be learned like a weight (LSQ). The same product rule gives its gradient.
# - QAT costs a training loop, memory for gradients and text from the task. Labels it needs only if nothing
#   else says what is right: the FP32 model can be the teacher, and a language model's text is its own label.
#   First try PTQ; then PTQ with more care (another scale, groups, zero points, and {lesson:gptq} and
#   {lesson:awq}); QAT when the bits must be so few that these fail.
#
# **Claims of the article.** None of its numbered claims belongs to this lesson alone.
