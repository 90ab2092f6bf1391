"""The product of tokens and weights: values and gradients against float64, and how they come."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from pit_jax.models.product import product

ROWS = (3, 5)
WIDENS, NARROWS = (8, 32), (32, 8)


def run(sizes: tuple[int, int], dtype: jnp.dtype = jnp.float32, ours: bool = True) -> tuple:
    """What a dense layer of (in, out) is given, and what it returns with all its gradients."""
    keys = jax.random.split(jax.random.key(0), 4)
    x = jax.random.normal(keys[0], (*ROWS, sizes[0])).astype(dtype)
    params = {
        "kernel": jax.random.normal(keys[1], sizes),
        "bias": jax.random.normal(keys[2], sizes[1:]),
    }
    arriving = jax.random.normal(keys[3], (*ROWS, sizes[1])).astype(dtype)
    dense = nn.Dense(sizes[1], dtype=dtype, dot_general=product if ours else None)
    out, pull = jax.vjp(lambda p, x: dense.apply({"params": p}, x), params, x)
    d_params, d_x = pull(arriving)
    given = (x, params["kernel"], params["bias"], arriving)
    return given, (out, d_x, d_params["kernel"], d_params["bias"])


@pytest.mark.parametrize("sizes", [WIDENS, NARROWS, (16, 16)])
def test_values_and_gradients_equal_float64(sizes):
    given, found = run(sizes)
    x, kernel, bias, arriving = (np.asarray(a, np.float64) for a in given)
    expected = (
        x @ kernel + bias,
        arriving @ kernel.T,
        np.einsum("bli,blo->io", x, arriving),
        arriving.sum((0, 1)),
    )
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


@pytest.mark.parametrize("sizes", [WIDENS, NARROWS])
def test_in_bfloat16_it_is_what_flax_computes(sizes):
    both = (run(sizes, jnp.bfloat16, ours)[1] for ours in (True, False))
    for ours, theirs in zip(*both, strict=True):
        assert ours.dtype == theirs.dtype
        ours, theirs = (np.asarray(a, np.float64) for a in (ours, theirs))
        assert np.abs(ours - theirs).max() <= 1e-2 * np.abs(theirs).max()


def transposed(function: Callable, *arguments: jax.Array) -> list[tuple[int, ...]]:
    """The shapes of all that a program transposes."""
    found = []

    def walk(jaxpr: Any) -> None:
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == "transpose":
                found.append(eqn.invars[0].aval.shape)
            for inner in jaxprs_in_params(eqn.params):
                walk(inner)

    walk(jax.make_jaxpr(function)(*arguments).jaxpr)
    return found


def test_gradients_of_weights_that_widen_come_in_their_own_order():
    x, weights = jnp.ones((6, 8)), jnp.ones((8, 32))

    def gradient(dot):
        def loss(w):
            return dot(x, w, (((1,), (0,)), ((), ()))).sum()

        return jax.grad(loss)

    assert transposed(gradient(product), weights) == [(8, 32)]  # the weights, for x's gradient
    assert (32, 8) in transposed(gradient(jax.lax.dot_general), weights)


def test_a_precision_that_is_asked_for_is_kept():
    x = jnp.ones((2, 4))
    dense = nn.Dense(3, precision="highest", dot_general=product)
    params = dense.init(jax.random.key(0), x)
    assert "HIGHEST" in str(jax.make_jaxpr(lambda p: dense.apply(p, x))(params))
