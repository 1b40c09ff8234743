"""Lesson phone: wrong answers are rejected for their reason, right ones written otherwise pass."""

import math

import numpy as np

from course_utils import costs

# --- needed_bytes -------------------------------------------------------------------------------------------


def _bytes_by_hand(config, context, bits, group=None, cache_bits=16, chunk=1):
    head = config.vocab_size * config.hidden_size
    table = 0 if config.tie_word_embeddings else head
    read = costs.parameter_count(config) - table

    def stored(n):
        scales = 0 if group is None else 16 * math.ceil(n / group)
        return math.ceil((n * bits + scales) / 8)

    cache = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * cache_bits // 8
    widest = chunk * (config.hidden_size + 2 * config.intermediate_size)
    return {"activations": (widest + config.vocab_size) * 4, "cache": cache * context,
            "table": stored(table), "weights": stored(read)}


def _bytes_in_place(config, context, bits, group=None, cache_bits=16, chunk=1):
    need = dict.fromkeys(("weights", "table", "cache", "activations"), 0)
    need["weights"] += costs.bytes_at_bits(costs.weights_read(config), bits, group_size=group)
    if not config.tie_word_embeddings:
        need["table"] += costs.bytes_at_bits(config.vocab_size * config.hidden_size, bits, group)
    need["cache"] += costs.kv_bytes_per_token(config, cache_bits) * context
    for _ in range(chunk):
        need["activations"] += 4 * config.hidden_size + 8 * config.intermediate_size
    need["activations"] += 4 * config.vocab_size
    return need


def _changed(**parts):
    def wrong(config, context, bits, group=None, cache_bits=16, chunk=1):
        right = _bytes_by_hand(config, context, bits, group, cache_bits, chunk)
        return right | {name: change(right, config, context, bits, group, cache_bits, chunk)
                        for name, change in parts.items()}
    return wrong


# --- what_runs ----------------------------------------------------------------------------------------------


def _runs_by_loop(free, bandwidth, models):
    found = []
    for name, need in models.items():
        if need["weights"] + need["table"] + need["cache"] + need["activations"] <= free:
            found.append((name, bandwidth / (need["weights"] + need["cache"])))
    found.sort(key=lambda item: -item[1])
    return found


def _runs_lists(free, bandwidth, models):
    speed = {n: costs.decode_bound(m["weights"] + m["cache"], bandwidth) for n, m in models.items()
             if free - sum(m.values()) >= 0}
    return [[name, speed[name]] for name in sorted(speed, key=speed.get, reverse=True)]


# --- integers -----------------------------------------------------------------------------------------------


def _integers_by_divmod(stored):
    high, low = np.divmod(stored.astype(np.int16), 16)
    out = np.empty((*stored.shape[:2], 2 * stored.shape[2]), np.int8)
    out[..., 0::2], out[..., 1::2] = low - 8, high - 8
    return out.reshape(stored.shape[0], -1)


def _integers_by_loop(stored):
    rows = []
    for row in stored:
        rows.append([value for byte in row.flatten().tolist() for value in (byte % 16 - 8, byte // 16 - 8)])
    return np.array(rows, dtype=np.int8)


# --- generate -----------------------------------------------------------------------------------------------


def _generate_unrolled(session, prompt, new_tokens, stop=None):
    names = [value.name for value in session.get_inputs()][3:]
    shapes = [value.shape for value in session.get_inputs()][3:]
    feeds = {name: np.zeros([1, shape[1], 0, shape[3]], np.float32)
             for name, shape in zip(names, shapes, strict=True)}
    feeds["input_ids"] = np.array(prompt, np.int64)[None]
    out = []
    for _ in range(new_tokens):
        length = feeds["input_ids"].shape[1]
        feeds["kept"] = np.array([length - 1])
        feeds["attention_mask"] = np.ones((1, feeds[names[0]].shape[2] + length), np.int64)
        outputs = session.run(None, feeds)
        out.append(outputs[0][0, 0].argmax().item())
        if out[-1] == stop:
            break
        feeds["input_ids"] = np.array([[out[-1]]])
        feeds |= dict(zip(names, outputs[1:], strict=True))
    return out


def _generate_by_name(session, prompt, new_tokens, stop=None):
    names = [value.name for value in session.get_outputs()]
    past = [value for value in session.get_inputs() if len(value.shape) == 4]
    cache = {value.name: np.zeros((1, value.shape[1], 0, value.shape[3]), np.float32) for value in past}
    text, read = list(prompt), 0
    while len(text) < len(prompt) + new_tokens:
        new, read = text[read:], len(text)
        found = dict(zip(names, session.run(names, {
            "input_ids": np.array([new]), "attention_mask": np.ones((1, read), dtype=np.int64),
            "kept": np.arange(len(new))} | cache), strict=True))
        text.append(int(np.argmax(found["logits"][0][-1])))
        cache = {name: found[name.replace("past", "present")] for name in cache}
        if text[-1] == stop:
            break
    return text[len(prompt):]


def _generate_with(wrong):
    """The unrolled loop, with `wrong(feeds, outputs, past names)` done to it after each pass."""
    def generate(session, prompt, new_tokens, stop=None):
        past = [value.name for value in session.get_inputs()][3:]

        class Session:
            get_inputs, get_outputs = session.get_inputs, session.get_outputs

            def run(self, names, feeds):
                return wrong(session, feeds, past)
        return _generate_unrolled(Session(), prompt, new_tokens, stop)
    return generate


def _swap(session, feeds, past):
    scores, *present = session.run(None, feeds)
    return [scores, *(tensor for pair in zip(present[1::2], present[::2], strict=True) for tensor in pair)]


def _no_stop(session, prompt, new_tokens, stop=None):
    return _generate_unrolled(session, prompt, new_tokens)


def _without_last(written, stop):
    return written[:-1] if written and written[-1] == stop else written


def _twice(session, prompt, new_tokens, stop=None):
    _generate_unrolled(session, prompt, 1)
    return _generate_unrolled(session, prompt, new_tokens, stop)


WRONG = {
    "predict_weights": [(6.508, "integers alone"), (26.03, "16 bits"), (52.06, "32 bits"), (53.7, "bits")],
    "needed_bytes": [
        (_changed(weights=lambda r, c, n, b, *_: _bytes_by_hand(c, n, b)["weights"],
                  table=lambda r, c, n, b, *_: _bytes_by_hand(c, n, b)["table"]), "scales left out"),
        (_changed(weights=lambda r, *_: r["weights"] + r["table"]), "among the weights"),
        (_changed(table=lambda r, c, n, b, g, *_: costs.bytes_at_bits(c.vocab_size * c.hidden_size, b, g)),
         "embedding is tied"),
        (_changed(cache=lambda r, c, n, b, g, cb, k: costs.kv_bytes_per_token(c, cb)), "of one token"),
        (_changed(cache=lambda r, c, n, b, g, cb, k: n * costs.kv_bytes_per_token(c)), "whatever"),
        (_changed(activations=lambda r, *_: r["activations"] // 4), "counted as numbers"),
        (_changed(activations=lambda r, c, n, b, g, cb, k: 4 * k * (
            c.hidden_size + 2 * c.intermediate_size + c.vocab_size)), "row of scores"),
        (lambda *given, **named: sum(_bytes_by_hand(*given, **named).values()), "dict of 4"),
    ],
    "predict_tokens": [(0.0971, "seconds"), (2.575, "16 bits"), (82, "a byte has 8")],
    "what_runs": [
        (lambda free, read, models: [(name, read / (m["weights"] + m["cache"])) for name, m in
                                     models.items() if sum(m.values()) <= free], "order of the models"),
        (lambda free, read, models: _runs_by_loop(free, read, models)[::-1], "slowest first"),
        (lambda free, read, models: dict(_runs_by_loop(free, read, models)), "list of 3"),
        (lambda free, read, models: _runs_by_loop(free - 1, read, models), "last byte"),
        (lambda free, read, models: sorted(((n, read / m["weights"]) for n, m in models.items()
                                            if sum(m.values()) <= free), key=lambda x: -x[1]), "out of the"),
    ],
    "integers": [
        (lambda stored: _integers_by_loop((stored >> 4) | (stored << 4)), "high half first"),
        (lambda stored: _integers_by_loop(stored) + np.int8(8), "not taken off"),
        (lambda stored: (np.stack([stored & 15, stored >> 4], -1) - 8).reshape(len(stored), -1), "unsigned"),
        (lambda stored: _integers_by_loop(stored).astype(np.int64), "int8 array"),
        (lambda stored: _integers_by_loop(stored).reshape(len(stored), stored.shape[1], -1), "dimension"),
    ],
    "generate": [
        (_generate_with(_swap), "exchanged"),
        (_no_stop, "not looked at"),
        (lambda s, p, n, stop=None: _generate_unrolled(s, p, n, stop or None), "`if stop` is false"),
        (lambda s, p, n, stop=None: _generate_unrolled(s, p, n or 1, stop), "none was asked for"),
        (lambda s, p, n, stop=None: [*p, *_generate_unrolled(s, p, n, stop)], "prompt in front"),
        (lambda s, p, n, stop=None: _without_last(_generate_unrolled(s, p, n, stop), stop), "dropped"),
        (lambda s, p, n, stop=None: _generate_unrolled(s, p, n + 1, stop)[:n], "one pass too many"),
        (_twice, "tokens read"),
        (lambda s, p, n, stop=None: np.array(_generate_unrolled(s, p, n, stop)), "list of 6"),
    ],
}  # fmt: skip

RIGHT = {
    "predict_weights": [6.7, 6.71],
    "needed_bytes": [_bytes_by_hand, _bytes_in_place],
    "predict_tokens": [10.3, 10],
    "what_runs": [_runs_by_loop, _runs_lists, lambda free, read, models: _runs_by_loop(
        free, read, dict(reversed(models.items())))],
    "integers": [_integers_by_divmod, _integers_by_loop],
    "generate": [_generate_unrolled, _generate_by_name,
                 lambda s, p, n, stop=None: tuple(map(np.int64, _generate_unrolled(s, p, n, stop)))],
}
