# %% [markdown] name="title" goal="What 4 to 32 bits can hold, and what the model loses in each format"
# # Precision formats
#
# A weight is a number. How many bits does a number need? With 32 the model takes 538 MB, with 4 about an
# eighth of that. But 4 bits can tell only 16 numbers apart. Which 16?
#
# You will read numbers from their bits, in the formats that models are stored and computed in today. Then
# you will put the real model into each of them, and measure how many bytes it takes, how far its weights
# move, and how much worse it predicts text.
#
# From {lesson:one_token} you need: perplexity, and the model's parts (embedding, attention, MLP, norms).

# %% name="imports"
import math

import bitsandbytes.functional as bnb
import matplotlib.pyplot as plt
import torch

from course_utils import data, explore, formats, measure, models, plots, records, shapes

plots.style()

# %% [markdown] name="bits-text"
# ## What do the bits mean?
#
# A **floating-point number** is written like a number in science: a sign, a few digits, and a power. In
# decimal, -0.0375 is -3.75 x 10^-2. A computer does the same with powers of two. Its bits fall into three
# fields:
#
# | sign | exponent | mantissa |
# |---|---|---|
# | 1 bit: 1 means minus | which power of two | the digits after the leading 1 |
#
# Take 0.15625 in **FP16**, which has 5 exponent bits and 10 mantissa bits. In binary it is 0.00101, which
# is 1.01 x 2^-3:
#
# - sign: plus, so `0`.
# - exponent: -3. It is stored with a **bias** added, so that the field is never negative. With 5 bits the
#   bias is 2^4 - 1 = 15. So the field holds -3 + 15 = 12, `01100`.
# - mantissa: the digits after the leading 1, filled up with zeros, `0100000000`. The leading 1 itself is
#   not stored. Every number but zero has it.
#
# Back again: (1 + 256/1024) x 2^(12 - 15) = 1.25 x 0.125 = 0.15625.

# %% name="bits-of-one-number"
x = torch.tensor(0.15625)
code = formats.encode(x, formats.FP16).item()
print(formats.bit_string(code, formats.FP16), " is", formats.decode(torch.tensor(code), formats.FP16).item())

# %% [markdown] name="bits-table-text"
# 0.15625 fits exactly. 0.1 does not: in binary its digits never end, like 1/3 in decimal. Here are the bits
# of the nearest number in each floating-point format, from 32 bits down to 4.

# %% name="bits-table"
for name, format in formats.FLOATS.items():
    code = formats.encode(torch.tensor(0.1), format)
    print(f"{name:9} {formats.bit_string(code, format):35} {formats.decode(code, format).item():.10f}")

# %% [markdown] name="formats-explained"
# - **FP32** is what models are trained from. **TF32** keeps its exponent and 10 bits of its mantissa. It
#   exists inside the matrix units of GPUs only; in memory it takes 32 bits.
# - **BF16** and **FP16** both have 16 bits. BF16 is the upper half of an FP32 number. FP16 moves three
#   bits from the exponent to the mantissa.
# - **FP8** comes in two kinds, named after their fields: **E4M3** and **E5M2**.
# - **FP4** is E2M1. Its nearest number to 0.1 is 0.
#
# Two ends of the exponent mean something else:
#
# - Exponent field 0: **subnormal** numbers. There is no leading 1, and the power is that of field 1. They
#   fill the gap around zero evenly, and zero is one of them.
# - Exponent field all ones: **infinity** (mantissa 0) and **NaN**, "not a number" (any other mantissa).
#   Small formats cannot spare so many codes. E4M3 keeps one NaN for each sign and no infinity. E2M1 has
#   neither.
#
# **Your turn.** Turn bits into numbers, for any split of the fields. `specials` says which of the three
# rules holds for the topmost exponent.

# %% name="ex-decode-float" exercise="course_utils.formats:decode_float" points=3

# %% [markdown] name="every-code-text"
# Is the library's function right? PyTorch has some of these formats as dtypes. A format of 16 bits has
# 65,536 codes. We can try them all, and so we do: decode each code, and compare with what PyTorch makes of
# the same bits. NaN must be NaN, and -0 is not 0.

# %% name="every-code"
def same_number(a, b):
    """Equal bit for bit; two NaN count as equal whatever their bits."""
    return (a.view(torch.int32) == b.view(torch.int32)) | (a.isnan() & b.isnan())


for format, integer, dtype in (
    (formats.BF16, torch.int16, torch.bfloat16),
    (formats.FP16, torch.int16, torch.float16),
    (formats.E5M2, torch.uint8, torch.float8_e5m2),
    (formats.E4M3, torch.uint8, torch.float8_e4m3fn),
):
    codes = torch.arange(2**format.bits)
    theirs = codes.to(integer).view(dtype).float()
    agree = same_number(formats.decode(codes, format), theirs)
    print(f"{format.name:9} {agree.sum():6,} of {len(codes):6,} codes agree with {dtype}")

# %% [markdown] name="explore-text"
# A cosmic ray, or a failing memory chip, can turn a single bit over. Which bit of 0.1 would do the most harm
# in BF16? Guess first, then run the cell and move *flip*: it says which bit is turned over, counted from the
# left. (The sliders need a running kernel. Without one you see three states.)

# %% name="explore"
explore.explore(
    explore.draw_number,
    still=[{"format": "BF16", "number": 0.1, "flip": 0}, {"format": "BF16", "number": 0.1, "flip": 2},
           {"format": "FP8 E4M3", "number": 0.1, "flip": 0}],
    format=list(formats.FLOATS),
    number=[-3, -0.1, 0, 0.001, 0.01, 0.1, 0.5, 1, 1.1, 3.1416, 6, 100, 448, 65504, 70000],
    flip=range(17),
)  # fmt: skip

# %% [markdown] name="range-text"
# ## Range and step
#
# Two properties of a format matter most. Its **range**: the largest and the smallest number. And its
# **step**: how far it is from one number to the next. The exponent bits buy range, the mantissa bits buy
# small steps.

# %% name="range-table"
measure.table({
    name: {
        "bits": format.bits, "exponent": format.exponent_bits, "mantissa": format.mantissa_bits,
        "largest": f"{format.largest:.6g}", "smallest normal": f"{format.smallest_normal:.3g}",
        "smallest": f"{format.smallest:.3g}", "step at 1": f"{format.epsilon:.3g}",
    }
    for name, format in formats.FLOATS.items()
})  # fmt: skip

# %% name="plot-steps"
fig, ax = plt.subplots(figsize=(7.5, 4.2))
sizes = torch.logspace(-32, 18, 4001, base=2)  # from 2^-32 to 2^18, 80 of them for each power of two
for (name, format), color in zip(list(formats.FLOATS.items())[2:], plots.PALETTE.values(), strict=False):
    inside = sizes[(sizes >= format.smallest) & (sizes <= format.largest)]
    step = (inside.log2().floor().exp2().clamp(min=format.smallest_normal)) * format.epsilon
    ax.loglog(inside, 50 * step / inside, base=2, color=color, linewidth=1.3, label=name)
ax.set(xlabel="size of the number", ylabel="largest rounding error (%)", title="Range and relative error")
ax.set_yscale("log", base=10)
ax.set_xticks([2.0**p for p in range(-32, 19, 8)])
ax.legend(fontsize=9, loc="upper left")
plots.show(
    fig,
    "Line chart, both axes logarithmic. Each format is a saw that stays at one height over its range: BF16 "
    "between 0.2 and 0.4 % from end to end of the picture, FP16 between 0.025 and 0.05 % up to 65,504, E4M3 "
    "between 3 and 6 % up to 448, E5M2 between 6 and 12 % up to 57,344, E2M1 between 12 and 25 % up to 6. At "
    "the left end of all but BF16 the error climbs to 50 %: the subnormal numbers.",
)

# %% [markdown] name="plot-steps-reading"
# Each line is a saw with teeth from one power of two to the next, because the step doubles there. Its
# height is given by the mantissa alone, its length by the exponent. Left of the smallest normal number the
# steps stop shrinking, so the error relative to the number grows.
#
# What about a number that is too large? And one that is too small? Try 70,000 and a hundred-millionth.

# %% name="overflow"
for value in (70_000.0, 1e-8):
    outcomes = []
    for name in ("BF16", "FP16", "FP8 E5M2", "FP8 E4M3"):
        outcomes.append(f"{name} {formats.round_to(torch.tensor(value), formats.FLOATS[name]).item():.6g}")
    print(f"{value:g}:  " + ",  ".join(outcomes))
saturated = formats.round_to(torch.tensor(70_000.0), formats.E4M3, saturate=True)
print(f"E4M3, saturated: {saturated.item():g}.  This torch says: {torch.tensor(7e4).to(torch.float8_e4m3fn)}")

# %% [markdown] name="overflow-reading"
# Too large is **overflow**: infinity, or NaN where there is no infinity. Too small is **underflow**: zero.
# Quantizers **saturate** instead: what is too large becomes the largest number. PyTorch's own cast to E4M3
# gave NaN up to version 2.11 and saturates since 2.12, so check before you rely on either.
#
# **Predict.** Take numbers that lie well inside the range of both BF16 and FP16. How many times as large is
# the rounding error in BF16 as in FP16?

# %% name="predict-bf16-loss" predict="formats.predict_bf16_loss" points=1
### BEGIN SOLUTION
prediction = 2 ** (10 - 7)  # three mantissa bits fewer, each doubles the step
### END SOLUTION

# %% [markdown] name="real-weights-text"
# Measure it, on random numbers from a normal distribution and on real weights. The error is
# |rounded - original| / |original|, with lengths of vectors over all numbers of a matrix.

# %% name="load"
model, tokenizer = models.load_lm(LM, device=DEVICE)
shapes.require(model, "formats")
weights = {name: p.detach() for name, p in model.named_parameters() if p.dim() == 2}
print(f"{len(weights)} matrices, {sum(w.numel() for w in weights.values()):,} weights")

# %% name="sixteen-bits" tolerance=0.02
# The last layer that reads the input of the MLP, `up_proj` here, of the block a third of the way down.
layer = shapes.input_groups(model, shapes.place(model, 1 / 3))[-2][-1] + ".weight"


def error_of(values, original):
    """Length of the difference, in percent of the length of the original."""
    return 100 * ((values - original).norm() / original.norm()).item()


normal = torch.randn(1000, 1000, generator=torch.Generator().manual_seed(0))
for label, numbers in (("normal numbers", normal), (layer, weights[layer])):
    bf16 = error_of(formats.round_to(numbers, formats.BF16), numbers)
    fp16 = error_of(formats.round_to(numbers, formats.FP16), numbers)
    print(f"{label}: BF16 {bf16:.4f} %, FP16 {fp16:.4f} %, {bf16 / fp16:.2f} times as much")

# %% [markdown] name="sixteen-bits-reading"
# Eight times for normal numbers, as the mantissas say. The real weights give a little less: they have a
# history that makes many of them easy for BF16. We come to it near the end, under "An honest look at our
# baseline".
#
# If FP16 is so much finer, why does anybody use BF16? Because of its range. We will see how close this
# model comes to the end of FP16's.
#
# ## Formats without an exponent
#
# **INT8** and **INT4** are whole numbers. Their bits are read as **two's complement**: the top bit counts
# minus, so the 4 bits `1011` are -8 + 0 + 2 + 1 = -5. All steps are equal. A whole number says nothing
# about size, so it always comes with a **scale**: weight = code x scale. The usual choice maps the largest
# weight to the largest code, 127 or 7. Then code -8 is never used: INT4 has 15 levels here. {Lesson:ptq} uses
# all 16, with a scale that is a little smaller; compare formats of the two lessons with that in mind.

# %% name="integers"
for bits, code in ((4, 0b1011), (4, 0b0111), (8, 0b10000001)):
    print(f"INT{bits}  {code:0{bits}b}  is {formats.decode_int(torch.tensor(code), bits).item():g}")
largest = weights[layer][0].abs().max()
scale = largest / 7
few = weights[layer][0, :8]
print("a few weights ", [f"{w:.3f}" for w in few.tolist()])
print("as INT4 codes ", formats.decode_int(formats.encode_int(few / scale, 4), 4).int().tolist())

# %% [markdown] name="nf4-text"
# Equal steps are a poor fit. Most weights are small, few are large, roughly as in a normal distribution.
# **NF4**, "normal float", chooses its 16 numbers so that each is used about equally often by numbers that
# *are* normal. It cuts the bell curve into slices of equal probability and takes the **quantiles**, the
# places where the slices meet. The very first and last would lie at infinity, so it begins at probability
# 0.9677083 (QLoRA, arXiv 2305.14314). Then everything is scaled to -1 to 1.
#
# Seven are negative, one is exactly zero, eight are positive: 16. The code is only a place in the table.

# %% name="nf4-table"
positive = torch.special.ndtri(torch.linspace(0.9677083, 0.5, 9)[:-1].double())  # ndtri: the normal quantile
negative = -torch.special.ndtri(torch.linspace(0.9677083, 0.5, 8)[:-1].double())
nf4 = torch.cat([negative, torch.zeros(1), positive.flip(0)]).float()
nf4 = nf4 / nf4.max()
print([round(value, 4) for value in nf4.tolist()])
print(f"The code 0010 is {nf4[0b0010].item():.4f} times the scale.")
theirs = bnb.get_4bit_type("nf4", device="cpu")
print(f"{(nf4 == theirs).sum()} of 16 are the same, to the last bit, as in the table of bitsandbytes")

# %% name="plot-number-lines"
lines = {
    "INT4": formats.decode_int(torch.arange(-7, 8), 4),
    "NF4": formats.NF4.table,
    "FP4 E2M1": formats.value_table(formats.E2M1),
    "FP8 E4M3": formats.value_table(formats.E4M3),
    "FP8 E5M2": formats.value_table(formats.E5M2),
}
fig, ax = plt.subplots(figsize=(7.5, 3.4))
for y, values in enumerate(reversed(lines.values())):
    values = values[values.isfinite()]
    ax.vlines(values / values.max(), y - 0.33, y + 0.33, color=plots.PALETTE["blue"], linewidth=0.8)
    ax.text(1.04, y, f"{values.unique().numel()} numbers", va="center", fontsize=9)
ax.set(yticks=range(len(lines)), yticklabels=list(lines)[::-1], xlim=(-1.05, 1.28))
ax.set(xlabel="number / largest number", title="Where the numbers are")
ax.grid(visible=False)
plots.show(
    fig,
    "Five number lines from -1 to 1 with a stroke for each number of a format. INT4 has 15 strokes at even "
    "distances. NF4 has 16, closer together near zero. FP4 E2M1 has 15, in three distances that double "
    "outwards. FP8 E4M3 and E5M2 are so dense near zero that the strokes merge, E5M2 far more so.",
)

# %% [markdown] name="number-lines-reading"
# Look at E5M2: almost all of its numbers crowd around zero. If the weights are spread over the range, most
# codes are never used. Remember this picture for the table at the end.
#
# **Your turn.** To encode with a table, find the nearest number in it.

# %% name="ex-nearest-code" exercise="course_utils.formats:nearest_code" points=2

# %% [markdown] name="blocks-text"
# ## Numbers that share a scale
#
# FP4 reaches from 0.5 to 6. Where are this model's weights?

# %% name="weight-sizes" tolerance=0.02
sample = torch.cat([w.flatten()[:: 64].float().cpu() for w in weights.values()]).abs()
for share in (0.01, 0.5, 0.99):
    print(f"{share:4.0%} of the weights are below {sample.quantile(share).item():.4f}")
print(f"largest: {max(w.abs().max().item() for w in weights.values()):.2f}")
print(f"FP4 without a scale makes zero of {(sample <= 0.25).float().mean().item():.0%} of them")

# %% [markdown] name="blocks-scale-text"
# A small format needs a scale. And one scale for a whole matrix is not enough, because one large weight
# would push all others towards zero. So a row is cut into **blocks**, and each block has its own.
#
# A scale costs bits too. A code of 4 bits, and a scale of 8 bits for each block of 32, is 4 + 8/32 = 4.25
# bits a weight.
#
# | format | codes | block | scale of a block | bits a weight |
# |---|---|---|---|---|
# | INT4 here | whole numbers | 64 | FP16 | 4.25 |
# | **NF4** (bitsandbytes) | table | 64 | FP32 | 4.5 |
# | NF4, **double quantization** | table | 64 | E4M3, itself scaled in blocks of 256 | 4.127 |
# | **MXFP4** (OCP standard) | E2M1 | 32 | E8M0 | 4.25 |
# | **NVFP4** (NVIDIA) | E2M1 | 16 | E4M3, and one FP32 for the tensor | 4.5 |
#
# INT8, and FP8 "row", have one scale for each row of a matrix here.
#
# **Predict.** How many MB do this model's 134,515,008 weights take in NF4 (without double quantization)?

# %% name="predict-nf4-megabytes" predict="formats.predict_nf4_megabytes" points=1
### BEGIN SOLUTION
prediction = 134_515_008 * (4 + 32 / 64) / 8 / 1e6  # MB
### END SOLUTION

# %% [markdown] name="e8m0-text"
# **E8M0** is a scale and nothing else: eight exponent bits, no sign, no mantissa. Code 127 is 1, code 128
# is 2, code 126 is 1/2. Multiplying by it costs hardware almost nothing, and never rounds.
#
# Which power of two for a block? The MX standard says: that of the block's largest weight, rounded down,
# divided by that of the format's largest number. For E2M1 the largest number is 6, and its power of two is
# 4 = 2^2. If the largest weight of a block is 0.3, its power of two is 0.25 = 2^-2, and the scale is
# 2^(-2 - 2) = 2^-4 = 0.0625. Scaled, 0.3 becomes 4.8, which rounds to 4.
#
# **Your turn.**

# %% name="ex-block-scale" exercise="course_utils.formats:block_scale_e8m0" points=2

# %% [markdown] name="one-block-text"
# Here is one block of real weights by hand, in MXFP4: scale, codes, and what is read back.

# %% name="one-block"
block = weights[layer][0, :32].float().cpu()
scale_code = formats.block_scale_e8m0(block)
scale = formats.decode_e8m0(scale_code)
codes = formats.encode(block / scale, formats.E2M1)
back = formats.decode(codes, formats.E2M1) * scale
print(f"largest {block.abs().max().item():.4f}, scale code {scale_code.item()}, scale {scale.item():g}")
print("weight   scaled   code   read back")
for n in range(6):
    bits = formats.bit_string(codes[n], formats.E2M1)
    print(f"{block[n]:+.4f}  {block[n] / scale:+.3f}   {bits}  {back[n]:+.4f}")
print("the library's MXFP4 gives the same:", torch.equal(formats.convert(block[None], "MXFP4")[0][0], back))

# %% [markdown] name="one-block-reading"
# A power of two is a coarse scale. The largest weight of a block lands anywhere from 4 to 8, but E2M1 ends
# at 6. What lands above 6 is cut off; what lands at 4 wastes the code for 6.
#
# NVFP4 pays for smaller blocks and a finer scale: E4M3 has three mantissa bits. E4M3 has little range, so
# one FP32 number for the whole tensor brings the scales into it. Here is one weight from its bits.

# %% name="one-weight-nvfp4"
quantized = formats.quantize(weights[layer], formats.NVFP4)
code, scale_code = formats.unpack_4bit(quantized.codes.cpu())[0], quantized.scales.cpu()[0]
value, scale = formats.decode(code, formats.E2M1).item(), formats.decode(scale_code, formats.E4M3).item()
of_tensor = quantized.tensor_scale.item()
print(f"code  {formats.bit_string(code, formats.E2M1)}     is {value:g}")
print(f"scale {formats.bit_string(scale_code, formats.E4M3)}  is {scale:g}")
print(f"scale of the tensor, FP32: {of_tensor:.6g}")
print(f"{value:g} x {scale:g} x {of_tensor:.6g} = {value * scale * of_tensor:.4f}")
print(f"read back by the library: {quantized.dequantize()[0, 0].item():.4f}")
print(f"the original weight: {weights[layer][0, 0].item():.4f}")

# %% [markdown] name="block-errors-text"
# What do the finer scale and the smaller block buy? And NF4's table? The last row asks about MXFP4's rule
# for the scale. Rounded down, the largest weights of a block may be cut off. The other way is to round up:
# nothing is cut off, and the steps are twice as large where that makes a difference.

# %% name="block-errors" tolerance=0.02
rows = {}
for name in ("INT4", "NF4", "NF4 double", "MXFP4", "NVFP4"):
    values, nbytes = formats.convert(weights[layer], name)
    rows[name] = {
        "bits per weight": round(8 * nbytes / weights[layer].numel(), 3),
        "weight error (%)": round(error_of(values, weights[layer]), 2),
    }
rounded_up = formats.mxfp4_rounded_up(weights[layer])
rows["MXFP4, scale rounded up"] = {
    "bits per weight": 4.25, "weight error (%)": round(error_of(rounded_up, weights[layer]), 2)}
measure.table(rows)

# %% [markdown] name="nf4-library-text"
# NF4 is what the library bitsandbytes made popular. Do we compute the same? Its codes, its scales and what
# it reads back must agree with ours, weight by weight.

# %% name="nf4-library"
different, compared, ours_bytes, their_bytes = 0, 0, 0, 0
for matrix in list(weights.values())[1:22]:  # the first three layers
    w = matrix.float().cpu()
    ours = formats.quantize(w, formats.NF4)
    packed, state = bnb.quantize_4bit(w, blocksize=64, quant_type="nf4")
    different += (ours.dequantize() != bnb.dequantize_4bit(packed, state)).sum().item()
    compared += w.numel()
    ours_bytes += ours.nbytes
    their_bytes += packed.nbytes + state.absmax.nbytes
print(f"{different} of {compared:,} weights differ")
print(f"bytes: ours {ours_bytes:,}, bitsandbytes {their_bytes:,}")

# %% [markdown] name="where-text"
# ## Where are the real numbers?
#
# A format is good if its numbers are where the model's numbers are. There are two kinds: the **weights**,
# which never change, and the **activations**, the vectors that flow through the layers and depend on the
# text. Each row below is a histogram of one layer, dark where many numbers are. The bars above show where
# formats begin and end.
#
# Before you run it: which of the two has the larger spread? By how much?

# %% name="collect-activations"
tokens = data.wikipedia_tokens(tokenizer, "heldout", 1024).to(DEVICE)
EDGES = (-30, 18, 96)  # from 2^-30 to 2^18, two bins for each power of two


def histogram(x):
    """How many numbers of each size: counts over log2 |x|, on the CPU."""
    sizes = x.detach().float().abs().flatten().clamp(min=2.0 ** EDGES[0])
    return torch.histc(sizes.log2(), bins=EDGES[2], min=EDGES[0], max=EDGES[1]).cpu()


layers = len(shapes.block_list(model))
weight_counts = torch.zeros(layers, EDGES[2])
activation_counts = torch.zeros(layers, EDGES[2])
largest = {}  # place -> largest magnitude of each layer
residual = {}  # layer -> the vectors that leave it, [tokens, hidden size]


def watch(n, place):
    """A hook that looks at what goes into a linear layer, or at what leaves a whole layer."""

    def hook(module, args, output):
        x = args[0]
        if place == "residual stream":
            x = residual[n] = (output[0] if isinstance(output, tuple) else output).view(-1, x.shape[-1])
        largest.setdefault(place, {})[n] = x.abs().max().item()
        activation_counts[n] += histogram(x)

    return hook


hooks = []
first = [names[0].rsplit(".", 1)[1] for names in shapes.input_groups(model)]  # q, o, gate, down
for n, block in enumerate(shapes.block_list(model)):
    for name, module in block.named_modules():
        if isinstance(module, torch.nn.Linear):
            weight_counts[n] += histogram(module.weight)
            short = name.split(".")[-1]
            if short in first:  # k, v, up have the same inputs
                hooks.append(module.register_forward_hook(watch(n, f"into {short}")))
    hooks.append(block.register_forward_hook(watch(n, "residual stream")))
with torch.inference_mode():
    model.base_model(tokens[None, :512], use_cache=False)
for hook in hooks:
    hook.remove()
largest_weight = max(w.abs().max().item() for w in weights.values())

# %% name="plot-histograms" tolerance=0.05
fig, axes = plt.subplots(2, 2, figsize=(9, 5.6), sharex=True, sharey="row", height_ratios=(1, 3))
shown = ("FP4 E2M1", "FP8 E4M3", "FP8 E5M2", "FP16", "BF16")
for ax in axes[0]:
    for y, name in enumerate(shown):
        format = formats.FLOATS[name]
        for start, width in ((format.smallest, 3), (format.smallest_normal, 8)):  # thin where subnormal
            left, right = max(math.log2(start), EDGES[0]), min(math.log2(format.largest), EDGES[1])
            ax.plot([left, right], [y, y], linewidth=width, solid_capstyle="butt", color="#009E73")
    ax.set(yticks=range(len(shown)), yticklabels=shown, ylim=(-0.7, len(shown) - 0.3))
for ax, title, counts in (
    (axes[1, 0], "weights", weight_counts), (axes[1, 1], "activations", activation_counts),
):  # fmt: skip
    shade = (counts / counts.sum(1, keepdim=True)).clamp(min=1e-8).log10()
    image = ax.imshow(
        shade, aspect="auto", cmap="Blues", vmin=-7, vmax=-1,
        extent=(EDGES[0], EDGES[1], layers - 0.5, -0.5), interpolation="nearest",
    )  # fmt: skip
    ax.set(xlabel="log2 of the size")
    ax.grid(visible=False)
    axes[0, 0 if title == "weights" else 1].set_title(title)
tops = [math.log2(v) for _, v in sorted(largest["residual stream"].items())]
axes[1, 1].plot(tops, range(layers), ".", color=plots.PALETTE["vermilion"], label="largest of a layer")
axes[1, 1].legend(loc="center left", fontsize=8, handletextpad=0)
axes[1, 0].set_ylabel("layer")
fig.colorbar(image, ax=axes[1], label="log10 of the share", shrink=0.9)
top = max(largest["residual stream"].values())
plots.show(
    fig,
    "Above, bars for the ranges of five formats, thin where numbers are subnormal. Below, two heat maps with "
    "layers from top to bottom and log2 of a number's size from left to right. Weights form one band, most "
    f"of it from 2^-6 to 2^-1 in every layer, the largest {largest_weight:.1f}. Activations spread wider, "
    "most of them from 2^-9 to 2^5. Dots mark the largest of each layer: from layer "
    f"{next((n for n in range(layers) if tops[n] > 10), 'none')} on it is near {top:,.0f}, beyond the bar of "
    "E4M3 and inside that of FP16. Zeros are counted at the left edge.",
)

# %% name="largest" tolerance=0.05
rows = {}
for place, by_layer in largest.items():
    worst = max(by_layer, key=by_layer.get)
    rows[place] = {
        "largest": round(by_layer[worst], 1),
        "in layer": worst,
        "layers beyond E4M3 (448)": sum(v > formats.E4M3.largest for v in by_layer.values()),
        "beyond E5M2 (57,344)": sum(v > formats.E5M2.largest for v in by_layer.values()),
        "beyond FP16 (65,504)": sum(v > formats.FP16.largest for v in by_layer.values()),
    }
measure.table(rows)

# %% [markdown] name="massive-text"
# The weights of this model are easy: a narrow band, and nothing above 10. The activations are not. Who is
# that very large number?

# %% name="massive" tolerance=0.05
peak_layer = max(largest["residual stream"], key=largest["residual stream"].get)
stream = residual[peak_layer]
position, channel = divmod(stream.abs().argmax().item(), stream.shape[1])
peak = stream[position, channel]
print(f"after layer {peak_layer}: {peak.item():,.0f}, at token {position}, channel {channel}")
print(f"the same channel at the other tokens: at most {stream[1:, channel].abs().max().item():,.0f}")
print(f"median size of all numbers there: {stream.abs().median().item():.2f}")
sizes, places = stream.abs().amax(dim=1).topk(4)
for size, place in zip(sizes.tolist(), places.tolist(), strict=True):
    print(f"token {place:3d}: largest number {size:,.0f}")

# %% [markdown] name="massive-reading"
# One channel of one token, the first: over a hundred times as large as anything at the other tokens, and
# thousands of times the median. Such **massive activations** were found in many language models (Sun et al.,
# arXiv 2402.17762): at the first token, whatever it is, in some models also at the first full stop or line
# break. Set to zero, they ruin the model: attention heads that have nothing to do rest on that token.
#
# It fits into FP16, by a factor of three. But a norm squares its input. If everything were computed in FP16:

# %% name="norm-overflow" tolerance=0.05
for name in ("FP32", "BF16", "FP16"):
    square = formats.round_to(formats.round_to(peak, formats.FLOATS[name]) ** 2, formats.FLOATS[name])
    print(f"{name}: {peak.item():,.0f} squared is {square.item():.3g}")

# %% [markdown] name="norm-overflow-reading"
# Infinity, and everything divided by it is zero. That is one reason why norms convert to FP32 first, whatever
# the model's dtype, and why models are trained in BF16 rather than FP16.
#
# ## The model in every format
#
# Now put *all* matrices into each format, embedding included, and measure. Only the values change: the
# weights become what the format can hold, and the arithmetic stays FP32. So the loss you see is that of the
# format alone. Speed is another matter, for the lessons to come.
#
# Before you run it, write down a guess. The first line of the table will be FP32.

# %% name="guess"
my_guess_for_nf4 = None  # perplexity: replace None by a number

# %% name="every-format" tolerance=0.03 atol=0.03
results = {}
with formats.converting(model) as put_weights_in:
    for name in formats.FORMATS:
        converted = put_weights_in(name)
        results[name] = (converted, measure.perplexity(model, tokens, window=512))
base = results["FP32"][1].value
rows = {}
for name, (converted, result) in results.items():
    ruined = result.value > 1000
    rows[name] = converted.row() | {
        "perplexity": "over 1000" if ruined else f"{result.value:.2f}",
        "against FP32": "ruined" if ruined else f"{100 * (result.value / base - 1):+.2f} %",
    }
print(results["FP32"][1])
measure.table(rows)

# %% name="guess-answer" tolerance=0.03
if my_guess_for_nf4 is not None:
    print(f"You guessed {my_guess_for_nf4}.")
print(f"NF4: perplexity {results['NF4'][1].value:.2f}, FP32 {base:.2f}")

# %% name="plot-perplexity" tolerance=0.1 atol=1
loss = {name: 100 * (result.value / base - 1) for name, (_, result) in results.items()}
ordered = sorted((name for name in results if loss[name] < 1000), key=lambda name: -results[name][0].bits)
fig, ax = plt.subplots(figsize=(7.5, 4.4))
for y, name in enumerate(ordered):
    color = plots.PALETTE["blue" if name in formats.FLOATS else "vermilion"]
    ax.plot([0, loss[name]], [y, y], color=color, linewidth=1)
    ax.plot(loss[name], y, "o", color=color, markersize=8)
    text = f"{loss[name]:+.0f} %" if loss[name] > 9.5 else f"{loss[name]:+.2f} %"
    ax.annotate(text, (max(loss[name], 0), y), xytext=(9, -4), textcoords="offset points", fontsize=9)
ax.set_yticks(range(len(ordered)), [f"{name}, {results[name][0].bits:.4g} bits" for name in ordered])
ax.set_xscale("symlog", linthresh=0.1)
ax.set_xticks([0, 0.1, 1, 10, 100], ["0", "0.1", "1", "10", "100"])
ax.set(xlim=(-0.06, 600), xlabel="perplexity above FP32 (%)")
ax.set_title("One number alone (blue), or with a shared scale (red)")
four = ("INT4", "NF4", "NF4 double", "MXFP4", "NVFP4")
best, worst = min(four, key=loss.get), max(four, key=loss.get)
plots.show(
    fig,
    "Dot chart of perplexity above FP32, in percent, a row for each format from 32 bits down to 4. With 32 "
    f"and 16 bits the dots lie at zero. FP8 E5M2 alone costs {loss['FP8 E5M2']:.0f} %, E4M3 "
    f"{loss['FP8 E4M3']:.0f} %, INT8 {loss['INT8']:.1f} %. The formats near 4 bits cost between "
    f"{loss[best]:.0f} % ({best}) and {loss[worst]:.0f} % ({worst}).",
)

# %% [markdown] name="ranking-text"
# 1,024 tokens are two windows: enough to see a ruin, too few to rank. The course keeps a measurement on
# 16,384 held-out tokens, compared window by window (`course bench formats_ranking`).

# %% name="every-format-reading"
record = records.load("bench_formats_ranking")
ranked = {}
if record is None:
    print("no recorded run yet: course bench formats_ranking makes one")
else:
    print(records.provenance_line(record))
    ranked = {row["format"]: measure.Perplexity(**row["result"]) for row in record["results"]["rows"]}
    print(measure.ranking(ranked, "FP32").drop(columns=["tokens scored", "window"]).to_string())
    print()
    by_loss = sorted((name for name in (*four, "MXFP4, scale rounded up")), key=lambda name: ranked[name].nll)
    pairs = [("FP8 E4M3", "FP8 E5M2"), ("FP8 E4M3 row", "FP8 E4M3"), ("INT8", "FP8 E4M3 row"),
             ("MXFP4, scale rounded up", "MXFP4")]  # fmt: skip
    for name, other in pairs + list(zip(by_loss, by_loss[1:], strict=False)):
        print(measure.compare(ranked[name], ranked[other]).sentence(name, other))

# %% [markdown] name="every-format-explained"
# - A difference that is shown need not matter: the error can be so small that even a ten-thousandth of a nat
#   stands out. Read the size first, then the verdict.
# - FP4 alone destroys the model. Most weights became zero, all others 0.5 or more. The scale makes the
#   difference, not the four bits.
# - E4M3 is a floating-point format: its steps are relative already, so dividing by a scale moves a weight
#   along the saw and hardly changes the error of the weights, as long as few of them are subnormal. What it
#   does to the perplexity stands among the sentences above. INT8 has steps of one size, 127
#   on either side: in a narrow band they are finer than E4M3's.
# - At 4 bits it matters where the 16 numbers are, how large the block is, and how fine its scale.
#   Bits per weight are part of the comparison: INT4 and MXFP4 have 4.25, NF4 and NVFP4 4.5.
# - This model is small. Published losses of larger models at 4 bits are smaller: {lesson:awq} quotes one.
#
# Is it this model that makes E4M3's error so indifferent to a scale? Its weights are large: the first line
# below
# has their spread as it is. Many models have weights that spread by 0.02 only. Shrink the weights of one
# matrix, and see whom it hurts. E4M3's subnormal numbers begin below 2^-6 = 0.016.

# %% name="smaller-weights" tolerance=0.03
w = weights[layer].float()
rows = {}
for spread in (w.std().item(), 0.02, 0.005):
    scaled = w * (spread / w.std())
    tiny = (scaled.abs() < formats.E4M3.smallest_normal).float().mean().item()
    rows[f"spread {spread:.3f}"] = {
        "subnormal in E4M3 (%)": round(100 * tiny, 1),
        **{f"{name}: error (%)": round(error_of(formats.convert(scaled, name)[0], scaled), 2)
           for name in ("FP8 E4M3", "FP8 E4M3 row", "INT8", "NF4")}}  # fmt: skip
measure.table(rows)

# %% [markdown] name="article-drop-text"
# With a scale for each row all three lines are the same: the scale undoes the shrinking. Without one E4M3
# gets coarser the smaller the weights are. So "a scale hardly changes E4M3's error" is about this model's
# weights, not about E4M3.
#
# The article that this course examines puts 8 bits at less than 1 % and 4 bits at about 2 % of accuracy.
# Accuracy on a task is a coarser measure than perplexity, and its models are larger. What this model says:

# %% name="article-drop"
if ranked:
    for name in ("INT8", *by_loss):
        print(f"{name:24} perplexity {100 * (ranked[name].value / ranked['FP32'].value - 1):+.2f} %: "
              f"{measure.compare(ranked[name], ranked['FP32'])}")  # fmt: skip

# %% [markdown] name="library-cast-text"
# Is it the same with the library that everybody uses? PyTorch's own casts, on every fourth matrix, the
# embedding among them:

# %% name="library-cast"
for name, dtype in (
    ("BF16", torch.bfloat16), ("FP16", torch.float16),
    ("FP8 E5M2", torch.float8_e5m2), ("FP8 E4M3", torch.float8_e4m3fn),
):  # fmt: skip
    different, compared = 0, 0
    for w in list(weights.values())[::4]:
        different += (formats.round_to(w, formats.FLOATS[name]) != w.float().to(dtype).float()).sum().item()
        compared += w.numel()
    print(f"{name:9} {different} of {compared:,} weights differ from .to({dtype})")

# %% [markdown] name="source-text"
# ## An honest look at our baseline
#
# The embedded model was not stored in FP32. It comes from a file of 98 MB in a format named **Q4_1**:
# linear weights in groups of 32, each with a scale and a minimum, and a code of 4 bits; the embedding in
# 8 bits (Q8_0). We wrote those values out as FP32. So each group of 32 weights has at most 16 different
# values. Count them:

# %% name="distinct-values"
def distinct(w, group=32):
    """Mean and largest number of different values in a group."""
    ordered = w.reshape(-1, group).sort(dim=1).values
    counts = (ordered[:, 1:] != ordered[:, :-1]).sum(dim=1) + 1
    return counts.float().mean().item(), counts.max().item()


for name in (shapes.input_groups(model)[0][0] + ".weight", layer, next(iter(weights))):
    mean, most = distinct(weights[name])
    print(f"{name:40} mean {mean:.1f}, at most {most} different values in 32")

# %% [markdown] name="source-question"
# What does that do to the error of a format? One whose 16 values of a group are the same as the file's would
# have no error at all. Ours have other values and other blocks. To see the effect, make weights that *might*
# have been the original: move each weight by a random amount within half a step of its group. Q4_1 would
# store exactly the same codes for them. Then compare errors.

# %% name="source-experiment" tolerance=0.05
def like_original(w, group=32):
    """Weights that Q4_1 would round to w: each moved by up to half a step, the ends of a group kept."""
    g = w.reshape(-1, group)
    low, high = g.amin(1, keepdim=True), g.amax(1, keepdim=True)
    noise = torch.rand(g.shape, generator=torch.Generator().manual_seed(0)).to(w.device) - 0.5
    return (g + noise * (high - low) / 15).clamp(low, high).view_as(w)


def q4_1(w, group=32):
    """16 even steps between the smallest and the largest weight of each group."""
    g = w.reshape(-1, group)
    low, high = g.amin(1, keepdim=True), g.amax(1, keepdim=True)
    step = ((high - low) / 15).clamp(min=1e-12)
    return (((g - low) / step).round() * step + low).view_as(w)


def both_errors(function):
    return {
        f"{kind}: error (%)": float(f"{error_of(function(w), w):.3g}")
        for kind, w in (("stored weights", stored), ("like the original", original))
    }


stored = weights[layer].float()
original = like_original(stored)
rows = {"Q4_1 again": both_errors(q4_1)}
for name in ("BF16", "FP16", "FP8 E4M3", "INT8", "INT4", "NF4", "MXFP4", "NVFP4"):
    rows[name] = both_errors(lambda w, name=name: formats.convert(w, name)[0])
measure.table(rows)

# %% [markdown] name="source-reading"
# Q4_1 itself has no error on the stored weights, and that would be a false result. For INT8 and the 4-bit
# formats the two columns lie close together, for BF16 they do not: a stored weight is a small whole number
# times its group's step, give or take the minimum, and such numbers need fewer digits. But these "originals"
# are made up. Here are weights that really never were rounded: MiniLM's, a small encoder that the course uses
# later, stored in FP32 by those who trained it.

# %% name="never-rounded" tolerance=0.05
encoder, _ = models.load_encoder()
fresh = next(p.detach().float() for n, p in encoder.named_parameters()
             if n.endswith("layer.2.intermediate.dense.weight"))  # fmt: skip
mean, most = distinct(fresh)
print(f"{list(fresh.shape)}, spread {fresh.std():.3f}, on average {mean:.1f} different values in 32")
rows = {}
for name in ("BF16", "FP16", "FP8 E4M3", "FP8 E4M3 row", "INT8", "INT4", "NF4", "MXFP4", "NVFP4"):
    rows[name] = {
        "MiniLM, never rounded: error (%)": float(f"{error_of(formats.convert(fresh, name)[0], fresh):.3g}"),
        "ours, from a 4-bit file": float(f"{error_of(formats.convert(stored, name)[0], stored):.3g}"),
    }
del encoder
measure.table(rows)

# %% [markdown] name="never-rounded-reading"
# Two matrices of two models differ in more than their past, so a difference here has no one cause. What
# holds: no format of the table gains an error of another order of magnitude from it. {Lesson:one_token}
# says once what this means for the course's perplexities.
#
# ## Activations in fewer bits
#
# To compute in 8 bits, the inputs of the matrix products must fit too. The same experiment with weights in
# FP32 and every linear layer's *input* rounded. "Row" is a scale for each token here. Predict before you
# look: which FP8 leaves the lower perplexity, the one with smaller steps, which cuts off at 448, or the one
# with the range? The four windows of 256 tokens are few, but enough for an error.

# %% name="activation-formats" tolerance=0.05 atol=0.1
def perplexity_with_inputs(convert):
    """Perplexity of the text with every linear layer's input rounded by `convert`."""
    last = [None, None]  # several layers share an input: round it once

    def rounded(module, args):
        if args[0] is not last[0]:
            last[:] = args[0], convert(args[0])
        return (last[1],)

    hooks = [
        module.register_forward_pre_hook(rounded)
        for module in model.modules()
        if isinstance(module, torch.nn.Linear)
    ]
    try:
        return measure.perplexity(model, tokens, window=256)
    finally:
        for hook in hooks:
            hook.remove()


inputs = {"FP32": measure.perplexity(model, tokens, window=256)}
for name in ("FP16", "FP8 E5M2", "FP8 E4M3", "FP8 E4M3 row", "INT8"):
    inputs[name] = perplexity_with_inputs(lambda x, name=name: formats.convert(x, name)[0])
inputs["FP8 E4M3, not saturated"] = perplexity_with_inputs(lambda x: formats.round_to(x, formats.E4M3))
rows = {}
for name, result in inputs.items():
    ratio = result.value / inputs["FP32"].value
    rows[name] = {"perplexity": f"{result.value:.2f}", "FP32 = 1": f"{ratio:.2f}"}
measure.table(rows)

# %% name="activation-compared" timing=true
for name, other in (("FP8 E4M3", "FP8 E5M2"), ("FP8 E4M3 row", "FP8 E4M3"), ("FP8 E4M3", "FP32")):
    print(measure.compare(inputs[name], inputs[other]).sentence(name, other))

# %% [markdown] name="activation-reading"
# E4M3 cuts the largest inputs to 448. How can that go well? An explanation that fits, not tested: what is cut
# is still by far the largest number of its token, and the next norm divides by what comes of it in any case:
# the direction of the vector hardly changes. E5M2 keeps that one number and pays with coarse steps for all
# others.
#
# This is luck of a kind. Without saturation, one number that is too large makes NaN of everything. With a
# scale for each token nothing is cut off at all.

# %% [markdown] name="replicate"
# ## What would not replicate elsewhere, and what holds anyway
#
# - Perplexities are of this model and this text. Differences between formats are far more certain than the
#   values, because every format reads the same windows; each comes with its error.
# - The order of the 4-bit formats depends on the weights, on what stays unconverted, and on how scales are
#   chosen.
#   Here every matrix was converted, the embedding too, which most tools leave in 16 bits. {Lesson:ptq} to
#   {lesson:awq} choose scales in other ways.
# - Massive activations were found in most language models that were looked at; their size and layer differ.
#   Models with a gate behind their attention have hardly any (Qiu et al., "Gated Attention for Large Language
#   Models", arXiv 2505.06708).
# - Which format is *fast* depends on the hardware: FP8 and FP4 need matrix units that have them. On a CPU
#   they save memory, and cost time to decode.
# - The formats themselves hold everywhere: bits, ranges, steps and bits per weight are the same on every
#   machine. Only overflow needs care, as you saw with PyTorch's cast.
#
# ## Recap
#
# - Sign, exponent, mantissa. Exponent bits buy range, mantissa bits buy small steps.
# - BF16 has FP32's range, FP16 steps that are eight times as small. E4M3 ends at 448, FP16 at 65,504.
# - A small format needs a scale, and the scale costs bits: 4 becomes 4.25 or 4.5.
# - NF4 puts its 16 numbers where a normal distribution has its weight; E2M1 is a float of 4 bits; an E8M0
#   scale is a power of two.
# - Weights are easy: a narrow band. Activations have outliers, and decide which range is needed.
#
# {Lesson:ptq} quantizes for real: codes in memory instead of rounded FP32, and products computed from them.
