"""Model merging by hand: several fine-tuned models become one, without any training.

Modules:
    vectors: two tensors read as arrows: the angle between them, the straight way and the round way across.
    states: whole state dicts: what must agree before a merge, and how tied weights stay tied.
    methods: LERP, SLERP, model soup, task arithmetic, TIES, DARE.
"""
