"""The KV memory that paging replaced: one contiguous piece for each request, taken in advance.

An attention kernel that wants a sequence's keys in one piece needs the piece before it knows how long the
answer gets. The paper on PagedAttention (arXiv 2309.06180, sections 3 and 6.1) compares with three ways to
choose the size, handed out by a buddy allocator: sizes are powers of two, addresses multiples of the size.
"""

from collections.abc import Hashable, Iterable

from course_utils.kvcache.block_tables import check_count

POLICIES = ("max", "pow2", "oracle")


class ContiguousMemory:
    """Gives each sequence one contiguous piece of token slots.

    It answers to the same calls of a scheduler as `block_tables.BlockAllocator`.

    Args:
        slots: tokens that the memory can hold.
        policy: "max": room for max_tokens, whatever comes. "pow2": the prompt, and the answer's length
            rounded up to a power of two (a good guess). "oracle": prompt and answer, known in advance.
        max_tokens: longest sequence that the server allows, prompt and answer together.

    Attributes:
        pieces: sequence -> (first slot, slots) of its piece.
        lengths: sequence -> tokens stored.

    Raises:
        ValueError: a count is no whole number of at least 1, or the policy is unknown.
    """

    def __init__(self, slots: int, policy: str = "max", max_tokens: int = 2048) -> None:
        check_count("slots", slots)
        check_count("max_tokens", max_tokens)
        if policy not in POLICIES:
            raise ValueError(f"policy must be one of {', '.join(POLICIES)}, not {policy!r}")
        self.slots, self.policy, self.max_tokens = slots, policy, max_tokens
        self.pieces, self.lengths = {}, {}  # sequence -> (first slot, size), tokens stored
        self._taken = bytearray(slots)

    def check_fits(self, total: int) -> None:
        """Refuse a request that can never be served, even alone.

        Args:
            total: tokens of its prompt and answer.

        Raises:
            ValueError: it is longer than allowed, or may need a piece larger than the memory.
        """
        if total > self.max_tokens:
            raise ValueError(f"a request of {total} tokens is longer than the {self.max_tokens} allowed")
        most = {"max": self.max_tokens, "pow2": min(2 * total, self.max_tokens), "oracle": total}
        largest = power_of_two(most[self.policy])
        if largest > self.slots:
            raise ValueError(f"a request of {total} tokens may need a piece of {largest} slots, the memory "
                             f"has {self.slots}: enlarge it")  # fmt: skip

    def start(self, sequence: Hashable, tokens: int, total: int) -> bool:
        """Take a piece for a request.

        Args:
            sequence: its name.
            tokens: tokens now.
            total: tokens at the end, prompt and answer.

        Returns:
            False when no piece is free.

        Raises:
            ValueError: the name is taken.
        """
        if sequence in self.pieces:
            raise ValueError(f"sequence {sequence!r} exists already: free it first, or choose another name")
        size = self._size(tokens, total)
        for first in range(0, self.slots - size + 1, size):
            if 1 not in self._taken[first : first + size]:
                self._taken[first : first + size] = b"\1" * size
                self.pieces[sequence], self.lengths[sequence] = (first, size), 0
                return True
        return False

    def _size(self, tokens: int, total: int) -> int:
        answer = power_of_two(total - tokens)
        wanted = {"max": self.max_tokens, "pow2": min(tokens + answer, self.max_tokens), "oracle": total}
        return power_of_two(wanted[self.policy])

    def reserve(self, sequence: Hashable, tokens: int = 1) -> list[tuple[int, int]]:
        """Check that there is room. There is nothing to do: it is there since `start`.

        Args:
            sequence: its name.
            tokens: tokens to be written.

        Returns:
            An empty list: nothing is ever copied.

        Raises:
            ValueError: the sequence outgrows its piece, or is unknown.
        """
        first, size = self._piece(sequence)
        if self.lengths[sequence] + tokens > size:
            raise ValueError(f"sequence {sequence!r} outgrows its piece of {size} slots")
        return []

    def advance(self, sequence: Hashable, tokens: int = 1) -> None:
        """Count tokens that have been written.

        Args:
            sequence: its name.
            tokens: tokens written.

        Raises:
            ValueError: the sequence outgrows its piece, or is unknown.
        """
        self.reserve(sequence, tokens)
        self.lengths[sequence] += tokens

    def can_grow(self, sequences: Iterable[Hashable]) -> bool:
        """Whether each of these sequences could get one more token.

        Args:
            sequences: their names.

        Returns:
            Always True: that is what the piece was taken for.
        """
        return True

    def free(self, sequence: Hashable) -> None:
        """Give the piece back.

        Args:
            sequence: its name.

        Raises:
            ValueError: the sequence is unknown, or freed already.
        """
        first, size = self._piece(sequence)
        self._taken[first : first + size] = bytes(size)
        del self.pieces[sequence], self.lengths[sequence]

    @property
    def reserved(self) -> int:
        """Slots in pieces that somebody owns."""
        return sum(size for _, size in self.pieces.values())

    @property
    def stored(self) -> int:
        """Tokens in these slots."""
        return sum(self.lengths.values())

    def layout(self) -> list[int]:
        """What lies in the memory, for a picture.

        Returns:
            0 for each free slot, 1 for one reserved but empty, 2 for a stored token, slot by slot.
        """
        slots = list(self._taken)
        for sequence, (first, _) in self.pieces.items():
            n = self.lengths[sequence]
            slots[first : first + n] = [2] * n
        return slots

    def _piece(self, sequence: Hashable) -> tuple[int, int]:
        if sequence not in self.pieces:
            raise ValueError(f"no sequence {sequence!r} here: it was never started, or is freed already")
        return self.pieces[sequence]


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n.

    Args:
        n: any whole number.

    Returns:
        1 for n up to 1.
    """
    return 1 << max(0, n - 1).bit_length()
