"""Contiguous memory: pieces never overlap and all come back."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from course_utils.kvcache.contiguous import ContiguousMemory, power_of_two
from tests.unit.kvcache.common import assert_refused


class Pieces(RuleBasedStateMachine):
    """Random starts, growth and frees of contiguous memory: pieces never overlap and all come back."""

    names = Bundle("names")

    def __init__(self):
        super().__init__()
        self.memory, self.counter = ContiguousMemory(64, "oracle", max_tokens=32), 0

    @rule(target=names, tokens=st.integers(1, 16), answer=st.integers(1, 16))
    def start(self, tokens, answer):
        self.counter += 1
        largest_hole = power_of_two(tokens + answer)
        started = self.memory.start(self.counter, tokens, tokens + answer)
        if not started:
            assert self.memory.reserved + largest_hole > 64 or len(self.memory.pieces) > 0
            return 0
        return self.counter

    @rule(name=names)
    def grow_until_full(self, name):
        if name in self.memory.pieces:
            if self.memory.lengths[name] < self.memory.pieces[name][1]:
                self.memory.advance(name)
            else:
                with pytest.raises(ValueError, match="outgrows"):
                    self.memory.advance(name)

    @rule(name=consumes(names))
    def free(self, name):
        if name in self.memory.pieces:
            self.memory.free(name)
        with pytest.raises(ValueError, match="freed already"):
            self.memory.free(name)

    @invariant()
    def pieces_do_not_overlap(self):
        taken = [slot for first, size in self.memory.pieces.values() for slot in range(first, first + size)]
        assert len(set(taken)) == len(taken) == self.memory.reserved <= 64
        layout = self.memory.layout()
        assert layout.count(2) == self.memory.stored and layout.count(0) == 64 - len(taken)


TestPieces = Pieces.TestCase
TestPieces.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


def test_bad_input_is_refused_in_one_line():
    pieces = ContiguousMemory(64, "max", 64)
    pieces.start("a", 1, 2)
    assert_refused({
        "policy must be one of": lambda: ContiguousMemory(64, "best"),
        "longer than the 64 allowed": lambda: pieces.check_fits(65),
        "enlarge it": lambda: ContiguousMemory(32, "max", 64).check_fits(3),
        "is freed already": lambda: pieces.free("b"),
        "sequence 'a' exists": lambda: pieces.start("a", 1, 2),
        "outgrows its piece": lambda: pieces.advance("a", 65),
    })
