"""Functions that take a config from Python resolve it: what is wrong is refused at once."""

import pytest

from pit_jax import encode, evaluate, reference_statistics, sample, sample_metrics, train
from pit_jax.errors import ConfigError
from pit_jax.perf import bench, bench_input, preflight, show

ENTRIES = {
    "train": lambda c, place: train.train(c, place),
    "evaluate": lambda c, place: evaluate.evaluate(c, place),
    "sample": lambda c, place: sample.sample(c, place, f"{place}/samples"),
    "measure samples": lambda c, place: sample_metrics.measure(c, place, "samples.npz"),
    "encode": lambda c, place: encode.encode(c, "vae.safetensors", place),
    "statistics": lambda c, place: reference_statistics.write(c, f"{place}.npz", images=True),
    "show": lambda c, place: show.show(c),
    "preflight": lambda c, place: preflight.preflight(c, None),
    "bench": lambda c, place: bench.bench(c),
    "bench against another": lambda c, place: bench.bench(_fine(c), c),
    "bench input": lambda c, place: bench_input.measure(c),
}


def _fine(c):
    found = c.copy_and_resolve_references()
    found.model.heads = 2
    return found


@pytest.mark.parametrize("entry", ENTRIES)
def test_an_unresolved_config_is_checked_before_anything_is_done(tiny, tmp_path, entry):
    tiny.model.heads = 3
    with pytest.raises(ConfigError, match=r"config\.model\.heads=3 does not divide"):
        ENTRIES[entry](tiny, tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_what_is_shown_of_an_unresolved_config_is_resolved(tiny):
    assert "  model.mlp = 64" in show.show(tiny)
