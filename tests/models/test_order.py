"""The order of patches in the sequence, and what positions have to do with it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pit_jax import validation
from pit_jax.errors import ConfigError
from pit_jax.models import order, vit

from .encoded import Encoded

SMALL = {"num_classes": 5, "width": 16, "depth": 2, "heads": 2, "mlp": 32, "position_std": 1.0}


def images(shape: tuple = (2, 8, 8, 3)) -> jax.Array:
    return jax.random.normal(jax.random.key(0), shape)


def init(model, like: jax.Array) -> dict:
    return jax.jit(model.init)(jax.random.key(1), like)["params"]


def steps(name: str, side: int) -> np.ndarray:
    """How far each patch lies from the one before it."""
    rows, columns = np.divmod(order.indices(name, side), side)
    return np.abs(np.diff(rows)) + np.abs(np.diff(columns))


@pytest.mark.parametrize("side", [1, 2, 7, 8, 28])
@pytest.mark.parametrize("name", order.NAMES)
def test_every_patch_stands_somewhere_once(name, side):
    found = order.indices(name, side, seed=3)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(np.sort(found), np.arange(side**2))


def test_the_orders_are_what_their_names_say():
    assert order.indices("raster", 3).tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert order.indices("columns", 3).tolist() == [0, 3, 6, 1, 4, 7, 2, 5, 8]
    assert order.indices("snake", 3).tolist() == [0, 1, 2, 5, 4, 3, 6, 7, 8]
    assert order.indices("hilbert", 2).tolist() == [0, 1, 3, 2]
    assert order.indices("random", 3, 1).tolist() == [3, 2, 5, 4, 6, 1, 0, 7, 8]  # on every machine
    assert order.indices("random", 3, 2).tolist() != [3, 2, 5, 4, 6, 1, 0, 7, 8]
    with pytest.raises(ValueError, match="order 'spiral' is not one of raster, columns"):
        order.indices("spiral", 3)


def test_hilberts_curve_goes_from_neighbour_to_neighbour_and_fills_square_by_square():
    for side in (2, 4, 8, 32):
        assert (steps("hilbert", side) == 1).all()
        assert (steps("snake", side) == 1).all()
    rows, columns = np.divmod(order.indices("hilbert", 16), 16)
    for size in (2, 4, 8):  # every run of size² places is one square of that size
        squares = (rows // size * 16 + columns // size).reshape(-1, size**2)
        assert (squares == squares[:, :1]).all()
    assert (steps("hilbert", 28) > 1).sum() < 10  # 28 of 32: it leaves the image rarely


@pytest.mark.parametrize("name", ["hilbert", "random"])
def test_an_order_only_gives_learned_positions_other_names(name):
    plain, other = vit.ViT(**SMALL), vit.ViT(**SMALL, order=name, order_seed=2)
    params, x = init(plain, images()), images()
    position = params["embed"]["position"]
    renamed = jnp.concatenate([position[:1], position[1:][order.indices(name, 8, 2)]])
    both = params | {"embed": params["embed"] | {"position": renamed}}
    expected = jax.jit(plain.apply)({"params": params}, x)
    apply = jax.jit(other.apply)
    np.testing.assert_allclose(apply({"params": both}, x), expected, atol=3e-6)
    assert not np.allclose(apply({"params": params}, x), expected, atol=1e-3)


def test_computed_positions_go_with_their_patches():
    plain = vit.ViT(**SMALL, patch=2, position="sincos2d")
    params, x = init(plain, images()), images()
    expected = jax.jit(plain.apply)({"params": params}, x)
    other = plain.clone(order="hilbert")
    np.testing.assert_allclose(jax.jit(other.apply)({"params": params}, x), expected, atol=3e-6)


@pytest.mark.parametrize("position", ["learned", "sincos2d"])
def test_kept_places_are_places_of_the_sequence(position):
    fields = {k: v for k, v in SMALL.items() if k != "num_classes"}
    plain = Encoded(**fields, position=position)
    other = plain.clone(order="snake")
    params, x = init(plain, images()), images()
    standing = order.indices("snake", 8)
    changed = params
    if position == "learned":
        table = params["embed"]["position"]
        table = jnp.concatenate([table[:1], table[1:][standing]])
        changed = params | {"embed": params["embed"] | {"position": table}}
    keep = jnp.array([[0, 9, 17, 40], [3, 8, 62, 63]], jnp.int32)

    def encode(model, params, keep):
        return jax.jit(model.apply)({"params": params}, x, keep)

    found, expected = encode(other, changed, keep), encode(plain, params, standing[keep])
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_without_positions_pixels_are_a_bag():
    """Any permutation leaves the output; no parameter and no table says where a pixel lies."""
    model, x = vit.ViT(**SMALL, position="none"), images()
    params = init(model, x)
    assert set(params["embed"]) == {"patch", "cls"}
    apply = jax.jit(model.apply)
    before = apply({"params": params}, x)
    for seed in range(3):
        shuffled = x.reshape(2, 64, 3)[:, np.random.default_rng(seed).permutation(64)]
        after = apply({"params": params}, shuffled.reshape(x.shape))
        np.testing.assert_allclose(after, before, atol=2e-6)
    assert not np.allclose(apply({"params": params}, x[::-1]), before, atol=1e-3)


@pytest.mark.parametrize("std", [0.0, 0.02, 2.0])
def test_learned_positions_start_with_the_deviation_asked_for(std):
    model = vit.ViT(**SMALL | {"position_std": std, "width": 64})
    shape = images((1, 16, 16, 1))
    position = jax.jit(lambda key: model.init(key, shape)["params"]["embed"]["position"])
    found = np.asarray(position(jax.random.key(0)))
    assert found.std() == pytest.approx(std, rel=0.03)
    assert abs(found.mean()) <= 4 * std / found.size**0.5


def test_orders_are_refused_where_patches_must_be_put_back(tiny):
    tiny.model.order = "hilbert"
    assert validation.resolve(tiny).model.order == "hilbert"
    tiny.task, tiny.eval.what = "mae", ("reconstruction",)
    with pytest.raises(ConfigError, match=r"config.model.order='hilbert' is offered by 'vit' in"):
        validation.resolve(tiny)
    tiny.model.order = "spiral"
    with pytest.raises(ConfigError, match="not one of raster, columns, snake, hilbert, random"):
        validation.resolve(tiny)
