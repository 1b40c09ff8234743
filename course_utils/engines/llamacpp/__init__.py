"""llama.cpp, a program for one family of models, in a prebuilt wheel."""

from pathlib import Path

from course_utils.engines.entry import Engine, Variant

ENGINE = Engine(
    Path(__file__).parent, "llama.cpp in the wheel xllamacpp; reads the packaged GGUF", place=70,
    borrows=True, megabytes=127)
VARIANTS = {"llama.cpp Q4_1": Variant(ENGINE.name, bits=4, loads="gguf")}
