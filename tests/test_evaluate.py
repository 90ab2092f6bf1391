"""`pit-jax eval` of generated images, with a classifier's run as the network."""

import json

import pytest

from pit_jax import evaluate, files, validation
from pit_jax.errors import ConfigError

from .saved_runs import config_of, diffusion, save_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "run"
    save_run(diffusion(), path)
    return path


def test_eval_measures_the_samples_by_a_classifier_of_ours(run, tiny, tmp_path):
    """With a classifier's run as the network, by the way that `pit-jax eval` goes."""
    tiny.model.patch = 2
    save_run(validation.resolve(tiny.copy_and_resolve_references()), tmp_path / "classifier", 3)
    config = config_of(run, eval__features=tmp_path / "classifier", sample__num=40)
    lines: list[str] = []
    found = evaluate.evaluate(config, run, which=("samples", "generation"), say=lines.append)
    name = "eval/classifier_vit_2"
    wanted = {f"{name}_distance", f"{name}_precision", f"{name}_recall"}
    assert set(found) == {"step"} | wanted
    assert found[f"{name}_distance"] > 0
    assert (run / "pictures" / "samples-7.png").exists()
    record = json.loads((run / "records" / "generation-7.json").read_text())
    assert record["metrics"][f"{name.removeprefix('eval/')}_distance"] == found[f"{name}_distance"]
    manifest = tmp_path / "classifier" / "manifests" / "3.json"
    assert record["features"]["sha256"] == files.sha256(manifest)
    assert "generation: 40 samples of step 7, EMA weights" in lines[0]
    assert record["dtype"] == "float32"
    assert lines[-1] == "step 7 in float32"
    config.eval.features = str(run)
    with pytest.raises(ConfigError, match="was trained by task 'diffusion': images are compared"):
        evaluate.evaluate(config, run, which=("generation",))
    config.eval.features = ""
    assert set(evaluate.evaluate(config, run)) >= {"eval/loss"}
