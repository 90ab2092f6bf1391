"""GELU and layer norm with gradients of their own, which keep less for the backward pass.

Left to automatic differentiation the two keep three to five arrays of the size of their
input; here it is one each. On two CPU cores a training step of a small model took 0.84 of
the time (0.91 GELU, the rest layer norm), and its temporaries two thirds of the memory.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """The exact GELU, x·Φ(x). Written out: half the CPU time of jax.nn.gelu's erfc form."""
    return x * _normal_cdf(x)


def _normal_cdf(x: jax.Array) -> jax.Array:
    return 0.5 * (1 + jax.lax.erf(x * 0.5**0.5))


def _gelu_forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    cdf = _normal_cdf(x)
    density = jnp.exp(-0.5 * x * x) * (2 * jnp.pi) ** -0.5
    return x * cdf, cdf + x * density


gelu.defvjp(_gelu_forward, lambda slope, gradient: (gradient * slope,))


@jax.custom_vjp
def gelu_tanh(x: jax.Array) -> jax.Array:
    """GELU by its tanh approximation (Hendrycks & Gimpel 2016, section 2), as public DiT."""
    return _gelu_tanh_forward(x)[0]


def _gelu_tanh_forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    root, cubic = (2 / jnp.pi) ** 0.5, 0.044715
    tanh = jnp.tanh(root * (x + cubic * x * x * x))
    half = 0.5 * (1 + tanh)
    slope = half + 0.5 * x * (1 - tanh * tanh) * root * (1 + 3 * cubic * x * x)
    return x * half, slope


gelu_tanh.defvjp(_gelu_tanh_forward, lambda slope, gradient: (gradient * slope,))

ACTIVATIONS = {"gelu": gelu, "gelu_tanh": gelu_tanh}


class LayerNorm(nn.Module):
    """(x − mean) / √(variance + eps) · scale + bias over the last dimension.

    Parameters and arithmetic are float32, the result has `dtype`; as flax's LayerNorm.
    """

    epsilon: float = 1e-6
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, width)
        bias = self.param("bias", nn.initializers.zeros, width)
        return _layer_norm(x, scale, bias, self.epsilon, self.dtype)


def modulated_norm(
    x: jax.Array, shift: jax.Array, scale: jax.Array, epsilon: float, dtype: jnp.dtype
) -> jax.Array:
    """Layer norm without parameters, then · (1 + scale) + shift (adaLN, Peebles & Xie 2023).

    Args:
      x: (B, L, d).
      shift, scale: (B, d) float32, one vector for all tokens of an image.
      epsilon: inside the root of the variance.
      dtype: of the result; the arithmetic is float32.
    """
    return _layer_norm(x, 1 + scale[:, None], shift[:, None], epsilon, dtype)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _layer_norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float, dtype: jnp.dtype
) -> jax.Array:
    return _norm_forward(x, scale, bias, epsilon, dtype)[0]


def _norm_forward(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float, dtype: jnp.dtype
) -> tuple[jax.Array, tuple]:
    wide = x.astype(jnp.float32)
    mean = wide.mean(-1, keepdims=True)
    # One pass over x for both moments; rounding must not make a variance negative.
    variance = jnp.maximum((wide * wide).mean(-1, keepdims=True) - mean * mean, 0)
    inverse = jax.lax.rsqrt(variance + epsilon)
    y = (wide - mean) * (inverse * scale) + bias
    return y.astype(dtype), (x, mean, inverse, scale)


def _norm_backward(
    epsilon: float, dtype: jnp.dtype, saved: tuple, gradient: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    del epsilon, dtype
    x, mean, inverse, scale = saved
    gradient = gradient.astype(jnp.float32)
    normed = (x.astype(jnp.float32) - mean) * inverse
    scaled = gradient * scale
    along = (scaled * normed).mean(-1, keepdims=True)
    d_x = inverse * (scaled - scaled.mean(-1, keepdims=True) - normed * along)
    d_scale, d_bias = (_sum_to(d, scale.shape) for d in (gradient * normed, gradient))
    return d_x.astype(x.dtype), d_scale, d_bias


def _sum_to(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The gradient of broadcasting from `shape`, (d,) or (B, 1, d), to that of x."""
    if len(shape) == 1:
        return x.sum(tuple(range(x.ndim - 1)))
    return x.sum(1, keepdims=True)


_layer_norm.defvjp(_norm_forward, _norm_backward)
