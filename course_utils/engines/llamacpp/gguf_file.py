"""A Llama-like model as a GGUF file in the formats Q4_0 and Q4_K_M, rounded by llama.cpp's own functions.

Which matrix gets which format is the rule of llama.cpp's program llama-quantize, without an importance matrix
(https://github.com/ggml-org/llama.cpp/blob/master/src/llama-quant.cpp). The wheel has the functions that
round, not the program.

The file has no tokenizer: an engine of this course gets token ids.
"""

import ctypes
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Format
from transformers import AutoModelForCausalLM, PreTrainedConfig

# For rows that are no multiple of 256, the length of a K-format's block.
INSTEAD = {Format.Q4_K: Format.Q5_0, Format.Q6_K: Format.Q8_0}


def write(model_folder: str | Path, file: str | Path, kind: str, library: ctypes.CDLL) -> None:
    """Write the model to `file` (.gguf).

    Args:
        model_folder: folder of the model.
        file: path of the file.
        kind: "q4_0" or "q4_k_m".
        library: llama.cpp.

    Raises:
        ValueError: the model is no Llama with tied embeddings.
    """
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32, local_files_only=True)
    config = model.config
    if config.model_type != "llama" or not config.tie_word_embeddings:
        raise ValueError(f"{config.model_type}: only a Llama with tied embeddings can be written")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    writer = gguf.GGUFWriter(str(file), "llama")
    describe(writer, config)
    for own, tensor in model.state_dict().items():
        if own == "lm_head.weight":
            continue  # the embedding again
        name, values = names.get_name(own, try_suffixes=(".weight",)), tensor.numpy()
        if values.ndim == 1:
            writer.add_tensor(name, values)
            continue
        chosen = matrix_format(name, values.shape[1], kind, config.num_hidden_layers)
        packed = quantize(pairs_together(name, values, config), chosen, library)
        writer.add_tensor(name, packed, raw_dtype=chosen)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def describe(writer: gguf.GGUFWriter, config: PreTrainedConfig) -> None:
    """Add what llama.cpp must know of the model."""
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("none")


def matrix_format(name: str, columns: int, kind: str, layers: int) -> Format:
    """The format that llama-quantize gives a matrix.

    Args:
        name: of the tensor in GGUF, such as "blk.3.ffn_down.weight".
        columns: numbers in a row.
        kind: "q4_0" or "q4_k_m".
        layers: of the model.

    Returns:
        The format. A K-format needs rows in multiples of 256; others get one with more bits.
    """
    chosen = Format.Q4_0 if kind == "q4_0" else Format.Q4_K
    if name.startswith("token_embd"):
        chosen = Format.Q6_K
    elif kind == "q4_k_m" and ("ffn_down" in name or "attn_v" in name):
        layer, eighth = int(name.split(".")[1]), layers // 8
        if layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2:
            chosen = Format.Q6_K
    return INSTEAD[chosen] if chosen in INSTEAD and columns % 256 else chosen


def pairs_together(name: str, weight: np.ndarray, config: PreTrainedConfig) -> np.ndarray:
    """Rows of the query's and the key's matrix in llama.cpp's order, others as they come.

    Rotary embeddings turn pairs of numbers. transformers pairs number i with i + head dim / 2, llama.cpp with
    i + 1.
    """
    heads = {"attn_q.": config.num_attention_heads, "attn_k.": config.num_key_value_heads}
    for part, count in heads.items():
        if part in name:
            return weight.reshape(count, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)
    return weight


def quantize(weight: np.ndarray, chosen: Format, library: ctypes.CDLL) -> np.ndarray:
    """Round a matrix.

    Args:
        weight: float32 [rows, columns].
        chosen: the format.
        library: llama.cpp.

    Returns:
        uint8 [rows, bytes of a row].
    """
    numbers, nbytes = gguf.GGML_QUANT_SIZES[chosen]
    rows, columns = weight.shape
    packed = np.empty((rows, columns // numbers * nbytes), np.uint8)
    source = np.ascontiguousarray(weight, np.float32)
    round_rows = library.ggml_quantize_chunk
    round_rows.restype = ctypes.c_size_t
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    round_rows.argtypes = [ctypes.c_int, pointer, pointer, number, number, number, pointer]
    written = round_rows(int(chosen), source.ctypes.data, packed.ctypes.data, 0, rows, columns, None)
    if written != packed.nbytes:
        raise ValueError(f"llama.cpp wrote {written:,} bytes in {chosen.name}, not {packed.nbytes:,}")
    return packed
