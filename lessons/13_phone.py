# %% [markdown] name="title" goal="What fits a phone, how fast it can write; GPTQ's integers in ONNX"
# # A 13B model on a phone
#
# "After 4-bit GPTQ, LLaMA-13B runs on a phone." Does it? Nobody needs a phone to find out most of it: what
# must fit into the memory, how fast that memory can be read, and what a token costs the battery are
# arithmetic.
#
# Then you go the whole way with a model that fits: the integers that GPTQ chose go into a file that phones
# read, *those* integers and not others. You read them from the file's bytes, and you write the loop that
# runs the file.
#
# You need {lesson:kv_cache} (the cache), {lesson:gptq} (the checkpoint) and {lesson:engines} (the graph with
# a cache).

# %% name="imports"
import time
from collections.abc import Mapping, Sequence  # noqa: F401 - the exercises name them

import matplotlib.pyplot as plt
import numpy as np
import torch
from transformers import LlamaConfig

from course_utils import costs, data, measure, models, plots, records
from course_utils.engines import agreement
from course_utils.phone import blocks, budget, decode, export, packed
from course_utils.quantize import checkpoint

plots.style()

# %% [markdown] name="budget-text"
# ## The budget
#
# What must lie in a phone's memory while a model writes?
#
# - its **weights**, with their scales;
# - the **KV cache**: keys and values of all tokens of the text;
# - the **activations**: the numbers that are alive in the middle of a pass;
# - and everything else that runs on the phone: the system, other apps.
#
# Start with the weights of LLaMA-13B: 13.0 billion, 4 bits each. In the usual checkpoint 128 of them share a
# scale of 16 bits.
#
# **Predict.** How many GB ($10^9$ bytes) are that?

# %% name="predict-weights" predict="phone.predict_weights" points=1
### BEGIN SOLUTION
prediction = 13.016e9 * (4 + 16 / 128) / 8 / 1e9  # GB
### END SOLUTION

# %% [markdown] name="needed-text"
# Not every weight is read for each token. The embedding is a table: a token looks up its row. Where the
# output layer is a matrix of its own, the table only takes room. Where the two are one matrix (*tied*), it
# is multiplied in each step.
#
# Activations are widest in the MLP. They are few when one token is read at a time, and more when a prompt is
# read in large pieces.
#
# **Your turn.** Four figures from a config.

# %% name="ex-needed" exercise="course_utils.phone.budget:needed_bytes" points=3

# %% name="budgets"
CONTEXT = 2048  # tokens
configs = {
    "SmolLM2-135M": LlamaConfig(
        vocab_size=49_152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
        num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True),
    "TinyLlama-1.1B": LlamaConfig(
        hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, num_attention_heads=32,
        num_key_value_heads=4),
    "Llama-3.2-3B": LlamaConfig(
        vocab_size=128_256, hidden_size=3072, intermediate_size=8192, num_hidden_layers=28,
        num_attention_heads=24, num_key_value_heads=8, head_dim=128, tie_word_embeddings=True),
    "LLaMA-7B": LlamaConfig(),
    "LLaMA-13B": LlamaConfig(hidden_size=5120, intermediate_size=13_824, num_hidden_layers=40,
                             num_attention_heads=40),
}
needs = {f"{name}, 4 bits": budget.needed_bytes(config, CONTEXT, 4, 128, chunk=128)
         for name, config in configs.items()}
needs |= {f"LLaMA-13B, {bits} bits": budget.needed_bytes(configs["LLaMA-13B"], CONTEXT, bits, chunk=128)
          for bits in (8, 16)}
print(f"GB at {CONTEXT:,} tokens, KV cache in 16 bits, prompts read 128 tokens at a time:")
measure.table({name: {part: round(nbytes / 1e9, 3) for part, nbytes in need.items()}
               | {"together": round(sum(need.values()) / 1e9, 2)} for name, need in needs.items()})

# %% [markdown] name="left-text"
# Look at the cache of LLaMA-7B beside that of Llama-3.2-3B. The older models keep a key and a value for each
# query head ({lesson:kv_cache}). With 2,048 tokens that is no small thing any more.
#
# How much of its memory does a phone leave to one app? No standard says so. It depends on the system, on what
# else is open, and on the maker. We calculate with **half of it**. That is an assumption: change `LEFT` and
# see what follows.

# %% name="plot-budget"
LEFT = 0.5  # share of the memory that the system leaves; an assumption
fig, ax = plt.subplots(figsize=(8, 4))
start = np.zeros(len(needs))
for part, color in zip(("weights", "table", "cache", "activations"), plots.PALETTE.values(), strict=False):
    widths = np.array([need[part] / 1e9 for need in needs.values()])
    ax.barh(list(needs), widths, left=start, label=part, color=color)
    start += widths
for phone in budget.PHONES:
    ax.axvline(LEFT * phone.memory / 1e9, color="#555555", lw=1, ls=":")
    ax.text(LEFT * phone.memory / 1e9, len(needs) - 0.45, phone.name.split(",")[0], ha="center", fontsize=8)
ax.set(xlabel="GB", xlim=(0, 14), title="What must fit, and half of a phone's memory\n")
ax.invert_yaxis()
ax.legend(loc="lower right")
largest = LEFT * max(phone.memory for phone in budget.PHONES) / 1e9
too_large = [name for name, need in needs.items() if sum(need.values()) / 1e9 > largest]
plots.show(fig, f"Bars of the bytes that seven models need at {CONTEXT:,} tokens, in parts: weights, table, "
           "cache, activations. Dotted lines mark half of the memory of phones with 4 to 24 GB. "
           f"Beyond the last line: {', '.join(too_large) or 'none'}.")

# %% [markdown] name="speed-text"
# ## How fast can it write?
#
# A step reads all weights and the cache once. So no phone writes more tokens a second than bandwidth / bytes
# ({lesson:engines}). The bandwidth of a phone is known from the kind of its memory: LPDDR5X-8533 makes 8,533
# million transfers a second on each of its lines, and 8 bits are a byte. We reckon with 64 lines, four
# channels of 16, as larger phones have.
#
# **Predict.** LLaMA-13B in 4 bits, groups of 128, an empty cache: how many tokens a second at best?

# %% name="predict-tokens" predict="phone.predict_tokens" points=1
### BEGIN SOLUTION
prediction = 8533e6 * 64 / 8 / (13.016e9 * (4 + 16 / 128) / 8)  # tokens/s
### END SOLUTION

# %% [markdown] name="runs-text"
# **Your turn.** Which models run on a phone, and how fast can each write there at best?

# %% name="ex-runs" exercise="course_utils.phone.budget:what_runs" points=2

# %% name="runs"
print(f"tokens/s at best, {CONTEXT:,} tokens in the cache, {LEFT:.0%} of the memory left:")
found = {}
for phone in budget.PHONES:
    speeds = dict(budget.what_runs(LEFT * phone.memory, phone.bandwidth, needs))
    found[phone.name] = {"GB/s": round(phone.bandwidth / 1e9, 1)} | {
        name: round(speeds[name], 1) if name in speeds else "" for name in needs}
measure.table(found)

# %% name="share"
need_13b = sum(needs["LLaMA-13B, 4 bits"].values())
for phone in budget.PHONES:
    share = need_13b / phone.memory
    print(f"{phone.name:20} LLaMA-13B in 4 bits takes {share:4.0%} of the memory"
          + (": more than there is" if share > 1 else ""))

# %% [markdown] name="energy-text"
# A bound is not a speed. {lesson:engines} found how near engines come to it on a computer; on a phone heat is
# a second limit, because it has no fan. No phone was measured here.
#
# ## What does a token cost the battery?
#
# Bytes that come from memory cost energy, and so does arithmetic. We take cited figures: M. Horowitz (ISSCC
# 2014, figure 1.1.9) gives, for a 45 nm process, 1.3 to 2.6 nJ for 64 bits from DRAM, 3.7 pJ for an FP32
# multiplication and 0.9 pJ for an addition. Processes and memory have changed since. So the next table is
# **arithmetic from old figures**, good for an order of magnitude, and not a measurement.

# %% name="energy"
BATTERY = 5.0 * 3.85 * 3600  # joules: 5,000 mAh at 3.85 V, a usual size
found = {}
for name, need in needs.items():
    config = configs[name.split(",")[0]]
    low, high = budget.joules_per_token(need["weights"] + need["cache"], costs.weights_read(config))
    arithmetic = budget.joules_per_token(0, costs.weights_read(config))[0]
    found[name] = {"joules a token": f"{low:.3f} to {high:.3f}", "of it arithmetic": f"{arithmetic:.3f}",
                   "thousand tokens a battery": f"{BATTERY / high / 1e3:.0f} to {BATTERY / low / 1e3:.0f}"}
measure.table(found)

# %% [markdown] name="energy-reading"
# By these figures moving the bytes takes many times the energy of calculating with them. So fewer bits save
# energy for the same reason that they save time.

# %% [markdown] name="path-text"
# ## The whole path
#
# Now for real, with a model that fits every phone. {Lesson:gptq} wrote a checkpoint: integers and scales for
# each linear layer. We want a file for a phone that holds *these*. An exporter that quantizes once more would
# round what is rounded already, and GPTQ's work would be lost.
#
# ONNX Runtime has an operator for it, `MatMulNBits`: a product with a weight of packed integers, in blocks
# that share a scale. So we take the graph of {lesson:engines}, put this operator in place of each product
# with a weight, and give it the checkpoint's numbers. Embedding and output layer are one matrix, a fifth of
# the model. They are rounded to 8 bits and lie in the file once: the operator reads them for the output, and
# a look-up reads the same bytes for the input.
#
# The first time, this takes a few minutes: GPTQ over the whole model, then the export. It is kept.

# %% name="export"
checkpoint_folder = packed.checkpoint_folder()
folder = export.onnx_folder()
places = blocks.index(folder)
for name, path in (("checkpoint", checkpoint_folder / "model.safetensors"),
                   ("ONNX: graph", folder / "model.onnx"), ("ONNX: weights", folder / "model.onnx.data"),
                   ("packaged GGUF", models.embedded_gguf())):
    print(f"{name:14} {path.stat().st_size / 1e6:6.1f} MB")
print(f"{len(places)} matrices in the file. The first:")
first = next(iter(places))
print(f"  {first}: {places[first]}")

# %% [markdown] name="integers-text"
# The graph is a list of operations. The weights lie beside it in one long file of bytes, and the graph says
# at which byte each begins. So a layer can be read without any library: go to that byte, take so many.
#
# Two 4-bit integers share a byte. The operator stores them without a sign: 8 is added to each, so -8 ... 7
# become 0 ... 15.
#
# **Your turn.** From bytes to integers.

# %% name="ex-integers" exercise="course_utils.phone.blocks:integers" points=2

# %% name="same-integers"
weights, _ = checkpoint.read(checkpoint_folder)
same_integers = same_scales = compared = 0
for name, weight in weights.items():
    stored, scales = blocks.read(folder, name)
    same_integers += np.array_equal(blocks.integers(stored), weight.q.numpy())
    same_scales += np.array_equal(scales, weight.scale.numpy())
    compared += weight.q.numel()
print(f"{len(weights)} layers, {compared:,} integers: equal to the checkpoint's in {same_integers} layers; "
      f"scales equal in {same_scales}.")
nbytes = sum(int(np.prod(place["integers"]["shape"])) + 4 * int(np.prod(place["scales"]["shape"]))
             for place in places.values())
parameters = costs.parameter_count(configs["SmolLM2-135M"])
print(f"Integers and scales take {nbytes / 1e6:.1f} MB, {8 * nbytes / parameters:.2f} bits a parameter.")
del weights
measure.release_memory()

# %% [markdown] name="generate-text"
# ## The loop
#
# The file is loaded by a *session*. What calls it? No `generate` of a library: a phone has none. The loop is
# yours. The graph takes tokens and a cache, and gives scores and a longer cache.
#
# **Your turn.** Put it together. The check runs your loop on a small made-up graph with the same inputs, and
# counts the tokens that it reads. Below, the same function runs the real file.

# %% name="ex-generate" exercise="course_utils.phone.decode:generate" points=4

# %% [markdown] name="tokens-text"
# Does ONNX Runtime write what our own packed layers of {lesson:ptq} write from the same integers? They unpack
# each weight to FP32 for each token, which is slow. So one question goes to them. For the others the same
# integers are unpacked once, into ordinary layers.

# %% name="tokens"
model, tokenizer = packed.load_packed(checkpoint_folder)
measure.release_memory()
NEW = 16


def asked(question):
    """The question as the model was trained to be asked, as token ids."""
    return tokenizer.apply_chat_template([{"role": "user", "content": question}],
                                         add_generation_prompt=True)["input_ids"]


@torch.no_grad()
def in_pytorch(prompt, new_tokens):
    """What the model writes in PyTorch."""
    ids = torch.tensor([prompt])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens,
                         do_sample=False)
    return out[0, len(prompt):].tolist()


france = asked("What is the capital of France?")
from_packed = in_pytorch(france, 8)
measure.release_memory()
session = decode.open_session(folder)
from_file = decode.generate(session, france, 8, tokenizer.eos_token_id)
agree = "the same" if from_packed == from_file else "OTHER"
print(f"The packed layers and ONNX Runtime write {agree} {len(from_file)} tokens after the question.")

# %% name="more-tokens"
prompts = [france, *map(asked, ("Name three colours.", "What do bees make?",
                                "Write one sentence about the sea."))]
written = [decode.generate(session, prompt, NEW, tokenizer.eos_token_id) for prompt in prompts]
del session  # opened again below: the unpacked model needs the room
measure.release_memory()
packed.unpack(model)
measure.release_memory()
ours = [in_pytorch(prompt, NEW) for prompt in prompts]
same = sum(mine == its for mine, its in zip(ours, written, strict=True))
print(f"{same} of {len(prompts)} answers have the same tokens in both.")

# %% name="answers" tags=["nbval-ignore-output"]
# Not compared: another processor may round a few weights to the other neighbour, and a text goes another way.
for its in written:
    print(repr(tokenizer.decode(its, skip_special_tokens=True).strip()))

# %% [markdown] name="agreement-text"
# Tokens that agree say little: where one token is far ahead, an error in the scores does not show. So measure
# the scores, too, as in {lesson:engines}: at which share of the positions is the same token first, and how
# far are the probabilities apart (KL divergence)?
#
# The operator has a setting, `accuracy_level`. With 1, as in our file, activations stay in FP32. With 4 a
# kernel may round them to 8 bits as they come, since one instruction multiplies more 8-bit integers than FP32
# numbers. What does that cost, and what does it gain here? **Guess before you run the next two cells.**

# %% name="agreement" tolerance=0.3 atol=0.02
text = data.wikipedia_tokens(tokenizer, "heldout", 192)
with torch.no_grad():
    reference = model(text[None]).logits[0].numpy()
model = None  # its answers and scores are kept; the sessions need the room
measure.release_memory()
sessions = {"activations in FP32": decode.open_session(folder),
            "activations in INT8": decode.open_session(export.onnx_folder(level=4))}


def scores_of(session, ids):
    """Scores at every position of a text that is read in one pass: [tokens, vocabulary]."""
    past = {value.name: np.zeros((1, value.shape[1], 0, value.shape[3]), np.float32)
            for value in session.get_inputs() if value.name.startswith("past_")}
    return session.run(["logits"], {
        "input_ids": np.array([ids]), "attention_mask": np.ones((1, len(ids)), np.int64),
        "kept": np.arange(len(ids))} | past)[0][0]


agreed = {}
for label, tried in sessions.items():
    scores = scores_of(tried, text.tolist())
    agreed[label] = {"KL to our layers (nats)": round(agreement.mean_kl(reference, scores), 4),
                     "top-1 match": round(agreement.top1_match(reference, scores), 3)}
measure.table(agreed)

# %% name="answers-equal" tags=["nbval-ignore-output"]
# Not compared, for the same reason.
for label, tried in sessions.items():
    same = sum(decode.generate(tried, prompt, NEW, tokenizer.eos_token_id) == mine
               for prompt, mine in zip(prompts, ours, strict=True))
    print(f"{label}: {same} of {len(prompts)} answers have the tokens of our layers.")

# %% name="speed-here" timing=true
longest = max(zip(prompts, ours, strict=True), key=lambda pair: len(pair[1]))[0]
writers = {f"ONNX Runtime, {label}": lambda tried=tried: decode.generate(tried, longest, NEW)
           for label, tried in sessions.items()}
took = {name: [] for name in writers}
for _ in range(4):  # in turns, so that a disturbance hits both
    for name, write in writers.items():
        begin = time.perf_counter()
        write()
        took[name].append(time.perf_counter() - begin)
print(measure.machine_card())
for name, each in took.items():
    print(f"{name}: {NEW / np.median(each):.1f} tokens/s, the prompt of {len(longest)} tokens included")
fp32, int8 = took.values()
versus = measure.compare([a / b for a, b in zip(fp32, int8, strict=True)], [1.0] * len(fp32),
                         higher_is_better=True, unit="of the speed", what="rounds")
print(f"INT8 activations: {1 + versus.difference:.2f} times the speed (95 %: {1 + versus.low:.2f} to "
      f"{1 + versus.high:.2f}).")
bandwidth = measure.bandwidth()
print(f"This machine reads {bandwidth.read / 1e9:.0f} GB/s: at most "
      f"{costs.decode_bound(nbytes, bandwidth.read):.0f} tokens/s.")
del sessions, reference
measure.release_memory()

# %% [markdown] name="formats-text"
# ## Which file does a phone read?
#
# The article says: deploy the ONNX file with PyTorch Mobile or TFLite. Do these read ONNX? What exists today:
#
# - **ONNX Runtime** itself, for Android, iOS and browsers. It reads our file.
# - **ExecuTorch**, to which PyTorch Mobile's documentation now sends its readers. It reads its own format,
#   .pte.
# - **LiteRT**, the new name of TFLite (Google, "TensorFlow Lite is now LiteRT", September 2024). It reads
#   .tflite.
# - **llama.cpp**, which reads GGUF.
#
# `course bench phone_formats` gives the ONNX file to each of them, and then a file of its own kind.

# %% name="formats"
formats = records.load("bench_phone_formats")
if formats:
    print(records.provenance_line(formats))
    found = measure.table({f"{row['runtime']}: {row['file']}": {
        "result": row["result"], "MB": "" if row["MB"] is None else round(row["MB"], 1)}
        for row in formats["results"]["rows"]})
else:
    found = "No recorded run yet: `course bench phone_formats` makes one."
found

# %% [markdown] name="pte-text"
# The whole model as a .pte file was measured with the other engines of {lesson:engines}:

# %% name="pte"
engines_record, agreement_record = records.load("bench_engines"), records.load("bench_engines_agreement")
matches = {row["engine"]: row["top-1 match"] for row in agreement_record["results"]["rows"]
           } if agreement_record else {}
pte = [row for row in engines_record["results"]["rows"]
       if row["engine"].startswith("ExecuTorch") and not row["note"]] if engines_record else []
for row in pte:
    print(f"{row['engine']}, {row['threads']} threads: {row['disk (MB)']:.0f} MB, "
          f"{row['decode (tokens/s)']:.1f} tokens/s" + (
              f", the FP32 model's token at {matches[row['engine']]:.0%} of the positions"
              if row["engine"] in matches else ""))
if not pte:
    print("No recorded run yet: `course engines install executorch`, then `course bench engines`.")

# %% [markdown] name="browser-text"
# ## In the phone's browser
#
# A phone can run all this without an app store. `course phone build` makes a web page with the model, the
# tokenizer and two engines compiled to WebAssembly: onnxruntime-web with our file, and wllama, which is
# llama.cpp, with the packaged GGUF. `course phone serve --host ADDRESS` serves it and shows a QR code, in a
# terminal or in a cell with `!` before it. After the first visit it works without a network. Where a browser
# has WebGPU, onnxruntime-web uses it; that path was tried with Chromium's software adapter only, on no GPU.
#
# There the page can compute in two ways from the same file of weights. Which operator takes the time of a
# token? ONNX Runtime keeps a profile. **Guess before you look:** in the first way `MatMulNBits` multiplies
# with packed weights; in the second the same integers are unpacked once, while the page is loaded, and
# multiplied as FP32 numbers.

# %% name="profile"
profile = records.load("bench_phone_profile")
if profile:
    print(records.provenance_line(profile))
    operators = profile["results"]["rows"]
    for weights in dict.fromkeys(row["weights"] for row in operators):
        rows = [row for row in operators if row["weights"] == weights]
        product = max(rows, key=lambda row: row["share"])
        print(f"{weights}: {product['operator']} takes {product['milliseconds a token']:.0f} of "
              f"{sum(row['milliseconds a token'] for row in rows):.0f} ms a token ({product['share']:.0%}).")
    found = measure.table({f"{row['weights']}: {row['operator']}": {
        "ms a token": round(row["milliseconds a token"], 1), "share": f"{row['share']:.1%}"}
        for row in operators})
else:
    found = "No recorded run yet: `course bench phone_profile` makes one."
found

# %% [markdown] name="profile-reading"
# Both ways multiply the same numbers. What does `MatMulNBits` do besides? ONNX Runtime's source says it
# (`onnxruntime/contrib_ops/cpu/quantization/matmul_nbits.cc`, `ComputeBUnpacked`): where there is no kernel
# for packed integers, it unpacks the whole matrix to FP32 before each product. So the page unpacks once. The
# download stays at 4 bits; the memory does not. That is a trade for this model, not for one of 13 billion
# parameters; with `?graph=packed` behind its address the page keeps the weights packed.
#
# Unpacking may also be a part of what INT8 activations gained on this computer, further up: with activations
# in FP32 the weights have to become FP32, too. The two were not taken apart.
#
# How the unpacking is written matters, too. A runtime keeps each result on the way until the graph is loaded.
# So integers and scales are turned round while they are small, and only the last operator,
# `DequantizeLinear`, makes FP32 numbers.
#
# Recorded in headless Chromium (`course bench phone_browser`): all in one browser, in turns. *Tokens as in
# Python*: our file is compared with ONNX Runtime in Python, the GGUF with its weights in FP32.

# %% name="browser"
browser = records.load("bench_phone_browser")
if browser:
    print(records.provenance_line(browser))
    found = measure.table({row["engine"]: {
        "load (s)": round(row["load (s)"], 1),
        "decode (tokens/s)": round(float(np.median(row["decode (tokens/s)"])), 1),
        "memory (MB)": row["memory (MB)"] and round(row["memory (MB)"]),
        "tokens as in Python": row["tokens as in Python"]} for row in browser["results"]["rows"]})
    speeds = {row["engine"]: row["decode (tokens/s)"] for row in browser["results"]["rows"]}
    ratio = [a / b for a, b in zip(speeds["onnxruntime-web"], speeds["wllama"], strict=True)]
    versus = measure.compare(ratio, [1.0] * len(ratio), higher_is_better=True, unit="of the speed",
                             what="rounds")
    print(f"onnxruntime-web writes {1 + versus.difference:.2f} times as fast as wllama (95 %: "
          f"{1 + versus.low:.2f} to {1 + versus.high:.2f}; {versus.pairs} rounds): {versus.verdict}.")
else:
    found = "No recorded run yet: `course bench phone_browser` makes one."
found

# %% [markdown] name="arm-text"
# ## On an ARM processor
#
# Phones have ARM processors. An emulator, qemu, runs ARM programs on another processor, instruction by
# instruction. It can show that the same file gives the same tokens there. It cannot show how fast: an
# emulated instruction takes the time of the emulation. Recorded by `make arm64`.

# %% name="arm"
arm = records.load("bench_phone_arm64")
if arm:
    print(records.provenance_line(arm))
    found = measure.table({row["what"]: {"value": row["value"]} for row in arm["results"]["rows"]})
else:
    found = "No recorded run yet: `make arm64` makes one."
found

# %% [markdown] name="arm-reading"
# NEON is ARM's set of instructions that work on 128 bits at once. The emulator lists each piece of code when
# it is run first, so the table counts places in the program, not how often they are run. Of four FP32 numbers
# an `fmla` makes four products. Of sixteen 8-bit integers an `sdot` makes sixteen, in one instruction, too.
# That is what rounding the activations is for: `accuracy_level` 4. The emulated processor, a Cortex-A76, has
# `sdot`; `smmla` came with later ones.

# %% [markdown] name="replicate"
# ## What would not replicate elsewhere, and what holds anyway
#
# - The share of memory that a system leaves, and the joules: an assumption and old figures. Both are
#   parameters.
# - The speeds here are those of this computer. A phone's have another bound, and its heat is not in any of
#   our figures.
# - Whether all tokens agree, and how far INT8 activations lead away: two tokens can be nearly equally likely,
#   and then the last digit decides.
# - What holds: the bytes; that nothing writes faster than bandwidth / bytes; that the file holds the
#   checkpoint's integers; that a graph needs its cache as inputs and outputs.
#
# ## Recap
#
# - Weights, table, cache, activations, and what the system takes: add them up before you buy anything.
# - Tokens a second <= bandwidth / (weights + cache).
# - Export what the quantizer chose. Compare the integers, not only the text.
# - The decoding loop is short: read, take the best token, hand the cache on.
#
# ## The claims settled here
#
# C16: {claim:C16}. C15: {claim:C15}.

# %% name="claim-c16"
four_bits = needs["LLaMA-13B, 4 bits"]
fits = [phone for phone in budget.PHONES if sum(four_bits.values()) <= LEFT * phone.memory]
verdict = "right" if len(fits) == len(budget.PHONES) else "half right" if fits else "false"
print(f"C16: {verdict}, by arithmetic. There is room on {len(fits)} of {len(budget.PHONES)} classes of "
      f"phones ({', '.join(phone.name.split(',')[0] for phone in fits) or 'none'}). No phone was measured.")
print(f"    4-bit weights in groups of 128 take {(four_bits['weights'] + four_bits['table']) / 1e9:.2f} GB, "
      f"the cache of {CONTEXT:,} tokens {four_bits['cache'] / 1e9:.2f} GB,")
print(f"    together with the rest {sum(four_bits.values()) / 1e9:.2f} GB; {LEFT:.0%} of the memory is left "
      "to the app (an assumption).")
for phone in fits:
    bound = dict(budget.what_runs(LEFT * phone.memory, phone.bandwidth, {"13B": four_bits}))["13B"]
    print(f"    {phone.name}: at most {bound:.1f} tokens/s with {CONTEXT:,} tokens in the cache.")

# %% name="claim-c15"
print(f"C15: not by that path. Another one works: {same_integers} of {len(places) - 1} layers in the ONNX "
      "file hold the checkpoint's integers,")
print(f"    and ONNX Runtime wrote our packed model's tokens for "
      f"{sum(a == b for a, b in zip(written, ours, strict=True))} of {len(ours)} questions.")
if formats:
    for row in formats["results"]["rows"]:
        print(f"    {row['runtime']}, {row['file']}: {row['result']}")
else:
    print("    What else reads the file: no recorded run to judge by.")
