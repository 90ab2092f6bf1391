"""Does a Transformer need patches? PiT against ViT/2 on handwritten digits, on a laptop.

    make demo
    python -m experiments.demo runs/seeds --seeds 0 1 2 3 4 --json experiments/results/demo.json

Question: is a plain Transformer whose tokens are single pixels, told nothing about where
they lie, as good as the same model on 2×2 patches, and does it find the two dimensions of
the image by itself? What varies: `model.patch` 1 and 2 of configs/digits.py, and the seed.
Cost: about a minute and a half a seed on two CPU cores. Published: nothing at this size;
the paper's claim (PiT above ViT/2) is for CIFAR-100 and ImageNet. Drawn by
pit_jax/study/pictures.py into demo.png in the work directory.
"""

import argparse
import json
import shutil
import statistics
import sys
from pathlib import Path

from pit_jax.errors import PitError, Stopped
from pit_jax.parallel import processes

MODELS = ("pit", "vit/2")
CONFIG = Path(__file__).parent.parent / "configs" / "digits.py"


def main(workdir: Path, seeds: list[int], output: Path | None) -> None:
    """Trains both models afresh for every seed, prints the table and draws the picture."""
    from pit_jax import checkpoint, configfile, rundir, validation
    from pit_jax.config import label
    from pit_jax.models.vit import num_tokens
    from pit_jax.study import pictures, tables

    devices = validation.cpu_devices(configfile.load(str(CONFIG)))
    processes.start(heartbeat_s=100, cpu_devices=devices)
    from pit_jax.train import train

    shown: dict[str, rundir.RunDir] = {}  # the first seed's runs, for the picture
    rows, results = [], []
    for name in MODELS:
        for seed in seeds:
            config = configfile.load(f"{CONFIG}:{name}", [f"--config.train.seed={seed}"])
            run = rundir.RunDir(workdir / f"{name.replace('/', '')}-seed{seed}")
            shutil.rmtree(run.path, ignore_errors=True)  # what an earlier demo left
            result = train(config, run.path)
            shown.setdefault(label(config), run)
            accuracy = result.metrics["eval/accuracy"]
            results.append(
                {
                    "model": label(config),
                    "seed": seed,
                    "accuracy": accuracy,
                    "images_per_s": result.images_per_s,
                    "seconds": result.seconds,
                }
            )
            rows.append(
                (
                    label(config),
                    seed,
                    num_tokens(config.model, config.data.image_size),
                    f"{result.parameters:,}",
                    f"{100 * accuracy:.1f} %",
                    f"{result.images_per_s:,.0f}",
                    f"{result.seconds:.0f}",
                )
            )
    heads = ("model", "seed", "tokens", "parameters", "test accuracy", "images/s", "seconds")
    tables.show("8×8 digits, 360 held out", heads, rows)
    for model in shown if len(seeds) > 1 else ():
        mean = statistics.mean(r["accuracy"] for r in results if r["model"] == model)
        print(f"{model}: mean accuracy {100 * mean:.2f} % over {len(seeds)} seeds")
    saved = checkpoint.Checkpoints(shown["PiT"])
    positions = saved.read(saved.newest_intact(repair=False))["params"]["embed"]["position"]
    picture = workdir / "demo.png"
    pictures.demo({name: run.rows() for name, run in shown.items()}, positions[1:], picture)
    print(f"learning curves and the positions that PiT learned: {picture}")
    if output:
        text = {"machine": shown["PiT"].machine(), "runs": results}
        output.write_text(json.dumps(text, indent=2) + "\n")


if __name__ == "__main__":
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("workdir", nargs="?", type=Path, default=Path("runs/demo"))
    words.add_argument("--seeds", nargs="+", type=int, default=[0])
    words.add_argument("--json", type=Path, help="also write the figures here")
    given = words.parse_args()
    processes.restart_with_huge_pages()
    try:
        main(given.workdir, given.seeds, given.json)
    except (PitError, Stopped) as error:
        print(f"demo: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
