"""Attention in float64 by its formula, with the gradients worked out by hand."""

import functools

import numpy as np

from pit_jax.models.mask import FULL, Mask


def inputs(lq: int, lk: int, heads: int = 2, size: int = 16, batch: int = 2) -> list[np.ndarray]:
    """Queries, keys, values and a cotangent."""
    rng = np.random.default_rng(0)
    return [rng.normal(size=(batch, n, heads, size)) for n in (lq, lk, lk, lq)]


@functools.cache
def allowed(mask: Mask, queries: int, keys: int) -> np.ndarray:
    """The mask as an array, written down pair by pair from its definition."""
    array = np.ones((queries, keys), bool)
    for i in range(queries):
        for j in range(keys):
            if mask.length is not None and j >= mask.length:
                array[i, j] = False
            if mask.causal and j > i:
                array[i, j] = False
            if mask.radius is not None and i >= mask.prefix and j >= mask.prefix:
                here, there = (divmod(x - mask.prefix, mask.columns) for x in (i, j))
                if np.hypot(here[0] - there[0], here[1] - there[1]) > mask.radius:
                    array[i, j] = False
    return array


def attention(q, k, v, g, mask: Mask = FULL) -> tuple[np.ndarray, ...]:
    """Output and gradients for the cotangent g."""
    scale = q.shape[-1] ** -0.5
    scores = np.einsum("bqhd,bkhd->bhqk", q, k) * scale
    scores = np.where(allowed(mask, q.shape[1], k.shape[1]), scores, -np.inf)
    p = np.exp(scores - np.maximum(scores.max(-1, keepdims=True), -1e9))
    p /= np.maximum(p.sum(-1, keepdims=True), 1e-300)
    out = np.einsum("bhqk,bkhd->bqhd", p, v)
    dp = np.einsum("bqhd,bkhd->bhqk", g, v)
    ds = p * (dp - (dp * p).sum(-1, keepdims=True)) * scale
    return (
        out,
        np.einsum("bhqk,bkhd->bqhd", ds, k),
        np.einsum("bhqk,bqhd->bkhd", ds, q),
        np.einsum("bhqk,bqhd->bkhd", p, g),
    )
