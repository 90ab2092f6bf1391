"""Attention over tokens that are split across chips: what travels, and when.

    ulysses  two all-to-alls: each device trades its share of the tokens of all heads for
             all tokens of its share of the heads, and back (Jacobs et al. 2023)
    gather   keys and values of all tokens come to every device once a layer; queries stay

Ulysses moves 4 · L · d / n numbers a device and gather 2 · L · d, forward, over n devices;
but Ulysses needs a head for every device and fills up with empty ones where they do not
divide.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from pit_jax.parallel.mesh import BATCH_AXES, ambient_platform

# Empty heads up to this share of the real ones are cheaper than gathering (an assumption:
# they cost products that are wasted, gathering costs n / 2 times the traffic and memory).
_MOST_EMPTY = 0.34


def ways() -> int:
    """Over how many devices the ambient mesh splits tokens."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.shape["seq"]


def padded(length: int) -> int:
    """The number of tokens that `length` is filled up to so that the devices share alike.

    On TPUs to a multiple of 512 a device group, so that the kernel's blocks are large.
    """
    n = ways()
    if n == 1:
        return length
    unit = math.lcm(n, 512) if ambient_platform() == "tpu" else n
    return -(-length // unit) * unit


def choose(heads: int, how: str = "auto") -> str:
    """ "ulysses" or "gather" for this many heads over the ambient mesh.

    Args:
      heads: of the whole model; the mesh's axis "model" takes its part of them first.
      how: "auto", or one of the two.
    """
    if how != "auto":
        return how
    mesh = jax.sharding.get_abstract_mesh()
    tensor = 1 if mesh.empty else mesh.shape["model"]
    here = heads // tensor if heads % tensor == 0 else heads
    empty = -(-here // ways()) * ways() - here
    return "ulysses" if empty <= _MOST_EMPTY * here else "gather"


def attend(
    kernel: Callable, q: jax.Array, k: jax.Array, v: jax.Array, how: str = "auto"
) -> jax.Array:
    """`kernel` on each device's own examples, heads and, over "seq", its share of the work.

    Args:
      kernel: (q, k, v, first) → like q, on one device; `first` is the index of its first
        query among all tokens. It always sees all keys.
      q: (B, L, H, D), k, v: likewise; lengths that `padded` returns where tokens are split.
      how: see `choose`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return kernel(q, k, v, 0)
    examples = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    batch = BATCH_AXES if q.shape[0] % examples == 0 else None
    heads = "model" if q.shape[2] % mesh.shape["model"] == 0 else None
    n = mesh.shape["seq"]
    if n == 1:

        def local(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            return kernel(q, k, v, 0)

    else:
        if q.shape[1] % n or k.shape[1] % n:
            raise ValueError(f"{q.shape[1]} queries, {k.shape[1]} keys do not split over {n}")
        local = {"ulysses": _ulysses, "gather": _gather}[choose(q.shape[2], how)](kernel, n)
    spec = PartitionSpec(batch, "seq", heads, None)
    # Which axes a value varies over is not checked: custom gradients do not say.
    specs = {"in_specs": (spec,) * 3, "out_specs": spec, "check_vma": False}
    return jax.shard_map(local, **specs)(q, k, v)


def _ulysses(kernel: Callable, n: int) -> Callable:
    def local(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        heads = q.shape[2]
        empty = -heads % n

        def to_heads(x: jax.Array) -> jax.Array:  # (B, L/n, H, D) → (B, L, H/n, D)
            x = jnp.pad(x, ((0, 0), (0, 0), (0, empty), (0, 0)))
            return jax.lax.all_to_all(x, "seq", split_axis=2, concat_axis=1, tiled=True)

        out = kernel(to_heads(q), to_heads(k), to_heads(v), 0)
        out = jax.lax.all_to_all(out, "seq", split_axis=1, concat_axis=2, tiled=True)
        return out[:, :, :heads]

    return local


def _gather(kernel: Callable, n: int) -> Callable:
    def local(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        k, v = (jax.lax.all_gather(x, "seq", axis=1, tiled=True) for x in (k, v))
        return kernel(q, k, v, jax.lax.axis_index("seq") * q.shape[1])

    return local
