"""The pre-norm Transformer block and the trunk made of it.

The trunk's parameters are `blocks` (depth − 1 layers, scanned, so that compiling takes
the same time at any depth) and `last` (one more of the same block). The last block may be
told which rows will be read and computes only those: every row still serves as key and
value, so the result is the same as computing all of them and dropping the rest.

`conditioned` blocks are those of DiT (adaLN-Zero, Peebles & Xie 2023): one vector an image
shifts and scales what the norms return and gates both branches.
"""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from pit_jax.models.attention import attention, choose
from pit_jax.models.initialisation import SCHEMES
from pit_jax.models.mask import FULL, Mask, layer_radii
from pit_jax.models.pointwise import ACTIVATIONS, LayerNorm, modulated_norm
from pit_jax.models.product import product
from pit_jax.parallel import sequence
from pit_jax.parallel.mesh import ambient_platform, constrain

# "dots" recomputes attention too: what a fused kernel could save for its gradient has a
# last axis of one head, which TPUs fill up to 128, four times PiT-S's 32.
REMAT_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def remat_policy(name: str) -> str:
    """Which of REMAT_POLICIES, or "none", a config's remat means on the ambient platform.

    "auto" is "dots" on accelerators, where what it recomputes is nearly free and the memory
    is dear, and "none" on a CPU, where it is the other way round.
    """
    if name == "auto":
        return "none" if ambient_platform() == "cpu" else "dots"
    return name


def compute_dtype(name: str) -> jnp.dtype:
    """The dtype of activations and matrix products; "auto" is bfloat16 on TPU and GPU."""
    if name == "auto":
        name = "float32" if ambient_platform() == "cpu" else "bfloat16"
    return jnp.dtype(name)


def attention_choice(model, tokens: int) -> str:
    """What attends under the ambient mesh, for people: "splash, ulysses over seq"; where windows
    have an implementation of their own both are named.

    Args:
      model: the config's group.
      tokens: of a sequence.

    Raises:
      ConfigError: if the implementation that the config asks for cannot run here.
    """
    size, dtype = model.width // model.heads, compute_dtype(model.dtype)
    masks = (FULL, Mask(radius=1.0, columns=1)) if model.window else (FULL,)
    found = [choose(model.attention, tokens, size, dtype, mask) for mask in masks]
    chosen = " and ".join(dict.fromkeys(found))
    if sequence.ways() > 1:
        chosen += f", {sequence.choose(model.heads, model.exchange)} over seq"
    return chosen


def drop_path(x: jax.Array, rate: jax.Array, key: jax.Array) -> jax.Array:
    """Drops a residual branch for whole examples (stochastic depth, Huang et al. 2016).

    Args:
      x: (B, L, d); rate: scalar in [0, 1), may be traced; key: a PRNG key.
    """
    keep = 1 - rate
    kept = jax.random.bernoulli(key, keep, (x.shape[0], 1, 1))
    return jnp.where(kept, x / keep.astype(x.dtype), 0)


def dropout(x: jax.Array, rate: float, key: jax.Array) -> jax.Array:
    """Zeroes numbers with probability `rate` and scales the others up.

    The token axis comes first in the draw, so that filling rows behind the tokens, which a
    mesh with "seq" may bring, change nothing for the tokens themselves.

    Args:
      x: (B, L, d); rate: in [0, 1); key: a PRNG key.
    """
    batch, length, width = x.shape
    kept = jax.random.bernoulli(key, 1 - rate, (length, batch, width)).swapaxes(0, 1)
    return jnp.where(kept, x / (1 - rate), 0)


def modulation(c: jax.Array, parts: int, width: int) -> list[jax.Array]:
    """A dense layer of SiLU(c), zero at first and named "modulation", in parts of (B, width).

    In float32 throughout: it is one vector an image, which costs nothing beside the tokens.

    Args:
      c: (B, d) float32.
    """
    dense = nn.Dense(
        parts * width, kernel_init=nn.initializers.zeros, dot_general=product, name="modulation"
    )
    return jnp.split(constrain(dense(nn.silu(c)), "batch", None), parts, axis=-1)


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
    `which` of the masks it attends by may be traced: one program serves unlike layers.

    A conditioned block takes c: (B, d) float32 and computes x + gate · branch(norm(x) ·
    (1 + scale) + shift) twice, its norms without parameters; (shift, scale, gate) of both
    branches are one dense layer of SiLU(c), which starts at zero and the block thus as x.
    """

    heads: int
    mlp: int
    dropout: float = 0.0
    stochastic_depth: bool = False
    layer_scale: float = 0.0
    norm_eps: float = 1e-6
    activation: str = "gelu"
    conditioned: bool = False
    initial: str = "xavier"
    attention: str = "auto"
    exchange: str = "auto"
    masks: tuple[Mask, ...] = (FULL,)
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        rate: jax.Array,
        c: jax.Array | None = None,
        rows: int | None = None,
        train: bool = False,
        which: jax.Array | int = 0,
    ) -> jax.Array:
        width = x.shape[-1]
        shift1, scale1, gate1, shift2, scale2, gate2 = (
            modulation(c, 6, width) if self.conditioned else (None,) * 6  # (B, d) each
        )

        scheme = SCHEMES[self.initial]

        def dense(features: int, name: str) -> nn.Dense:
            init = scheme.attention if name in ("query", "key", "value") else scheme.dense
            return nn.Dense(
                features, dtype=self.dtype, kernel_init=init, dot_general=product, name=name
            )

        def norm(x: jax.Array, name: str, shift, scale) -> jax.Array:
            if self.conditioned:
                return modulated_norm(x, shift, scale, self.norm_eps, self.dtype)
            return LayerNorm(self.norm_eps, self.dtype, name=name)(x)

        def drop(y: jax.Array) -> jax.Array:
            if train and self.dropout:
                y = dropout(y, self.dropout, self.make_rng("dropout"))
            return y

        def branch(y: jax.Array, name: str, gate) -> jax.Array:
            y = drop(y)
            if self.layer_scale:
                y = LayerScale(self.layer_scale, name=f"{name}_scale")(y)
            if self.conditioned:
                y = y * gate[:, None].astype(y.dtype)
            if train and self.stochastic_depth:
                y = drop_path(y, rate, self.make_rng("dropout"))
            return y

        def split_heads(y: jax.Array) -> jax.Array:
            y = y.reshape(*y.shape[:2], self.heads, width // self.heads)
            return constrain(y, "batch", "seq", "model", None)  # (B, L, H, D)

        y = norm(x, "norm1", shift1, scale1)
        k = split_heads(dense(width, "key")(y))
        v = split_heads(dense(width, "value")(y))
        if rows is not None:
            x, y = x[:, :rows], y[:, :rows]
        q = split_heads(dense(width, "query")(y))
        # For whoever measures where attention goes; nothing unless "intermediates" is mutable.
        self.sow("intermediates", "queries", q)
        self.sow("intermediates", "keys", k)
        attends = [
            functools.partial(
                attention, implementation=self.attention, mask=mask, exchange=self.exchange
            )
            for mask in self.masks
        ]
        y = jax.lax.switch(which, attends, q, k, v) if len(attends) > 1 else attends[0](q, k, v)
        y = y.reshape(x.shape)
        x = x + branch(dense(width, "out")(y), "attention", gate1)
        y = dense(self.mlp or 4 * width, "up")(norm(x, "norm2", shift2, scale2))
        y = drop(ACTIVATIONS[self.activation](y))
        y = constrain(y, "batch", "seq", "model")  # (B, L, mlp)
        x = x + branch(dense(width, "down")(y), "mlp", gate2)
        return constrain(x, "batch", "seq", None)


class Trunk(nn.Module):
    """`depth` blocks: (B, L, d) → (B, rows or L, d).

    The drop path rate grows linearly from 0 in the first layer to `drop_path` in the last.
    Where the mesh splits tokens and their number does not divide, filling rows that nobody
    sees are added behind them here, once, and dropped at the end. Conditioned blocks take
    one c: (B, d) float32 for all layers. `window` and `window_layers` are those of the config
    (models/mask.py), over the square of patches behind `prefix` tokens; the scanned layers
    choose among the windows that differ.
    """

    depth: int
    heads: int
    mlp: int
    drop_path: float = 0.0
    dropout: float = 0.0
    layer_scale: float = 0.0
    norm_eps: float = 1e-6
    activation: str = "gelu"
    conditioned: bool = False
    initial: str = "xavier"
    attention: str = "auto"
    exchange: str = "auto"
    mask: Mask = FULL
    window: tuple[float, ...] = ()
    window_layers: int = 0
    prefix: int = 0
    remat: str = "none"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        rows: int | None = None,
        train: bool = False,
        c: jax.Array | None = None,
    ) -> jax.Array:
        length = x.shape[1]
        filling = sequence.padded(length) - length
        side = math.isqrt(length - self.prefix)
        radii = layer_radii(self.window, self.window_layers, self.depth, side)
        masks = tuple(self.mask.within(radius, side, self.prefix) for radius in radii)
        if filling:
            masks = tuple(mask.of_length(length) for mask in masks)
        distinct = tuple(dict.fromkeys(masks[:-1]))
        x = constrain(jnp.pad(x, ((0, 0), (0, filling), (0, 0))), "batch", "seq", None)
        options = dict(
            heads=self.heads,
            mlp=self.mlp,
            dropout=self.dropout,
            stochastic_depth=self.drop_path > 0,
            layer_scale=self.layer_scale,
            norm_eps=self.norm_eps,
            activation=self.activation,
            conditioned=self.conditioned,
            initial=self.initial,
            attention=self.attention,
            exchange=self.exchange,
            dtype=self.dtype,
        )
        rates = jnp.linspace(0, self.drop_path, self.depth, dtype=jnp.float32)
        block = Block
        remat = remat_policy(self.remat)
        if remat != "none":
            block = nn.remat(
                Block,
                prevent_cse=False,
                policy=REMAT_POLICIES[remat],
                static_argnums=(4, 5),  # rows, train (0 is the module)
            )
        if self.depth > 1:
            which = jnp.array([distinct.index(mask) for mask in masks[:-1]], jnp.int32)
            scan = nn.scan(
                lambda module, x, rate, which, c: (module(x, rate, c, None, train, which), None),
                variable_axes={"params": 0, "intermediates": 0},
                split_rngs={"params": True, "dropout": True},
                in_axes=(0, 0, nn.broadcast),
                length=self.depth - 1,
            )
            blocks = block(**options, masks=distinct, name="blocks")
            x, _ = scan(blocks, x, rates[:-1], which, c)
        x = block(**options, masks=masks[-1:], name="last")(x, rates[-1], c, rows, train)
        return x[:, :length]
