"""Position embeddings: similarity by its definition, recovery against scikit-learn."""

import numpy as np
import pytest
from sklearn.linear_model import RidgeCV

from pit_jax.evals.locality import positions
from pit_jax.models.embed import sincos2d


def raster(side: int) -> np.ndarray:
    return np.stack(np.divmod(np.arange(side**2), side), axis=1)


def test_similarity_maps_are_cosines():
    table = np.random.default_rng(0).normal(size=(9, 5))
    maps = positions.similarity_maps(table, at=np.array([4, 2]))
    a, b = table[4], table[2]
    assert maps[0, 0, 2] == pytest.approx(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
    assert maps[0, 0, 2] == pytest.approx(maps[1, 1, 1])
    np.testing.assert_allclose(positions.similarity_maps(table).reshape(9, 9).diagonal(), 1)


def test_neighbours_are_told_from_all_other_pairs():
    side, table = 5, np.random.default_rng(0).normal(size=(25, 7)) + 0.5
    unit = table / np.linalg.norm(table, axis=1, keepdims=True)
    near, far = [], []
    for i in range(25):
        for j in range(i):
            together = np.abs(raster(side)[i] - raster(side)[j]).sum() == 1
            (near if together else far).append(unit[i] @ unit[j])
    found = positions.neighbour_similarity(table)
    np.testing.assert_allclose(found, (np.mean(near), np.mean(far)))


@pytest.mark.parametrize("width", [6, 80])  # fewer dimensions than positions, and more
def test_held_out_places_are_predicted_as_scikit_learn_predicts_them(width):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(51, width)), raster(8)[:51].astype(float)
    x[:, :2] += 0.3 * y
    new = rng.normal(size=(13, width))
    centred = x - x.mean(0)
    unit = np.square(centred).sum() / min(width, 50)  # the mean of the eigenvalues
    other = RidgeCV(alphas=positions.RIDGES * unit).fit(x, y)
    np.testing.assert_allclose(positions.predict(x, y, new), other.predict(new), rtol=1e-6)


def test_what_a_table_knows_of_the_grid_is_recovered():
    rng = np.random.default_rng(0)
    places = raster(8)
    planted = places @ rng.normal(size=(2, 64)) + 0.05 * rng.normal(size=(64, 64))
    assert positions.recovery(planted, places) > 0.99
    assert positions.recovery(sincos2d((8, 8), 64), places) > 0.99
    shuffled = rng.permutation(planted)
    assert positions.recovery(shuffled, places) < 0.2


@pytest.mark.parametrize("side", [4, 8])
def test_random_tables_know_nothing(side):
    rng = np.random.default_rng(0)
    found = [
        positions.recovery(0.02 * rng.normal(size=(side**2, 64)), raster(side)) for _ in range(3)
    ]
    assert -0.35 < np.mean(found) < 0.05
