"""The studies in experiments/: each resolves at both scales and says what it is about."""

import re
from pathlib import Path

import pytest

from pit_jax import configfile
from pit_jax.errors import ConfigError
from pit_jax.study import points

FOLDER = Path(__file__).parent.parent.parent / "experiments"
STUDIES = (
    "pixels_vs_patches",
    "trend_fixed_length",
    "trend_fixed_input",
    "position_embedding",
    "pixel_permutation",
    "attention_window",
    "mae_pretraining",
    "latent_diffusion",
    "locality_spectrum",
)
# What diffusion at paper scale needs and nobody has here: it is refused without, which
# test_points.py shows.
MEASURED = ["--config.eval.features=inception.pth", "--config.eval.reference=reference.npz"]
MEASURED += ["--config.autoencoder.weights=vae.safetensors"]


def read(name: str, scale: str) -> tuple[configfile.PythonFile, list[points.Point]]:
    words = MEASURED if (name, scale) == ("latent_diffusion", "paper") else []
    file = configfile.PythonFile(f"{FOLDER / name}.py:{scale}")
    return file, points.build(file, file.call("sweep"), words, "runs")


@pytest.mark.parametrize("scale", ["tiny", "paper"])
@pytest.mark.parametrize("name", STUDIES)
def test_every_point_of_a_study_resolves(name, scale):
    _, found = read(name, scale)
    points.check_evaluations(found)
    assert len({point.label for point in found}) == len(found) > 1
    data = {point.config.data.name for point in found}
    assert (data == {"digits"}) == (scale == "tiny")


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_says_what_it_asks_and_how(name):
    text = (FOLDER / f"{name}.py").read_text().split('"""')[1]
    for words in (r"Question: ", r"What\s+varies:\s", r"`tiny`: ", r"`paper`: "):
        assert re.search(words, text), words
    for scale in ("tiny", "paper"):
        assert f"pit-jax sweep experiments/{name}.py:{scale} --workdir " in text
    assert re.search(r"chip-hours|chip's peak", text)


@pytest.mark.parametrize("name", STUDIES)
def test_published_numbers_are_those_of_points(name):
    file, found = read(name, "paper")
    labels = {point.label for point in found}
    small = " ".join(point.label for point in read(name, "tiny")[1])
    for number in file.module.PUBLISHED:
        assert number["label"] in labels
        assert number["label"] not in small, "digits would stand beside the paper's numbers"
        assert 0 < number["value"] < (1 if "accuracy" in number["metric"] else 10)


def test_an_unknown_scale_is_one_line():
    with pytest.raises(ConfigError, match="unknown scale 'huge': write one of tiny, paper"):
        read("attention_window", "huge")
