"""The bookkeeping of paged attention: who owns which block of the KV cache.

The cache is cut into blocks of a few tokens, as an operating system cuts memory into pages. A sequence (a
request that is being answered) has a block table: its first `block_size` tokens are in block table[0], the
next ones in table[1], and so on, wherever these blocks lie. A reference count for each block says in how
many tables it stands. A sequence that shares a block must not write into it: it gets a copy first
(copy-on-write). W. Kwon et al., "Efficient Memory Management for Large Language Model Serving with
PagedAttention", arXiv 2309.06180, section 4. The keys and values themselves are in paged.py.
"""


class OutOfBlocks(RuntimeError):
    """The pool has too few free blocks for what was asked. Nothing was changed."""


def lookup(tables, positions, block_size):
    """Where tokens of several sequences lie in the pool.

    tables      integer tensor [batch, most blocks]: the block table of each sequence, padded at the end
    positions   integer tensor [batch, n]: positions of tokens in their sequence, 0 is the first token
    block_size  tokens in a block

    Returns two integer tensors [batch, n]: the id of the block that holds each token, and its place in that
    block, from 0 to block_size - 1.
    """
    blocks = tables.gather(1, positions // block_size)
    return blocks, positions % block_size


def copy_on_write(table, index, references, free):
    """Make block number `index` of a block table safe to write to.

    table       list of block ids of one sequence
    index       position in the table, 0 is the first block
    references  list of ints: in how many tables each block of the pool stands
    free        list of the ids of free blocks; the last one is taken first

    A block that stands in this table only may be written: returns None and changes nothing. A shared block
    is replaced in the table by a free one: all three lists are brought up to date in place, and the pair
    (old block, new block) is returned; the caller then copies the keys and values. Raises OutOfBlocks, with
    nothing changed, when a copy is needed and no block is free.
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

    blocks      blocks in the pool
    block_size  tokens in a block
    prefix      None, or the name of a sequence that `start` forks every new one from

    A sequence has any hashable name. Attributes to look at: `tables` and `lengths` (tokens stored) by name,
    `references` by block, `free_blocks`.
    """

    def __init__(self, blocks, block_size=16, prefix=None):
        check_count("blocks", blocks)
        check_count("block_size", block_size)
        self.blocks, self.block_size, self.prefix = blocks, block_size, prefix
        self.references = [0] * blocks
        self.free_blocks = list(reversed(range(blocks)))  # taken from the end: block 0 first
        self.tables, self.lengths = {}, {}

    # ---- sequences ----

    def create(self, sequence):
        """A new sequence without tokens. ValueError when the name is taken."""
        if sequence in self.tables:
            raise ValueError(f"sequence {sequence!r} exists already: free it first, or choose another name")
        self.tables[sequence], self.lengths[sequence] = [], 0

    def fork(self, parent, child):
        """A new sequence with the tokens of `parent`. No block is taken: all of them are shared."""
        self._check_known(parent)
        self.create(child)
        # Blocks that the parent has reserved but not filled stay its own.
        shared = self.tables[parent][: self.blocks_for(self.lengths[parent])]
        self.tables[child], self.lengths[child] = list(shared), self.lengths[parent]
        for block in shared:
            self.references[block] += 1

    def free(self, sequence):
        """Forget a sequence; blocks in no other table become free. ValueError on a second time."""
        self._check_known(sequence)
        for block in reversed(self.tables.pop(sequence)):
            self.references[block] -= 1
            if self.references[block] == 0:
                self.free_blocks.append(block)
        del self.lengths[sequence]

    # ---- tokens ----

    def reserve(self, sequence, tokens=1):
        """Make room for so many more tokens: take the blocks that are missing, copy those that are shared.

        Returns a list of (old block, new block): the copies that the owner of the tensors must make. Asking
        again for room that is there changes nothing. Raises OutOfBlocks, with nothing changed, when too few
        blocks are free; ValueError for an unknown sequence or fewer than 1 token.
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

    def advance(self, sequence, tokens=1):
        """Count tokens that have been written into reserved room. ValueError when there is no room."""
        self._check_known(sequence)
        check_count("tokens", tokens)
        if self._to_copy(sequence) or self.lengths[sequence] + tokens > self.room(sequence):
            raise ValueError(f"no room for {tokens} more tokens in sequence {sequence!r}: reserve first")
        self.lengths[sequence] += tokens

    def blocks_needed(self, sequence, tokens=1):
        """Free blocks that `reserve(sequence, tokens)` would take. ValueError as there."""
        self._check_known(sequence)
        check_count("tokens", tokens)
        table, total = self.tables[sequence], self.lengths[sequence] + tokens
        missing = max(0, self.blocks_for(total) - len(table))
        return missing + len(self._to_copy(sequence))

    def room(self, sequence):
        """Tokens for which the sequence has blocks, filled or not."""
        return len(self.tables[sequence]) * self.block_size

    def blocks_for(self, tokens):
        """Blocks that so many tokens fill, the last one perhaps in part."""
        return -(-tokens // self.block_size)

    # ---- what a scheduler asks for (see scheduler.py) ----

    def check_fits(self, total):
        """ValueError when a request of `total` tokens can never be served, even alone."""
        shared = self.lengths.get(self.prefix, 0)
        held = self.blocks_for(shared)
        own = self.blocks_for(shared + total) - shared // self.block_size
        if own > self.blocks - held:
            behind = f" behind a prefix of {shared}" if shared else ""
            raise ValueError(f"a request of {total} tokens{behind} needs {own} blocks of {self.block_size}, "
                             f"the pool has {self.blocks - held}: enlarge it")  # fmt: skip

    def start(self, sequence, tokens, total):
        """Create a sequence with room for `tokens` tokens and one more; False when the pool is too full now.

        `total` is ignored: knowing in advance how long an answer gets is what paging does without.
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

    def can_grow(self, sequences):
        """Whether each of these sequences could get one more token."""
        return sum(self.blocks_needed(sequence) for sequence in sequences) <= len(self.free_blocks)

    @property
    def slots(self):
        """Tokens that the whole pool can hold."""
        return self.blocks * self.block_size

    @property
    def reserved(self):
        """Slots in blocks that somebody owns. A shared block counts once."""
        return (self.blocks - len(self.free_blocks)) * self.block_size

    @property
    def stored(self):
        """Tokens in these slots. Tokens in a shared block count once."""
        return self.reserved - sum(self._empty_slots().values())

    def layout(self):
        """For a picture: 0 for each free slot, 1 for one reserved but empty, 2 for a stored token; a list."""
        slots, empty_slots = [], self._empty_slots()
        for block, references in enumerate(self.references):
            empty = empty_slots.get(block, 0) if references else self.block_size
            slots += [2] * (self.block_size - empty) + [1 if references else 0] * empty
        return slots

    # ---- inside ----

    def _empty_slots(self):
        """block -> slots in it that hold no token, for owned blocks that are not full.

        Those stand at the end of a table. All that share a block have filled it alike: who goes on, copies.
        """
        empty = {}
        for sequence, table in self.tables.items():
            length = self.lengths[sequence]
            for index in range(length // self.block_size, len(table)):
                empty[table[index]] = self.block_size - max(0, length - index * self.block_size)
        return empty

    def _to_copy(self, sequence):
        """Index of the half-full last block in the table, if others share it. Full blocks are not written."""
        index, offset = divmod(self.lengths[sequence], self.block_size)
        shared = offset > 0 and self.references[self.tables[sequence][index]] > 1
        return [index] if shared else []

    def _check_known(self, sequence):
        if sequence not in self.tables:
            raise ValueError(f"no sequence {sequence!r} here: it was never created, or is freed already")


def check_count(name, value):
    """Raise ValueError when a count is no whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}")
