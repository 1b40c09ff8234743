"""Paged attention on tensors: keys and values lie in blocks, and are gathered for the attention.

A real kernel reads the blocks where they lie. Here they are gathered into one piece first, which the
attention of any transformers model then reads: the same numbers for a copy more.
Source: arXiv 2309.06180, sections 4.1 to 4.4.
"""

from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache

from course_utils import costs
from course_utils.kvcache import block_tables
from course_utils.kvcache.layers import Layer


def append(pool: torch.Tensor, tables: torch.Tensor, lengths: torch.Tensor, new: torch.Tensor) -> None:
    """Write the keys (or values) of new tokens into the blocks of their sequences, in place.

    Token i of sequence b goes to position lengths[b] + i of that sequence.

    Args:
        pool: float tensor [blocks, block size, heads, head_dim].
        tables: integer tensor [batch, most blocks]: block table of each sequence, with room for the new
            tokens.
        lengths: integer tensor [batch]: tokens that each sequence has stored so far.
        new: float tensor [batch, heads, n, head_dim]: n new tokens for each sequence.
    """
    positions = lengths[:, None] + torch.arange(new.shape[2], device=new.device)
    ids, offsets = block_tables.lookup(tables, positions, pool.shape[1])
    pool[ids, offsets] = new.transpose(1, 2)


def gather(pool: torch.Tensor, tables: torch.Tensor, tokens: int) -> torch.Tensor:
    """Collect the first `tokens` keys (or values) of each sequence out of the blocks.

    Args:
        pool: float tensor [blocks, block size, heads, head_dim].
        tables: integer tensor [batch, most blocks]; a table's padding points to any block.
        tokens: at most most blocks * block size.

    Returns:
        Float tensor [batch, heads, tokens, head_dim]. For a sequence with fewer tokens, what lies beyond its
        end is of no meaning: the attention mask must hide it.
    """
    return pool[tables].flatten(1, 2)[:, :tokens].transpose(1, 2)


class KVPool(block_tables.BlockAllocator):
    """A pool of blocks for the keys and values of every layer of a model, and who owns which block.

    Args:
        config: the model's; `costs.kv_shape` says how large its keys and values are.
        n_blocks: blocks in the pool; a block holds `block_size` tokens of all layers.
        block_size: tokens in a block.
        dtype: of the keys and values.
        device: of the keys and values.
        prefix: as in BlockAllocator.

    Attributes:
        keys: for each layer a tensor [n_blocks, block_size, heads, head_dim].
        values: the same.

    Raises:
        ValueError: a count is no whole number of at least 1, or the model keeps no plain keys and values.
    """

    def __init__(self, config: PreTrainedConfig, n_blocks: int, block_size: int = 16,
                 dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu",
                 prefix: Hashable | None = None) -> None:
        super().__init__(n_blocks, block_size, prefix)
        layers, heads, width = costs.kv_shape(config)
        shape = (n_blocks, block_size, heads, width)
        # Zeros, not torch.empty: masked slots still meet a weight of 0, and 0 times NaN is NaN.
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(layers)]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(layers)]

    def reserve(self, sequence: Hashable, tokens: int = 1) -> list[tuple[int, int]]:
        """As in BlockAllocator; a block that is replaced by a copy is copied in all layers.

        Args:
            sequence: its name.
            tokens: tokens to make room for, at least 1.

        Returns:
            Pairs (old block, new block): the copies that were made.

        Raises:
            OutOfBlocks: too few blocks are free. Nothing was changed.
            ValueError: the sequence is unknown, or `tokens` is below 1.
        """
        copies = super().reserve(sequence, tokens)
        for old, new in copies:
            for states in self.keys + self.values:
                states[new] = states[old]
        return copies

    def table_tensor(self, sequences: Sequence[Hashable]) -> torch.Tensor:
        """Block tables of some sequences.

        Args:
            sequences: their names.

        Returns:
            Integer tensor [batch, most blocks], padded with 0.
        """
        tables = [self.tables[sequence] for sequence in sequences]
        width = max(map(len, tables))
        padded = [table + [0] * (width - len(table)) for table in tables]
        return torch.tensor(padded, device=self.keys[0].device)

    def length_tensor(self, sequences: Sequence[Hashable]) -> torch.Tensor:
        """Tokens stored in each of some sequences.

        Args:
            sequences: their names.

        Returns:
            Integer tensor [batch].
        """
        return torch.tensor([self.lengths[sequence] for sequence in sequences], device=self.keys[0].device)


class PagedCache(Cache):
    """The sequences of one batch, seen as a transformers Cache over a `KVPool`.

    A pass over n tokens reserves room, writes and counts them. Sequences of equal length need nothing else:
    `model.generate(..., past_key_values=PagedCache(pool, ["a"]))` works. For sequences of different lengths
    give the model `positions` and `mask`, see there. The tokens stay in the pool when this object is gone:
    call pool.free(sequence). A forward pass that finds no room raises OutOfBlocks.

    Args:
        pool: holds the tokens.
        sequences: name of the sequence in each row of the batch; unknown ones are created.

    Raises:
        ValueError: there is no name, or one stands twice.
    """

    def __init__(self, pool: KVPool, sequences: Iterable[Hashable]) -> None:
        self.pool, self.sequences = pool, list(sequences)
        if not self.sequences or len(set(self.sequences)) < len(self.sequences):
            raise ValueError(f"sequences must be one or more different names, not {self.sequences!r}")
        for sequence in self.sequences:
            if sequence not in pool.tables:
                pool.create(sequence)
        super().__init__(layers=[PagedLayer(self, i) for i in range(len(pool.keys))])

    @property
    def longest(self) -> int:
        """Tokens stored in the longest of the sequences."""
        return max(self.pool.lengths[sequence] for sequence in self.sequences)

    def positions(self, tokens: int = 1) -> torch.Tensor:
        """The model's position_ids for a pass.

        Args:
            tokens: new tokens in the pass.

        Returns:
            Integer tensor [batch, tokens].
        """
        lengths = self.pool.length_tensor(self.sequences)
        return lengths[:, None] + torch.arange(tokens, device=lengths.device)

    def mask(self, tokens: int = 1) -> torch.Tensor:
        """The model's attention_mask for a pass, added to the scores.

        Args:
            tokens: new tokens in the pass.

        Returns:
            Float tensor [batch, 1, tokens, longest + tokens]: 0 where a query may see a key of its own
            sequence up to itself, the lowest number elsewhere.
        """
        dtype = self.pool.keys[0].dtype
        positions = self.positions(tokens)
        key = torch.arange(self.longest + tokens, device=positions.device)
        hidden = key[None, None, :] > positions[:, :, None]
        return torch.zeros(hidden.shape, dtype=dtype).to(key.device).masked_fill(
            hidden, torch.finfo(dtype).min)[:, None]  # fmt: skip

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any,
               **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Store the new keys and values of one layer.

        Args:
            key_states: keys of the new tokens, float [batch, heads, n, head_dim].
            value_states: their values, of the same shape.
            layer_idx: number of the layer, from 0. Layer 0 reserves the room, the last one counts the tokens.
            *args: ignored.
            **kwargs: ignored.

        Returns:
            All keys and all values of the sequences in this layer, gathered: each
            [batch, heads, longest + n, head_dim].

        Raises:
            OutOfBlocks: the pool has too few free blocks.
            ValueError: the batch has another size than the list of sequences.
        """
        n = key_states.shape[2]
        if layer_idx == 0:
            self._reserve(key_states.shape[0], n)
        states = self.layers[layer_idx].update(key_states, value_states)
        if layer_idx == len(self.layers) - 1:  # the last layer has them too: now they count
            for sequence in self.sequences:
                self.pool.advance(sequence, n)
        return states

    def _reserve(self, batch: int, tokens: int) -> None:
        if batch != len(self.sequences):
            raise ValueError(f"this cache has {len(self.sequences)} sequence(s), a batch of {batch} came")
        for sequence in self.sequences:
            self.pool.reserve(sequence, tokens)
        self.tables = self.pool.table_tensor(self.sequences)
        self.lengths = self.pool.length_tensor(self.sequences)

    def reset(self) -> None:
        """Forget the tokens of all sequences; their blocks become free."""
        for sequence in self.sequences:
            self.pool.free(sequence)
            self.pool.create(sequence)

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Beam search: row i goes on from row beam_idx[i]. Only tables change, blocks are shared.

        Args:
            beam_idx: integer tensor [batch].
        """
        fresh = [object() for _ in self.sequences]
        for row, name in zip(beam_idx.tolist(), fresh, strict=True):
            self.pool.fork(self.sequences[row], name)
        for sequence, name in zip(self.sequences, fresh, strict=True):
            self.pool.free(sequence)
            self.pool.fork(name, sequence)
            self.pool.free(name)


class PagedLayer(Layer):
    """One layer of a PagedCache: writes into the pool's blocks of this layer, and gathers from them.

    Args:
        cache: the cache that this layer belongs to.
        index: number of the layer, from 0.
    """

    def __init__(self, cache: PagedCache, index: int) -> None:
        super().__init__()
        self.cache = cache
        self.keys, self.values = cache.pool.keys[index], cache.pool.values[index]
        self.is_initialized = True

    def get_seq_length(self) -> int:
        """Tokens stored in the longest of the sequences.

        Returns:
            Their number.
        """
        return self.cache.longest

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """What transformers needs for the attention mask of a pass.

        Args:
            query_length: new tokens in the pass.

        Returns:
            (width of the mask, position of its first column), in tokens.
        """
        return self.cache.longest + query_length, 0

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any,
               **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Store the new tokens. Called by PagedCache.update, which has made room.

        Args:
            key_states: their keys, float [batch, heads, n, head_dim].
            value_states: their values, of the same shape.
            *args: ignored.
            **kwargs: ignored.

        Returns:
            All keys and all values of the sequences, each [batch, heads, longest + n, head_dim].
        """
        tables, lengths = self.cache.tables, self.cache.lengths
        append(self.keys, tables, lengths, key_states)
        append(self.values, tables, lengths, value_states)
        tokens = self.cache.longest + key_states.shape[2]
        return gather(self.keys, tables, tokens), gather(self.values, tables, tokens)
