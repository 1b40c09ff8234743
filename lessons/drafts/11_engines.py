# %% [markdown] name="title" goal="Run one model in many engines and see what each costs and gives"
# # Lesson 11: Engines
#
# The same weights can be run by many programs: PyTorch, ONNX Runtime, OpenVINO, llama.cpp, TVM and others.
# Which is the fastest on *your* machine? Which needs the least memory? And is what they compute still the
# model, or only something like it?
#
# You will work out how fast decoding can be at all, read a graph that somebody exported wrongly, measure how
# far an engine has moved from the FP32 model, and then let all engines of your machine run the same text.
#
# You need lesson 00 (bandwidth and the roofline) and lesson 10 (the KV cache).

# %% name="imports"
import matplotlib.pyplot as plt

from course_utils import costs, data, engines, measure, models, plots, records
from course_utils.engines import agreement, graph  # noqa: F401 - exercises name them

plots.style()

# %% name="model"
folder = LM or models.embedded_lm()
config = models.AutoConfig.from_pretrained(folder)
tokenizer = models.AutoTokenizer.from_pretrained(folder)
text = data.wikipedia_tokens(tokenizer, "heldout", 128)
print(f"{costs.parameter_count(config):,} parameters")

# %% [markdown] name="engines-text"
# ## What is an engine?
#
# Engines differ in *when* they decide how to compute.
#
# - An **eager framework** (PyTorch) decides anew at each operation. Flexible, and the slowest to start each
#   single operation.
# - A **runtime with providers** (ONNX Runtime, OpenVINO) loads a *graph*: a file that lists the operations.
#   It fuses some of them once, at load time, and picks a kernel for each: code made for one operation, one
#   number format and one kind of processor. The provider is the set of kernels: CPU, CUDA, TensorRT.
# - A **vendor's compiler** (TensorRT) does the same for one make of GPU, times several kernels for each
#   operation on that very GPU, and writes a file that runs there and nowhere else.
# - A **compiler stack** (TVM, torch.compile) makes the kernels themselves, from a description of the loops.
# - A **program for one family of models** (llama.cpp, ONNX Runtime GenAI, vLLM) knows what a language model
#   is: tokenizer, KV cache and sampling are inside, and its kernels read packed 4-bit weights.
#
# So the article's table of TensorRT, ONNX Runtime and TVM compares things of three kinds. Ask of each: how
# long does it load, how much memory does it take, how fast does it read a prompt, how fast does it write, and
# does it still give the model's answers?
#
# ## How fast can it be?
#
# Decoding reads all weights for each token. So no engine writes more tokens a second than the memory can
# deliver. This is the limit that lesson 00 derived. Now with the cache, and for several sequences at once.
#
# **Your turn.**

# %% name="ex-bound" exercise="course_utils.costs:decode_bound" points=2

# %% name="bandwidth" timing=true
bandwidth = measure.bandwidth()
print(bandwidth)
weights = costs.weights_read(config)
for bits in (32, 16, 8, 4):
    bound = costs.decode_bound(weights * bits / 8, bandwidth.read)
    print(f"{bits:2} bits a weight: at most {bound:5.0f} tokens/s")

# %% [markdown] name="export-text"
# ## Getting the model out of PyTorch
#
# Most engines do not read PyTorch's files. They read a graph in the format **ONNX**. The article exports it
# in one line: `torch.onnx.export(model, input_ids, "llama-13b.onnx")`. What comes out is a graph that takes
# a text of exactly the length of the example and gives the scores of all its tokens. It has no cache.
#
# **Predict.** A prompt of 64 tokens, 64 new tokens, no cache: the graph has to read the whole text for each
# new token. How many tokens does it read altogether?

# %% name="predict-tokens-read" predict="11.predict_tokens_read" points=1
### BEGIN SOLUTION
prediction = sum(range(64, 64 + 64))  # tokens
### END SOLUTION

# %% [markdown] name="graph-text"
# With a cache it is 64 + 63 = 127. So before you use a graph that somebody gives you, look at what goes in
# and what comes out. The cache of a graph is plain tensors: one for the keys and one for the values of each
# layer, past ones in, all of them out.
#
# **Your turn.** Three questions for a graph. (`session.get_inputs()` of ONNX Runtime gives names and shapes.)

# %% name="ex-graph" exercise="course_utils.engines.graph:missing_parts" points=3

# %% [markdown] name="agreement-text"
# ## Is it still the model?
#
# Fast and wrong is easy. Two measures, both on the same tokens as the FP32 model:
#
# - **top-1 match**: at which share of the positions does the engine put the same token first?
# - **KL divergence**: how far are its probabilities from the reference's? It is the number of nats by which a
#   text of the reference gets longer when the engine's probabilities are used to code it.
#
# Why both? Where two tokens are equally likely, a tiny error turns the first place round, and nobody is
# hurt. KL sees that. And where one token is certain, KL sees an engine that becomes unsure long before the
# first place changes.
#
# **Your turn.**

# %% name="ex-kl" exercise="course_utils.engines.agreement:mean_kl" points=3

# %% [markdown] name="table-text"
# ## All engines of this machine
#
# Each engine runs as a process of its own. So its memory is its own, it shares no threads with another, and
# one that crashes or hangs is a row of the table and not the end of the lesson. What is not installed says
# so, and which command installs it. The prompt has 64 tokens, 16 are written.

# %% name="table" timing=true
names = [name for name in engines.VARIANTS if name != "torch.compile FP32"]  # compiles for over a minute
rows = engines.measure_all(names, text[:64].tolist(), 16, text.tolist(), threads=2, repeats=2, timeout=60)
print(measure.machine_card())
columns = ["load (s)", "disk (MB)", "peak (MB)", "prefill (tokens/s)", "decode (tokens/s)", "top-1 match",
           "KL (nats)", "note"]
measure.table({row["engine"]: {column: row[column] for column in columns} for row in rows})

# %% [markdown] name="record-text"
# The same table as it was recorded on a machine where all of them were installed (`course bench engines`).

# %% name="record"
bench = records.load("bench_engines")
if bench:
    print(records.provenance_line(bench))
    found = measure.table({f"{row['engine']}, {row['threads']} threads": {
        column: row[column] for column in columns} for row in bench["results"]["rows"]})
else:
    found = "No recorded run yet: `course bench engines` makes one."
found

# %% name="plot-engines" timing=true
shown = [row for row in rows if row["decode (tokens/s)"]]
fig, ax = plt.subplots(figsize=(7, 4.4))
dots = ax.scatter([row["peak (MB)"] for row in shown], [row["decode (tokens/s)"] for row in shown],
                  c=[row["top-1 match"] for row in shown], cmap="viridis", vmax=1, s=70, zorder=3)
for row in shown:
    ax.annotate(row["engine"], (row["peak (MB)"], row["decode (tokens/s)"]), xytext=(6, 4),
                textcoords="offset points", fontsize=8)
for bits in (32, 8, 4):
    bound = costs.decode_bound(weights * bits / 8, bandwidth.read)
    ax.axhline(bound, color="#999999", lw=1, ls=":")
    ax.text(ax.get_xlim()[1], bound, f"limit at {bits} bits", ha="right", va="bottom", fontsize=8)
ax.set(xlabel="peak memory (MB)", ylabel="decoding (tokens/s)", yscale="log")
fig.colorbar(dots, label="top-1 match with FP32")
plots.show(fig, "Each engine as a dot: peak memory across, decoding speed upwards on a logarithmic scale, "
           "agreement with FP32 as colour. Dotted lines mark the fastest decoding that this machine's memory "
           "allows at 32, 8 and 4 bits a weight. The engines with 4-bit kernels lie up and to the left.")

# %% [markdown] name="lengths-text"
# ## The ranking depends on the work
#
# Reading a prompt is bound by arithmetic, writing by bytes. So ask for the time of a whole request: a long
# document and a short answer, or a short question and a long answer?

# %% name="lengths" timing=true
requests = {"1,000 in, 10 out": (1000, 10), "100 in, 100 out": (100, 100), "10 in, 1,000 out": (10, 1000)}
seconds = {label: {row["engine"]: prompt / row["prefill (tokens/s)"] + new / row["decode (tokens/s)"]
                   for row in shown} for label, (prompt, new) in requests.items()}
measure.table({label: {f"{place + 1}.": name for place, name in enumerate(sorted(each, key=each.get))}
               for label, each in seconds.items()})

# %% [markdown] name="replicate"
# ## What would not replicate elsewhere, and what holds anyway
#
# - The ranking. It changes with the processor's instructions, with the number of cores, with the length of
#   the prompt and of the answer, and with each version of each engine.
# - What holds: nobody beats the memory; an engine that reads packed 4-bit weights has the higher limit; a
#   graph without a cache does quadratic work; and the figure that comes without agreement is half a figure.
#
# ## Recap
#
# - Decoding: tokens a second <= batch x bandwidth / (weights + batch x cache).
# - Look at a graph's inputs and outputs before you trust it.
# - Measure agreement on the same tokens, by first place and by KL.
#
# ## The claims settled here
#
# C13: *TensorRT, ONNX Runtime, TVM in one table*. C14: *export by one line*.
