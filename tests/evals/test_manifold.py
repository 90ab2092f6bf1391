"""Precision and recall against brute force in float64, and the same over eight devices."""

import jax
import numpy as np
import pytest

from pit_jax.errors import ConfigError
from pit_jax.evals import manifold
from pit_jax.parallel.mesh import make_mesh


def squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return ((a[:, None] - b[None]) ** 2).sum(-1)


def brute_radii(features: np.ndarray, k: int) -> np.ndarray:
    return np.sort(squared_distances(features, features), axis=1)[:, k]  # 0 is the feature itself


def brute(reference: np.ndarray, generated: np.ndarray, k: int) -> tuple[float, float]:
    def share(of: np.ndarray, manifold: np.ndarray) -> float:
        return (squared_distances(of, manifold) <= brute_radii(manifold, k)).any(1).mean()

    return share(generated, reference), share(reference, generated)


def sets(n: int = 83, m: int = 61, dim: int = 5, offset: float = 0.0):
    rng = np.random.default_rng(0)
    real = rng.normal(size=(n, dim)) + offset
    made = 0.8 * rng.normal(size=(m, dim)) + offset + 0.5
    return real.astype(np.float32), made.astype(np.float32)


@pytest.mark.parametrize("k", [1, 3, 7])
def test_equals_brute_force(k):
    real, made = sets()
    found = manifold.precision_recall(real, made, k=k, row_block=16, column_block=25)
    assert found == brute(real, made, k)
    assert 0.1 < found.recall < found.precision  # both say something


def test_radii_equal_brute_force():
    real, _ = sets()
    found = manifold.radii(real, 3, row_block=16, column_block=25)
    np.testing.assert_allclose(found, brute_radii(real, 3), rtol=1e-5)


@pytest.mark.parametrize(("rows", "columns"), [(1, 2), (7, 61), (1024, 16384)])
def test_blocks_change_nothing(rows, columns):
    real, made = sets(31, 17)
    found = manifold.precision_recall(real, made, row_block=rows, column_block=columns)
    assert found == brute(real, made, 3)


def test_eight_devices_find_the_same():
    real, made = sets()
    mesh = make_mesh({"data": 2, "fsdp": 2, "seq": 1, "model": -1})
    assert mesh.size == 8
    work = dict(row_block=4, column_block=30)
    one, eight = manifold.radii(real, 3, **work), manifold.radii(real, 3, mesh=mesh, **work)
    np.testing.assert_allclose(eight, one, rtol=1e-6)
    expected = brute(real, made, 3)
    assert manifold.precision_recall(real, made, mesh=mesh, **work) == expected
    with jax.set_mesh(mesh):
        assert manifold.precision_recall(real, made, **work) == expected


def test_every_device_has_its_share_of_the_rows():
    rows, _ = manifold._rows(np.ones((83, 5)), make_mesh(dict(data=8, fsdp=1, seq=1, model=1)), 4)
    assert rows.shape == (3, 32, 5)
    assert {shard.data.shape for shard in rows.addressable_shards} == {(3, 4, 5)}


def test_features_far_from_zero_keep_their_neighbours():
    """Squares of the features are a million times their distances: centring takes that away."""
    real, made = sets(offset=1000.0)
    assert manifold.precision_recall(real, made) == brute(real, made, 3)


def test_a_set_covers_itself_and_nothing_far_away():
    real, _ = sets()
    assert manifold.precision_recall(real, real) == (1, 1)
    assert manifold.precision_recall(real, real + 100) == (0, 0)


def test_copies_of_one_image_are_precise_and_cover_little():
    """What recall is for: a ball of radius 0 holds nothing but its own image."""
    real, _ = sets()
    made = np.repeat(real[:1], 20, axis=0)
    precision, recall = manifold.precision_recall(real, made)
    assert precision == 1
    assert recall == pytest.approx(1 / 83)


@pytest.mark.parametrize(
    ("reference", "generated", "sentence"),
    [
        ((3, 2), (9, 2), "with 3 neighbours need more than 3 features, there are 3"),
        ((9, 2), (2, 2), "with 3 neighbours need more than 3 features, there are 2"),
        ((9, 2), (9, 4), "features of 2 and 4 dimensions cannot be compared"),
    ],
)
def test_what_cannot_be_compared_is_refused(reference, generated, sentence):
    with pytest.raises(ConfigError, match=sentence):
        manifold.precision_recall(np.zeros(reference), np.zeros(generated))
