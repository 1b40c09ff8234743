# %% [markdown] name="title" goal="Run one model in many engines and see what each costs and gives"
# # Engines
#
# The same weights can be run by many programs: PyTorch, ONNX Runtime, OpenVINO, llama.cpp, TVM and others.
# Which is the fastest on *your* machine? Which needs the least memory? And is what they compute still the
# model, or only something like it?
#
# You will work out how fast decoding can be at all, read a graph that somebody exported wrongly, measure how
# far an engine has moved from the FP32 model, and then let all engines of your machine run the same text.
#
# You need {lesson:one_token} (bandwidth and the roofline) and {lesson:kv_cache} (the KV cache).

# %% name="imports"
import matplotlib.pyplot as plt
import numpy as np  # noqa: F401 - an exercise uses it
from transformers import AutoConfig, AutoTokenizer, LlamaConfig

from course_utils import costs, data, engines, measure, models, plots, records
from course_utils.engines import agreement, graph  # noqa: F401 - exercises name them

plots.style()

# %% name="model"
folder = models.embedded_lm()  # the engines' files are made from this model
config = AutoConfig.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
text = data.wikipedia_tokens(tokenizer, "heldout", 128)
print(f"{costs.parameter_count(config):,} parameters")

# %% [markdown] name="engines-text"
# ## What is an engine?
#
# Engines differ in *when* they decide how to compute.
#
# - An **eager framework** (PyTorch) decides anew at each operation. Flexible, but Python starts each one by
#   itself, and that takes time.
# - A **runtime with providers** (ONNX Runtime, OpenVINO, and ExecuTorch for phones) loads a *graph*: a file
#   that lists the operations. It fuses some of them once, at load time or (ExecuTorch) when the file is made,
#   and picks a kernel for each: code made for one operation, one number format and one kind of processor. The
#   provider is the set of kernels: CPU, CUDA, TensorRT.
# - A **vendor's compiler** (TensorRT) does the same for one make of GPU, times several kernels for each
#   operation on that very GPU, and writes a file that, unless told otherwise, runs on that kind of GPU only
#   (NVIDIA's documentation of TensorRT).
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
# deliver. This is the limit that {lesson:one_token} derived. Now with the cache, and for several sequences at
# once.
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
# in one line: `torch.onnx.export(model, input_ids, "llama-13b.onnx")`. An export follows one example, here
# `input_ids`. So at best the graph takes a text of that length and gives the scores of its tokens. Nothing
# tells it of a cache.
#
# **Predict.** A prompt of 64 tokens, 64 new tokens, no cache: the graph has to read the whole text for each
# new token. How many tokens does it read altogether?

# %% name="predict-tokens-read" predict="engines.predict_tokens_read" points=1
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

# %% [markdown] name="graph-record-text"
# Now real graphs, as recorded by `course bench onnx_graph`: the article's line on the first two layers of our
# model, and the export that the engines below use.

# %% name="graph-record"
exported = records.load("bench_onnx_graph")
if exported:
    print(records.provenance_line(exported))
    for row in exported["results"]["rows"]:
        print(f"\n{row['graph']}")
        if row["failure"]:
            print(f"  fails. {row['failure']}")
            continue
        for kind in ("inputs", "outputs"):
            first = ", ".join(f"{name} {shape}" for name, shape in row[kind][:3])
            more = f" and {len(row[kind]) - 3} more" if len(row[kind]) > 3 else ""
            print(f"  {kind:7} {first}{more}")
        lacking = graph.missing_parts(row["inputs"], row["outputs"])
        print(f"  missing {', '.join(sorted(lacking)) or 'nothing'}")
else:
    print("No recorded run yet: `course bench onnx_graph` makes one.")

# %% [markdown] name="graph-meaning"
# The one line does not even run any more: the model hands out its cache as an object, and a graph knows
# tensors only. Without the cache it runs. That graph keeps the length of its example for ever, and no cache
# goes in. Ours has the cache and takes any length. Its `attention_mask` hides padding, so that a short text
# and a long one can stand in one batch. Mind a trap there: a padding token that may see nothing gets a
# softmax over nothing, 0 / 0. ONNX Runtime's kernel says 0 then. By the formula it is not a number, and the
# next layer would hand that on to all tokens. So in our mask padding sees itself.
#
# A graph can say the same in many small operators or in one. Ours says attention in one: ONNX's operator
# `Attention` (operator set 23) joins the cache with the new tokens, and knows that several query heads share
# one key-value head. A runtime with a kernel for it need not find the pattern first.
#
# Two more traps. A file in the format of ONNX is a protobuf message, which must be smaller than 2 GiB. So
# larger weights have to lie in a file beside it (*external data*). And where embedding and output layer
# share one matrix, an export can easily write it twice.

# %% [markdown] name="agreement-text"
# ## Is it still the model?
#
# Fast and wrong is easy. Two measures, both on the same tokens as the FP32 model:
#
# - **top-1 match**: at which share of the positions does the engine put the same token first?
# - **KL divergence**: how far are its probabilities from the reference's? It is the number of nats a token by
#   which a text of the reference gets longer when the engine's probabilities are used to code it.
#
# Why both? Where two tokens are equally likely, a tiny error turns the first place round, and nobody is
# hurt: KL stays small. And where one token is certain, an engine can become unsure long before the first
# place changes: KL grows.
#
# **Your turn.**

# %% name="ex-kl" exercise="course_utils.engines.agreement:mean_kl" points=3

# %% [markdown] name="table-text"
# ## All engines of this machine
#
# Each engine runs as a process of its own. So its memory is its own, it shares no threads with another, and
# one that crashes or hangs is a row of the table and not the end of the lesson. What is not installed says
# so, and which command installs it. The prompt has 64 tokens, 16 are written. Some rows are left to the
# record further down: what PyTorch compiles, which takes minutes, vLLM, which loads for one, and BF16 and
# INT8 in torch, which need more memory while they load than this lesson may take.
#
# "INT4" on two engines need not be the same thing. So the table says for each:
#
# - the bits of a **weight**, and how many weights share a scale (*group*). A scale is read, too: one in FP32
#   for 32 weights adds 1 bit to each of them, one in FP16 half a bit;
# - the bits of the **activations** that the weights are multiplied with. With 8, a kernel multiplies whole
#   numbers, and the activations are rounded as they come;
# - the **bytes** of weights that it reads for a token, all scales and the output layer included, and from
#   them **its own limit**: bandwidth / bytes. An embedding that is only looked up does not count. (Nor does
#   the KV cache here: 46 kB for each token of the text, in FP32.)
# - the share of that limit which it reaches. Above 1 would mean that the weights came out of the processor's
#   own cache, or that something slowed down the measurement of the bandwidth.
#
# Before you run the cell: which engine will write fastest? Which will come nearest to its own limit? And will
# the same one read the prompt fastest?

# %% name="table" timing=true
elsewhere = ("torch BF16", "torch.compile FP32", "torchao INT8", "torchao INT8, compiled",
             "bitsandbytes INT8", "vLLM FP32")
names = [name for name in engines.VARIANTS if name not in elsewhere]
rows = engines.measure_all(names, text[:64].tolist(), 16, text.tolist(), threads=2, repeats=2, timeout=60)
print(measure.machine_card())
places = {"bits": 0, "activation bits": 0, "group": None, "read (MB)": 1, "limit (tokens/s)": 0,
          "decode (tokens/s)": 1, "share of the limit": 2, "prefill (tokens/s)": 0, "load (s)": 1,
          "peak (MB)": 0, "top-1 match": 3, "KL (nats)": 4}


def with_limit(row, read):
    """The row with the limit that its bytes set at a bandwidth of `read` bytes a second."""
    if row["decode (tokens/s)"] is None:
        return row
    limit = costs.decode_bound(row["read (MB)"] * 1e6, read)
    return row | {"limit (tokens/s)": limit, "share of the limit": row["decode (tokens/s)"] / limit}


def table_of(rows, columns=tuple(places)):
    """Rounded figures of each engine; its note where there are none."""
    shown = {}
    for row in rows:
        figures = {column: row.get(column) for column in columns if column in row}
        shown[row["engine"]] = {
            column: "" if value is None else value if places[column] is None else round(value, places[column])
            for column, value in figures.items()} | ({"note": row["note"]} if row["note"] else {})
    return measure.table(shown)


table_of([with_limit(row, bandwidth.read) for row in rows])

# %% [markdown] name="record-text"
# The same as it was recorded on a machine where all of them were installed (`course bench engines`): a prompt
# of 256 tokens, 32 written, in two rounds (torch but for FP32, torchao, bitsandbytes and vLLM in the first
# only). The limit is that of the bandwidth, the highest of those measured before, between and after. The
# order of the rows is that of two rounds, without an error; *One variable* and *At equal bytes* below have
# one.

# %% name="record"
bench = records.load("bench_engines")
if bench:
    print(records.provenance_line(bench))
    kept = [row for row in bench["results"]["rows"] if not row["note"] and row["threads"] == 2]
    with_bytes = "share of the limit" in kept[0]  # a record that was made before bytes were counted has none
    if with_bytes:
        print(f"bandwidth {kept[0]['bandwidth (GB/s)']:.1f} GB/s")
    for row in bench["results"]["rows"]:
        if row["note"]:
            print(f"{row['engine']}: {row['note']}")
    found = table_of(sorted(kept, key=lambda row: -row["decode (tokens/s)"]))
else:
    found = "No recorded run yet: `course bench engines` makes one."
found

# %% [markdown] name="record-agreement-text"
# And what is left of the model? The 128 positions of your own table are one passage. These are 2,048 in 16
# windows (`course bench engines_agreement`). The interval is over windows, because the positions of one
# window are not independent ({lesson:one_token}).

# %% name="record-agreement"
agreed = records.load("bench_engines_agreement")
if agreed:
    print(records.provenance_line(agreed))
    by_name = {row["engine"]: row for row in agreed["results"]["rows"]}
    zeros = [0.0] * len(next(iter(by_name.values()))["KL by window"])
    found = {}
    for name, row in sorted(by_name.items(), key=lambda item: item[1]["KL (nats)"]):
        kl = measure.compare(row["KL by window"], zeros)
        same = measure.compare(row["top-1 by window"], zeros)
        found[name] = {
            "bits": engines.VARIANTS[name].bits, "read (MB)": round(row["read (MB)"], 1),
            "KL (nats)": round(kl.difference, 4), "its 95 %": f"{kl.low:.4f} to {kl.high:.4f}",
            "top-1 match": round(same.difference, 3), "95 % of it": f"{same.low:.3f} to {same.high:.3f}"}
    found = measure.table(found)
else:
    found = "No recorded run yet: `course bench engines_agreement` makes one."
found

# %% [markdown] name="record-reading"
# How to read the two tables:
#
# - **Bytes first.** Two engines that both say "INT4" may read a different number of bytes, because of scales,
#   zero points and the output layer, which some keep in 8 bits and some in 4. Who reads less has a higher
#   limit, and that says nothing of how good the program is. The share of the limit does.
# - A prompt is bound by arithmetic. So the order of the prefill column is another one.
# - Weights alone in 8 bits, torchao's INT8: as they come, each product first makes FP32 numbers of them.
#   torchao's guide says to compile it, which should put that into the kernel. What both wrote a second in
#   this one round is printed below.
# - **Speed without agreement is half a figure.** ONNX Runtime's dynamic INT8 rounds the activations with one
#   scale a tensor, and {lesson:ptq} measured what one scale a tensor costs this model. How much of the KL in
#   the table that explains was not tested here.
# - A trap that agreement shows and speed does not: on a processor without VNNI instructions, ONNX Runtime
#   adds products of 8-bit numbers in 16 bits, which overflow (ONNX Runtime's documentation, "Quantize ONNX
#   models"). Our first INT8 file wrote nonsense there; no record of that is kept. So "INT8" uses 7 of the 8
#   bits (`reduce_range`), and "INT8, full range" all of them. It runs only where VNNI is.
# - llama.cpp's Q4_1 is hardly away from the reference, and that is no merit: our FP32 model *was* unpacked
#   from that file. All other formats of 4 and 8 bits round these weights a second time, llama.cpp's Q4_0 and
#   Q4_K_M too, which we made of the FP32 model. So always ask: agreement with what?
# - llama.cpp's K-formats want rows in multiples of 256 numbers. This model's have 576. So in its Q4_K_M file
#   most matrices fall back to 5 or 8 bits: look at its bytes.

# %% name="record-findings"
def paired(first, second, column, **how):
    """The difference of two engines, window by window."""
    return measure.compare(by_name[first][column], by_name[second][column], what="windows", **how)


if agreed:
    for first, second in (("ONNX Runtime INT8, full range", "ONNX Runtime INT8"),
                          ("ONNX Runtime INT4, groups of 64", "llama.cpp Q4_0"),
                          ("ONNX Runtime INT4, groups of 64", "ONNX Runtime INT4")):
        if {first, second} <= set(by_name):
            print("KL to the FP32 model: "
                  f"{paired(first, second, 'KL by window', unit='nats a token').sentence(first, second)}\n")
if bench:
    of = {row["engine"]: row for row in kept}
    if "torchao INT8, compiled" in of:
        print(f"torchao INT8 writes {of['torchao INT8']['decode (tokens/s)']:.1f} tokens/s as it comes and "
              f"{of['torchao INT8, compiled']['decode (tokens/s)']:.1f} compiled, in one round; it reads "
              f"{of['torchao INT8']['read (MB)']:.0f} MB a token.")

# %% [markdown] name="waiting-text"
# ## One variable
#
# Two threads share each operation, so one of them waits for the other hundreds of times a token. How? It can
# look again and again (*spin*), or sleep and be woken, which takes longer than many an operation. The
# variable `OMP_WAIT_POLICY`, often set on busy machines, chooses. Could it change who is ahead? **Guess**,
# then see what `course bench engines_waiting` recorded. ONNX Runtime and OpenVINO have thread pools of their
# own, which do not read it.

# %% name="waiting"
waiting = records.load("bench_engines_waiting")
if waiting:
    print(records.provenance_line(waiting))
    rates = {(row["engine"], row["waiting"]): row["rates"] for row in waiting["results"]["rows"]}
    usual = "as the course sets it"
    for name in dict.fromkeys(engine for engine, _ in rates):
        print(f"{name}: {np.median(rates[name, usual]):.1f} tokens/s {usual}")
        for way in dict.fromkeys(way for _, way in rates if way != usual):
            ratio = [a / b for a, b in zip(rates[name, way], rates[name, usual], strict=True)]
            change = measure.compare(ratio, [1.0] * len(ratio), higher_is_better=True)
            print(f"    {way}: {1 + change.difference:.2f} of that (95 %: {1 + change.low:.2f} to "
                  f"{1 + change.high:.2f}): {change.verdict}")
else:
    print("No recorded run yet: `course bench engines_waiting` makes one.")

# %% [markdown] name="paired-text"
# ## At equal bytes: our export and llama.cpp
#
# Does the graph that we exported keep up with a program written for this one kind of model? That is a fair
# question only at equal bytes. So we chose a format that makes them equal: 4-bit weights with one FP32 scale
# for 64 of them, and an output layer of 8 bits with the same groups. llama.cpp's Q4_0 has two FP16 scales for
# 64, and its output layer in 8 bits as well. GenAI's graph is in as well: it reads fewer bytes, because its
# output layer has 4 bits. Is it the bytes that make it as fast as it is, or the graph?
#
# Recorded round by round, each round in another order (`course bench engines_paired`), so that a slow minute
# of the machine meets all of them. **Before you look:** which ratio of speeds do you expect between two
# programs that read the same bytes?

# %% name="paired"
rounds = records.load("bench_engines_paired")
OURS = "ONNX Runtime INT4, groups of 64"
if rounds:
    print(records.provenance_line(rounds))
    tries = {row["engine"]: row for row in rounds["results"]["rows"]}
    speeds = {name: row["decode (tokens/s)"] for name, row in tries.items()}
    ones = [1.0] * len(speeds[OURS])
    versus, found = {}, {}
    for name, row in tries.items():
        ratio = [ours / theirs for ours, theirs in zip(speeds[OURS], speeds[name], strict=True)]
        versus[name] = measure.compare(ratio, ones, higher_is_better=True, what="rounds")
        fewer = row["read (MB)"] / tries[OURS]["read (MB)"]
        found[name] = {
            "read (MB)": round(row["read (MB)"], 1),
            "median (tokens/s)": round(float(np.median(speeds[name])), 1),
            "slowest to fastest": f"{min(speeds[name]):.1f} to {max(speeds[name]):.1f}",
            "ours / this": round(1 + versus[name].difference, 3),
            "95 %": f"{1 + versus[name].low:.3f} to {1 + versus[name].high:.3f}",
            "ours / this, GB/s": round((1 + versus[name].difference) / fewer, 3),
            "our speed": "" if name == OURS else versus[name].verdict}
    found = measure.table(found)
else:
    found = "No recorded run yet: `course bench engines_paired` makes one."
found

# %% name="paired-verdict"
if rounds:
    theirs = [name for name in tries if name.startswith("llama.cpp")]
    quickest = max(theirs, key=lambda name: np.median(speeds[name]))
    gap = versus[quickest]
    print(f"llama.cpp's quickest format here is {quickest.removeprefix('llama.cpp ')}. Our export reads "
          f"{tries[OURS]['read (MB)']:.1f} MB a token, it reads {tries[quickest]['read (MB)']:.1f} MB.")
    goal = "reached" if gap.low >= 0 else "missed" if gap.high < 0 else "not decided by these rounds"
    if tries[OURS]["read (MB)"] > tries[quickest]["read (MB)"]:
        goal = "missed, because ours reads more bytes"
    print(f"The goal, at least 1.00 of its speed at no more bytes, is {goal}: "
          f"{1 + gap.difference:.3f} (95 %: {1 + gap.low:.3f} to {1 + gap.high:.3f}, {gap.pairs} rounds).")
    if agreed:
        kl = paired(OURS, quickest, "KL by window", unit="nats a token")
        print(f"How near to the FP32 model? {kl.sentence('Our export', quickest)}")
    genai = "ONNX Runtime GenAI INT4"
    if genai in tries:
        bytes_ratio = tries[OURS]["read (MB)"] / tries[genai]["read (MB)"]
        speed = [b / a for a, b in zip(speeds[OURS], speeds[genai], strict=True)]
        a_byte = measure.compare([value / bytes_ratio for value in speed], ones, higher_is_better=True,
                                 unit="of the speed", what="rounds")
        print(f"GenAI's graph writes {np.mean(speed):.2f} times as fast as our export and reads "
              f"1/{bytes_ratio:.2f} of the bytes. By byte read, its speed is {1 + a_byte.difference:.2f} of "
              f"ours (95 %: {1 + a_byte.low:.2f} to {1 + a_byte.high:.2f}): {a_byte.verdict}.")

# %% [markdown] name="record-gpu-text"
# TensorRT needs an NVIDIA GPU, and vLLM is made for them ({lesson:serving} runs it on the CPU). Where there
# is one, `course engines install tensorrt` (or `vllm`) adds them to the table above, and `course bench
# engines_gpu` keeps what they reached. `course gpu-run` measures what a GPU machine has anyway, and how
# long the lessons of this course take there.

# %% name="record-gpu"
on_gpu = records.load("bench_engines_gpu")
if on_gpu:
    print(records.provenance_line(on_gpu))
    found = table_of(on_gpu["results"]["rows"])
else:
    found = "No recorded run on a GPU yet: `course bench engines_gpu` makes one on a machine that has one."
found

# %% name="record-gpu-run"
records.gpu_table("gpu_engines", [
    "engine", "batch", "prefill (tokens/s)", "decode (tokens/s)", "top-1 match", "note"])

# %% name="record-gpu-lessons"
records.gpu_table("gpu_lessons", [
    "lesson", "profile", "minutes", "memory (GB)", "exercises passed", "exercises"])

# %% name="plot-engines" timing=true
shown = [row for row in rows if row["top-1 match"] is not None]  # with figures, and the reference too
# Other programs may have slowed down the first measurement of the bandwidth: the higher of two counts.
read = max(bandwidth.read, measure.bandwidth().read)
limits = {bits: costs.decode_bound(weights * bits / 8, read) for bits in (32, 8, 4)}
for row in shown:
    here = not engines.find(engines.VARIANTS[row["engine"]].engine).gpu  # a GPU has memory of its own
    if here and with_limit(row, read)["share of the limit"] > 1:
        print(f"{row['engine']} is above its limit, so {read / 1e9:.0f} GB/s is too low. Run the cell again.")
fig, ax = plt.subplots(figsize=(8, 4.4))
ranked = sorted(shown, key=lambda row: -row["decode (tokens/s)"])
dots = ax.scatter([row["peak (MB)"] for row in ranked], [row["decode (tokens/s)"] for row in ranked],
                  c=[row["top-1 match"] for row in ranked], cmap="viridis", vmax=1, s=150, zorder=3)
for place, row in enumerate(ranked, 1):  # numbers, because names would write over each other
    ax.text(row["peak (MB)"], row["decode (tokens/s)"], place, ha="center", va="center", fontsize=8, zorder=4,
            color="black" if row["top-1 match"] > 0.8 else "white")
    ax.plot([], [], " ", label=f"{place:2}  {row['engine']}")
ax.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=8, handlelength=0)
for bits in (32, 8, 4):
    bound = limits[bits]
    ax.axhline(bound, color="#999999", lw=1, ls=":")
    ax.text(ax.get_xlim()[1], bound, f"limit at {bits} bits", ha="right", va="bottom", fontsize=8)
ax.set(xlabel="peak memory (MB)", ylabel="decoding (tokens/s)", yscale="log",
       title="Faster, smaller, and still the model?")
ax.yaxis.set_major_formatter("{x:.0f}")
ax.yaxis.set_minor_formatter("{x:.0f}")
fig.colorbar(dots, label="top-1 match with FP32", location="bottom", shrink=0.6)
ends = ""
if shown:
    fastest = max(shown, key=lambda row: row["decode (tokens/s)"])["engine"]
    smallest = min(shown, key=lambda row: row["peak (MB)"])["engine"]
    ends = f" Fastest is {fastest}, smallest is {smallest}."
plots.show(fig, "Each engine as a numbered dot: peak memory across, decoding speed upwards on a logarithmic "
           "scale, agreement with FP32 as colour. Dotted lines mark the fastest decoding that this machine's "
           "memory allows at 32, 8 and 4 bits a weight, scales not counted." + ends)

# %% [markdown] name="lengths-text"
# ## The ranking depends on the work
#
# Reading a prompt is bound by arithmetic, writing by bytes. So ask for the time of a whole request: a long
# document and a short answer, or a short question and a long answer?
#
# The table is arithmetic with the rates of your own table, not a measurement: it takes a rate as the same at
# any length and leaves the growing cache out. Those rates are of two repeats. So engines that stand side by
# side in it may change places in the next run.

# %% name="lengths" timing=true
requests = {"1,000 in, 10 out": (1000, 10), "100 in, 100 out": (100, 100), "10 in, 1,000 out": (10, 1000)}
seconds = {label: {row["engine"]: prompt / row["prefill (tokens/s)"] + new / row["decode (tokens/s)"]
                   for row in shown} for label, (prompt, new) in requests.items()}
measure.table({label: {f"{place + 1}.": name for place, name in enumerate(sorted(each, key=each.get))}
               for label, each in seconds.items()})

# %% [markdown] name="batch-text"
# ## Several sequences at once
#
# A server answers many people. It reads the weights once for all sequences of a step, so 16 sequences could
# come nearly 16 times as fast as one, until arithmetic is the limit ({lesson:one_token}). Look once more
# at the first places of the recorded table, which is of one sequence: how many bits have they? **Before you
# look further:** and with 16?
#
# Recorded (`course bench engine_batches`): a prompt of 64 tokens and 16 new ones, for 1, 4 and 16 equal
# sequences side by side.

# %% name="batches"
batches = records.load("bench_engine_batches")
if batches:
    print(records.provenance_line(batches))
    speed = {}
    for row in batches["results"]["rows"]:
        speed.setdefault(row["engine"], {})[row["batch"]] = row["decode (tokens/s)"]
    widest = max(max(each) for each in speed.values())
    found = measure.table({
        name: {f"batch {batch}": round(rate, 1) for batch, rate in each.items()}
        | ({f"times at {widest}": round(each[widest] / each[1], 1)} if widest in each else {})
        for name, each in sorted(speed.items(), key=lambda item: -max(item[1].values()))})
else:
    found = "No recorded run yet: `course bench engine_batches` makes one."
found

# %% name="plot-batches"
if batches:
    fig, ax = plt.subplots(figsize=(7, 4.2))
    kinds = sorted({engines.VARIANTS[name].engine for name in speed})
    colors = dict(zip(kinds, plots.PALETTE.values(), strict=False))
    dashes = {32: ":", 8: "--", 4: "-"}
    for name, each in speed.items():
        variant = engines.VARIANTS[name]
        ax.plot(list(each), list(each.values()), "o", ls=dashes[variant.bits], label=name, lw=1.4,
                color=colors[variant.engine])
    ax.set(xlabel="sequences side by side", ylabel="decoding, all sequences together (tokens/s)",
           xscale="log", yscale="log", title="Who gains from a batch?")
    ax.set_xticks(sorted({batch for each in speed.values() for batch in each}))
    ax.set_yticks([20, 50, 100, 200, 400])
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter("{x:.0f}")
    ax.minorticks_off()
    ax.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    both = [name for name in speed if {1, widest} <= set(speed[name])]
    first, last = (max(both, key=lambda name: speed[name][batch]) for batch in (1, widest))
    plots.show(fig, "Decoding speed of all sequences together against the number of sequences, both axes "
               "logarithmic. A colour for each engine; dotted is FP32, dashed INT8, solid 4 bits. "
               f"Of those that ran both, with 1 sequence {first} is highest, with {widest} {last}.")

# %% name="batch-reading"
if batches:
    gains = {name: each[widest] / each[1] for name, each in speed.items() if widest in each}
    most, least = max(gains, key=gains.get), min(gains, key=gains.get)
    print(f"Of those that ran both, {first} has the highest figure of this one run with 1 sequence, "
          f"{last} with {widest}.")
    print(f"From 1 to {widest} sequences {most} gains {gains[most]:.1f} times, "
          f"{least} {gains[least]:.1f} times.")

# %% [markdown] name="batch-meaning"
# Nobody gains 16 times, and FP32 mostly gains more than 4 bits. That fits the roofline: a step in FP32 waits
# longest for the memory, so more arithmetic fits into the wait. A step with packed weights has less to wait
# for, and it must unpack them first. (We measured the speeds, not the reason.) So with 16 the order is
# another in this one run, and a ranking made with one sequence is no ranking for a server. ExecuTorch has no
# figure beyond one sequence: the cache of our export has a fixed shape.

# %% [markdown] name="replicate"
# ## What would not replicate elsewhere, and what holds anyway
#
# - The ranking. It changes with the length of the prompt and of the answer and with the number of sequences,
#   as the tables show, and it may change with the processor's instructions, the number of cores and each
#   version of each engine.
# - What holds: nobody writes faster than the memory reads; an engine that reads fewer bytes has the higher
#   limit; a graph without a cache does quadratic work; and the figure that comes without agreement is half a
#   figure.
#
# ## Recap
#
# - Decoding: tokens a second <= batch x bandwidth / (weights + batch x cache).
# - Look at a graph's inputs and outputs before you trust it.
# - Measure agreement on the same tokens, by first place and by KL, on enough of them for an interval.
# - Compare two engines at equal bytes, in rounds. Else you compare their files.
#
# ## The claims settled here
#
# C13: {claim:C13}. C14: {claim:C14}.

# %% name="claim-c13"
if bench:
    by_speed = sorted(kept, key=lambda row: row["decode (tokens/s)"])
    slow, fast = by_speed[0], by_speed[-1]
    reader = max(kept, key=lambda row: row["prefill (tokens/s)"])
    small = min(kept, key=lambda row: row["peak (MB)"])
    print("C13: not comparable so. The three are of three kinds: a GPU vendor's compiler,")
    print("    a runtime with providers, a compiler stack.")
    print(f"    Recorded with {len(kept)} variants on one machine, 2 threads: decoding from "
          f"{slow['decode (tokens/s)']:.0f} ({slow['engine']}) to {fast['decode (tokens/s)']:.0f} tokens/s "
          f"({fast['engine']}), {fast['decode (tokens/s)'] / slow['decode (tokens/s)']:.0f} times.")
    print(f"    Most prompt tokens a second in this run: {reader['engine']}, "
          f"{reader['prefill (tokens/s)']:,.0f}. Least memory: {small['engine']}, "
          f"{small['peak (MB)']:,.0f} MB.")
    if with_bytes:
        shares, read = ([row[column] for row in kept] for column in ("share of the limit", "read (MB)"))
        print(f"    They read {min(read):.0f} to {max(read):.0f} MB a token and reach {min(shares):.2f} to "
              f"{max(shares):.2f} of what their own bytes allow.")
    print("    A table of engines without hardware, bits, bytes and agreement says nothing.")
else:
    print("C13: not settled here. There is no recorded run to judge by.")

# %% name="claim-c14"
if exported:
    one_line, without_cache, ours = exported["results"]["rows"]
    lacking = graph.missing_parts(without_cache["inputs"], without_cache["outputs"])
    print(f"C14: {'false as printed' if one_line['failure'] or lacking else 'right'}. "
          f"The line {'fails' if one_line['failure'] else 'runs'} today. Without the cache it runs, "
          f"and the graph lacks: {', '.join(sorted(lacking))}.")
    prompt, new = 64, 64
    without, with_cache = sum(range(prompt, prompt + new)), prompt + new - 1
    print(f"    {new} tokens after a prompt of {prompt} would read {without:,} tokens, not {with_cache}: "
          f"{without / with_cache:.0f} times as many.")
    llama_13b = LlamaConfig(hidden_size=5120, intermediate_size=13824, num_hidden_layers=40,
                            num_attention_heads=40)
    nbytes = costs.bytes_at_bits(costs.parameter_count(llama_13b), 32)
    print(f"    The weights of LLaMA-13B in FP32 take {nbytes / 2**30:.0f} GiB; one protobuf file holds 2.")
else:
    print("C14: not settled here. There is no recorded run to judge by.")
