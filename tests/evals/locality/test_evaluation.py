"""`pit-jax eval --locality` on runs of every kind: what is measured, and what is left out."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image

from pit_jax import cli, evaluate, rundir, tasks, validation
from pit_jax.config import assign, base
from pit_jax.errors import NotOffered
from pit_jax.evals.context import Context
from pit_jax.evals.locality import evaluation, held_out, report

from ...saved_runs import diffusion, save_run


def measure(path):
    """The metrics, and what is said."""
    config = rundir.RunDir(path).config()
    config.eval.locality_images = 20
    lines: list[str] = []
    options = {"which": ("locality",), "devices": jax.devices()[:1], "say": lines.append}
    found = evaluate.evaluate(config, path, **options)
    text, dtype = lines
    assert dtype == f"step {found['step']} in float32"
    return {k.removeprefix("eval/locality/"): v for k, v in found.items()}, text


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A Pixel Transformer with random weights, its first layer windowed."""
    c = base()
    c.model.update(width=16, depth=2, heads=2, window=(1.0,), window_layers=1)
    c.data.update(name="digits", image_size=8, channels=1, num_classes=10)
    c.train.update(batch_size=32, steps=10)
    path = tmp_path_factory.mktemp("run") / "run"
    save_run(validation.resolve(c), path, 3)
    return path


@pytest.fixture(scope="module")
def measured(classifier):
    return measure(classifier)


def test_a_classifier_has_all_four_measures(classifier, measured):
    found, text = measured
    assert set(found) == {
        "step",
        *("attention_distance", "attention_distance_1", "attention_distance_2"),
        *("position_r2", "position_similarity_near", "position_similarity_far"),
        *("receptive_radius", "receptive_distance", "receptive_own"),
        *("accuracy_unchanged", "accuracy_shifted_1", "accuracy_shifted_2"),
        *(f"accuracy_swapped_{share}" for share in (25, 50, 100)),
        *(f"accuracy_covered_{share}" for share in (25, 50, 75)),
    }
    assert found["attention_distance_1"] < 1 < found["attention_distance_2"]
    layers = found["attention_distance_1"], found["attention_distance_2"]
    assert found["attention_distance"] == pytest.approx(np.mean(layers))
    assert all(0 <= x <= 1 for name, x in found.items() if name.startswith("accuracy"))
    assert max(map(len, text.splitlines())) <= 80
    assert "not measured" not in text
    assert "where the loss reads [CLS] alone, not this token" in text


def test_every_head_and_map_is_recorded_and_drawn(classifier, measured):
    found, _ = measured
    record = json.loads((classifier / "records" / "locality-3.json").read_text())
    assert report.metrics(record) == {k: v for k, v in found.items() if k != "step"}
    heads = np.array(record["attention_distance"]["heads"])
    assert heads.shape == (2, 2)
    assert record["attention_distance"]["images"] == record["receptive_field"]["images"] == 20
    assert record["robustness"]["images"] == 360
    uniform = record["attention_distance"]["uniform"]
    assert uniform[0] < 1 < uniform[1]
    assert np.shape(record["positions"]["maps"]) == (64, 8, 8)
    assert np.sum(record["receptive_field"]["energy"]) == pytest.approx(1)
    names = ("attention-distance", "position-similarity", "receptive-field", "robustness")
    for name in names:
        with Image.open(classifier / "pictures" / f"{name}-3.png") as image:
            assert image.size[0] > 600
            assert len(image.convert("RGB").getcolors(1 << 24)) > 30


def test_pit_jax_eval_measures_the_same_on_a_mesh_that_splits_everything(
    classifier, measured, capsys
):
    """Examples, tokens and heads over two devices each; and what a person sees."""
    words = [f"--config.mesh.{axis}=2" for axis in ("data", "seq", "model")]
    words += ["--locality", "--config.eval.locality_images=20"]
    assert cli.run(["eval", "--workdir", str(classifier), *words]) == 0
    said = capsys.readouterr().out
    assert measured[1].splitlines()[:4] == said.splitlines()[:4]
    assert "eval/locality" not in said
    found = report.metrics(json.loads((classifier / "records" / "locality-3.json").read_text()))
    for name, value in found.items():
        assert value == pytest.approx(measured[0][name], rel=1e-3, abs=2e-3), name


def test_locality_of_no_images_is_refused(classifier, capsys):
    words = ["--locality", "--config.eval.locality_images=0"]
    assert cli.run(["eval", "--workdir", str(classifier), *words]) == 2
    assert "config.eval.locality_images=0 must be at least 1" in capsys.readouterr().err


def test_of_a_diffusion_the_accuracy_is_left_out(tmp_path):
    save_run(diffusion(model__position="sincos2d"), tmp_path / "run")
    found, text = measure(tmp_path / "run")
    assert found["position_r2"] > 0.9
    assert {"attention_distance_2", "receptive_own"} <= set(found)
    assert "[CLS]" not in text
    assert not any(name.startswith("accuracy") for name in found)
    assert "accuracy on changed images: not measured,\n  PiT diffusion names no classes" in text


@pytest.mark.parametrize(
    ("fields", "left", "lines"),
    [
        (
            {"model.name": "perceiver", "model.position": "none", "perceiver.rounds": 1},
            {"accuracy"},
            ("Perceiver has no token for each patch", "there are no position embeddings"),
        ),
        (
            {"model.name": "convnet", "convnet.channels": (4,), "convnet.layers": (1,)},
            {"receptive", "accuracy"},
            ("ConvNet 3×3 has no attention", "ConvNet 3×3 has no position embeddings"),
        ),
        (
            {"task": "autoregressive", "model.name": "igpt", "model.order": "hilbert"},
            {"attention", "position"},
            ("iGPT names no classes", "which has no gradient"),
        ),
    ],
    ids=["perceiver", "convnet", "igpt"],
)
def test_what_does_not_apply_is_left_out_in_a_line(tiny, tmp_path, fields, left, lines):
    for name, value in ({"model.depth": 1} | fields).items():
        assign(tiny, name, value)
    save_run(validation.resolve(tiny), tmp_path / "run")
    found, text = measure(tmp_path / "run")
    assert {name.split("_")[0] for name in found} - {"step"} == left
    for line in lines:
        assert line in text


def test_an_autoencoder_has_no_locality_to_measure(tiny):
    tiny.task = tiny.model.name = "autoencoder"
    tiny.autoencoder.update(channels=(8, 8), groups=4, layers=1, latent=2)
    config = validation.resolve(tiny)
    params = {"encoder": {}, "decoder": {}}
    run = Context(
        config=config,
        task=tasks.build(config),
        steps=SimpleNamespace(shapes=SimpleNamespace(eval_params=params)),
        state=SimpleNamespace(eval_params=params, step=0),
        held_out=SimpleNamespace(batch_size=8),
        training=None,
    )
    reasons = (
        "autoencoder f2c2 has no token for each patch.*no position embeddings.*names no classes"
    )
    with pytest.raises(NotOffered, match=f"no locality to measure: {reasons}"):
        list(evaluation.evaluate(run))


def test_a_sample_of_a_set_is_drawn_once_and_without_repetition():
    class Numbers:
        held = True

        def __len__(self):
            return 50

        def __call__(self, indices, positions):
            return indices

    few = held_out.Sample(Numbers(), 20)
    drawn = few(np.arange(20), np.arange(20))
    assert len(few) == len(set(drawn)) == 20
    assert max(drawn) > 30  # not the first ones
    np.testing.assert_array_equal(drawn, held_out.Sample(Numbers(), 20)(np.arange(20), None))
    assert len(held_out.Sample(Numbers(), 99)) == 50
