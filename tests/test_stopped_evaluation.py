"""A run that is asked to stop in the middle of an evaluation that takes long."""

import signal

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding

from pit_jax import classifier, rundir, signals, validation
from pit_jax.data import pipeline
from pit_jax.errors import Stopped
from pit_jax.evals.generator import Generator
from pit_jax.evals.networks import Network
from pit_jax.parallel import mesh as meshes
from pit_jax.train import train

from .saved_runs import diffusion


def network(features, resize, mesh) -> Network:
    """In the place of Inception's: four numbers of an image."""

    def function(images):
        return {"pool": images[:, ::2, 3, 0].astype(jnp.float32)}

    split = NamedSharding(mesh, meshes.batch_spec())
    return Network("rows", features, "1" * 64, 4, function, split)


@pytest.fixture
def batches(monkeypatch):
    """The first index of each batch that is generated; SIGTERM comes while the third is."""
    made: list[int] = []
    generate = Generator.batch

    def batch(self, labels, indices, size):
        made.append(int(indices[0]))
        return generate(self, labels, indices, size)

    def asked(self) -> int:
        return signal.SIGTERM if len(made) == 3 else 0

    monkeypatch.setattr(Generator, "batch", batch)
    monkeypatch.setattr(signals.StopRequest, "asked", asked)
    monkeypatch.setattr(classifier, "network", network)
    return made


def test_it_saves_within_a_batch_and_measures_when_it_goes_on(tmp_path, batches):
    """In its last evaluation, after which there is no step to go on with."""
    config = diffusion(
        sample__num=40,
        sample__steps=1,
        eval__what=("loss", "generation"),
        eval__features="x",
        data__per_class=4,
        train__steps=1,
        train__log_every=1,
    )
    run, devices = rundir.RunDir(tmp_path / "run"), jax.devices()[:1]
    with pytest.raises(Stopped, match="SIGTERM: saved at step 1; start again") as stop:
        train(config, run.path, devices=devices)
    assert stop.value.exit_code == 75
    assert batches == [0, 8, 16]  # of five
    status = run.status()
    assert (status["state"], status["exit_code"], status["step"]) == ("preempted", 75, 1)
    (row,) = run.rows()  # of half an evaluation it says nothing
    assert "train/loss" in row
    assert not any(name.startswith("eval/") for name in row)
    assert not list(run.path.glob("records/*"))

    batches[:] = [-1] * 4  # past the third: no signal comes
    result = train(config, run.path, devices=devices)
    assert batches[4:] == [0, 8, 16, 24, 32]
    assert {"eval/loss", "eval/rows_distance"} <= set(result.metrics)
    assert run.evaluation(1) == result.metrics
    assert (run.path / "records" / "generation-1.json").exists()
    status = run.status()
    assert (status["state"], status["result"]) == ("done", result.metrics)

    batches.clear()
    again = train(config, run.path, devices=devices)  # done is done
    assert (again.metrics, batches) == (result.metrics, [])


@pytest.mark.parametrize("last", [3, 14], ids=["first view", "second view"])
def test_probes_are_stopped_within_a_batch_of_features(tiny, tmp_path, last, monkeypatch):
    """Of 5 batches of training images, 6 of held-out ones, and 5 of the training images' views."""
    seen: list[int] = []
    whole = pipeline.Pipeline.evaluate

    def evaluate(self):
        for number, batch in enumerate(whole(self)):
            seen.append(number)
            yield batch

    def asked(self) -> int:
        return signal.SIGTERM if len(seen) == last else 0

    monkeypatch.setattr(pipeline.Pipeline, "evaluate", evaluate)
    monkeypatch.setattr(signals.StopRequest, "asked", asked)
    tiny.data.per_class, tiny.data.augmentation.flip = 32, 0.5
    tiny.train.update(batch_size=64, steps=1)
    tiny.eval.update(what=("knn", "linear"), views=2)
    config = validation.resolve(tiny)
    run, devices = rundir.RunDir(tmp_path / "run"), jax.devices()[:1]
    with pytest.raises(Stopped, match="SIGTERM: saved at step 1; start again"):
        train(config, run.path, devices=devices)
    assert len(seen) == last
    assert run.status()["state"] == "preempted"
    assert not any(name.startswith("eval/") for row in run.rows() for name in row)

    seen[:] = [-1] * 100  # no signal comes
    result = train(config, run.path, devices=devices)
    assert seen[100:] == [*range(5), *range(6), *range(5)]
    assert {"eval/knn_accuracy", "eval/linear_accuracy"} <= set(result.metrics)
    assert run.evaluation(1) == result.metrics
