"""Does a Transformer need patches? PiT against ViT/2 on handwritten digits, on a laptop.

    make demo

Question: is a plain Transformer whose tokens are single pixels, told nothing about where
they lie, as good as the same model on 2×2 patches, and does it find the two dimensions of
the image by itself? What varies: `model.patch` 1 and 2 of configs/digits.py, one seed.
Cost: about a minute and a half on two CPU cores. Published: nothing at this size; the
paper's claim (PiT above ViT/2) is for CIFAR-100 and ImageNet. Drawn by
pit_jax/study/pictures.py into runs/demo/demo.png.
"""

import shutil
import sys
from pathlib import Path

from pit_jax.errors import PitError, Stopped

MODELS = ("pit", "vit/2")
CONFIG = Path(__file__).parent.parent / "configs" / "digits.py"


def main(workdir: Path) -> None:
    """Trains both models from scratch, prints the table and draws the picture."""
    from pit_jax.parallel import processes

    processes.choose_platform()
    from pit_jax import checkpoint, configfile, rundir
    from pit_jax.config import label
    from pit_jax.models.vit import num_tokens
    from pit_jax.study import pictures, tables
    from pit_jax.train import train

    shutil.rmtree(workdir, ignore_errors=True)
    runs, rows = {}, []
    for name in MODELS:
        config = configfile.load(f"{CONFIG}:{name}")
        if not runs:
            processes.start(config.launch.heartbeat_s)
        run = rundir.RunDir(workdir / name.replace("/", ""))
        result = train(config, run.path)
        runs[label(config)] = run
        rows.append(
            (
                label(config),
                num_tokens(config.model, config.data.image_size),
                f"{result.parameters:,}",
                f"{100 * result.metrics['eval/accuracy']:.1f} %",
                f"{result.images_per_s:,.0f}",
                f"{result.seconds:.0f}",
            )
        )
    heads = ("model", "tokens", "parameters", "test accuracy", "images/s", "seconds")
    tables.show("8×8 digits, 360 held out", heads, rows)
    saved = checkpoint.Checkpoints(runs["PiT"])
    positions = saved.read(saved.newest_intact(repair=False))["params"]["embed"]["position"]
    picture = workdir / "demo.png"
    pictures.demo({name: run.rows() for name, run in runs.items()}, positions[1:], picture)
    print(f"learning curves and the positions that PiT learned: {picture}")


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo"))
    except (PitError, Stopped) as error:
        print(f"demo: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
