"""Attention: one function, several implementations, chosen by platform and length.

Every caller hands over queries, keys and values as (batch, length, heads, head size) and
gets the same layout back. Scores and softmax are float32 whatever the inputs are.

    xla      two products and a softmax, left to the compiler; writes all scores
    blocked  blocked.py: a block of scores at a time; for CPUs
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from pit_jax.models import blocked
from pit_jax.parallel.mesh import BATCH_AXES, ambient_platform

# On two CPU cores the blocked kernel is 1.6 times slower at 65 tokens and 2.3 (heads of 64)
# to 4.8 times (heads of 16) faster at 1025, forward and backward.
_BLOCKED_FROM = 128


def choose(implementation: str, length: int) -> str:
    """The implementation that "auto" stands for here, or the given one.

    Args:
      implementation: "auto", "xla" or "blocked".
      length: number of keys.
    """
    if implementation != "auto":
        return implementation
    return "blocked" if ambient_platform() == "cpu" and length >= _BLOCKED_FROM else "xla"


def attention(q: jax.Array, k: jax.Array, v: jax.Array, implementation: str = "auto") -> jax.Array:
    """softmax(q kᵀ / √head size) v, for every head of every example.

    Args:
      q: (B, Lq, H, D) queries; Lq may be smaller than the number of keys.
      k: (B, Lk, H, D) keys.
      v: (B, Lk, H, D) values.
      implementation: see `choose`.

    Returns:
      (B, Lq, H, D) in q's dtype.
    """
    chosen = choose(implementation, k.shape[1])
    if chosen == "xla" or q.shape[1] == 1:  # one query: its scores are no larger than a key
        return _xla(q, k, v)
    if chosen == "blocked":
        return _on_each_device(blocked.attention)(q, k, v)
    raise ValueError(f"attention {chosen!r} is neither auto, xla nor blocked")


def _xla(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    scale = q.shape[-1] ** -0.5
    # Heads go in front of the length so that both products are plain batched matrix
    # products: jax.nn.dot_product_attention's own order takes 1.5 times as long on a CPU.
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q * scale, k, v))  # (B, H, L, D)
    scores = jnp.einsum("bhqd,bhkd->bhqk", q, k, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bhqk,bhkd->bhqd", weights, v).transpose(0, 2, 1, 3)  # (B, Lq, H, D)


def _on_each_device(kernel: Callable) -> Callable:
    """`kernel` on each device's own examples and heads: its loop is over both, and a loop
    over a dimension that is split would gather it."""

    def call(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.empty or mesh.size == 1:
            return kernel(q, k, v)
        ways = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
        batch = BATCH_AXES if q.shape[0] % ways == 0 else None
        heads = "model" if q.shape[2] % mesh.shape["model"] == 0 else None
        spec = PartitionSpec(batch, None, heads, None)
        specs = {"in_specs": (spec,) * 3, "out_specs": spec, "check_vma": False}
        return jax.shard_map(kernel, **specs)(q, k, v)

    return call
