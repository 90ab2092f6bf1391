"""GELU and layer norm against SciPy, flax and finite differences, values and gradients."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from jax.test_util import check_grads

from pit_jax.models.pointwise import LayerNorm, gelu


def test_gelu_is_exact():
    x = np.linspace(-8, 8, 1001)
    exact = x * scipy.special.ndtr(x)
    np.testing.assert_allclose(gelu(jnp.asarray(x, jnp.float32)), exact, atol=1e-6)
    slope = scipy.special.ndtr(x) + x * np.exp(-x * x / 2) / np.sqrt(2 * np.pi)
    found = jax.vmap(jax.grad(gelu))(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(found, slope, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_layer_norm_is_flax_layer_norm(dtype):
    keys = jax.random.split(jax.random.key(0), 4)
    x = (3 * jax.random.normal(keys[0], (2, 5, 32)) + 1).astype(dtype)
    params = {
        "scale": jax.random.normal(keys[1], (32,)),
        "bias": jax.random.normal(keys[2], (32,)),
    }
    cotangent = jax.random.normal(keys[3], x.shape).astype(dtype)

    def run(module) -> tuple:
        out, pull = jax.vjp(lambda p, x: module.apply({"params": p}, x), params, x)
        return out, *pull(cotangent)

    ours = run(LayerNorm(1e-5, dtype))
    theirs = run(nn.LayerNorm(1e-5, dtype=dtype))
    tolerance = 1e-5 if dtype == jnp.float32 else 4e-2
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert one.dtype == other.dtype
        one, other = (np.asarray(a, np.float64) for a in (one, other))
        assert np.abs(one - other).max() < tolerance * np.abs(other).max()


def test_layer_norm_gradient_equals_finite_differences():
    x = jax.random.normal(jax.random.key(1), (3, 8))
    module = LayerNorm()
    params = module.init(jax.random.key(0), x)
    check_grads(lambda p, x: module.apply(p, x), (params, x), 1, ["rev"], atol=1e-2, rtol=1e-2)


def test_a_constant_row_gives_no_nan():
    module, x = LayerNorm(), jnp.full((1, 8), 1e3)
    params = module.init(jax.random.key(0), x)
    value, slope = jax.value_and_grad(lambda x: module.apply(params, x).sum())(x)
    assert np.isfinite(value)
    assert np.isfinite(slope).all()
