"""Speculative decoding by hand: a cheap draft guesses some tokens, the model checks them all in one pass.

    run = generate(model, PromptLookup(), ids, new_tokens=48, count=4)
    print(run.tokens, run.passes, run.accepted)

rule    which drafted tokens stay, and why the text is distributed as without a draft
drafts  who guesses: the text itself, or a model with fewer blocks
loop    the two together, with KV caches

Sources: Y. Leviathan, M. Kalman, Y. Matias, "Fast Inference from Transformers via Speculative Decoding",
arXiv 2211.17192; C. Chen et al., "Accelerating Large Language Model Decoding with Speculative Sampling",
arXiv 2302.01318.
"""

from course_utils.speculative.drafts import ModelDraft, PromptLookup, prompt_lookup, shorter
from course_utils.speculative.loop import Run, generate
from course_utils.speculative.rule import (
    acceptance_rate,
    draw,
    expected_speedup,
    expected_tokens,
    probabilities,
    residual,
    verify,
)

__all__ = [
    "ModelDraft", "PromptLookup", "Run", "acceptance_rate", "draw", "expected_speedup", "expected_tokens",
    "generate", "probabilities", "prompt_lookup", "residual", "shorter", "verify",
]  # fmt: skip
