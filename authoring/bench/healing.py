"""Healing SmolLM2 without three blocks: two divergences from the whole model beside the text's own tokens.

The lesson on distillation heals for seconds and measures on little text. Here each loss gets more steps, and
16,384 held-out tokens.
"""

from dataclasses import asdict

from authoring.bench import resume
from course_utils import data, distill, measure, models
from course_utils.prune.depth import influences

TITLE = "SmolLM2 with 27 of 30 blocks, healed on Wikipedia text: perplexity on 16,384 held-out tokens"
HELDOUT_TOKENS, WINDOW = 16_384, 512
STEPS, LR, SEED = 64, 5e-4, 0
WHOLE, CUT, NEXT_TOKEN = "whole model", "3 blocks fewer", "next token"
LOSSES = {"forward KL": distill.kd_loss, "reverse KL": distill.reverse_kl, NEXT_TOKEN: None}


def bench() -> list[dict]:
    """The whole model, the cut one, and the cut one healed with each loss.

    Returns:
        One row for each, with the perplexity of all windows.
    """
    teacher, tokenizer = models.load_lm()
    heldout = data.wikipedia_tokens(tokenizer, "heldout", HELDOUT_TOKENS)
    calibration = data.wikipedia_tokens(tokenizer, "calibration", 8192)
    order = influences(teacher, data.windows(calibration[:512], 128)).argsort(stable=True).tolist()
    kept = sorted(order[3:])
    edges = [i for i in kept if i - 1 in order[:3]] or kept[-1:]  # the blocks that follow a gap

    def scored(name: str) -> dict:
        measure.release_memory()
        model = teacher if name == WHOLE else distill.make_student(teacher, kept, train=edges)
        if name in LOSSES:
            distill.heal(model, teacher, data.windows(calibration, 64), steps=STEPS, lr=LR, seed=SEED,
                         divergence=LOSSES[name], progress=name)
        return {"result": asdict(measure.perplexity(model, heldout, WINDOW))}

    names = (WHOLE, CUT, *LOSSES)
    return resume("bench_healing", TITLE, {(name,): {"what": name} for name in names}, scored)
