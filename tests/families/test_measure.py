"""Families x functions of course_utils.measure: what they measure is what runs, or refused in one line.

    python -m tests.families.test_measure     prints the table
"""


import pytest
import torch
import torch.nn.functional as F

from course_utils import measure
from tests.families.models import logits, tokens
from tests.families.walking import ALL, assert_exact_or_refused, print_table


class Words:
    """A tokenizer: a token for each word."""

    def __call__(self, text, add_special_tokens=True):
        return {"input_ids": [3 + len(word) for word in text.split()]}


def perplexity(model, folder):
    """Overlapping windows: each token is scored once, with all of its window before it."""
    text = tokens().flatten()
    found = measure.perplexity(model, text, window=12, stride=6)
    losses = [F.cross_entropy(logits(model, text[None, max(0, (i // 6 - 1) * 6) : i])[0, -1:],
                              text[i : i + 1]).item() for i in range(1, len(text))]
    assert found.tokens == len(losses) and found.nll == pytest.approx(sum(losses) / len(losses), rel=1e-4)


def weight_bytes(model, folder):
    held = {tensor.data_ptr(): tensor for tensor in (*model.parameters(), *model.buffers())}
    assert measure.weight_bytes(model).total == sum(tensor.untyped_storage().nbytes()
                                                    for tensor in held.values() if tensor.numel())


def generation_speed(model, folder):
    """The timed steps continue the prompt: the last one says what a pass without a cache says."""
    passes = []
    hook = model.register_forward_hook(
        lambda _, args, kwargs, out: passes.append((kwargs["input_ids"], out.logits)), with_kwargs=True)
    try:
        speed = measure.generation_speed(model, Words(), prompt_tokens=20, new_tokens=4, repeats=2)
    finally:
        hook.remove()
    assert [ids.shape[1] for ids, _ in passes] == [20] * 3 + [1] * 6
    assert (len(speed.prefill.samples), len(speed.decode.samples)) == (2, 4)
    text = torch.cat([ids for ids, _ in passes[2:]], dim=1)
    torch.testing.assert_close(passes[-1][1][:, -1], logits(model, text)[:, -1], rtol=1e-3, atol=1e-3)


FUNCTIONS = [perplexity, weight_bytes, generation_speed]
REFUSED = {("generation_speed", family): "hands on no KV cache" for family in ("mamba", "rwkv")}


@pytest.mark.parametrize("family", ALL)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_exact_or_refused(function, family):
    assert_exact_or_refused(function, family, None, REFUSED)


if __name__ == "__main__":
    import sys

    print_table(FUNCTIONS, sys.argv[1:])
