"""The pre-norm Transformer block and the trunk made of it.

The trunk's parameters are `blocks` (depth − 1 layers, scanned, so that compiling takes
the same time at any depth) and `last` (one more of the same block). The last block may be
told which rows will be read and computes only those: every row still serves as key and
value, so the result is the same as computing all of them and dropping the rest.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from pit_jax.models.attention import attention
from pit_jax.parallel.mesh import constrain

REMAT_POLICIES = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def gelu(x: jax.Array) -> jax.Array:
    """The exact GELU, x·Φ(x). Written out: half the CPU time of jax.nn.gelu's erfc form."""
    return 0.5 * x * (1 + jax.lax.erf(x * 0.5**0.5))


def drop_path(x: jax.Array, rate: jax.Array, key: jax.Array) -> jax.Array:
    """Drops a residual branch for whole examples (stochastic depth, Huang et al. 2016).

    Args:
      x: (B, L, d); rate: scalar in [0, 1), may be traced; key: a PRNG key.
    """
    keep = 1 - rate
    kept = jax.random.bernoulli(key, keep, (x.shape[0], 1, 1))
    return jnp.where(kept, x / keep.astype(x.dtype), 0)


class LayerScale(nn.Module):
    """A learned factor for each channel of a residual branch (CaiT), started small."""

    init: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.constant(self.init), (x.shape[-1],))
        return x * scale.astype(x.dtype)


class Block(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)).

    Call with x: (B, L, d) and this layer's drop path rate (a scalar; 0 drops nothing).
    `rows` = n computes the first n rows only and returns (B, n, d); None computes all.
    """

    heads: int
    mlp: int
    dropout: float = 0.0
    stochastic_depth: bool = False
    layer_scale: float = 0.0
    norm_eps: float = 1e-6
    attention: str = "auto"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, rate: jax.Array, rows: int | None = None, train: bool = False
    ) -> jax.Array:
        width = x.shape[-1]

        def dense(features: int, name: str) -> nn.Dense:
            init = nn.initializers.xavier_uniform()
            return nn.Dense(features, dtype=self.dtype, kernel_init=init, name=name)

        def norm(name: str) -> nn.LayerNorm:
            return nn.LayerNorm(self.norm_eps, dtype=self.dtype, name=name)

        def branch(y: jax.Array, name: str) -> jax.Array:
            y = nn.Dropout(self.dropout, deterministic=not train)(y)
            if self.layer_scale:
                y = LayerScale(self.layer_scale, name=f"{name}_scale")(y)
            if train and self.stochastic_depth:
                y = drop_path(y, rate, self.make_rng("dropout"))
            return y

        def split_heads(y: jax.Array) -> jax.Array:
            y = y.reshape(*y.shape[:2], self.heads, width // self.heads)
            return constrain(y, "batch", "seq", "model", None)  # (B, L, H, D)

        y = norm("norm1")(x)
        k = split_heads(dense(width, "key")(y))
        v = split_heads(dense(width, "value")(y))
        if rows is not None:
            x, y = x[:, :rows], y[:, :rows]
        q = split_heads(dense(width, "query")(y))
        y = attention(q, k, v, self.attention).reshape(x.shape)
        x = x + branch(dense(width, "out")(y), "attention")
        y = gelu(dense(self.mlp, "up")(norm("norm2")(x)))
        y = constrain(y, "batch", "seq", "model")  # (B, L, mlp)
        y = nn.Dropout(self.dropout, deterministic=not train)(y)
        x = x + branch(dense(width, "down")(y), "mlp")
        return constrain(x, "batch", "seq", None)


class Trunk(nn.Module):
    """`depth` blocks: (B, L, d) → (B, rows or L, d).

    The drop path rate grows linearly from 0 in the first layer to `drop_path` in the last.
    """

    depth: int
    heads: int
    mlp: int
    drop_path: float = 0.0
    dropout: float = 0.0
    layer_scale: float = 0.0
    norm_eps: float = 1e-6
    attention: str = "auto"
    remat: str = "none"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, rows: int | None = None, train: bool = False) -> jax.Array:
        options = dict(
            heads=self.heads,
            mlp=self.mlp,
            dropout=self.dropout,
            stochastic_depth=self.drop_path > 0,
            layer_scale=self.layer_scale,
            norm_eps=self.norm_eps,
            attention=self.attention,
            dtype=self.dtype,
        )
        rates = jnp.linspace(0, self.drop_path, self.depth, dtype=jnp.float32)
        block = Block
        if self.remat != "none":
            block = nn.remat(
                Block,
                prevent_cse=False,
                policy=REMAT_POLICIES[self.remat],
                static_argnums=(3, 4),  # rows, train (0 is the module)
            )
        if self.depth > 1:
            scan = nn.scan(
                lambda module, x, rate: (module(x, rate, None, train), None),
                variable_axes={"params": 0},
                split_rngs={"params": True, "dropout": True},
                length=self.depth - 1,
            )
            x, _ = scan(block(**options, name="blocks"), x, rates[:-1])
        return block(**options, name="last")(x, rates[-1], rows, train)
