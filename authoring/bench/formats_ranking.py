"""Every number format of the lesson on formats, and MXFP4 with its scale rounded up: 16,384 tokens each."""

from dataclasses import asdict

from authoring.bench import resume
from course_utils import data, formats, measure, models

TITLE = "All matrices of SmolLM2 in one format: perplexity on 16,384 held-out tokens"
HELDOUT_TOKENS, WINDOW = 16_384, 512
ROUNDED_UP = "MXFP4, scale rounded up"
LEFT_OUT = ("TF32", "FP4 E2M1")  # FP32 in memory; and ruined, as the lesson shows


def bench() -> list[dict]:
    """FP32 and each format.

    Returns:
        One row for each, with the perplexity of all windows and the bits a weight.
    """
    model, tokenizer = models.load_lm()
    heldout = data.wikipedia_tokens(tokenizer, "heldout", HELDOUT_TOKENS)
    names = [name for name in formats.FORMATS if name not in LEFT_OUT] + [ROUNDED_UP]

    def scored(name: str) -> dict:
        with formats.converting(model) as put_weights_in:
            converted = put_weights_in("MXFP4" if name == ROUNDED_UP else name)
            if name == ROUNDED_UP:
                put_weights_in("FP32")
                for matrix in (parameter for parameter in model.parameters() if parameter.dim() >= 2):
                    matrix.data.copy_(formats.mxfp4_rounded_up(matrix.data))
            return {"bits": converted.bits, "result": asdict(measure.perplexity(model, heldout, WINDOW))}

    return resume("bench_formats_ranking", TITLE, {(name,): {"format": name} for name in names}, scored)
