"""The KV cache by hand: keep the keys and values of tokens already read instead of computing them again.

Modules:
    sizes: the bytes that a cache really stores (by formula: course_utils.costs).
    layers: dynamic, static (preallocated) and sliding window, as layers of a transformers Cache.
    quantized: INT8, INT4 and INT2: keys per channel, values per token, the newest tokens untouched (KIVI).
    prefix: reuse the cache of a prompt's beginning for the next request.
    decoding: greedy decoding with and without a cache, perplexity of a text read through a cache.
    block_tables: the bookkeeping of paged attention: block tables, reference counts, copy-on-write (no
        tensors).
    paged: keys and values in a pool of blocks, gathered for the transformers model.
    contiguous: the memory that paging replaced: one piece for each request, reserved in advance (no tensors).
    scheduler: who runs and who waits: continuous batching with preemption (no tensors).
    trace: many requests of uneven length against a fixed memory, simulated.
    server: a small server: the scheduler, the pool of blocks and a real model together.
"""
