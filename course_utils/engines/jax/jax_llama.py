"""A Llama and a distillation step in JAX: pure functions of parameters and tokens, which XLA compiles.

Nothing here names a device. jax.jit compiles for the one that it finds: CPU, GPU or TPU.
"""

from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array
Parameters = dict[str, Any]


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    """Divide each vector by its root mean square, times a weight: [..., hidden]."""
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps) * weight


def rotate(x: Array, base: float) -> Array:
    """Turn the pairs (i, i + half) of each head by angles that grow with the place: [tokens, heads, dim]."""
    tokens, _, dim = x.shape
    angles = jnp.arange(tokens)[:, None] * base ** (-jnp.arange(0, dim, 2) / dim)  # [tokens, dim / 2]
    cos, sin = jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def attention(block: Parameters, x: Array, config: dict) -> Array:
    """Causal attention with grouped keys and values: [tokens, hidden] -> the same."""
    tokens, dim = x.shape[0], config["head_dim"]
    query, key, value = ((x @ block[name].T).reshape(tokens, -1, dim) for name in ("q", "k", "v"))
    query, key = rotate(query, config["rope_theta"]), rotate(key, config["rope_theta"])
    group = query.shape[1] // key.shape[1]
    key, value = jnp.repeat(key, group, axis=1), jnp.repeat(value, group, axis=1)
    scores = jnp.einsum("qhd,khd->hqk", query, key) / dim**0.5
    seen = jnp.tril(jnp.ones((tokens, tokens), bool))
    weights = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1)
    return jnp.einsum("hqk,khd->qhd", weights, value).reshape(tokens, -1) @ block["o"].T


def forward(blocks: list[Parameters], rest: Parameters, ids: Array, config: dict) -> Array:
    """Logits [tokens, vocabulary] of one text [tokens]; the embedding is the output layer, too."""
    x, eps = rest["embedding"][ids], config["rms_norm_eps"]
    for block in blocks:
        x = x + attention(block, rms_norm(x, block["attention_norm"], eps), config)
        y = rms_norm(x, block["mlp_norm"], eps)
        x = x + (jax.nn.silu(y @ block["gate"].T) * (y @ block["up"].T)) @ block["down"].T
    # Not "@ embedding.T": without jax.jit that would write out a second, turned embedding.
    return jnp.einsum("th,vh->tv", rms_norm(x, rest["norm"], eps), rest["embedding"])


def kd_loss(student: Array, teacher: Array, temperature: float) -> Array:
    """T^2 * KL(teacher || student), the mean over all tokens: the kd_loss of course_utils.distill."""
    student = jax.nn.log_softmax(student / temperature, axis=-1)
    teacher = jax.nn.log_softmax(teacher / temperature, axis=-1)
    return temperature**2 * jnp.mean(jnp.sum(jnp.exp(teacher) * (teacher - student), axis=-1))


def distillation_step(blocks: list[Parameters], rest: Parameters, ids: Array, teacher: Array, lr: float,
                      config: dict, temperature: float) -> tuple[list[Parameters], Array, list[Parameters]]:
    """One step of gradient descent on the blocks: (new blocks, loss before it, gradients)."""
    def loss(blocks: list[Parameters]) -> Array:
        return kd_loss(forward(blocks, rest, ids, config), teacher, temperature)

    value, gradients = jax.value_and_grad(loss)(blocks)
    return jax.tree.map(lambda p, g: p - lr * g, blocks, gradients), value, gradients
