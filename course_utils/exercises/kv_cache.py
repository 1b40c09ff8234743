"""Exercises of the lesson on the KV cache."""

from types import SimpleNamespace

import torch

from course_utils import costs
from course_utils.checking import Case, Exercise, Mistake, Prediction
from course_utils.kvcache import block_tables, paged, quantized


def _generator():
    return torch.Generator().manual_seed(10)


# --- kv_bytes_per_token -----------------------------------------------------------------------------------


def _config(layers, heads, kv_heads, head_dim, hidden=None):
    return SimpleNamespace(num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv_heads,
                           head_dim=head_dim, hidden_size=hidden or heads * head_dim)  # fmt: skip


SMOLLM = _config(30, 9, 3, 64)


def _bytes_cases():
    return [
        Case(SMOLLM, 16, label="SmolLM2-135M in BF16"),
        Case(SMOLLM, 32, label="the same in FP32"),
        Case(SMOLLM, label="no bits given"),
        Case(_config(40, 40, 40, 128), 16, label="LLaMA-13B: a key for each query head"),
        Case(_config(80, 64, 8, 128), 4, label="Llama-3-70B, keys and values in INT4"),
        Case(_config(18, 8, 1, 256, hidden=3072), 8, label="heads wider than the hidden size, INT8"),
        Case(_config(3, 4, 1, 5), 3, label="3 bits: bytes of all layers together, rounded down"),
        Case(_config(5, 6, 3, 7), bits=1, label="1 bit, odd sizes"),
    ]


KV_BYTES_PER_TOKEN = Exercise(
    reference=costs.kv_bytes_per_token,
    cases=_bytes_cases,
    exact_dtype=True,
    mistakes=[
        Mistake(
            "half of it. A token leaves a key and a value in each layer.",
            lambda c, bits=16: c.num_hidden_layers * c.num_key_value_heads * c.head_dim * bits // 8,
        ),
        Mistake(
            "the query heads counted. Queries are used once and thrown away; which heads are kept?",
            lambda c, bits=16: 2 * c.num_hidden_layers * c.num_attention_heads * c.head_dim
            * bits // 8,
        ),
        Mistake(
            "the hidden size taken for the width of a key. That is head_dim for each key-value head.",
            lambda c, bits=16: 2 * c.num_hidden_layers * c.hidden_size * bits // 8,
        ),
        Mistake(
            "one layer only. Each layer has keys and values of its own.",
            lambda c, bits=16: 2 * c.num_key_value_heads * c.head_dim * bits // 8,
        ),
        Mistake(
            "one head only. Each key-value head has a key and a value of head_dim numbers.",
            lambda c, bits=16: 2 * c.num_hidden_layers * c.head_dim * bits // 8,
        ),
        Mistake(
            "bits. A byte has 8 of them.",
            lambda c, bits=16: 2 * c.num_hidden_layers * c.num_key_value_heads * c.head_dim * bits,
        ),
        Mistake(
            "16 bits a number whatever `bits` says.",
            lambda c, bits=16: costs.kv_bytes_per_token(c, 16),
        ),
        Mistake(
            "numbers, not bytes. How many bytes does one number of so many bits take?",
            lambda c, bits=16: costs.kv_bytes_per_token(c, 8),
        ),
    ],
    hint="What is kept for one token in one layer, for one head? Then count layers, heads and bytes.",
)


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


LOOKUP = Exercise(
    reference=block_tables.lookup,
    cases=_lookup_cases,
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


# --- predictions ------------------------------------------------------------------------------------------

TOKENS = 8192  # of context, for the first prediction
LENGTH = 300  # mean tokens of a running sequence, for the second


def context_megabytes():
    """The KV cache of 8,192 tokens of SmolLM2-135M in BF16, in MB."""
    return TOKENS * costs.kv_bytes_per_token(SMOLLM) / 1e6


def empty_share(block_size=16):
    """Share of reserved slots that are empty: every remainder 0 ... block_size - 1 is as likely."""
    empty = (block_size - 1) / 2
    return empty / (LENGTH + empty)


EXERCISES = [
    Prediction(
        id="predict_context_megabytes",
        answer=context_megabytes,
        rtol=0.06,
        unit="MB",
        mistakes=[
            (lambda: context_megabytes() / 2, "half of it: keys and values are kept, both."),
            (lambda: 3 * context_megabytes(), "the query heads counted. Only key-value heads are kept."),
            (lambda: 2 * context_megabytes(), "FP32 counted: BF16 takes 2 bytes a number."),
            (lambda: context_megabytes() / 30, "one layer only: there are 30."),
        ],
        hint="For one token: 2 (key and value) times layers times key-value heads times 64 numbers. Then "
             "bytes, then tokens.",
    ),
    KV_BYTES_PER_TOKEN,
    Prediction(
        id="predict_bits",
        answer=lambda: quantized.bits_per_number(4, 32, 64),
        rtol=0.005,
        unit="bits",
        mistakes=[
            (4, "the codes alone. Each group brings a scale and a minimum along."),
            (4.375, "the minimum forgotten: a group has two numbers of 16 bits."),
            (5.5, "both overheads added. Half of the numbers are keys and have the one, half values."),
            (5, "that is right for the keys. A value's group is its token's 64 channels."),
            (4.5, "that is right for the values. The keys' groups have 32 tokens."),
        ],
        hint="Keys: 32 numbers share 2 x 16 bits. Values: 64 numbers share as much. Then the mean.",
    ),
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
]
