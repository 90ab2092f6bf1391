"""Attention: one function, several implementations, chosen by platform, length and dtype.

Every caller hands over queries, keys and values as (batch, length, heads, head size) and
gets the same layout back. Scores and softmax are float32 whatever the inputs are.

    xla      two products and a softmax, left to the compiler; writes all scores
    blocked  blocked.py: a block of scores at a time; for CPUs, and for windows on GPUs
    splash   splash.py: Pallas kernel for TPUs
    cudnn    cuDNN's fused kernel, for bfloat16 and float16 on NVIDIA GPUs; lengths made even
"""

import functools

import jax
import jax.numpy as jnp

from pit_jax.errors import ConfigError
from pit_jax.models import blocked
from pit_jax.models.mask import FULL, Mask
from pit_jax.parallel import sequence
from pit_jax.parallel.mesh import ambient_platform, compute_capability

IMPLEMENTATIONS = ("xla", "blocked", "splash", "cudnn")
_SPLASH_HEADS = (16, 128)  # smallest and largest head size the kernel is used with

# cuDNN's fused attention needs Ampere or newer (T4s and V100s are older). Its heads may be
# 256 wide from Hopper on, forward; 128 is what every one of them takes in training.
_CUDNN_CAPABILITY, _CUDNN_HEAD = (8, 0), 128

# From how many keys on the fused kernel is taken. On two CPU cores the blocked kernel is
# 1.6 times slower at 65 tokens and 2.3 (heads of 64) to 4.8 times (heads of 16) faster at
# 1025, forward and backward. On the others it is an assumption: 256² scores are small.
_FUSED_FROM = {"cpu": 128, "gpu": 256, "tpu": 256}


def choose(
    implementation: str,
    keys: int,
    head_size: int = 64,
    dtype: jnp.dtype = jnp.float32,
    mask: Mask = FULL,
) -> str:
    """The implementation that "auto" stands for here, or the given one if it can run.

    Args:
      implementation: "auto" or one of IMPLEMENTATIONS.
      keys: number of keys.
      head_size: D.
      dtype: of queries, keys and values.
      mask: what may be seen.

    Raises:
      ConfigError: if the given implementation cannot run here, saying why.
    """
    platform = ambient_platform()
    obstacles = {
        "xla": "",
        "blocked": "",
        "splash": _splash_obstacle(platform, head_size),
        "cudnn": _cudnn_obstacle(platform, head_size, dtype, mask),
    }
    if implementation != "auto":
        if obstacle := obstacles[implementation]:
            raise ConfigError(
                f"config.model.attention={implementation!r} cannot run here: {obstacle};"
                " 'auto' picks one that can"
            )
        return implementation
    if keys < _FUSED_FROM[platform]:
        return "xla"
    fused = {"cpu": ("blocked",), "gpu": ("cudnn", "blocked"), "tpu": ("splash", "xla")}
    return next(name for name in fused[platform] if not obstacles[name])


def _splash_obstacle(platform: str, head_size: int) -> str:
    low, high = _SPLASH_HEADS
    if platform != "tpu":
        return f"it needs a TPU, and this runs on a {platform.upper()}"
    if not low <= head_size <= high or head_size % 8:
        return f"heads of {head_size} are not between {low} and {high} in steps of 8"
    return ""


def _cudnn_obstacle(platform: str, head_size: int, dtype: jnp.dtype, mask: Mask) -> str:
    if platform != "gpu":
        return f"it needs an NVIDIA GPU, and this runs on a {platform.upper()}"
    if dtype not in (jnp.bfloat16, jnp.float16):
        return f"it takes bfloat16 and float16, not {jnp.dtype(dtype).name}"
    if head_size % 8 or head_size > _CUDNN_HEAD:
        return f"heads of {head_size} are not a multiple of 8 up to {_CUDNN_HEAD}"
    capability = compute_capability()
    if capability is not None and capability < _CUDNN_CAPABILITY:
        older, needed = (".".join(map(str, c)) for c in (capability, _CUDNN_CAPABILITY))
        return f"it needs a GPU of compute capability {needed}, and this one has {older}"
    if mask.radius is not None:
        return "a 2-D window would need a bias of length × length"
    return ""


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    implementation: str = "auto",
    mask: Mask = FULL,
    exchange: str = "auto",
) -> jax.Array:
    """softmax(q kᵀ / √head size) v over the keys that `mask` lets each query see.

    Args:
      q: (B, Lq, H, D) queries, those of the first Lq tokens; Lq may be smaller than Lk.
      k: (B, Lk, H, D) keys.
      v: (B, Lk, H, D) values.
      implementation: see `choose`.
      mask: which key each query sees.
      exchange: how tokens travel where the mesh splits them; see parallel/sequence.py.

    Returns:
      (B, Lq, H, D) in q's dtype.
    """
    chosen = choose(implementation, k.shape[1], q.shape[-1], q.dtype, mask)
    if chosen == "xla" or q.shape[1] == 1:  # one query: its scores are no larger than a key
        return _xla(q, k, v, mask)
    if chosen == "splash" and sequence.ways() > 1 and not mask.dense:
        if exchange == "gather":
            raise ConfigError(
                "config.model.exchange='gather' has neither windows nor causal order on TPUs:"
                " write 'ulysses' or 'auto'"
            )
        exchange = "ulysses"  # the kernel's masks start at query 0
    kernel = {"blocked": _blocked, "splash": _splash, "cudnn": _cudnn}[chosen]
    n, rows, keys = sequence.ways(), q.shape[1], k.shape[1]
    if keys % n:  # only where the trunk has not filled up already
        mask = mask.of_length(keys)
    q, k, v = (jnp.pad(x, ((0, 0), (0, -x.shape[1] % n), (0, 0), (0, 0))) for x in (q, k, v))
    return sequence.attend(functools.partial(kernel, mask), q, k, v, exchange)[:, :rows]


def _xla(q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask) -> jax.Array:
    scale = q.shape[-1] ** -0.5
    # Heads go in front of the length so that both products are plain batched matrix
    # products: jax.nn.dot_product_attention's own order takes 1.5 times as long on a CPU.
    rows, columns = (jnp.arange(x.shape[1], dtype=jnp.int32) for x in (q, k))
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q * scale, k, v))  # (B, H, L, D)
    scores = jnp.einsum("bhqd,bhkd->bhqk", q, k, preferred_element_type=jnp.float32)
    if mask != FULL:
        scores = jnp.where(mask.allowed(rows[:, None], columns[None, :]), scores, -1e30)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bhqk,bhkd->bhqd", weights, v).transpose(0, 2, 1, 3)  # (B, Lq, H, D)


def _blocked(mask: Mask, q: jax.Array, k: jax.Array, v: jax.Array, first) -> jax.Array:
    return blocked.attention(q, k, v, mask, first)


def _splash(mask: Mask, q: jax.Array, k: jax.Array, v: jax.Array, first) -> jax.Array:
    from pit_jax.models import splash  # imports Pallas: a second that only TPUs need

    del first  # 0, or the mask is dense
    return splash.attention(q, k, v, mask)


def _cudnn(mask: Mask, q: jax.Array, k: jax.Array, v: jax.Array, first) -> jax.Array:
    if mask.causal and not isinstance(first, int):  # queries that start elsewhere
        return blocked.attention(q, k, v, mask, first)
    rows, keys = q.shape[1], k.shape[1]
    real = keys if mask.length is None else min(mask.length, keys)
    # jax refuses odd lengths in training: the kernel does with a bias, and jax counts the
    # empty one that it hands down.
    q, k, v = (jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0))) for x in (q, k, v))
    lengths = {}
    if real < k.shape[1]:
        # Filling queries count as real ones: what the kernel would write for others is not
        # said, while these are finite and, where they were added here, cut off.
        counts = {"query_seq_lengths": q.shape[1], "key_value_seq_lengths": real}
        lengths = {name: jnp.full(q.shape[0], n, jnp.int32) for name, n in counts.items()}
    out = jax.nn.dot_product_attention(
        q, k, v, is_causal=mask.causal, implementation="cudnn", **lengths
    )
    return out[:, :rows]
