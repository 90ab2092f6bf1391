"""What would the paper's models take on TPUs, and what would pixels at 224×224?

    python -m experiments.preflights
    python -m experiments.readme

Question: memory of the training step a chip, estimated time of a step and chip-hours of the
schedule, for the README's table. What varies: model, image size, topology and mesh. Cost:
about a minute of compiling a row on two CPU cores, no TPU. Compared with: big_vision's ViT
with 1×1 patches, compiled the same way for the same chips (2.69 GiB at 32×32, 4.95 GiB at
64×64). Writes experiments/results/preflight/; rows that are there already are left alone.
"""

import importlib.metadata
import json
from pathlib import Path

from pit_jax import cli
from pit_jax.errors import EXIT_DONE

RESULTS = Path(__file__).parent / "results" / "preflight"
ROWS = {
    "pit-b-32": "pit-b v5e-8 data.image_size=32 train.batch_size=128",
    "pit-b-64": "pit-b v5e-8 data.image_size=64 train.batch_size=32",
    "pit-l-28-fsdp": "pit-l v5e-16 mesh.data=1 mesh.fsdp=16 train.batch_size=1024",
    "pit-l-28-tensor": "pit-l v5e-16 mesh.model=4 train.batch_size=1024",
    "pit-b-28-two-slices": "pit-b v5e-16 --slices=2 mesh.data=2 mesh.fsdp=16",
    "pit-b-224-data": "pit-b v5e-256 data.image_size=224 train.batch_size=1024",
    "pit-b-224-seq": "pit-b v5e-256 data.image_size=224 train.batch_size=1024 mesh.seq=4",
    "pit-l-224": "pit-l v5p-512 data.image_size=224 train.batch_size=1024 train.epochs=300",
}


def words(row: str) -> list[str]:
    """The command line that a row stands for, less `pit-jax` and where the result goes."""
    model, topology, *fields = row.split()
    line = ["preflight", "--config", f"configs/imagenet28.py:{model}", "--topology", topology]
    return line + [f if f.startswith("--") else f"--config.{f}" for f in fields]


def main() -> None:
    """Runs what is missing, one after the other."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    for name, row in ROWS.items():
        path = RESULTS / f"{name}.json"
        if path.exists():
            continue
        partial = path.with_suffix(".part")
        if cli.run([*words(row), "--json", str(partial)]) == EXIT_DONE:
            found = json.loads(partial.read_text())
            found["command"] = " ".join(["pit-jax", *words(row)])
            found["versions"] = {p: importlib.metadata.version(p) for p in ("jax", "libtpu")}
            path.write_text(json.dumps(found, indent=1) + "\n")
        partial.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
