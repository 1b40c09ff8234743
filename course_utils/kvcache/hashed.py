"""A prefix cache by hashed blocks: whoever begins as somebody before finds those blocks still there.

Nobody has to say which prompts begin alike. A full block gets a key, made from its tokens and from the key of
the block before it: so equal keys mean equal texts from the first token on. A block that nobody needs any
more keeps its key and its contents until it is taken for something else, the one unused for longest first.
This is vLLM's automatic prefix caching (its design document "Automatic Prefix Caching"; W. Kwon et al.,
arXiv 2309.06180, section 4.4, shares prefixes that are known in advance).
"""

import hashlib
from collections.abc import Hashable, Sequence

import numpy as np

from course_utils.kvcache.paged import KVPool


def block_keys(ids: Sequence[int], block_size: int) -> list[str]:
    """The keys of the full blocks of a text.

    The key of a block is the SHA-256 of two things, one after the other: the key of the block before it, as
    32 bytes (none for the first block), and its token ids, each as 8 bytes, lowest byte first. `hashlib` has
    SHA-256; `int.to_bytes` makes bytes of a number.

    Args:
        ids: token ids of the text.
        block_size: tokens in a block.

    Returns:
        A key for each full block, in order, as 64 hexadecimal digits. Tokens of a last block that is not
        full have none.
    """
    keys, before = [], b""
    for end in range(block_size, len(ids) + 1, block_size):
        block = np.array(ids[end - block_size : end], "<i8").tobytes()
        before = hashlib.sha256(before + block).digest()
        keys.append(before.hex())
    return keys


class HashedPool(KVPool):
    """A `KVPool` that finds the blocks of texts that begin alike.

    Give it the texts: `texts[sequence]` must be the token ids of a sequence, those that are read already and
    those that come next, while the sequence is here. `start` then begins a sequence with the blocks that are
    known; only the tokens behind them, `texts[sequence][lengths[sequence]:]`, are still to be read.

    Args:
        *args: as in `KVPool`, without a prefix.
        **kwargs: the same.

    Attributes:
        texts: sequence -> token ids. The caller keeps it up to date.
        found: tokens that did not have to be read because their blocks were there.

    Raises:
        ValueError: as in `KVPool`.
    """

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.texts, self.found = {}, 0
        self._block_of, self._key_of = {}, {}  # key -> block and block -> key

    def start(self, sequence: Hashable, tokens: int, total: int) -> bool:
        """Begin a sequence with the known blocks of its text, and room for the rest and one token more.

        Args:
            sequence: its name, which `texts` has.
            tokens: tokens of its text so far.
            total: ignored.

        Returns:
            False, with nothing changed, when the pool is too full now.

        Raises:
            ValueError: the name is taken, or `texts` has not so many tokens of it.
        """
        text = self._text(sequence, tokens)
        self.create(sequence)
        for block in self._known_blocks(text[: tokens - 1]):  # the last token must be read
            self._take(sequence, block)
        rest = tokens - self.lengths[sequence]
        if self.blocks_needed(sequence, rest + 1) > len(self.free_blocks):
            self.free(sequence)
            return False
        self.found += self.lengths[sequence]
        self.reserve(sequence, rest + 1)
        return True

    def reserve(self, sequence: Hashable, tokens: int = 1) -> list[tuple[int, int]]:
        """As in `KVPool`. A block that is taken for new tokens loses its key.

        Args:
            sequence: its name.
            tokens: tokens to make room for, at least 1.

        Returns:
            Pairs (old block, new block): the copies that were made.

        Raises:
            OutOfBlocks: the pool has too few free blocks. Nothing was changed.
            ValueError: the sequence is unknown, or `tokens` is below 1.
        """
        before = set(self.tables.get(sequence, ()))
        copies = super().reserve(sequence, tokens)
        for block in set(self.tables[sequence]) - before:
            self._block_of.pop(self._key_of.pop(block, None), None)
        return copies

    def advance(self, sequence: Hashable, tokens: int = 1) -> None:
        """As in `KVPool`. Blocks that are full now get their keys, unless another block has them already.

        Args:
            sequence: its name.
            tokens: tokens written, at least 1.

        Raises:
            ValueError: there is no room for them, the sequence is unknown, `texts` has not so many tokens
                of it, or `tokens` is below 1.
        """
        length = self.lengths.get(sequence, 0)
        full = length // self.block_size
        text = self._text(sequence, length + tokens) if sequence in self.tables else ()
        super().advance(sequence, tokens)
        if self.lengths[sequence] // self.block_size > full:
            keys = block_keys(text[: self.lengths[sequence]], self.block_size)
            for key, block in zip(keys, self.tables[sequence], strict=False):  # the table may reach further
                if key not in self._block_of and block not in self._key_of:
                    self._block_of[key], self._key_of[block] = block, key

    def free(self, sequence: Hashable) -> None:
        """As in `KVPool`. Its blocks are the last to be taken for something else, its beginning last of all.

        Args:
            sequence: its name.

        Raises:
            ValueError: the sequence is unknown, or freed already.
        """
        free_before = len(self.free_blocks)
        super().free(sequence)
        freed = self.free_blocks[free_before:]  # its last block first
        self.free_blocks[:] = freed[::-1] + self.free_blocks[:free_before]  # they are taken from the end

    def _text(self, sequence: Hashable, tokens: int) -> Sequence[int]:
        """A sequence's token ids, at least so many."""
        text = self.texts.get(sequence, ())
        if len(text) < tokens:
            raise ValueError(f"texts has {len(text)} tokens of sequence {sequence!r}, {tokens} are needed: "
                             "put its token ids there first")
        return text

    def _known_blocks(self, ids: Sequence[int]) -> list[int]:
        """The blocks that hold the beginning of a text, as far as all of them are known."""
        blocks = []
        for key in block_keys(ids, self.block_size):
            if key not in self._block_of:
                break
            blocks.append(self._block_of[key])
        return blocks

    def _take(self, sequence: Hashable, block: int) -> None:
        """Put a known block, free or in use, at the end of a sequence's table. Its tokens count as read."""
        if self.references[block] == 0:
            self.free_blocks.remove(block)
        self.references[block] += 1
        self.tables[sequence].append(block)
        self.lengths[sequence] += self.block_size
