"""Where does PiT stand among earlier answers to how much locality vision needs?

    pit-jax sweep experiments/locality_spectrum.py:tiny --workdir runs/spectrum
    python -m experiments.locality_spectrum runs/spectrum
    pit-jax compare runs/spectrum --metric eval/linear_accuracy
    pit-jax sweep experiments/locality_spectrum.py:paper --workdir gs://bucket/spectrum
    python -m experiments.locality_spectrum gs://bucket/spectrum --scale paper

Question: on the same images, from features that are local by hand to models that are told
nothing of places: dense SIFT and HOG under a linear classifier, a ConvNet, ViT on patches, a
Perceiver, PiT; and what is left without places at all, the same ConvNet with 1×1 filters.
iGPT learns without labels; a linear classifier of its frozen features, which is trained of
every model, makes it comparable. What varies: the model; its learning rate with it.

The sweep trains the neural ones. The second command measures the hand-made features, which
are no runs of the trainer, on the data of the sweep's scale (`--scale` where there is no
sweep yet), writes <workdir>/handmade.json and prints everything in one table. What is there
already is not measured again, but for other images; a file of another scale is refused.

`tiny`: the 8×8 digits, three seeds. All have the recipe, batches and steps of
configs/digits.py, and about 0.2 million parameters, but ConvNet 1×1, the same net with a
ninth of the weights in each filter. 20 minutes on two CPU cores, two more for the features.
Nothing is published at this size.
`rates`: what the learning rates of the four new models were chosen by, in 15 more minutes:
1e-3, 3e-3 and 1e-2 with a seed of its own, trained on 1150 of the training digits and
validated on the other 287; no test image was looked at. The best accuracy counts (of iGPT
the linear one), of equals the lower loss. PiT's and ViT's rate is their config's. One seed and
287 images cannot tell 3e-3 from 1e-3 where both are near.

    python -m experiments.locality_spectrum runs/held-out --hold-out
    pit-jax sweep experiments/locality_spectrum.py:rates --workdir runs/rates \\
        --config.data.dir=runs/held-out

`paper`: CIFAR-100 with the recipe of configs/cifar100.py, 2400 epochs, one seed. Sizes and
rates of all but PiT and ViT are this project's choice, and not tried yet: about PiT-T's 5.6
million parameters (ConvNet 2.8, its 1×1 twin 0.4, Perceiver 4.7). iGPT sees crops and flips
alone, whose colours are real ones.

In v5e chip-hours at 40 % of the chip's peak, beside what is published:

    point          chip-hours   published   how sure
    PiT-T                24     85.1 %      read in several accounts; CIFAR-100
    ViT-T/2               3.9   83.6 %      read in several accounts; CIFAR-100
    ViT-T/4               0.86
    ViT-T/8               0.22
    ConvNet 3×3           7.2
    ConvNet 1×1           0.89
    Perceiver             3.9
    iGPT                 26
    all 8 points         67
"""

import argparse
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pit_jax.configfile import read
from pit_jax.errors import ConfigError, PitError
from pit_jax.study.space import grid, scale_of, seeds

CONFIGS = Path(__file__).parent.parent / "configs"
SEVERAL = "read in several accounts; CIFAR-100"
PUBLISHED = [
    {"label": "PiT-T", "metric": "eval/accuracy", "value": 0.851, "note": SEVERAL},
    {"label": "ViT-T/2", "metric": "eval/accuracy", "value": 0.836, "note": SEVERAL},
]
SCALES = ("tiny", "paper")
RATES = (1e-3, 3e-3, 1e-2)
OTHER_SEED = 9  # the rates are chosen with
VALIDATION = 287  # of the 1437 training digits


def get_config(scale="tiny"):
    base = {"tiny": "digits.py:pit", "paper": "cifar100.py:pit-t", "rates": "digits.py:pit"}
    c = read(str(CONFIGS / scale_of(scale, base)))
    c.eval.update(every="50%", what=("accuracy", "linear"))
    return c


def sweep(scale="tiny"):
    points = {"tiny": lambda: grid(tiny(), seeds(3)), "paper": paper, "rates": rates}
    return scale_of(scale, points)()


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
        },
        {
            "label": "iGPT",
            "task": "autoregressive",
            "model.name": "igpt",
            "autoregressive.levels": 16,
            "eval.what": ("likelihood", "linear"),
        },
    ]


def rates():
    """The new models of `tiny` at every rate, on training digits, validated on others."""
    new = [point for point in tiny() if "model.name" in point]
    data = {"data.name": "folder", "data.eval_split": "validation", "train.steps": 674}
    return [
        {
            **point,
            **data,
            "label": f"{point['label']}, {rate:g}",
            "optim.lr": rate,
            "train.seed": OTHER_SEED,
        }
        for point in new
        for rate in RATES
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


def hold_out(folder: str) -> None:
    """Writes the training digits as <folder>/train and <folder>/validation, for `rates`.

    Raises:
      StorageError: if it cannot be written.
    """
    from PIL import Image

    from pit_jax import files
    from pit_jax.data import sources

    source = sources.load(get_config("tiny").data, "train")
    for number in range(len(source)):
        image, label = source[number]
        part = "validation" if number < VALIDATION else "train"
        encoded = io.BytesIO()
        Image.fromarray(image[..., 0]).save(encoded, "png")
        files.write(f"{folder}/{part}/{label}/{number:04d}.png", encoded.getvalue())


def scale_there(workdir: str) -> str:
    """The scale of the sweep in a directory, "" where there is none.

    Raises:
      ConfigError: if it is another sweep.
    """
    from pit_jax.study.sweepdir import SweepDir

    record = SweepDir(workdir).read()
    if not record:
        return ""
    file, argument = record.get("file"), record.get("argument") or ""
    scale = argument or "tiny"
    study = os.path.basename(__file__)
    if file != study or scale not in SCALES:
        held = ":".join(filter(None, (file, argument)))
        raise ConfigError(
            f"{workdir} holds the sweep of {held}: name that of {study}:tiny or :paper"
        )
    return scale


def handmade_rows(workdir: str, scale: str) -> list[dict[str, Any]]:
    """What <workdir>/handmade.json holds, measured first where it is not there.

    Args:
      scale: "tiny" or "paper"; "" for that of the sweep, or "tiny" without one.

    Raises:
      ConfigError: if the file, or the sweep beside it, is of another scale.
    """
    from pit_jax.study import handmade

    there = scale_there(workdir)
    held = handmade.content(workdir)
    asked = scale or there or "tiny"
    for what, found in (("a sweep", there), (handmade.FILE, held["scale"] if held else "")):
        if found not in ("", asked):
            raise ConfigError(
                f"{workdir} holds {what} of scale {found!r} and not {asked!r}: write"
                f" --scale {found}, or name another directory"
            )
    data = get_config(asked).data
    if held and held["data"] == handmade.used(data):
        return held["rows"]
    if held:
        print(f"{handmade.FILE} is of other images: measured again", file=sys.stderr)
    rows = [handmade.measure(label, data) for label in handmade.FEATURES]
    handmade.write(workdir, asked, data, rows)
    return rows


def run_rows(workdir: str) -> list[list[str]]:
    """A row of the table for each model that was trained, the means of its seeds."""
    from pit_jax.rundir import RunDir
    from pit_jax.study import collect

    if not any(RunDir(workdir).path.glob("*/config.json")):
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
        rows.append(_row(model, *accuracies, len(runs), _count(size)))
    return rows


def _row(
    label: str, accuracy: float | None, linear: float | None, count: int, size: str
) -> list[str]:
    percent = ["–" if x is None else f"{100 * x:.1f}" for x in (accuracy, linear)]
    return [label, *percent, str(count), size]


def _count(number: float | None) -> str:
    return f"{number:,.0f}" if isinstance(number, int | float) else "–"


def main(workdir: str, scale: str) -> None:
    """Measures the hand-made features and prints them beside the runs in `workdir`."""
    from pit_jax.study import tables

    rows = [
        _row(row["label"], None, row["value"], 1, _count(row.get("features")))
        for row in handmade_rows(workdir, scale)
    ]
    heads = ["test accuracy, %", "trained", "linear", "seeds", "parameters, features"]
    tables.show("What each makes of the same images", heads, rows + run_rows(workdir))
    print("linear: a linear classifier of the frozen features, iGPT's first sight of labels")


if __name__ == "__main__":
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("workdir", help="of the sweep, local or gs://")
    words.add_argument("--scale", choices=SCALES, default="", help="without a sweep there")
    words.add_argument(
        "--hold-out", action="store_true", help="write the digits for :rates there instead"
    )
    given = words.parse_args()
    try:
        hold_out(given.workdir) if given.hold_out else main(given.workdir, given.scale)
    except PitError as error:
        print(f"locality_spectrum: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
