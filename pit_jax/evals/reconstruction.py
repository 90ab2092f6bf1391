"""How well images are reconstructed, and a picture of it."""

from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from pit_jax.evals import accuracy
from pit_jax.evals.context import Context

ROWS = ("original", "masked", "reconstructed")
_CELL = 96  # pixels, about: small images are enlarged by whole numbers
_GAP, _FONT = 4, 13


def evaluate(context: Context) -> Iterator[tuple[str, float]]:
    """Yields ("loss", mean over the held-out set) and ("examples", count).

    Draws "reconstruction": the first `eval.pictures` held-out images with the masks that
    they always have.
    """
    yield from accuracy.evaluate(context)
    draw(context)


def draw(context: Context) -> None:
    """Draws "reconstruction": the first `eval.pictures` held-out images, one column each.

    The task's `reconstruct` makes those of `ROWS` that it has.
    """
    rows = first(context, context.task.reconstruct, ROWS)
    if context.draw:
        context.draw("reconstruction", grid(rows))


def first(context: Context, function: Callable, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Those of `names` that a function(params, batch, extra) of the task has, for the first
    `eval.pictures` held-out images; it also returns the batch's "mask"."""
    wanted = context.config.eval.pictures
    read = context.steps.read(function)
    parts: list[dict] = []
    have = 0
    batches = context.held_out.evaluate()
    for batch in batches:
        found = jax.device_get(read(context.state.eval_params, batch, np.int32(0)))
        real = found.pop("mask") > 0
        parts.append({name: found[name][real] for name in names if name in found})
        have += int(real.sum())
        if have >= wanted:
            break
    batches.close()
    return {name: np.concatenate([p[name] for p in parts])[:wanted] for name in parts[0]}


def grid(rows: dict[str, np.ndarray]) -> np.ndarray:
    """One labelled row of images for each entry, as a picture (H, W, 3) uint8.

    Args:
      rows: name → (n, S, S, C) grey levels in [0, 255], C = 1 or 3.
    """
    from PIL import Image, ImageDraw, ImageFont  # which a machine that only benches may lack

    count, size = next(iter(rows.values())).shape[:2]
    factor = max(1, round(_CELL / size))
    cell = size * factor
    font = ImageFont.load_default(_FONT)
    left = max(round(font.getlength(name)) for name in rows) + 3 * _GAP
    shape = (left + count * (cell + _GAP), len(rows) * (cell + _GAP) + _GAP)
    picture = Image.new("RGB", shape, "white")
    pen = ImageDraw.Draw(picture)
    for row, (name, images) in enumerate(rows.items()):
        top = _GAP + row * (cell + _GAP)
        pen.text((_GAP, top + cell / 2), name, "black", font, anchor="lm")
        for column, image in enumerate(np.round(images).astype(np.uint8)):
            colour = np.broadcast_to(image, (size, size, 3))
            enlarged = colour.repeat(factor, 0).repeat(factor, 1)
            picture.paste(Image.fromarray(enlarged), (left + column * (cell + _GAP), top))
    return np.asarray(picture)
