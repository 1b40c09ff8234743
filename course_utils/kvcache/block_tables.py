"""The bookkeeping of paged attention: who owns which block of the KV cache.

The cache is cut into blocks of a few tokens, as an operating system cuts memory into pages. A sequence (a
request that is being answered) has a block table: its first `block_size` tokens are in block table[0], the
next ones in table[1], and so on, wherever these blocks lie. A reference count for each block says in how
many tables it stands. A sequence that shares a block must not write into it: it gets a copy first
(copy-on-write). W. Kwon et al., "Efficient Memory Management for Large Language Model Serving with
PagedAttention", arXiv 2309.06180, section 4. The keys and values themselves are in paged.py.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # hints only: bookkeeping needs no torch
    import torch


class OutOfBlocks(RuntimeError):
    """The pool has too few free blocks for what was asked. Nothing was changed."""


def lookup(tables: torch.Tensor, positions: torch.Tensor,
           block_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Where tokens of several sequences lie in the pool.

    Args:
        tables: integer tensor [batch, most blocks]: the block table of each sequence, padded at the end.
        positions: integer tensor [batch, n]: positions of tokens in their sequence, 0 is the first token.
        block_size: tokens in a block.

    Returns:
        Two integer tensors [batch, n]: the id of the block that holds each token, and its place in that
        block, from 0 to block_size - 1.
    """
    blocks = tables.gather(1, positions // block_size)
    return blocks, positions % block_size


def copy_on_write(table: list[int], index: int, references: list[int],
                  free: list[int]) -> tuple[int, int] | None:
    """Make block number `index` of a block table safe to write to.

    A block that stands in this table only may be written: nothing changes. A shared block is replaced in the
    table by a free one: all three lists are brought up to date in place.

    Args:
        table: block ids of one sequence.
        index: position in the table, 0 is the first block.
        references: in how many tables each block of the pool stands.
        free: ids of the free blocks; the last one is taken first.

    Returns:
        None when the block was not shared; else the pair (old block, new block): the caller then copies the
        keys and values.

    Raises:
        OutOfBlocks: a copy is needed and no block is free. Nothing was changed.
    """
    old = table[index]
    if references[old] == 1:
        return None
    if not free:
        raise OutOfBlocks("no free block for a copy: free a sequence first")
    new = free.pop()
    references[old] -= 1
    references[new] = 1
    table[index] = new
    return old, new


class BlockAllocator:
    """Gives the blocks of a pool to sequences, and takes them back.

    A sequence has any hashable name.

    Args:
        blocks: blocks in the pool, at least 1.
        block_size: tokens in a block, at least 1.
        prefix: None, or the name of a sequence that `start` forks every new one from.

    Attributes:
        tables: sequence -> its block table, a list of block ids.
        lengths: sequence -> tokens stored.
        references: for each block, in how many tables it stands.
        free_blocks: ids of the free blocks; the last one is taken first.

    Raises:
        ValueError: a count is no whole number of at least 1.
    """

    def __init__(self, blocks: int, block_size: int = 16, prefix: Hashable | None = None) -> None:
        check_count("blocks", blocks)
        check_count("block_size", block_size)
        self.blocks, self.block_size, self.prefix = blocks, block_size, prefix
        self.references = [0] * blocks
        self.free_blocks = list(reversed(range(blocks)))  # taken from the end: block 0 first
        self.tables, self.lengths = {}, {}

    # ---- sequences ----

    def create(self, sequence: Hashable) -> None:
        """Begin a sequence without tokens.

        Args:
            sequence: its name.

        Raises:
            ValueError: the name is taken.
        """
        if sequence in self.tables:
            raise ValueError(f"sequence {sequence!r} exists already: free it first, or choose another name")
        self.tables[sequence], self.lengths[sequence] = [], 0

    def fork(self, parent: Hashable, child: Hashable) -> None:
        """Begin a sequence with the tokens of another one. No block is taken: all of them are shared.

        Args:
            parent: name of the sequence that is there.
            child: name of the new one.

        Raises:
            ValueError: `parent` is unknown, or the name `child` is taken.
        """
        self._check_known(parent)
        self.create(child)
        # Blocks that the parent has reserved but not filled stay its own.
        shared = self.tables[parent][: self.blocks_for(self.lengths[parent])]
        self.tables[child], self.lengths[child] = list(shared), self.lengths[parent]
        for block in shared:
            self.references[block] += 1

    def free(self, sequence: Hashable) -> None:
        """Forget a sequence; blocks in no other table become free.

        Args:
            sequence: its name.

        Raises:
            ValueError: the sequence is unknown, or freed already.
        """
        self._check_known(sequence)
        for block in reversed(self.tables.pop(sequence)):
            self.references[block] -= 1
            if self.references[block] == 0:
                self.free_blocks.append(block)
        del self.lengths[sequence]

    # ---- tokens ----

    def reserve(self, sequence: Hashable, tokens: int = 1) -> list[tuple[int, int]]:
        """Make room for so many more tokens: take the blocks that are missing, copy those that are shared.

        Asking again for room that is there changes nothing.

        Args:
            sequence: its name.
            tokens: tokens to make room for, at least 1.

        Returns:
            Pairs (old block, new block): the copies that the owner of the tensors must make.

        Raises:
            OutOfBlocks: too few blocks are free. Nothing was changed.
            ValueError: the sequence is unknown, or `tokens` is below 1.
        """
        needed = self.blocks_needed(sequence, tokens)
        if needed > len(self.free_blocks):
            raise OutOfBlocks(f"sequence {sequence!r} needs {needed} more block(s), of {self.blocks} "
                              f"only {len(self.free_blocks)} are free")  # fmt: skip
        table = self.tables[sequence]
        copies = [copy_on_write(table, index, self.references, self.free_blocks)
                  for index in self._to_copy(sequence)]  # fmt: skip
        while len(table) < self.blocks_for(self.lengths[sequence] + tokens):
            block = self.free_blocks.pop()
            self.references[block] = 1
            table.append(block)
        return copies

    def advance(self, sequence: Hashable, tokens: int = 1) -> None:
        """Count tokens that have been written into reserved room.

        Args:
            sequence: its name.
            tokens: tokens written, at least 1.

        Raises:
            ValueError: there is no room for them, the sequence is unknown, or `tokens` is below 1.
        """
        self._check_known(sequence)
        check_count("tokens", tokens)
        if self._to_copy(sequence) or self.lengths[sequence] + tokens > self.room(sequence):
            raise ValueError(f"no room for {tokens} more tokens in sequence {sequence!r}: reserve first")
        self.lengths[sequence] += tokens

    def blocks_needed(self, sequence: Hashable, tokens: int = 1) -> int:
        """How many free blocks `reserve` would take.

        Args:
            sequence: its name.
            tokens: tokens to make room for, at least 1.

        Returns:
            Missing blocks and copies of shared ones.

        Raises:
            ValueError: the sequence is unknown, or `tokens` is below 1.
        """
        self._check_known(sequence)
        check_count("tokens", tokens)
        table, total = self.tables[sequence], self.lengths[sequence] + tokens
        missing = max(0, self.blocks_for(total) - len(table))
        return missing + len(self._to_copy(sequence))

    def room(self, sequence: Hashable) -> int:
        """Tokens for which the sequence has blocks, filled or not.

        Args:
            sequence: its name.

        Returns:
            Slots in its blocks.
        """
        return len(self.tables[sequence]) * self.block_size

    def blocks_for(self, tokens: int) -> int:
        """Blocks that so many tokens fill.

        Args:
            tokens: 0 or more.

        Returns:
            Whole blocks, the last one perhaps filled in part.
        """
        return -(-tokens // self.block_size)

    # ---- what a scheduler asks for (see scheduler.py) ----

    def check_fits(self, total: int) -> None:
        """Refuse a request that can never be served, even alone.

        Args:
            total: tokens of its prompt and answer, without the prefix.

        Raises:
            ValueError: the pool has too few blocks for it.
        """
        shared = self.lengths.get(self.prefix, 0)
        held = self.blocks_for(shared)
        own = self.blocks_for(shared + total) - shared // self.block_size
        if own > self.blocks - held:
            behind = f" behind a prefix of {shared}" if shared else ""
            raise ValueError(f"a request of {total} tokens{behind} needs {own} blocks of {self.block_size}, "
                             f"the pool has {self.blocks - held}: enlarge it")  # fmt: skip

    def start(self, sequence: Hashable, tokens: int, total: int) -> bool:
        """Begin a sequence with room for its first tokens and one more.

        Args:
            sequence: its name.
            tokens: tokens that will be written at once.
            total: ignored: knowing in advance how long an answer gets is what paging does without.

        Returns:
            False, with nothing changed, when the pool is too full now.

        Raises:
            ValueError: the name is taken.
        """
        if self.prefix is None:
            self.create(sequence)
        else:
            self.fork(self.prefix, sequence)
        if self.blocks_needed(sequence, tokens + 1) > len(self.free_blocks):
            self.free(sequence)
            return False
        self.reserve(sequence, tokens + 1)
        return True

    def can_grow(self, sequences: Iterable[Hashable]) -> bool:
        """Whether each of these sequences could get one more token.

        Args:
            sequences: their names.

        Returns:
            True when enough blocks are free for all of them.

        Raises:
            ValueError: a sequence is unknown.
        """
        return sum(self.blocks_needed(sequence) for sequence in sequences) <= len(self.free_blocks)

    @property
    def slots(self) -> int:
        """Tokens that the whole pool can hold."""
        return self.blocks * self.block_size

    @property
    def reserved(self) -> int:
        """Slots in blocks that somebody owns. A shared block counts once."""
        return (self.blocks - len(self.free_blocks)) * self.block_size

    @property
    def stored(self) -> int:
        """Tokens in these slots. Tokens in a shared block count once."""
        return self.reserved - sum(self._empty_slots().values())

    def layout(self) -> list[int]:
        """What lies in the pool, for a picture.

        Returns:
            0 for each free slot, 1 for one reserved but empty, 2 for a stored token, slot by slot.
        """
        slots, empty_slots = [], self._empty_slots()
        for block, references in enumerate(self.references):
            empty = empty_slots.get(block, 0) if references else self.block_size
            slots += [2] * (self.block_size - empty) + [1 if references else 0] * empty
        return slots

    # ---- inside ----

    def _empty_slots(self) -> dict[int, int]:
        """Slots without a token of each block that is owned and not full: block -> their number.

        Those stand at the end of a table. All that share a block have filled it alike: who goes on, copies.
        """
        empty = {}
        for sequence, table in self.tables.items():
            length = self.lengths[sequence]
            for index in range(length // self.block_size, len(table)):
                empty[table[index]] = self.block_size - max(0, length - index * self.block_size)
        return empty

    def _to_copy(self, sequence: Hashable) -> list[int]:
        """Index of the half-full last block in the table, if others share it. Full blocks are not written."""
        index, offset = divmod(self.lengths[sequence], self.block_size)
        shared = offset > 0 and self.references[self.tables[sequence][index]] > 1
        return [index] if shared else []

    def _check_known(self, sequence: Hashable) -> None:
        if sequence not in self.tables:
            raise ValueError(f"no sequence {sequence!r} here: it was never created, or is freed already")


def check_count(name: str, value: Any) -> None:
    """Refuse a count that is no whole number of at least 1.

    Args:
        name: what is counted, for the message.
        value: the count.

    Raises:
        ValueError: it is no int, or below 1.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}")
