"""How far predicted depths are from the measured ones, and a picture of both."""

import math
from collections.abc import Iterator

import numpy as np

from pit_jax.errors import ConfigError
from pit_jax.evals import accuracy, reconstruction
from pit_jax.evals.context import Context

_UNKNOWN = (70, 70, 140)  # no grey: where the depth is not known


def evaluate(context: Context) -> Iterator[tuple[str, float]]:
    """Yields the metrics of Eigen, Puhrsch and Fergus 2014 over the held-out set, "loss" and
    "examples", the count. Draws "depth".

    "rmse" in metres, "abs_rel" (mean of |ŷ − y| / y), "log10" (mean of |log₁₀ ŷ − log₁₀ y|) and
    "delta1", "delta2", "delta3" (share with max(ŷ/y, y/ŷ) below 1.25, 1.25², 1.25³) are over all
    known pixels of all images together, as that paper defines them; "rmse_per_image" is the
    mean of each image's own RMSE, which other code reports. "loss" is the mean over images
    that have any known pixel. Predictions are clipped to the config's range, not aligned.

    Raises:
      ConfigError: if no held-out pixel has a depth in that range.
    """
    found = dict(accuracy.evaluate(context))  # means over all examples
    examples, pixels, images = (found.pop(n) for n in ("examples", "pixels", "with_depth"))
    if not pixels:
        options = context.config.depth
        raise ConfigError(
            f"no pixel of config.data.eval_split={context.config.data.eval_split!r} has a depth"
            f" in (config.depth.nearest={options.nearest},"
            f" config.depth.farthest={options.farthest}] metres"
        )
    yield "loss", found.pop("loss") / images
    yield "rmse", math.sqrt(found.pop("square") / pixels)
    yield "rmse_per_image", found.pop("image_rmse") / images
    for name, total in found.items():
        yield name, total / pixels
    yield "examples", examples
    draw(context)


def draw(context: Context) -> None:
    """Draws "depth": the first `eval.pictures` held-out images, one column each."""
    rows = reconstruction.first(context, context.task.predicted, ("image", "depth", "predicted"))
    if context.draw:
        truth, predicted = rows["depth"], rows["predicted"]
        near, far = _range(truth)
        levels = {"depth": _levels(truth, near, far), "predicted": _levels(predicted, near, far)}
        context.draw("depth", reconstruction.grid(rows | levels))


def _range(truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each map (n, S, S) the smallest and largest known depth, (n, 1, 1)."""
    near = np.where(truth > 0, truth, np.inf).min((1, 2), keepdims=True)
    return near, truth.max((1, 2), keepdims=True)


def _levels(depths: np.ndarray, near: np.ndarray, far: np.ndarray) -> np.ndarray:
    """(n, S, S, 3) in [0, 255]: white is near and black is far, in each column's own range."""
    known = depths > 0
    logs = np.log(np.where(known, depths, 1))
    near = np.log(np.where(np.isfinite(near), near, 1))
    span = np.maximum(np.log(np.maximum(far, 1e-9)) - near, 1e-6)
    grey = 255 * np.clip(1 - (logs - near) / span, 0, 1)
    return np.where(known[..., None], grey[..., None], np.array(_UNKNOWN))
