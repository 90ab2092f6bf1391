"""A run whose samples could not be measured: refused before its directory is made."""

import jax
import numpy as np
import pytest

from pit_jax import rundir, validation
from pit_jax.errors import ConfigError, PitError
from pit_jax.evals import generation, reference
from pit_jax.train import train

from ..saved_runs import diffusion, save_run


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A classifier's run, and one of another task; files to compare with."""
    root = tmp_path_factory.mktemp("places")
    small = diffusion()
    save_run(small, root / "diffusion")
    small.task, small.model.name, small.model.patch = "classification", "vit", 2
    small.optim.ema, small.eval.what = 0.0, ("accuracy",)
    save_run(validation.resolve(small), root / "classifier")
    np.savez(root / "statistics.npz", mu=np.zeros(4), sigma=np.eye(4))
    for name, shape in (("few", (3, 8, 8, 3)), ("large", (9, 16, 16, 3)), ("fits", (9, 8, 8, 3))):
        reference.write_images(root / f"{name}.npz", [np.zeros(shape, np.uint8)], shape)
    (root / "cut.npz").write_bytes((root / "fits.npz").read_bytes()[:-99])
    return root


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"features": "none.pth"}, "Inception weights .*none.pth: No such file"),
        ({"features": "diffusion"}, "was trained by task 'diffusion': images are compared by"),
        ({"features": "few.npz"}, "few.npz is no intact PyTorch file"),
        ({"reference": "none.npz"}, "reference .*none.npz: No such file"),
        ({"reference": "cut.npz"}, "cut.npz is no intact .npz file"),
        ({"reference": "statistics.npz"}, "its statistics are not said to be of .*classifier"),
        ({"reference": "few.npz"}, "3 images or features, too few for config.eval.neighbourhood=3"),
        ({"reference": "large.npz"}, "large.npz are 16 × 16 × 3, but .*classifier classifies 8 ×"),
    ],
)
def test_what_could_not_be_measured_does_not_begin(places, tmp_path, fields, sentence):
    given = {"features": "classifier"} | fields
    config = diffusion(
        eval__what=("loss", "generation"),
        **{f"eval__{name}": str(places / value) for name, value in given.items()},
    )
    with pytest.raises(PitError, match=sentence) as info:
        train(config, tmp_path / "run", devices=jax.devices()[:1])
    assert "\n" not in str(info.value)
    assert not (tmp_path / "run").exists()


def test_too_few_samples_or_images_of_another_size_do_not_begin(places, tmp_path):
    given = {"eval__what": ("generation",), "eval__features": str(places / "classifier")}
    for fields, sentence in (
        ({"sample__num": 3}, "config.sample.num=3 images are too few for 3 neighbours"),
        ({"data__image_size": 4}, "generated images are 4 × 4 × 1, but .* classifies 8 × 8 × 1"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            train(diffusion(**given | fields), tmp_path / "run", devices=jax.devices()[:1])
    assert not (tmp_path / "run").exists()


def test_what_only_some_processes_have_does_not_begin(places, tmp_path, monkeypatch):
    """As one of two processes, of which the other says what `said` makes of this one's word."""
    fits = {"eval__what": ("generation",), "eval__features": str(places / "classifier")}
    for said, sentence in (
        (lambda mine: not mine, r"features=.*classifier is not there for process 1: name a place"),
        (lambda mine: True, "process 1 cannot measure what would be generated"),
    ):
        monkeypatch.setattr(generation.leader, "on_all", lambda mine, s=said: [mine, s(mine)])
        fields = fits | {"eval__reference": str(places / "fits.npz")}
        with pytest.raises(ConfigError, match=sentence):
            train(diffusion(**fields), tmp_path / "run", devices=jax.devices()[:1])
    assert not (tmp_path / "run").exists()


def test_nothing_is_looked_for_where_nothing_is_to_be_measured(places, tmp_path):
    generation.check_start(
        diffusion(eval__features="none.pth"), None
    )  # "generation" is not in eval.what
    fits = {"eval__features": str(places / "classifier"), "eval__reference": "none.npz"}
    run = rundir.RunDir(tmp_path / "run")
    save_run(diffusion(train__steps=7), run.path)
    again = diffusion(train__steps=7, eval__what=("generation",), **fits)
    with pytest.raises(ConfigError, match=r"none.npz: No such file"):
        train(again, run.path, devices=jax.devices()[:1])
    run.write_status(state="done")  # what is done prints its result
    assert train(again, run.path, devices=jax.devices()[:1]).step == 7
