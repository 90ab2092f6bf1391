"""Changed images: what stays of them, and how often they are still recognised."""

import jax
import numpy as np
import pytest

from pit_jax import tasks
from pit_jax.evals.locality import robustness
from pit_jax.evals.locality.robustness import Change

from .test_attention_distance import digits, random_params

COLOUR = np.array([77, 78, 79], np.uint8)


def change(images: np.ndarray, what: Change) -> np.ndarray:
    keys = jax.vmap(jax.random.key)(np.arange(len(images)))
    return np.asarray(robustness.changed(images, keys, what, COLOUR))


def distinct(side: int, count: int = 40) -> np.ndarray:
    """Images whose pixels all differ, by the first two channels."""
    number = np.arange(side**2)
    image = np.stack([number // 256, number % 256, 0 * number], -1).reshape(side, side, 3)
    return np.broadcast_to(image.astype(np.uint8), (count, side, side, 3))


def test_the_doses_fit_the_image():
    def doses(size: int, kind: str) -> list[int]:
        return [c.dose for c in robustness.changes(size) if c.kind == kind]

    assert robustness.changes(8)[0].name == "unchanged"
    assert doses(8, "shifted") == [1, 2]
    assert doses(32, "shifted") == [1, 2, 4, 8]
    assert doses(224, "shifted") == [7, 14, 28, 56]
    assert doses(1, "shifted") == []


@pytest.mark.parametrize("per_cent", [25, 100])
def test_swapping_moves_the_share_of_pixels_and_keeps_their_colours(per_cent):
    images = distinct(9)
    found = change(images, Change("swapped", per_cent))
    moved = (found != images).any(-1)
    np.testing.assert_array_equal(moved.sum((1, 2)), 2 * (40 * per_cent // 100))  # of 81 pixels
    assert len({tuple(np.flatnonzero(m)) for m in moved}) > 1 or per_cent == 100
    flat = found.reshape(40, 81, 3)
    for image in flat:
        assert {tuple(p) for p in image} == {tuple(p) for p in images[0].reshape(81, 3)}
    assert not np.array_equal(flat[0], flat[1])


def test_shifting_moves_the_image_in_one_of_four_directions_and_repeats_its_border():
    images = distinct(6)
    padded = np.pad(images[0], ((2, 2), (2, 2), (0, 0)), mode="edge")
    possible = [padded[r : r + 6, c : c + 6] for r, c in ((4, 2), (0, 2), (2, 4), (2, 0))]
    seen = [
        next(i for i, p in enumerate(possible) if np.array_equal(p, image))
        for image in change(images, Change("shifted", 2))
    ]
    assert set(seen) == {0, 1, 2, 3}


@pytest.mark.parametrize(("side", "square"), [(8, 1), (35, 4)])
def test_covering_paints_so_many_squares(side, square):
    images = distinct(side, 8)
    found = change(images, Change("covered", 50))
    hidden = (found == COLOUR).all(-1)
    assert (found[~hidden] == images[~hidden]).all()
    grid = hidden[:, ::square, ::square]  # a square is whole or not at all
    np.testing.assert_array_equal(grid.repeat(square, 1).repeat(square, 2)[:, :side, :side], hidden)
    np.testing.assert_array_equal(grid.sum((1, 2)), round(0.5 * grid[0].size))
    assert len({g.tobytes() for g in grid}) == 8


def test_hits_count_real_images_by_themselves(resolved):
    task = tasks.build(resolved)
    params, batch = random_params(task), digits(12)
    quarters = np.random.default_rng(2).integers(0, 2, (12, 2, 2, 1), dtype=np.uint8)
    batch["image"] = 255 * quarters.repeat(4, 1).repeat(4, 2)
    predict = jax.jit(task.predict)
    params["head"]["bias"] -= np.mean(predict(params, batch), 0)  # no favourite class
    batch["label"] = np.asarray(predict(params, batch).argmax(-1))
    chosen = robustness.changes(8)
    measure = jax.jit(robustness.reader(task, chosen))
    whole = measure(params, batch, 0)
    assert whole["hits"].shape == (len(chosen),)
    assert whole["hits"][0] == whole["examples"] == 12
    assert min(whole["hits"][1:]) < 12  # a random network notices
    parts = []
    for half in (range(6), range(6, 12)):  # other neighbours, in other places
        rows = [*half, *[0] * 6]
        part = {name: x[rows] for name, x in batch.items()}
        part["mask"] = np.repeat([1.0, 0.0], 6).astype(np.float32)
        parts.append(measure(params, part, 0)["hits"])
    np.testing.assert_array_equal(sum(parts), whole["hits"])
