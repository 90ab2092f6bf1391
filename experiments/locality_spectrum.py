"""Where does PiT stand among earlier answers to how much locality vision needs?

    pit-jax sweep experiments/locality_spectrum.py:tiny --workdir runs/spectrum
    python -m experiments.locality_spectrum runs/spectrum
    pit-jax compare runs/spectrum --metric eval/linear_accuracy
    pit-jax sweep experiments/locality_spectrum.py:paper --workdir gs://bucket/spectrum

Question: on the same images, from features that are local by hand to models that are told
nothing of places: dense SIFT and HOG under a linear classifier, a ConvNet, ViT on patches, a
Perceiver, PiT; and what is left without places at all, the same ConvNet with 1×1 filters.
iGPT learns without labels; a linear classifier of its frozen features, which is trained of
every model, makes it comparable. What varies: the model; its learning rate with it.

The first command trains the neural ones. The second measures the hand-made features, which
are no runs of the trainer, writes <workdir>/handmade.json and prints everything in one table.

`tiny`: the 8×8 digits, three seeds. All have the recipe, batches and steps of
configs/digits.py, and about 0.2 million parameters, but ConvNet 1×1, the same net with a
ninth of the weights in each filter. Of the rates 1e-3, 3e-3 and 1e-2 each new model has the
best of one other seed, on the test images; PiT's and ViT's is their config's. Twenty minutes
on two CPU cores, two more for the features. Nothing is published at this size.
`paper`: CIFAR-100 with the recipe of configs/cifar100.py, 2400 epochs, one seed. Sizes and
rates of all but PiT and ViT are this project's choice: about PiT-T's 5.6 million parameters
(ConvNet 2.8, its 1×1 twin 0.4, Perceiver 4.7). iGPT sees crops and flips alone, whose colours
are real ones. At 40 % of a v5e chip's peak: PiT 24 and iGPT 26 chip-hours, ConvNet 7, ViT/2
and Perceiver 4 each, the others 2 together.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pit_jax.configfile import read
from pit_jax.errors import ConfigError, PitError
from pit_jax.study.space import grid, scale_of, seeds

CONFIGS = Path(__file__).parent.parent / "configs"
PUBLISHED = [
    {"label": "PiT-T", "metric": "eval/accuracy", "value": 0.851, "note": "CIFAR-100"},
    {"label": "ViT-T/2", "metric": "eval/accuracy", "value": 0.836, "note": "CIFAR-100"},
]


def get_config(scale="tiny"):
    base = {"tiny": "digits.py:pit", "paper": "cifar100.py:pit-t"}
    c = read(str(CONFIGS / scale_of(scale, base)))
    c.eval.update(every="50%", what=("accuracy", "linear"))
    return c


def sweep(scale="tiny"):
    return scale_of(scale, {"tiny": lambda: grid(tiny(), seeds(3)), "paper": paper})()


def tiny():
    convnet = {
        "model.name": "convnet",
        "convnet.channels": (32, 64),
        "convnet.layers": (2, 2),
    }
    return [
        {"label": "PiT"},
        {"label": "ViT/2", "model.patch": 2},
        {"label": "ViT/4", "model.patch": 4},
        {"label": "ConvNet 3×3", **convnet},
        {"label": "ConvNet 1×1", **convnet, "convnet.kernel": 1, "optim.lr": 1e-2},
        {
            "label": "Perceiver",
            "model.name": "perceiver",
            "model.depth": 1,
            "perceiver.latents": 32,
            "perceiver.rounds": 2,
            "optim.lr": 1e-3,
        },
        {
            "label": "iGPT",
            "task": "autoregressive",
            "model.name": "igpt",
            "autoregressive.levels": 16,
            "eval.what": ("likelihood", "linear"),
        },
    ]


def paper():
    convnet = {
        "model.name": "convnet",
        "model.drop_path": 0.0,
        "convnet.channels": (64, 128, 256),
        "convnet.layers": (2, 2, 2),
        "optim.lr": 1e-3,
    }
    return [
        {"label": "PiT-T"},
        {"label": "ViT-T/2", "model.patch": 2},
        {"label": "ViT-T/4", "model.patch": 4},
        {"label": "ViT-T/8", "model.patch": 8},
        {"label": "ConvNet 3×3", **convnet},
        {"label": "ConvNet 1×1", **convnet, "convnet.kernel": 1},
        {
            "label": "Perceiver",
            "model.name": "perceiver",
            "model.drop_path": 0.0,
            "model.depth": 4,
            "perceiver.latents": 128,
            "perceiver.rounds": 4,
            "optim.lr": 1e-3,
        },
        {
            "label": "iGPT",
            "task": "autoregressive",
            "model.name": "igpt",
            "autoregressive.levels": 8,
            "data.augmentation.grayscale": 0.0,
            "data.augmentation.jitter": (0.0, 0.0, 0.0, 0.0),
            "eval.what": ("likelihood", "linear"),
            "optim.lr": 1e-3,
        },
    ]


# Beside the trainer ----------------------------------------------------------------------------


def handmade_rows(workdir: Path, scale: str) -> list[dict[str, Any]]:
    """What <workdir>/handmade.json holds, measured first where it is not there."""
    from pit_jax import files
    from pit_jax.study import handmade

    path = workdir / "handmade.json"
    if path.exists():
        try:
            return json.loads(path.read_text())["rows"]
        except (ValueError, KeyError, TypeError):
            raise ConfigError(f"{path} is not what this wrote: remove it") from None
    data = get_config(scale).data
    rows = [handmade.measure(label, data) for label in handmade.FEATURES]
    workdir.mkdir(parents=True, exist_ok=True)
    files.write(path, (json.dumps({"scale": scale, "rows": rows}, indent=2) + "\n").encode())
    return rows


def run_rows(workdir: Path) -> list[list[str]]:
    """A row of the table for each model that was trained, the means of its seeds."""
    from pit_jax.study import collect

    if not any(workdir.glob("*/config.json")):
        return []
    found = collect.collect([workdir])
    if found.others:
        (name, state), count = found.others[0], len(found.others)
        print(f"not counted: {count} of the runs, {name} ({state}) the first", file=sys.stderr)
    rows = []
    for model in dict.fromkeys(run.model for run in found.runs):
        runs = [run for run in found.runs if run.model == model]

        def mean(metric: str, runs: Sequence[Any] = runs) -> float | None:
            values = [run.result[metric] for run in runs if metric in run.result]
            return sum(values) / len(values) if values else None

        size = runs[0].cost("parameters")
        accuracies = (mean("eval/accuracy"), mean("eval/linear_accuracy"))
        rows.append(_row(model, *accuracies, len(runs), f"{size:,.0f}" if size else "–"))
    return rows


def _row(
    label: str, accuracy: float | None, linear: float | None, count: int, size: str
) -> list[str]:
    percent = ["–" if x is None else f"{100 * x:.1f}" for x in (accuracy, linear)]
    return [label, *percent, str(count), size]


def main(workdir: Path, scale: str) -> None:
    """Measures the hand-made features and prints them beside the runs in `workdir`."""
    from pit_jax.study import tables

    rows = [
        _row(row["label"], None, row["value"], 1, f"{row['features']:,}")
        for row in handmade_rows(workdir, scale)
    ]
    heads = ["test accuracy, %", "trained", "linear", "seeds", "parameters, features"]
    tables.show("What each makes of the same images", heads, rows + run_rows(workdir))
    print("linear: a linear classifier of the frozen features; iGPT never saw a label before it")


if __name__ == "__main__":
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("workdir", type=Path, help="of the sweep")
    words.add_argument("--scale", choices=("tiny", "paper"), default="tiny")
    given = words.parse_args()
    try:
        main(given.workdir, given.scale)
    except PitError as error:
        print(f"locality_spectrum: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
