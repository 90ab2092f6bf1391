"""Attention: one function, with the implementation named by the config.

Every caller hands over queries, keys and values as (batch, length, heads, head size) and
gets the same layout back. Scores and softmax are float32 whatever the inputs are.
"""

import jax
import jax.numpy as jnp

IMPLEMENTATIONS = ("auto", "xla")


def attention(q: jax.Array, k: jax.Array, v: jax.Array, implementation: str = "auto") -> jax.Array:
    """softmax(q kᵀ / √head size) v, for every head of every example.

    Args:
      q: (B, Lq, H, D) queries; Lq may be smaller than the number of keys.
      k: (B, Lk, H, D) keys.
      v: (B, Lk, H, D) values.
      implementation: "auto" or "xla" (two products and a softmax, left to the compiler).

    Returns:
      (B, Lq, H, D) in q's dtype.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"attention {implementation!r} is none of {', '.join(IMPLEMENTATIONS)}")
    scale = q.shape[-1] ** -0.5
    # Heads go in front of the length so that both products are plain batched matrix
    # products: jax.nn.dot_product_attention's own order takes 1.5 times as long on a CPU.
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q * scale, k, v))  # (B, H, L, D)
    scores = jnp.einsum("bhqd,bhkd->bhqk", q, k, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bhqk,bhkd->bhqd", weights, v).transpose(0, 2, 1, 3)  # (B, Lq, H, D)
