"""Learning curves of groups: mean and range over seeds, at the steps that all of them logged."""

import math
from collections.abc import Sequence

from pit_jax.study.compare import Comparison, factor
from pit_jax.study.groups import Group
from pit_jax.study.plots import Curve


def names(comparison: Comparison) -> list[str]:
    """What is drawn: the training loss, and the metric or else the held-out loss."""
    logged = {name for run in comparison.runs for row in run.rows for name in row}
    second = comparison.metric if comparison.metric in logged else "eval/loss"
    return [n for n in ("train/loss", second) if n in logged and of(comparison, n)[0]]


def of(comparison: Comparison, name: str) -> tuple[list[Curve], str]:
    """The curve of each group that logged it, and what they are drawn along.

    Along steps; where batches differ in size along the images that were seen.
    """
    sizes = {run.config["train.batch_size"] for run in comparison.runs}
    found = []
    for entry in comparison.entries:
        curve = _curve(entry.group, name, by_images=len(sizes) > 1)
        found += [curve] if curve else []
    return found, "step" if len(sizes) == 1 else "images seen"


def _curve(group: Group, name: str, by_images: bool) -> Curve | None:
    runs: list[dict[int, float]] = []
    for run in group.runs:
        size = run.config["train.batch_size"] if by_images else 1
        points = {size * row["step"]: row[name] for row in run.rows if _finite(row.get(name))}
        runs += [points] if points else []
    steps: Sequence[int] = sorted(set.intersection(*map(set, runs))) if runs else ()
    if not steps:
        return None
    values = [[factor(name) * points[step] for points in runs] for step in steps]
    mean = [math.fsum(v) / len(v) for v in values]
    return Curve(group.label, steps, mean, [min(v) for v in values], [max(v) for v in values])


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
