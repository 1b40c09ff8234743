"""Lesson serving: wrong answers are rejected for their reason, right ones written otherwise pass."""

import hashlib
import itertools
import struct

import numpy as np
import torch

from course_utils.kvcache.block_tables import OutOfBlocks

# --- lookup -------------------------------------------------------------------------------------------------


def _lookup_by_loops(tables, positions, block_size):
    ids, offsets = torch.empty_like(positions), torch.empty_like(positions)
    for b in range(positions.shape[0]):
        for i in range(positions.shape[1]):
            quotient, remainder = divmod(int(positions[b, i]), block_size)
            ids[b, i], offsets[b, i] = tables[b, quotient], remainder
    return ids, offsets


def _lookup_by_rows(tables, positions, block_size):
    rows = torch.arange(len(tables)).unsqueeze(1)
    index = torch.div(positions, block_size, rounding_mode="floor")
    return [tables[rows, index], positions - index * block_size]


# --- append -------------------------------------------------------------------------------------------------


def _append_by_loops(pool, tables, lengths, new, shift=0):
    for b in range(new.shape[0]):
        for i in range(new.shape[2]):
            position = int(lengths[b]) + i + shift
            pool[tables[b, position // pool.shape[1]], position % pool.shape[1]] = new[b, :, i]


def _append_by_sequence(pool, tables, lengths, new):
    size = pool.shape[1]
    for table, length, states in zip(tables, lengths.tolist(), new, strict=True):
        places = torch.arange(length, length + states.shape[1])
        pool.index_put_((table[places // size], places % size), states.permute(1, 0, 2))
    return pool


def _append_to_copy(pool, tables, lengths, new):
    pool = pool.clone()
    _append_by_loops(pool, tables, lengths, new)
    return pool


def _append_from_start(pool, tables, lengths, new):
    _append_by_loops(pool, tables, torch.zeros_like(lengths), new)


def _append_past_end(pool, tables, lengths, new):
    places = lengths[:, None] + 1 + torch.arange(new.shape[2])
    ids = tables.gather(1, (places // pool.shape[1]).clamp(max=tables.shape[1] - 1))
    pool[ids, places % pool.shape[1]] = new.transpose(1, 2)


def _append_without_table(pool, tables, lengths, new):
    places = lengths[:, None] + torch.arange(new.shape[2])
    pool[places // pool.shape[1], places % pool.shape[1]] = new.transpose(1, 2)


def _append_at_one_place(pool, tables, lengths, new):
    for i in range(new.shape[2]):
        _append_by_loops(pool, tables, lengths, new[:, :, i : i + 1])


def _append_flat(pool, tables, lengths, new):
    places = lengths[:, None] + torch.arange(new.shape[2])
    slots = tables.gather(1, places // pool.shape[1]) * pool.shape[1] + places % pool.shape[1]
    pool.reshape(-1, *pool.shape[2:])[slots] = new.transpose(1, 2)


# --- gather -------------------------------------------------------------------------------------------------


def _gather_by_loops(pool, tables, tokens):
    size = pool.shape[1]
    texts = [torch.stack([pool[table[i // size], i % size] for i in range(tokens)]) for table in tables]
    return torch.stack(texts).permute(0, 2, 1, 3)


def _gather_by_select(pool, tables, tokens):
    out = []
    for table in tables:
        whole = torch.cat([pool[block] for block in table.tolist()])
        out.append(whole[:tokens].movedim(1, 0))
    return torch.stack(out)


def _in_order(pool, tables, tokens):
    whole = pool[: tables.shape[1]].reshape(-1, *pool.shape[2:])[:tokens].transpose(0, 1)
    return torch.stack([whole] * len(tables))


# --- copy_on_write ------------------------------------------------------------------------------------------


def _copy_plainly(table, index, references, free):
    block = table[index]
    if references[block] > 1:
        if len(free) == 0:
            raise OutOfBlocks("the pool is full")
        table[index] = fresh = free.pop()
        references[fresh] = 1
        references[block] = references[block] - 1
        return (block, fresh)


def _copy_by_slices(table, index, references, free):
    shared = table[index]
    if references[shared] < 2:
        return None
    try:
        mine = free[-1]
    except IndexError:
        raise OutOfBlocks("full") from None
    del free[-1]
    references[shared], references[mine] = references[shared] - 1, references[mine] + 1
    table[index : index + 1] = [mine]
    return [shared, mine]


def _spoiled(spoil):
    """A right copy, after which something is put wrong."""
    def copy(table, index, references, free):
        pair = _copy_plainly(table, index, references, free)
        if pair:
            spoil(table, index, references, free, *pair)
        return pair
    return copy


def _keep_count(table, index, references, free, old, new):
    references[old] += 1


def _release(table, index, references, free, old, new):
    free.append(old)


def _uncounted(table, index, references, free, old, new):
    references[new] = 0


def _stay(table, index, references, free, old, new):
    table[index] = old


def _still_free(table, index, references, free, old, new):
    free.append(new)


def _always_copy(table, index, references, free):
    if not free:
        raise OutOfBlocks("full")
    old, new = table[index], free.pop()
    references[old] -= 1
    references[new] = 1
    table[index] = new
    return old, new


def _turned(table, index, references, free):
    pair = _copy_plainly(table, index, references, free)
    return pair and pair[::-1]


def _first_free(table, index, references, free):
    free.reverse()
    pair = _copy_plainly(table, index, references, free)
    free.reverse()
    return pair


def _lower_then_look(table, index, references, free):
    """Raises the right error, but has changed a count by then."""
    old = table[index]
    if references[old] == 1:
        return None
    references[old] -= 1
    if not free:
        raise OutOfBlocks("full")
    table[index] = free.pop()
    references[table[index]] = 1
    return old, table[index]


def _pop_anyway(table, index, references, free):
    """No look at the list: IndexError instead of OutOfBlocks."""
    if references[table[index]] == 1:
        return None
    old, new = table[index], free.pop()
    references[old], references[new], table[index] = references[old] - 1, 1, new
    return old, new


# --- block_keys ---------------------------------------------------------------------------------------------


def _keys_by_struct(ids, block_size, form="<{}q", chain=True, last=False):
    keys, before = [], b""
    for start in range(0, len(ids), block_size):
        block = ids[start : start + block_size]
        if len(block) < block_size and not last:
            break
        digest = hashlib.sha256(before + struct.pack(form.format(len(block)), *block))
        keys.append(digest.hexdigest())
        before = digest.digest() if chain else b""
    return keys


def _keys_by_update(ids, block_size):
    keys = []
    for number in range(len(ids) // block_size):
        hasher = hashlib.sha256(bytes.fromhex(keys[-1]) if keys else b"")
        for token in ids[number * block_size : (number + 1) * block_size]:
            hasher.update(token.to_bytes(8, "little"))
        keys.append(hasher.hexdigest())
    return keys


def _keys_by_digits(ids, block_size):
    keys, before = [], ""
    for number in range(len(ids) // block_size):
        block = ids[number * block_size : (number + 1) * block_size]
        before = hashlib.sha256(before.encode() + struct.pack(f"<{len(block)}q", *block)).hexdigest()
        keys.append(before)
    return keys


# --- plan_step ----------------------------------------------------------------------------------------------


def _plan_by_order(unread, budget):
    order = sorted(range(len(unread)), key=lambda i: (unread[i] > 1, i))
    plan = [0] * len(unread)
    for i in order:
        plan[i] = min(unread[i], budget)
        if unread[i] == 1 and not plan[i]:
            raise ValueError("too small a budget")
        budget -= plan[i]
    if budget < 0:
        raise ValueError("too small a budget")
    return plan


def _plan_with_generator(unread, budget):
    spare = budget - unread.count(1)
    if spare < 0:
        raise ValueError("no")
    starts = itertools.accumulate((n for n in unread if n > 1), initial=0)
    return [1 if n == 1 else max(0, min(n, spare - next(starts))) for n in unread]


def _plan_greedily(unread, budget):
    plan = []
    if budget < unread.count(1):
        raise ValueError("no")
    for n in unread:
        plan.append(min(n, budget))
        budget -= plan[-1]
    return plan


def _plan_fairly(unread, budget):
    plan = [min(1, max(0, budget - i)) for i in range(len(unread))]
    if budget < unread.count(1):
        raise ValueError("no")
    for i, n in enumerate(unread):
        plan[i] += min(n - plan[i], budget - sum(plan))
    return plan


def _plan_evenly(unread, budget):
    spare, long = budget - unread.count(1), sum(n > 1 for n in unread)
    if spare < 0:
        raise ValueError("no")
    return [1 if n == 1 else min(n, spare // long) for n in unread]


def _plan_whole(unread, budget):
    spare, plan = budget - unread.count(1), []
    if spare < 0:
        raise ValueError("no")
    for n in unread:
        fits = n == 1 or n <= spare
        plan.append(n if fits else 0)
        spare -= n if fits and n > 1 else 0
    return plan


WRONG = {
    "predict_empty_share": [
        (0.0476, "worst case"),
        (0.5, "many blocks before"),
        (2.4, "per cent"),
        (0, "rarely full"),
    ],
    "lookup": [
        (lambda t, p, s: (p // s, p % s), "number of the block in the table"),
        (lambda t, p, s: (t.gather(1, p % s), p // s), "exchanged"),
        (lambda t, p, s: (t[0, p // s], p % s), "first sequence"),
        (lambda t, p, s: (t.gather(1, p // s), p), "position in the text"),
        (lambda t, p, s: t.gather(1, p // s) * s + p % s, "one number for both"),
        (lambda t, p, s: (t.gather(1, (1 + p).div(s, rounding_mode="floor").clamp(max=t.shape[1] - 1)),
                          (1 + p) % s), "counted from 1"),
        (lambda t, p, s: (t.gather(1, p // s).to(torch.uint8), p % s), "above 255"),
        (lambda t, p, s: (t.gather(1, p >> (s.bit_length() - 1)), p & (s - 1)), "blocks of 3"),
    ],
    "append": [
        (_append_to_copy, "not into a copy"),
        (_append_from_start, "at the beginning"),
        (_append_past_end, "one place too far"),
        (_append_without_table, "block 0, 1, 2"),
        (_append_at_one_place, "all new tokens at one place"),
        (_append_flat, "strided pool was not changed"),
    ],
    "gather": [
        (_in_order, "first blocks of the pool"),
        (lambda p, t, n: _gather_by_loops(p, torch.sort(t, dim=1)[0], n), "sorted"),
        (lambda p, t, n: _gather_by_loops(p, t, n).transpose(1, 2), "tokens before heads"),
        (lambda p, t, n: p[t].flatten(1, 2)[:, :n].reshape(len(t), p.shape[2], n, -1), "renamed instead"),
        (lambda p, t, n: _gather_by_select(p, t, 10**6), "whole blocks"),
        (lambda p, t, n: _gather_by_select(p.float(), t, n), "float"),
        (lambda p, t, n: p[t].flatten(1, 2).transpose(1, 2)[:, :, -n:], "last places"),
    ],
    "copy_on_write": [
        (lambda table, index, references, free: None, "no copy is ever made"),
        (_always_copy, "nobody else uses"),
        (_spoiled(_keep_count), "was not lowered"),
        (_spoiled(_release), "Others still read"),
        (_spoiled(_uncounted), "was not counted"),
        (_spoiled(_stay), "still names the old"),
        (_spoiled(_still_free), "among the free ones. The next"),
        (_turned, "turned round"),
        (_first_free, "first free block"),
        (_pop_anyway, "OutOfBlocks raised"),
        (_lower_then_look, "(?s)none is free.*references"),
    ],
    "block_keys": [
        (lambda ids, size: [_keys_by_struct(ids[:end], end)[0] for end in range(size, len(ids) + 1, size)],
         "hashed anew"),
        (lambda ids, size: _keys_by_struct(ids, size, chain=False), "own tokens only"),
        (lambda ids, size: _keys_by_struct(ids, size, last=True), "not full"),
        (lambda ids, size: _keys_by_struct([i % 2**31 for i in ids], size, "<{}i"), "4 bytes"),
        (lambda ids, size: _keys_by_struct(ids, size, ">{}q"), "other order"),
        (lambda ids, size: [bytes.fromhex(key) for key in _keys_by_struct(ids, size)], "hexadecimal digits"),
        (_keys_by_digits, "as its 64 digits"),
        (lambda ids, size: _keys_by_struct(ids, size)[-1:], "two full blocks"),
        (lambda ids, size: _keys_by_struct([i % 2**16 for i in ids], size), "two full blocks"),
    ],
    "predict_steps": [
        (7.5, "half steps"),
        (7, "other 30"),
        (450, "one token a step"),
        (1, "at once"),
    ],
    "plan_step": [
        (_plan_fairly, "one token for everybody"),
        (_plan_greedily, "leaves nothing for those who write"),
        (_plan_evenly, "shared out"),
        (_plan_whole, "whole prompts only"),
        (lambda unread, budget: list(unread), "no budget"),
        (lambda unread, budget: _plan_by_order(unread, max(budget, unread.count(1))), "too small a budget"),
    ],
}

RIGHT = {
    "predict_empty_share": [7.5 / 307.5, 8 / 308],
    "lookup": [_lookup_by_loops, _lookup_by_rows],
    "append": [_append_by_loops, _append_by_sequence],
    "gather": [_gather_by_loops, _gather_by_select],
    "copy_on_write": [_copy_plainly, _copy_by_slices],
    "block_keys": [_keys_by_struct, _keys_by_update],
    "predict_steps": [8, 8.0],
    "plan_step": [_plan_by_order, _plan_with_generator,
                  lambda unread, budget: tuple(map(np.int64, _plan_by_order(unread, budget)))],
}
