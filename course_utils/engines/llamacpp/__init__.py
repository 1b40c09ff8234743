"""llama.cpp, a program for one family of models, in a prebuilt wheel."""

from pathlib import Path

from course_utils.engines.entry import Engine, Variant

ENGINE = Engine(
    Path(__file__).parent, "llama.cpp in the wheel xllamacpp; reads the packaged GGUF, and our own", place=70,
    borrows=True, megabytes=127, steps=("q4_0", "q4_k_m"))
PACKED = {"bits": 4, "activation_bits": 8, "group": "32"}
VARIANTS = {
    "llama.cpp Q4_1": Variant(ENGINE.name, loads="gguf", **PACKED),  # as the model is packaged
    "llama.cpp Q4_0": Variant(ENGINE.name, loads=ENGINE.name, part="q4_0", **PACKED),
    "llama.cpp Q4_K_M": Variant(ENGINE.name, loads=ENGINE.name, part="q4_k_m", **PACKED),
}
