"""Exercises of the lesson on structured pruning."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from course_utils.checking import Case, Exercise, Mistake, Prediction
from course_utils.checking.cases import seeded
from course_utils.prune import depth, structured


def _generator():
    return torch.Generator().manual_seed(seeded(7))


# --- head_importance --------------------------------------------------------------------------------------


def _importance_cases():
    generator = _generator()

    def pair(*shape):
        return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)

    one, gradient = pair(1, 4, 6)
    strided = [tensor.transpose(0, 1) for tensor in pair(4, 5, 8)]
    opposite = torch.ones(2, 3, 4)
    return [
        Case(*pair(3, 4, 6), 2, label="three heads of two channels"),
        Case(one, gradient, 3, label="one example"),
        Case(*strided, 2, label="transposed views"),
        Case(*pair(3, 5, 4), 1, label="heads of one channel"),
        Case(*pair(2, 5, 4), 4, label="a single head"),
        Case(opposite, opposite * torch.tensor([1.0, -1.0]).view(2, 1, 1), 2,
             label="two examples that pull in opposite directions"),
        Case(torch.zeros(2, 3, 6), torch.randn(2, 3, 6, generator=generator), 3,
             label="heads that put out nothing"),
        Case(*(1e-2 * tensor for tensor in pair(5, 2, 9)), 3, label="small numbers, three heads of three"),
        Case(*(tensor.double() for tensor in pair(2, 1, 10)), 5, label="one token, float64"),
    ]


def _by_head(product, head_dim):
    """[examples, tokens, channels] -> [examples, heads, tokens * head_dim]."""
    return product.unflatten(-1, (-1, head_dim)).transpose(1, 2).flatten(2)


HEAD_IMPORTANCE = Exercise(
    reference=structured.head_importance,
    cases=_importance_cases,
    rtol=1e-4,
    atol=1e-7,
    mistakes=[
        Mistake(
            "the absolute value taken before the sum. One gate multiplies the whole head, so the products of "
            "its tokens and channels add up with their signs.",
            lambda o, g, d: _by_head((o * g).abs(), d).sum(-1).mean(0),
        ),
        Mistake(
            "the mean over the examples taken before the absolute value. A head that helps one example and "
            "hurts another would count as useless.",
            lambda o, g, d: _by_head(o * g, d).sum(-1).mean(0).abs(),
        ),
        Mistake(
            "a sum over the examples instead of a mean: it grows with the number of examples.",
            lambda o, g, d: _by_head(o * g, d).sum(-1).abs().sum(0),
        ),
        Mistake(
            "a mean over tokens and channels instead of a sum. The derivative by the gate is a sum.",
            lambda o, g, d: _by_head(o * g, d).mean(-1).abs().mean(0),
        ),
        Mistake(
            "the gradient alone. A head that puts out little changes little, however steep the loss.",
            lambda o, g, d: _by_head(g, d).sum(-1).abs().mean(0),
        ),
        Mistake(
            "channels of different heads mixed: head h has neighbouring channels, from h * head_dim on.",
            lambda o, g, d: (o * g).unflatten(-1, (d, -1)).sum(dim=(1, 2)).abs().mean(0),
        ),
        Mistake(
            "a square instead of the absolute value.",
            lambda o, g, d: _by_head(o * g, d).sum(-1).square().mean(0),
        ),
    ],
    hint="With loss L and output xi * o the chain rule gives dL/dxi = sum of o * dL/do. A sum over what?",
)


# --- slice_heads ------------------------------------------------------------------------------------------


def _layers(heads, kv_heads, head_dim, hidden, bias):
    generator = _generator()
    shapes = [(heads * head_dim, hidden), (kv_heads * head_dim, hidden), (kv_heads * head_dim, hidden),
              (hidden, heads * head_dim)]
    layers = [nn.Linear(columns, rows, bias=bias) for rows, columns in shapes]
    for layer in layers:
        for parameter in layer.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)
    return layers


def _slice_cases():
    return [
        Case(*_layers(4, 4, 3, 12, True), [0, 2], 3, label="4 heads, like BERT"),
        Case(*_layers(4, 4, 2, 10, False), [3], 2, label="one head left; hidden is not heads * head_dim"),
        Case(*_layers(6, 3, 2, 12, False), [0, 2], 2, label="6 query heads share 3 key-value heads"),
        Case(*_layers(9, 3, 2, 18, False), [1], 2, label="9 query heads share 3 key-value heads, one left"),
        Case(*_layers(4, 2, 4, 16, True), [1], 4, label="2 query heads for each key-value head, with biases"),
        Case(*_layers(4, 4, 2, 8, True), [0, 1, 2, 3], 2, label="all heads stay"),
        Case(*_layers(6, 2, 3, 7, True), [1], 3, label="6 query heads share 2, a narrow stream"),
        Case(*_layers(8, 4, 1, 5, False), [0, 1, 3], 1, label="heads of one row"),
        Case(*_layers(3, 3, 5, 4, True), [1, 2], 5, label="three heads of 5 rows"),
    ]


def _cut_and_look(cut, query, key, value, output, keep, head_dim):
    """What the learner's function returns, as tensors and bytes that can be compared."""
    found = {}
    layers = cut(query, key, value, output, keep, head_dim)
    for name, layer in zip(("query", "key", "value", "output"), layers, strict=True):
        found[f"{name}.weight"] = layer.weight.detach()
        found[f"{name}.bias"] = None if layer.bias is None else layer.bias.detach()
        found[f"{name}: bytes in memory"] = layer.weight.untyped_storage().nbytes()
    return found


def _new(layer, weight, bias):
    new = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    new.weight = nn.Parameter(weight)
    if bias is not None:
        new.bias = nn.Parameter(bias)
    return new


def _kept_rows(layer, rows, bias=True):
    kept = None if layer.bias is None or not bias else layer.bias.detach()[rows]
    return _new(layer, layer.weight.detach()[rows], kept)


def _kept_columns(layer, columns):
    return _new(layer, layer.weight.detach()[:, columns], layer.bias)


def _channels(heads, head_dim):
    return [head * head_dim + i for head in heads for i in range(head_dim)]


def _group(query, key):
    return query.out_features // key.out_features


def _slice(query, key, value, output, keep, head_dim, *, query_heads=None, channels=_channels, bias=True,
           keys=True):
    """slice_heads with one thing done wrongly. query_heads: function on (keep, group, kv_heads)."""
    group, kv_heads = _group(query, key), key.out_features // head_dim
    neighbours = [head * group + i for head in keep for i in range(group)]
    of_query = channels(neighbours if query_heads is None else query_heads(keep, group, kv_heads), head_dim)
    of_key = channels(keep, head_dim)
    cut_key, cut_value = ((_kept_rows(layer, of_key, bias) for layer in (key, value)) if keys
                          else (key, value))
    return _kept_rows(query, of_query, bias), cut_key, cut_value, _kept_columns(output, of_query)


def _slice_others(query, key, value, output, keep, head_dim):
    others = [head for head in range(key.out_features // head_dim) if head not in keep]
    return _slice(query, key, value, output, others, head_dim)


def _slice_output_rows(query, key, value, output, keep, head_dim):
    q, k, v, _ = _slice(query, key, value, output, keep, head_dim)
    group = _group(query, key)
    rows = _channels([head * group + i for head in keep for i in range(group)], head_dim)
    return q, k, v, _kept_rows(output, [row % output.out_features for row in rows])


def _slice_interleaved(query, key, value, output, keep, head_dim):
    group, kv_heads = _group(query, key), key.out_features // head_dim
    of_key = [i * kv_heads + head for head in keep for i in range(head_dim)]
    query_heads = [head * group + i for head in keep for i in range(group)]
    of_query = [i * kv_heads * group + head for head in query_heads for i in range(head_dim)]
    return (_kept_rows(query, of_query), _kept_rows(key, of_key), _kept_rows(value, of_key),
            _kept_columns(output, of_query))


def _slice_single_channels(query, key, value, output, keep, head_dim):
    return (_kept_rows(query, keep), _kept_rows(key, keep), _kept_rows(value, keep),
            _kept_columns(output, keep))


def _zero_instead(query, key, value, output, keep, head_dim):
    cut = _slice(query, key, value, output, keep, head_dim)
    group = _group(query, key)
    of_key = _channels(keep, head_dim)
    of_query = _channels([head * group + i for head in keep for i in range(group)], head_dim)
    whole = []
    for layer, new, rows in zip((query, key, value), cut, (of_query, of_key, of_key), strict=False):
        weight = torch.zeros_like(layer.weight)
        weight[rows] = new.weight.detach()
        bias = None if layer.bias is None else torch.zeros_like(layer.bias)
        if bias is not None:
            bias[rows] = new.bias.detach()
        whole.append(_new(layer, weight.detach(), bias))
    weight = torch.zeros_like(output.weight)
    weight[:, of_query] = cut[3].weight.detach()
    return (*whole, _new(output, weight.detach(), output.bias))


SLICE_HEADS = Exercise(
    reference=structured.slice_heads,
    cases=_slice_cases,
    call=_cut_and_look,
    mistakes=[
        Mistake("the heads in `keep` were cut out. They are the ones that stay.", _slice_others),
        Mistake(
            "rows of the output layer instead of columns. What it reads are its columns; what it writes, the "
            "stream of the model, keeps its width.",
            _slice_output_rows,
        ),
        Mistake(
            "keys and values were left whole, as in the article. Then the shapes of queries and keys do not "
            "agree any more.",
            lambda *args: _slice(*args, keys=False),
        ),
        Mistake(
            "`keep` used as row numbers. A head is head_dim neighbouring rows.",
            _slice_single_channels,
        ),
        Mistake(
            "the rows of a head taken from all over the matrix. Head h has neighbouring rows, from "
            "h * head_dim on.",
            _slice_interleaved,
        ),
        Mistake(
            "`keep` used for query heads too. With fewer key-value heads, each serves several query heads.",
            lambda *args: _slice(*args, query_heads=lambda keep, group, n: keep),
        ),
        Mistake(
            "the wrong query heads: neighbours share a key-value head. Key-value head 0 serves query heads "
            "0 to group - 1, not every third one.",
            lambda *args: _slice(*args, query_heads=lambda keep, group, n: sorted(
                head + i * n for head in keep for i in range(group))),
        ),
        Mistake(
            "the biases are lost. Each row of query, key and value has one.",
            lambda *args: _slice(*args, bias=False),
        ),
        Mistake(
            "zeros instead of a cut: nothing gets smaller.",
            _zero_instead,
        ),
    ],
    hint="Write down the rows of key head 0, and of the query heads that use it, for 4 query and 2 key-value "
         "heads of 3 rows. Which of the four layers reads heads instead of writing them?",
)


# --- block_influence --------------------------------------------------------------------------------------


def _influence_cases():
    generator = _generator()
    x, change = (torch.randn(2, 5, 6, generator=generator) for _ in range(2))
    sizes = torch.tensor([100.0, 1, 1, 1, 1]).view(5, 1)
    return [
        Case(x, x + 0.5 * change, label="texts x tokens x hidden"),
        Case(x[0], x[0] - change[0], label="tokens x hidden"),
        Case(x * sizes, x * sizes + change, label="one token a hundred times as long as the others"),
        Case(x, 3 * x, label="longer, but the same direction"),
        Case(x, -x, label="the opposite direction"),
        Case(x.transpose(0, 1), (x + change).transpose(0, 1), label="transposed views"),
        Case((x + 1).bfloat16(), (x + 1 + 0.1 * change).bfloat16(), label="bfloat16"),
        Case((x + 1).half(), (x + 1 + 0.3 * change).half(), label="float16"),
        Case(1e4 * x, 1e4 * (x + 0.4 * change), label="large numbers"),
        Case(1e-3 * x[:, :3], 1e-3 * (x + change)[:, :3], label="small numbers"),
        Case(x[0, 0], (x - change)[0, 0], label="a single token, without any other dimension"),
        Case(x[..., :1], -2 * x[..., :1], label="a stream of one number"),
    ]


def _cosines(before, after):
    return F.cosine_similarity(before.float(), after.float(), dim=-1)


BLOCK_INFLUENCE = Exercise(
    reference=depth.block_influence,
    cases=_influence_cases,
    exact_dtype=True,
    rtol=1e-3,
    atol=2e-6,
    mistakes=[
        Mistake(
            "the cosine itself. A block that changes nothing must get 0.",
            lambda x, y: _cosines(x, y).mean().item(),
        ),
        Mistake(
            "one cosine over all numbers together. Long tokens would decide for all: take one a token.",
            lambda x, y: 1 - F.cosine_similarity(x.float().flatten(), y.float().flatten(), dim=0).item(),
        ),
        Mistake(
            "tokens averaged before the cosine. Take the cosine of each token, and then the mean.",
            lambda x, y: 1 - F.cosine_similarity(
                *(z.float().reshape(-1, z.shape[-1]).mean(0) for z in (x, y)), dim=0).item(),
        ),
        Mistake(
            "the length of the change instead of its direction. A longer vector that points the same way "
            "counts 0.",
            lambda x, y: ((y - x).float().norm(dim=-1) / x.float().norm(dim=-1)).mean().item(),
        ),
        Mistake(
            "the product was not divided by both lengths.",
            lambda x, y: 1 - (x.float() * y.float()).sum(-1).mean().item(),
        ),
        Mistake(
            "the cosine over the tokens instead of the hidden dimension, the last one.",
            lambda x, y: 1 - F.cosine_similarity(x.float(), y.float(), dim=-2).mean().item(),
        ),
        Mistake(
            "an angle. Block influence is 1 minus the cosine (arXiv 2403.17887 is the one with the angle).",
            lambda x, y: (_cosines(x, y).clamp(-1, 1).acos() / math.pi).mean().item(),
        ),
        Mistake(
            "computed in bfloat16: with two to three digits a small influence is lost. Use float32.",
            lambda x, y: 1 - F.cosine_similarity(x, y, dim=-1).mean().item(),
        ),
    ],
    hint="What is the cosine of a vector with itself? How many cosines are there, and what is averaged?",
)


# --- predictions ------------------------------------------------------------------------------------------

HIDDEN, HEADS, CLASSIFIER = 384, 12, 22_713_986  # MiniLM with a head of two classes
HEAD_DIM = HIDDEN // HEADS


def head_parameters():
    """Parameters of one head: rows of Q, K and V with their biases, and columns of O."""
    return 3 * (HEAD_DIM * HIDDEN + HEAD_DIM) + HIDDEN * HEAD_DIM


def shrink(removed=24):
    """Percent of the classifier's parameters that go with so many heads."""
    return 100 * removed * head_parameters() / CLASSIFIER


EXERCISES = [
    Prediction(
        id="predict_head_parameters",
        answer=head_parameters,
        rtol=0.005,
        unit="parameters",
        mistakes=[
            (HEAD_DIM * HIDDEN, "one matrix counted. A head has a part of four."),
            (3 * HEAD_DIM * HIDDEN, "the output matrix forgotten: 32 of its columns belong to the head."),
            (4 * HIDDEN * HIDDEN, "that is the attention of a whole block, all 12 heads."),
            (4 * 64 * HIDDEN, "heads of 64 rows. In this model they have 384 / 12 = 32."),
        ],
        hint="How many rows of Q, of K and of V, how many columns of O, and how long is each?",
    ),
    HEAD_IMPORTANCE,
    SLICE_HEADS,
    Prediction(
        id="predict_shrink",
        answer=shrink,
        rtol=0.05,
        unit="%",
        mistakes=[
            (100 / 3, "a third of the heads is not a third of the model: there are MLPs and embeddings."),
            (100 * 24 * 49_248 / 10_646_784, "counted against the blocks alone. The embeddings are more than "
                                             "half of this model."),
            (100 * 24 * 12_288 / CLASSIFIER, "one of the four matrices counted."),
        ],
        hint="You know the parameters of one head, and the model has 22.7 million.",
    ),
    BLOCK_INFLUENCE,
]
