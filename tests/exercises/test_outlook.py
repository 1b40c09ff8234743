"""Lesson outlook: wrong answers are rejected for their reason, right ones written otherwise pass."""

import bisect
import itertools

import torch

# --- residual ---------------------------------------------------------------------------------------------


def _left(p, q):
    return torch.where(p > q, p - q, torch.zeros_like(p))


def _residual_overlap(p, q):
    """max(p - q, 0) = p - min(p, q)."""
    missing = p - torch.minimum(p, q)
    return missing / (1 - torch.minimum(p.double(), q.double()).sum()).to(p.dtype)


# --- verify -----------------------------------------------------------------------------------------------


def _pick(distribution, chance):
    """The first token up to which the probabilities add up to more than the chance."""
    sums = list(itertools.accumulate((distribution / distribution.sum()).tolist()))
    return min(bisect.bisect_right(sums, chance), len(sums) - 1)


def _kept(p, q, drafted, chances, stays=lambda p, q, c: c * q < p):
    count = 0
    for token, before, used, chance in zip(drafted, p, q, chances, strict=False):
        if not stays(before[token].item(), used[token].item(), chance):
            break
        count += 1
    return count


def _verify_while(target, draft, drafted, chances):
    count = _kept(target, draft, drafted, chances)
    left = target[count]
    if count < len(drafted):
        left = _left(target[count], draft[count])
    return drafted[:count] + [_pick(left, chances[-1])]


def _verify_at_once(target, draft, drafted, chances):
    """All comparisons in one tensor operation; the draft after the last token counts as 0."""
    places, tokens = torch.arange(len(drafted)), torch.tensor(drafted, dtype=torch.long)
    tried = torch.tensor(chances[:-1], dtype=torch.float64)
    stays = tried * draft[places, tokens] < target[places, tokens]
    count = int(stays.long().cumprod(0).sum())
    padded = torch.cat([draft, torch.zeros_like(target[:1])])
    return [*drafted[:count], _pick(_left(target[count], padded[count]), chances[-1])]


def _verify_with(stays=lambda p, q, c: c * q < p, fill=_left, own=True):
    def verify(target, draft, drafted, chances):
        count = _kept(target, draft, drafted, chances, stays)
        if count < len(drafted):
            return [*drafted[:count], _pick(fill(target[count], draft[count]), chances[-1])]
        return [*drafted, *([_pick(target[-1], chances[-1])] if own else [])]

    return verify


def _verify_all_kept(target, draft, drafted, chances):
    new = []
    for i, token in enumerate(drafted):
        stays = chances[i] * draft[i, token] < target[i, token]
        new.append(token if stays else _pick(_left(target[i], draft[i]), chances[-1]))
    return [*new, _pick(target[-1], chances[-1])]


def _verify_most_likely(target, draft, drafted, chances):
    count = next((i for i, t in enumerate(drafted) if t != target[i].argmax()), len(drafted))
    left = target[-1] if count == len(drafted) else _left(target[count], draft[count])
    return [*drafted[:count], _pick(left, chances[-1])]


# --- expected_tokens --------------------------------------------------------------------------------------


def _expected_formula(acceptance, drafted):
    if acceptance == 1:
        return drafted + 1.0
    return (1 - acceptance ** (drafted + 1)) / (1 - acceptance)


def _expected_horner(acceptance, drafted):
    total = 1.0
    for _ in range(drafted):
        total = 1 + acceptance * total
    return total


# --- prompt_lookup ----------------------------------------------------------------------------------------


def _lookup_recursive(ids, longest, count):
    n = min(longest, len(ids) - 1)
    if n < 1:
        return []
    tail = tuple(ids[-n:])
    grams = list(zip(*(ids[i:] for i in range(n)), strict=False))[:-1]
    if tail in grams:
        start = grams.index(tail) + n
        return ids[start : start + count]
    return _lookup_recursive(ids, n - 1, count)


def _lookup_table(ids, longest, count):
    """A dictionary of what stands where; earlier places overwrite later ones."""
    for n in range(longest, 0, -1):
        after = {tuple(ids[i : i + n]): i + n for i in range(len(ids) - n - 1, -1, -1)}
        if len(ids) > n and (place := after.get(tuple(ids[-n:]))):
            return ids[place : place + count]
    return []


def _lookup_apart(ids, longest, count):
    for n in range(min(longest, len(ids) // 2), 0, -1):
        for start in range(len(ids) - 2 * n + 1):
            if ids[start : start + n] == ids[-n:]:
                return ids[start + n : start + n + count]
    return []


def _lookup_latest(ids, longest, count):
    for n in range(min(longest, len(ids) - 1), 0, -1):
        for start in range(len(ids) - n - 1, -1, -1):
            if ids[start : start + n] == ids[-n:]:
                return ids[start + n : start + n + count]
    return []


def _lookup_itself(ids, longest, count):
    for n in range(min(longest, len(ids)), 0, -1):
        for start in range(len(ids)):
            if ids[start : start + n] == ids[-n:]:
                return ids[start + n : start + n + count]
    return []


def _lookup_short_first(ids, longest, count):
    for n in range(1, min(longest, len(ids) - 1) + 1):
        found = _lookup_recursive(ids, n, count)
        if found:
            return found
    return []


def _lookup_full(ids, longest, count):
    return next((ids[s + longest : s + longest + count] for s in range(len(ids) - longest)
                 if ids[s : s + longest] == ids[-longest:]), [])


# --- exchange ---------------------------------------------------------------------------------------------


def _allowed(plan, giver, taker, step, width):
    return plan[giver] > step and 0 < plan[taker] <= width - step


def _moved(plan, giver, taker, step):
    changed = list(plan)
    changed[giver] -= step
    changed[taker] += step
    return tuple(changed)


def _exchange_list(plan, giver, taker, step, width):
    return _moved(plan, giver, taker, step) if _allowed(plan, giver, taker, step, width) else plan


def _exchange_try(plan, giver, taker, step, width):
    """Move first, look afterwards."""
    new = _moved(plan, giver, taker, step)
    fine = min(new[giver], plan[taker]) > 0 and new[taker] <= width
    return new if fine else tuple(plan)


WRONG = {
    "predict_tokens": [
        (5, "every drafted token stayed"),
        (4.2, "second can only stay if the first did"),
        (3.2, "one token comes from"),
        (2.36, "drafted ones alone"),
        (100, "too high"),
    ],
    "expected_tokens": [
        (lambda a, n: 1 + n * a, "each drafted token by itself"),
        (lambda a, n: _expected_horner(a, n) - 1, "drafted tokens alone"),
        (lambda a, n: _expected_horner(a, n - 1) if n else 0, "one term missing"),
        (lambda a, n: (1 - a ** (n + 1)) / (1 - a), "ZeroDivisionError|division by 0"),
        (lambda a, n: a**n, "all stay"),
        (lambda a, n: None, "is a `return` missing"),
    ],
    "residual": [
        (_left, "divided by its sum"),
        (lambda p, q: (p - q).abs() / (p - q).abs().sum(), "sizes of the differences"),
        (lambda p, q: _left(q, p) / _left(q, p).sum(), "too much of"),
        (lambda p, q: p / p.sum(), "own distribution"),
        (lambda p, q: _left(p, q).softmax(-1), "softmax"),
        (lambda p, q: (p - q) / _left(p, q).sum(), "negative numbers"),
    ],
    "verify": [
        (_verify_with(stays=lambda p, q, c: c < p), "p alone"),
        (_verify_with(stays=lambda p, q, c: c * p < q), "q / p instead"),
        (_verify_with(fill=lambda p, q: p), "draw from the residual"),
        (_verify_with(own=False), "no token of its own"),
        (_verify_with(stays=lambda p, q, c: c * q <= p), "never stays"),
        (_verify_all_kept, "goes on after a refusal"),
        (_verify_most_likely, "temperature 0 alone"),
    ],
    "prompt_lookup": [
        (_lookup_latest, "should be the first"),
        (_lookup_itself, "found itself"),
        (_lookup_short_first, "begin with the longest"),
        (_lookup_full, "Are lengths below"),
        (_lookup_apart, "overlap the end"),
        (lambda ids, longest, count: _lookup_recursive(ids, longest, 99), "At most `count`"),
        (lambda ids, longest, count: _lookup_recursive(ids, longest, count + 1)[1:], "one token is skipped"),
    ],
    "predict_neurons": [
        (1536, "attention goes, too"),
        (2304, "as wide as queries"),
        (3073, "two vectors"),
        (6146, "one vector"),
    ],
    "exchange": [
        (lambda plan, giver, taker, step, width: _exchange_list(plan, taker, giver, step, width), "confused"),
        (lambda plan, giver, taker, step, width: _moved(plan, giver, taker, step)
         if plan[giver] > step and plan[taker] + step <= width else plan, "no MLP to put"),
        (lambda plan, giver, taker, step, width: _moved(plan, giver, taker, step)
         if plan[giver] >= step and 0 < plan[taker] <= width - step else plan, "whole block goes"),
        (lambda plan, giver, taker, step, width: _moved(plan, giver, taker, step)
         if plan[giver] > step and plan[taker] else plan, "wider than a whole block"),
        (lambda plan, giver, taker, step, width: _moved(plan, giver, taker, step)
         if plan[giver] > step and 0 < plan[taker] < width - step else plan, "may become whole"),
    ],
}

RIGHT = {
    "predict_tokens": [3.3616, 3.4],
    "expected_tokens": [_expected_formula, _expected_horner],
    "residual": [lambda p, q: _left(p, q) / _left(p, q).sum(), _residual_overlap],
    "verify": [_verify_while, _verify_at_once],
    "prompt_lookup": [_lookup_recursive, _lookup_table],
    "predict_neurons": [2048.67, 3_540_096 / 1728],
    "exchange": [_exchange_list, _exchange_try],
}
