"""What cases are made of: the same random numbers each time, and the gradients of an answer."""

import torch

from course_utils.checking.cases import gradients, randn


def test_the_same_numbers_on_every_call_whatever_was_drawn_before():
    first = randn(3, 4, seed=5)
    torch.randn(7)
    assert first.shape == (3, 4) and torch.equal(first, randn(3, 4, seed=5))
    assert not torch.equal(first, randn(3, 4, seed=6))
    state = torch.get_rng_state()
    randn(2)
    assert torch.equal(state, torch.get_rng_state())


def test_gradients_are_those_of_calculus():
    x, y = randn(4).requires_grad_(), randn(4, seed=1).requires_grad_()
    above = torch.tensor([1.0, 2.0, 0.0, -1.0])
    found = gradients(x**2 * y.detach(), above, x=x, y=y)
    assert torch.allclose(found["gradient of x"], above * 2 * x.detach() * y.detach())
    assert torch.equal(found["gradient of y"], torch.zeros(4))
    assert torch.equal(found["result"], (x**2 * y).detach()) and not found["result"].requires_grad


def test_what_a_wrong_answer_may_return_is_passed_on():
    x = randn(3).requires_grad_()
    assert gradients("no tensor", x=x) == {"result": "no tensor"}
    found = gradients(x.detach(), x=x)
    assert torch.equal(found["gradient of x"], torch.zeros(3))
    found = gradients((2 * x).sum(), torch.ones(3), x=x)  # another shape than what should arrive
    assert torch.equal(found["gradient of x"], torch.full((3,), 2.0))
