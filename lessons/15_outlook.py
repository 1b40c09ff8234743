# %% [markdown] name="title" goal="Draft and check, search for a smaller model, let the input choose the bits"
# # Outlook
#
# What comes after quantizing, pruning and distilling? This lesson tries four ideas on the real model, each in
# a few lines, and measures what is in them:
#
# - **Speculative decoding**: a cheap draft guesses the next tokens, the model checks them all in one pass. Is
#   the text still the model's own? Is it faster?
# - **Search**: at one size, can a program find a better model than the one cut by hand?
# - **Other hardware**: what changes on a GPU, on a phone's processor, on a TPU?
# - **Input-adaptive precision**: many bits for hard inputs, few for easy ones?
#
# You need {lesson:one_token} (a decoding step is bound by bytes), {lesson:structured} (blocks and neurons)
# and {lesson:kv_cache} (reading through a cache).

# %% name="imports"
import tempfile

import matplotlib.pyplot as plt
import torch
import transformers
from safetensors.torch import load_file, save_file
from scipy import stats
from torch import Tensor  # noqa: F401 - in the signatures of the exercises
from transformers import DynamicCache

from course_utils import data, distill, engines, measure, models, plots, records, shapes, speculative
from course_utils.prune import depth, search, structured
from course_utils.prune.search import Plan  # noqa: F401 - in the signatures of the exercises
from course_utils.quantize import layerwise
from course_utils.speculative import ModelDraft, PromptLookup, draw, probabilities, residual  # noqa: F401

plots.style()

# %% name="model"
model, tokenizer = models.load_lm(LM, device=DEVICE)
shapes.require(model, "outlook")
n_blocks = len(shapes.block_list(model))
vocabulary = model.config.get_text_config().vocab_size
heldout = data.wikipedia_tokens(tokenizer, "heldout", 4096).to(DEVICE)
calibration = data.windows(data.wikipedia_tokens(tokenizer, "calibration", 8 * 1024), 1024).to(DEVICE)
print(f"{n_blocks} blocks, {model.num_parameters():,} parameters, {vocabulary:,} tokens in the vocabulary")

# %% [markdown] name="pass-text"
# ## One pass, several tokens
#
# A decoding step reads all weights and computes with each of them once ({lesson:one_token}). It waits for the
# memory. Suppose you already knew the next four tokens: the model could read all four in *one* pass and say
# of each what it would have written there. How much longer does such a pass take? Measure it: passes with 1
# to 9 tokens, behind a text of 128.

# %% name="pass-cost" timing=true
COUNTS = (1, 2, 3, 5, 9)  # tokens in a pass


def pass_seconds(models_and_counts, context=128, repeats=5):
    """Fastest seconds of a pass behind `context` tokens, for pairs (model, tokens), measured in turns."""
    best = [float("inf")] * len(models_and_counts)
    with torch.no_grad():
        prepared = []
        for lm, count in models_and_counts:
            cache = DynamicCache(config=lm.config)
            lm(input_ids=heldout[None, :context], past_key_values=cache, logits_to_keep=1)
            prepared.append((lm, heldout[None, context : context + count], cache))
        for _ in range(repeats):
            for i, (lm, ids, cache) in enumerate(prepared):
                def one_pass(lm=lm, ids=ids, cache=cache):
                    lm(input_ids=ids, past_key_values=cache)
                    cache.crop(-ids.shape[1])  # take the tokens back: each repeat does the same

                best[i] = min(best[i], measure.latency(one_pass, warmup=0, repeats=1).fastest)
    return best


seconds = pass_seconds([(model, count) for count in COUNTS])
check_cost = {count: time / seconds[0] for count, time in zip(COUNTS, seconds, strict=True)}
for count, cost in check_cost.items():
    print(f"a pass with {count} token{'s' * (count > 1)}: {cost:.2f} times a pass with one")
print(measure.machine_card())

# %% [markdown] name="pass-gpu-text"
# And on a GPU, where arithmetic is plentiful? The recorded run of a model with LLaMA-13B's shape has steps
# with 1 sequence and with 16: 16 tokens a pass, though each with a cache of its own.

# %% name="pass-gpu"
gpu = records.load("gpu_13b")
if gpu is None:
    print("no recorded run on a GPU yet: course gpu-run --record makes one")
else:
    print(records.provenance_line(gpu))
    graph = "decode step as a CUDA graph (ms)"
    steps = {(row["format"], row["batch"]): row[graph] for row in gpu["results"]["rows"] if graph in row}
    for name in dict.fromkeys(name for name, _ in steps):
        print(f"{name}: a step of 16 sequences takes {steps[name, 16] / steps[name, 1]:.2f} times one of 1")

# %% [markdown] name="pass-reading"
# On a processor with two cores a longer pass is not free, and the numbers above will matter.
#
# So: a cheap **draft** guesses a few tokens. The model checks them in one pass. Those it agrees with stay,
# and one token comes on top, because the pass has computed what the model itself would write next. How many
# tokens does a pass give?
#
# **Predict.** The draft guesses 4 tokens. Each stays with a probability of 0.8, if all before it stayed. How
# many tokens does one pass of the model give on average?

# %% name="predict-tokens" predict="outlook.predict_tokens" points=1
### BEGIN SOLUTION
prediction = 1 + 0.8 + 0.8**2 + 0.8**3 + 0.8**4
### END SOLUTION

# %% [markdown] name="expected-text"
# **Your turn.** The same for any probability and any number of drafted tokens.

# %% name="ex-expected" exercise="course_utils.speculative.rule:expected_tokens" points=2

# %% [markdown] name="speedup-text"
# Time is what counts. Let a drafted token take $c$ times the time of a decoding step, and the pass that
# checks $n$ of them $v$ times. Then a round takes $n c + v$ steps' time and gives the tokens of your
# function:
#
# $$\text{speed-up} = \frac{1 + a + a^2 + \dots + a^n}{n\,c + v}$$
#
# (Y. Leviathan, M. Kalman, Y. Matias, arXiv 2211.17192; there $v = 1$.) When does a draft pay at all? Take
# one drafted token, $n = 1$: the round gives $1 + a$ and takes $c + v$. With $v = 1$ the draft must be
# **more often right than it is expensive**: $a > c$.
#
# ## Which tokens may stay?
#
# Greedy decoding makes it simple: a drafted token stays if it is the one the model finds most likely. But if
# the model *draws* its tokens from a distribution $p$, and the draft draws from another one, $q$? The text
# must come out distributed as $p$ says, as if there were no draft. Here is the rule, for a drafted token $x$:
#
# - it stays with the probability $\min(1, p(x) / q(x))$;
# - if it is refused, draw from what is missing: $\max(p - q, 0)$, divided by its sum. Call it the
#   **residual**.
#
# Why is that right? The token $x$ comes out in two ways. By the draft, with $q(x) \cdot \min(1, p(x)/q(x)) =
# \min(p(x), q(x))$. Or after a refusal. Something is refused with the probability $1 - \sum_y \min(p(y),
# q(y))$, which is just the sum of $\max(p - q, 0)$: what $p$ has above the overlap. So the second way gives
# $\max(p(x) - q(x), 0)$. Together: $\min(p, q) + \max(p - q, 0) = p$. Nothing was assumed about $q$. A bad
# draft costs time and changes nothing.
#
# **Your turn.**

# %% name="ex-residual" exercise="course_utils.speculative.rule:residual" points=2

# %% [markdown] name="verify-text"
# **Your turn.** Now the whole rule, for several drafted tokens. Chances come from outside, so that you can
# check it by hand. `draw(distribution, chance)` draws one token.

# %% name="ex-verify" exercise="course_utils.speculative.rule:verify" points=4

# %% [markdown] name="lossless-text"
# ## Lossless? A test that can fail
#
# An argument on paper is one thing, code another. So take a real place in a text, $p$ from the model, $q$
# from the model without a tenth of its blocks, draft a token 4,000 times and count what comes out. Are the
# counts those of $p$? A **chi-square test** compares counts with what is expected. Its p-value is the
# probability of a deviation at least as large if the counts really came from $p$. As a control, the same
# with one plausible mistake: the draft draws at temperature 1, and the rule is told the probabilities of
# temperature 0.5.

# %% name="shorter-draft"
order = depth.influences(model, calibration[:2, :128]).argsort(stable=True).tolist()
FEW = max(1, n_blocks // 10)


def draft_model(removed):
    """The model without its `removed` least influential blocks; it shares the weights of the rest."""
    return speculative.shorter(model, order[:removed])


short = draft_model(FEW)
known = {id(parameter) for parameter in model.parameters()}
own = sum(parameter.numel() for parameter in short.parameters() if id(parameter) not in known)
print(f"the draft: without {FEW} of {n_blocks} blocks, {short.num_parameters():,} parameters, "
      f"{own} of them its own")

# %% name="lossless"
DRAWS = 4000
place = heldout[None, :200]
with torch.no_grad():
    p, q = (probabilities(lm(input_ids=place, logits_to_keep=1).logits[0, -1].cpu(), 1.0)
            for lm in (model, short))  # fmt: skip
twice_p = torch.stack([p, p])


def counts_of(believed, cells):
    """How often a token of each cell comes out, in DRAWS tries; `believed`: what the rule takes for q."""
    generator, believed = torch.Generator().manual_seed(0), believed[None]
    drafted = torch.multinomial(q, DRAWS, replacement=True, generator=generator).tolist()
    chances = torch.rand(DRAWS, 2, generator=generator, dtype=torch.float64).tolist()
    first = [speculative.verify(twice_p, believed, [token], chance)[0]
             for token, chance in zip(drafted, chances, strict=True)]  # fmt: skip
    return torch.bincount(cells[torch.tensor(first)], minlength=int(cells.max()) + 1)


# Cells: the tokens most likely by p or by q, each by itself; all others together in the last.
frequent = torch.cat([p.topk(8).indices, q.topk(8).indices]).unique()
cells = torch.full((vocabulary,), len(frequent))
cells[frequent] = torch.arange(len(frequent))
wanted = torch.zeros(len(frequent) + 1, dtype=torch.float64).index_add_(0, cells, p) * DRAWS
counted = {"the rule": counts_of(q, cells), "the rule, misinformed": counts_of(q**2 / (q**2).sum(), cells)}
agrees = {name: stats.chisquare(counts, wanted).pvalue > 0.01 for name, counts in counted.items()}
print(f"p and q have {100 * speculative.acceptance_rate(p, q):.0f} % in common here")
for name, fine in agrees.items():
    print(f"{name}: {DRAWS:,} draws, {'counts as p would give' if fine else 'NOT what p would give'}")

# %% name="plot-lossless"
fig, ax = plt.subplots(figsize=(7.5, 3.4))
names = [repr(tokenizer.decode([token]))[1:-1] for token in frequent.tolist()] + ["all others"]
ranked = wanted.argsort(descending=True).tolist()
for i, (name, color) in enumerate(zip(counted, ("blue", "vermilion"), strict=True)):
    ax.bar([x + 0.4 * i - 0.2 for x in range(len(ranked))], counted[name][ranked] / DRAWS, 0.4, label=name,
           color=plots.PALETTE[color])
ax.plot(range(len(ranked)), wanted[ranked] / DRAWS, "k_", markersize=16, label="p, the model alone")
ax.set(ylabel="share of the draws", title="What comes out with a draft")
ax.set_xticks(range(len(ranked)), [names[i] for i in ranked], rotation=60, ha="right", fontsize=8)
ax.legend()
plots.show(
    fig,
    f"Bars: how often each of {len(frequent)} frequent tokens, and all others together, came out of "
    f"{DRAWS:,} draws with a draft, by the rule as it is and misinformed of q. Black dashes: the model's own "
    "probabilities. The bars of the rule as it is end near the dashes.",
)

# %% [markdown] name="draft-text"
# ## Which draft pays?
#
# A draft must be right often ($a$) and cheap ($c$). A model with fewer blocks takes less time, and the more
# blocks go, the less often it is right. Is there a point in between where it pays? Before you look: with a
# third of the blocks gone, is the draft more often right than it is expensive?
#
# $a$ is the overlap $\sum \min(p, q)$, at temperature 1, averaged over held-out text; $c$ is measured on the
# clock; the speed-up is the formula, with the best $n$ of 1, 2, 4 and 8.

# %% name="draft-acceptance" tolerance=0.05 atol=0.02
removed = sorted({max(1, round(share * n_blocks)) for share in (0.03, 0.1, 0.2, 0.33, 0.5)})
windows = data.windows(heldout[:256], 128)


def distributions(lm, ids):
    with torch.no_grad():
        return probabilities(lm(input_ids=ids[None], use_cache=False).logits[0].cpu(), 1.0)


acceptance = dict.fromkeys(removed, 0.0)
for window in windows:
    whole = distributions(model, window)
    for count in removed:
        overlap = speculative.acceptance_rate(whole, distributions(draft_model(count), window)).mean().item()
        acceptance[count] += overlap / len(windows)
print("blocks removed   ", " ".join(f"{count:5}" for count in removed))
print("a, stays         ", " ".join(f"{acceptance[count]:5.2f}" for count in removed))

# %% name="draft-cost" timing=true
times = pass_seconds([(model, 1), *((draft_model(count), 1) for count in removed)])
cost = {count: time / times[0] for count, time in zip(removed, times[1:], strict=True)}
print("c, a drafted token", " ".join(f"{cost[count]:4.2f} " for count in removed))
predicted = {count: max(speculative.expected_speedup(acceptance[count], n, cost[count], check_cost[n + 1])
                        for n in (1, 2, 4, 8)) for count in removed}
print("speed-up, computed", " ".join(f"{predicted[count]:4.2f} " for count in removed))
pays = max(predicted.values()) > 1
print(f"A draft by leaving out blocks {'pays' if pays else 'never pays'} here, by this arithmetic.")

# %% name="plot-draft" timing=true
fig, ax = plt.subplots(figsize=(7.5, 3.4))
ax.plot(removed, [acceptance[count] for count in removed], "o-", color=plots.PALETTE["blue"],
        label="a: how often a guess stays")
ax.plot(removed, [cost[count] for count in removed], "s-", color=plots.PALETTE["vermilion"],
        label="c: what a guess costs, in steps")
ax.set(xlabel="blocks removed from the draft", ylim=(0, 1.1),
       title="A draft must be more right than expensive")
ax.legend()
plots.show(
    fig,
    "Two lines over the number of blocks removed. How often a guess stays goes from "
    f"{acceptance[removed[0]]:.2f} to {acceptance[removed[-1]]:.2f}; what a guess costs goes from "
    f"{cost[removed[0]]:.2f} to {cost[removed[-1]]:.2f} of a step.",
)

# %% [markdown] name="draft-reading"
# The drafts of that paper are another kind of model, about a hundred times smaller than the one that checks.
# They can be trained to agree with it ({lesson:distillation}). A model of 135 million parameters has no small
# sibling. But there is a draft that takes no time to speak of.
#
# ## The text as its own draft
#
# Answers often repeat their question: a corrected text, a summary with names, a program with one line
# changed. **Prompt lookup** (A. Saxena, "Prompt Lookup Decoding", 2023) takes the last tokens, looks for them
# further up, and guesses that the text goes on as it did there. **Your turn.**

# %% name="ex-lookup" exercise="course_utils.speculative.drafts:prompt_lookup" points=3

# %% [markdown] name="generate-text"
# Two prompts: one that makes the model copy (a passage, and its beginning once more), and one that does not
# (a passage alone). Each is continued by 16 tokens, greedily, by our loop: without a draft, with prompt
# lookup, and with the model that lacks a tenth of its blocks. Greedy decoding must give the same tokens each
# time.

# %% name="generate" timing=true
NEW = 16
passage = heldout[1024 : 1024 + 96]
prompts = {"a text that repeats": torch.cat([passage, passage[:24]]), "a text that does not": passage}
drafts = {"no draft": lambda: None, "prompt lookup": lambda: PromptLookup(vocabulary, device=DEVICE),
          f"without {FEW} blocks": lambda: ModelDraft(short)}
runs = {}
for prompt, ids in prompts.items():
    for name, make in drafts.items():
        runs[prompt, name] = min((speculative.generate(model, make(), ids, NEW, count=4) for _ in range(2)),
                                 key=lambda run: run.seconds)
for (prompt, name), run in runs.items():
    plain = runs[prompt, "no draft"]
    print(f"{prompt:20} {name:17} {run.passes:3} passes, {run.accepted:2} of {run.drafted:2} guesses stay, "
          f"{plain.seconds / run.seconds:.2f} times as fast as without")

# %% name="generate-same"
for prompt in prompts:
    texts = [runs[prompt, name].tokens for name in drafts]
    print(f"{prompt}: the same {NEW} tokens with every draft: {all(text == texts[0] for text in texts)}")

# %% [markdown] name="library-text"
# ## Beside the library
#
# transformers has both: `generate(..., assistant_model=...)` and `generate(...,
# prompt_lookup_num_tokens=...)`. Does it need as many passes as we do, and does it write the same?

# %% name="library" timing=true
transformers.logging.set_verbosity_error()  # it warns of its own inner calls
short.generation_config.num_assistant_tokens_schedule = "constant"
short.generation_config.num_assistant_tokens = 4
short.generation_config.assistant_confidence_threshold = 0  # else it stops early where the draft is unsure
theirs = {"no draft": {}, "prompt lookup": {"prompt_lookup_num_tokens": 4, "max_matching_ngram_size": 3},
          f"without {FEW} blocks": {"assistant_model": short}}
library, passes = {}, {}
for prompt, ids in prompts.items():
    for name, arguments in theirs.items():
        calls, texts = [], []
        hook = model.register_forward_hook(lambda *_, calls=calls: calls.append(1))

        def write(ids=ids, arguments=arguments, texts=texts):
            found = model.generate(ids[None], attention_mask=torch.ones_like(ids[None]), max_new_tokens=NEW,
                                   min_new_tokens=NEW, do_sample=False, pad_token_id=0, **arguments)
            texts.append(found[0, len(ids) :].tolist())

        took = measure.latency(write, warmup=0, repeats=2).fastest  # as ours: the faster of two
        hook.remove()
        library[prompt, name], passes[prompt, name] = texts[0], len(calls) // len(texts)
        print(f"{prompt:20} {name:17} {passes[prompt, name]:3} passes (ours {runs[prompt, name].passes}), "
              f"{took / runs[prompt, name].seconds:.2f} times our time")

# %% name="library-same"
for prompt in prompts:
    same = all(library[prompt, name] == runs[prompt, name].tokens for name in drafts)
    print(f"{prompt}: transformers writes the same tokens as our loop, with every draft: {same}")

# %% [markdown] name="programs-text"
# Two prompts are two prompts. The course keeps a longer run: eight passages, each as it is and with its
# beginning repeated, in our loop, in transformers and in llama.cpp, which reads the 4-bit file (`course bench
# speculative`). Each program is compared with itself without a draft, passage by passage.

# %% name="programs"
drafted = records.load("bench_speculative")
speedups = {}
if drafted is None:
    print("no recorded run yet: course bench speculative makes one")
else:
    print(records.provenance_line(drafted))
    table = drafted["results"]["rows"]
    for row in table:
        if row["draft"] != "no draft":
            speedups.setdefault((row["text"], row["draft"], row["program"]), []).append(row["times as fast"])
    for (text, draft, program), times in speedups.items():
        gain = measure.compare(times, [1.0] * len(times), higher_is_better=True, what="passages")
        mean = sum(times) / len(times)
        print(f"text {text}, {draft}, {program}: {mean:.2f} times as fast ± {gain.error:.2f}: {gain.verdict}")
    same = sum(row["same"] for row in table)
    print(f"the same text as without a draft: {same} of {len(table)} rows")

# %% [markdown] name="search-text"
# ## A search for a smaller model
#
# {Lesson:structured} cut by hand: the blocks with the least influence, or the least important neurons, the
# same number in each block. Mixtures are possible, too: two blocks less, and narrower MLPs in some places.
# There are more of them than anybody can try. The article that this course examines sees the future in
# *neural architecture search*: let a program try.
#
# **Predict.** One block of SmolLM2 goes: 9 query and 3 key-value heads of 64, a hidden size of 576, 1,536
# neurons, two norms. How many neurons have as many parameters as this block?

# %% name="predict-neurons" predict="outlook.predict_neurons" points=1
### BEGIN SOLUTION
attention = 2 * 576 * 576 + 2 * 576 * 192  # query and output, key and value
prediction = (attention + 3 * 576 * 1536 + 2 * 576) / (3 * 576)  # neurons of three vectors each
### END SOLUTION

# %% [markdown] name="plan-text"
# A **plan** says for each block how many neurons stay; 0 means that the whole block goes. All plans must fit
# one budget: as many parameters as the model without a tenth of its blocks.
#
# The programs need a judge that is quick, a **proxy**: here the loss on a few hundred tokens of calibration
# text. Two searches try equally many plans. One draws plans by lot. The other is **evolution**: it begins
# with some by lot, takes a good one, changes a little, and keeps what has become good. A small change that
# keeps the budget: one block gives neurons to another. **Your turn.**

# %% name="ex-exchange" exercise="course_utils.prune.search:exchange" points=2

# %% name="space" tolerance=0.02
texts = list(calibration[:4, :256].split(1))
importance = structured.neuron_importance(model, lambda: [model.base_model(text) for text in texts])
ranked = importance.argsort(dim=1, descending=True, stable=True)
width = ranked.shape[1]
with structured.putting_back(model):
    depth.remove_blocks(model, order[:FEW])
    budget = model.num_parameters()
space = search.space_of(model, budget, step=max(1, width // 24), drops=2 * FEW)
gone = space.whole - budget
each = max(1, width - -(-gone // (space.neuron * n_blocks)))  # neurons that stay, the same number everywhere
by_hand = {f"{FEW} blocks": tuple(0 if i in order[:FEW] else width for i in range(n_blocks)),
           "the same width": (each,) * n_blocks}
for name, plan in by_hand.items():
    left = search.parameters_left(plan, space.whole, space.block, space.neuron, width)
    with structured.putting_back(model):
        search.cut(model, plan, ranked)
        print(f"by hand, {name}: {left:,} parameters left (counted: {model.num_parameters():,}), "
              f"budget {budget:,}")

# %% [markdown] name="search-live-text"
# Twelve plans each, judged on 256 tokens. Before you run it: which one finds a plan with a lower proxy than
# the two made by hand? And what will the winner's loss be on *other* text, compared with its proxy?

# %% name="search-live" timing=true
TRIES = 12
proxy_text = calibration[4:8, :64].flatten()


def proxy(plan):
    """Loss in nats a token on a little calibration text."""
    with structured.putting_back(model):
        search.cut(model, plan, ranked)
        return measure.perplexity(model, proxy_text, window=64, batch_size=4).nll


histories = {"by lot": search.by_chance(space, proxy, TRIES, seed=0),
             "evolution": search.evolve(space, proxy, TRIES, seed=0, population=4)}
found = {name: search.lowest(history) for name, history in histories.items()}
hand_scores = {name: proxy(plan) for name, plan in by_hand.items()}
for name, score in hand_scores.items():
    print(f"by hand, {name}: proxy {score:.3f} nats a token")
for name, (plan, score) in found.items():
    print(f"{name}, the lowest of {TRIES}: {score:.3f}; {plan.count(0)} blocks go, the others keep "
          f"{min(kept for kept in plan if kept)} to {max(plan)} neurons")

measure.release_memory()

# %% [markdown] name="search-record-text"
# Twelve tries on 256 tokens are a demonstration. The course keeps a longer run: 64 tries for each search,
# 512 tokens for the proxy, three seeds, and a third search, evolution that begins with the plans made by
# hand. What each found was then measured on 16,384 held-out tokens (`course bench search`).

# %% name="search-record"
record = records.load("bench_search")
if record is None:
    print("no recorded run yet: course bench search makes one")
else:
    print(records.provenance_line(record))
    rows = {(row["how"], row["seed"]): row for row in record["results"]["rows"]}
    results = {key: measure.Perplexity(**row["result"]) for key, row in rows.items()}
    print(f"{'':56} proxy  held out (nats a token)  perplexity")
    for (how, seed), row in rows.items():
        result = results[how, seed]
        print(f"{how + (f', seed {seed}' if seed else ''):56} {row['proxy']:.3f}  {result.nll:.3f} "
              f"{result.value:28.1f}")

# %% name="search-compared"
if record:
    hand = min((key for key in rows if not key[1] and key[0] != "nothing"), key=lambda key: results[key].nll)
    searches = list(dict.fromkeys(how for how, seed in rows if seed))
    tried = [(how, seed) for how in searches for seed in sorted(seed for name, seed in rows if name == how)]
    compared = {key: measure.compare(results[key], results[hand], comparisons=len(tried)) for key in tried}
    for (how, seed), one in compared.items():
        print(one.sentence(f"{how} (seed {seed})", f"by hand ({hand[0]})"))

# %% name="plot-search"
if record:
    fig, ax = plt.subplots(figsize=(7.5, 3.6))
    for how, color in zip(searches, ("black", "blue", "green"), strict=False):
        for seed in sorted(seed for name, seed in rows if name == how):
            trace = rows[how, seed]["trace"]
            lowest = [min(trace[: i + 1]) for i in range(len(trace))]
            ax.plot(range(1, len(trace) + 1), lowest, color=plots.PALETTE[color], linewidth=1.4,
                    label=how if seed == 1 else None)
    ax.axhline(rows[hand]["proxy"], color="#777777", linestyle="--", label=f"by hand: {hand[0]}")
    ax.set(xlabel="plans tried", ylabel="lowest proxy so far (nats a token)", title="Searching on a proxy")
    ax.legend(fontsize=9)
    ends = {how: [f"{row['proxy']:.2f}" for (name, _), row in rows.items() if name == how]
            for how in searches}
    plots.show(
        fig,
        "The lowest proxy found so far over the number of plans tried, three seeds for each search. "
        + " ".join(f"{how} ends at {', '.join(values)}." for how, values in ends.items())
        + f" A dashed line marks the plan made by hand, {rows[hand]['proxy']:.2f}.",
    )

# %% [markdown] name="search-reading"
# What to take from it? Above stand several comparisons that answer one question. An interval of 95 % misses
# once in twenty times, so among nine of them one may well leave zero by chance. These are wider, so that all
# of them together miss in fewer than one of twenty such tables (`comparisons`, after Bonferroni). A search
# finds what its judge likes. Look at the two columns: how far does a plan fall on the proxy, and how much of
# it is left on other text? A low proxy that does not carry over is called *overfitting to the proxy*. And no
# search here looks at what counts on the clock: two plans of equal size may differ in speed, because a block
# that goes takes its attention and its cache with it.
#
# Serious work joins both: search for depth and width, then **distil** into what was found (S. Muralidharan
# et al., "Compact Language Models via Pruning and Knowledge Distillation", arXiv 2407.14679).

# %% [markdown] name="jax-text"
# ## Other hardware: one step, written once
#
# The article proposes JAX for distillation on TPUs, Google's processors for machine learning. **JAX** is
# NumPy with two functions that matter here: `jax.grad` makes the gradient of a function, `jax.jit` compiles
# it, by the compiler **XLA**, for the device that it finds. The code names no device, so the same file runs
# on a CPU, a GPU or a TPU. We have no TPU. What can be shown here: that the step is right.
#
# So we wrote the language model in JAX, and one step of {lesson:distillation}: a student
# of two blocks, the whole model as the teacher, the same loss. Read it in
# `course_utils/engines/jax/jax_llama.py`. JAX needs an environment of its own (`course engines install
# jax`). Are its gradients PyTorch's?

# %% name="jax-step" timing=true
PARTS = {"q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj",
         "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj",
         "attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
TEMPERATURE, RATE = 2.0, 0.002
measure.release_memory()  # JAX's process needs room beside this one
config, found = model.config, None
plain_llama = config.model_type == "llama" and config.tie_word_embeddings
kept = sorted({0, n_blocks - 1})
student = speculative.shorter(model, [i for i in range(n_blocks) if i not in kept])
ids, words = heldout[:48], heldout.unique()  # they answer with words of our text only: that saves memory
with torch.no_grad():
    teacher = model(input_ids=ids[None], use_cache=False).logits[0][:, words]
weights = {f"{i}.{short}": block.get_submodule(name).weight
           for i, block in enumerate(shapes.block_list(student)) for short, name in PARTS.items()}


def torch_step():
    """Loss of the student, and its gradients by the blocks' weights."""
    logits = student(input_ids=ids[None], use_cache=False).logits[0][:, words]
    loss = distill.kd_loss(logits, teacher, TEMPERATURE)
    return loss.item(), torch.autograd.grad(loss, list(weights.values()))


with tempfile.TemporaryDirectory() as folder:
    whole = {"ids": torch.searchsorted(words, ids).int(), "teacher": teacher,
             "embedding": model.get_input_embeddings().weight[words],
             "norm": model.base_model.norm.weight} | weights
    save_file({name: value.detach().cpu().contiguous() for name, value in whole.items()}, f"{folder}/in")
    del whole
    measure.release_memory()
    answer = engines.run("jax", {
        "task": "distill", "weights": f"{folder}/in", "out": f"{folder}/out", "temperature": TEMPERATURE,
        "lr": RATE, "steps": 4, "config": {"head_dim": config.head_dim, "rms_norm_eps": config.rms_norm_eps,
                                           "rope_theta": config.rope_parameters["rope_theta"]}},
        timeout=120) if plain_llama else "written for the Llama architecture with tied embeddings"
    if isinstance(answer, engines.Answer):
        found, gradients = answer.values, load_file(f"{folder}/out")
        seconds = measure.latency(torch_step, warmup=1, repeats=3).fastest
        print(f"JAX {found['versions']['jax']} on {', '.join(found['devices'])}: compiled in "
              f"{found['compile_seconds']:.1f} s; a step takes {found['jit_seconds'] / seconds:.2f} times "
              "PyTorch's time")
    else:
        print(answer)

# %% name="jax-equal" timing=true
if found:
    loss, expected = torch_step()
    errors = {name: ((gradients[name] - grad.cpu()).norm() / grad.cpu().norm()).item()
              for name, grad in zip(weights, expected, strict=True)}
    jax_equal = max(errors.values()) < 1e-4
    print(f"loss: {loss:.4f} in PyTorch, {found['losses'][0]:.4f} in JAX")
    print(f"{len(errors)} gradients; relative difference below 0.0001 in each: {jax_equal}")
    print("loss before each step, and after the last:", " ".join(f"{value:.3f}" for value in found["losses"]))

# %% [markdown] name="jax-reading"
# One trap on the way to a TPU: there, JAX multiplies FP32 matrices in BF16 unless it is told otherwise
# (`jax.default_matmul_precision`, documentation of JAX). The code runs unchanged; its gradients need not be
# equal to four digits there.
#
# ## What the hardware changes
#
# A decoding step is bound by bandwidth, a prompt by arithmetic. Hardware for neural networks adds arithmetic
# in few bits: **VNNI** and **AMX** in processors for servers, **NEON** and **SVE** in ARM's, tensor cores in
# GPUs, a grid of multipliers in TPUs. So what would you expect it to speed up first, reading a prompt or
# writing the answer? The recorded runs have a few of these.

# %% name="hardware"
cpu, machine = records.load("bench_engines"), records.load("gpu_machine")
if cpu:
    print(records.provenance_line(cpu))
    speeds = {row["engine"]: row for row in cpu["results"]["rows"] if not row["note"] and row["threads"] == 2}
    for few, many in (("torch BF16", "torch FP32"), ("ONNX Runtime INT8", "ONNX Runtime FP32")):
        read, write = (speeds[few][f"{phase} (tokens/s)"] / speeds[many][f"{phase} (tokens/s)"]
                       for phase in ("prefill", "decode"))
        print(f"  {few} against {many}, two threads: reads {read:.1f}, writes {write:.1f} times as fast")
    known = {"avx512_bf16", "avx512_vnni", "amx_int8", "neon", "sve"}
    print("  of the instructions named here it has:",
          ", ".join(sorted(known & set(cpu["provenance"]["instruction_sets"]))))
if machine:
    print(records.provenance_line(machine))
    limits = {row["what"]: row["value"] for row in machine["results"]["rows"]}
    tensor = limits["matrix product, bfloat16"] / limits["matrix product, float32"]
    print(f"  a BF16 product, which its tensor cores take, {tensor:.0f} times as fast as one in FP32")
if gpu:
    rows = [row for row in gpu["results"]["rows"] if row["format"] == "BF16" and row["batch"] == 1]
    bf16 = rows[0]
    step, bound = bf16["decode step (ms)"], bf16["decode limit by bandwidth (ms)"]
    print(f"  13B in BF16: a step takes {step / bound:.1f} times what the memory needs, as one CUDA graph "
          f"{bf16[graph] / bound:.1f} times")

# %% [markdown] name="hardware-reading"
# The last line is what a compiler such as TensorRT is for: many small kernels are started one by one from
# Python, and the step takes far longer than the reading of the weights. As one graph it does not. That was
# measured with PyTorch's CUDA graphs; TensorRT itself was not run here.
#
# What was *not* measured, with a source for each:
#
# - AMX against VNNI: 2,048 INT8 operations a cycle and core, and 256 (Intel, "Accelerate Artificial
#   Intelligence (AI) Workloads with Intel Advanced Matrix Extensions", 2022). A processor that has both is no
#   proof that a library uses both: which instructions ran above was not looked at.
# - TPU: the first had 65,536 multipliers of 8 bits in a grid through which numbers flow (N. Jouppi et al.,
#   "In-Datacenter Performance Analysis of a Tensor Processing Unit", arXiv 1704.04760). A matrix that is
#   smaller than the grid leaves most of it idle, and so does a batch of one.
# - NEON has registers of 128 bits, SVE of 128 to 2,048, as the maker chooses (N. Stephens et al., "The ARM
#   Scalable Vector Extension", arXiv 1803.06185).
#
# Hardware for **zeros**, 2:4 sparsity, is in NVIDIA's GPUs since the A100 (A. Mishra et al., "Accelerating
# Sparse Deep Neural Networks", arXiv 2104.08378). The verdict on C19 at the end of this lesson says what it
# gave in our recorded run.

# %% [markdown] name="bits-text"
# ## Does the input choose the bits?
#
# The article says that *dynamic quantization* chooses the precision by the input. {Lesson:ptq} looked: it
# does not, the bits are fixed and only a scale is computed at run time. But would it be a good idea? Try
# it, in a few lines.
#
# One set of integers can hold several precisions: the upper 4 bits of an 8-bit integer *are* a 4-bit
# integer (Y. Park et al., "Any-Precision LLM", arXiv 2402.10517). So the memory is that of 8 bits, and an
# easy input reads half of it. Who says what is easy? The 4-bit model: it reads the first 32 tokens of a
# text, and how unsure it is there (the mean **entropy** of its predictions) decides in which precision the
# next 96 are read.
#
# Half of the texts may use 8 bits, so that 6 bits are read on average. What must that be compared with? With
# the same half chosen by lot. And with plainly reading 6 bits everywhere.

# %% name="bits" timing=true
TEXTS, ASK, LENGTH = 24, 32, 128
texts = data.windows(heldout[: TEXTS * LENGTH], LENGTH)


def eight_bits(weight, group=64):
    """8-bit integers [out, groups, group], and a scale for each group of inputs."""
    values = weight.unflatten(1, (-1, group if weight.shape[1] % group == 0 else weight.shape[1]))
    scale = values.abs().amax(dim=-1, keepdim=True).clamp(min=1e-12) / 127
    return torch.round(values / scale).to(torch.int8), scale


def upper_bits(integers, scale, bits):
    """The weight that the upper bits of its integers give: the middle of all that begin with these bits."""
    cut_off = 2 ** (8 - bits)
    kept = torch.floor(integers.float() / cut_off) * cut_off + (cut_off - 1) / 2
    return (kept * scale).flatten(1)


def read(lm):
    """For each text: the loss of its later tokens, a sum in nats; the mean entropy on the first ones."""
    sums, entropies = [], []
    with torch.no_grad():
        for ids in texts:
            log_p = lm(input_ids=ids[None], use_cache=False).logits[0].float().log_softmax(dim=-1)
            entropies.append(-(log_p[:ASK].exp() * log_p[:ASK]).sum(dim=-1).mean().item())
            sums.append(-log_p[ASK - 1 : -1].gather(1, ids[ASK:, None]).sum().item())
    return sums, entropies


linears = layerwise.block_linears(model)  # from here on the model's weights are rounded
stored = {name: eight_bits(linear.weight.data) for name, linear in linears.items()}
losses = {}
for bits in (8, 6, 4):
    for name, linear in linears.items():
        linear.weight.data.copy_(upper_bits(*stored[name], bits))
    losses[bits], unsure = read(model)  # the last one is that of 4 bits
stored = None

# %% name="bits-compared" tolerance=0.1
counts = [LENGTH - ASK] * TEXTS


def result(sums):
    return measure.perplexity_of_windows(sums, counts, texts.flatten(), LENGTH, LENGTH, DEVICE)


hard = set(sorted(range(TEXTS), key=lambda i: -unsure[i])[: TEXTS // 2])
by_input = result([losses[8 if i in hard else 4][i] for i in range(TEXTS)])
by_lot = result([(losses[4][i] + losses[8][i]) / 2 for i in range(TEXTS)])  # the mean over all lots
fixed = {bits: result(losses[bits]) for bits in losses}
gain = [four - eight for four, eight in zip(losses[4], losses[8], strict=True)]
for bits, quality in fixed.items():
    print(f"{bits} bits for all: {quality.nll:.3f} nats a token")
print(f"8 bits for the half that the 4-bit model is most unsure of: {by_input.nll:.3f}")
print(f"8 bits for a half by lot: {by_lot.nll:.3f}")

# %% name="bits-verdicts" timing=true
against_lot = measure.compare(by_input, by_lot)
against_fixed = measure.compare(by_input, fixed[6])
print(against_lot.sentence("the choice by input", "a choice by lot"))
print(against_fixed.sentence("the choice by input", "6 bits for all"))


def rank_correlation(first, second):
    """Spearman's: 1 when both put the texts in the same order, 0 when the orders have nothing in common."""
    return stats.spearmanr(first, second).statistic


# Drawing the texts again, with replacement, shows how much the figure hangs on which texts these are.
again = stats.bootstrap((unsure, gain), rank_correlation, paired=True, vectorized=False, rng=0,
                        n_resamples=2000, method="percentile").confidence_interval
print(f"rank correlation of being unsure with what 8 bits gain: {rank_correlation(unsure, gain):.2f} "
      f"(95 %: {again.low:.2f} to {again.high:.2f}, {TEXTS} texts)")

# %% [markdown] name="bits-reading"
# Two questions must not be mixed. Is a text *hard*: is the loss high? And does a text *gain by more bits*? A
# model may be unsure because the text is open, and no number of bits changes that. The rank correlation
# above says how much the one tells about the other, here, and its interval how little these few texts settle.
#
# A reason that fits why the same bits spent evenly do well, not tested here: the error of rounding falls by
# a factor of 2 with each bit, the loss it causes by about 4. So the first two bits above 4 bring most of
# what there is, to each text; the next two bring little, to half of them.

# %% [markdown] name="replicate"
# ## What would not replicate elsewhere, and what holds anyway
#
# - Speed-ups depend on what a pass with several tokens costs, and so on the machine; how often a guess stays
#   depends on the text and on the two models. Leviathan et al. report 2 to 3 times with a small draft on
#   accelerators. We measured none.
# - The plans that a search finds are this model's, and another seed finds others.
# - What holds: the text is the model's own, whatever the draft. A draft must be more often right than it is
#   expensive. What a search gains on its proxy is not what is left on other text.
#
# ## Recap
#
# - A pass with n + 1 tokens checks n guesses and adds one token of its own: $1 + a + \dots + a^n$ on average.
# - Stay with the probability min(1, p/q), else draw from max(p - q, 0): the result is p.
# - Prompt lookup takes no time to speak of, and is often right where the answer repeats the prompt.
# - Compare a search with the choice by hand, on text that neither has seen, with an error.
# - Compare a choice by input with the same bits for all.
#
# ## The article's claims
#
# C18: {claim:C18}. C19: {claim:C19}. C20: {claim:C20}.

# %% name="verdict-c18" timing=true
print("C18: false. Dynamic quantization has fixed bits (the lesson on PTQ). Tried here by hand:")
print("    " + against_lot.sentence("the choice by input", "a choice by lot"))
print("    " + against_fixed.sentence("the choice by input", "6 bits for all, as many on average"))

# %% name="verdict-c19"
if record:
    verdicts = [one.verdict for one in compared.values()]
    share = verdicts.count("better") / len(verdicts)
    print(f"C19 (search): {'right' if share == 1 else 'half right' if share else 'not shown'}. "
          f"Of {len(verdicts)} searches {verdicts.count('better')} found a plan better "
          f"than the one by hand ({hand[0]}), {verdicts.count('worse')} a worse one, for "
          f"{verdicts.count('no difference shown')} no difference is shown.")
else:
    print("C19 (search): no recorded run to judge by.")
sparse = records.load("gpu_sparse_2_4")
if sparse:
    measured = [row for row in sparse["results"]["rows"] if row.get("dense / sparse")]
    most = max(measured, key=lambda row: row["dense / sparse"])
    ahead = [row["dense / sparse"] > 1 for row in measured]  # one figure each, without an error
    single = [row["dense / sparse"] for row in measured if row["tokens"] == 1]
    print(f"C19 (sparse libraries): {'right' if all(ahead) else 'not shown'}. 2:4 on "
          f"{sparse['provenance']['gpu']} took less time than dense in {sum(ahead)} of {len(measured)} "
          f"products, each measured once, at most {most['dense / sparse']:.2f} times "
          f"({most['matrix']}, {most['dtype']}, {most['tokens']} tokens at once).")
    print(f"    With one token at once, as in decoding: {min(single):.2f} to {max(single):.2f} times the "
          "dense product's speed.")

# %% name="verdict-c20" timing=true
if found:
    print(f"C20 (JAX): {'half right' if jax_equal else 'not shown'}. No TPU was there. The step compiles for "
          f"{found['devices'][0].upper()}, and its gradients "
          f"{'equal' if jax_equal else 'differ from'} PyTorch's.")
else:
    print("C20 (JAX): not tried. The engine is not installed here.")
if gpu:
    print(f"C20 (CUDA): not tried. On {gpu['provenance']['gpu']} a decoding step of 13B in BF16 is "
          f"{step / bf16[graph]:.1f} times as fast when it is one CUDA graph as when Python starts each "
          "kernel, which TensorRT would avoid, too. TensorRT itself was not run.")
arm = records.load("bench_phone_arm64")
if arm:
    places = {(row["activations"], row["instruction"]): row["value"] for row in arm["results"]["rows"]
              if "instruction" in row}
    same = all(row["value"] for row in arm["results"]["rows"] if "tokens of this machine" in row["what"])
    used = any(places.values())
    print(f"C20 (NEON): {'half right' if used and same else 'not shown'}. ONNX Runtime for ARM64 "
          f"{'uses' if used else 'does not use'} NEON for the phone's model, and writes "
          f"{'the same' if same else 'other'} tokens. How fast, an emulator does not show.")
    for (activations, instruction), count in places.items():
        print(f"    {activations}: {instruction} stands at {count} places of the code that ran.")
else:
    print("C20 (NEON): not tried. `make arm64` records it.")
