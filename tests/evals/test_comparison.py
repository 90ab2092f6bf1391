"""From batches of a network's outputs to named values."""

import numpy as np
import pytest

from pit_jax.errors import ConfigError
from pit_jax.evals import comparison, statistics
from pit_jax.evals.comparison import Collector, Description, compare
from pit_jax.evals.frechet import frechet_distance
from pit_jax.evals.manifold import precision_recall


def outputs(seed: int, count: int = 40) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    p = rng.uniform(size=(count, 5))
    return {
        "pool": rng.normal(size=(count, 6)).astype(np.float32) + 0.3 * seed,
        "spatial": rng.normal(size=(count, 4)).astype(np.float32),
        "probabilities": (p / p.sum(1, keepdims=True)).astype(np.float32),
        "logits": np.zeros((count, 5)),
    }


def collect(out: dict[str, np.ndarray], size: int = 16, **arguments) -> Description:
    collector = Collector(**arguments)
    for start in range(0, len(out["pool"]), size):
        collector.add({name: x[start : start + size] for name, x in out.items()})
    return collector.description()


def test_every_value_is_that_of_its_own_function(monkeypatch):
    monkeypatch.setattr(comparison, "SPLIT", 20)
    first, second = outputs(0), outputs(1)
    generated, reference = collect(first), collect(second)
    found = compare(generated, reference)
    assert list(found) == [
        "fid", "sfid", "inception_score", "inception_score_std", "precision", "recall",
    ]  # fmt: skip
    for name, key in (("fid", "pool"), ("sfid", "spatial")):
        both = (statistics.of([x[key]]).gaussian() for x in (first, second))
        assert found[name] == pytest.approx(frechet_distance(*both), rel=1e-9)
    expected = precision_recall(second["pool"], first["pool"])
    assert (found["precision"], found["recall"]) == expected
    assert 1 < found["inception_score"] < 5
    assert found["inception_score_std"] > 0


def test_a_set_compared_with_itself():
    description = collect(outputs(0))
    found = compare(description, description)
    assert found["fid"] < 1e-9
    assert found["sfid"] < 1e-9
    assert (found["precision"], found["recall"]) == (1, 1)


def test_the_first_features_are_kept_and_all_are_counted():
    out = outputs(0)
    for wanted, kept in ((None, 40), (25, 25), (100, 40)):
        description = collect(out, features=wanted)
        np.testing.assert_array_equal(description.features, out["pool"][:kept])
        assert description.count == 40
    assert collect(out, features=0).features is None


def test_neighbours_and_the_rows_that_were_kept_count():
    first, second = outputs(0), outputs(1)
    found = compare(collect(first, features=30), collect(second, features=9), k=2)
    expected = precision_recall(second["pool"][:9], first["pool"][:30], k=2)
    assert (found["precision"], found["recall"]) == expected


def test_what_only_one_has_is_not_compared():
    """Features of any network will do, and a published file has statistics only."""
    pool = {"pool": outputs(0)["pool"]}
    reference = Description(collect(outputs(1)).pool)
    assert set(compare(collect(pool), reference)) == {"fid"}
    assert "sfid" not in compare(collect(pool), collect(outputs(1)))


def test_no_images_are_refused():
    with pytest.raises(ConfigError, match="needs 2 samples or more, there are 0"):
        Collector().description()
