"""An autoregressive Transformer over pixels, as iGPT (Chen et al. 2020).

Each pixel is one of a fixed number of colours, and the model says what the next one is,
given those before it in a fixed order. A place of the sequence knows by its position
embedding which pixel is to be said there, and reads the colour of the pixel before it.

Differences from iGPT: colours are levels of each channel instead of a palette of 512 found
by k-means; the order may be another than row by row; GELU is exact.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from pit_jax.models.embed import sincos2d
from pit_jax.models.mask import Mask
from pit_jax.models.pointwise import LayerNorm
from pit_jax.models.transformer import Trunk, compute_dtype
from pit_jax.parallel.mesh import constrain


def quantise(images: jax.Array, levels: int) -> jax.Array:
    """Colours of pixels: (B, H, W, C) in [0, 1] to (B, H · W) int32 below levels^C, raster order.

    Each channel's 256 values fall into `levels` parts of (nearly) equal size; the first
    channel counts most.
    """
    b, h, w, channels = images.shape
    values = jnp.clip(jnp.round(images.astype(jnp.float32) * 255), 0, 255).astype(jnp.int32)
    parts = values * levels // 256  # (B, H, W, C)
    colours = jnp.zeros((b, h, w), jnp.int32)
    for channel in range(channels):
        colours = colours * levels + parts[..., channel]
    return colours.reshape(b, h * w)


class IGPT(nn.Module, kw_only=True):
    """Colours (B, N) in the model's order to logits of each, (B, N, colours) float32.

    Logits at place i depend on the colours before i alone. With `head=False` it returns the
    normed features instead, (B, N, d).

    Attributes:
      colours: how many there are.
      indices: the raster index of the pixel at each place, for sincos2d positions.
    """

    colours: int
    indices: tuple[int, ...]
    width: int
    depth: int
    heads: int
    mlp: int
    position: str = "learned"
    position_std: float = 0.02
    drop_path: float = 0.0
    dropout: float = 0.0
    layer_scale: float = 0.0
    norm_eps: float = 1e-6
    initial: str = "xavier"
    attention: str = "auto"
    exchange: str = "auto"
    remat: str = "none"
    dtype: str = "auto"

    @nn.compact
    def __call__(self, colours: jax.Array, train: bool = False, head: bool = True) -> jax.Array:
        dtype = compute_dtype(self.dtype)
        x = Tokens(
            colours=self.colours,
            indices=self.indices,
            width=self.width,
            position=self.position,
            position_std=self.position_std,
            dtype=dtype,
            name="embed",
        )(colours)
        x = constrain(x, "batch", "seq", None)  # (B, N, d)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        x = Trunk(
            depth=self.depth,
            heads=self.heads,
            mlp=self.mlp,
            drop_path=self.drop_path,
            dropout=self.dropout,
            layer_scale=self.layer_scale,
            norm_eps=self.norm_eps,
            initial=self.initial,
            attention=self.attention,
            exchange=self.exchange,
            mask=Mask(causal=True),
            remat=self.remat,
            dtype=dtype,
            name="trunk",
        )(x, None, train)
        x = LayerNorm(self.norm_eps, dtype, name="norm")(x)
        if not head:
            return x
        # Zero at first, as iGPT's: every colour is as likely as any other.
        init = nn.initializers.zeros
        return nn.Dense(self.colours, dtype=jnp.float32, kernel_init=init, name="head")(x)


class Tokens(nn.Module):
    """Colours (B, N) to tokens (B, N, width): at each place the colour before it, a start
    token at the first, and the position of the pixel that is to be said there."""

    colours: int
    indices: tuple[int, ...]
    width: int
    position: str
    position_std: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, colours: jax.Array) -> jax.Array:
        batch, count = colours.shape
        normal = nn.initializers.normal(0.02)
        table = self.param("colour", normal, (self.colours, self.width), jnp.float32)
        start = self.param("start", normal, (1, self.width), jnp.float32)
        x = table[colours[:, :-1]]  # (B, N − 1, d)
        x = jnp.concatenate([jnp.broadcast_to(start, (batch, 1, self.width)), x], axis=1)
        if self.position == "learned":
            init = nn.initializers.normal(self.position_std)
            x = x + self.param("position", init, (count, self.width), jnp.float32)
        elif self.position == "sincos2d":
            side = round(count**0.5)
            x = x + sincos2d((side, side), self.width)[np.asarray(self.indices)]
        return x.astype(self.dtype)


def build(model, colours: int, indices: np.ndarray) -> IGPT:
    """The module that the `model` group of a resolved config describes.

    Args:
      model: the group.
      colours: how many there are.
      indices: (N,) the raster index of the pixel at each place of the sequence.
    """
    shared = {k: v for k, v in model.items() if k in IGPT.__dataclass_fields__ and k != "name"}
    return IGPT(colours=colours, indices=tuple(int(i) for i in indices), **shared)


def first_layers(params: Any, model: IGPT, layers: int) -> tuple[IGPT, Any]:
    """The first so many layers as a model of their own, and its parameters.

    Its final norm is the one with which the next layer begins: what it returns with
    `head=False` is what iGPT probes (section 3.3 there), n^l of layer l + 1.

    Args:
      params: of `model`.
      layers: at least 1, at most the model's depth; then it is the model itself.
    """
    if layers == model.depth:
        return model, params
    trunk = params["trunk"]
    blocks, last = trunk["blocks"], trunk["last"]
    is_last = layers == model.depth - 1  # the next layer, that is
    norm = last["norm1"] if is_last else jax.tree.map(lambda x: x[layers], blocks["norm1"])
    kept = {"last": jax.tree.map(lambda x: x[layers - 1], blocks)}
    if layers > 1:
        kept["blocks"] = jax.tree.map(lambda x: x[: layers - 1], blocks)
    shortened = {name: x for name, x in params.items() if name != "head"}
    return model.clone(depth=layers), shortened | {"trunk": kept, "norm": norm}
