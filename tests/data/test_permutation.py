"""Permuted pixels: the pairs themselves, and where they come in what a model sees."""

import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pit_jax import configfile, tasks, validation
from pit_jax.data import augmentation, permutation, pipeline, sources
from pit_jax.errors import ConfigError
from pit_jax.models import vit


def batch(count: int = 6, size: int = 8, channels: int = 1, seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (count, size, size, channels), dtype=np.uint8)
    numbers = np.arange(count, dtype=np.int32)
    return {"image": image, "label": numbers, "index": 7 * numbers}


def task_of(config, swaps: int, **fields):
    config.data.permutation.update(swaps=swaps, **fields)
    return tasks.build(validation.resolve(config))


def permuted(images: np.ndarray, order: np.ndarray) -> np.ndarray:
    flat = np.asarray(images).reshape(len(images), -1, images.shape[-1])
    return flat[:, order].reshape(images.shape)


# The pairs.


@pytest.mark.parametrize("distance", [0, 1, 2, 5, 100])
@pytest.mark.parametrize(("side", "swaps"), [(1, 0), (2, 2), (8, 1), (8, 20), (8, 32), (9, 40)])
def test_pairs_are_disjoint_as_many_as_asked_for_and_near(side, swaps, distance):
    order = permutation.draw(side, swaps, distance, seed=3)
    np.testing.assert_array_equal(order[order], np.arange(side**2))  # swaps: each undoes itself
    moved = np.flatnonzero(order != np.arange(side**2))
    assert len(moved) == 2 * swaps
    rows, columns = np.divmod(moved, side)
    to_rows, to_columns = np.divmod(order[moved], side)
    apart = np.abs(rows - to_rows) + np.abs(columns - to_columns)
    assert (apart <= (distance or 2 * side)).all()
    if swaps >= 20 and 0 < distance < 9:  # the limit is reached, not only kept
        assert apart.max() == distance


@pytest.mark.parametrize("distance", [0, 1, 8])
def test_the_whole_of_a_large_image_is_paired_at_once(distance):
    permutation.draw.cache_clear()
    start = time.perf_counter()
    order = permutation.draw(224, 25_088, distance)
    assert time.perf_counter() - start < 20  # a walk that never ends is what it must not be
    assert (order != np.arange(224**2)).all()


def test_more_pairs_than_there_are_is_refused():
    assert permutation.most_swaps(224) == 25_088
    with pytest.raises(ValueError, match="41 disjoint swaps of 9 × 9 pixels: at most 40"):
        permutation.draw(9, 41, 1)


def test_the_same_numbers_everywhere():
    """Written down once: no version of NumPy and no machine may give others."""
    assert permutation.draw(3, 3, 0, 1).tolist() == [1, 0, 2, 7, 8, 5, 6, 3, 4]
    assert permutation.draw(3, 4, 1, 1).tolist() == [1, 0, 2, 6, 7, 8, 3, 4, 5]
    drawn = jax.jit(lambda: permutation.draw_each(jax.random.key(0)[None], 3, 3))()
    assert drawn[0].tolist() == [0, 1, 7, 5, 6, 3, 4, 2, 8]


@pytest.mark.parametrize(("distance", "pairs"), [(0, 36), (1, 12)])
def test_every_pair_is_as_likely_as_any_other(distance, pairs):
    counts = np.zeros((9, 9))
    for seed in range(1200):
        order = permutation.draw.__wrapped__(3, 1, distance, seed)
        counts[np.arange(9), order] += order != np.arange(9)
    found = counts[np.triu_indices(9, 1)]
    found = found[found > 0]
    assert len(found) == pairs
    expected = 1200 / pairs
    # The standard deviation of a count is √expected; with a limit a pixel in the corner, which
    # has fewer to choose from, is favoured a little.
    assert np.abs(found - expected).max() < (5 if distance == 0 else 8) * expected**0.5


def test_any_permutation_is_inverted():
    order = np.random.default_rng(0).permutation(64)
    images = batch(2)["image"]
    there = permutation.apply(jnp.asarray(images), order)
    assert not np.array_equal(there, images)
    np.testing.assert_array_equal(permutation.apply(there, permutation.inverse(order)), images)
    swaps = permutation.draw(8, 20)
    np.testing.assert_array_equal(permutation.inverse(swaps), swaps)


# What a model sees.


def test_no_swaps_are_the_unpermuted_run_to_the_bit(tiny):
    tiny.data.augmentation.update(crop="pad", flip=0.5)
    task, examples, key = task_of(tiny, 0, seed=7, distance=3), batch(), jax.random.key(1)
    options = (tiny.data.augmentation, (0.5,), (0.5,), 10)
    plain, _ = jax.jit(lambda b: augmentation.augment(b["image"], b["label"], key, *options))(
        examples
    )
    np.testing.assert_array_equal(jax.jit(task.augment)(examples, key)["image"], plain)
    for given in (examples, examples["image"]):
        np.testing.assert_array_equal(
            task.normalise(given), augmentation.normalise(examples["image"], (0.5,), (0.5,))
        )


def test_both_splits_see_the_same_permutation_after_augmentation(tiny):
    tiny.data.augmentation.flip = 1.0
    task, examples = task_of(tiny, 20, distance=4, seed=5), batch()
    order = permutation.draw(8, 20, 4, 5)
    trained = jax.jit(task.augment)(examples, jax.random.key(0))["image"]
    plain = np.asarray(augmentation.normalise(examples["image"], (0.5,), (0.5,)))
    np.testing.assert_allclose(trained, permuted(plain[:, :, ::-1], order), rtol=1e-6)
    np.testing.assert_array_equal(task.normalise(examples), permuted(plain, order))


def test_an_image_of_its_own_permutation_keeps_it(tiny):
    task, examples = task_of(tiny, 32, per_image=True), batch()
    trained = np.asarray(jax.jit(task.augment)(examples, jax.random.key(0))["image"])
    again = jax.jit(task.augment)(examples, jax.random.key(9))["image"]
    np.testing.assert_array_equal(trained, again)  # in every epoch
    mixed = np.array([4, 0, 2])
    evaluated = jax.jit(task.normalise)({k: x[mixed] for k, x in examples.items()})
    # In any batch, in either split; two programs may round apart.
    np.testing.assert_allclose(evaluated, trained[mixed], atol=1e-6)
    plain = np.asarray(augmentation.normalise(examples["image"], (0.5,), (0.5,)))
    orders = jax.jit(lambda batch: permutation.draw_each(task.keys(batch, 0), 8, 32))(examples)
    assert len({tuple(np.asarray(order)) for order in orders}) == 6
    for image, order, original in zip(trained, np.asarray(orders), plain, strict=True):
        assert (order != np.arange(64)).all()
        np.testing.assert_array_equal(order[order], np.arange(64))
        np.testing.assert_allclose(image, permuted(original[None], order)[0], atol=1e-6)
    other = task_of(tiny, 32, per_image=True, seed=1)
    assert not np.array_equal(jax.jit(other.normalise)(examples), trained)


def test_pit_does_not_notice_a_permutation_that_its_positions_share():
    model = vit.ViT(num_classes=5, width=16, depth=2, heads=2, mlp=32, position_std=1.0)
    x = jax.random.normal(jax.random.key(0), (2, 6, 6, 3))
    params = jax.jit(model.init)(jax.random.key(1), x)["params"]
    order = permutation.draw(6, 18)
    position = params["embed"]["position"]
    moved = jnp.concatenate([position[:1], position[1:][order]])
    both = params | {"embed": params["embed"] | {"position": moved}}
    apply = jax.jit(model.apply)
    before, swapped = apply({"params": params}, x), permutation.apply(x, order)
    np.testing.assert_allclose(apply({"params": both}, swapped), before, atol=2e-6)
    assert not np.allclose(apply({"params": params}, swapped), before, atol=1e-3)


def test_pictures_and_samples_show_pixels_where_they_belong(tiny):
    """A generative model learns permuted images; people are shown them put right again."""
    tiny.task, tiny.model.name, tiny.eval.what = "diffusion", "dit", ("loss",)
    task, examples = task_of(tiny, 32), batch()
    images = examples["image"]
    np.testing.assert_allclose(task.levels(task.normalise(examples)), images, atol=1e-3)
    tiny.task, tiny.model.name, tiny.eval.what = "mae", "vit", ("reconstruction",)
    tiny.model.depth = tiny.mae.decoder_depth = 1
    task = task_of(tiny, 32, per_image=True)
    params = jax.tree.map(
        lambda x: jnp.zeros(x.shape), jax.eval_shape(task.init, jax.random.key(0))
    )
    examples = batch() | {"mask": np.ones(6)}
    rows = jax.jit(task.reconstruct)(params, examples, jnp.zeros(()))
    seen = np.asarray(rows["masked"]) != 127.5
    assert 6 * 12 <= seen.sum() <= 6 * 16  # a quarter, but for pixels that are grey themselves
    np.testing.assert_allclose(np.asarray(rows["masked"])[seen], images[seen], atol=1e-3)


def test_a_run_from_before_there_were_permutations_has_none(tiny):
    tree = json.loads(configfile.to_json(tiny))
    del tree["data"]["permutation"], tree["model"]["window"], tree["model"]["order"]
    old = validation.resolve(configfile.from_json(json.dumps(tree)))
    assert old == validation.resolve(tiny)
    assert (old.data.permutation.swaps, old.model.window, old.model.order) == (0, (), "raster")


def refused(config, line: str) -> None:
    with pytest.raises(ConfigError, match=line) as error:
        validation.resolve(config)
    assert "\n" not in str(error.value)


def test_impossible_permutations_are_refused_in_one_line(tiny):
    p = tiny.data.permutation
    p.swaps = 33
    refused(tiny, "config.data.permutation.swaps=33 is more than the 32 disjoint pairs of 8 × 8")
    p.update(swaps=3, distance=2, per_image=True)
    refused(tiny, "distance=2 is offered with one permutation for all images only")
    p.distance = -1
    refused(tiny, "config.data.permutation.distance=-1 must be at least 0")
    p.distance = 0
    tiny.task, tiny.model.name, tiny.eval.what = "diffusion", "dit", ("loss",)
    refused(tiny, "per_image has no place in task 'diffusion'")
    tiny.task, tiny.model.name, p.per_image = "autoencoder", "autoencoder", False
    tiny.autoencoder.update(channels=(32,))
    refused(tiny, "swaps=3 has no place where latents are learned")


def test_images_cropped_before_the_device_have_no_permutation_of_their_own(tiny):
    tiny.data.image_size = 16
    tiny.data.augmentation.crop = "resized"
    tiny.data.permutation.update(swaps=3, per_image=True)
    source = sources.load(tiny.data, "train")
    with pytest.raises(ConfigError, match="digits/train are cropped before"):
        pipeline.device_config(tiny, source)
    tiny.data.permutation.per_image = False
    assert pipeline.device_config(tiny, source).data.augmentation.crop == "none"


def test_equal_pictures_are_permuted_each_in_its_own_way(tiny):
    """By their numbers; a run that was begun when pixels decided has them alike."""
    task, examples = task_of(tiny, 32, per_image=True), batch(1)
    twice = {name: np.repeat(x, 2, 0) for name, x in examples.items()} | {"index": np.arange(2)}
    one, other = np.asarray(task.normalise(twice))
    assert not np.array_equal(one, other)
    tiny.data.keyed_by = "pixels"
    one, other = np.asarray(task_of(tiny, 32, per_image=True).normalise(twice))
    np.testing.assert_array_equal(one, other)
