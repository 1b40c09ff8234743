"""What a language model needs on a phone: bytes, the speed that they allow, the energy that they cost.

All of it is arithmetic from a model's config. Phones are described by the memory that is built in and by its
bandwidth, which follows from the kind of memory: transfers a second x width of the bus.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from course_utils import costs

if TYPE_CHECKING:  # what the quoted hints name
    from transformers import LlamaConfig

BUS_BITS = 64  # a phone's memory: four channels of 16 bits

# Joules. M. Horowitz, "Computing's energy problem (and what we can do about it)", ISSCC 2014, figure 1.1.9,
# a 45 nm process: 64 bits from DRAM 1.3 to 2.6 nJ; multiplication and addition of 32-bit floats.
DRAM_JOULES_PER_BYTE = (1.3e-9 / 8, 2.6e-9 / 8)
JOULES_PER_MULTIPLICATION_AND_ADDITION = 3.7e-12 + 0.9e-12


@dataclass(frozen=True)
class Phone:
    """A class of phones.

    Attributes:
        name: its memory in GB and the kind of memory.
        memory: bytes that are built in.
        bandwidth: bytes a second, the most that the interface can carry.
    """

    name: str
    memory: float
    bandwidth: float


def memory_bandwidth(transfers: float, bus_bits: int = BUS_BITS) -> float:
    """Bytes a second that a memory interface can carry.

    Args:
        transfers: transfers a second on each line.
        bus_bits: lines.

    Returns:
        Bytes a second.
    """
    return transfers * bus_bits / 8


# Transfers a second by JEDEC's standards JESD209-4 (LPDDR4X) and JESD209-5 (LPDDR5, LPDDR5X); 2^30 bytes are
# one GB of a memory chip. Which memory stands with which size is our choice, from cheap to dear.
PHONES = [
    Phone(f"{size} GB, {kind}", size * 2**30, memory_bandwidth(transfers))
    for size, kind, transfers in (
        (4, "LPDDR4X-4266", 4266e6), (6, "LPDDR4X-4266", 4266e6), (8, "LPDDR5-6400", 6400e6),
        (12, "LPDDR5X-8533", 8533e6), (16, "LPDDR5X-8533", 8533e6), (24, "LPDDR5X-9600", 9600e6))
]  # fmt: skip


def needed_bytes(
    config: "LlamaConfig", context: int, bits: int, group: int | None = None, cache_bits: int = 16,
    chunk: int = 1,
) -> dict[str, int]:
    """Bytes that a Llama model needs in memory while it writes.

    Args:
        config: as in `costs.parameter_count`.
        context: tokens in the KV cache.
        bits: bits of one weight; all weights are stored like this.
        group: so many weights share a scale of 16 bits; None: no scales.
        cache_bits: bits of one number in the KV cache.
        chunk: tokens that are read in one pass.

    Returns:
        "weights": of all matrices that each step multiplies by (`costs.weights_read`);
        "table": an untied embedding, which is only looked up; 0 when it is tied;
        "cache": of all tokens of the context;
        "activations": FP32 numbers alive at once, where a block is widest: for each token of the chunk the
        input of the MLP and the results of its two large matrices, and one row of scores of the vocabulary.
    """
    read = costs.weights_read(config)
    widest = config.hidden_size + 2 * config.intermediate_size
    return {
        "weights": costs.bytes_at_bits(read, bits, group),
        "table": costs.bytes_at_bits(costs.parameter_count(config) - read, bits, group),
        "cache": context * costs.kv_bytes_per_token(config, cache_bits),
        "activations": 4 * (chunk * widest + config.vocab_size),
    }


def what_runs(
    free: float, bandwidth: float, models: Mapping[str, Mapping[str, float]]
) -> list[tuple[str, float]]:
    """The models that fit into a phone's free memory, and how fast they can write there at best.

    Args:
        free: bytes that the system leaves.
        bandwidth: bytes a second.
        models: for each model what `needed_bytes` gives.

    Returns:
        (model, tokens a second that memory allows at most) of those that fit, the fastest first. All that a
        model needs must fit; a step reads the weights and the cache.
    """
    fitting = [(name, costs.decode_bound(need["weights"], bandwidth, need["cache"]))
               for name, need in models.items() if sum(need.values()) <= free]
    return sorted(fitting, key=lambda item: item[1], reverse=True)


def joules_per_token(read_bytes: float, weights: float) -> tuple[float, float]:
    """Energy of one token: the bytes come from DRAM, each weight is multiplied and added once.

    Args:
        read_bytes: bytes read for the token.
        weights: how many numbers are multiplied.

    Returns:
        (low, high) in joules, as the cited figures for DRAM have a range.
    """
    computing = weights * JOULES_PER_MULTIPLICATION_AND_ADDITION
    return tuple(read_bytes * joules + computing for joules in DRAM_JOULES_PER_BYTE)
