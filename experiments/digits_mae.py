"""Does pre-training on pixels without labels help where labels are few?

    python -m experiments.digits_mae runs/digits-mae \\
        --json experiments/results/digits-mae.json \\
        --picture experiments/results/digits-mae.png

Question: a PiT is pre-trained as a masked autoencoder on the 1437 training images of the
digits, whose labels it never sees, and fine-tuned on ten labels a class. Is it better than
the same PiT trained from scratch on the same 100 labels? What varies: the start, and the
seed (of weights, masks, data order, and of which 100 images have labels). Both are trained
for 500 steps; layer-wise decay, which makes sense for loaded weights only, is off from
scratch. Cost: two to four minutes a seed on two CPU cores, most of it pre-training; what was
trained before is taken as it is. The picture is the first seed's last of the held-out digits.
Published: nothing at this size; on CIFAR-100 the paper's PiT-T gains 0.9 and PiT-S 1.3.
"""

import argparse
import json
import shlex
import statistics
import sys
from pathlib import Path
from typing import Any

from experiments.trained import seconds, trained
from pit_jax.errors import PitError, Stopped
from pit_jax.parallel import processes
from pit_jax.study.collect import Run

CONFIGS = Path(__file__).parent.parent / "configs"
PRE_TRAINING, FINE_TUNING = CONFIGS / "digits_mae.py", CONFIGS / "digits_finetune.py"
SCRATCH = ["--config.init_task=", "--config.optim.layer_decay=1.0"]


def one_seed(workdir: Path, seed: int, change: list[str]) -> tuple[Run, dict[str, Any]]:
    """Pre-trains, fine-tunes, and trains from scratch; the first run, and shares of all."""

    def run(name: str, file: Path, words: list[str]) -> Run:
        words = [f"--config.train.seed={seed}", *words, *change]
        return trained(str(file), words, workdir / f"{name}-seed{seed}")

    labels = [f"--config.data.per_class_seed={seed}"]
    before = run("pretrained", PRE_TRAINING, [])
    tuned = run("tuned", FINE_TUNING, [f"--config.init_from={before.path}", *labels])
    scratch = run("scratch", FINE_TUNING, [*SCRATCH, *labels])
    return before, {
        "seed": seed,
        "scratch": scratch.result["eval/accuracy"],
        "tuned": tuned.result["eval/accuracy"],
        "knn_of_pretrained": before.result["eval/knn_accuracy"],
        "pretraining_loss": before.result["eval/loss"],
        "seconds": sum(map(seconds, (before, tuned, scratch))),
    }


def main(
    workdir: Path, seeds: list[int], output: Path | None, picture: Path | None, change: list[str]
) -> None:
    """Runs all seeds, prints the table and writes the figures."""
    from pit_jax import configfile, rundir, validation
    from pit_jax.study import tables

    devices = validation.cpu_devices(configfile.load(str(PRE_TRAINING)))
    processes.start(heartbeat_s=100, cpu_devices=devices)
    firsts, results = zip(*(one_seed(workdir, seed, change) for seed in seeds), strict=True)

    def percent(name: str) -> list[str]:
        values = [100 * row[name] for row in results]
        spread = statistics.stdev(values) if len(values) > 1 else float("nan")
        return [*(f"{v:.1f}" for v in values), f"{statistics.mean(values):.1f} ± {spread:.1f}"]

    names = {
        "from scratch, 100 labels": "scratch",
        "pre-trained, then 100 labels": "tuned",
        "frozen, 20 labelled neighbours": "knn_of_pretrained",
    }
    rows = [[title, *percent(name)] for title, name in names.items()]
    heads = ["test accuracy, %", *(f"seed {seed}" for seed in seeds), "mean ± deviation"]
    tables.show("PiT on 8×8 digits, 360 held out", heads, rows)
    if picture:
        picture.write_bytes(firsts[0].pictures["reconstruction"].read_bytes())
    if output:
        run = rundir.RunDir(workdir / f"tuned-seed{seeds[0]}")
        words = [str(workdir), "--seeds", *map(str, seeds), *change]
        command = f"python -m experiments.digits_mae {shlex.join(words)}"
        text = {"command": command, "machine": run.machine(), "runs": results}
        output.write_text(json.dumps(text, indent=2) + "\n")


if __name__ == "__main__":
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("workdir", nargs="?", type=Path, default=Path("runs/digits-mae"))
    words.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    words.add_argument("--json", type=Path, help="also write the figures here")
    words.add_argument("--picture", type=Path, help="also copy the reconstructions here")
    given, change = words.parse_known_args()
    processes.restart_with_huge_pages()
    try:
        main(given.workdir, given.seeds, given.json, given.picture, change)
    except (PitError, Stopped) as error:
        print(f"digits_mae: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
