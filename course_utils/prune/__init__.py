"""Pruning by hand: take weights away and measure what is lost.

unstructured  single weights: by chance, by size, by size times input (Wanda); n of m neighbours; zeros held
sparsegpt     the weights that stay make up for those that go
sparse        what zeros save: bitmask, CSR, packed 2:4
structured    whole attention heads and MLP neurons
depth         whole blocks
pruned_bert   a BERT with fewer heads, as a file that transformers loads
"""
