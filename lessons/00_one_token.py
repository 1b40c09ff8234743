# %% [markdown] name="title" goal="The bytes, operations and seconds of one token, and how good the model is"
# # What does one token cost?
#
# A language model writes one small piece of text at a time. What does each piece cost: how many bytes,
# how many operations, how many seconds? And which of the three is the one to save?
#
# You will count the parameters of a real model, weigh it, time it, find what its speed is limited by, and
# measure how good it is. Every later lesson makes something smaller or faster, and uses these
# measurements to say by how much, and at what loss.
#
# You need to know Python and what a matrix product is. Terms of the field are explained where they first
# appear, in **bold**.

# %% name="imports"
import copy
import math
import time

import matplotlib.pyplot as plt
import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from course_utils import costs, data, measure, models, plots, shapes

plots.style()

# %% [markdown] name="machine-text"
# Timings mean nothing without the machine they were taken on. This is yours:

# %% name="machine" timing=true
print(measure.machine_card())

# %% [markdown] name="model-text"
# ## From text to numbers and back
#
# The model of this course is SmolLM2-135M-Instruct, a small relative of the models behind chat
# assistants. It is small enough to run on two processor cores. Apart from its size it is built like the
# large ones.
#
# A model does not read letters. A **tokenizer** cuts the text into **tokens**, pieces from a fixed list,
# the **vocabulary**, and hands over their places in the list. A frequent word is one token, a rare one
# several.

# %% name="load"
model, tokenizer = models.load_lm(LM, device=DEVICE)
shapes.require(model, "one_token")
ids = tokenizer("The capital of France is", return_tensors="pt")["input_ids"].to(DEVICE)
for token in ids[0].tolist():
    print(f"{token:6d}  {tokenizer.decode([token])!r}")
print(f"The vocabulary has {model.config.vocab_size:,} tokens.")

# %% [markdown] name="logits-text"
# For each position the model answers with one number per vocabulary entry: how much it likes that token
# as the next one. These numbers are called **logits**. The function *softmax* turns them into
# probabilities that sum to one.

# %% name="logits" atol=0.004
with torch.inference_mode():
    logits = model(ids).logits  # [texts, positions, vocabulary]
print("shape of the logits:", list(logits.shape))
probabilities = torch.softmax(logits[0, -1].float(), dim=-1)
for p, token in zip(*(x.tolist() for x in probabilities.topk(3)), strict=True):
    print(f"{p:.3f}  {tokenizer.decode([token])!r}")

# %% [markdown] name="predict-bytes-text"
# ## How many bytes?
#
# A **parameter** is one of the numbers that training has set. They are what fills the memory. The name
# says 135M: about 135 million of them. Here they are stored as **FP32**, floating-point numbers of 32
# bits; {lesson:formats} takes such formats apart.
#
# **Predict first.** How many bytes do the parameters take? Write a number; 5 % off is close enough. A
# guess costs nothing, and you will remember the answer better.

# %% name="predict-bytes" predict="one_token.predict_bytes" points=1
### BEGIN SOLUTION
prediction = 135e6 * 4  # bytes: four for each parameter
### END SOLUTION

# %% [markdown] name="count-text"
# Where do 135 million numbers come from? Everything follows from a few entries of the model's **config**:

# %% name="config"
for entry in (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "head_dim", "intermediate_size", "tie_word_embeddings",
):  # fmt: skip
    print(f"{entry:20} {getattr(model.config, entry)}")

# %% [markdown] name="derive-count"
# Inside the model each token is a vector of `hidden_size` numbers.
#
# - The **embedding** is a table with one such vector for each token of the vocabulary.
# - Then come `num_hidden_layers` layers of one shape. In each of them:
#   - **attention** lets a token look at the ones before it, through four matrices. *Query* and *output*
#     are `hidden_size` x (`num_attention_heads` x `head_dim`) or the other way round. *Key* and *value*
#     have `num_key_value_heads` heads only: several queries share a key. That is called grouped-query
#     attention.
#   - the **MLP** changes each token by itself, through three matrices between `hidden_size` and
#     `intermediate_size`: *gate*, *up* and *down*.
#   - two **norms** keep the vectors at an even length; each is a vector of `hidden_size` numbers.
# - One more norm stands after the last layer.
# - The **output matrix** turns the last vector into logits. It has the shape of the embedding. In this
#   model it *is* the embedding (`tie_word_embeddings`): the same memory, used twice.
#
# **Your turn.** Write the count as a function of the config.

# %% name="ex-parameter-count" exercise="course_utils.costs:parameter_count" points=2

# %% [markdown] name="count-measured-text"
# Is the formula right for the real model? Ask it in three ways: our formula, the sum over its tensors,
# and the function that transformers offers.

# %% name="count-measured"
tensors = sum(parameter.numel() for parameter in model.parameters())
print(f"from the config         {costs.parameter_count(model.config):,}")
print(f"sum over the tensors    {tensors:,}")
print(f"transformers says       {model.num_parameters():,}")

# %% name="bytes-measured"
weights = measure.weight_bytes(model)
print(weights)
print(f"measured by weight_bytes  {weights.total:,} bytes")
print(f"transformers says         {model.get_memory_footprint():,} bytes")
print(f"parameters x 4            {4 * tensors:,} bytes")

# %% [markdown] name="share-text"
# `weight_bytes` looks at the memory itself: each block once, however many tensors point to it. So a tied
# matrix does not count twice, and a quantized model will be counted as it is really stored. The few bytes
# more than parameters x 4 are a table that the model computes once and keeps beside its parameters.
#
# **Predict.** How much of the model is the embedding, in percent?

# %% name="predict-embedding-share" predict="one_token.predict_embedding_share" points=1
### BEGIN SOLUTION
prediction = 100 * 49152 * 576 / 134.5e6  # percent
### END SOLUTION

# %% name="where-bytes"
PARTS = {
    "embed_tokens": "embedding", "lm_head": "output", "self_attn": "attention", "mlp": "MLP",
    "norm": "norms", "rotary_emb": "position table",
}  # fmt: skip


def part_of(module):
    """The part of the model that a module's name belongs to."""
    return next((part for key, part in PARTS.items() if key in module), "other")


held = pd.DataFrame(
    [(name, part_of(name), nbytes) for name, nbytes in weights.by_module.items()],
    columns=["module", "part", "bytes"],
)
by_part = held.groupby("part")["bytes"].sum().sort_values(ascending=False)
pd.DataFrame({"MB": (by_part / 1e6).round(2), "share (%)": (100 * by_part / weights.total).round(1)})

# %% name="plot-bytes"
held["block"] = held["module"].str.extract(r"layers\.(\d+)\.")[0].astype(float)
layers = held.groupby(["block", "part"])["bytes"].sum().unstack()
fig, ax = plt.subplots(figsize=(7.5, 3.4))
ax.bar(-2, by_part["embedding"] / 1e6, color=plots.PALETTE["orange"], label="embedding")
bottom = 0
for part, color in (("MLP", "blue"), ("attention", "sky")):
    ax.bar(layers.index, layers[part] / 1e6, bottom=bottom, color=plots.PALETTE[color], label=part)
    bottom = layers[part] / 1e6
share = by_part["embedding"] / weights.total
ax.annotate(f"{share:.0%} of all bytes", (-1.4, 0.9 * by_part["embedding"] / 1e6))
ax.set(xlabel="layer", ylabel="MB in FP32", title="Where the bytes are")
ax.set_xticks(range(0, len(layers), 5))
ax.grid(axis="x", visible=False)
ax.legend()
layer_mb = layers.sum(axis=1).iloc[0] / 1e6
plots.show(
    fig,
    f"Bar chart. The embedding holds {by_part['embedding'] / 1e6:.0f} MB, {share:.0%} of all bytes; each of "
    f"the {len(layers)} layers holds {layer_mb:.0f} MB, three quarters of it in the MLP. Norms are too small "
    "to be seen.",
)

# %% [markdown] name="bits-text"
# ## Fewer bits for each number
#
# A parameter need not have 32 bits. Stored in 16, 8 or 4 bits the model shrinks by 2, 4 or 8. That is
# called **quantization** and is the subject of the next lessons. It has a small overhead: 4 bits can name
# 16 values only, so each **group** of neighbouring numbers gets a *scale* that says how large its values
# are, often in 16 bits, and sometimes a *zero point* that says where zero lies.
#
# **Your turn.** How many bytes are left?

# %% name="ex-bytes-at-bits" exercise="course_utils.costs:bytes_at_bits" points=2

# %% [markdown] name="bits-table-text"
# For this model, if everything were quantized, and if the embedding stayed in 16 bits as it usually does:

# %% name="bits-table"
parameters = costs.parameter_count(model.config)
embedding = model.config.vocab_size * model.config.hidden_size
formats = [
    ("FP32", 32, None),
    ("16 bit", 16, None),
    ("8 bit", 8, None),
    ("4 bit, no scales", 4, None),
    ("4 bit, group 64", 4, 64),
    ("4 bit, group 32", 4, 32),
]
rows = {}
for label, bits, group in formats:
    everything = costs.bytes_at_bits(parameters, bits, group)
    mixed = costs.bytes_at_bits(parameters - embedding, bits, group)
    mixed += costs.bytes_at_bits(embedding, max(bits, 16))
    rows[label] = {
        "bits per number": round(8 * everything / parameters, 3),
        "everything (MB)": round(everything / 1e6, 1),
        "embedding in 16 bits or more (MB)": round(mixed / 1e6, 1),
        "of 16 bit (%)": round(100 * mixed / costs.bytes_at_bits(parameters, 16), 1),
    }
measure.table(rows)

# %% [markdown] name="bits-reading"
# "4 bit" is a quarter of 16 bit only on paper. Scales add 6 to 12 percent, and what stays unquantized
# weighs more the smaller the rest becomes. In a small model with a large vocabulary that is much.
#
# ## Claim C1: how much memory does LLaMA-13B need?
#
# This course takes the claims of an article for beginners one by one and measures them. The first:
# {claim:C1}. (**INT8** and **INT4** are whole numbers of 8 and 4 bits.)
#
# **Predict.** How many GB (10^9 bytes) are its 13 billion parameters in FP32?

# %% name="predict-13b-gigabytes" predict="one_token.predict_13b_gigabytes" points=1
### BEGIN SOLUTION
prediction = 13.0 * 4  # GB
### END SOLUTION

# %% [markdown] name="llama-13b-text"
# Your formula needs the config only. Its numbers are in table 2 of the LLaMA paper (arXiv 2302.13971);
# the width of the MLP and the vocabulary are in the released configuration. For comparison we let
# transformers build the model on the *meta* device, which knows shapes and holds no memory.

# %% name="llama-13b"
llama_13b = LlamaConfig(
    vocab_size=32000, hidden_size=5120, intermediate_size=13824, num_hidden_layers=40,
    num_attention_heads=40, num_key_value_heads=40, tie_word_embeddings=False,
)  # fmt: skip
with torch.device("meta"):
    built = LlamaForCausalLM(llama_13b).num_parameters()
parameters_13b = costs.parameter_count(llama_13b)
print(f"from the config    {parameters_13b:,}")
print(f"built on meta      {built:,}")

# %% name="llama-13b-table"
outside = 2 * llama_13b.vocab_size * llama_13b.hidden_size  # embedding and output matrix
article = {"FP32": 26.0, "INT8": 13.0, "INT4": 6.5}  # GB, as the article prints them
gigabytes = {
    "FP32": costs.bytes_at_bits(parameters_13b, 32) / 1e9,
    "FP16": costs.bytes_at_bits(parameters_13b, 16) / 1e9,
    "INT8": costs.bytes_at_bits(parameters_13b, 8) / 1e9,
    "INT4": costs.bytes_at_bits(parameters_13b, 4) / 1e9,
    "INT4, group 128": costs.bytes_at_bits(parameters_13b, 4, 128) / 1e9,
    "INT4, group 128, rest FP16": (
        costs.bytes_at_bits(parameters_13b - outside, 4, 128) + costs.bytes_at_bits(outside, 16)
    )
    / 1e9,
}
measure.table(
    {
        label: {"computed (GB)": round(value, 2), "the article (GB)": article.get(label, "")}
        for label, value in gigabytes.items()
    }
)

# %% name="plot-13b"
fig, ax = plt.subplots(figsize=(7.5, 3.2))
labels = [label.replace(", ", "\n") for label in gigabytes]
ax.bar(labels, gigabytes.values(), color=plots.PALETTE["blue"], label="computed")
named = [list(gigabytes).index(label) for label in article]
ax.scatter(named, article.values(), color=plots.PALETTE["vermilion"], zorder=3, label="the article")
ax.set(ylabel="GB", title="LLaMA-13B: weights")
ax.tick_params(axis="x", labelsize=9)
ax.grid(axis="x", visible=False)
ax.legend()
plots.show(
    fig,
    f"Bar chart of LLaMA-13B's weights: FP32 {gigabytes['FP32']:.1f} GB, FP16 {gigabytes['FP16']:.1f} GB, "
    f"INT8 {gigabytes['INT8']:.1f} GB, INT4 {gigabytes['INT4']:.1f} GB, and a little more with scales. The "
    "article's dots sit on the bars of INT8 and INT4, but halfway up the FP32 bar.",
)

# %% [markdown] name="time-text"
# ## How long does it take?
#
# Text is made in two phases.
#
# - **Prefill** reads the whole prompt in one pass. Every token goes through every layer; what attention
#   will need of them again (a key and a value for each layer) is put aside in the **KV cache**.
# - **Decode** makes the answer, one token in each pass. Only the newest token goes through the layers.
#   The earlier ones are in the cache.
#
# Before we time them: how does one time anything? Take the simplest piece of work there is, filling
# memory with zeros. It is as much memory as the KV cache of 4,096 tokens takes. Three times the same:

# %% name="first-call" timing=true
room = torch.empty(4096 * costs.kv_bytes_per_token(model.config, bits=32) // 4, device=DEVICE)
calls = []
for n in range(1, 4):
    start = time.perf_counter()
    room.zero_()
    measure.synchronize()  # a GPU returns before its work is done: wait for it
    calls.append(time.perf_counter() - start)
    print(f"call {n}: {1e3 * calls[-1]:.1f} ms")
print(f"The first call took {calls[0] / calls[2]:.1f} times as long as the third.")
del room

# %% [markdown] name="first-call-reading"
# The system hands out memory only when it is first written to, and the first call pays for that. Others
# pay for starting threads, for reading a file, for choosing or compiling the code that fits these shapes.
# Later calls do not. That is why every honest timing has a **warm-up**: calls that are not counted.
#
# And then? Here are 40 forward passes of the model, each the same work as the one before.

# %% name="spread" timing=true
def one_pass():
    with torch.inference_mode():
        return model(ids)


timed = measure.latency(one_pass, warmup=3, repeats=40)
print(timed)
half = len(timed.samples) // 2
medians = [pd.Series(part).median() for part in (timed.samples[:half], timed.samples[half:])]
print(f"One call against another: up to {timed.slowest / timed.fastest:.2f}x, with the same code.")
print(f"Median of 20 against median of 20: {max(medians) / min(medians):.2f}x.")

# %% name="plot-spread" timing=true
fig, ax = plt.subplots(figsize=(7.5, 3.0))
low, middle, high = (1e3 * t for t in (timed.q25, timed.median, timed.q75))
ax.plot([1e3 * t for t in timed.samples], "o", color=plots.PALETTE["blue"], markersize=4)
ax.axhline(middle, color=plots.PALETTE["vermilion"], label="median")
ax.axhspan(low, high, color=plots.PALETTE["vermilion"], alpha=0.15, label="middle half")
ax.set(xlabel="call", ylabel="ms", title="The same work, 40 times", ylim=(0, None))
ax.legend(ncols=2)
plots.show(
    fig,
    f"Forty dots, one for each call, between {1e3 * timed.fastest:.0f} and {1e3 * timed.slowest:.0f} ms. "
    f"The median is {middle:.0f} ms; half of the dots lie between {low:.0f} and {high:.0f} ms.",
)

# %% [markdown] name="timing-rules"
# So: warm up, repeat, take the **median** (the middle one of the sorted times; a few slow calls do not
# move it), and give the spread and the number of samples with it. `measure.latency` does that from now
# on.
#
# A graphics processor sets one more trap. Work is handed to it and the call returns before it is done:
# the clock must wait for the device. With `DEVICE = "cuda"` the next cell shows what the clock says when
# it does not.

# %% name="unsynchronised" timing=true
if DEVICE == "cpu":
    print("On a CPU a call returns when its work is done: nothing to wait for.")
else:
    measure.synchronize()
    start = time.perf_counter()
    one_pass()
    handed_over = time.perf_counter() - start
    measure.synchronize()
    done = time.perf_counter() - start
    print(f"the call returned after {1e3 * handed_over:.2f} ms, it was done after {1e3 * done:.2f} ms")

# %% [markdown] name="phases-text"
# Now the two phases, each by itself: a prompt of 256 tokens, then 32 new tokens, one by one.

# %% name="phases" timing=true
speed = measure.generation_speed(model, tokenizer, prompt_tokens=256, new_tokens=32)
print(speed)
print("prefill, 256 tokens:", speed.prefill)
print("decode, one token:  ", speed.decode)
ratio = speed.prefill_rate / speed.decode_rate
print(f"For each token, decode takes {ratio:.0f} times as long as prefill.")

# %% [markdown] name="mixed-text"
# One more wrong timing, and a common one: count all tokens, divide by all seconds, and call it *tokens
# per second*.

# %% name="mixed" timing=true
rows = {}
for new in (1, 8, 64, 512):
    seconds = speed.prefill.median + new * speed.decode.median
    rows[f"256 + {new} tokens"] = {"all tokens / all seconds": round((256 + new) / seconds, 1)}
measure.table(rows)

# %% [markdown] name="mixed-reading"
# One machine, one model, and any figure between the two phases' own. Always say which phase, how long the
# prompt was, and how many tokens were made.
#
# ## Why is decode so slow?
#
# The same weights, the same arithmetic for each token. Still a token costs many times more in decode. The
# reason is what has to be *moved*. A matrix product [rows, inner] x [inner, columns] reads two matrices
# and writes one; in prefill `rows` is the number of tokens in the prompt, in decode it is 1.
#
# **Arithmetic intensity** is the number of operations for each byte moved. **FLOP** stands for
# floating-point operation.
#
# **Your turn.**

# %% name="ex-arithmetic-intensity" exercise="course_utils.costs:arithmetic_intensity" points=2

# %% name="intensity-table"
width, inner = model.config.hidden_size, model.config.intermediate_size
rows = {
    f"tokens at once: {tokens}": {
        "FLOP per byte, FP32": round(costs.arithmetic_intensity(tokens, width, inner, 4), 2),
        "16 bit": round(costs.arithmetic_intensity(tokens, width, inner, 2), 2),
    }
    for tokens in (1, 4, 16, 64, 256)
}
measure.table(rows)

# %% [markdown] name="limits-text"
# With one token the intensity is 0.5: two operations for each weight, and a weight has four bytes. In
# prefill each weight that was read serves all tokens.
#
# What can this machine do? Two numbers decide: its **bandwidth**, how many bytes it can read from memory
# in a second, and how many operations it can do in a second. Both are measured here, by reading a tensor
# far larger than the processor's caches, and by a large matrix product.

# %% name="limits" timing=true
bandwidth = measure.bandwidth(device=DEVICE)
matmul = measure.matmul_speed(device=DEVICE)
print(bandwidth)
print(matmul)
ridge = matmul.flops / bandwidth.read
print(f"Below {ridge:.1f} FLOP per byte this machine waits for its memory; above, for its arithmetic.")

# %% [markdown] name="flops-text"
# How many operations and bytes is a pass of the whole model? `costs.forward_flops` counts the matrix
# products from the config: two operations for each weight and token, and attention's products with keys
# and values. PyTorch has a counter that watches the real model do it. They should agree.

# %% name="flops-counted"
attention = model.config._attn_implementation
model.set_attn_implementation("eager")  # plain matrix products: the counter knows those
with torch.inference_mode(), FlopCounterMode(display=False) as counter:
    cache = model(ids.repeat(1, 52)[:, :256], logits_to_keep=1).past_key_values
prefill_counted = counter.get_total_flops()
with torch.inference_mode(), FlopCounterMode(display=False) as counter:
    model(ids[:, :1], past_key_values=cache)
decode_counted = counter.get_total_flops()
model.set_attn_implementation(attention)
for phase, ours, counted in (
    ("prefill of 256 tokens", costs.forward_flops(model.config, 256), prefill_counted),
    ("decode of one token", costs.forward_flops(model.config, 1, cached=256), decode_counted),
):
    print(f"{phase}: formula {ours / 1e6:,.1f} MFLOP, counted {counted / 1e6:,.1f} MFLOP")

# %% [markdown] name="roofline-text"
# Now everything goes into one picture, the **roofline** (Williams, Waterman and Patterson, 2009). From
# left to right: arithmetic intensity. Upwards: operations per second. The roof is what the machine can
# do. Its slope is memory bandwidth, its flat part is arithmetic. Nothing gets above it. Where are the
# model's two phases?

# %% name="roofline" timing=true
phases = {}
for phase, tokens, cached, seconds in (
    ("prefill", 256, 0, speed.prefill.median),
    ("decode", 1, 256, speed.decode.median),
):
    flops = costs.forward_flops(model.config, tokens, cached)
    intensity = flops / costs.forward_bytes(model.config, tokens, cached)
    roof = costs.roofline(intensity, matmul.flops, bandwidth.read)
    phases[phase] = (intensity, flops / seconds)
    print(f"{phase}: {intensity:.2f} FLOP per byte, {flops / seconds / 1e9:.1f} GFLOP/s, "
          f"{flops / seconds / roof:.0%} of the roof at that place")  # fmt: skip

# %% name="plot-roofline" timing=true
xs = [0.125, ridge, 1024]  # FLOP per byte
fig, ax = plt.subplots()
ax.loglog(xs, [costs.roofline(x, matmul.flops, bandwidth.read) / 1e9 for x in xs], color="black")
for (phase, (x, y)), color in zip(phases.items(), ("blue", "vermilion"), strict=True):
    above = costs.roofline(x, matmul.flops, bandwidth.read)
    ax.vlines(x, y / 1e9, above / 1e9, color=plots.PALETTE[color], linewidth=1)
    ax.plot(x, y / 1e9, "o", markersize=9, color=plots.PALETTE[color])
    label = f"{phase}: {y / above:.0%} of the roof"
    ax.annotate(label, (x, y / 1e9), xytext=(8, -14), textcoords="offset points")
ax.axvline(ridge, color="#999999", linewidth=1, linestyle=":")
ax.set(xlabel="arithmetic intensity (FLOP per byte)", ylabel="GFLOP/s", title="Roofline")
ax.set_ylim(bottom=min(y for _, y in phases.values()) / 6e9, top=2 * matmul.flops / 1e9)
for x, text, side in (
    (ridge / 1.2, "memory decides", "right"),
    (ridge * 1.2, "arithmetic decides", "left"),
):
    ax.text(x, 0.04, text, transform=ax.get_xaxis_transform(), ha=side, color="#555555")
plots.show(
    fig,
    f"Roofline, both axes logarithmic: the roof rises up to {ridge:.0f} FLOP per byte, then is flat "
    f"at {matmul.flops / 1e9:.0f} GFLOP/s. Decode lies far left, at {phases['decode'][0]:.1f} FLOP per "
    f"byte and {phases['decode'][1] / 1e9:.1f} GFLOP/s; prefill at {phases['prefill'][0]:.0f} FLOP per "
    f"byte and {phases['prefill'][1] / 1e9:.1f} GFLOP/s.",
)

# %% [markdown] name="bound-text"
# Decode lies under the slope: memory decides. That gives the most useful rule of this course:
#
# > tokens per second <= bandwidth / bytes read for each token
#
# Each new token reads all weights once.
#
# **Predict.** A machine reads 20 GB/s. At most how many tokens a second can this model decode in FP32?

# %% name="predict-decode-rate" predict="one_token.predict_decode_rate" points=1
### BEGIN SOLUTION
prediction = 20e9 / 538e6  # tokens/s
### END SOLUTION

# %% name="bound" timing=true
per_token = costs.forward_bytes(model.config, 1, cached=256)
bound = bandwidth.read / per_token
print(f"bytes for one token    {per_token / 1e6:,.1f} MB (weights, and a KV cache of 256 tokens)")
print(f"bound on this machine  {bound:.1f} tokens/s")
reached = speed.decode_rate / bound
print(f"measured               {speed.decode_rate:.1f} tokens/s, {reached:.0%} of the bound")

# %% [markdown] name="gap-text"
# What fills the gap? Here are the model's matrices alone, each multiplied by one vector, with nothing in
# between: no norms, no attention, none of the hundreds of small steps that Python starts one by one.

# %% name="gap" timing=true
matrices = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
vectors = {m: torch.randn(1, 1, m.in_features, device=DEVICE) for m in matrices}


def matrices_only():
    with torch.inference_mode():
        for matrix, vector in vectors.items():
            matrix(vector)


alone = measure.latency(matrices_only, warmup=3, repeats=10)
print(f"the {len(matrices)} matrices alone  {alone}")
print(f"a whole decode step      {speed.decode}")
print(f"reading the bytes once   {1e3 * per_token / bandwidth.read:.1f} ms at the measured bandwidth")

# %% [markdown] name="bound-use"
# The bound is what no cleverness can pass as long as the bytes stay. To pass it, read fewer bytes: that
# is why this course begins with quantization. INT8 has a quarter of FP32's bytes, INT4 an eighth, so
# the bound rises to 4 or 8 times. Between two programs that are equally near to their bounds that is the
# most to be gained. The article also reports 1200 ms in FP32 against 70 ms
# in INT8 and 50 ms in INT4 (claim C3, taken up in {lesson:ptq} and {lesson:before_after}).

# %% name="c3-first-look"
for label, milliseconds, bits in (("INT8", 70, 8), ("INT4", 50, 4)):
    claimed, allowed = 1200 / milliseconds, 32 / bits
    verdict = "more than" if claimed > allowed else "within"
    print(f"{label}: the article says {claimed:.0f}x, {verdict} the {allowed:.0f}x by which the bound rises")

# %% [markdown] name="record-gpu-text"
# What does a GPU with far more bandwidth reach? `course gpu-run` measures the 13B shape of above there,
# with random weights: time does not depend on what they are. Each decode step stands beside its limit,
# the time that reading weights and KV cache once takes. A step as a CUDA graph is recorded once and then
# replayed as a whole: no Python runs between its kernels.

# %% name="record-gpu"
from course_utils import records  # noqa: E402

records.gpu_table("gpu_13b", [
    "format", "batch", "weights (GB)", "KV cache (GB)", "prefill (ms)", "decode step (ms)",
    "decode step as a CUDA graph (ms)", "decode limit by bandwidth (ms)"])

# %% name="record-gpu-machine"
records.gpu_table("gpu_machine", ["what", "value", "unit"])

# %% name="record-gpu-reading"
recorded = records.load("gpu_13b")
if recorded:
    steps = {row["format"]: row for row in recorded["results"]["rows"]
             if row.get("batch") == 1 and "decode step as a CUDA graph (ms)" in row}  # fmt: skip
    for name, row in steps.items():
        python, graph = row["decode step (ms)"], row["decode step as a CUDA graph (ms)"]
        limit = row["decode limit by bandwidth (ms)"]
        print(f"{name:19} as a graph {graph / limit:.1f} times its limit, step by step from Python "
              f"{python / limit:.0f} times")
    spread = steps["BF16"]["decode step (ms)"] / steps["FP16"]["decode step (ms)"]
    print(f"BF16 and FP16 read the same bytes. From Python one took {spread:.1f} times as long as the other: "
          "there the CPU's time is measured, not the GPU's.")
    faster = (steps["BF16"]["decode step as a CUDA graph (ms)"]
              / steps["NF4 (bitsandbytes)"]["decode step as a CUDA graph (ms)"])  # fmt: skip
    fewer = steps["BF16"]["weights (GB)"] / steps["NF4 (bitsandbytes)"]["weights (GB)"]
    print(f"NF4 has {fewer:.1f} times fewer bytes than BF16 and is {faster:.2f} times as fast.")

# %% [markdown] name="perplexity-text"
# ## How good is it?
#
# A smaller, faster model is no gain if it writes nonsense. We need a number for quality, one that needs
# no human to read along.
#
# Take a text that people wrote, and ask at each token: how probable did the model think it was, before
# seeing it?

# %% name="token-probabilities" atol=0.015
heldout = data.wikipedia_tokens(tokenizer, "heldout", 8192 if PROFILE == "cpu" else 65_536).to(DEVICE)
with torch.inference_mode():
    window_logits = model(heldout[None, :512]).logits[0]
p = torch.softmax(window_logits[:-1].float(), dim=-1).gather(1, heldout[1:512, None])[:, 0]
for i in range(40, 52):
    print(f"{p[i].item():.2f}  {tokenizer.decode([int(heldout[i + 1])])!r}")

# %% [markdown] name="derive-perplexity"
# The probability of a whole text is the product of these, a number too small to be written down. Take its
# logarithm: the product becomes a sum. Divide by the number of tokens, so that long and short texts can
# be compared, and turn the sign, so that it is positive. That is the mean **negative log-likelihood**
# (NLL), which is also what training makes small. **Perplexity** takes the logarithm back:
#
# $$\text{perplexity} = \exp\left(-\frac{1}{n-1}\sum_{i=1}^{n-1} \ln p(t_i \mid t_0, \dots, t_{i-1})\right)$$
#
# It has a plain meaning: the model is as unsure as if it had to choose among that many equally likely
# tokens. Lower is better, and 1 is perfect.
#
# **Predict.** What is the perplexity of a model that knows nothing and finds all 49,152 tokens equally
# likely?

# %% name="predict-uniform-perplexity" predict="one_token.predict_uniform_perplexity" points=1
### BEGIN SOLUTION
prediction = 49152
### END SOLUTION

# %% [markdown] name="perplexity-exercise-text"
# **Your turn.** Mind what belongs to what: the logits at position *i* are about token *i* + 1.

# %% name="ex-perplexity" exercise="course_utils.costs:perplexity_from_logits" points=2

# %% [markdown] name="perplexity-compare-text"
# Three independent ways to the perplexity of one window of 512 tokens: from the logits, by the function
# that the course uses from here on, and by the loss that transformers computes when it is given labels.

# %% name="perplexity-compare" tolerance=0.02
window = heldout[:512]
with torch.inference_mode():
    loss = model(window[None], labels=window[None]).loss.item()
print(f"from the logits        {costs.perplexity_from_logits(window_logits, window):.3f}")
print(f"measure.perplexity     {measure.perplexity(model, window).value:.3f}")
print(f"transformers' loss     {math.exp(loss):.3f}")
knows_nothing = costs.perplexity_from_logits(torch.zeros_like(window_logits), window)
print(f"a model that knows nothing {knows_nothing:,.0f}")
del window_logits

# %% [markdown] name="perplexity-full-text"
# One window is little text. Here are sixteen, from Wikipedia articles that the course keeps for testing.
# A number like this is the **baseline** of each lesson to come: the model as it is, on the very tokens that
# the changed model reads. How many tokens, and how long a window, each lesson says; so it has other values.
#
# One thing to know about it, once for all lessons: the embedded model's weights were stored in about 4 bits
# before they were written out as FP32 again. So this is the perplexity of that model, not of the original.
# What a lesson measures as a loss is the *further* loss, and weights that lie on a 4-bit grid already may
# take another rounding better or worse than fresh ones. Which of the two, the course has not measured. The
# parameter `LM = "HuggingFaceTB/SmolLM2-135M-Instruct"` runs every lesson on the original, with a network.

# %% name="perplexity-full" tolerance=0.02
with measure.peak_memory() as peak:
    baseline = measure.perplexity(model, heldout, window=512)
print(baseline)

# %% name="peak" timing=true
print(peak)
logit_mb = 512 * model.config.vocab_size * 4 / 1e6
print(f"of that: weights {weights.total / 1e6:,.0f} MB, the logits of one window {logit_mb:.0f} MB")

# %% [markdown] name="window-text"
# The same model and the same 2,048 tokens, cut in other ways. A token near the beginning of a window has
# little before it and is hard to guess. With a **stride** smaller than the window the windows overlap,
# and every token that is scored has much before it; that costs more passes.

# %% name="window" tolerance=0.02
text = heldout[:2048]
cuts = {
    "windows of 64": measure.perplexity(model, text, window=64),
    "windows of 512": measure.perplexity(model, text, window=512),
    "512, stride 256": measure.perplexity(model, text, window=512, stride=256),
}
measure.table(cuts)

# %% name="window-reading" tolerance=0.05
short, long = cuts["windows of 64"].value, cuts["windows of 512"].value
print(f"The window alone changes the perplexity by {short / long - 1:.0%}.")

# %% [markdown] name="two-models-text"
# ## Is one model worse than another?
#
# The lessons to come change the model and ask what that costs. Say a changed model has perplexity 22.6 on a
# text, and the model before had 22.5. Is it worse, or is that chance? Another text would give two other
# numbers.
#
# Here are three changed copies. In each, the weights of the blocks are rounded: to **BF16**, floats of 16
# bits with 7 of them for the digits; to 255 levels in each row (about 8 bits); and to 31 levels (about 5).

# %% name="two-models" tolerance=0.03
text = heldout[:2048]
# Only the blocks are changed: the copy shares the embedding with the model, which saves memory.
embedding = model.get_input_embeddings().weight
changed = copy.deepcopy(model, {id(embedding): embedding})


def round_rows(weight, largest):
    """Whole multiples of a step, from -largest to largest steps; the step fits the row's largest weight."""
    step = weight.abs().amax(dim=1, keepdim=True) / largest
    return (weight / step).round() * step


def round_blocks(changed, rounding):
    """Make the copy's matrices rounded ones of the full model's."""
    with torch.no_grad():
        for source, target in zip(shapes.block_list(model), shapes.block_list(changed), strict=True):
            for old, new in zip(source.parameters(), target.parameters(), strict=True):
                if old.ndim == 2:
                    new.copy_(rounding(old))


ROUNDINGS = {
    "BF16": lambda weight: weight.bfloat16().float(),
    "255 levels": lambda weight: round_rows(weight, 127),
    "31 levels": lambda weight: round_rows(weight, 15),
}
results, alike = {"FP32": measure.perplexity(model, text, window=256)}, {}
for label, rounding in ROUNDINGS.items():
    round_blocks(changed, rounding)
    results[label] = measure.perplexity(changed, text, window=256)
    alike[label] = measure.likeness(changed, model, text[:1024], window=128)
    measure.release_memory()
for label, result in results.items():
    print(f"{label:10} {result}")

# %% [markdown] name="alone-text"
# How sure is each number? Every perplexity is a mean over the 8 windows. Their spread says how far another 8
# windows might be off. That is the **standard error**: the standard deviation of the windows, divided by the
# square root of their number.

# %% name="plot-windows" tolerance=0.05 atol=0.05
each = {label: [s / n for s, n in zip(result.window_nll, result.window_tokens, strict=True)]
        for label, result in results.items()}  # fmt: skip
alone = {label: pd.Series(values).std() / len(values) ** 0.5 for label, values in each.items()}
gaps = {label: [a - b for a, b in zip(values, each["FP32"], strict=True)] for label, values in each.items()}
fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4))
for (label, values), color in zip(each.items(), ("black", "green", "blue", "vermilion"), strict=True):
    left.plot(values, "o", color=plots.PALETTE[color], markersize=5, label=label)
    if label != "FP32":
        right.plot(gaps[label], "o", color=plots.PALETTE[color], markersize=5, label=label)
right.axhline(0, color="black", linewidth=1)
left.set(xlabel="window", ylabel="nats a token", title="each model by itself")
right.set(xlabel="window", ylabel="nats a token", title="minus FP32, same window")
left.legend(fontsize=8)
plots.show(
    fig,
    f"Left: loss of each of the {len(values)} windows for four models; the windows differ by up to "
    f"{max(each['FP32']) - min(each['FP32']):.1f} nats. Right: the same minus FP32's: "
    + "; ".join(f"{label} from {min(gaps[label]):+.3f} to {max(gaps[label]):+.3f}" for label in ROUNDINGS)
    + " nats a token.",
)
for label, error in alone.items():
    print(f"{label:10} {results[label].nll:.3f} ± {error:.3f} nats a token")

# %% [markdown] name="pairing-text"
# Some windows are hard for every model, some are easy, and that is nearly all of the spread on the left. But
# the models read the *same* windows. Subtract window by window, and what is hard for both cancels. That is a
# **paired** comparison.
#
# **Predict.** Two models each have a standard error of 0.1 nats a token. In each of the 8 windows one of them
# needs exactly 0.02 nats a token more than the other. What is the standard error of the paired difference?

# %% name="predict-paired-error" predict="one_token.predict_paired_error" points=1
### BEGIN SOLUTION
prediction = 0  # the differences do not vary at all
### END SOLUTION

# %% [markdown] name="paired-exercise-text"
# Windows may be unlike in length: the last one of a text often is. So the difference is a ratio, all nats
# over all tokens, and its error is that of a ratio of sums.
#
# **Your turn.**

# %% name="ex-paired-difference" exercise="course_utils.measure.comparison:paired_difference" points=3

# %% [markdown] name="compare-text"
# From here on `measure.compare` does this. It adds an interval that would hold the true difference in 95 of
# 100 measurements, and a verdict: *better*, *worse*, or *no difference shown*, if 0 lies within. With so few
# windows the spread itself is uncertain; **Student's t** makes the interval wider for that. Beside it, what
# you would conclude from the two separate errors.

# %% name="compare" tolerance=0.1 atol=0.005
for label in ROUNDINGS:
    compared = measure.compare(results[label], results["FP32"])
    separate = math.hypot(alone[label], alone["FP32"])
    apart = abs(compared.difference) > 2 * separate
    print(f"{label}: by two separate errors {'shown to differ' if apart else 'nothing is shown'}; paired:")
    print(f"    {compared.sentence(label, 'FP32')}")
    print(f"    the error of the pairs is {compared.error / separate:.4f} of the two separate ones")

# %% [markdown] name="shown-text"
# "No difference shown" is not "no difference". It says that so much text does not tell. More windows shrink
# the error, by the square root: four times the text for half of it. Where a lesson needs more than its two
# minutes for that, the course keeps a recorded measurement with its machine and date.
#
# Of twenty comparisons without any difference, one is shown to differ by bad luck. So a long table needs a
# second look at its closest rows.
#
# ## Three more questions to a changed model
#
# Perplexity asks how probable the *text* is. One can also ask how much the changed model still agrees with
# the full one, whatever the text says:
#
# - **KL divergence**: how far are its probabilities from the full model's, over the whole vocabulary? In nats
#   a token, 0 if they are the same.
# - **Same first choice**: at what share of the positions is the likeliest token the same?
# - **Greedy text**: if each writes on from a prompt, always with the likeliest token, how many tokens are the
#   same before the first difference?

# %% name="alike" tolerance=0.1 atol=0.2
prompts = data.windows(heldout[4096:6144], 512)[:, :32]
same_text = {}
for label, rounding in ROUNDINGS.items():
    round_blocks(changed, rounding)
    same_text[label] = measure.same_greedy(changed, model, prompts, new_tokens=32)
measure.table({label: result.row() for label, result in alike.items()})

# %% name="alike-greedy" timing=true
for label, counts in same_text.items():
    print(f"{label:10} the first {', '.join(map(str, counts))} of 32 tokens are the same, of each prompt")

# %% [markdown] name="alike-reading"
# Greedy text is a stern judge: one close call that falls the other way, and the rest is another text, which
# may be as good. KL divergence is a fine one: it counts each change of a probability, also where the first
# choice stays. And where two tokens are all but equally likely, a first choice changes and KL hardly moves.

# %% [markdown] name="last-word-text"
# Who uses a model does not read probabilities but answers. A **zero-shot** task is asked without an example
# and without training on that task. Here the model must say the last word of a
# paragraph, as in LAMBADA (Paperno et al. 2016). The figure is an accuracy, the share of right words.
# Guessing gets about 0.
#
# Two models that answer the same questions are paired too. A question that both get right, or both wrong,
# says nothing about their difference. Left are those that one of them alone got right. **McNemar's test**
# asks how often a fair coin would split them as unevenly. What the perplexity said of 31 levels, do 128
# answers say it too?

# %% name="last-word" tolerance=0.15 atol=3
passages = measure.last_words(tokenizer, data.wikipedia_texts("heldout"), count=128)
for before, word in zip(passages.before[:2], passages.words[:2], strict=True):
    print(f"...{tokenizer.decode(before)!r} -> {tokenizer.decode(word[word >= 0])!r}")
answers = {
    "FP32": measure.last_word_accuracy(model, passages),
    "31 levels": measure.last_word_accuracy(changed, passages),  # the copy still holds these
}
compared = measure.compare(answers["31 levels"], answers["FP32"])
print(compared.sentence("31 levels", "FP32"))
print(measure.compare(results["31 levels"], results["FP32"]).sentence("By perplexity, 31 levels", "FP32"))
del changed
measure.ranking(answers, "FP32")

# %% [markdown] name="last-word-reading"
# An answer is right or wrong, while a perplexity counts how sure the model was of every token. So a few
# answers say little, and benchmarks ask thousands. They are asked all the same: they are about what the model
# is for.

# %% [markdown] name="replicate"
# A perplexity without its text, window and stride is no number that can be compared. In papers, 5.12 and
# 5.47 are both "Llama-2-7B on WikiText-2".
#
# ## What would not replicate elsewhere, and what holds anyway
#
# - The tokens per second are this machine's. Another one has another bandwidth and another arithmetic;
#   even this one has good and bad minutes. Compare only what was measured side by side.
# - How close decode comes to its bound depends on the software. Written in Python and started step by
#   step, this small model leaves much of the bandwidth unused, and so did the large one on the GPU above.
#   A CUDA graph came closer there; {lesson:engines} has engines written for the purpose.
# - That decode is bound by bytes holds for one text at a time. Many texts decoded together share each
#   weight that is read: their intensity grows like that of prefill.
# - The perplexity is the same on another machine up to rounding. With another text, window or tokenizer
#   it is another number. Models with different tokenizers cannot be compared by it, because they predict
#   different pieces.
# - Counts of parameters, bytes and operations hold everywhere.
#
# ## Recap
#
# - Parameters follow from the config; bytes are parameters x bits / 8, plus scales, plus what stays
#   unquantized.
# - Prefill handles many tokens for each weight read and is bound by arithmetic. Decode handles one and is
#   bound by bytes: tokens/s <= bandwidth / bytes per token.
# - Time with warm-up, repeats, median and spread; keep the phases apart; wait for a GPU.
# - Perplexity is exp of the mean negative log-likelihood. It comes with its text, window and stride.
# - Compare two models on the same windows, in pairs. A difference comes with its error, or it is not shown.
#
# ## The claims settled here

# %% name="claim-c1"
same = [label for label, value in article.items() if abs(gigabytes[label] / value - 1) < 0.02]
wrong = [label for label in article if label not in same]
is_fp16 = abs(gigabytes["FP16"] / article["FP32"] - 1) < 0.02
print(f"C1: {'false as printed' if wrong else 'true'}.")
for label in wrong:
    print(f"    {label} needs {gigabytes[label]:.1f} GB, not {article[label]:g}.")
if is_fp16:
    print(f"    The article's FP32 row is FP16: {gigabytes['FP16']:.1f} GB.")
for label in same:
    print(f"    {label} needs {gigabytes[label]:.1f} GB: right, for the weights without scales.")
print(f"    INT4 as it is really stored: {gigabytes['INT4, group 128, rest FP16']:.1f} GB.")
kv = costs.kv_bytes_per_token(llama_13b)
print(f"    On top comes the KV cache in FP16: {kv / 1e6:.2f} MB a token,")
print(f"    {2048 * kv / 1e9:.1f} GB for 2,048 tokens.")
