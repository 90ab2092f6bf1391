"""Attention on TPUs: Pallas splash attention, which holds one block of scores on the chip.

The kernel wants lengths that its blocks divide: shorter ones are filled up, and segment
ids keep the filling out of every sum. Masks are computed inside the kernel; blocks that
nobody sees are skipped.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as kernels,
)
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_mask as masks,
)

from pit_jax.models.mask import FULL, Mask

_LANES = 128
_LARGEST_BLOCK = 1024  # blocks of 2048 exceed the on-chip memory of a v5e


def attention(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask = FULL, interpret: bool = False
) -> jax.Array:
    """softmax(q kᵀ / √D) v: (B, Lq, H, D), (B, Lk, H, D), (B, Lk, H, D) → (B, Lq, H, D).

    Runs on one TPU device; under a mesh call it inside `jax.shard_map`. `interpret` runs
    the kernel's own steps on any platform, slowly, for tests. Scores are float32; their
    scale 1/√D is applied to the queries.
    """
    rows, keys = q.shape[1], k.shape[1]
    q_length, q_block = padded(rows)
    k_length, k_block = padded(keys)
    inside = mask if not mask.dense else FULL  # padding alone is left to the segment ids
    kernel = _kernel((q_length, k_length), (q_block, k_block), q.shape[2], inside, interpret)
    real = keys if mask.length is None else mask.length
    segments = kernels.SegmentIds(
        q=jnp.ones(q_length, jnp.int32),
        kv=(jnp.arange(k_length) < real).astype(jnp.int32),
    )

    def fill(x: jax.Array, length: int) -> jax.Array:
        x = jnp.pad(x, ((0, 0), (0, length - x.shape[1]), (0, 0), (0, 0)))
        return x.transpose(0, 2, 1, 3)  # (B, H, L, D)

    scaled = (q * q.shape[-1] ** -0.5).astype(q.dtype)
    inputs = fill(scaled, q_length), fill(k, k_length), fill(v, k_length)
    if real == k_length:
        out = jax.vmap(kernel)(*inputs)
    else:
        out = jax.vmap(kernel, in_axes=(0, 0, 0, None))(*inputs, segments)
    return out.transpose(0, 2, 1, 3)[:, :rows].astype(q.dtype)


def padded(length: int) -> tuple[int, int]:
    """The length that `length` is filled up to, and the block that divides it.

    Filling costs products, small blocks cost starts and stops: the least sum of the two,
    by a rule of thumb that no TPU has confirmed yet.
    """

    def cost(block: int) -> float:
        filled = -(-length // block) * block
        return filled**2 * (1 + _LANES / 2 / block)

    block = min(range(_LARGEST_BLOCK, 0, -_LANES), key=cost)
    return -(-length // block) * block, block


class _Computed(masks._ComputableMask):
    """A Mask as the kernel wants it; equal rules are one mask."""

    def __init__(self, shape: tuple[int, int], mask: Mask):
        self.rule = mask
        super().__init__(shape, mask.allowed)

    def __eq__(self, other: object) -> bool:
        same_kind = isinstance(other, type(self))
        return same_kind and (self.shape, self.rule) == (other.shape, other.rule)

    def __hash__(self) -> int:
        return hash((type(self), self.shape, self.rule))


@functools.lru_cache(maxsize=64)
def _masks(shape: tuple[int, int], heads: int, mask: Mask) -> masks.MultiHeadMask:
    one = masks.FullMask(shape) if mask == FULL else _Computed(shape, mask)
    return masks.MultiHeadMask([one] * heads)


def _kernel(
    lengths: tuple[int, int], blocks: tuple[int, int], heads: int, mask: Mask, interpret: bool
) -> kernels.SplashAttentionKernel:
    q, kv = blocks
    # The fused backward kernel keeps a partial dq for every key block: at 50 176 tokens
    # that is more than the activations, so it stays off.
    sizes = kernels.BlockSizes(
        block_q=q,
        block_kv=kv,
        block_kv_compute=kv,
        block_q_dkv=q,
        block_kv_dkv=kv,
        block_kv_dkv_compute=kv,
        block_q_dq=q,
        block_kv_dq=kv,
    )
    return kernels.make_splash_mha(
        _masks(lengths, heads, mask),
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
