"""Paged attention on tensors: keys and values lie in blocks, and are gathered for the attention.

A real kernel reads the blocks where they lie. Here they are gathered into one piece first, which the
attention of any transformers model then reads: the same numbers for a copy more.
Source: arXiv 2309.06180, sections 4.1 to 4.4.
"""

import torch
from transformers.cache_utils import Cache

from course_utils.kvcache import block_tables
from course_utils.kvcache.layers import Layer


def append(pool, tables, lengths, new):
    """Write the keys (or values) of new tokens into the blocks of their sequences, in place.

    pool     float tensor [blocks, block size, heads, head_dim]
    tables   integer tensor [batch, most blocks]: block table of each sequence, with room for the new tokens
    lengths  integer tensor [batch]: tokens that each sequence has stored so far
    new      float tensor [batch, heads, n, head_dim]: n new tokens for each sequence

    Returns None. Token i of sequence b goes to position lengths[b] + i of that sequence.
    """
    positions = lengths[:, None] + torch.arange(new.shape[2], device=new.device)
    ids, offsets = block_tables.lookup(tables, positions, pool.shape[1])
    pool[ids, offsets] = new.transpose(1, 2)


def gather(pool, tables, tokens):
    """Collect the first `tokens` keys (or values) of each sequence out of the blocks.

    pool    float tensor [blocks, block size, heads, head_dim]
    tables  integer tensor [batch, most blocks]; a table's padding points to any block
    tokens  int, at most most blocks * block size

    Returns a float tensor [batch, heads, tokens, head_dim]. For a sequence with fewer tokens, what lies
    beyond its end is of no meaning: the attention mask must hide it.
    """
    return pool[tables].flatten(1, 2)[:, :tokens].transpose(1, 2)


class KVPool(block_tables.BlockAllocator):
    """A pool of blocks for the keys and values of every layer of a model, and who owns which block.

    config      the model's config: num_hidden_layers, num_key_value_heads, head_dim
    n_blocks    blocks in the pool; a block holds `block_size` tokens of all layers
    dtype, device  of the keys and values
    """

    def __init__(self, config, n_blocks, block_size=16, dtype=torch.float32, device="cpu", prefix=None):
        super().__init__(n_blocks, block_size, prefix)
        shape = (n_blocks, block_size, config.num_key_value_heads, config.head_dim)
        # Zeros, not torch.empty: masked slots still meet a weight of 0, and 0 times NaN is NaN.
        layers = range(config.num_hidden_layers)
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in layers]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in layers]

    def reserve(self, sequence, tokens=1):
        """As in BlockAllocator; a block that is replaced by a copy is copied in all layers."""
        copies = super().reserve(sequence, tokens)
        for old, new in copies:
            for states in self.keys + self.values:
                states[new] = states[old]
        return copies

    def table_tensor(self, sequences):
        """Block tables of these sequences as an integer tensor [batch, most blocks], padded with 0."""
        tables = [self.tables[sequence] for sequence in sequences]
        width = max(map(len, tables))
        padded = [table + [0] * (width - len(table)) for table in tables]
        return torch.tensor(padded, device=self.keys[0].device)

    def length_tensor(self, sequences):
        """Tokens stored in each of these sequences, integer tensor [batch]."""
        return torch.tensor([self.lengths[sequence] for sequence in sequences], device=self.keys[0].device)


class PagedCache(Cache):
    """The sequences of one batch, seen as a transformers Cache over a `KVPool`.

    pool       the KVPool that holds the tokens
    sequences  name of the sequence in each row of the batch; unknown ones are created

    A pass over n tokens reserves room, writes and counts them. Sequences of equal length need nothing else:
    `model.generate(..., past_key_values=PagedCache(pool, ["a"]))` works. For sequences of different lengths
    give the model `positions` and `mask`, see there. The tokens stay in the pool when this object is gone:
    call pool.free(sequence). A forward pass that finds no room raises OutOfBlocks.
    """

    def __init__(self, pool, sequences):
        self.pool, self.sequences = pool, list(sequences)
        if not self.sequences or len(set(self.sequences)) < len(self.sequences):
            raise ValueError(f"sequences must be one or more different names, not {self.sequences!r}")
        for sequence in self.sequences:
            if sequence not in pool.tables:
                pool.create(sequence)
        super().__init__(layers=[PagedLayer(self, i) for i in range(len(pool.keys))])

    @property
    def longest(self):
        """Tokens stored in the longest of the sequences."""
        return max(self.pool.lengths[sequence] for sequence in self.sequences)

    def positions(self, tokens=1):
        """position_ids for a pass over `tokens` new tokens, integer [batch, tokens]."""
        lengths = self.pool.length_tensor(self.sequences)
        return lengths[:, None] + torch.arange(tokens, device=lengths.device)

    def mask(self, tokens=1):
        """attention_mask for that pass, added to the scores: float [batch, 1, tokens, longest + tokens].

        0 where a query may see a key of its own sequence up to itself, the lowest number elsewhere.
        """
        dtype = self.pool.keys[0].dtype
        positions = self.positions(tokens)
        key = torch.arange(self.longest + tokens, device=positions.device)
        hidden = key[None, None, :] > positions[:, :, None]
        return torch.zeros(hidden.shape, dtype=dtype).to(key.device).masked_fill(
            hidden, torch.finfo(dtype).min)[:, None]  # fmt: skip

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        """Store the new keys and values of one layer; return all of the sequences', gathered."""
        n = key_states.shape[2]
        if layer_idx == 0:
            self._reserve(key_states.shape[0], n)
        states = self.layers[layer_idx].update(key_states, value_states)
        if layer_idx == len(self.layers) - 1:  # the last layer has them too: now they count
            for sequence in self.sequences:
                self.pool.advance(sequence, n)
        return states

    def _reserve(self, batch, tokens):
        if batch != len(self.sequences):
            raise ValueError(f"this cache has {len(self.sequences)} sequence(s), a batch of {batch} came")
        for sequence in self.sequences:
            self.pool.reserve(sequence, tokens)
        self.tables = self.pool.table_tensor(self.sequences)
        self.lengths = self.pool.length_tensor(self.sequences)

    def reset(self):
        """Forget the tokens of all sequences; their blocks become free."""
        for sequence in self.sequences:
            self.pool.free(sequence)
            self.pool.create(sequence)

    def reorder_cache(self, beam_idx):
        """Beam search: row i goes on from row beam_idx[i]. Only tables change, blocks are shared."""
        fresh = [object() for _ in self.sequences]
        for row, name in zip(beam_idx.tolist(), fresh, strict=True):
            self.pool.fork(self.sequences[row], name)
        for sequence, name in zip(self.sequences, fresh, strict=True):
            self.pool.free(sequence)
            self.pool.fork(name, sequence)
            self.pool.free(name)


class PagedLayer(Layer):
    """One layer of a PagedCache: writes into the pool's blocks of this layer, and gathers from them."""

    def __init__(self, cache, index):
        super().__init__()
        self.cache = cache
        self.keys, self.values = cache.pool.keys[index], cache.pool.values[index]
        self.is_initialized = True

    def get_seq_length(self):
        return self.cache.longest

    def get_mask_sizes(self, query_length):
        return self.cache.longest + query_length, 0

    def update(self, key_states, value_states, *args, **kwargs):
        """Called by PagedCache.update, which has made room."""
        tables, lengths = self.cache.tables, self.cache.lengths
        append(self.keys, tables, lengths, key_states)
        append(self.values, tables, lengths, value_states)
        tokens = self.cache.longest + key_states.shape[2]
        return gather(self.keys, tables, tokens), gather(self.values, tables, tokens)
