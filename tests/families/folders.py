"""Folders with a tiny model of a family and the embedded model's tokenizer, as `--lm` takes them.

    python -m tests.families.folders FOLDER [FAMILY...]     writes some and says where
"""

import sys
from pathlib import Path

from transformers import AutoTokenizer

from course_utils import models
from tests.families.models import tiny

SIZES = {"hidden_size": 64, "intermediate_size": 192, "max_position_embeddings": 4096}
# family: (its configuration in tests.families.models, changes). Names are those of the families that lessons
# are tried on; "llama, 16 blocks" is as deep as Llama 3.2 1B.
FOLDERS = {
    "llama, 16 blocks": ("llama", SIZES | {"num_hidden_layers": 16}),
    "qwen2": ("qwen2", SIZES),
    "gemma2": ("gemma2", SIZES | {"sliding_window": 64}),
    "gemma3": ("gemma3", SIZES | {"sliding_window": 64}),
    "mistral": ("mistral", SIZES | {"sliding_window": 64}),
    "mistral, long window": ("mistral", SIZES | {"sliding_window": 4096}),
    "gpt2": ("gpt2", {"n_positions": 4096}),
    "opt": ("opt", {"ffn_dim": 192, "max_position_embeddings": 4096}),
    "phi3": ("phi3", SIZES),
    "mixtral": ("mixtral", SIZES),
}


def write(family, folder):
    """A model of the family with random weights and a tokenizer with its vocabulary, in `folder`."""
    tokenizer = AutoTokenizer.from_pretrained(models.embedded_lm())
    name, changes = FOLDERS[family]
    model = tiny(name, vocab_size=len(tokenizer), **changes)
    model.save_pretrained(folder)
    tokenizer.model_max_length = 4096
    tokenizer.save_pretrained(folder)
    return folder


if __name__ == "__main__":
    for wanted in sys.argv[2:] or FOLDERS:
        print(write(wanted, Path(sys.argv[1]) / wanted.replace(", ", "-").replace(" ", "-")))
