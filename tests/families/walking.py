"""Families x functions: exact, or refused in one line with the model as it was. The walk, and its table."""

import re
import tempfile
from pathlib import Path

import torch

from course_utils.errors import CourseError
from tests.families.models import FAMILIES, MORE_FAMILIES, logits, tiny

ALL = [*FAMILIES, *MORE_FAMILIES]
EXACT = 1e-4  # logits that are equal up to float rounding


def equal(model, other):
    """Whether two models have the same weights."""
    return all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(),
                                                 strict=True))


def attempt(function, family, folder):
    """None, or the line that refuses. The model is then as it was."""
    model = tiny(family)
    try:
        function(model, folder)
        return None
    except (CourseError, ValueError) as error:
        fresh = tiny(family)
        assert equal(model, fresh) and torch.equal(logits(model), logits(fresh))
        assert [type(module) for module in model.modules()] == [type(module) for module in fresh.modules()]
        assert not model.training and model.config.to_dict() == fresh.config.to_dict()
        assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
        assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
        assert "\n" not in str(error)
        return str(error)


def assert_exact_or_refused(function, family, folder, refused):
    """refused: {(name of a function, family): regex of the reason}; all others must be exact."""
    reason = attempt(function, family, folder)
    expected = refused.get((function.__name__, family))
    assert (reason is None) == (expected is None), reason
    assert expected is None or re.search(expected, reason)


def print_table(functions, families=None):
    """The table as markdown, the reasons of refusals below it by number."""
    print("| family | " + " | ".join(function.__name__ for function in functions) + " |")
    print("|---" * (len(functions) + 1) + "|")
    reasons = {}
    for family in families or ALL:
        cells = []
        for function in functions:
            with tempfile.TemporaryDirectory() as folder:
                try:
                    reason = attempt(function, family, Path(folder))
                except Exception as error:
                    reason = f"FAULT {type(error).__name__}: {str(error).strip()[:300]}"
            number = reason and reasons.setdefault(reason, len(reasons) + 1)
            word = "FAULT" if reason and reason.startswith("FAULT") else "refused"
            cells.append(f"{word} {number}" if reason else "exact")
        print(f"| {family} | " + " | ".join(cells) + " |", flush=True)
    print()
    for reason, number in reasons.items():
        print(f"{number}. {reason}")
