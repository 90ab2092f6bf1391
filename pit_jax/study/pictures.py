"""Pictures of runs, from what their directories hold."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import matplotlib.figure
import numpy as np

from pit_jax.errors import PitError
from pit_jax.files import storage_error

# Blue and orange of Okabe and Ito's palette, which colour-blind readers tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")


def similarity_maps(positions: np.ndarray) -> np.ndarray:
    """Cosine similarity of every position embedding to all others.

    Args:
      positions: (H · W, d) of a square image, [CLS] left out.

    Returns:
      (H, W, H, W): entry [r, c] is the map of the similarities to position (r, c).
    """
    unit = positions / np.linalg.norm(positions, axis=1, keepdims=True)
    side = round(len(positions) ** 0.5)
    return (unit @ unit.T).reshape(side, side, side, side)


def neighbour_similarity(maps: np.ndarray) -> tuple[float, float]:
    """Mean similarity of positions one pixel apart, and of all pairs further apart."""
    side = len(maps)
    grid = np.stack(np.mgrid[:side, :side], axis=-1).reshape(-1, 2)
    distance = np.abs(grid[:, None] - grid).sum(-1)
    flat = maps.reshape(distance.shape)
    return float(flat[distance == 1].mean()), float(flat[distance > 1].mean())


def demo(rows: Mapping[str, Sequence[dict[str, Any]]], positions: np.ndarray, path: Any) -> None:
    """Both learning curves, and PiT's similarity maps as a grid of maps.

    Args:
      rows: model name → rows of its metrics.jsonl.
      positions: PiT's learned positions without [CLS], (H · W, d).
      path: the picture file to write.

    Raises:
      StorageError: if the file cannot be written.
    """
    maps = similarity_maps(positions)
    side = len(maps)
    figure = matplotlib.figure.Figure(figsize=(11, 6.2), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.25))
    loss, accuracy = left.subplots(2, 1, sharex=True)
    for (name, run), colour in zip(rows.items(), COLOURS, strict=False):
        _curve(loss, run, "train/loss", 1, name, colour)
        _curve(accuracy, run, "eval/accuracy", 100, name, colour)
    loss.set(ylabel="training loss", yscale="log")
    accuracy.set(ylabel="test accuracy, %", xlabel="step", ylim=(80, 100.5))
    loss.legend(frameon=False)
    for axes in (loss, accuracy):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    grid = right.subplots(side, side)
    # A position is 1 with itself: leaving that out lets the neighbours be seen.
    others = np.where(np.eye(side * side).reshape(maps.shape) == 1, np.nan, maps)
    limit = np.nanmax(np.abs(others))
    for row in range(side):
        for column in range(side):
            axes = grid[row, column]
            image = axes.imshow(others[row, column], cmap="RdBu_r", vmin=-limit, vmax=limit)
            axes.set(xticks=[], yticks=[])
            axes.plot(column, row, "k.", markersize=2)
    near, far = neighbour_similarity(maps)
    right.suptitle(
        f"PiT's {side * side} learned positions: one small map each, coloured by how similar\n"
        "the others are to it (dot: itself). Red next to a dot: neighbours became alike.\n"
        f"Mean similarity of neighbours {near:+.2f}, of all other pairs {far:+.2f}",
        fontsize="medium",
    )
    right.colorbar(image, ax=grid, shrink=0.5, label="cosine similarity")
    try:
        figure.savefig(os.fspath(path), dpi=130)
    except OSError as error:
        raise storage_error(path, error) from None


def _curve(
    axes: Any, rows: Sequence[dict[str, Any]], key: str, factor: float, name: str, colour: str
) -> None:
    points = [(row["step"], factor * row[key]) for row in rows if key in row]
    if not points:
        raise PitError(f"no {key} was logged for {name}")
    axes.plot(*zip(*points, strict=True), label=name, color=colour)
