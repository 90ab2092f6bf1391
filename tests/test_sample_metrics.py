"""`pit-jax eval --samples`: what was written is measured as it would be while generating."""

import json
import shutil

import jax
import numpy as np
import pytest

from pit_jax import cli, evaluate, files, sample, sample_metrics, validation
from pit_jax.errors import ConfigError
from pit_jax.evals import reference

from .saved_runs import config_of, diffusion, save_run

NUM = 24


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A run, its samples, one of other weights, and a classifier's run."""
    root = tmp_path_factory.mktemp("runs")
    made = diffusion(data__per_class=4)
    save_run(made, root / "run")
    shutil.copytree(root / "run", root / "other")
    manifest = root / "other" / "manifests" / "7.json"  # says what the checkpoint holds
    manifest.write_text(manifest.read_text() + " ")
    small = diffusion()
    classifier = small.copy_and_resolve_references()
    classifier.task, classifier.model.name, classifier.model.patch = "classification", "vit", 2
    classifier.optim.ema, classifier.eval.what = 0.0, ("accuracy",)
    save_run(validation.resolve(classifier), root / "classifier", 3)
    sample.sample(settings(root), root / "run", root / "samples", devices=jax.devices()[:1])
    return root


def settings(root, **fields):
    given = {"eval__features": root / "classifier", "sample__num": NUM}
    return config_of(root / "run", **given | fields)


def test_the_numbers_are_those_of_an_evaluation_that_generates(places):
    lines = []
    one = jax.devices()[:1]
    samples = places / "samples" / "samples.npz"
    found = sample_metrics.measure(settings(places), places / "run", samples, one, lines.append)
    config = settings(places)
    expected = evaluate.evaluate(config, places / "run", None, one, ("generation",))
    assert set(found) == set(expected)
    assert len(found) == 4
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-5), name
    made = files.sha256(samples)
    record = json.loads((places / "run" / "records" / f"samples_{made[:12]}-7.json").read_text())
    generated = json.loads((places / "run" / "records" / "generation-7.json").read_text())
    assert record["file"] == {"path": str(samples), "sha256": made}
    said = json.loads((places / "samples" / "sample.json").read_text())
    assert record["checkpoint_sha256"] == said["checkpoint_sha256"]
    more = {"file", "checkpoint_sha256"}
    assert set(record) - more == set(generated)
    differs = {name for name in set(record) - more if record[name] != generated[name]}
    assert differs <= {"environment", "metrics"}
    (text,) = lines
    assert f"generation: {NUM} samples of step 7, EMA weights, ddpm 3 steps, clipped" in text
    assert f"  samples   {samples} ({made[:12]})" in text


def test_the_command_takes_the_directory_too(places, capsys):
    words = ["--workdir", str(places / "run"), f"--config.eval.features={places / 'classifier'}"]
    assert cli.run(["eval", *words, "--samples", str(places / "samples")]) == 0
    out = capsys.readouterr().out
    assert "eval/classifier_vit_2_distance" in out
    assert "step                       7" in out
    names = [path.name for path in (places / "run" / "records").glob("samples_*")]
    assert len(names) == 1


def test_samples_of_a_checkpoint_that_is_gone_are_measured_and_it_is_said(places, tmp_path):
    shutil.copytree(places / "run", tmp_path / "run")
    (tmp_path / "run" / "manifests" / "7.json").unlink()
    lines = []
    config, samples = settings(places), places / "samples"
    sample_metrics.measure(config, tmp_path / "run", samples, jax.devices()[:1], lines.append)
    assert lines[0].startswith(f"checkpoint 7 of {tmp_path / 'run'} is gone: only")


def test_what_is_no_samples_of_the_run_is_refused(places, tmp_path):
    def refused(samples, run="run", **fields) -> str:
        with pytest.raises(ConfigError) as info:
            sample_metrics.measure(settings(places, **fields), places / run, samples)
        assert "\n" not in str(info.value)
        return str(info.value)

    samples = places / "samples" / "samples.npz"
    assert "is of another run than" in refused(samples, run="other")
    assert "none.npz does not exist: name the samples.npz" in refused(tmp_path / "none.npz")
    (tmp_path / "sample.json").write_text("{}")
    assert "is not finished: start its `pit-jax sample` again" in refused(tmp_path)
    said = reference.read(samples).provenance
    image = np.zeros((NUM, 8, 8, 3), np.uint8)
    file = tmp_path / "x.npz"
    for provenance, images, sentence in (
        (None, image, "x.npz is of another kind: only the samples.npz of `pit-jax sample`"),
        ({"data": "digits"}, image, "x.npz does not say its checkpoint_step: only"),
        (said, image[1:], f"says that it has {NUM} images of 8 × 8, but it has {NUM - 1} of"),
        (said, image[:, :4], "but it has 24 of 4 × 8: sample again"),
    ):
        reference.write_images(file, [images], images.shape, provenance)
        assert sentence in refused(file)
    np.savez(file, mu=np.zeros(3), sigma=np.eye(3))
    assert "x.npz is of another kind" in refused(file)
    assert f"the {NUM} images of {samples} are too few for 30 neighbours" in refused(
        samples, eval__neighbourhood=30
    )
    assert "config.eval.features is empty" in refused(samples, eval__features="")


def test_wrong_words_are_one_line(places, capsys):
    words = ["eval", "--workdir", str(places / "run"), "--samples", "x.npz"]
    assert cli.run([*words, "--step", "7"]) == 2
    assert "--samples are of one checkpoint: leave --step and" in capsys.readouterr().err
    assert cli.run([*words[:2], str(places / "classifier"), *words[3:]]) == 2
    assert "was trained by task 'classification', which makes no" in capsys.readouterr().err
