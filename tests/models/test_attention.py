"""Every implementation against float64: forward, gradients, on one device and on a mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pit_jax.models import attention
from pit_jax.parallel import mesh as meshes


def inputs(lq: int, lk: int, heads: int = 2, size: int = 16, batch: int = 2) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.normal(size=(batch, n, heads, size)) for n in (lq, lk, lk, lq)]


def reference(q, k, v, g) -> tuple[np.ndarray, ...]:
    """Output and gradients for the cotangent g, in float64."""
    scale = q.shape[-1] ** -0.5
    scores = np.einsum("bqhd,bkhd->bhqk", q, k) * scale
    p = np.exp(scores - scores.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    out = np.einsum("bhqk,bkhd->bqhd", p, v)
    dp = np.einsum("bqhd,bkhd->bhqk", g, v)
    ds = p * (dp - (dp * p).sum(-1, keepdims=True)) * scale
    return (
        out,
        np.einsum("bhqk,bkhd->bqhd", ds, k),
        np.einsum("bhqk,bqhd->bkhd", ds, q),
        np.einsum("bhqk,bqhd->bkhd", p, g),
    )


def ours(implementation: str, q, k, v, g, dtype=jnp.float32) -> tuple:
    q, k, v, g = (jnp.asarray(x, dtype) for x in (q, k, v, g))

    @jax.jit
    def run(q, k, v, g):
        out, pull = jax.vjp(lambda *x: attention.attention(*x, implementation), q, k, v)
        return out, *pull(g)

    return run(q, k, v, g)


@pytest.mark.parametrize("implementation", ["xla", "blocked"])
@pytest.mark.parametrize("lengths", [(64, 64), (785, 785), (1025, 1025), (5, 300), (1, 300)])
def test_output_and_gradients_equal_float64(implementation, lengths):
    arrays = inputs(*lengths)
    for found, expected in zip(ours(implementation, *arrays), reference(*arrays), strict=True):
        error = np.abs(found - expected).max() / np.abs(expected).max()
        assert error < 2e-6


def test_bfloat16_keeps_its_scores_in_float32():
    arrays = inputs(300, 300)
    expected = reference(*arrays)
    for found, exact in zip(ours("blocked", *arrays, dtype=jnp.bfloat16), expected, strict=True):
        assert found.dtype == jnp.bfloat16
        error = np.linalg.norm(np.asarray(found, np.float64) - exact) / np.linalg.norm(exact)
        assert error < 1e-2


def test_huge_scores_do_not_overflow():
    q, k, v, g = inputs(300, 300)
    for found in ours("blocked", 100 * q, 100 * k, v, g):
        assert np.isfinite(found).all()


def test_blocked_never_holds_all_scores():
    """The largest array of its program is a block of scores; XLA's own holds L × L."""
    length = 1025
    shape = jax.ShapeDtypeStruct((1, length, 1, 16), jnp.float32)

    def program(implementation: str) -> str:
        def loss(q, k, v):
            return attention.attention(q, k, v, implementation).sum()

        return jax.jit(jax.grad(loss, (0, 1, 2))).lower(shape, shape, shape).as_text()

    assert f"{length}x{length}xf32" in program("xla")
    assert f"{length}x{length}xf32" not in program("blocked")


@pytest.mark.parametrize("layout", [{"data": 8}, {"data": 2, "fsdp": 2, "model": 2}, {"seq": 2}])
def test_a_mesh_changes_nothing(layout):
    arrays = inputs(300, 300, batch=8)
    expected = ours("blocked", *arrays)
    sizes = dict.fromkeys(meshes.AXES, 1) | layout
    mesh = meshes.make_mesh(sizes, jax.devices()[: int(np.prod(list(layout.values())))])
    with jax.set_mesh(mesh):
        found = ours("blocked", *arrays)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_auto_is_blocked_for_long_sequences_on_a_cpu():
    assert attention.choose("auto", 65) == "xla"
    assert attention.choose("auto", 257) == "blocked"
    assert attention.choose("xla", 257) == "xla"
