"""Exercises of the lesson on what one token costs."""

import math

import torch
import torch.nn.functional as F
from transformers import LlamaConfig

from course_utils import costs, measure
from course_utils.checking import Case, Exercise, Mistake, Prediction
from course_utils.checking.cases import seeded


def smollm2_config():
    """The numbers of the course's model, SmolLM2-135M."""
    return LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
        num_attention_heads=9, num_key_value_heads=3, head_dim=64, tie_word_embeddings=True)  # fmt: skip


def llama_13b_config():
    """LLaMA-13B: arXiv 2302.13971, table 2; vocabulary and MLP width as in its released configuration."""
    return LlamaConfig(
        vocab_size=32000, hidden_size=5120, intermediate_size=13824, num_hidden_layers=40,
        num_attention_heads=40, num_key_value_heads=40, head_dim=128, tie_word_embeddings=False)  # fmt: skip


# --- parameter_count --------------------------------------------------------------------------------------


def _config_cases():
    wide_heads = LlamaConfig(
        vocab_size=1000, hidden_size=48, intermediate_size=80, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, head_dim=20, tie_word_embeddings=True)  # fmt: skip
    one_layer = LlamaConfig(
        vocab_size=50, hidden_size=8, intermediate_size=12, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, head_dim=4, tie_word_embeddings=False)  # fmt: skip
    odd = LlamaConfig(
        vocab_size=77, hidden_size=45, intermediate_size=31, num_hidden_layers=5,
        num_attention_heads=5, num_key_value_heads=1, head_dim=6, tie_word_embeddings=False)  # fmt: skip
    return [
        Case(smollm2_config(), label="SmolLM2-135M"),
        Case(llama_13b_config(), label="LLaMA-13B: untied embeddings, as many key as query heads"),
        Case(wide_heads, label="heads x head_dim is not hidden_size"),
        Case(one_layer, label="one layer"),
        Case(odd, label="odd sizes, one key head for five query heads, untied"),
    ]


def _draw_configs(numbers):
    def config():
        groups = numbers.randint(1, 4)
        heads = groups * numbers.randint(1, 3)
        return LlamaConfig(
            vocab_size=numbers.randint(20, 900), hidden_size=heads * numbers.randint(2, 9),
            intermediate_size=numbers.randint(5, 90), num_hidden_layers=numbers.randint(1, 7),
            num_attention_heads=heads, num_key_value_heads=groups, head_dim=2 * numbers.randint(2, 9),
            tie_word_embeddings=numbers.random() < 0.5)  # fmt: skip

    return [Case(config()) for _ in range(4)]


def _count(config, *, head_dim=None, kv_heads=None, mlp_matrices=3, layer_norms=2, last_norm=1, copies=None):
    """The count with one thing counted wrongly."""
    head_dim = head_dim or config.head_dim
    kv_heads = kv_heads or config.num_key_value_heads
    heads = 2 * config.num_attention_heads + 2 * kv_heads
    layer = config.hidden_size * (heads * head_dim + mlp_matrices * config.intermediate_size + layer_norms)
    copies = copies or (1 if config.tie_word_embeddings else 2)
    outside = config.hidden_size * (last_norm + copies * config.vocab_size)
    return config.num_hidden_layers * layer + outside


PARAMETER_COUNT = Exercise(
    reference=costs.parameter_count,
    cases=_config_cases,
    draw=_draw_configs,
    rtol=0,
    atol=0,
    exact_dtype=True,
    mistakes=[
        Mistake(
            "the output matrix counted although it is tied to the embedding. Look at tie_word_embeddings.",
            lambda config: _count(config, copies=2),
        ),
        Mistake(
            "the output matrix left out although it is not tied. Look at tie_word_embeddings.",
            lambda config: _count(config, copies=1),
        ),
        Mistake(
            "key and value matrices as wide as the query's. Grouped-query attention gives them fewer.",
            lambda config: _count(config, kv_heads=config.num_attention_heads),
        ),
        Mistake(
            "two matrices in the MLP. A gated MLP has three of them: gate, up and down.",
            lambda config: _count(config, mlp_matrices=2),
        ),
        Mistake(
            "no norms. Each is a vector of hidden_size numbers: two a layer, and one at the end.",
            lambda config: _count(config, layer_norms=0, last_norm=0),
        ),
        Mistake(
            "the norm after the last layer is missing.",
            lambda config: _count(config, last_norm=0),
        ),
        Mistake(
            "hidden_size / heads taken for the width of a head. The config says it itself, in head_dim.",
            lambda config: _count(config, head_dim=config.hidden_size // config.num_attention_heads),
        ),
    ],
    hint="Write down the shape of each matrix of one layer. Which fields of the config are its sides?",
)


# --- bytes_at_bits ----------------------------------------------------------------------------------------


def _bytes_cases():
    return [
        Case(134_515_008, 32, label="FP32, no scales"),
        Case(1_000, 4, label="4 bit, no scales"),
        Case(4096, 4, group_size=128, label="4 bit, one FP16 scale for 128 numbers"),
        Case(4096, 4, group_size=64, scale_bits=16, zero_bits=4, label="4 bit, scale and zero point"),
        Case(100, 3, group_size=32, label="the last group is not full"),
        Case(7, 3, label="bits that do not fill the last byte"),
        Case(1_000_000, 4, group_size=32, scale_bits=8, label="8-bit scales"),
        Case(5, 2, group_size=128, label="fewer numbers than a group has"),
        Case(99, 4, group_size=33, scale_bits=3, zero_bits=2, label="groups of 33, scales of 3 bits"),
        Case(1_000, 3, scale_bits=8, zero_bits=8, label="no groups: bits of scales count for nothing"),
        Case(17, 5, 1, 7, 3, label="a group for each number, all arguments by position"),
        Case(1, 1, label="one bit"),
    ]


def _draw_bytes(numbers):
    return [Case(numbers.randint(1, 10_000), numbers.randint(1, 16), group_size=numbers.randint(1, 300),
                 scale_bits=numbers.randint(1, 32), zero_bits=numbers.randint(0, 8)) for _ in range(4)]


def _ceil_bytes(bits):
    return math.ceil(bits / 8)


def _groups(parameters, group_size):
    return 0 if group_size is None else math.ceil(parameters / group_size)


def _no_scales(parameters, bits, group_size=None, scale_bits=16, zero_bits=0):
    return _ceil_bytes(parameters * bits)


def _no_zeros(parameters, bits, group_size=None, scale_bits=16, zero_bits=0):
    return _ceil_bytes(parameters * bits + _groups(parameters, group_size) * scale_bits)


def _whole_groups(parameters, bits, group_size=None, scale_bits=16, zero_bits=0):
    groups = 0 if group_size is None else parameters // group_size
    return _ceil_bytes(parameters * bits + groups * (scale_bits + zero_bits))


def _fractional_groups(parameters, bits, group_size=None, scale_bits=16, zero_bits=0):
    groups = 0 if group_size is None else parameters / group_size
    return _ceil_bytes(parameters * bits + groups * (scale_bits + zero_bits))


def _bits(parameters, bits, group_size=None, scale_bits=16, zero_bits=0):
    return parameters * bits + _groups(parameters, group_size) * (scale_bits + zero_bits)


def _bytes_of_each(parameters, bits, group_size=None, scale_bits=16, zero_bits=0):
    extra = _groups(parameters, group_size) * ((scale_bits + zero_bits) // 8)
    return parameters * (bits // 8) + extra


def _scale_of_each(parameters, bits, group_size=None, scale_bits=16, zero_bits=0):
    extra = 0 if group_size is None else scale_bits + zero_bits
    return _ceil_bytes(parameters * (bits + extra))


def _rounded_down(parameters, bits, group_size=None, scale_bits=16, zero_bits=0):
    return _bits(parameters, bits, group_size, scale_bits, zero_bits) // 8


BYTES_AT_BITS = Exercise(
    reference=costs.bytes_at_bits,
    cases=_bytes_cases,
    draw=_draw_bytes,
    rtol=0,
    atol=0,
    exact_dtype=True,
    mistakes=[
        Mistake("the scales are missing. Each group brings scale_bits more.", _no_scales),
        Mistake("the zero points are missing. Each group brings zero_bits more.", _no_zeros),
        Mistake("a last group that is not full got no scale. Round the groups up.", _whole_groups),
        Mistake("part of a scale for a group that is not full. Round the groups up.", _fractional_groups),
        Mistake("bits instead of bytes. A byte has 8 bits.", _bits),
        Mistake("each number rounded to whole bytes. 4-bit numbers share bytes: add bits, divide last.",
                _bytes_of_each),
        Mistake("a scale for each number. All group_size numbers of a group share one.", _scale_of_each),
        Mistake("rounded down. Bits that do not fill the last byte still need it.", _rounded_down),
    ],
    hint="How many bits are there in all, and how many groups? What becomes of a group that is not full?",
)  # fmt: skip


# --- arithmetic_intensity ---------------------------------------------------------------------------------


def _intensity_cases():
    return [
        Case(1, 576, 1536, 4, label="one token through an MLP matrix, FP32"),
        Case(256, 576, 1536, 4, label="256 tokens through the same matrix"),
        Case(1, 4096, 4096, 2, label="one token, FP16"),
        Case(3, 5, 7, 1, label="three different sizes, one byte"),
        Case(6, 100, 35, 0.5, label="INT4: half a byte a number"),
        Case(1, 1, 1, 8, label="a product of two numbers, FP64"),
    ]


def _draw_intensity(numbers):
    return [Case(*(numbers.randint(1, 5_000) for _ in range(3)), numbers.choice([0.5, 1, 2, 4]))
            for _ in range(4)]


def _intensity(rows, inner, columns, element_bytes, *, per_pair=2, output=True, activations=True):
    moved = inner * columns
    if activations:
        moved += rows * inner
    if output:
        moved += rows * columns
    return per_pair * rows * inner * columns / (moved * element_bytes)


ARITHMETIC_INTENSITY = Exercise(
    reference=costs.arithmetic_intensity,
    cases=_intensity_cases,
    draw=_draw_intensity,
    mistakes=[
        Mistake(
            "one operation for a multiplication and its addition. The field counts two.",
            lambda rows, inner, columns, element_bytes: _intensity(
                rows, inner, columns, element_bytes, per_pair=1),
        ),
        Mistake(
            "the result is not among the bytes. It has to be written.",
            lambda rows, inner, columns, element_bytes: _intensity(
                rows, inner, columns, element_bytes, output=False),
        ),
        Mistake(
            "only the second matrix is among the bytes. The first is read too, and the result is written.",
            lambda rows, inner, columns, element_bytes: _intensity(
                rows, inner, columns, element_bytes, output=False, activations=False),
        ),
        Mistake(
            "operations for each number instead of each byte. A number takes element_bytes bytes.",
            lambda rows, inner, columns, element_bytes: _intensity(rows, inner, columns, 1),
        ),
        Mistake(
            "upside down: bytes for each operation.",
            lambda rows, inner, columns, element_bytes: 1 / _intensity(rows, inner, columns, element_bytes),
        ),
    ],
    hint="How many products does one number of the result take? Which matrices are read, which is written?",
)  # fmt: skip


# --- perplexity_from_logits -------------------------------------------------------------------------------


def _logits_cases():
    generator = torch.Generator().manual_seed(seeded(0))
    logits = 3 * torch.randn(40, 50, generator=generator)
    tokens = torch.randint(0, 50, (40,), generator=generator)
    unlikely = torch.randn(6, 10, generator=generator)
    unlikely[2, tokens[3] % 10] -= 120  # exp(-120) is 0 in float32
    strided = (2 * torch.randn(30, 12, generator=generator)).t()
    large = 1e4 + 3 * torch.randn(7, 9, generator=generator)  # exp of it is infinite
    trained = torch.nn.Parameter(torch.randn(9, 11, generator=generator).double())
    return [
        Case(logits, tokens, label="40 tokens, vocabulary of 50"),
        Case(torch.zeros(5, 1000), torch.tensor([1, 2, 3, 4, 5]), label="all 1,000 tokens equally likely"),
        Case(unlikely, tokens[:6] % 10, label="a token that the model thinks all but impossible"),
        Case(logits.bfloat16(), tokens, label="logits in BF16"),
        Case(strided, tokens[:12] % 30, label="logits that are a transposed view"),
        Case(logits[:2], tokens[:2], label="a text of two tokens"),
        Case((8 * logits[:9]).half(), tokens[:9], label="logits in FP16"),
        Case(large, tokens[:7] % 9, label="logits near ten thousand"),
        Case(trained, tokens[:9] % 11, label="FP64 logits that require a gradient"),
    ]


def _nll(logits, tokens):
    return -torch.log_softmax(logits.float(), dim=-1).gather(1, tokens[:, None]).squeeze(1)


def _unshifted(logits, tokens):
    return math.exp(_nll(logits, tokens).mean())


def _shifted_back(logits, tokens):
    return math.exp(_nll(logits[1:], tokens[:-1]).mean())


def _without_exp(logits, tokens):
    return _nll(logits[:-1], tokens[1:]).mean().item()


def _wrong_base(logits, tokens):
    return 2 ** _nll(logits[:-1], tokens[1:]).mean().item()


def _mean_of_perplexities(logits, tokens):
    return _nll(logits[:-1], tokens[1:]).exp().mean().item()


def _inverse_mean_probability(logits, tokens):
    return 1 / (-_nll(logits[:-1], tokens[1:])).exp().mean().item()


def _raw_logits(logits, tokens):
    chosen = logits[:-1].float().gather(1, tokens[1:, None])
    return torch.exp(-chosen.mean()).item()


def _low_precision(logits, tokens):
    chosen = torch.log_softmax(logits[:-1], dim=-1).gather(1, tokens[1:, None])
    return torch.exp(-chosen.mean()).item()


def _low_precision_loss(logits, tokens):
    return torch.exp(F.cross_entropy(logits[:-1], tokens[1:])).item()


def _log_of_softmax(logits, tokens):
    chosen = torch.softmax(logits[:-1].float(), dim=-1).log().gather(1, tokens[1:, None])
    return torch.exp(-chosen.mean()).item()


def _over_n(logits, tokens):
    return math.exp(_nll(logits[:-1], tokens[1:]).sum() / len(tokens))


PERPLEXITY_FROM_LOGITS = Exercise(
    reference=costs.perplexity_from_logits,
    cases=_logits_cases,
    rtol=1e-4,
    exact_dtype=True,
    mistakes=[
        Mistake("row i held against token i. Row i is the guess about the next token, i + 1.", _unshifted),
        Mistake("shifted the wrong way: row i held against token i - 1.", _shifted_back),
        Mistake("the mean negative log-probability itself. Perplexity is its exponential.", _without_exp),
        Mistake("base 2 of a mean in natural logarithms. Log and power need the same base.", _wrong_base),
        Mistake("the mean of each token's own perplexity. Average the logarithms first, then take exp.",
                _mean_of_perplexities),
        Mistake("an average of probabilities. Average their logarithms.", _inverse_mean_probability),
        Mistake("logits used as if they were log-probabilities. Softmax makes them sum to one.", _raw_logits),
        Mistake("the sum divided by the number of tokens. One token less is predicted.", _over_n),
        Mistake("computed in the logits' own 16 bits. Convert to float32 first.", _low_precision),
        Mistake("computed in the logits' own 16 bits. Convert to float32 first.", _low_precision_loss),
        Mistake("log of softmax loses small probabilities to 0. Use torch.log_softmax.", _log_of_softmax),
    ],
    hint="Which row of the logits is the guess about which token? What did the model think of that token?",
)  # fmt: skip


# --- paired_difference ------------------------------------------------------------------------------------


def _window_cases():
    generator = torch.Generator().manual_seed(seeded(1))
    hard = 511 * (3 + 0.4 * torch.randn(12, generator=generator, dtype=torch.float64))
    gap = 511 * (0.05 + 0.03 * torch.randn(12, generator=generator, dtype=torch.float64))
    tokens = [511, 120, 511, 77, 300]
    uneven = [2.5 * n + 9.0 * i for i, n in enumerate(tokens)]
    others = [2.4 * n + 5.0 * i**2 for i, n in enumerate(tokens)]
    return [
        Case((hard + gap).tolist(), hard.tolist(), [511] * 12, label="12 windows of 511 tokens"),
        Case(uneven, others, tokens, label="windows of unlike length"),
        Case([1500.0, 1400.0], [1400.0, 1500.0], [500, 500], label="two windows that say the opposite"),
        Case([1600.0], [1500.0], [511], label="one window: no spread, the error is NaN"),
        Case((900.0, 910.0, 905.0), (900.0, 910.0, 905.0), (300, 310, 305), label="the same model twice"),
        Case([700.0, 820.0, 640.0, 900.0], [690.0, 805.0, 633.0, 880.0], [250, 290, 230, 400],
             label="one model ahead in every window"),
        Case([1.0, 2.0], [1.0, 2.0, 3.0], [5, 5], raises=ValueError, label="another number of windows"),
        Case([1.0, 2.0], [1.0, 2.5], [5, 5, 5], raises=ValueError, label="another number of token counts"),
        Case([1.0, 2.0, 2.5], [1.0, 2.5, 2.0], [5, 5], raises=ValueError, label="a token count missing"),
    ]


def _draw_windows(numbers):
    def case(windows):
        tokens = [numbers.randint(100, 511) for _ in range(windows)]
        hard = [count * numbers.uniform(2, 4) for count in tokens]
        return Case([value + numbers.uniform(-20, 60) for value in hard], hard, tokens)

    return [case(numbers.randint(2, 20)) for _ in range(4)]


def _gaps(a, b, tokens):
    gaps = torch.tensor(a, dtype=torch.float64) - torch.tensor(b, dtype=torch.float64)
    sizes = torch.tensor(tokens, dtype=torch.float64)
    if not len(gaps) == len(sizes):
        raise ValueError
    return gaps, sizes, (gaps.sum() / sizes.sum()).item()


def _root(squares, divisor, total):
    return math.sqrt(squares / divisor) / total if divisor > 0 else math.nan


def _unpaired(a, b, tokens):
    """Each model's own error, added as if they had read different texts."""
    _, sizes, mean = _gaps(a, b, tokens)
    count, squares = len(sizes), 0.0
    for sums in (a, b):
        values = torch.tensor(sums, dtype=torch.float64)
        squares += (values - values.sum() / sizes.sum() * sizes).square().sum().item()
    return mean, _root(count * squares, count - 1, sizes.sum().item())


def _divided_by_count(a, b, tokens):
    gaps, sizes, mean = _gaps(a, b, tokens)
    return mean, _root((gaps - mean * sizes).square().sum().item(), 1 if len(gaps) > 1 else 0,
                       sizes.sum().item())  # fmt: skip


def _deviation(a, b, tokens):
    gaps, sizes, mean = _gaps(a, b, tokens)
    count = len(gaps)
    return mean, _root(count**2 * (gaps - mean * sizes).square().sum().item(), count - 1, sizes.sum().item())


def _by_token(a, b, tokens):
    gaps, sizes, mean = _gaps(a, b, tokens)
    spread = ((gaps / sizes - mean).square() * sizes).sum().item()
    return mean, _root(spread, sizes.sum().item() - 1, math.sqrt(sizes.sum().item()))


def _mean_of_windows(a, b, tokens):
    gaps, sizes, _ = _gaps(a, b, tokens)
    each, count = gaps / sizes, len(gaps)
    mean = each.mean().item()
    return mean, _root((each - mean).square().sum().item(), count * (count - 1), 1.0)


def _other_way(a, b, tokens):
    mean, error = measure.paired_difference(b, a, tokens)
    return mean, error


def _squared(a, b, tokens):
    mean, error = measure.paired_difference(a, b, tokens)
    return mean, error**2


def _half_interval(a, b, tokens):
    mean, error = measure.paired_difference(a, b, tokens)
    return mean, 1.96 * error


PAIRED_DIFFERENCE = Exercise(
    reference=measure.paired_difference,
    cases=_window_cases,
    draw=_draw_windows,
    rtol=1e-6,
    mistakes=[
        Mistake("the errors of the two models added up. Subtract window by window first: what is hard "
                "for both cancels.", _unpaired),
        Mistake("the factor windows / (windows - 1) is missing.", _divided_by_count),
        Mistake("the spread of one window. The error of the mean over all windows is smaller: see the "
                "formula.", _deviation),
        Mistake("each token counted as an observation of its own. The tokens of a window hang together: "
                "one window, one observation.", _by_token),
        Mistake("the mean of the windows' means. A short window counts less: divide the sum of all by "
                "the sum of the tokens.", _mean_of_windows),
        Mistake("b - a instead of a - b.", _other_way),
        Mistake("the square root is missing: that is the variance.", _squared),
        Mistake("half of a 95 % interval. Asked is one standard error, not 1.96 of them.", _half_interval),
    ],
    hint="Make a list of the differences first, one for each window. What is their sum for each token?",
)  # fmt: skip


# --- predictions ------------------------------------------------------------------------------------------

PARAMETERS = costs.parameter_count(smollm2_config())
FP32_BYTES = costs.bytes_at_bits(PARAMETERS, 32)
VOCABULARY = smollm2_config().vocab_size
SHARE = VOCABULARY * smollm2_config().hidden_size / PARAMETERS
PARAMETERS_13B = costs.parameter_count(llama_13b_config())
FP32_BYTES_13B = costs.bytes_at_bits(PARAMETERS_13B, 32)

PREDICTIONS = [
    Prediction(
        id="predict_bytes",
        answer=FP32_BYTES,
        unit="bytes",
        mistakes=[
            (PARAMETERS, "one byte for each parameter. A byte has 8 bits, an FP32 number 32."),
            (2 * PARAMETERS, "two bytes for each parameter. That is FP16, not FP32."),
            (32 * PARAMETERS, "bits, not bytes."),
        ],
        hint="The name says 135M parameters. How many bytes does a 32-bit number take?",
    ),
    Prediction(
        id="predict_embedding_share",
        answer=100 * SHARE,
        rtol=0.1,
        unit="percent",
        mistakes=[
            (100 * 2 * SHARE / (1 + SHARE), "the matrix counted twice. It is tied: stored once."),
            (100 / 31, "one part of 31. The parts are not equally large: count the numbers in each."),
            (100 * SHARE / (1 - SHARE), "compared with the rest. Asked is the share of the whole."),
        ],
        hint="The embedding has vocab_size x hidden_size numbers, of 134.5 million in all.",
    ),
    Prediction(
        id="predict_decode_rate",
        answer=20e9 / FP32_BYTES,
        rtol=0.1,
        unit="tokens/s",
        mistakes=[
            (20e9 / PARAMETERS, "one byte for each parameter. FP32 has four."),
            (10e9 / PARAMETERS, "two bytes for each parameter. That would be FP16."),
            (FP32_BYTES / 20e9, "seconds for a token. Asked are tokens in a second."),
        ],
        hint="Every new token reads all the weights once. How often do they fit into 20 GB?",
    ),
    Prediction(
        id="predict_uniform_perplexity",
        answer=VOCABULARY,
        rtol=0.001,
        mistakes=[
            (math.log(VOCABULARY), "the mean negative log-probability. Take exp of it."),
            (1 / VOCABULARY, "the probability of each token. Perplexity is its inverse."),
            (1, "1 is perfect: a model that is always sure and always right."),
        ],
        hint="exp(-log p) with the same p for every token: what is left?",
    ),
    Prediction(
        id="predict_paired_error",
        answer=0,
        unit="nats a token",
        mistakes=[
            (0.02, "the difference itself. Asked is how much it varies from window to window."),
            (0.1, "the error of one model alone. In the difference it cancels."),
            (0.1 * 2**0.5, "the errors of two models, as if they had read different texts."),
        ],
        hint="All 8 differences are the same number. How much do they spread?",
    ),
    Prediction(
        id="predict_13b_gigabytes",
        answer=FP32_BYTES_13B / 1e9,
        rtol=0.03,
        unit="GB",
        mistakes=[
            (2 * PARAMETERS_13B / 1e9, "two bytes for each parameter. FP32 has four: 32 bits."),
            (PARAMETERS_13B / 1e9, "one byte for each parameter. FP32 has four: 32 bits."),
            (FP32_BYTES_13B / 2**30, "GiB (2^30 bytes) instead of GB (10^9 bytes)."),
        ],
        hint="13 billion parameters, 32 bits each.",
    ),
]

EXERCISES = [
    PARAMETER_COUNT, BYTES_AT_BITS, ARITHMETIC_INTENSITY, PERPLEXITY_FROM_LOGITS, PAIRED_DIFFERENCE,
    *PREDICTIONS,
]  # fmt: skip
