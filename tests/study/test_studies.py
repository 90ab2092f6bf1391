"""The studies in experiments/: each resolves at both scales and says what it is about."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from pit_jax import configfile
from pit_jax.errors import ConfigError
from pit_jax.study import points, sweepdir

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
SCALES = [(name, scale) for name in STUDIES for scale in ("tiny", "paper")]
SCALES += [("pixels_vs_patches", "depth"), ("locality_spectrum", "rates"), ("demo", "")]
# Studies of which a result is committed, and where.
RESULTS = {"demo": "demo.json"} | {
    name: f"studies/{name}.json"
    for name in ("pixels_vs_patches", "position_embedding", "pixel_permutation", "attention_window")
}
# What a point needs and nobody has here: it is refused without, which test_points.py shows.
WORDS = {
    ("latent_diffusion", "paper"): [
        "--config.eval.features=inception.pth",
        "--config.eval.reference=reference.npz",
        "--config.autoencoder.weights=vae.safetensors",
    ],
    ("locality_spectrum", "rates"): ["--config.data.dir=digits"],
}
METRICS = {"": "accuracy", "FID": "fid", "sFID": "sfid", "IS": "inception_score"}
METRICS |= {"precision": "precision", "recall": "recall"}


def read(name: str, scale: str) -> tuple[configfile.PythonFile, list[points.Point]]:
    file = configfile.PythonFile(f"{FOLDER / name}.py" + (f":{scale}" if scale else ""))
    words = WORDS.get((name, scale), [])
    return file, points.build(file, file.call("sweep"), words, "runs")


def on_chips(name: str) -> list[points.Point]:
    """The points that a study's table of costs lists."""
    return read(name, "paper")[1] + (read(name, "depth")[1] if name == "pixels_vs_patches" else [])


def docstring(name: str) -> str:
    return (FOLDER / f"{name}.py").read_text().split('"""')[1]


@dataclasses.dataclass
class Table:
    """What stands in the docstring under "point  chip-hours  published  how sure"."""

    hours: dict[str, float]
    published: set[tuple[str, str, float, str]]  # label, metric, value, note


def table(name: str) -> Table:
    lines = iter(docstring(name).splitlines())
    next(line for line in lines if re.match(r" {4}point +chip-hours", line))
    found, label = Table({}, set()), ""
    for line in lines:
        if not line.strip():
            return found
        cells = re.split(r" {2,}", line.strip())
        if line[4] != " ":
            label, hours, *cells = cells
            found.hours[label] = float(hours.replace(" ", ""))
        if cells:
            figure, note = cells
            metric, number, unit = re.fullmatch(r"(\D*?) ?([\d.]+)( .)?", figure).groups()
            metric = "rmse" if unit == " m" else METRICS[metric]
            value = float(number) / (100 if unit == " %" else 1)
            found.published.add((label, f"eval/{metric}", round(value, 6), note))
    return found


@pytest.mark.parametrize(("name", "scale"), SCALES)
def test_every_point_of_a_study_resolves(name, scale):
    _, found = read(name, scale)
    points.check_evaluations(found)
    assert len({point.label for point in found}) == len(found) > 1
    data = {point.config.data.name for point in found}
    assert (data == {"digits"}) == (scale in ("tiny", ""))


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_says_what_it_asks_how_and_what_is_published(name):
    text = docstring(name)
    for scale in ("tiny", "paper"):
        assert f"pit-jax sweep experiments/{name}.py:{scale} --workdir " in text
    for words in (r"Question: ", r"What\s+varies:\s", r"\n`tiny`: ", r"\n`paper`: "):
        assert re.search(words, text), words
    tiny, paper = re.split(r"\n`paper`: ", text.partition("\n`tiny`: ")[2])
    assert re.search(r"\d+ minutes\s+on\s+two\s+CPU\s+cores", tiny)
    assert re.search(r"v5e\s+chip-hours", paper)
    nothing = "nothing is published" in text if name == "attention_window" else False
    assert nothing or table(name).published
    assert nothing or re.search(r"Nothing\s+is\s+published\s+at\s+this\s+size", tiny)


def test_the_demo_says_what_it_asks_and_has_one_scale():
    text = docstring("demo")
    for words in (r"Question: ", r"What varies: ", r"one scale: 3 minutes on two CPU cores"):
        assert re.search(words, text), words
    assert "pit-jax sweep experiments/demo.py --workdir " in text
    assert re.search(r"Nothing is published at this size", text)
    assert read("demo", "")[0].module.PUBLISHED == []


@pytest.mark.parametrize("name", STUDIES)
def test_published_numbers_are_those_of_the_docstring_and_of_points(name):
    file, _ = read(name, "paper")
    numbers = sweepdir.published(file)
    told = {(n["label"], n["metric"], round(n["value"], 6), n["note"]) for n in numbers}
    assert told == table(name).published
    assert len(told) == len(numbers)
    for label, _, _, note in told:
        assert re.match(r"read in (several accounts|one account)|assumed, ", note), label
    assert {label for label, *_ in told} <= {point.label for point in on_chips(name)}
    small = " ".join(point.label for point in read(name, "tiny")[1])
    for label, *_ in told:
        assert label not in small, "digits would stand beside the paper's numbers"


@pytest.mark.parametrize("name", STUDIES)
def test_chip_hours_are_those_of_the_counted_operations(name):
    """At 40 % of 197e12 FLOP/s, to 10 %."""
    from pit_jax import tasks
    from pit_jax.data import sources
    from pit_jax.lengths import total_steps

    def hours(config) -> float:
        examples = sources.num_examples(config.data, config.data.split) or 0
        images = total_steps(config.train, examples) * config.train.batch_size
        return tasks.build(config).flops().training * images / (0.4 * 197e12) / 3600

    wanted = {point.label: hours(point.config) for point in on_chips(name)}
    paper = [point.label for point in read(name, "paper")[1]]
    everything = f"all {len(paper)} points"
    wanted[everything] = sum(wanted[label] for label in paper)
    told = table(name).hours
    assert everything in told
    for label, value in told.items():
        assert value == pytest.approx(wanted[label], rel=0.1), label
    unlisted = [wanted[label] for label in paper if label not in told]
    listed = [wanted[label] for label in paper if label in told]
    assert all(any(one == pytest.approx(x, rel=0.01) for x in listed) for one in unlisted)


@pytest.mark.parametrize("name", RESULTS)
def test_minutes_at_tiny_scale_are_what_committed_runs_took(name):
    """Two at a time, or one on both cores; scaled to the points that there are now."""
    groups = json.loads((FOLDER / "results" / RESULTS[name]).read_text())["groups"]
    took = [run["device_hours"] for group in groups for run in group["runs"]]
    points_now = len(read(name, "tiny" if name != "demo" else "")[1])
    minutes = sum(took) / len(took) * points_now * 60 / 2
    told = int(re.search(r"(\d+) minutes\s+on\s+two\s+CPU\s+cores", docstring(name))[1])
    assert minutes / 1.3 < told < minutes * 1.5  # starting and comparing are not in it


@pytest.mark.parametrize("name", [name for name in RESULTS if name != "demo"])
def test_committed_results_are_of_points_that_the_study_still_has(name):
    groups = json.loads((FOLDER / "results" / RESULTS[name]).read_text())["groups"]
    ran = {Path(run["directory"]).name[-8:] for group in groups for run in group["runs"]}
    assert ran
    # By a version that knew no fields with another value for old runs; labels may read otherwise.
    found = [(points.without_later(p.config), p.swept, p.needs) for p in read(name, "tiny")[1]]
    assert ran <= {points.identity(*known)[:8] for known in found}


def test_permutations_are_of_the_same_doses_for_every_patch():
    _, found = read("pixel_permutation", "tiny")
    doses: dict[int, set] = {}
    for point in found:
        data, seed = point.config.data.permutation, point.config.train.seed
        assert data.seed == seed
        doses.setdefault(point.config.model.patch, set()).add((data.swaps, data.distance, seed))
    assert doses[2] == doses[4]
    assert doses[1] < doses[4]
    assert len(found) == sum(map(len, doses.values())) == 48


def test_small_diffusion_is_measured_by_the_classifier_that_it_trains():
    _, found = read("latent_diffusion", "tiny")
    first, *others = found
    assert (first.label, first.config.task) == ("classifier", "classification")
    assert {point.config.task for point in others} == {"diffusion"}
    assert {point.config.model.patch for point in others} == {1, 2}
    for point in others:
        assert point.needs == {"eval.features": first}
        assert point.config.eval.features.endswith(first.directory)


def test_rates_are_chosen_on_images_that_are_not_tested_on():
    """With the same nets as the study has, at rates of which it then takes one."""
    _, found = read("locality_spectrum", "rates")
    study = read("locality_spectrum", "tiny")[1]
    seeds = {point.config.train.seed for point in study}
    nets = {point.label.partition(",")[0]: point.config for point in study}
    tried: dict[str, set] = {}
    for point in found:
        config, label = point.config, point.label.partition(",")[0]
        assert (config.data.name, config.data.eval_split) == ("folder", "validation")
        assert config.train.seed not in seeds
        for group in ("model", "convnet", "perceiver", "autoregressive"):
            assert config[group] == nets[label][group]
        tried.setdefault(label, set()).add(config.optim.lr)
    assert set(tried) == {"ConvNet 3×3", "ConvNet 1×1", "Perceiver", "iGPT"}
    assert all(rates == {1e-3, 3e-3, 1e-2} for rates in tried.values())
    assert all(nets[label].optim.lr in rates for label, rates in tried.items())


def test_an_unknown_scale_is_one_line():
    with pytest.raises(ConfigError, match="unknown scale 'huge': write one of tiny, paper"):
        read("attention_window", "huge")
