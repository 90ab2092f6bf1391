"""Attention for CPUs that never holds more than one block of scores, with its own gradient.

Query blocks of one head meet all its keys at a time; the backward pass recomputes the
scores from the saved log-sum-exp (FlashAttention, Dao et al. 2022). What makes it fast on a
CPU was measured: a loop over (example, head) whose products are plain matrices in cache,
blocks of some 257 rows (65 are too small, 1025 spill), and the scores held as [query, key]
in the forward and [key, query] in the backward pass, so that no product multiplies by a
transposed block of scores.
"""

import jax
import jax.numpy as jnp

_BLOCK = 257  # query rows, about


@jax.custom_vjp
def attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """softmax(q kᵀ / √D) v: (B, Lq, H, D), (B, Lk, H, D), (B, Lk, H, D) → (B, Lq, H, D)."""
    return _forward(q, k, v)[0]


def _blocks(rows: int) -> tuple[int, int]:
    """How many query blocks, and their equal size: no block of a single row is left over."""
    count = max(1, round(rows / _BLOCK))
    return count, -(-rows // count)


def _by_head(x: jax.Array) -> jax.Array:
    """(B, L, H, ...) → (B · H, L, ...) float32: a CPU multiplies bfloat16 far more slowly."""
    x = jnp.moveaxis(x.astype(jnp.float32), 2, 1)
    return x.reshape(-1, *x.shape[2:])


def _in_blocks(x: jax.Array) -> jax.Array:
    """(B · H, L, ...) → (B · H, blocks, size, ...), the last block filled with zeros."""
    count, size = _blocks(x.shape[1])
    fill = [(0, 0), (0, count * size - x.shape[1])] + [(0, 0)] * (x.ndim - 2)
    return jnp.pad(x, fill).reshape(x.shape[0], count, size, *x.shape[2:])


def _back(x: jax.Array, like: jax.Array) -> jax.Array:
    """(B · H, ..., D) → the shape and dtype of `like`, (B, L, H, D)."""
    batch, length, heads, width = like.shape
    x = x.reshape(batch, heads, -1, width)[:, :, :length]
    return x.transpose(0, 2, 1, 3).astype(like.dtype)


def _forward(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, tuple]:
    scale = q.shape[-1] ** -0.5

    def one_head(inputs: tuple) -> tuple[jax.Array, jax.Array]:
        queries, keys, values = inputs
        keys = keys.T  # (D, Lk)

        def one_block(block: jax.Array) -> tuple[jax.Array, jax.Array]:
            scores = block @ keys  # (size, Lk)
            top = scores.max(-1, keepdims=True)
            weights = jnp.exp(scores - top)
            total = weights.sum(-1, keepdims=True)
            out = weights @ values / total
            return out, (top + jnp.log(total))[:, 0]

        return jax.lax.map(one_block, queries)

    blocks = _in_blocks(_by_head(q * scale))
    out, log_sum = jax.lax.map(one_head, (blocks, _by_head(k), _by_head(v)))
    out = _back(out, q)
    return out, (q, k, v, out, log_sum)


def _backward(saved: tuple, gradient: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    q, k, v, out, log_sum = saved
    scale = q.shape[-1] ** -0.5
    delta = (gradient.astype(jnp.float32) * out).sum(-1)  # (B, Lq, H)

    def one_head(inputs: tuple) -> tuple[jax.Array, jax.Array, jax.Array]:
        queries, gradients, deltas, log_sums, keys, values = inputs
        keys_across = keys.T

        def one_block(sums: tuple, block: tuple) -> tuple[tuple, jax.Array]:
            d_keys, d_values = sums
            query, grad, d, log_total = block
            weights = jnp.exp(keys @ query.T - log_total)  # (Lk, size)
            d_values += weights @ grad
            d_scores = weights * (values @ grad.T - d)
            d_keys += d_scores @ query
            return (d_keys, d_values), (keys_across @ d_scores).T

        zeros = jnp.zeros_like(keys)
        sums, d_queries = jax.lax.scan(
            one_block, (zeros, zeros), (queries, gradients, deltas, log_sums)
        )
        return d_queries, *sums

    blocks = (_in_blocks(_by_head(x)) for x in (q * scale, gradient, delta))
    d_q, d_k, d_v = jax.lax.map(one_head, (*blocks, log_sum, _by_head(k), _by_head(v)))
    return _back(d_q * scale, q), _back(d_k, k), _back(d_v, v)


attention.defvjp(_forward, _backward)
