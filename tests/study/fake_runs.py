"""Run directories as training leaves them, without training."""

import json
import pathlib

import numpy as np

from pit_jax import config, files, rundir, validation

ENVIRONMENT = {
    "time": "2026-01-01T00:00:00+00:00",
    "commit": "a" * 40,
    "uncommitted": "",
    "versions": {"jax": "0.10.2"},
    "python": "3.11.0",
    "platform": "Linux",
    "devices": ["cpu"],
    "device_count": 2,
    "command": ["pit-jax", "train", "--config", "configs/digits.py:pit"],
    "cost": {"parameters": 1000, "tokens": 65, "forward_flops": 3e7, "training_flops": 9e7},
}
BEGAN = 1767225600.0  # that time, in seconds


def fake_run(
    path: pathlib.Path,
    accuracy: float | None,
    seed: int = 0,
    state: str = "done",
    environment: dict | None = None,
    steps: int = 4,
    **fields: object,
) -> rundir.RunDir:
    """A run of the digits whose last evaluation is this accuracy.

    Args:
      accuracy: None for a run that was never evaluated.
      environment: what is different in env.json.
      fields: of the config, model__patch=2.
    """
    c = config.base()
    c.model.update(width=16, depth=2, heads=2)
    c.data.update(name="digits", image_size=8, channels=1, num_classes=10)
    c.train.update(batch_size=32, steps=40, seed=seed)
    for name, value in fields.items():
        config.assign(c, name.replace("__", "."), value)
    run = rundir.RunDir(path)
    run.create()
    run.write_config(validation.resolve(c))
    run.add_environment(ENVIRONMENT | (environment or {}))
    result = {} if accuracy is None else {"eval/accuracy": accuracy, "eval/loss": 1 - accuracy}
    rng = np.random.default_rng(seed)
    for number in range(1, steps + 1):
        done = number / steps
        row = {"step": 10 * number, "time": BEGAN + 90 * number}
        row |= {"train/loss": 2.3 * 0.1**done + 0.05 * rng.random()}
        row |= {"perf/images_per_s": 100.0 * number}
        row |= {name: value * done for name, value in result.items()} if done < 1 else result
        run.append_row(row)
    run.write_status(state=state, step=10 * steps, **({"result": result} if result else {}))
    return run


def fake_sweep(
    path: pathlib.Path, points: dict[str, pathlib.Path], docstring: str = "", published: tuple = ()
) -> None:
    """The sweep.json of runs: {label: directory name}."""
    described = {
        "file": "experiments/study.py",
        "argument": "tiny",
        "docstring": docstring,
        "command": "pit-jax sweep experiments/study.py:tiny --workdir runs/study",
        "published": list(published),
        "points": [
            {"index": i, "label": label, "hash": "0" * 8, "overrides": {}, "directory": name}
            for i, (label, name) in enumerate(points.items())
        ],
    }
    files.write(path / "sweep.json", json.dumps(described))
