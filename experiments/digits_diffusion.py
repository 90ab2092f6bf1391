"""Can a model without any notion of neighbourhood draw digits?

    python -m experiments.digits_diffusion runs/digits-diffusion \\
        --json experiments/results/digits-diffusion.json \\
        --picture experiments/results/digits-diffusion.png

Question: PiT (a token a pixel) and DiT/2 (2×2 patches) learn to generate 8×8 digits by class
under one recipe; how far are a thousand of their samples from the 360 held-out digits? What
varies: the patch. Measured by the features of a classifier that is trained first, on the
training digits: the Fréchet distance of these features, precision and recall. It is not FID,
whose network wants photographs. Beside them stands the floor: the same figures for a thousand
real training digits. Cost: five to fifteen minutes on two CPU cores; what was trained before is
taken as it is. Published: nothing at this size; on 256² latents the paper's PiT-L has FID 4.05
and DiT-L/2 4.16.
"""

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from experiments.trained import seconds, trained
from pit_jax.errors import PitError, Stopped
from pit_jax.parallel import processes

CONFIGS = Path(__file__).parent.parent / "configs"
CLASSIFIER = f"{CONFIGS / 'digits.py'}:vit/2"
CLASSIFIER_WORDS = ["--config.train.epochs=60"]
MODELS = ("pit", "dit/2")
COUNT = 1000  # samples, and real digits of the floor
REAL = "training digits"
METRICS = ("distance", "precision", "recall")
COLUMNS = 6  # digits a class in the picture, of each kind


def load(spec: str, words: list[str]) -> Any:
    from pit_jax import configfile

    return configfile.load(spec, words)


def floor(config: Any, features: Path, workdir: Path) -> tuple[Path, dict[str, float]]:
    """The file that describes the held-out digits, and real training digits held against it."""
    from pit_jax import reference_statistics
    from pit_jax.evals import reference
    from pit_jax.evals.comparison import compare

    held_out, real = workdir / "held-out.npz", workdir / "training.npz"
    reference_statistics.write(config, str(held_out), str(features), split="test")
    reference_statistics.write(config, str(real), str(features), split="train", count=COUNT)
    theirs, ours = (reference.read(path).description for path in (real, held_out))
    found = compare(theirs, ours)
    return held_out, {"distance": found["fid"]} | {n: found[n] for n in METRICS[1:]}


def generate(name: str, workdir: Path, words: list[str], change: list[str]) -> dict[str, Any]:
    """Trains one model, generates with it, and measures."""
    from pit_jax import configfile, evaluate

    run = trained(f"{CONFIGS / 'digits_diffusion.py'}:{name}", [*words, *change], workdir)
    config = configfile.override(load(f"{workdir}/config.json", []), words)
    found = evaluate.evaluate(config, workdir, which=("generation",))
    measured = {n: v for key, v in found.items() for n in METRICS if key.endswith(f"_{n}")}
    return measured | {
        "held_out_loss": run.result["eval/loss"],
        "parameters": run.cost("parameters"),
        "training_seconds": seconds(run),
    }


def draw(workdir: Path, output: Path) -> None:
    """Real digits, PiT's and DiT/2's, a row a class; samples are the first, not the best."""
    import matplotlib

    matplotlib.use("Agg")
    import numpy as np
    from matplotlib import pyplot
    from PIL import Image

    from pit_jax import rundir
    from pit_jax.data import sources
    from pit_jax.evals.reconstruction import grid

    config = load(f"{CONFIGS / 'digits_diffusion.py'}:pit", [])
    source = sources.load(config.data, "test")
    labels = source.labels()
    rows = {
        f"class {c}": np.stack([source[int(i)][0] for i in np.flatnonzero(labels == c)[:COLUMNS]])
        for c in range(config.data.num_classes)
    }
    panels = {"held-out digits": grid(rows)}
    for name in MODELS:
        run = rundir.RunDir(workdir / name.replace("/", "-"))
        picture = run.path / "pictures" / f"samples-{run.rows()[-1]['step']}.png"
        panels["PiT" if name == "pit" else "DiT/2"] = np.asarray(Image.open(str(picture)))
    figure, axes = pyplot.subplots(1, len(panels), figsize=(13, 7), layout="constrained")
    for axis, (title, picture) in zip(axes, panels.items(), strict=True):
        axis.imshow(picture)
        axis.set_title(title)
        axis.set_axis_off()
    figure.savefig(output, dpi=90)


def main(workdir: Path, output: Path | None, picture: Path | None, change: list[str]) -> None:
    """Runs everything, prints the table and writes the figures."""
    from pit_jax import rundir, validation
    from pit_jax.study import tables

    config = load(f"{CONFIGS / 'digits_diffusion.py'}:pit", change)
    processes.start(heartbeat_s=100, cpu_devices=validation.cpu_devices(config))
    classifier = trained(CLASSIFIER, CLASSIFIER_WORDS, workdir / "classifier")
    held_out, of_real = floor(config, workdir / "classifier", workdir)
    words = [
        f"--config.eval.features={workdir / 'classifier'}",
        f"--config.eval.reference={held_out}",
        f"--config.eval.pictures={COLUMNS}",
        f"--config.sample.num={COUNT}",
    ]
    results = {REAL: of_real}
    for name in MODELS:
        title = "PiT" if name == "pit" else "DiT/2"
        results[title] = generate(name, workdir / name.replace("/", "-"), words, change)
    rows = [[name, *(f"{found[n]:.3f}" for n in METRICS)] for name, found in results.items()]
    tables.show(f"{COUNT} images against 360 held-out digits", ["", *METRICS], rows)
    if picture:
        draw(workdir, picture)
    if output:
        words = shlex.join([str(workdir), *change])
        text = {
            "command": f"python -m experiments.digits_diffusion {words}",
            "machine": rundir.RunDir(workdir / "pit").machine(),
            "classifier_accuracy": classifier.result["eval/accuracy"],
            "samples": COUNT,
            "sampler": {n: v for n, v in config.sample.items() if n != "num"},
            "results": results,
        }
        output.write_text(json.dumps(text, indent=2) + "\n")


if __name__ == "__main__":
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("workdir", nargs="?", type=Path, default=Path("runs/digits-diffusion"))
    words.add_argument("--json", type=Path, help="also write the figures here")
    words.add_argument("--picture", type=Path, help="also draw samples here")
    given, change = words.parse_known_args()
    processes.restart_with_huge_pages()
    try:
        main(given.workdir, given.json, given.picture, change)
    except (PitError, Stopped) as error:
        print(f"digits_diffusion: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
