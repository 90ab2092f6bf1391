"""Probes as they are asked for: by the command, on runs of several tasks, on any mesh."""

import re
import signal
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from pit_jax import cli, evaluate, rundir, validation
from pit_jax.data import pipeline
from pit_jax.errors import ConfigError, StopAsked
from pit_jax.evals import linear_probe, probes
from pit_jax.evals.features import Features
from pit_jax.parallel import mesh as meshes

from ..saved_runs import diffusion, save_run

TRAIN, TEST = 200, 360  # of the digits


def few(tiny, task: str = "classification"):
    """A resolved config of a run on twenty digits of each class.

    Pooled: what [CLS] says by random weights differs between images by little but rounding.
    """
    tiny.task, tiny.data.per_class = task, TRAIN // 10
    tiny.model.pool = "mean"
    tiny.data.augmentation.update(crop="pad", pad=1)
    tiny.eval.update(shots=(5, 10))
    if task == "mae":
        tiny.mae.update(decoder_width=8, decoder_depth=1, decoder_heads=2)
        tiny.eval.what = ("reconstruction",)
    return validation.resolve(tiny)


@pytest.fixture
def run(tiny, tmp_path):
    save_run(few(tiny), tmp_path / "run")
    return tmp_path / "run"


def probe(path, devices, *which: str, **options) -> dict[str, float]:
    config = rundir.RunDir(path).config()
    config.eval.update(options)
    return evaluate.evaluate(config, path, devices=devices, which=which)


@pytest.mark.parametrize("task", ["classification", "mae"])
def test_the_command_probes_a_run(task, tiny, tmp_path, capsys):
    save_run(few(tiny, task), tmp_path / "run")
    words = ("eval", "--workdir", str(tmp_path / "run"), "--probe", "linear", "knn", "fewshot")
    assert cli.run(words) == 0
    printed = capsys.readouterr().out
    found = {name: float(value) for name, value in re.findall(r"^(\S+) +(\S+)\n", printed, re.M)}
    names = {"linear_accuracy", "linear_base_rate", "knn_accuracy"}
    names |= {f"fewshot_{n}_{what}" for n in (5, 10) for what in ("accuracy", "std", "examples")}
    assert set(found) == {"step"} | {f"eval/{name}" for name in names}
    assert found["step"] == 7
    assert found["eval/linear_base_rate"] in linear_probe.BASE_RATES
    assert (found["eval/fewshot_5_examples"], found["eval/fewshot_10_examples"]) == (50, 100)
    # even by random weights the digits are told apart better than by chance, four deviations
    for name in ("linear", "knn", "fewshot_10"):
        assert 0.1 + 4 * (0.1 * 0.9 / TEST) ** 0.5 < found[f"eval/{name}_accuracy"] < 1


def test_the_command_probes_a_diffusion_run(tmp_path, capsys):
    save_run(diffusion(data__per_class=20), tmp_path / "run")
    assert cli.run(("eval", "--workdir", str(tmp_path / "run"), "--probe", "knn")) == 0
    found = re.search(r"eval/knn_accuracy +(\S+)\n", capsys.readouterr().out)
    assert 0.2 < float(found[1]) < 1


@pytest.mark.parametrize(
    ("which", "passes"),
    [
        (("knn",), [TRAIN, TEST]),
        (("fewshot",), [TRAIN, TEST]),
        (("linear",), [TRAIN, TEST, TRAIN, TRAIN]),
        (("knn", "fewshot", "linear"), [TRAIN, TEST, TRAIN, TRAIN]),
        (("linear", "fewshot", "knn"), [TRAIN, TEST, TRAIN, TRAIN]),
    ],
)
def test_a_set_is_read_once_a_view_however_many_probes_there_are(run, which, passes, monkeypatch):
    """And more than once by none but the linear probe."""
    seen, whole = [], pipeline.Pipeline.evaluate

    def counted(self):
        seen.append(len(self.reader))
        return whole(self)

    monkeypatch.setattr(pipeline.Pipeline, "evaluate", counted)
    result = linear_probe.Result(0.5, 0.1, None)
    monkeypatch.setattr(linear_probe, "accuracy", lambda *args, **options: result)
    probe(run, jax.devices()[:1], *which, views=3)
    assert seen == passes


def test_several_devices_probe_as_one_does(run):
    one, all_ = (
        probe(run, devices, "linear", "knn", "fewshot", views=2)
        for devices in (jax.devices()[:1], jax.devices())
    )
    assert set(one) == set(all_)
    for name, value in one.items():
        # features differ by rounding: of 360 images one may fall the other way
        assert all_[name] == pytest.approx(value, abs=0.006 if "accuracy" in name else 1e-3), name


def test_the_linear_probe_of_the_same_features_is_the_same_on_any_mesh(tiny):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 120).astype(np.int32)
    views = rng.normal(size=(2, 120, 4)).astype(np.float32) + np.eye(3, 4, dtype=np.float32)[labels]
    results = []
    for devices in (jax.devices()[:1], jax.devices()):
        with jax.set_mesh(meshes.make_mesh(validation.resolve(tiny).mesh, devices)):
            found = linear_probe.accuracy(views, labels, views[0], labels, 3, batch_size=32)
        results.append(found)
    assert results[0] == results[1]
    assert 0.5 < results[0].accuracy < 0.95


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("linear", 90 + 90),  # epochs, to choose the rate and on all examples
        ("knn", 1),  # block of training examples
        ("fewshot", 3 + 3 + 1),  # draws; of 40 a class there is one
    ],
)
def test_a_probe_hears_a_stop_between_its_parts(name, parts, resolved):
    resolved.data.num_classes, resolved.eval.shots = 3, (5, 10, 40)
    labels = np.repeat(np.arange(3, dtype=np.int32), 40)
    vectors = np.random.default_rng(0).normal(size=(120, 4)).astype(np.float32)
    asked = []

    def until_stopped(things):
        for thing in things:
            asked.append(thing)
            if len(asked) == last:
                raise StopAsked(signal.SIGTERM)
            yield thing

    found = Features(vectors, labels)
    views = np.stack([vectors, vectors])
    context = SimpleNamespace(
        config=resolved, features=(found, found), views=views, until_stopped=until_stopped
    )
    last = parts
    with pytest.raises(StopAsked):
        list(probes.PROBES[name](context))
    asked.clear()
    last = parts + 1
    assert list(probes.PROBES[name](context))
    assert len(asked) == parts


def test_a_set_without_classes_is_not_measured_before_it_is_refused(tiny, tmp_path):
    tiny.data.update(name="scenes", channels=3)
    tiny.task, tiny.eval.what = "depth", ("depth",)
    save_run(validation.resolve(tiny), tmp_path / "run")
    with pytest.raises(ConfigError, match="has no classes that a probe could tell"):
        probe(tmp_path / "run", jax.devices()[:1], "linear")
