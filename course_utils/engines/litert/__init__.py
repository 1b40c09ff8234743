"""LiteRT, formerly TFLite: Google's runtime for phones. One block of the model, not a row of the table."""

from pathlib import Path

from course_utils.engines.entry import Engine

ENGINE = Engine(Path(__file__).parent, "LiteRT, formerly TFLite: one block of the model, in FP32", place=65,
                borrows=True)
