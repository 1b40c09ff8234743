# %% [markdown] name="title" goal="Build KV caches that grow, forget, round and are reused; count bytes"
# # The KV cache
#
# A language model writes one token at a time. For each token the attention looks at the keys and values of
# all tokens before it. They do not change once they are computed. Do we compute them again for each new
# token, or do we keep them? And if we keep them, for how long, and in how many bits?
#
# You will measure what decoding costs without a cache, then build caches that plug into the real model: one
# that grows, one that is preallocated, one that forgets, one that rounds, one that is reused by the next
# request. Many requests in one memory are the subject of {lesson:serving}.
#
# You need {lesson:one_token} (bytes and operations of a token). The part on rounding stands on {lesson:ptq}.

# %% name="imports"
from collections.abc import Sequence  # noqa: F401 - an exercise uses it

import matplotlib.pyplot as plt
import torch
from transformers import DynamicCache, LlamaConfig, StaticCache

from course_utils import costs, data, measure, models, plots, records, shapes
from course_utils.costs import kv_shape  # noqa: F401 - an exercise names it
from course_utils.kvcache import decoding, layers, prefix, quantized, sizes
from course_utils.kvcache.layers import (
    DynamicLayer,
    SlidingWindowLayer,
    StaticLayer,
    check_window,  # noqa: F401 - an exercise uses it
    make_cache,
)
from course_utils.kvcache.quantized import QuantizedLayer

plots.style()

# %% name="model"
model, tokenizer = models.load_lm(LM, device=DEVICE)
shapes.require(model, "kv_cache")
config = model.config
heldout = data.wikipedia_tokens(tokenizer, "heldout", 1536).to(DEVICE)
print(f"{config.num_hidden_layers} layers, {config.num_attention_heads} query heads, "
      f"{config.num_key_value_heads} key-value heads of {config.head_dim} numbers")

# %% [markdown] name="quadratic-text"
# ## What decoding without a cache costs
#
# To write token 101, the model needs the keys and values of tokens 1 to 100. Without a cache it reads all of
# them again, and for token 102 once more. Each new token costs as much as the whole text so far.
#
# How does that grow with the number *n* of tokens? Two kinds of work have to be told apart. The matrices of
# the layers do the same for every token that is read: without a cache 1 + 2 + ... + *n* of them, which grows
# as *n* squared, with a cache *n*. Attention looks from every token that is read at every one before it. With
# a cache that is 1 + 2 + ... + *n* looks in all, so it stays quadratic; without one it is the sum of squares,
# which grows as *n* cubed. "A cache turns quadratic into linear" is right for one step, and for the matrices.
#
# First the operations, counted from the config with the functions of {lesson:one_token}.

# %% name="quadratic-operations" tolerance=0.001
lengths = [64, 128, 256, 512, 1024]
for n in lengths:
    without = sum(costs.forward_flops(config, k) for k in range(1, n + 1))
    with_cache = sum(costs.forward_flops(config, 1, cached=k) for k in range(n))
    print(f"{n:5} tokens: without a cache {without / 1e12:8.2f} TFLOP, with one {with_cache / 1e12:5.3f}, "
          f"{without / with_cache:5.0f} times as many")

# %% [markdown] name="quadratic-time-text"
# Now on the clock: how long does *one more token* take, after a text of *n* tokens?

# %% name="quadratic-time" timing=true
seconds = {"no cache": [], "cache": []}
for n in lengths[:4]:
    ids = heldout[None, :n]
    cache = make_cache(config, DynamicLayer)
    decoding.read(model, ids[:, :-1], cache, n)
    token = ids[:, -1:]

    def with_cache(cache=cache, token=token):
        model(input_ids=token, past_key_values=cache)
        cache.crop(-1)  # take the token back, so that each repeat does the same

    def without(ids=ids):
        model(input_ids=ids, use_cache=False, logits_to_keep=1)

    with torch.no_grad():
        seconds["no cache"].append(measure.latency(without, warmup=2, repeats=5).median)
        seconds["cache"].append(measure.latency(with_cache, warmup=2, repeats=5).median)
    slow, fast = seconds["no cache"][-1], seconds["cache"][-1]
    print(f"after {n:4} tokens: no cache {1000 * slow:7.0f} ms, cache {1000 * fast:5.0f} ms, "
          f"{slow / fast:.0f} times")

# %% name="plot-quadratic" timing=true
fig, ax = plt.subplots()
for label, color in (("no cache", "vermilion"), ("cache", "blue")):
    ax.plot(lengths[:4], [1000 * s for s in seconds[label]], "o-", color=plots.PALETTE[color], label=label)
ax.set(xlabel="tokens before", ylabel="ms for the next token", title="One more token",
       xscale="log", yscale="log")
ax.set_xticks(lengths[:4], [str(n) for n in lengths[:4]])
ax.minorticks_off()
ax.legend()
plots.show(
    fig,
    "Milliseconds for one more token against the number of tokens before it, both axes logarithmic. Without "
    "a cache the time grows with the length of the text. With a cache it is nearly flat.",
)

# %% [markdown] name="bytes-text"
# ## What a token leaves behind
#
# The price is memory. Each layer keeps one key and one value for each **key-value head**. This model has 9
# query heads but 3 key-value heads: three query heads look at the same keys. That is *grouped-query
# attention* (GQA), and its purpose is this memory.
#
# **Predict.** 30 layers, 3 key-value heads of 64 numbers, BF16. How many megabytes (10^6 bytes) take the keys
# and values of 8,192 tokens?

# %% name="predict-context-megabytes" predict="kv_cache.predict_context_megabytes" points=1
### BEGIN SOLUTION
prediction = 8192 * 2 * 30 * 3 * 64 * 2 / 1e6  # MB
### END SOLUTION

# %% [markdown] name="bytes-exercise-text"
# **Your turn.** The same as a function, for any config.

# %% name="ex-kv-bytes" exercise="course_utils.costs:kv_bytes_per_token" points=2

# %% [markdown] name="bytes-measured-text"
# A formula is a claim. Let the model read 256 tokens with transformers' own cache and weigh the tensors. For
# *multi-head attention* (MHA, a key-value head for each query head) we make a small random model that has
# this model's heads but one layer, with 9 key-value heads and with 3.

# %% name="bytes-measured" tolerance=0.001
cache = DynamicCache(config=config)
decoding.read(model, heldout[None, :256], cache, 256)
measured = sizes.stored_bytes(cache) / 256
print(f"measured in {model.dtype}: {measured:,.0f} bytes a token; formula "
      f"{costs.kv_bytes_per_token(config, 8 * model.dtype.itemsize):,}")
measured_bf16 = measured * torch.bfloat16.itemsize / model.dtype.itemsize
print(f"in BF16, half as much: {measured_bf16:,.0f} bytes a token")


def one_layer(kv_heads):
    """Bytes a token of a random one-layer model with so many key-value heads, weighed."""
    changes = {"num_hidden_layers": 1, "num_key_value_heads": kv_heads, "vocab_size": 64,
               "pad_token_id": None}
    if getattr(config, "layer_types", None):
        changes["layer_types"] = config.layer_types[:1]
    small = type(model)(type(config)(**(config.to_dict() | changes))).to(torch.bfloat16)
    cache = make_cache(small.config, DynamicLayer)
    decoding.read(small, torch.arange(32)[None], cache, 32)
    return sizes.stored_bytes(cache) / 32


grouped, multi_head = (config.num_hidden_layers * one_layer(kv_heads)
                       for kv_heads in (config.num_key_value_heads, config.num_attention_heads))
print(f"weighed in BF16, {config.num_hidden_layers} layers: GQA {grouped:,.0f} bytes a token, "
      f"MHA {multi_head:,.0f}")
del cache

# %% name="bytes-models"
known = {"LLaMA-13B": (40, 40, 40, 128), "Llama-3-8B": (32, 32, 8, 128), "Llama-3-70B": (80, 64, 8, 128)}
others, rows = {}, {}
for name, (n_layers, heads, kv_heads, head_dim) in known.items():
    others[name] = LlamaConfig(num_hidden_layers=n_layers, num_attention_heads=heads,
                                num_key_value_heads=kv_heads, head_dim=head_dim, hidden_size=heads * head_dim)
    each = costs.kv_bytes_per_token(others[name])
    rows[name] = {"query heads": heads, "key-value heads": kv_heads, "KiB a token": each / 1024,
                  "GB at 8,192 tokens": round(8192 * each / 1e9, 2)}
measure.table(rows)

# %% [markdown] name="bytes-reading"
# LLaMA-13B takes 0.8 MB for each token. (It was made for 2,048 positions; the last column shows what its
# shape would take at 8,192.) Eight conversations of 2,048 tokens fill 13 GB, half of the FP16 weights.
# Later models share keys between heads.
#
# ## A cache that plugs in
#
# transformers hands every layer's new keys and values to a cache object: `update(keys, values)` stores them
# and returns all that the queries may look at. Before the pass it asks how long the past is, for the
# positions and the mask. That is the whole interface. `course_utils.kvcache.layers` fills it three times, in
# a few lines each:
#
# - **dynamic**: append by concatenation. Exactly as large as needed; each step copies the past.
# - **static**: room for the longest text is taken at once, new tokens are written in place.
# - **sliding window**: only the newest tokens are kept.
#
# First equality, then speed. A cache that is fast and wrong is worth nothing. We compare the logits of 60
# tokens, read 7 at a time, with those of one pass without a cache, and the text that is written.

# %% name="exact" tolerance=0.5
ids = heldout[None, :60]
with torch.no_grad():
    uncached = model(input_ids=ids, use_cache=False).logits
kinds = {
    "transformers dynamic": lambda: DynamicCache(config=config),
    "transformers static": lambda: StaticCache(config=config, max_cache_len=160),
    "our dynamic": lambda: make_cache(config, DynamicLayer),
    "our static": lambda: make_cache(config, StaticLayer, max_tokens=160),
    "our sliding, window 160": lambda: make_cache(config, SlidingWindowLayer, window=160),
}
largest = uncached.abs().max()
equal = {}
for name, make in kinds.items():
    logits = decoding.read(model, ids, make(), chunk=7)
    equal[name] = bool((logits - uncached).abs().max() < 1e-4 * largest)
    print(f"{name:24} logits equal to 4 digits: {equal[name]}")

# %% name="exact-text"
prompt = tokenizer("The history of the city begins", return_tensors="pt").input_ids.to(DEVICE)
expected = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=14,
                          min_new_tokens=14, do_sample=False, pad_token_id=0)
print(tokenizer.decode(expected[0]))
for name, make in {"no cache": lambda: None, **kinds}.items():
    same = torch.equal(decoding.greedy(model, prompt, 14, make()), expected)
    print(f"{name:24} the same text as generate(): {same}")

# %% name="kinds-speed" timing=true
rows = {}
for name, make in {"no cache": lambda: None, **kinds}.items():
    made = []

    def write(make=make, made=made):
        made.append(make())
        decoding.greedy(model, heldout[None, :100], 12, made[-1])

    speed = measure.latency(write, warmup=1, repeats=2)
    cache = made[-1]
    rows[name] = {"s for 100 + 12 tokens": round(speed.median, 2),
                  "MB held": round(sizes.stored_bytes(cache) / 1e6, 2) if cache else 0.0}
measure.table(rows)

# %% [markdown] name="window-text"
# ## A window that slides
#
# Keep the last 63 tokens and the memory stops growing. Does the model still work? It was never trained that
# way. Predict before you run the next cell: by how much does the perplexity rise? And what changes if the
# very first four tokens are kept besides?
#
# A mask gives the same visibility in one pass without a cache, which is much faster for measuring. (The tests
# show that the sliding cache and this mask give equal logits.)
#
# **Your turn.** Which key may which query see?

# %% name="ex-window-mask" exercise="course_utils.kvcache.layers:window_mask" points=2

# %% [markdown] name="window-measured-text"
# Now the perplexity with three windows, and what a record of a longer text shows.

# %% name="window" tolerance=0.03
def windowed_perplexity(window, sinks):
    """Perplexity on the held-out text, 384 tokens at a time, when a token sees a window and the sinks."""
    mask = layers.window_mask(384, window, sinks, model.dtype).to(DEVICE)
    sums = []
    for row in data.windows(heldout, 384):
        with torch.no_grad():
            logits = model(input_ids=row[None], attention_mask=mask, use_cache=False).logits[0, :-1]
        sums.append(torch.nn.functional.cross_entropy(logits.float(), row[1:], reduction="sum").item())
    return measure.perplexity_of_windows(sums, [383] * len(sums), heldout, 384, 384, DEVICE)


full = measure.perplexity(model, heldout, window=384)
print(f"all tokens kept: perplexity {full.value:.2f}")
for window, sinks in ((64, 0), (60, 4), (192, 0)):
    forgetful = windowed_perplexity(window, sinks)
    megabytes = (window + sinks - 1) * costs.kv_bytes_per_token(config) / 1e6
    print(f"window {window:3} and {sinks} first tokens: perplexity {forgetful.value:.2f}, "
          f"{megabytes:.1f} MB in BF16, however long the text")

# %% name="window-record"
record = records.load("bench_kv_cache_ranking")
ranked = {}
if record is None:
    print("no recorded run yet: course bench kv_cache_ranking makes one")
else:
    print(records.provenance_line(record))
    ranked = {row["cache"]: measure.Perplexity(**row["result"]) for row in record["results"]["rows"]}
    for name, other in (("window 64", "exact"), ("window 60 and 4 first tokens", "window 64"),
                        ("window 60 and 4 first tokens", "window 192")):  # fmt: skip
        print(measure.compare(ranked[name], ranked[other]).sentence(name, other))

# %% [markdown] name="window-reading"
# The attention of a token must go somewhere: the weights of a softmax add up to 1. Models learn to leave
# what they do not need on the first tokens, which every token can see. Take these *attention sinks* away
# and the rest is out of balance (Xiao et al., 2023, arXiv 2309.17453). Not all models have them: those with
# a gate behind their attention hardly do (Qiu et al., "Gated Attention for Large Language Models", arXiv
# 2505.06708).
#
# Does such a cache go on for ever? Not this one. Our layers keep keys after they were rotated to their
# position in the text, so a text ends where the model's positions end, here at 8,192. StreamingLLM keeps keys
# before the rotation and rotates them to their place *in the cache*, which never grows.
#
# ## Fewer bits
#
# Weights of {lesson:ptq} were rounded once, offline. A cache is rounded while it is written. Which numbers
# should share a scale? In the keys of most models a few channels are large in every token. So for keys each
# **channel** gets a scale of its own, shared by 32 tokens. The values have no such channels; there each
# **token** gets one. The newest tokens stay in full precision: they are not yet 32, and they are looked at
# most. This is KIVI (Liu et al., 2024, arXiv 2402.02750).
#
# **Predict.** 4 bits. Keys: 32 tokens of a channel share a 16-bit scale and a 16-bit minimum. Values: the 64
# channels of a token share as much. How many bits does a stored number take, averaged over keys and values?

# %% name="predict-bits" predict="kv_cache.predict_bits" points=1
### BEGIN SOLUTION
prediction = 4 + (2 * 16 / 32 + 2 * 16 / 64) / 2  # bits
### END SOLUTION

# %% [markdown] name="channels-text"
# Look at the keys first. Is it true for this model?

# %% name="channels" tolerance=0.05
cache = DynamicCache(config=config)
decoding.read(model, heldout[None, :256], cache, 256)
spread = []
for layer in cache.layers:
    sizes_of = [states[0].abs().mean(dim=1).flatten() for states in (layer.keys, layer.values)]
    spread.append([(size.max() / size.median()).item() for size in sizes_of])
keys_spread, values_spread = torch.tensor(spread).median(dim=0).values.tolist()
print(f"largest channel over the median channel (median of the layers): keys {keys_spread:.1f}, "
      f"values {values_spread:.1f}")

# %% name="plot-channels"
middle = config.num_hidden_layers // 2
fig, axes = plt.subplots(1, 2, figsize=(7.5, 3.2))
shown = {"keys": cache.layers[middle].keys, "values": cache.layers[middle].values}
for ax, (title, states) in zip(axes, shown.items(), strict=True):
    picture = ax.imshow(states[0, 0, 1:129].abs().float().cpu(), aspect="auto", cmap="viridis")
    ax.set(title=f"|{title}|, layer {middle}", xlabel="channel", ylabel="token")
    ax.grid(False)
    fig.colorbar(picture, ax=ax)
plots.show(
    fig,
    "Two heat maps of one head, tokens downwards, channels across. Left, keys: a few vertical stripes, "
    "channels that are large for all tokens. Right, values: no such stripes.",
)
del cache, shown, states

# %% [markdown] name="quantized-text"
# Now the perplexity of a text that is read *through* the cache, 48 tokens a pass: everything older than the
# recent window, the newest 32 to 63 tokens, comes back rounded. Of windows of 384 tokens that is most, not
# all. In the last two rows the keys share their scales the other way, by token.

# %% name="quantized" tolerance=0.03
some = heldout[:768]
exact = decoding.cached_perplexity(model, some, lambda: make_cache(config, DynamicLayer), 384, chunk=48)
print(f"exact cache: perplexity {exact.value:.2f} on {exact.tokens} tokens, windows of 384")
quantized_rows = {}
for bits, keys_by in ((8, "channel"), (4, "channel"), (2, "channel"), (4, "token"), (2, "token")):
    made = []

    def make(bits=bits, keys_by=keys_by, made=made):
        made.append(make_cache(config, QuantizedLayer, bits=bits, group=32, recent=32, keys_by=keys_by))
        return made[-1]

    result = decoding.cached_perplexity(model, some, make, 384, chunk=48)
    size = quantized.bits_per_number(bits, 32 if keys_by == "channel" else config.head_dim, config.head_dim)
    quantized_rows[f"{bits} bit, keys by {keys_by}"] = {
        "bits a number": size, "perplexity": round(result.value, 2),
        "bytes a token, recent ones too": round(sizes.stored_bytes(made[-1]) / 384)}
measure.table(quantized_rows)

# %% name="plot-quantized"
fig, ax = plt.subplots()
for keys_by, color, mark in (("channel", "blue", "o"), ("token", "vermilion", "s")):
    points = [(row["bits a number"], row["perplexity"]) for name, row in quantized_rows.items()
              if name.endswith(keys_by)]
    ax.plot(*zip(*sorted(points), strict=True), mark + "-", color=plots.PALETTE[color],
            label=f"keys by {keys_by}")
ax.axhline(exact.value, color="#999999", linewidth=1, linestyle=":")
ax.text(ax.get_xlim()[1], exact.value, "exact", ha="right", va="bottom", color="#555555")
ax.set(xlabel="bits a number, scales counted", ylabel="perplexity", yscale="log", title="A rounded KV cache")
ax.yaxis.set_major_formatter("{x:.0f}")
ax.yaxis.set_minor_formatter("{x:.0f}")
ax.legend()
plots.show(
    fig,
    "Perplexity against stored bits a number. With keys rounded by channel, 8 and 4 bits lie close to the "
    "dotted line of the exact cache, 2 bits a little above it. With keys rounded by token, 4 bits lie close "
    "to it too, and 2 bits far above.",
)

# %% [markdown] name="quantized-record-text"
# Two windows do not tell small losses from none. The record has 32 windows of 512 tokens.

# %% name="quantized-reading"
if ranked:
    for bits, by in ((8, "channel"), (4, "channel"), (2, "channel"), (2, "token")):
        name = f"{bits} bit, keys by {by}"
        print(measure.compare(ranked[name], ranked["exact"]).sentence(name, "exact"))
    by_channel, by_token = (ranked[f"2 bit, keys by {by}"] for by in ("channel", "token"))
    print(measure.compare(by_channel, by_token).sentence("2 bit, keys by channel", "by token"))

# %% [markdown] name="quantized-greedy-text"
# Perplexity is one question. Does the model also *write* the same? Two prompts of 96 tokens, 24 new tokens
# each, always the likeliest.

# %% name="quantized-greedy" timing=true
prompts_of_96 = data.windows(heldout, 512)[:2, None, :96]
texts = [decoding.greedy(model, prompt, 24, make_cache(config, DynamicLayer)) for prompt in prompts_of_96]
for bits in (8, 4, 2):
    counts = []
    for prompt, exact_text in zip(prompts_of_96, texts, strict=True):
        rounding = make_cache(config, QuantizedLayer, bits=bits, group=32, recent=32, keys_by="channel")
        same = decoding.greedy(model, prompt, 24, rounding)[0, 96:] == exact_text[0, 96:]
        counts.append(int(same.int().cumprod(dim=0).sum()))
    print(f"{bits} bits: the first {', '.join(map(str, counts))} of 24 tokens are those of the exact cache")

# %% [markdown] name="quantized-meaning"
# How many levels a number has, and who shares the scale, both count. At 2 bits there are four levels between
# the smallest and the largest channel of a token: that leaves nothing for the channels in between.
# transformers has a
# quantized cache too (`cache_implementation="quantized"`). It needs another package for the rounding, and it
# rounds the old tokens again each time it puts new ones beside them; ours rounds a token once.

# %% [markdown] name="prefix-text"
# ## The next request begins the same
#
# A chat server puts the same instructions before every question. The keys and values of a token depend on
# the tokens before it and on nothing else. So what is cached for one request holds for every other one that
# begins alike, exactly.
#
# **Your turn.** How much of a kept prompt is of use for a new one?

# %% name="ex-reusable" exercise="course_utils.kvcache.prefix:reusable" points=1

# %% [markdown] name="prefix-measured-text"
# `prefix.PrefixStore` keeps caches of past prompts and looks for the longest beginning by this function.

# %% name="prefix"
instructions = tokenizer(
    "You are a patient guide in a museum of natural history. Answer visitors in one short sentence. Use "
    "plain words, give a number where one is known, and say so when you do not know. "
).input_ids
questions = [tokenizer(text).input_ids for text in ("Question: How old is the Earth? Answer:",
                                                    "Question: How large was the largest dinosaur? Answer:")]
store = prefix.PrefixStore(config)
reused = []
for question in questions:
    ids = torch.tensor([instructions + question], device=DEVICE)
    cache, n = store.start(ids[0])
    answer = decoding.greedy(model, ids, 12, cache)
    store.save(ids[0], cache)
    reused.append(n)
    same = torch.equal(answer, decoding.greedy(model, ids, 12))
    print(f"{n} of {ids.shape[1]} tokens were there already; the same text as without a cache: {same}")

# %% name="prefix-speed" timing=true
ids = torch.tensor([instructions + questions[0][:-1]], device=DEVICE)
cold, warm = (
    measure.latency(lambda start=start: decoding.greedy(model, ids, 1, start()), warmup=1, repeats=3).median
    for start in (lambda: make_cache(config, DynamicLayer), lambda: store.start(ids[0])[0])
)
print(f"time to the first token: {1000 * cold:.0f} ms from nothing, {1000 * warm:.0f} ms with the prefix")

# %% [markdown] name="record-gpu-text"
# And our caches on a GPU, beside those of transformers? `course gpu-run` decodes with each of them, 1, 16 and
# 64 sequences at a time.

# %% name="record-gpu"
records.gpu_table("gpu_kv_cache", [
    "model", "cache", "batch", "decode step (ms)", "decode (tokens/s)", "KV memory (GB)",
    "peak GPU memory (GB)"])

# %% name="record-gpu-reading"
recorded = records.load("gpu_kv_cache")
if recorded:
    steps = {}
    for row in recorded["results"]["rows"]:
        if row["model"] == "SmolLM2-135M" and "decode step (ms)" in row:
            steps.setdefault(row["cache"], {})[row["batch"]] = row["decode step (ms)"]
    for cache, by_batch in steps.items():
        print(f"{cache:21} a step of 64 sequences takes {by_batch[64] / by_batch[1]:.1f} times a step of one")
    times = [by_batch[1] for by_batch in steps.values()]
    print(f"one sequence: {min(times):.0f} to {max(times):.0f} ms a step, by cache")

# %% [markdown] name="record-gpu-verdict"
# A step of 64 sequences takes about as long as a step of one, with every cache: batching takes hardly any
# more time here. Which cache is faster, the record does not show. The steps were called one by one from
# Python, and in the same run the CPU's part of equal work varied more than twofold ({lesson:one_token} has
# the figures). Memory does not depend on that: blocks of 16 take a few per cent more than what the tokens
# need.

# %% [markdown] name="replicate"
# ## What would not replicate elsewhere, and what holds anyway
#
# - The speeds. On this processor a decoding step is bound by reading the weights; on a GPU with long texts
#   and large batches it is bound by reading the cache.
# - The loss at 2 bits, and what a window without sinks costs. Both depend on the model.
# - What holds: the bytes a token; that exact caches are exact; that with a cache one more token costs one
#   pass over one token.
#
# ## Recap
#
# - Keys and values never change, so keep them: 2 x layers x key-value heads x head_dim x bytes a token.
# - Grouped-query attention, a window, fewer bits: three ways to a smaller cache. Measure what each costs.
# - Keys are rounded by channel, values by token.
# - What is kept for one prompt holds for the next one, as far as both begin alike.
#
# ## The claim settled here
#
# C22: {claim:C22}.

# %% name="claim-c22" tolerance=0.01
longest = config.max_position_embeddings
share = longest * measured_bf16 / costs.bytes_at_bits(costs.parameter_count(config), 16)
llama = costs.kv_bytes_per_token(others["LLaMA-13B"])
print(f"C22: {'right for long texts' if share > 0.5 else 'not for this model'}. This model leaves "
      f"{measured_bf16:,.0f} bytes a token in BF16;")
print(f"    the {longest:,} tokens that it was made for take {share:.0%} of what its weights take.")
print(f"    Without grouped-query attention a token would leave {multi_head:,.0f} bytes, "
      f"{multi_head / grouped:.0f} times as much.")
print(f"    LLaMA-13B leaves {llama / 1e6:.2f} MB a token: 2,048 tokens take {2048 * llama / 1e9:.1f} GB.")
