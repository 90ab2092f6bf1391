"""Attention windows: what can reach what through a whole model, whatever computes it."""

import dataclasses
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pit_jax import validation
from pit_jax.errors import ConfigError
from pit_jax.models import dit, mask, splash, transformer, vit
from pit_jax.models.mask import Mask
from pit_jax.parallel import mesh as meshes

from .encoded import Encoded
from .reference import attention as reference
from .reference import inputs

SIDE = 7
SMALL = {"width": 16, "depth": 4, "heads": 2, "mlp": 16, "position_std": 1.0}


def images(batch: int = 1, channels: int = 2) -> jax.Array:
    return jax.random.normal(jax.random.key(0), (batch, SIDE, SIDE, channels))


def perturbed(model, *like) -> dict:
    """Parameters in which nothing is zero, so that everything matters."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), *like)["params"]
    rng = np.random.default_rng(0)
    noisy = jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), shapes)
    return {"params": noisy}


def reach(radii: list[float | None]) -> np.ndarray:
    """Which pixels any path of one step a layer connects: (pixels, pixels), by brute force."""
    rows, columns = np.divmod(np.arange(SIDE**2), SIDE)
    squared = (rows[:, None] - rows) ** 2 + (columns[:, None] - columns) ** 2
    connected = np.eye(SIDE**2)
    for radius in radii:
        connected = (squared <= (np.inf if radius is None else radius**2)) @ connected
    return connected > 0


def sees(function, x: jax.Array) -> np.ndarray:
    """Which pixels of one image the outputs (n, ...) of a function depend on: (n, pixels)."""
    gradients = jax.jit(jax.jacrev(lambda x: function(x).sum(-1)))(x)  # (n, 1, S, S, C)
    return np.asarray(jnp.abs(gradients).sum(-1).reshape(len(gradients), -1)) > 0


@pytest.mark.parametrize(
    ("window", "layers", "radii"),
    [
        ((1.0,), 0, [1, 1, 1, 1]),
        ((1.0,), 2, [1, 1, None, None]),
        ((0,), 0, [0, 0, 0, 0]),
        ((0, 1, 1.5, 1), 0, [0, 1, 1.5, 1]),
        ((1.5, 0, 0, 2), 0, [1.5, 0, 0, 2]),
    ],
)
def test_a_pixel_reaches_as_far_as_the_layers_windows_and_no_further(window, layers, radii):
    """The gradient of each token is 0, exactly, of every pixel beyond, and of none within."""
    model = Encoded(pool="mean", window=window, window_layers=layers, **SMALL)
    params = perturbed(model, images())
    found = sees(lambda x: model.apply(params, x)[0], images())
    np.testing.assert_array_equal(found, reach(radii))


def test_cls_sees_all_and_is_seen_by_all():
    one = Encoded(window=(0,), **SMALL | {"depth": 1})
    found = sees(lambda x: one.apply(perturbed(one, images()), x)[0], images())
    assert found[0].all()  # [CLS]
    np.testing.assert_array_equal(found[1:], np.eye(SIDE**2, dtype=bool))
    two = Encoded(window=(0,), **SMALL | {"depth": 2})
    found = sees(lambda x: two.apply(perturbed(two, images()), x)[0], images())
    assert found.all()  # from every pixel to [CLS], and from there to every other one


def test_diffusion_transformers_have_windows_too():
    model = dit.DiT(outputs=2, window=(1.0, 0, 1.0), **SMALL | {"depth": 3})
    params = perturbed(model, images(), jnp.ones(1))
    said = sees(lambda x: model.apply(params, x, jnp.ones(1))[0].reshape(-1, 2), images())
    np.testing.assert_array_equal(said, reach([1, 0, 1]))


def test_each_layer_has_the_window_meant_for_it():
    """Against the blocks one after the other; how far pixels reach does not tell their order."""
    radii = (2, 0, 1, 1.5)
    sizes = {"heads": 2, "mlp": 16, "attention": "xla"}
    trunk = transformer.Trunk(depth=4, window=radii, **sizes)
    x = jax.random.normal(jax.random.key(1), (1, SIDE**2, 16))
    params = perturbed(trunk, x)
    blocks, last = params["params"]["blocks"], params["params"]["last"]
    layers = [jax.tree.map(operator.itemgetter(i), blocks) for i in range(3)] + [last]

    @jax.jit
    def one_by_one(x: jax.Array) -> jax.Array:
        for radius, layer in zip(radii, layers, strict=True):
            block = transformer.Block(masks=(Mask(radius=radius, columns=SIDE),), **sizes)
            x = block.apply({"params": layer}, x, 0.0)
        return x

    found, expected = jax.jit(trunk.apply)(params, x), one_by_one(x)
    np.testing.assert_allclose(found, expected, atol=1e-5 * float(jnp.abs(expected).max()))
    other = jax.jit(trunk.clone(window=(0, 2, 1, 1.5)).apply)(params, x)
    assert not np.allclose(other, expected, atol=1e-2)


def loss_and_gradients(model, params, x):
    def loss(params, x):
        return (model.apply(params, x) ** 2).sum()

    return jax.jit(jax.value_and_grad(loss, (0, 1)))(params, x)


def test_a_window_over_everything_is_no_window_to_the_bit():
    x = images(2)
    plain = vit.ViT(num_classes=3, **SMALL)
    params = perturbed(plain, x)
    expected = loss_and_gradients(plain, params, x)
    for window in ((9.0,), (-1, 50, 9, -3)):
        found = loss_and_gradients(plain.clone(window=window), params, x)
        jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.fixture(scope="module")
def mixed():
    """A model of three windows, two of them scanned, its parameters, and XLA's results."""
    model = vit.ViT(num_classes=3, window=(1, 0, 2), **SMALL | {"depth": 3})
    params = perturbed(model, images(2))
    return model, params, loss_and_gradients(model.clone(attention="xla"), params, images(2))


@pytest.mark.parametrize(
    ("options", "layout"),
    [
        ({"attention": "blocked", "remat": "full"}, {}),
        ({"attention": "blocked", "exchange": "ulysses"}, {"data": 2, "seq": 2}),
        ({"attention": "blocked", "exchange": "gather", "remat": "dots"}, {"seq": 4}),
    ],
)
def test_neither_kernel_nor_mesh_nor_remat_changes_what_windows_compute(mixed, options, layout):
    """50 tokens do not divide over four devices: filling rows are among them."""
    model, params, expected = mixed
    sizes = dict.fromkeys(meshes.AXES, 1) | layout
    count = int(np.prod(list(sizes.values())))
    with jax.set_mesh(meshes.make_mesh(sizes, jax.devices()[:count])):
        found = loss_and_gradients(model.clone(**options), params, images(2))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        scale = max(1.0, float(jnp.abs(other).max()))
        np.testing.assert_allclose(one, other, atol=3e-6 * scale)


def test_filling_rows_see_something():
    """A block of the kernel that holds nothing but filling: no row of it may divide by zero."""
    real, length = 30, 300
    window = Mask(radius=1.0, columns=6).of_length(real)
    assert window.allowed(np.arange(length)[:, None], np.arange(length)).any(1).all()
    q, k, v, g = (jnp.asarray(x, jnp.float32) for x in inputs(real, real, batch=1))
    filled = [jnp.pad(x, ((0, 0), (0, 2048 - real), (0, 0), (0, 0))) for x in (q, k, v, g)]

    @jax.jit
    def run(q, k, v, g):
        out, pull = jax.vjp(lambda *x: splash.attention(*x, window, interpret=True), q, k, v)
        return out, *pull(g)

    expected = reference(*(np.asarray(x, np.float64) for x in (q, k, v, g)), window)
    for one, exact in zip(run(*filled), expected, strict=True):
        assert np.isfinite(one).all()
        np.testing.assert_allclose(one[:, :real], exact, atol=1e-5)


def test_the_program_branches_only_where_scanned_layers_differ():
    def program(window: tuple) -> str:
        model = vit.ViT(num_classes=3, window=window, **SMALL)
        return str(jax.make_jaxpr(model.apply)(perturbed(model, images()), images()))

    assert "cond[" not in program(())
    assert "cond[" not in program((1.0,))
    assert "cond[" not in program((1, 1, 1, -1))  # the last layer stands outside the scan
    assert program((1, 0, 2, 0)).count("cond[") == 1


def test_layer_radii():
    assert mask.layer_radii((), 0, 3, 8) == (None, None, None)
    assert mask.layer_radii((2,), 0, 3, 8) == (2.0, 2.0, 2.0)
    assert mask.layer_radii((2,), 1, 3, 8) == (2.0, None, None)
    assert mask.layer_radii((0, -1, 9.9), 0, 3, 8) == (0.0, None, None)
    assert mask.layer_radii((9.8,), 0, 1, 8) == (9.8,)  # not quite from corner to corner
    assert dataclasses.asdict(Mask(causal=True).within(None, 8, 1)) == dataclasses.asdict(
        Mask(causal=True)
    )


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"window": (1, 2, 3)}, r"window=\(1, 2, 3\): one radius, or one for each of .*depth=5"),
        ({"window": ("a",)}, r"config.model.window=\('a',\): 'a' should be of type float"),
        ({"window": (float("nan"),)}, r"config.model.window=\(nan,\): nan must be finite"),
        ({"window": (0, 1, 2, 3, -1)}, "has 5 different windows: 4 is the most"),
        ({"window_layers": 2}, "window_layers=2 needs one radius in config.model.window, not 0"),
        ({"window": (1,), "window_layers": 6}, "window_layers=6 .* at most config.model.depth=5"),
        ({"window": (1,), "order": "snake"}, "config.model.order='snake' must be 'raster'"),
        ({"window": (1,), "token_drop": 0.5}, "token_drop and config.model.window do not go"),
    ],
)
def test_impossible_windows_are_refused_in_one_line(tiny, fields, line):
    tiny.model.depth = 5
    tiny.model.update(fields)
    with pytest.raises(ConfigError, match=line) as error:
        validation.resolve(tiny)
    assert "\n" not in str(error.value)


def test_windows_are_refused_where_places_are_missing(tiny):
    tiny.task, tiny.eval.what, tiny.model.window = "mae", ("reconstruction",), (1,)
    with pytest.raises(ConfigError, match="window is offered by 'vit' in tasks 'classification'"):
        validation.resolve(tiny)
