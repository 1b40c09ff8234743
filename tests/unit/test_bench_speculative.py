"""The bench of speculative decoding: the draft that it writes for llama.cpp."""

import gguf
import numpy as np

from authoring.bench import speculative
from course_utils import models


def test_the_shorter_file_has_the_blocks_that_are_left(tmp_path):
    source = models.embedded_gguf()
    speculative.write_shorter_gguf(source, [0, 2, 29], tmp_path / "short.gguf")
    whole, short = gguf.GGUFReader(source), gguf.GGUFReader(tmp_path / "short.gguf")
    assert short.fields["llama.block_count"].contents() == 27
    assert {name for name in whole.fields if name != "GGUF.tensor_count"} <= set(short.fields) | {
        "GGUF.version", "GGUF.kv_count"}
    for name in ("tokenizer.ggml.tokens", "llama.rope.freq_base", "llama.attention.head_count_kv"):
        assert short.fields[name].contents() == whole.fields[name].contents()
    before = {tensor.name: tensor for tensor in whole.tensors}
    kept = [i for i in range(30) if i not in (0, 2, 29)]
    names = {tensor.name for tensor in short.tensors}
    assert len(names) == len(before) - 3 * len([name for name in before if name.startswith("blk.0.")])
    for tensor in short.tensors:
        parts = tensor.name.split(".")
        if parts[0] == "blk":
            parts[1] = str(kept[int(parts[1])])
        like = before[".".join(parts)]
        assert tensor.tensor_type == like.tensor_type and np.array_equal(tensor.data, like.data)
