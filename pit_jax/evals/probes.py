"""Probes: what a frozen representation is worth, on any run of any task.

    linear    a linear classifier, as MAE's linear probing
    knn       votes of the nearest training images
    fewshot   ridge regression on a few images a class

They share the features of a context, which are made once. Every process computes the same.
"""

from collections.abc import Callable, Iterator

import numpy as np

from pit_jax.config import DEPTH
from pit_jax.errors import ConfigError
from pit_jax.evals import fewshot, linear_probe, neighbours
from pit_jax.evals.context import Context

Values = Iterator[tuple[str, float]]


def linear(context: Context) -> Values:
    """Yields ("linear_accuracy", ...) and the base learning rate that was chosen for it."""
    found = linear_probe.accuracy(*_of(context, views=True), context.config.data.num_classes)
    yield "linear_accuracy", found.accuracy
    yield "linear_base_rate", found.base_rate


def knn(context: Context) -> Values:
    """Yields ("knn_accuracy", ...)."""
    config = context.config
    k = config.eval.neighbours
    yield "knn_accuracy", neighbours.accuracy(*_of(context), config.data.num_classes, k=k)


def few_shots(context: Context) -> Values:
    """Yields ("fewshot_5_accuracy", ...), its spread over draws, and examples, for all shots."""
    config = context.config
    shots = config.eval.shots
    found = fewshot.accuracy(*_of(context), config.data.num_classes, shots=shots)
    for count, result in found.items():
        yield f"fewshot_{count}_accuracy", result.accuracy
        yield f"fewshot_{count}_std", result.std
        yield f"fewshot_{count}_examples", result.examples


def _of(context: Context, views: bool = False) -> tuple[np.ndarray, ...]:
    """Vectors and labels of the training set, then of the held-out set.

    Raises:
      ConfigError: if the set has no classes.
    """
    name = context.config.data.name
    if name.partition(":")[0] in DEPTH:
        raise ConfigError(f"config.data.name={name!r} has no classes that a probe could tell")
    train, test = context.features
    vectors = train.vectors if views else train.vectors[0]
    return vectors, train.labels, test.vectors[0], test.labels


PROBES: dict[str, Callable[[Context], Values]] = {
    "linear": linear,
    "knn": knn,
    "fewshot": few_shots,
}
