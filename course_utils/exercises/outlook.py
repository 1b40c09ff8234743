"""Exercises of the lesson on the outlook: speculative decoding, search."""

import torch

from course_utils import speculative
from course_utils.checking import Case, Exercise, Mistake, Prediction
from course_utils.checking.cases import seeded
from course_utils.prune import search
from course_utils.speculative import draw


def _generator():
    return torch.Generator().manual_seed(seeded(15))


def _distributions(*shape, dtype=torch.float64, sharp=2.0):
    """Two distributions that differ, float [*shape] each."""
    generator = _generator()
    return [torch.softmax(sharp * torch.randn(shape, generator=generator, dtype=torch.float64), -1).to(dtype)
            for _ in range(2)]  # fmt: skip


# --- predictions ------------------------------------------------------------------------------------------

PREDICT_TOKENS = Prediction(
    id="predict_tokens",
    answer=lambda: speculative.expected_tokens(0.8, 4),
    rtol=0.02,
    unit="tokens a pass",
    mistakes=[
        (4.0, "that many are drafted. Not all of them stay."),
        (5.0, "that would be so if every drafted token stayed."),
        (4 * 0.8, "each token by itself. The second can only stay if the first did, and one token comes from "
                  "the model itself."),
        (1 + 4 * 0.8, "each drafted token by itself. The second can only stay if the first did."),
        (sum(0.8**i for i in range(1, 5)), "the drafted ones alone. The model adds one of its own."),
        (1 / (1 - 0.8), "the sum without an end. Only 4 tokens are drafted."),
    ],
    hint="The model's own token is sure. The first drafted one stays with 0.8. With what the first and the "
         "second?",
)

HIDDEN, WIDTH = 576, 1536
NEURON = 3 * HIDDEN
BLOCK = 2 * HIDDEN * HIDDEN + 2 * HIDDEN * 192 + WIDTH * NEURON + 2 * HIDDEN

PREDICT_NEURONS = Prediction(
    id="predict_neurons",
    answer=lambda: BLOCK / NEURON,
    rtol=0.01,
    unit="neurons",
    mistakes=[
        (WIDTH, "the neurons of its MLP. The attention goes, too."),
        ((4 * HIDDEN * HIDDEN + WIDTH * NEURON) / NEURON,
         "keys and values counted as wide as queries. They have 3 heads of 64 where the queries have 9."),
        (BLOCK / (2 * HIDDEN), "a neuron with two vectors. In this MLP it has three: of gate, up and down."),
        (BLOCK / HIDDEN, "a neuron with one vector. It has a row of gate, a row of up and a column of down."),
    ],
    hint="A neuron is a row of gate, a row of up and a column of down, 576 numbers each. What is in a block "
         "beside its 1,536 neurons?",
)


# --- expected_tokens --------------------------------------------------------------------------------------


def _expected_cases():
    return [
        Case(0.5, 1, label="one token drafted"),
        Case(0.8, 4, label="four drafted, most stay"),
        Case(0.0, 5, label="none ever stays"),
        Case(1.0, 3, label="every one stays"),
        Case(0.9, 0, label="nothing is drafted"),
        Case(0.25, 2, label="a bad draft"),
        Case(0.99, 8, label="a draft nearly like the model"),
    ]


def _draw_expected(numbers):
    return [Case(numbers.uniform(0.05, 0.95), numbers.randint(1, 12)) for _ in range(4)]


EXPECTED_TOKENS = Exercise(
    reference=speculative.expected_tokens,
    cases=_expected_cases,
    draw=_draw_expected,
    rtol=1e-5,
    mistakes=[
        Mistake(
            "each drafted token by itself. The second can only stay if the first did.",
            lambda a, n: 1 + a * n,
        ),
        Mistake(
            "the drafted tokens alone. The pass gives one more, drawn by the model itself.",
            lambda a, n: sum(a**i for i in range(1, n + 1)),
        ),
        Mistake(
            "one term missing: all n drafted tokens may stay, and the model's own comes on top.",
            lambda a, n: sum(a**i for i in range(n)),
        ),
        Mistake(
            "the sum without an end, 1 / (1 - a). Only n tokens are drafted.",
            lambda a, n: 1 / (1 - a) if a < 1 else float("inf"),
        ),
        Mistake(
            "the probability that all stay.",
            lambda a, n: a**n,
        ),
        Mistake(
            "division by 0 when every token stays: the short formula has 1 - a below the line.",
            lambda a, n: (1 - a ** (n + 1)) / (1 - a),
        ),
    ],
    hint="The mean of a count is the sum of the probabilities that it is at least 1, at least 2, and so on.",
)


# --- residual ---------------------------------------------------------------------------------------------


def _residual_cases():
    p, q = _distributions(12)
    even = torch.full((4,), 0.25, dtype=torch.float64)
    one = torch.tensor([0.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    strided = torch.stack(_distributions(9), dim=1)
    return [
        Case(torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.3, 0.5]), label="three tokens"),
        Case(p, q, label="twelve tokens"),
        Case(q, p, label="the two the other way round"),
        Case(even, one, label="a draft that was sure"),
        Case(one, even, label="a model that is sure"),
        Case(strided[:, 0], strided[:, 1], label="views with strides"),
        Case(torch.tensor([0.4, 0.6]), torch.tensor([0.5, 0.5]), label="two tokens"),
        Case(*_distributions(30, dtype=torch.float32), label="float32"),
    ]


RESIDUAL = Exercise(
    reference=speculative.residual,
    cases=_residual_cases,
    rtol=1e-4,
    atol=1e-9,
    mistakes=[
        Mistake(
            "not divided by its sum: probabilities add up to 1.",
            lambda p, q: (p - q).clamp(min=0),
        ),
        Mistake(
            "negative numbers are left. Where the draft gave too much, nothing is missing: 0.",
            lambda p, q: (p - q) / (p - q).clamp(min=0).sum(),
        ),
        Mistake(
            "the sizes of the differences. Where the draft gave too much, nothing is missing: 0.",
            lambda p, q: (p - q).abs() / (p - q).abs().sum(),
        ),
        Mistake(
            "what the draft has too much of. What is missing is p - q.",
            lambda p, q: (q - p).clamp(min=0) / (q - p).clamp(min=0).sum(),
        ),
        Mistake(
            "the model's own distribution. Tokens that the draft likes got their share "
            "when they were drafted.",
            lambda p, q: p / p.sum(),
        ),
        Mistake(
            "a softmax. These are probabilities already: divide by the sum.",
            lambda p, q: torch.softmax((p - q).clamp(min=0), -1),
        ),
    ],
    hint="Draw two bar charts, p and q, over three tokens. Where is p above q, and by how much?",
)


# --- verify -----------------------------------------------------------------------------------------------


def _verify_cases():
    p, _ = _distributions(4, 7)
    generator = _generator()
    q = torch.softmax(2 * torch.randn(3, 7, generator=generator, dtype=torch.float64) - 1, -1)
    likely = p[:3].argmax(-1).tolist()
    # Tokens that the draft likes more than the model does: they can be refused.
    above = (q / p[:3]).argmax(-1).tolist()
    ratio = [(p[i, t] / q[i, t]).item() for i, t in enumerate(above)]
    sure = torch.zeros(3, 7, dtype=torch.float64)
    sure[torch.arange(3), torch.tensor(likely)] = 1
    greedy = torch.zeros(4, 7, dtype=torch.float64)
    greedy[torch.arange(4), torch.tensor([2, 5, 0, 3])] = 1
    guessed = torch.zeros(3, 7, dtype=torch.float64)
    guessed[torch.arange(3), torch.tensor([2, 5, 1])] = 1
    half = torch.tensor([[0.25, 0.75], [0.5, 0.5]], dtype=torch.float64)
    other = torch.tensor([[0.5, 0.5]], dtype=torch.float64)
    return [
        Case(p, q, likely, [0.01, 0.01, 0.01, 0.3], label="all three stay"),
        Case(p, q, above, [0.0, 0.99, 0.0, 0.6], label="the second is refused"),
        Case(p, q, above, [0.99, 0.0, 0.0, 0.2], label="the first is refused"),
        Case(p, q, above, [0.0, 0.0, 0.99, 0.9], label="the last is refused"),
        Case(p, q, above, [0.9 * ratio[0], 0.9 * ratio[1], 0.9 * ratio[2], 0.5], label="just below p / q"),
        Case(p, q, above, [0.9 * ratio[0], 1.1 * ratio[1], 0.0, 0.5], label="just above p / q"),
        Case(p, sure, likely, [p[0, likely[0]].item() * 0.9, 0.999, 0.1, 0.7], label="a draft that was sure"),
        Case(greedy, guessed, [2, 5, 1], [0.0, 0.0, 0.0, 0.0], label="temperature 0, chances of 0"),
        Case(greedy, guessed, [2, 5, 1], [0.9, 0.99, 0.5, 0.99], label="temperature 0, large chances"),
        Case(p[:1], q[:0], [], [0.4], label="nothing was drafted"),
        Case(half, other, [0], [0.5, 0.1], label="exactly p / q"),
        Case(p[:2], q[:1], [above[0]], [0.99, 0.0], label="one drafted, refused, a last chance of 0"),
        Case(*(x.flip(-1) for x in (p, q)), [6 - t for t in above], [0.0, 0.99, 0.0, 0.6], label="mirrored"),
        Case(p, q, [4, 4, 4], [0.0, 0.0, 0.0, 0.99], label="the same token three times"),
    ]


def _verify(p, q, drafted, chances, *, stays=None, refused=None, last=None, goes_on=False):
    """`verify` with one thing done wrongly."""
    stays = stays or (lambda p, q, chance: chance * q < p)
    refused = refused or speculative.residual
    kept = []
    for i, token in enumerate(drafted):
        if stays(p[i, token], q[i, token], chances[i]):
            kept.append(token)
        elif goes_on:
            kept.append(draw(refused(p[i], q[i]), chances[-1]))
        else:
            return [*kept, draw(refused(p[i], q[i]), chances[-1])]
    return [*kept, *([draw(p[-1], chances[-1])] if last is None else last(p, q, chances))]


def _by_rank(p, q, drafted, chances):
    kept = []
    for i, token in enumerate(drafted):
        if token != int(p[i].argmax()):
            return [*kept, draw(speculative.residual(p[i], q[i]), chances[-1])]
        kept.append(token)
    return [*kept, draw(p[-1], chances[-1])]


VERIFY = Exercise(
    reference=speculative.verify,
    cases=_verify_cases,
    mistakes=[
        Mistake(
            "the chance compared with p alone. A token that the draft often proposes must be refused more "
            "often: compare with p / q.",
            lambda *args: _verify(*args, stays=lambda p, q, chance: chance < p),
        ),
        Mistake(
            "q / p instead of p / q: what the draft likes too much would always stay.",
            lambda *args: _verify(*args, stays=lambda p, q, chance: chance * p < q),
        ),
        Mistake(
            "a refused token replaced by one from the model's distribution. Tokens that the draft likes "
            "would then come too often: draw from the residual.",
            lambda *args: _verify(*args, refused=lambda p, q: p),
        ),
        Mistake(
            "only the most likely token stays. That is right at temperature 0 alone.",
            _by_rank,
        ),
        Mistake(
            "it goes on after a refusal. Later tokens were drafted behind one that is not in the text.",
            lambda *args: _verify(*args, goes_on=True),
        ),
        Mistake(
            "no token of its own when all stay. The pass has also computed what comes behind the last.",
            lambda *args: _verify(*args, last=lambda p, q, chances: []),
        ),
        Mistake(
            "refused for another reason when the chance times q is just p: refused is >=, so that at "
            "temperature 0 a token with p = 0 never stays.",
            lambda *args: _verify(*args, stays=lambda p, q, chance: chance * q <= p),
        ),
        Mistake(
            "the refused token stays, and the draw comes after it. The draw takes its place.",
            lambda p, q, drafted, chances: next(
                ([*drafted[: i + 1], draw(speculative.residual(p[i], q[i]), chances[-1])]
                 for i, t in enumerate(drafted) if chances[i] * q[i, t] >= p[i, t]),
                [*drafted, draw(p[-1], chances[-1])]),
        ),
        Mistake(
            "nothing in the place of a refused token. The residual there gives one.",
            lambda p, q, drafted, chances: next(
                (list(drafted[:i]) for i, t in enumerate(drafted) if chances[i] * q[i, t] >= p[i, t]),
                [*drafted, draw(p[-1], chances[-1])]),
        ),
    ],
    hint="Go through the drafted tokens one by one. What do you return at the first that is refused? And "
         "what when none is?",
)


# --- prompt_lookup ----------------------------------------------------------------------------------------


def _lookup_cases():
    return [
        Case([5, 6, 7, 8, 9, 5, 6, 7], 3, 2, label="three tokens found"),
        Case([1, 7, 2, 3, 7, 4, 5, 7], 2, 3, label="only the last token found, twice"),
        Case([1, 2, 3, 4], 3, 2, label="nothing found"),
        Case([3, 3, 3, 3], 2, 5, label="one token again and again"),
        Case([9, 1, 2, 8, 1, 2, 7, 1, 2], 2, 4, label="two places: the first one counts"),
        Case([1, 2, 3, 9, 2, 3, 8, 1, 2, 3], 3, 2, label="a long match before a short one"),
        Case([4], 3, 2, label="a text of one token"),
        Case([4, 4], 5, 1, label="shorter than what is looked for"),
        Case([6, 2, 6], 3, 4, label="fewer tokens follow than were asked for"),
        Case([1, 2, 3, 1, 2, 3, 1, 2, 3], 1, 3, label="one token at most looked for"),
        Case([8, 9, 7, 8, 9], 2, 1, label="one token wanted"),
        Case([3, 3, 3], 2, 2, label="a place that overlaps the end of the text"),
    ]


def _lookup(ids, longest, count, *, sizes=None, starts=None, offset=0, end=None):
    sizes = sizes or range(min(longest, len(ids) - 1), 0, -1)
    for n in sizes:
        places = list(range(len(ids) - n))
        for start in (starts(places) if starts else places):
            if ids[start : start + n] == ids[-n:]:
                first = start + n + offset
                return ids[first : first + count] if end is None else ids[first:end]
    return []


def _draw_texts(numbers):
    def case():
        ids = [numbers.randrange(4) for _ in range(numbers.randint(1, 24))]
        return Case(ids, numbers.randint(1, 5), numbers.randint(1, 6))

    return [case() for _ in range(6)]


PROMPT_LOOKUP = Exercise(
    reference=speculative.prompt_lookup,
    cases=_lookup_cases,
    draw=_draw_texts,
    mistakes=[
        Mistake(
            "the last place counts. As in transformers, it should be the first.",
            lambda ids, longest, count: _lookup(ids, longest, count, starts=reversed),
        ),
        Mistake(
            "the match itself is returned. What came after it?",
            lambda ids, longest, count: next(
                (ids[s : s + count] for n in range(min(longest, len(ids) - 1), 0, -1)
                 for s in range(len(ids) - n) if ids[s : s + n] == ids[-n:]), []),
        ),
        Mistake(
            "short matches first. A long match says more: begin with the longest.",
            lambda ids, longest, count: _lookup(ids, longest, count,
                                                sizes=range(1, min(longest, len(ids) - 1) + 1)),
        ),
        Mistake(
            "nothing, though a shorter match is there. Are lengths below `longest` tried? Or has the end of "
            "the text found itself? It must occur further up, with something behind it.",
            lambda ids, longest, count: _lookup(ids, longest, count, sizes=[longest]),
        ),
        Mistake(
            "places that overlap the end of the text left out. They count, as long as something follows.",
            lambda ids, longest, count: next(
                (ids[s + n : s + n + count] for n in range(min(longest, len(ids) - 1), 0, -1)
                 for s in range(len(ids) - 2 * n + 1) if ids[s : s + n] == ids[-n:]), []),
        ),
        Mistake(
            "all that follows. At most `count` tokens are wanted.",
            lambda ids, longest, count: _lookup(ids, longest, count, end=len(ids)),
        ),
        Mistake(
            "one token is skipped: the guess begins right behind the match.",
            lambda ids, longest, count: _lookup(ids, longest, count, offset=1),
        ),
    ],
    hint="What are the last n tokens of the text? Compare them with n tokens from each place on. Where must "
         "the places end?",
)


# --- exchange ---------------------------------------------------------------------------------------------


def _exchange_cases():
    plan = (8, 4, 6, 0, 5)
    return [
        Case(plan, 0, 1, 2, 8, label="from the first to the second"),
        Case(plan, 2, 1, 1, 8, label="to a block on its left"),
        Case(plan, 2, 0, 1, 8, label="the taker is whole"),
        Case(plan, 1, 4, 4, 9, label="the giver would keep none"),
        Case(plan, 0, 3, 2, 8, label="the taker is a block that goes"),
        Case(plan, 3, 1, 2, 8, label="the giver is a block that goes"),
        Case(plan, 0, 2, 2, 8, label="the taker becomes just whole"),
        Case(plan, 4, 2, 3, 8, label="the taker would get too many"),
        Case((1536, 1024, 1280), 0, 1, 128, 1536, label="the model's widths"),
        Case(plan, 1, 2, 3, 9, label="the giver keeps one"),
        Case((5,) * 7, 0, 6, 2, 8, label="from the first of seven to the last"),
        Case((5,) * 7, 6, 0, 2, 8, label="from the last of seven to the first"),
    ]


def _draw_plans(numbers):
    def case():
        plan = tuple(numbers.randint(0, 9) for _ in range(numbers.randint(3, 8)))
        giver, taker = numbers.sample(range(len(plan)), 2)
        return Case(plan, giver, taker, numbers.randint(1, 3), 9)

    return [case() for _ in range(6)]


EXCHANGE = Exercise(
    reference=search.exchange,
    cases=_exchange_cases,
    draw=_draw_plans,
    mistakes=[
        Mistake(
            "giver and taker confused.",
            lambda plan, giver, taker, step, width: search.exchange(plan, taker, giver, step, width),
        ),
        Mistake(
            "the taker only: such a plan is larger than before.",
            lambda plan, giver, taker, step, width: plan if plan == search.exchange(
                plan, giver, taker, step, width) else tuple(
                kept + step * (i == taker) for i, kept in enumerate(plan)),
        ),
        Mistake(
            "a block that goes got neurons: it has no MLP to put them into.",
            lambda plan, giver, taker, step, width: plan if plan[giver] <= step or plan[taker] + step > width
            else tuple(kept + step * ((i == taker) - (i == giver)) for i, kept in enumerate(plan)),
        ),
        Mistake(
            "a giver without neurons is left, which would mean that the whole block goes.",
            lambda plan, giver, taker, step, width: plan if plan[giver] < step or plan[taker] == 0
            or plan[taker] + step > width
            else tuple(kept + step * ((i == taker) - (i == giver)) for i, kept in enumerate(plan)),
        ),
        Mistake(
            "the taker is wider than a whole block.",
            lambda plan, giver, taker, step, width: plan if plan[giver] <= step or plan[taker] == 0
            else tuple(kept + step * ((i == taker) - (i == giver)) for i, kept in enumerate(plan)),
        ),
        Mistake(
            "the taker may become whole, but not wider.",
            lambda plan, giver, taker, step, width: plan if plan[giver] <= step or plan[taker] == 0
            or plan[taker] + step >= width
            else tuple(kept + step * ((i == taker) - (i == giver)) for i, kept in enumerate(plan)),
        ),
    ],
    hint="Three things can be in the way. Which, and what is returned then?",
)


EXERCISES = [PREDICT_TOKENS, EXPECTED_TOKENS, RESIDUAL, VERIFY, PROMPT_LOOKUP, PREDICT_NEURONS, EXCHANGE]
