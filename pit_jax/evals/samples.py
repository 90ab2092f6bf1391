"""A picture of what a diffusion model generates: a row a class."""

from collections.abc import Iterator

import numpy as np

from pit_jax.evals import generator
from pit_jax.evals.context import Context
from pit_jax.evals.reconstruction import grid

ROWS = 10  # at most; of more classes these many at even distances


def evaluate(context: Context) -> Iterator[tuple[str, float]]:
    """Yields nothing: there is nothing to measure.

    Draws "samples": `eval.pictures` images of each class, of at most ten; without classes one
    row. They are the same indices at every step, so that pictures of a run can be compared.
    """
    config = context.config
    classes, columns = config.data.num_classes, config.eval.pictures
    if config.diffusion.conditional:
        labels = np.arange(min(ROWS, classes)) * classes // min(ROWS, classes)
        names = [f"class {label}" for label in labels]
    else:
        labels, names = np.array([classes]), ["samples"]
    indices = np.arange(len(labels) * columns)
    batches = generator.of(context).batches(labels.repeat(columns), indices)
    images = np.concatenate(list(context.until_stopped(batches)))
    if context.draw:
        rows = images.reshape(len(labels), columns, *images.shape[1:])
        context.draw("samples", grid(dict(zip(names, rows, strict=True))))
    return iter(())
