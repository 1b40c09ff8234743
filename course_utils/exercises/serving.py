"""Exercises of the lesson on serving."""

import hashlib

import torch

from course_utils.checking import Case, Exercise, Mistake, Prediction
from course_utils.checking.cases import seeded
from course_utils.kvcache import block_tables, hashed, paged, scheduler

LENGTH = 300  # mean tokens of a running sequence, for the prediction


def _generator():
    return torch.Generator().manual_seed(seeded(10))


# --- lookup -----------------------------------------------------------------------------------------------


def _lookup_cases():
    tables = torch.tensor([[5, 2, 7], [1, 4, 0]])
    everywhere = torch.arange(12).expand(2, 12)
    return [
        Case(tables, everywhere, 4, label="every token of two sequences, blocks of 4"),
        Case(tables, torch.tensor([[11], [3]]), 4, label="one token each"),
        Case(tables[:1], torch.tensor([[0, 15, 16, 31, 32, 47]]), 16, label="edges of blocks of 16"),
        Case(tables, torch.tensor([[2, 0], [1, 2]]), 1, label="blocks of one token"),
        Case(torch.tensor([[9, 8], [7, 6], [5, 4]]).T, torch.tensor([[5, 1], [0, 3]]), 2,
             label="a strided table"),
        Case(torch.tensor([[5, 2, -1], [3, -1, -1], [1, 4, 0]], dtype=torch.int32),
             torch.tensor([[4, 0, 5], [2, 2, 1], [8, 3, 6]]), 3, label="padded int32 tables, blocks of 3"),
        Case(torch.tensor([[300, 7], [200, 500]]), torch.tensor([[9, 8], [1, 5], [0, 6]]).T[:, 1:], 5,
             label="ids above 255, strided positions, blocks of 5"),
    ]


def _draw_tables(numbers):
    def integers(most, rows, columns):
        return torch.tensor([[numbers.randrange(most) for _ in range(columns)] for _ in range(rows)])

    def case():
        rows, blocks, size = numbers.randint(1, 5), numbers.randint(1, 6), numbers.randint(1, 20)
        return Case(integers(900, rows, blocks), integers(blocks * size, rows, numbers.randint(1, 9)), size)

    return [case() for _ in range(4)]


LOOKUP = Exercise(
    reference=block_tables.lookup,
    cases=_lookup_cases,
    draw=_draw_tables,
    exact_dtype=False,
    mistakes=[
        Mistake(
            "the number of the block in the table, not the block itself. The table says which block that is.",
            lambda tables, positions, size: (positions // size, positions % size),
        ),
        Mistake(
            "division and remainder exchanged. The quotient says which block, the remainder where in it.",
            lambda tables, positions, size: (tables.gather(1, positions % size), positions // size),
        ),
        Mistake(
            "the first sequence's table used for all. Row b of the positions belongs to row b of the tables.",
            lambda tables, positions, size: (tables[0][positions // size], positions % size),
        ),
        Mistake(
            "counted from 1. Position 0 is the first token and lies in the first block.",
            lambda tables, positions, size: (
                tables.gather(1, ((positions + 1) // size).clamp(max=tables.shape[1] - 1)),
                (positions + 1) % size,
            ),
        ),
        Mistake(
            "the position in the text instead of the place in the block.",
            lambda tables, positions, size: (tables.gather(1, positions // size), positions),
        ),
        Mistake(
            "one number for both. It is asked for the block and the place in it, as two tensors.",
            lambda tables, positions, size: tables.gather(1, positions // size) * size + positions % size,
        ),
    ],
    hint="With blocks of 16, token 37 is in which block of its table, and where in it? Then: how does each "
         "row of positions find its own row of tables?",
)


# --- append -----------------------------------------------------------------------------------------------


def _append_cases():
    generator = _generator()

    def random(*shape):
        return torch.randn(*shape, generator=generator)

    strided = random(4, 8, 2, 3).transpose(0, 1)  # 8 blocks of 4 slots, not contiguous
    return [
        Case(random(6, 4, 2, 3), torch.tensor([[3, 1]]), torch.tensor([0]), random(1, 2, 5, 3),
             label="a first prompt"),
        Case(random(6, 4, 2, 3), torch.tensor([[3, 1], [5, 0]]), torch.tensor([4, 2]), random(2, 2, 1, 3),
             label="one token each for two sequences of different lengths"),
        Case(random(6, 4, 2, 3), torch.tensor([[3, 1], [5, 0]]), torch.tensor([1, 3]), random(2, 2, 4, 3),
             label="several tokens, across the edge of a block"),
        Case(random(9, 1, 1, 2), torch.tensor([[8, 2, 4]]), torch.tensor([1]), random(1, 1, 2, 2),
             label="blocks of one token"),
        Case(strided, torch.tensor([[7, 2]]), torch.tensor([3]), random(1, 2, 3, 3), label="a strided pool"),
        Case(random(5, 16, 3, 4).double(), torch.tensor([[4, 2], [1, 0]]), torch.tensor([15, 0]),
             random(2, 3, 2, 4).double(), label="float64, blocks of 16"),
        Case(random(7, 3, 2, 5), torch.tensor([[6, 0, -1], [2, 5, 3]]), torch.tensor([2, 4]),
             random(2, 2, 3, 5), label="blocks of 3, a padded table"),
        Case(random(6, 5, 1, 2).bfloat16(), torch.tensor([[0, 4], [2, 3], [1, 5]]), torch.tensor([0, 5, 3]),
             random(3, 2, 4, 1).bfloat16().transpose(1, 3),
             label="BF16, three sequences, strided new states"),
    ]


def _append_and_look(function, pool, tables, lengths, new):
    """Run the learner's function and return what the pool holds afterwards."""
    function(pool, tables, lengths, new)
    return pool


def _append(pool, tables, lengths, new, *, start=0, use_lengths=True, use_table=True, steps=True, flat=False):
    """paged.append with one thing done wrongly."""
    positions = (lengths[:, None] if use_lengths else 0 * lengths[:, None]) + start
    new = new if steps else new[:, :, -1:]  # one place for all: the last one written stays
    positions = positions + torch.arange(new.shape[2])
    size = pool.shape[1]
    index = positions // size
    ids = tables.gather(1, index.clamp(max=tables.shape[1] - 1)) if use_table else index
    if flat:
        pool.reshape(-1, *pool.shape[2:])[ids * size + positions % size] = new.transpose(1, 2)
    else:
        pool[ids, positions % size] = new.transpose(1, 2)


APPEND = Exercise(
    reference=paged.append,
    cases=_append_cases,
    call=_append_and_look,
    mistakes=[
        Mistake(
            "the pool is as it was before. Write into the tensor that you are given, not into a copy.",
            lambda pool, tables, lengths, new: None,
        ),
        Mistake(
            "written at the beginning. The first lengths[b] places of a sequence are taken already.",
            lambda *args: _append(*args, use_lengths=False),
        ),
        Mistake(
            "one place too far. With lengths[b] tokens stored, the next one has position lengths[b].",
            lambda *args: _append(*args, start=1),
        ),
        Mistake(
            "block 0, 1, 2 of the pool. A sequence's blocks are those in its table, wherever they lie.",
            lambda *args: _append(*args, use_table=False),
        ),
        Mistake(
            "all new tokens at one place. Token i of the new ones goes i places further.",
            lambda *args: _append(*args, steps=False),
        ),
        Mistake(
            "a strided pool was not changed. `reshape` makes a copy of it, and the copy was written to.",
            lambda *args: _append(*args, flat=True),
        ),
    ],
    hint="Make the positions first, [batch, n]. `block_tables.lookup` tells where they lie. Then look at the "
         "order of the dimensions: heads come before tokens in `new`, after them in the pool.",
)


# --- gather -----------------------------------------------------------------------------------------------


def _gather_cases():
    generator = _generator()
    pool = torch.randn(6, 4, 2, 3, generator=generator)
    return [
        Case(pool, torch.tensor([[3, 1]]), 8, label="two whole blocks"),
        Case(pool, torch.tensor([[3, 1], [5, 0]]), 6, label="two sequences, the last block half full"),
        Case(pool, torch.tensor([[4, 2, 0]]), 1, label="one token"),
        Case(pool, torch.tensor([[2, 5], [2, 1]]), 7, label="a shared block"),
        Case(pool.transpose(2, 3), torch.tensor([[5, 0, 1]]), 10, label="a strided pool"),
        Case(torch.randn(3, 16, 5, 2, generator=generator).double(), torch.tensor([[2], [0]]), 9,
             label="float64, blocks of 16"),
        Case(torch.randn(7, 3, 2, 5, generator=generator).half(), torch.tensor([[6, 0, 2], [2, 5, 2]]), 7,
             label="FP16, blocks of 3"),
        Case(torch.randn(4, 2, 1, 3, generator=generator), torch.tensor([[3, 1], [0, 2]]).T, 4,
             label="a strided table, one head"),
    ]


def _rows(pool, tables):
    return pool[tables].flatten(1, 2)


GATHER = Exercise(
    reference=paged.gather,
    cases=_gather_cases,
    exact_dtype=True,
    mistakes=[
        Mistake(
            "the first blocks of the pool. Take those in the table, in the table's order.",
            lambda pool, tables, n: _rows(pool, torch.arange(tables.shape[1]).expand_as(tables))[:, :n]
            .transpose(1, 2),
        ),
        Mistake(
            "the blocks sorted. The order of the table is the order of the text.",
            lambda pool, tables, n: _rows(pool, tables.sort(dim=1).values)[:, :n].transpose(1, 2),
        ),
        Mistake(
            "tokens before heads. The attention wants [batch, heads, tokens, head_dim].",
            lambda pool, tables, n: _rows(pool, tables)[:, :n],
        ),
        Mistake(
            "the numbers renamed instead of moved: `reshape` or `view` keeps their order in memory. To "
            "exchange two dimensions takes `transpose`.",
            lambda pool, tables, n: _rows(pool, tables)[:, :n].reshape(
                tables.shape[0], pool.shape[2], n, pool.shape[3]),
        ),
        Mistake(
            "whole blocks. Only the first `tokens` places are asked for.",
            lambda pool, tables, n: _rows(pool, tables).transpose(1, 2),
        ),
        Mistake(
            "the last places instead of the first ones.",
            lambda pool, tables, n: _rows(pool, tables)[:, -n:].transpose(1, 2),
        ),
    ],
    hint="`pool[tables]` is [batch, blocks, block size, heads, head_dim]. Which two dimensions make the "
         "text, and where do they have to go?",
)


# --- copy_on_write ----------------------------------------------------------------------------------------


def _copy_cases():
    return [
        Case([2, 0], 1, [2, 0, 1, 0], [3, 1], label="a block that two tables share"),
        Case([2, 0], 0, [2, 0, 1, 0], [3, 1], label="a block of one's own"),
        Case([4], 0, [0, 0, 0, 0, 3], [0, 1, 2, 3], label="a block that three tables share"),
        Case([1, 0, 2], 2, [1, 1, 2, 0], [3], label="the last free block"),
        Case([1, 0], 1, [2, 1], [], label="a shared block, and none is free",
             raises=block_tables.OutOfBlocks),
        Case([1, 0], 0, [2, 1], [], label="a block of one's own, and none is free"),
        Case([5, 3, 0, 2], 2, [4, 0, 1, 2, 0, 1, 0], [6, 1, 4], label="in the middle of a table"),
        Case([0, 2], 0, [3, 0, 1], [], label="a block that three share, and none is free",
             raises=block_tables.OutOfBlocks),
    ]


def _draw_tables_to_copy(numbers):
    def case(shared):
        blocks = numbers.sample(range(12), 9)
        table, free = blocks[:4], blocks[4:]
        references = [0] * 12
        for block in table:
            references[block] = numbers.randint(2, 5) if shared else 1
        return Case(table, numbers.randrange(4), references, free)

    return [case(True), case(False), case(True)]


def _copy_and_look(function, table, index, references, free):
    """Run the learner's function and return its answer and the three lists afterwards."""
    copied = function(table, index, references, free)
    return {"returned": copied, "table": table, "references": references, "free": free}


def _copy(table, index, references, free, *, always=False, take=-1, pop=True, decrease=True, release=False,
          count=True, enter=True, swap=False):
    """copy_on_write with one thing done wrongly."""
    old = table[index]
    if references[old] == 1 and not always:
        return None
    if not free:
        raise block_tables.OutOfBlocks("none free")
    new = free.pop(take) if pop else free[take]
    references[old] -= 1 if decrease else 0
    references[new] = 1 if count else references[new]
    if enter:
        table[index] = new
    if release:
        free.append(old)
    return (new, old) if swap else (old, new)


COPY_ON_WRITE = Exercise(
    reference=block_tables.copy_on_write,
    cases=_copy_cases,
    draw=_draw_tables_to_copy,
    call=_copy_and_look,
    mistakes=[
        Mistake(
            "no copy is ever made. Who writes into a shared block changes the text of the others.",
            lambda table, index, references, free: None,
        ),
        Mistake(
            "a copy of a block that nobody else uses. It can be written as it is.",
            lambda *args: _copy(*args, always=True),
        ),
        Mistake(
            "the old block's count was not lowered. It stands in one table less; it would never get free.",
            lambda *args: _copy(*args, decrease=False),
        ),
        Mistake(
            "the old block was put among the free ones. Others still read it.",
            lambda *args: _copy(*args, release=True),
        ),
        Mistake(
            "the new block was not counted. It stands in one table, so its count is 1.",
            lambda *args: _copy(*args, count=False),
        ),
        Mistake(
            "the table still names the old block.",
            lambda *args: _copy(*args, enter=False),
        ),
        Mistake(
            "the new block is still among the free ones. The next who asks would get it, too.",
            lambda *args: _copy(*args, pop=False),
        ),
        Mistake(
            "the pair turned round. It is (old block, new block).",
            lambda *args: _copy(*args, swap=True),
        ),
        Mistake(
            "the first free block taken. The last of the list is asked for.",
            lambda *args: _copy(*args, take=0),
        ),
    ],
    hint="Three lists have to fit together afterwards: each block is either in `free`, or its count says in "
         "how many tables it stands.",
)


# --- block_keys -------------------------------------------------------------------------------------------


def _keys_cases():
    return [
        Case([5, 300, 5, 70_000, 9], 2, label="two full blocks of 2, one token left over"),
        Case([1, 2, 3, 1, 2, 3], 3, label="the same tokens twice: two blocks, two keys"),
        Case([7], 1, label="one token, blocks of 1"),
        Case([7, 8, 9], 4, label="no full block"),
        Case([], 16, label="no token"),
        Case(list(range(49_100, 49_148)), 16, label="three blocks of 16, ids above 32,767"),
        Case((0, 0, 0, 0), 2, label="a tuple of zeros"),
        Case([3, 2, 1, 0], 4, label="just one full block"),
        Case([2**33, 1], 2, label="an id of more than 32 bits"),
    ]


def _keys(ids, block_size, *, chain=True, width=8, order="little", partial=False, hexadecimal=True,
          text=False):
    """hashed.block_keys with one thing done otherwise."""
    keys, before = [], b""
    end = len(ids) + (block_size - 1 if partial else 0)
    for stop in range(block_size, end + 1, block_size):
        block = b"".join((int(i) % 256**width).to_bytes(width, order) for i in ids[stop - block_size : stop])
        digest = hashlib.sha256(before + block).digest()
        keys.append(digest.hex() if hexadecimal else digest)
        before = (digest.hex().encode() if text else digest) if chain else b""
    return keys


def _draw_texts(numbers):
    def case():
        ids = [numbers.randrange(100_000) for _ in range(numbers.randint(0, 30))]
        return Case(ids, numbers.randint(1, 9))

    return [case() for _ in range(5)]


BLOCK_KEYS = Exercise(
    reference=hashed.block_keys,
    cases=_keys_cases,
    draw=_draw_texts,
    mistakes=[
        Mistake("a block's own tokens only. Its keys and values depend on all tokens before it: the key of "
                "the block before goes in first.",
                lambda ids, size: _keys(ids, size, chain=False)),
        Mistake("the whole beginning hashed anew for each block. That tells texts apart, too, but takes "
                "longer with each block. The key before stands for all that came before.",
                lambda ids, size: [hashlib.sha256(b"".join(int(i).to_bytes(8, "little") for i in ids[:end]))
                                   .hexdigest() for end in range(size, len(ids) + 1, size)]),
        Mistake("a key for a last block that is not full. It will change when the next token comes.",
                lambda ids, size: _keys(ids, size, partial=True)),
        Mistake("4 bytes for a token id. 8 are asked for.",
                lambda ids, size: _keys(ids, size, width=4)),
        Mistake("the bytes in the other order: the lowest comes first, which Python calls little.",
                lambda ids, size: _keys(ids, size, order="big")),
        Mistake("bytes. 64 hexadecimal digits are asked for: `hexdigest()`, or `.hex()` of the bytes.",
                lambda ids, size: _keys(ids, size, hexadecimal=False)),
        Mistake("the key before was put in as its 64 digits. Its 32 bytes are asked for: `digest()`.",
                lambda ids, size: _keys(ids, size, text=True)),
    ],
    hint="Keep one variable for the 32 bytes of the key before, empty at first. For each full block: that, "
         "then the tokens' bytes, through SHA-256.",
)


# --- plan_step --------------------------------------------------------------------------------------------


def _plan_cases():
    return [
        Case([1, 1, 1], 8, label="three who write, room for more"),
        Case([1, 20, 1], 8, label="two who write and a prompt"),
        Case([20, 5, 1], 8, label="the first prompt takes all that is left"),
        Case([3, 9, 1, 4], 8, label="what the first prompt leaves goes to the second"),
        Case([9, 1, 1], 2, label="the budget just suffices for those who write"),
        Case([2, 3, 1], 100, label="a large budget"),
        Case([6, 7], 6, label="prompts only"),
        Case([], 4, label="nobody"),
        Case([1, 1, 5], 1, label="too small a budget", raises=ValueError),
        Case([1], 0, label="no budget at all", raises=ValueError),
        Case([2, 2, 2, 2], 5, label="short prompts"),
    ]


def _plan(unread, budget, *, writers_first=True, share=False, cap=True, whole=False):
    """scheduler.plan_step with one thing done wrongly."""
    writers = sum(n == 1 for n in unread)
    if budget < writers:
        raise ValueError("too small")
    left = budget - writers if writers_first else budget
    plan = []
    waiting = max(1, sum(n > 1 for n in unread))
    each = left // waiting
    for n in unread:
        if n == 1 and writers_first:
            plan.append(1)
            continue
        take = min(n, each) if share else min(n, left) if cap else left
        take = 0 if whole and take < n else take
        plan.append(take)
        left -= 0 if share else take
    return plan


def _draw_steps(numbers):
    def case():
        unread = [numbers.choice([1, 1, numbers.randint(2, 40)]) for _ in range(numbers.randint(1, 7))]
        return Case(unread, unread.count(1) + numbers.randint(0, 50))

    return [case() for _ in range(6)]


def _one_for_everybody(unread, budget):
    if budget < unread.count(1):
        raise ValueError("too small")
    plan, left = [0] * len(unread), budget
    for most in (1, budget):
        for index, tokens in enumerate(unread):
            more = min(tokens - plan[index], most, left)
            plan[index] += more
            left -= more
    return plan


PLAN_STEP = Exercise(
    reference=scheduler.plan_step,
    cases=_plan_cases,
    draw=_draw_steps,
    mistakes=[
        Mistake("first come, first served from the start: a long prompt leaves nothing for those who write.",
                lambda unread, budget: _plan(unread, budget, writers_first=False)),
        Mistake("the rest shared out among the prompts. The first one gets as much as it can use.",
                lambda unread, budget: _plan(unread, budget, share=True)),
        Mistake("one token for everybody first. A prompt that has to wait gets nothing: the first one takes "
                "all that those who write leave.", _one_for_everybody),
        Mistake("more than a prompt has. It reads at most its unread tokens, the rest is for the next one.",
                lambda unread, budget: _plan(unread, budget, cap=False)),
        Mistake("whole prompts only. A prompt that does not fit is read in part.",
                lambda unread, budget: _plan(unread, budget, whole=True)),
        Mistake("as if there were no budget.", lambda unread, budget: list(unread)),
    ],
    hint="Two rounds over the list: those with one unread token, then the others. Between the two: what is "
         "left, and is it below zero?",
)


# --- predictions ------------------------------------------------------------------------------------------


def empty_share(block_size=16):
    """Share of reserved slots that are empty: every remainder 0 ... block_size - 1 is as likely."""
    empty = (block_size - 1) / 2
    return empty / (LENGTH + empty)


def steps(prompt=450, writing=4, budget=64):
    """Steps in which a prompt is read while others write."""
    return -(-prompt // (budget - writing))


EXERCISES = [
    Prediction(
        id="predict_empty_share",
        answer=empty_share,
        rtol=0.1,
        unit="share",
        mistakes=[
            (lambda: 15 / (LENGTH + 15), "that is the worst case, a last block with one token in it."),
            (lambda: 0.5, "half of the last block is empty, but a sequence has many blocks before that."),
            (lambda: 100 * empty_share(), "that is per cent. Give the share as a number from 0 to 1."),
            (0, "the last block of a sequence is rarely full."),
        ],
        hint="Only the last block can have empty slots. How many has it on average, and of how many slots?",
    ),
    LOOKUP,
    APPEND,
    GATHER,
    COPY_ON_WRITE,
    BLOCK_KEYS,
    Prediction(
        id="predict_steps",
        answer=steps,
        rtol=0.01,
        unit="steps",
        mistakes=[
            (lambda: 450 / 60, "there are no half steps: the last one reads what is left."),
            (7, "seven steps read 420 tokens: what about the other 30?"),
            (450, "one token a step: but the budget is 64."),
            (1, "the whole prompt at once: that is what the budget prevents."),
        ],
        hint="How many tokens of a step's budget are left for the prompt when four others write one each?",
    ),
    PLAN_STEP,
]
