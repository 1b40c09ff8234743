"""Loops for the CPU, in the place of those that TVM would make itself: matrix products, and attention.

TVM's own loops are right and slow: it does not know in which order weights are read best, or which numbers
should stay in registers. Saying that is called a schedule. Here it is written out as TVMScript, a subset of
Python that TVM compiles.

Each function returns a TVM function on FP32 buffers. Sizes of the model are constants in it; the numbers of
rows, of texts and of tokens are read from the buffers when it runs.
"""

from typing import Any

from tvm.script import tirx as T

LANES = 16  # outputs of a panel: two AVX2 registers, or one of AVX-512
ROWS = 6  # rows of a tile: 6 * 2 registers of sums, which leaves 4 of AVX2's 16 for weights and inputs


def linear(inputs: int, outputs: int) -> Any:
    """Multiply x [rows, inputs] by weights in panels [outputs / LANES, inputs, LANES]: y [rows, outputs].

    A panel's weights lie in the order in which they are read. Each is read once for every ROWS rows, and the
    sums of a tile stay in registers. Rows that fill no tile, and the one row of a step, go one at a time.
    """
    panels = outputs // LANES

    @T.prim_func(s_tir=True, private=True)
    def kernel(x_: T.handle, w_: T.handle, y_: T.handle):  # noqa: ANN202 - TVM would read the hint
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        rows = T.int64()
        x = T.match_buffer(x_, (rows, inputs), "float32")
        w = T.match_buffer(w_, (panels, inputs, LANES), "float32")
        y = T.match_buffer(y_, (rows, outputs), "float32")
        for p in T.parallel(panels):
            with T.sblock("panel"):
                tile = T.sblock_alloc_buffer((ROWS, LANES), "float32", scope="local")
                row = T.sblock_alloc_buffer((LANES,), "float32", scope="local")
                for i in T.serial(rows // ROWS):
                    for r in T.unroll(ROWS):
                        for c in T.vectorized(LANES):
                            tile[r, c] = T.float32(0)
                    for k in T.serial(inputs):
                        for r in T.unroll(ROWS):
                            for c in T.vectorized(LANES):
                                tile[r, c] = tile[r, c] + x[i * ROWS + r, k] * w[p, k, c]
                    for r in T.unroll(ROWS):
                        for c in T.vectorized(LANES):
                            y[i * ROWS + r, p * LANES + c] = tile[r, c]
                for i in T.serial(rows // ROWS * ROWS, rows):
                    for c in T.vectorized(LANES):
                        row[c] = T.float32(0)
                    for k in T.serial(inputs):
                        for c in T.vectorized(LANES):
                            row[c] = row[c] + x[i, k] * w[p, k, c]
                    for c in T.vectorized(LANES):
                        y[i, p * LANES + c] = row[c]

    return kernel


def embedding(inputs: int, vocabulary: int) -> Any:
    """Rows of the embedding out of the output layer's panels: tied weights are then stored once."""

    @T.prim_func(s_tir=True, private=True)
    def kernel(ids_: T.handle, w_: T.handle, y_: T.handle):  # noqa: ANN202 - TVM would read the hint
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        rows = T.int64()
        ids = T.match_buffer(ids_, (rows,), "int64")
        w = T.match_buffer(w_, (vocabulary // LANES, inputs, LANES), "float32")
        y = T.match_buffer(y_, (rows, inputs), "float32")
        for i in T.serial(rows):
            for k in T.serial(inputs):
                with T.sblock("copy"):
                    y[i, k] = w[ids[i] // LANES, k, ids[i] % LANES]

    return kernel


def attention(heads: int, groups: int, width: int, scale: float) -> Any:
    """Causal attention: the newest of `past + new` keys belongs to the newest query.

    q [texts, heads, new, width]; k, v [texts, groups, past + new, width]; y [texts, new, heads, width].
    scores [texts, heads, past + new] is scratch memory. What a token may not see is not computed at all.
    """
    share, chunks = heads // groups, width // LANES

    @T.prim_func(s_tir=True, private=True)
    def kernel(q_: T.handle, k_: T.handle, v_: T.handle, y_: T.handle, scores_: T.handle):  # noqa: ANN202 - TVM would read the hint
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        texts, new, total = T.int64(), T.int64(), T.int64()
        q = T.match_buffer(q_, (texts, heads, new, width), "float32")
        k = T.match_buffer(k_, (texts, groups, total, width), "float32")
        v = T.match_buffer(v_, (texts, groups, total, width), "float32")
        y = T.match_buffer(y_, (texts, new, heads, width), "float32")
        scores = T.match_buffer(scores_, (texts, heads, total), "float32")
        for th in T.parallel(texts * heads):
            with T.sblock("head"):
                part = T.sblock_alloc_buffer((LANES,), "float32", scope="local")
                out = T.sblock_alloc_buffer((chunks, LANES), "float32", scope="local")
                summed = T.sblock_alloc_buffer((1,), "float32", scope="local")
                stat = T.sblock_alloc_buffer((2,), "float32", scope="local")
                t: T.let[T.int64] = th // heads
                h: T.let[T.int64] = th % heads
                g: T.let[T.int64] = th % heads // share
                for i in T.serial(new):
                    stat[0] = T.min_value("float32")
                    stat[1] = T.float32(0)
                    for j in T.serial(total - new + i + 1):
                        for c in T.vectorized(LANES):
                            part[c] = T.float32(0)
                        for b in T.unroll(chunks):
                            for c in T.vectorized(LANES):
                                part[c] = part[c] + q[t, h, i, b * LANES + c] * k[t, g, j, b * LANES + c]
                        summed[0] = T.float32(0)
                        for c in T.unroll(LANES):
                            summed[0] = summed[0] + part[c]
                        scores[t, h, j] = summed[0] * T.float32(scale)
                        stat[0] = T.max(stat[0], scores[t, h, j])
                    for j in T.serial(total - new + i + 1):
                        scores[t, h, j] = T.exp(scores[t, h, j] - stat[0])
                        stat[1] = stat[1] + scores[t, h, j]
                    for b in T.unroll(chunks):
                        for c in T.vectorized(LANES):
                            out[b, c] = T.float32(0)
                    for j in T.serial(total - new + i + 1):
                        for b in T.unroll(chunks):
                            for c in T.vectorized(LANES):
                                out[b, c] = out[b, c] + scores[t, h, j] * v[t, g, j, b * LANES + c]
                    for b in T.unroll(chunks):
                        for c in T.vectorized(LANES):
                            y[t, i, h, b * LANES + c] = out[b, c] / stat[1]

    return kernel
