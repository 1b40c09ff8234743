"""Exercises of the lesson on precision formats."""

import torch

from course_utils import formats
from course_utils.checking import Case, Exercise, Mistake, Prediction
from course_utils.checking.cases import seeded

# --- decode_float -------------------------------------------------------------------------------------------


def _decode_cases():
    return [
        Case(torch.tensor([0x3C00, 0x3E00, 0xC000, 0x3555]), 5, 10, label="FP16: 1, 1.5, -2, about 1/3"),
        Case(torch.tensor([0x0000, 0x0001, 0x03FF, 0x8001]), 5, 10, label="FP16: zero and subnormals"),
        Case(torch.tensor([0x7BFF, 0x7C00, 0xFC00, 0x7E00]), 5, 10, label="FP16: 65504, infinities, NaN"),
        Case(torch.arange(0, 2**16, 77), 8, 7, label="BF16: every 77th code"),
        Case(torch.arange(256), 4, 3, "nan", label="E4M3: every code, one NaN of each sign, no infinity"),
        Case(torch.arange(16), 2, 1, "none", label="E2M1: every code is a number"),
        Case(torch.arange(256, dtype=torch.uint8), 5, 2, label="E5M2: every code, as uint8"),
        Case(torch.arange(96).view(8, 12).t()[::2], 4, 3, "nan", label="a strided 2-D tensor"),
        Case(torch.arange(-8, 8, dtype=torch.int16), 8, 7, label="BF16 seen as int16: negative integers"),
        Case(torch.tensor([0x3E200000, 1, 0xFF7FFFFF]), 8, 23, label="FP32: 0.15625, smallest, largest"),
        Case(torch.tensor([0x13C00, -0x4400, 0x7FFF0001, 0x1BC00], dtype=torch.int32), 5, 10,
             label="FP16 in int32, with bits above the 16 that count"),
        Case(torch.tensor([0x3FF8000000000001, 0x3690000000000003, -0x4010000000000001]), 11, 52,
             label="FP64: as many bits as float64 itself has"),
        Case(torch.tensor(0b0101, dtype=torch.int8), 2, 1, "none", label="one E2M1 code, no dimension"),
        Case(torch.tensor([0b111111, 0b111100, 0b011100, 0b000011]), 3, 2, label="E3M2 as in IEEE 754"),
        Case(torch.tensor([], dtype=torch.int64), 5, 2, label="no codes"),
    ]


def _draw_codes(numbers):
    kinds = [(5, 10, "inf+nan"), (8, 7, "inf+nan"), (4, 3, "nan"), (2, 3, "none"), (3, 2, "inf+nan"),
             (3, 4, "none")]
    return [Case(torch.tensor([numbers.getrandbits(1 + exponent + mantissa) for _ in range(40)]), exponent,
                 mantissa, specials) for exponent, mantissa, specials in numbers.sample(kinds, 4)]


def _decode(bits, exponent_bits, mantissa_bits, specials="inf+nan", *, bias=None, lead=1.0, hidden=True,
            subnormal_power=1, infinite=True, signed=1, divisor=None):
    """decode_float with one thing wrong."""
    bits = bits.long()
    negative = (bits >> (exponent_bits + mantissa_bits)) & signed
    field = (bits >> mantissa_bits) & (2**exponent_bits - 1)
    mantissa = bits & (2**mantissa_bits - 1)
    bias = 2 ** (exponent_bits - 1) - 1 if bias is None else bias(exponent_bits)
    fraction = mantissa.double() / (divisor(mantissa_bits) if divisor else 2**mantissa_bits)
    small = (field == 0) & hidden
    power = torch.where(small, subnormal_power, field) - bias
    value = torch.where(small, fraction, lead + fraction) * torch.exp2(power.double())
    value = torch.where(negative == 1, -value, value)
    top = field == 2**exponent_bits - 1
    if infinite and specials == "inf+nan":
        endless = torch.where(negative == 1, -torch.inf, torch.inf)
        value = torch.where(top, torch.where(mantissa == 0, endless, torch.nan), value)
    if infinite and specials == "nan":
        value = torch.where(top & (mantissa == 2**mantissa_bits - 1), torch.nan, value)
    return value


def _with(function, **wrong):
    return lambda *args, **kwargs: function(*args, **kwargs, **wrong)


DECODE_FLOAT = Exercise(
    reference=formats.decode_float,
    cases=_decode_cases,
    draw=_draw_codes,
    rtol=0,
    atol=0,
    exact_dtype=True,
    mistakes=[
        Mistake(
            "the leading 1 added to subnormals too. An exponent field of 0 means 0.mantissa.",
            _with(_decode, hidden=False),
        ),
        Mistake(
            "the subnormals' power taken from their field: 0 - bias. They share the power of field 1.",
            _with(_decode, subnormal_power=0),
        ),
        Mistake(
            "the bias is off. It is 2**(exponent_bits - 1) - 1: 15 for five bits, not 16.",
            _with(_decode, bias=lambda e: 2 ** (e - 1)),
        ),
        Mistake(
            "no bias: the exponent field is unsigned, and means a power after the bias is taken off.",
            _with(_decode, bias=lambda e: 0),
        ),
        Mistake(
            "no leading 1. A normal number is 1.mantissa; that 1 is not stored.",
            _with(_decode, lead=0.0),
        ),
        Mistake(
            "infinity and NaN read as ordinary numbers. Look at `specials` when the exponent is all ones.",
            _with(_decode, infinite=False),
        ),
        Mistake(
            "`specials` ignored: all read as IEEE. E4M3 and E2M1 use the top exponent for numbers.",
            lambda b, e, m, specials="inf+nan": _decode(b, e, m),
        ),
        Mistake("the sign bit lost.", _with(_decode, signed=0)),
        Mistake(
            "the mantissa divided by its largest value. It counts steps of 1 / 2**mantissa_bits.",
            _with(_decode, divisor=lambda m: 2**m - 1),
        ),
    ],
    hint="Cut out three integers with shifts and masks first. Convert to int64 before you compute with them.",
)


# --- nearest_code -------------------------------------------------------------------------------------------


def _nearest_cases():
    generator = torch.Generator().manual_seed(seeded(0))
    nf4 = formats.NF4.table
    e2m1 = formats.value_table(formats.E2M1)[:8]
    return [
        Case(torch.tensor([-1.0, -0.9, -0.1, 0.01, 0.03, 0.05, 0.9, 1.0]), nf4, label="NF4"),
        Case(torch.randn(5, 33, generator=generator) / 3, nf4, label="NF4, random, in two dimensions"),
        Case(torch.tensor([0.2, 0.3, 0.7, 1.1, 2.4, 2.6, 4.9, 5.1]), e2m1, label="E2M1: uneven steps"),
        Case(torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0]), e2m1, label="ties go to the lower index"),
        Case(torch.tensor([-9.0, -1.1, 1.1, 7.0, 100.0]), nf4, label="beyond both ends of the table"),
        Case(torch.linspace(-2, 2, 24).view(4, 6).t(), torch.tensor([-1.0, 1.5]), label="strided"),
        Case(torch.tensor([-3e-6, 1.2e-6, 4e-6]), torch.tensor([-2e-6, 0.0, 1e-6, 5e-6]),
             label="tiny values"),
        Case(torch.linspace(-9, 9, 37).view(37, 1)[::3], torch.arange(-300.0, 301) / 100,
             label="a table of 601 values: no int8 index"),
        Case(torch.tensor(0.4), torch.tensor([-0.5]), label="one number, a table of one value"),
        Case(torch.tensor([1.2, -0.7]).double(), nf4.double(), label="float64"),
        Case(torch.nn.Parameter(torch.tensor([[0.4], [0.6]])), torch.tensor([0.0, 0.5, 2.0]),
             label="a parameter"),
    ]


def _draw_nearest(numbers):
    def case(count):
        table = sorted(numbers.uniform(-6, 6) for _ in range(count))
        return Case(torch.tensor([numbers.uniform(-8, 8) for _ in range(30)]), torch.tensor(table))

    return [case(numbers.randint(1, 40)) for _ in range(4)]


def _below(x, table):
    return (torch.bucketize(x, table, right=True) - 1).clamp(min=0)


def _above(x, table):
    return torch.bucketize(x, table).clamp(max=len(table) - 1)


def _evenly(x, table):
    step = (table[-1] - table[0]) / (len(table) - 1)
    return ((x - table[0]) / step).round().clamp(0, len(table) - 1).long()


def _ties_up(x, table):
    return torch.bucketize(x, (table[1:] + table[:-1]) / 2, right=True)


def _signless(x, table):
    return (x.abs()[..., None] - table.abs()).abs().argmin(-1)


NEAREST_CODE = Exercise(
    reference=formats.nearest_code,
    cases=_nearest_cases,
    draw=_draw_nearest,
    mistakes=[
        Mistake("the value returned instead of its index.", lambda x, t: t[formats.nearest_code(x, t)]),
        Mistake("the next value below taken, also where the one above is nearer.", _below),
        Mistake("the next value above taken, also where the one below is nearer.", _above),
        Mistake("the values treated as evenly spaced. Neither NF4's nor E2M1's are.", _evenly),
        Mistake("a tie went to the higher index; here it goes to the lower one.", _ties_up),
        Mistake("the sign is lost on the way: compare signed distances.", _signless),
        Mistake(
            "the farthest value instead of the nearest.",
            lambda x, table: (x[..., None] - table).abs().argmax(-1),
        ),
    ],
    hint="Which numbers are nearest to table[i]? Those between the two midpoints around it.",
)


# --- block_scale_e8m0 ---------------------------------------------------------------------------------------


def _scale_cases():
    generator = torch.Generator().manual_seed(seeded(0))
    below = torch.nextafter(torch.tensor([8.0, 2.0, 0.25]), torch.tensor(0.0))
    return [
        Case(torch.tensor([[6.0, 1.0, -2.0, 0.5]]), label="absmax 6: the scale is 1, code 127"),
        Case(torch.tensor([[0.1, -0.3], [12.0, -3.0], [-40.0, 7.0]]), label="absmax 0.3, 12 and 40"),
        Case(torch.tensor([[4.0, 0.0], [0.5, 0.5], [-1024.0, 3.0]]), label="powers of two"),
        Case(below[:, None], label="just below a power of two"),
        Case(torch.tensor([[0.0, 0.0], [1.0, 0.0]]), label="a block of zeros"),
        Case(torch.tensor([[1e-38, 0.0], [1e-42, 1e-44]]), label="so small that the code stops at 0"),
        Case(torch.tensor([[3e38, 1.0]]), 0, label="huge, for elements up to 1.5"),
        Case(torch.tensor([[300.0, -500.0]]), 8, label="for E4M3 elements: largest_power 8"),
        Case(torch.randn(3, 4, 32, generator=generator), label="three dimensions"),
        Case(torch.tensor([[3e38, 1.0], [2e38, 0.0]]), -2, label="so large that the code stops at 254"),
        Case(torch.randn(5, 6, generator=generator).t()[::2], 4, label="strided, blocks of 5"),
        Case(torch.tensor([1e-20, -3e-20, 2e-20]), label="one block, no other dimension, tiny"),
    ]


def _scale(blocks, largest_power=2, *, absmax=None, rounding=torch.floor, shift=None, bias=127, clamp=True):
    """block_scale_e8m0 by a logarithm in float64, with one thing wrong."""
    size = absmax(blocks) if absmax else blocks.abs().amax(-1)
    power = rounding(torch.log2(size.double())) - (largest_power if shift is None else shift(largest_power))
    code = power + bias
    return torch.where(size == 0, 0, code.clamp(0, 254) if clamp else code).long()


def _float32_log(blocks, largest_power=2):
    size = blocks.abs().amax(-1)
    code = torch.floor(torch.log2(size)) - largest_power + 127
    return torch.where(size == 0, 0, code.clamp(0, 254)).long()


BLOCK_SCALE_E8M0 = Exercise(
    reference=formats.block_scale_e8m0,
    cases=_scale_cases,
    mistakes=[
        Mistake(
            "the logarithm in float32 rounds up just below a power of two. torch.frexp is exact.",
            _float32_log,
        ),
        Mistake(
            "the power rounded up instead of down. The specification takes the floor.",
            _with(_scale, rounding=torch.ceil),
        ),
        Mistake(
            "the power rounded to the nearest instead of down. The specification takes the floor.",
            _with(_scale, rounding=torch.round),
        ),
        Mistake(
            "largest_power is not taken off. The elements reach to 6, not to 1.",
            _with(_scale, shift=lambda p: 0),
        ),
        Mistake("largest_power added instead of taken off.", _with(_scale, shift=lambda p: -p)),
        Mistake(
            "the power itself returned. A code is the power plus the bias of 127.",
            _with(_scale, bias=0, clamp=False),
        ),
        Mistake(
            "the power itself returned. A code is the power plus the bias of 127.",
            lambda blocks, largest_power=2: torch.frexp(blocks.abs().amax(-1)).exponent - 1 - largest_power,
        ),
        Mistake(
            "the sign not taken off first: the largest magnitude may be that of a negative number.",
            _with(_scale, absmax=lambda b: b.amax(-1).clamp(min=0)),
        ),
        Mistake(
            "one scale for the whole tensor. Each block, the last dimension, has its own.",
            _with(_scale, absmax=lambda b: b.abs().max().expand(b.shape[:-1])),
        ),
        Mistake("the code leaves 0 to 254. Clamp it.", _with(_scale, clamp=False)),
        Mistake(
            "a block of zeros needs a code too: 0.",
            lambda blocks, largest_power=2: (
                (torch.frexp(blocks.abs().amax(-1)).exponent + 126 - largest_power).clamp(0, 254)
            ),
        ),
        Mistake(
            "the scale itself returned, not its code.",
            lambda blocks, largest_power=2: formats.decode_e8m0(
                formats.block_scale_e8m0(blocks, largest_power)
            ),
        ),
    ],
    hint="Which power of two is just below 40? Which one must the scale be, so that 40 / scale fits?",
)  # fmt: skip


# --- predictions --------------------------------------------------------------------------------------------


def _rounding_ratio():
    """Steps between neighbours, BF16 to FP16, where both are normal numbers."""
    return formats.BF16.epsilon / formats.FP16.epsilon


PREDICT_BF16_LOSS = Prediction(
    id="predict_bf16_loss",
    answer=_rounding_ratio,
    rtol=0.05,
    unit="times",
    mistakes=[
        (1, "the same number of bits, but not the same number of mantissa bits."),
        (3, "three bits fewer, and each missing bit doubles the step."),
        (lambda: 1 / _rounding_ratio(), "upside down: BF16 has the coarser mantissa."),
        (lambda: 2.0 ** (formats.BF16.exponent_bits - formats.FP16.exponent_bits) * 2,
         "count mantissa bits: 10 against 7."),
        (lambda: formats.BF16.largest / formats.FP16.largest,
         "that is how much farther BF16 reaches. Rounding depends on the mantissa."),
    ],
    hint="How many mantissa bits does each have? What does one bit less do to the step between neighbours?",
)  # fmt: skip


def _nf4_megabytes():
    parameters = 134_515_008  # SmolLM2-135M
    return parameters * formats.NF4.bits_per_weight() / 8 / 1e6


PREDICT_NF4_BYTES = Prediction(
    id="predict_nf4_megabytes",
    answer=_nf4_megabytes,
    rtol=0.02,
    unit="MB",
    mistakes=[
        (lambda: _nf4_megabytes() * 4 / 4.5, "the scales are missing: 32 bits for every 64 weights."),
        (lambda: _nf4_megabytes() * 5 / 4.5, "a scale serves 64 weights, not 32."),
        (lambda: _nf4_megabytes() * 4.25 / 4.5, "the scale is FP32 here, not FP16."),
    ],
    hint="4 bits a weight, and one FP32 scale for 64 of them. How many bits is that for one weight?",
)  # fmt: skip

EXERCISES = [DECODE_FLOAT, NEAREST_CODE, BLOCK_SCALE_E8M0, PREDICT_BF16_LOSS, PREDICT_NF4_BYTES]
