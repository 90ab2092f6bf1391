"""The encoder in float64 NumPy: what every block's queries and keys are, and its tokens."""

import numpy as np
from scipy.special import erf


def norm(x, params=None, eps=1e-6):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)
    return x if params is None else x * params["scale"] + params["bias"]


def dense(x, params):
    return x @ params["kernel"] + params["bias"]


def silu(x):
    return x / (1 + np.exp(-x))


def gelu(x):
    return x * (1 + erf(x / np.sqrt(2))) / 2


def gelu_tanh(x):
    return x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2


def layers(trunk):
    """The parameters of each layer, the scanned ones first."""
    blocks = trunk.get("blocks")
    for index in range(len(blocks["query"]["bias"]) if blocks else 0):
        yield {name: {k: v[index] for k, v in leaves.items()} for name, leaves in blocks.items()}
    yield trunk["last"]


def run(trunk, x, heads, allowed=None, c=None):
    """Tokens (B, L, d) after all blocks; attention weights (layers, B, H, L, L) on the way.

    allowed: (L, L) for each layer; c: (B, d) of conditioned blocks.
    """
    found = []
    for number, p in enumerate(layers(trunk)):
        b, length, d = x.shape
        parts = np.split(dense(silu(c), p["modulation"]), 6, -1) if c is not None else [None] * 6
        shift1, scale1, gate1, shift2, scale2, gate2 = (
            None if part is None else part[:, None] for part in parts
        )

        def normed(x, name, shift, scale, p=p):
            return norm(x, p[name]) if shift is None else norm(x) * (1 + scale) + shift

        y = normed(x, "norm1", shift1, scale1)
        q, k, v = (
            dense(y, p[name]).reshape(b, length, heads, -1) for name in ("query", "key", "value")
        )
        scores = np.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(d / heads)
        if allowed is not None:
            scores = np.where(allowed[number], scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        found.append(weights)
        y = dense(np.einsum("bhqk,bkhd->bqhd", weights, v).reshape(x.shape), p["out"])
        x = x + y * (1 if gate1 is None else gate1)
        act = gelu if c is None else gelu_tanh
        y = dense(act(dense(normed(x, "norm2", shift2, scale2), p["up"])), p["down"])
        x = x + y * (1 if gate2 is None else gate2)
    return x, np.stack(found)


def embed(p, images):
    """Tokens of (B, S, S, C), every pixel one; [CLS] first if the parameters have one."""
    x = dense(images.reshape(len(images), -1, images.shape[-1]), p["patch"])
    if "cls" in p:
        x = np.concatenate([np.broadcast_to(p["cls"], (len(x), 1, x.shape[-1])), x], axis=1)
    return x + p["position"]


def distances(weights, places, prefix):
    """Mean attention distance (layers, B, H) by its definition, in tokens."""
    weights = weights[..., prefix:, prefix:]
    weights = weights / weights.sum(-1, keepdims=True)
    apart = np.linalg.norm(places[:, None] - places, axis=-1)
    return (weights * apart).sum(-1).mean(-1)
