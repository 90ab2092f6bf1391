"""The masked autoencoder: what it sees, what it is asked, and that no pixel has neighbours."""

import functools

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from pit_jax import validation
from pit_jax.models import mae
from pit_jax.models.embed import draw, patchify, unpatchify
from pit_jax.models.sizes import num_kept
from pit_jax.parallel import mesh as meshes


@pytest.fixture
def make(tiny):
    """(config, module, parameters whose every number matters) of a small autoencoder."""

    def build(seed: int = 0, channels: int = 3, mask_ratio: float = 0.75, **model):
        tiny.task = "mae"
        tiny.model.update(**{"width": 16, "depth": 2, "heads": 2, "patch": 1} | model)
        tiny.mae.update(decoder_width=8, decoder_depth=2, decoder_heads=2, mask_ratio=mask_ratio)
        tiny.data.update(image_size=8, channels=channels)
        config = validation.resolve(tiny)
        module = mae.build(config.model, config.mae)
        patches = (8 // config.model.patch) ** 2
        kept = num_kept(patches, mask_ratio)
        keep = jnp.arange(kept, dtype=jnp.int32)[None]
        images = jnp.zeros((1, 8, 8, channels))
        shapes = jax.eval_shape(module.init, jax.random.key(0), images, keep)["params"]
        rng = np.random.default_rng(seed)
        params = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), shapes)
        return config, module, params

    return build


def pictures(count: int = 3, channels: int = 3, seed: int = 1) -> jax.Array:
    shape = (count, 8, 8, channels)
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def keeps(count: int, patches: int, kept: int, seed: int = 2) -> jax.Array:
    keys = jax.random.split(jax.random.key(seed), count)
    return jax.vmap(lambda key: draw(key, patches, kept))(keys)


@functools.partial(jax.jit, static_argnums=0)
def apply(module, params, *arrays) -> jax.Array:
    return module.apply({"params": params}, *arrays)


@functools.partial(jax.jit, static_argnums=(0, 4))
def loss(module, params, images, keep, patch: int = 1) -> jax.Array:
    predicted = apply(module, params, images, keep)
    wanted = mae.target(images, patch, normalise=False)
    return mae.losses(predicted, wanted, mae.masked(keep, wanted.shape[1]))


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_permuting_pixels_with_both_positions_leaves_the_loss(make, pool):
    _, module, params = make(pool=pool)
    images, keep = pictures(), keeps(3, 64, 16)
    order = np.random.default_rng(3).permutation(64)
    place = np.argsort(order)  # where the pixel that was at i stands now
    moved = images.reshape(3, 64, 3)[:, order].reshape(images.shape)
    first = pool == "cls"  # [CLS] keeps its position

    def permuted(positions):
        return jnp.concatenate([positions[:first], positions[first:][order]])

    other = jax.tree.map(lambda x: x, params)
    other["embed"]["position"] = permuted(params["embed"]["position"])
    other["decoder"]["position"] = permuted(params["decoder"]["position"])
    moved_keep = jnp.asarray(place)[keep]
    expected = loss(module, params, images, keep)
    np.testing.assert_allclose(loss(module, other, moved, moved_keep), expected, rtol=2e-5)
    # and the positions do matter: with those of the encoder or decoder left, it changes
    for group in ("embed", "decoder"):
        half = other | {group: other[group] | {"position": params[group]["position"]}}
        assert np.abs(loss(module, half, moved, moved_keep) - expected).max() > 1e-3


@pytest.mark.parametrize("patch", [1, 2])
def test_the_order_in_which_kept_patches_are_named_does_not_matter(make, patch):
    _, module, params = make(patch=patch)
    images, keep = pictures(), keeps(3, (8 // patch) ** 2, 4)
    expected = apply(module, params, images, keep)
    found = apply(module, params, images, keep[:, ::-1])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_hidden_pixels_change_nothing_and_kept_ones_do(make):
    _, module, params = make()
    images, keep = pictures(1), keeps(1, 64, 16)
    flat = np.array(images.reshape(1, 64, 3))
    hidden = np.setdiff1d(np.arange(64), keep[0])
    expected = apply(module, params, images, keep)
    flat[:, hidden] += 5
    found = apply(module, params, jnp.asarray(flat).reshape(images.shape), keep)
    np.testing.assert_array_equal(found, expected)
    flat[:, int(keep[0, 0])] += 5
    found = apply(module, params, jnp.asarray(flat).reshape(images.shape), keep)
    assert np.abs(found - expected).max() > 1e-2


def test_without_a_mask_it_represents_the_whole_image(make):
    config, module, params = make()
    from pit_jax.models import vit

    classifier = vit.build(config.model, 10)
    head = {"kernel": jnp.zeros((16, 10)), "bias": jnp.zeros(10)}
    weights = {k: params[k] for k in ("embed", "trunk", "norm")} | {"head": head}
    expected = classifier.apply({"params": weights}, pictures(), head=False)
    found = apply(module, params, pictures())
    assert found.shape == (3, 16)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_every_subset_is_drawn_alike_and_ascending():
    keep = np.asarray(keeps(6000, 5, 2))
    assert (np.diff(keep, axis=1) > 0).all()
    _, counts = np.unique(keep @ [10, 1], return_counts=True)
    assert len(counts) == 10  # all pairs of five
    expected = 600
    assert ((counts - expected) ** 2 / expected).sum() < 27.9  # chi², 9 degrees, p = 0.001


def test_fill_and_masked_agree_with_numpy():
    rng = np.random.default_rng(0)
    x, token = rng.normal(size=(2, 3, 4)), rng.normal(size=(1, 4))
    keep = np.array([[4, 0, 6], [1, 2, 3]])
    expected = np.broadcast_to(token, (2, 7, 4)).copy()
    hidden = np.ones((2, 7))
    for row in range(2):
        for number, place in enumerate(keep[row]):
            expected[row, place] = x[row, number]
            hidden[row, place] = 0
    arrays = jnp.asarray(x, jnp.float32), jnp.asarray(keep), jnp.asarray(token, jnp.float32)
    np.testing.assert_allclose(mae.fill(*arrays, 7), expected, rtol=1e-6)
    np.testing.assert_array_equal(mae.masked(jnp.asarray(keep), 7), hidden)


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("patch", [1, 2, 4])
def test_the_loss_equals_its_definition_in_float64(patch, normalise):
    images = np.asarray(pictures(), np.float64)
    count = (8 // patch) ** 2
    predicted = np.random.default_rng(5).normal(size=(3, count, patch * patch * 3))
    keep = np.asarray(keeps(3, count, max(1, count // 4)))
    expected = []
    for image, guess, kept in zip(images, predicted, keep, strict=True):
        errors = []
        for number in set(range(count)) - set(kept.tolist()):
            row, column = (patch * x for x in divmod(number, 8 // patch))
            square = image[row : row + patch, column : column + patch].reshape(-1)
            if normalise:
                spread = ((square - square.mean()) ** 2).sum() / (len(square) - 1)
                square = (square - square.mean()) / np.sqrt(spread + 1e-6)
            errors.append(((guess[number] - square) ** 2).mean())
        expected.append(np.mean(errors))
    wanted = mae.target(jnp.asarray(images, jnp.float32), patch, normalise)
    hidden = mae.masked(jnp.asarray(keep), count)
    found = mae.losses(jnp.asarray(predicted, jnp.float32), wanted, hidden)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_unpatchify_undoes_patchify(patch):
    images = pictures()
    np.testing.assert_array_equal(unpatchify(patchify(images, patch), 8, patch), images)


@pytest.mark.parametrize(
    ("ratio", "kept"), [(0.75, 16), (0.9, 6), (0.1, 57), (0.98, 1), (0.5, 32), (0.01, 63)]
)
def test_so_many_patches_are_kept(ratio, kept):
    assert num_kept(64, ratio) == kept


def _gathers(jaxpr) -> list[tuple]:
    """(operation, rows it moves) of every gather and scatter, inner programs included."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == "gather":
            found.append(("gather", equation.outvars[0].aval.shape))
        elif equation.primitive.name.startswith("scatter"):
            found.append(("scatter", equation.invars[2].aval.shape))
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            found += _gathers(inner)
    return found


def test_only_kept_rows_are_ever_moved(make):
    """Forward and backward, no gather or scatter has more than the kept tokens and [CLS]."""
    _, module, params = make(patch=1)
    images, keep = pictures(2), keeps(2, 64, 16)
    step = jax.make_jaxpr(jax.value_and_grad(lambda p: loss(module, p, images, keep).mean()))
    moved = _gathers(step(params).jaxpr)
    assert len(moved) >= 4  # pixels, positions, into the decoder, and back
    for name, shape in moved:
        assert shape[0] == 2, (name, shape)
        assert shape[1] <= 17, f"a {name} moves {shape}"


def test_masking_is_sharded_over_examples(make):
    """On eight devices: the same losses, and no device asks another for tokens."""
    _, module, params = make()
    images, keep = pictures(8), keeps(8, 64, 16)
    expected = loss(module, params, images, keep)
    mesh = meshes.make_mesh({"data": 8, "fsdp": 1, "seq": 1, "model": 1})
    batch = jax.sharding.NamedSharding(mesh, meshes.batch_spec())
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    with jax.set_mesh(mesh):
        run = jax.jit(
            jax.value_and_grad(lambda p, x, k: loss(module, p, x, k).mean()),
            in_shardings=(everywhere, batch, batch),
            out_shardings=everywhere,
        )
        compiled = run.lower(params, images, keep).compile()
        found, _ = compiled(
            jax.device_put(params, everywhere), *jax.device_put((images, keep), batch)
        )
    np.testing.assert_allclose(found, expected.mean(), rtol=1e-5)
    text = compiled.as_text()
    assert "all-reduce" in text
    for other in ("all-gather", "all-to-all", "collective-permute"):
        assert other not in text
