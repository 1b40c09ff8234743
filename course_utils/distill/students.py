"""Students: smaller models, begun with layers of their teacher."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn

from course_utils.prune.depth import remove_blocks
from course_utils.quantize.layerwise import find_blocks


def layer_map(teacher_layers: int, student_layers: int) -> list[int]:
    """For each student layer the teacher layer that it starts from and is compared with.

    The teacher's layers are cut into as many stretches as the student has layers, as equal as possible; the
    last layer of each stretch is taken: 6 and 3 give [1, 3, 5], 5 and 2 give [1, 4]. Where the end of a
    stretch is no whole number, it is rounded down.
    Source: TinyBERT, arXiv 1909.10351, section 3.1 (uniform g(m)).

    Args:
        teacher_layers: how many the teacher has.
        student_layers: how many the student has, from 1 to teacher_layers.

    Returns:
        Numbers of teacher layers, counted from 0.

    Raises:
        ValueError: student_layers is out of range.
    """
    if not 1 <= student_layers <= teacher_layers:
        raise ValueError(f"a student has from 1 to {teacher_layers} layers, not {student_layers}")
    return [(layer + 1) * teacher_layers // student_layers - 1 for layer in range(student_layers)]


def make_student(teacher: nn.Module, layers: Sequence[int], train: Sequence[int] | None = None) -> nn.Module:
    """Make a model with only some blocks of the teacher.

    Args:
        teacher: stays as it is.
        layers: numbers of the blocks to keep, rising, counted from 0.
        train: teacher's numbers of the blocks that will be trained. Only these are copied; everything else is
            frozen and shares its memory with the teacher. None: all is copied, all can be trained.

    Returns:
        A new model.

    Raises:
        ValueError: layers do not rise, do not exist, or train names a block that is not kept.
    """
    blocks = find_blocks(teacher)
    layers = [int(layer) for layer in layers]
    if not layers or layers != sorted(set(layers)) or not 0 <= layers[0] <= layers[-1] < len(blocks):
        raise ValueError(f"layers must rise from 0 to {len(blocks) - 1} at most, got {layers}")
    shared = {}
    if train is not None:
        if not set(train) <= set(layers):
            raise ValueError(f"train names blocks {sorted(set(train) - set(layers))} that are not kept")
        own = {id(parameter) for i in train for parameter in blocks[i][1].parameters()}
        shared = {id(p): nn.Parameter(p.detach(), requires_grad=False)
                  for p in teacher.parameters() if id(p) not in own}  # fmt: skip
    student = copy.deepcopy(teacher, shared)
    remove_blocks(student, [i for i in range(len(blocks)) if i not in layers])
    return student


def from_scratch(student: nn.Module, seed: int = 0) -> nn.Module:
    """Make a model built like the student, with new random weights: without its teacher's layers.

    Args:
        student: a model of transformers; it stays as it is.
        seed: of the random weights.

    Returns:
        A new model on the same device.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return type(student)(copy.deepcopy(student.config)).to(student.device)
