"""Exercises of the lesson on GPTQ."""

import torch

from course_utils.checking import Case, Exercise, Mistake, Prediction
from course_utils.checking.cases import read_twice, seeded
from course_utils.quantize import checkpoint, gptq, layerwise

# --- Hessian ----------------------------------------------------------------------------------------------


def _hessian_cases():
    torch.manual_seed(seeded(0))
    one = torch.randn(50, 6)
    strided = torch.randn(9, 40).T[:, ::2]
    return [
        Case([one], label="one batch"),
        Case([one[:20], one[20:]], label="the same text in two batches: the same Hessian"),
        Case([one[:1], one[1:8], one[8:]], label="batches of different size"),
        Case([torch.randn(3, 5), torch.zeros(4, 5)], label="a batch of zeros still counts"),
        Case([strided], label="inputs that are not contiguous"),
        Case([torch.tensor([[1.0, 2.0]])], label="one token"),
        Case([0.01 * torch.randn(3, 7), 0.01 * torch.randn(4, 7)], label="small inputs"),
        Case([torch.randn(5, 1), torch.randn(2, 1)], label="a layer with one input"),
        Case([100 * torch.randn(2, 3) for _ in range(7)], label="large inputs, seven batches"),
    ]


def _accumulate(cls, batches):
    statistic = cls()
    for batch in batches:
        statistic.add(batch)
    return read_twice(lambda: statistic.matrix, "matrix")


def _wrong(matrix):
    """A class like Hessian whose matrix is computed, wrongly, from all batches."""

    class Wrong:
        def __init__(self):
            self.batches = []

        def add(self, x):
            self.batches.append(x)

        @property
        def matrix(self):
            return matrix(self.batches)

    return Wrong


def _all(batches):
    return torch.cat(batches)


HESSIAN = Exercise(
    reference=layerwise.Hessian,
    call=_accumulate,
    cases=_hessian_cases,
    rtol=1e-4,
    atol=1e-6,
    exact_dtype=True,
    mistakes=[
        Mistake("the factor 2 is missing: it is the second derivative of a square.",
                _wrong(lambda batches: _all(batches).T @ _all(batches) / len(_all(batches)))),
        Mistake("not divided by the number of tokens.",
                _wrong(lambda batches: 2 * _all(batches).T @ _all(batches))),
        Mistake("divided by the number of batches, not by the number of tokens in them.",
                _wrong(lambda batches: 2 * _all(batches).T @ _all(batches) / len(batches))),
        Mistake("only the last batch is in it: add to what was there.",
                _wrong(lambda batches: 2 * batches[-1].T @ batches[-1] / len(batches[-1]))),
        Mistake("the mean of the batches' means: a small batch then weighs as much as a large one. Keep the "
                "sum, and divide once.",
                _wrong(lambda batches: sum(2 * b.T @ b / len(b) for b in batches) / len(batches))),
        Mistake("the sum of all batches is divided by the size of the last one.",
                _wrong(lambda batches: 2 * _all(batches).T @ _all(batches) / len(batches[-1]))),
    ],
    hint="What does one token add to X^T X? What has to be kept, so that it can be divided once at the end?",
)


# --- column_update ----------------------------------------------------------------------------------------


def _factor(width):
    inputs = torch.randn(4 * width, width) @ torch.randn(width, width)
    return gptq.inverse_factor(2 * inputs.T @ inputs / len(inputs))[0]


def _column_cases():
    torch.manual_seed(seeded(1))
    cases = []
    for rows, width, column, label in (
        (4, 6, 0, "the first column"),
        (4, 6, 3, "a column in the middle: those left of it stay"),
        (3, 5, 4, "the last column: nothing is left to move"),
        (1, 8, 2, "one row"),
    ):
        weight = torch.randn(rows, width)
        cases.append(Case(weight, column, weight[:, column].round(), _factor(width), label=label))
    strided = torch.randn(6, 10).T[:, ::2]
    cases.append(Case(strided, 1, strided[:, 1].round(), _factor(3), label="a weight that is not contiguous"))
    weight = torch.randn(3, 4)
    cases.append(Case(weight, 1, weight[:, 1].clone(), _factor(4), label="no rounding error: nothing moves"))
    wide = torch.randn(5, 7)
    cases.append(Case(wide, 2, wide[:, 2] + 1e-3, 0.01 * _factor(7), label="small rounding errors"))
    cases.append(Case(torch.nn.Parameter(wide), 0, wide[:, 0].round(), _factor(7), label="a layer's weight"))
    cases.append(Case(wide[:, :1], 0, wide[:, 0].round(), _factor(1), label="a single column"))
    cases.append(Case(wide.double(), 5, wide[:, 5].double().round(), _factor(7).double(), label="float64"))
    return cases


def _error(weight, column, rounded, factor):
    return (weight[:, column] - rounded) / factor[column, column]


def _whole_inverse(weight, column, rounded, factor):
    inverse = factor.T @ factor
    error = (weight[:, column] - rounded) / inverse[column, column]
    return weight - torch.outer(error, inverse[column]), error


def _only_this_column(weight, column, rounded, factor):
    moved = weight.clone()
    moved[:, column] = rounded
    return moved, _error(weight, column, rounded, factor)


def _not_divided(weight, column, rounded, factor):
    error = weight[:, column] - rounded
    return weight - torch.outer(error, factor[column]), error


def _squared_diagonal(weight, column, rounded, factor):
    error = _error(weight, column, rounded, factor) / factor[column, column]
    return weight - torch.outer(error, factor[column]), error


def _plus(weight, column, rounded, factor):
    error = _error(weight, column, rounded, factor)
    return weight + torch.outer(error, factor[column]), error


def _column_of_factor(weight, column, rounded, factor):
    error = _error(weight, column, rounded, factor)
    return weight - torch.outer(error, factor[:, column]), error


def _unscaled_error(weight, column, rounded, factor):
    error = _error(weight, column, rounded, factor)
    return weight - torch.outer(error, factor[column]), weight[:, column] - rounded


COLUMN_UPDATE = Exercise(
    reference=gptq.column_update,
    cases=_column_cases,
    rtol=1e-4,
    atol=1e-5,
    mistakes=[
        Mistake("the sign: the other columns must move against the error.", _plus),
        Mistake("a column of the factor taken, not a row. It is upper triangular: rows reach to the right.",
                _column_of_factor),
        Mistake("the error is not divided by the factor's diagonal element.", _not_divided),
        Mistake("divided twice by the diagonal element.", _squared_diagonal),
        Mistake("the column is rounded, but no other column makes up for it.", _only_this_column),
        Mistake("columns that are already rounded move too: the whole inverse was used, not its factor.",
                _whole_inverse),
        Mistake("the weights are right, but the error must be returned divided by the diagonal element.",
                _unscaled_error),
    ],
    hint="Which part of the factor says how far each other column moves when this one errs by 1?",
)


# --- eight nibbles in a word ------------------------------------------------------------------------------


def _nibble_cases():
    torch.manual_seed(seeded(2))
    counting = torch.arange(8).reshape(8, 1)
    return [
        Case(counting, label="0 ... 7 in one word"),
        Case(torch.full((8, 3), 8), label="all 8: the word 0x88888888, a negative int32"),
        Case(torch.full((8, 1), 15), label="all 15: the word is -1"),
        Case(torch.randint(0, 16, (32, 5)), label="several words and columns"),
        Case(torch.randint(0, 16, (16, 2)).to(torch.uint8), label="integers that come as uint8"),
        Case(torch.randint(0, 16, (6, 24)).T[:, ::2], label="integers that are not contiguous"),
        Case(torch.randint(0, 16, (48, 3))[::2], label="every second row of a larger matrix"),
        Case(torch.randint(0, 16, (40, 1)).to(torch.int8), label="int8, one column"),
        Case(torch.randint(8, 16, (8, 7)).to(torch.int16), label="int16, all of 8 or more"),
    ]


def _pack(values, shifts):
    eight = values.long().reshape(-1, 8, values.shape[1])
    return (eight << shifts.reshape(1, 8, 1)).sum(dim=1).to(torch.int32)


def _strided(values):
    eight = values.long().reshape(8, -1, values.shape[1])
    return (eight << (4 * torch.arange(8)).reshape(8, 1, 1)).sum(dim=0).to(torch.int32)


def _signed_sum(values):
    words = _pack(values, 4 * torch.arange(8)).long() & 0xFFFFFFFF
    return words.clamp(max=2**31 - 1).to(torch.int32)


PACK = Exercise(
    reference=checkpoint.pack_nibbles,
    cases=_nibble_cases,
    exact_dtype=True,
    mistakes=[
        Mistake("the first integer stands in the highest bits. It belongs into the lowest four.",
                lambda values: _pack(values, 4 * torch.arange(7, -1, -1))),
        Mistake("a step of 8 bits, not 4: only four integers fit into the word like that.",
                lambda values: _pack(values, 8 * torch.arange(8))),
        Mistake("shifted by 0, 1, 2 ... bits: neighbours overlap. Each integer is 4 bits wide.",
                lambda values: _pack(values, torch.arange(8))),
        Mistake("eight rows far apart went into one word. A word holds eight neighbours: rows 0 to 7 first.",
                _strided),
        Mistake("words with the highest bit set came out as 2147483647: build them as int64, then convert.",
                _signed_sum),
    ],
    hint="By how many bits must integer i of eight move? Why is int32 too narrow while you add them up?",
)


def _word_cases():
    cases = [Case(checkpoint.pack_nibbles(case.args[0]), label=case.label) for case in _nibble_cases()]
    words = torch.tensor([[0x12345678, -1, 0], [-2**31, 2**31 - 1, -0x12345678]], dtype=torch.int32)
    return [*cases, Case(words, label="any words"), Case(words.T[1:], label="words that are not contiguous"),
            Case(torch.nn.Parameter(words, requires_grad=False), label="words of a layer")]  # fmt: skip


def _unpack(words, shifts=None, mask=15):
    shifts = 4 * torch.arange(8) if shifts is None else shifts
    eight = words.long().unsqueeze(1) >> shifts.reshape(1, 8, 1)
    eight = eight if mask is None else eight & mask
    return eight.reshape(-1, words.shape[1]).to(torch.uint8)


def _unpack_strided(words):
    eight = (words.long().unsqueeze(0) >> (4 * torch.arange(8)).reshape(8, 1, 1)) & 15
    return eight.reshape(-1, words.shape[1]).to(torch.uint8)


UNPACK = Exercise(
    reference=checkpoint.unpack_nibbles,
    cases=_word_cases,
    exact_dtype=True,
    mistakes=[
        Mistake("the bits above the four are still there: keep the lowest four with & 15.",
                lambda words: _unpack(words, mask=None)),
        Mistake("the highest four bits come first. The first integer stands in the lowest four.",
                lambda words: _unpack(words, 4 * torch.arange(7, -1, -1))),
        Mistake("only the lowest three bits are kept: & 7 loses every integer from 8 on.",
                lambda words: _unpack(words, mask=7)),
        Mistake("the first integers of all words come first. The eight of one word belong together.",
                _unpack_strided),
    ],
    hint="How do you bring integer i of a word into the lowest four bits, and what else is still there then?",
)


# --- predictions ------------------------------------------------------------------------------------------

HESSIAN_BYTES = Prediction(
    id="predict_hessian_bytes",
    answer=1536**2 * 4,
    rtol=0.05,
    unit="bytes",
    mistakes=[
        (1536**2, "that is the number of entries. How many bytes does an FP32 number take?"),
        (1536 * 576 * 4, "that is the weight itself. The Hessian pairs every input with every input."),
        (1536 * 4, "that is one row: one number for each input. The Hessian has one for each pair."),
        (576**2 * 4, "576 are the outputs of this layer. It has 1,536 inputs."),
    ],
    hint="One FP32 number for each pair of inputs.",
)

NEW_TEXT = Prediction(
    id="predict_new_text",
    answer="worse",
    mistakes=[
        ("better", "it is better on the text it was fitted to. Compare the number of tokens with the number "
                   "of inputs: can so few tokens show how 1,536 inputs go together?"),
        ("equal", "the two methods choose different integers, so their errors differ."),
    ],
    hint='Answer with one word: "better" or "worse".',
)

EXERCISES = [HESSIAN, COLUMN_UPDATE, PACK, UNPACK, HESSIAN_BYTES, NEW_TEXT]
