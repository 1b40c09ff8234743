"""Exercises of the lesson on unstructured pruning."""

import math

import torch

from course_utils.checking import Case, Exercise, Mistake, Prediction
from course_utils.checking.cases import seeded
from course_utils.prune import sparse, unstructured

# --- Wanda's score ----------------------------------------------------------------------------------------


def _wanda_cases():
    torch.manual_seed(seeded(0))
    weight, inputs = torch.randn(5, 8), torch.randn(30, 8) * torch.linspace(0.1, 4, 8)
    return [
        Case(torch.tensor([[1.0, -2.0], [0.5, 0.1]]), torch.tensor([[3.0, 0.0], [4.0, 1.0]]),
             label="2 x 2, two tokens"),
        Case(weight, inputs, label="5 outputs, 8 inputs, 30 tokens"),
        Case(torch.randn(6, 6), torch.randn(4, 6), label="as many outputs as inputs"),
        Case(weight, inputs[:1], label="one token"),
        Case(torch.randn(8, 5).T, torch.randn(8, 12).T, label="matrices that are not contiguous"),
        Case(weight, inputs * torch.tensor([1.0, 0, 1, 1, 0, 1, 1, 1]), label="inputs that are always zero"),
        Case(1e-5 * weight, 1e-4 * inputs[:7], label="tiny weights and inputs"),
        Case(torch.randn(3, 7), 1e4 * torch.randn(11, 7), label="large inputs"),
        Case(torch.randn(1, 3).double(), torch.randn(2, 3).double(), label="one output, float64"),
        Case(torch.nn.Parameter(torch.randn(4, 3)), torch.randn(9, 3), label="a layer's own weight"),
    ]


def _length(inputs):
    return inputs.norm(dim=0)


WANDA = Exercise(
    reference=unstructured.wanda_score,
    cases=_wanda_cases,
    rtol=1e-4,
    atol=1e-12,
    mistakes=[
        Mistake("the sign of the weight is still there. A large negative weight matters as much as a large "
                "positive one.", lambda weight, inputs: weight * _length(inputs)),
        Mistake("the inputs are left out: this is magnitude.", lambda weight, inputs: weight.abs()),
        Mistake("the squares are summed, but no root is taken: the inputs then count twice.",
                lambda weight, inputs: weight.abs() * inputs.square().sum(0)),
        Mistake("the sum of |x| is not the length: square, sum, take the root.",
                lambda weight, inputs: weight.abs() * inputs.abs().sum(0)),
        Mistake("inputs of opposite sign cancel in a plain sum: square them first.",
                lambda weight, inputs: weight.abs() * inputs.sum(0).abs()),
        Mistake("the mean of the squares depends on the number of tokens: take the sum, as in ||x||.",
                lambda weight, inputs: weight.abs() * inputs.square().mean(0).sqrt()),
        Mistake("the weight is squared, the length is not. Both have the power 1.",
                lambda weight, inputs: weight.square() * _length(inputs)),
        Mistake("the lengths went along the rows. Input j meets column j of the weight.",
                lambda weight, inputs: weight.abs() * _length(inputs)[:, None]),
        Mistake("that is the length of each token. Each input needs one, over all tokens.",
                lambda weight, inputs: weight.abs() * inputs.norm(dim=1)),
    ],
    hint="How many lengths are there, and along which dimension of the weight do they go?",
)


# --- n of m -----------------------------------------------------------------------------------------------


def _mask_cases():
    torch.manual_seed(seeded(1))
    return [
        Case(torch.tensor([[4.0, 1, 3, 2, 1, 2, 3, 4]]), label="2:4, one row"),
        Case(torch.rand(6, 16), label="2:4, six rows"),
        Case(torch.ones(3, 8), label="all scores equal: the two further left stay"),
        Case(torch.rand(4, 16), 4, 8, label="4:8"),
        Case(torch.rand(4, 12), 1, 4, label="1:4"),
        Case(torch.rand(12, 8).T[:, ::3], label="scores that are not contiguous"),
        Case(torch.zeros(2, 4), label="all scores zero"),
        Case(torch.rand(3, 8) - 1, label="scores below 0"),
        Case(torch.rand(16, 6).T, label="a transposed matrix of several groups"),
        Case(1e-6 * torch.rand(3, 12), 2, 6, label="2:6, tiny scores"),
        Case(torch.randint(0, 3, (7, 64)).float(), 13, 32, label="13:32, many equal scores"),
        Case(torch.tensor([[0.0, -0.0, 1e-30, 0.0, -1e-30, 0.0, -0.0, 0.0]]), label="all but equal scores"),
        Case(torch.rand(2, 5).double(), 5, 5, label="all stay, float64"),
        Case(torch.rand(1, 9).half(), 1, 3, label="1:3, float16"),
        Case(torch.rand(3, 6), label="18 weights, 6 columns: no groups of 4", raises=ValueError),
        Case(torch.rand(2, 6), label="6 columns are no groups of 4", raises=ValueError),
        Case(torch.rand(2, 6), 4, 12, label="12 weights in two rows, but 6 columns are no group of 12",
             raises=ValueError),
    ]


def _checked(function):
    """The mistakes below know that m must divide the columns."""

    def wrong(score, n=2, m=4):
        if score.shape[1] % m:
            raise ValueError("columns")
        return function(score, n, m)

    return wrong


def _top(groups, n, **more):
    best = groups.argsort(dim=-1, stable=True, **more)[..., :n]
    return torch.zeros_like(groups, dtype=torch.bool).scatter(-1, best, True)


def _along_columns(score, n, m):
    if score.shape[0] % m:
        return torch.zeros_like(score, dtype=torch.bool)
    return _top(score.T.reshape(-1, m), n, descending=True).reshape(score.T.shape).T


def _by_threshold(score, n, m):
    groups = score.reshape(-1, m)
    threshold = groups.sort(dim=1, descending=True).values[:, n - 1 : n]
    return (groups >= threshold).reshape(score.shape)


def _strided(score, n, m):
    groups = score.reshape(len(score), m, -1).transpose(1, 2)
    return _top(groups, n, descending=True).transpose(1, 2).reshape(score.shape)


N_M_MASK = Exercise(
    reference=unstructured.n_m_mask,
    cases=_mask_cases,
    exact_dtype=True,
    mistakes=[
        Mistake("the lowest scores stay. A high score says that a weight is needed.",
                _checked(lambda s, n, m: _top(s.reshape(-1, m), n).reshape(s.shape))),
        Mistake("the mask says which weights go. It must be True where a weight stays.",
                _checked(lambda s, n, m: ~_top(s.reshape(-1, m), n, descending=True).reshape(s.shape))),
        Mistake("a share of each whole row: n of m neighbours must stay in every single group.",
                _checked(lambda s, n, m: _top(s, s.shape[1] * n // m, descending=True))),
        Mistake("a share of the whole matrix: n of m neighbours must stay in every single group.",
                _checked(lambda s, n, m: _top(s.reshape(1, -1), s.numel() * n // m,
                                              descending=True).reshape(s.shape))),
        Mistake("with equal scores more than n stay in a group: choose places, not a threshold.",
                _checked(_by_threshold)),
        Mistake("of equal scores those further right stay. The left ones should.",
                _checked(lambda s, n, m: _top(s.reshape(-1, m).flip(1), n, descending=True).flip(1)
                         .reshape(s.shape))),
        Mistake("the members of a group stand far apart. They are neighbours in a row.", _checked(_strided)),
        Mistake("groups run down the columns. They are neighbours in a row.", _checked(_along_columns)),
        Mistake("m does not divide the number of columns, and no ValueError says so.",
                lambda score, n=2, m=4: _top(score[:, : score.shape[1] // m * m].reshape(-1, m), n,
                                             descending=True).reshape(len(score), -1)),
    ],
    hint="How can a row of 8 columns become two rows of 4? Which function gives places instead of values, "
         "and keeps the order of equal ones?",
)


# --- bytes ------------------------------------------------------------------------------------------------


def _byte_cases():
    half = 512 * 1024 // 2
    return [
        Case(512, 1024, half, "dense", label="dense, 16 bits"),
        Case(512, 1024, half, "bitmask", label="bitmask at 50 %, 16 bits"),
        Case(512, 1024, half, "csr", label="CSR at 50 %, 16 bits"),
        Case(512, 1024, half, "2:4", label="2:4, 16 bits"),
        Case(1536, 576, 88474, "csr", 32, label="CSR at 90 %, 32 bits"),
        Case(1536, 576, 88474, "bitmask", 8, label="bitmask at 90 %, 8 bits"),
        Case(1536, 576, 100, "2:4", 32, label="2:4 with hardly a nonzero: the pairs are stored all the same"),
        Case(3, 20, 17, "bitmask", label="bitmask of 20 columns: a row takes three whole bytes"),
        Case(3, 20, 17, "2:4", 32, label="2:4 of 20 columns: a row's places take three whole bytes"),
        Case(5, 7, 0, "csr", label="CSR of a matrix of zeros"),
        Case(1, 9, 9, "bitmask", 32, label="one row of 9 columns, all nonzero"),
        Case(7, 33, 0, "bitmask", 8, label="bitmask of a matrix of zeros"),
        Case(4, 4, 16, "csr", 8, label="CSR of a matrix without a zero, 8 bits"),
        Case(3, 12, 2, "2:4", 8, label="2:4, 8 bits"),
        Case(3, 5, 2, "dense", 32, label="dense: zeros are stored, too"),
        Case(2, 2, 1, "zip", label="an unknown format", raises=ValueError),
        Case(8, 8, 16, "1:4", label="another pattern", raises=ValueError),
        Case(8, 8, 16, "", label="no format", raises=ValueError),
    ]


def _draw_bytes(numbers):
    cases = []
    for format in ("dense", "bitmask", "csr", "2:4"):
        rows, columns = numbers.randint(1, 90), 4 * numbers.randint(1, 60)
        most = rows * columns // (2 if format == "2:4" else 1)
        cases.append(Case(rows, columns, numbers.randint(0, most), format, numbers.choice([8, 16, 32])))
    return cases


def _bytes(change):
    """storage_bytes with one part wrong: change(parts of the formula) -> bytes, None for the right ones."""

    def wrong(rows, columns, nonzeros, format, value_bits=16):
        right = sparse.storage_bytes(rows, columns, nonzeros, format, value_bits)
        found = change(rows, columns, nonzeros, format, value_bits)
        return right if found is None else found

    return wrong


def _only(format, formula):
    return _bytes(lambda rows, columns, nonzeros, given, bits:
                  formula(rows, columns, nonzeros, bits) if given == format else None)


BYTES = Exercise(
    reference=sparse.storage_bytes,
    cases=_byte_cases,
    draw=_draw_bytes,
    exact_dtype=True,
    mistakes=[
        Mistake("bits, not bytes, came out.",
                _bytes(lambda *a: 8 * sparse.storage_bytes(*a))),
        Mistake("the mask of the bitmask format is missing: one bit for every weight, zero or not.",
                _only("bitmask", lambda r, c, z, b: z * b // 8)),
        Mistake("the mask takes one bit a weight, not one byte.",
                _only("bitmask", lambda r, c, z, b: z * b // 8 + r * c)),
        Mistake("bitmask: a row's bits must fill whole bytes, so round up for each row.",
                _only("bitmask", lambda r, c, z, b: z * b // 8 + math.ceil(r * c / 8))),
        Mistake("bitmask: rounded down. The bits left over need a byte of their own.",
                _only("bitmask", lambda r, c, z, b: z * b // 8 + r * (c // 8))),
        Mistake("CSR: the starts of the rows are missing.",
                _only("csr", lambda r, c, z, b: z * (b // 8 + 2))),
        Mistake("CSR: one start a row, and one more number for the end of the last row.",
                _only("csr", lambda r, c, z, b: z * (b // 8 + 2) + 4 * r)),
        Mistake("CSR: the column numbers are missing. Each nonzero value needs one, 2 bytes.",
                _only("csr", lambda r, c, z, b: z * b // 8 + 4 * (r + 1))),
        Mistake("CSR: column numbers of 32 bits. Here they have 16.",
                _only("csr", lambda r, c, z, b: z * (b // 8 + 4) + 4 * (r + 1))),
        Mistake("2:4 stores two values of every four, zero or not: the number of nonzeros plays no part.",
                _only("2:4", lambda r, c, z, b: z * b // 8 + r * math.ceil(c / 8))),
        Mistake("2:4: the places are missing, 2 bits for each stored value.",
                _only("2:4", lambda r, c, z, b: r * c // 2 * b // 8)),
        Mistake("2:4: one bit cannot tell four places apart. Each stored value needs 2 bits.",
                _only("2:4", lambda r, c, z, b: r * c // 2 * b // 8 + r * math.ceil(c / 16))),
        Mistake("2:4: 2 bits for each stored value, and only half of the weights are stored.",
                _only("2:4", lambda r, c, z, b: r * c // 2 * b // 8 + r * math.ceil(c / 4))),
    ],
    hint="For each format: how many values are stored, and what says where they belong?",
)


# --- predictions ------------------------------------------------------------------------------------------

SPEED = Prediction(
    id="predict_speed",
    answer=1.0,
    rtol=0.1,
    unit="times as long",
    mistakes=[
        (0.5, "that would need a kernel that skips zeros. What does a matrix product do with a zero?"),
        (2.0, "half of the numbers are zeros, and a product with a zero takes as long as any other."),
        (0.0, "the zeros are stored and multiplied like every other number."),
    ],
    hint="The matrix has the same shape, and its zeros are stored like other numbers.",
)

CSR_SHARE = Prediction(
    id="predict_csr_share",
    answer=50,
    rtol=0.03,
    unit="% of zeros",
    mistakes=[
        (0, "each value that stays carries a column number with it: with few zeros that costs more than it "
            "saves."),
        (100 / 16, "that is the bitmask, with one bit for each weight. CSR has a number for each value that "
                   "stays."),
        (100 * 2 / 3, "that is right for a column number of 32 bits. Here it has 16."),
        (0.5, "in percent, please."),
    ],
    hint="16 + 16 bits for each weight that stays (value and column number), against 16 bits for every one.",
)

EXERCISES = [WANDA, N_M_MASK, BYTES, SPEED, CSR_SHARE]
