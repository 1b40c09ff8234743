"""Healing a language model that lost layers: it learns to write what the whole model would write."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from course_utils import measure
from course_utils.distill.losses import check_logits, kd_loss
from course_utils.finetune import Training


def heal(student: nn.Module, teacher: nn.Module, windows: Tensor, *, steps: int, lr: float = 3e-4,
         divergence: Callable[[Tensor, Tensor, float], Tensor] | None = kd_loss, temperature: float = 1.0,
         seed: int = 0, progress: str = "healing") -> Training:
    """Train the student's unfrozen parameters on the teacher's next-token distributions.

    Both read the same windows of a text that people wrote, not what the student writes itself. The student
    stays in eval mode: no dropout.

    Args:
        student: a causal language model; it is changed in place. What is trained must be FP32 (or FP64): in
            FP16 and BF16 AdamW's small steps are rounded away, and its divisors become 0.
        teacher: a causal language model with the same vocabulary; its weights are never changed.
        windows: integer tensor [n, length] of token ids; each step takes one, in a seeded order.
        steps: how many, at least 1.
        lr: highest learning rate of AdamW: reached after a tenth of the steps, then falling to 0.
        divergence: kd_loss (forward KL), reverse_kl, or any function (student, teacher, temperature) ->
            scalar; None: the loss of pretraining, the text's own next tokens, and the teacher is not asked.
        temperature: both logits are divided by it before the softmax.
        seed: of the order of the windows.
        progress: title of the progress bar.

    Returns:
        A Training, its losses in nats a token.

    Raises:
        ValueError: before anything is changed, when there are no windows, no steps or nothing to train,
            weights to train are of 16 bits, or the windows or vocabularies do not fit.
        RuntimeError: the loss is no longer a number.
    """
    parameters = [parameter for parameter in student.parameters() if parameter.requires_grad]
    if windows.ndim != 2 or not len(windows) or steps < 1 or not parameters:
        raise ValueError("heal needs windows [n, length], at least one step, and a student with unfrozen "
                         "parameters")
    _check(student, teacher, windows, parameters, temperature)
    generator = torch.Generator().manual_seed(seed)
    order = torch.cat([torch.randperm(len(windows), generator=generator)
                       for _ in range(math.ceil(steps / len(windows)))])[:steps]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)
    warm_up = max(1, steps // 10)
    losses, start, device = [], time.perf_counter(), next(student.parameters()).device
    student.eval()
    for step, row in enumerate(tqdm(order.tolist(), desc=progress, unit="step", leave=False, delay=2)):
        ids = windows[row : row + 1].to(device)
        logits = student(ids, use_cache=False).logits.float()
        if divergence is None:
            loss = F.cross_entropy(logits[0, :-1], ids[0, 1:])
        else:
            with measure.evaluating(teacher):
                target = teacher(ids, use_cache=False).logits
            loss = divergence(logits, target.float(), temperature)
        if not torch.isfinite(loss):
            raise RuntimeError(f"the loss became {loss.item()} at step {step + 1}: lower lr, {lr}")
        for group in optimizer.param_groups:
            group["lr"] = lr * min((step + 1) / warm_up, (steps - step) / max(1, steps - warm_up))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        losses.append(loss.item())
    student.zero_grad(set_to_none=True)
    return Training(losses, time.perf_counter() - start, len(windows), seed)


def _check(student: nn.Module, teacher: nn.Module, windows: Tensor, parameters: list[nn.Parameter],
           temperature: float) -> None:
    """Refuse what cannot be healed, before anything is changed: ValueError."""
    short = next((p.dtype for p in parameters if torch.finfo(p.dtype).bits < 32), None)
    if short is not None:
        raise ValueError(f"weights of {short} cannot be trained with AdamW: call student.float() first")
    for model in (student, teacher):
        measure.check_text(model, windows.flatten(), max(2, windows.shape[1]), 1)
    ids = windows[:1, :1]
    with measure.evaluating(student), measure.evaluating(teacher):
        logits = [model(ids.to(next(model.parameters()).device), use_cache=False).logits
                  for model in (student, teacher)]
    check_logits(*logits, temperature)
