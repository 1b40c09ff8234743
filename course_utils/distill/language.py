"""Healing a language model that lost layers: it learns to write what the whole model would write."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from tqdm import tqdm

from course_utils import measure
from course_utils.distill.losses import kd_loss
from course_utils.finetune import Training


def heal(student: nn.Module, teacher: nn.Module, windows: Tensor, *, steps: int, lr: float = 3e-4,
         divergence: Callable[[Tensor, Tensor, float], Tensor] = kd_loss, temperature: float = 1.0,
         seed: int = 0, progress: str = "healing") -> Training:
    """Train the student's unfrozen parameters on the teacher's next-token distributions.

    The student stays in eval mode: no dropout.

    Args:
        student: a causal language model; it is changed in place.
        teacher: a causal language model with the same vocabulary; its weights are never changed.
        windows: integer tensor [n, length] of token ids; each step takes one, in a seeded order.
        steps: how many, at least 1.
        lr: highest learning rate of AdamW: reached after a tenth of the steps, then falling to 0.
        divergence: kd_loss (forward KL), reverse_kl, or any function (student, teacher, temperature) ->
            scalar.
        temperature: both logits are divided by it before the softmax.
        seed: of the order of the windows.
        progress: title of the progress bar.

    Returns:
        A Training, its losses in nats a token.

    Raises:
        ValueError: there are no windows, no steps or nothing to train.
    """
    parameters = [parameter for parameter in student.parameters() if parameter.requires_grad]
    if windows.ndim != 2 or not len(windows) or steps < 1 or not parameters:
        raise ValueError("heal needs windows [n, length], at least one step, and a student with unfrozen "
                         "parameters")
    generator = torch.Generator().manual_seed(seed)
    order = torch.cat([torch.randperm(len(windows), generator=generator)
                       for _ in range(math.ceil(steps / len(windows)))])[:steps]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)
    warm_up = max(1, steps // 10)
    losses, start, device = [], time.perf_counter(), next(student.parameters()).device
    student.eval()
    for step, row in enumerate(tqdm(order.tolist(), desc=progress, unit="step", leave=False, delay=2)):
        ids = windows[row : row + 1].to(device)
        with measure.evaluating(teacher):
            target = teacher(ids, use_cache=False).logits
        loss = divergence(student(ids, use_cache=False).logits.float(), target.float(), temperature)
        for group in optimizer.param_groups:
            group["lr"] = lr * min((step + 1) / warm_up, (steps - step) / max(1, steps - warm_up))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        losses.append(loss.item())
    student.zero_grad(set_to_none=True)
    return Training(losses, time.perf_counter() - start, len(windows), seed)
