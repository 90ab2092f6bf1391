"""Probes: what a frozen representation is worth, on any run of any task.

    linear    a linear classifier, as MAE's linear probing
    knn       votes of the nearest training images
    fewshot   ridge regression on a few images a class

They share the features of a context, which are made once; the linear probe alone asks for
more views of the training images than one. Every process computes the same.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from pit_jax.config import DEPTH
from pit_jax.errors import ConfigError
from pit_jax.evals import features, fewshot, linear_probe, neighbours
from pit_jax.evals.context import Context

Values = Iterator[tuple[str, float]]


def linear(context: Context) -> Values:
    """Yields ("linear_accuracy", ...) and the base learning rate that was chosen for it."""
    _, *others = _of(context)
    given = (context.views, *others, context.config.data.num_classes)
    found = linear_probe.accuracy(*given, until_stopped=context.until_stopped)
    yield "linear_accuracy", found.accuracy
    yield "linear_base_rate", found.base_rate


def knn(context: Context) -> Values:
    """Yields ("knn_accuracy", ...)."""
    config = context.config
    options = dict(k=config.eval.neighbours, until_stopped=context.until_stopped)
    yield "knn_accuracy", neighbours.accuracy(*_of(context), config.data.num_classes, **options)


def few_shots(context: Context) -> Values:
    """Yields ("fewshot_5_accuracy", ...), its spread over draws, and examples, for all shots."""
    config = context.config
    options = dict(shots=config.eval.shots, until_stopped=context.until_stopped)
    found = fewshot.accuracy(*_of(context), config.data.num_classes, **options)
    for count, result in found.items():
        yield f"fewshot_{count}_accuracy", result.accuracy
        yield f"fewshot_{count}_std", result.std
        yield f"fewshot_{count}_examples", result.examples


def _of(context: Context) -> tuple[np.ndarray, ...]:
    """Vectors and labels of the training set, then of the held-out set.

    Raises:
      ConfigError: if the set has no classes.
    """
    if not _has_classes(context.config):
        data = context.config.data
        raise ConfigError(
            f"config.data.name={data.name!r} has no classes that a probe could tell apart"
            + (" (config.data.num_classes=1)" if data.num_classes == 1 else "")
        )
    train, test = context.features
    return train.vectors, train.labels, test.vectors, test.labels


def possible(names: Iterable[str], source: Any) -> list[str]:
    """Those of the evaluations that the set has the classes for."""
    return [name for name in names if name not in PROBES or source.labelled]


def _has_classes(config: Any) -> bool:
    return config.data.name.partition(":")[0] not in DEPTH and config.data.num_classes > 1


def require_room(names: Iterable[str], config: Any, task: Any, steps: Any) -> None:
    """Refuses those of the evaluations that are probes and whose features fit nowhere.

    Raises:
      ConfigError: as `features.require_room`, before an image is read.
    """
    if (asked := PROBES.keys() & set(names)) and _has_classes(config):
        features.require_room(config, task, steps, "linear" in asked)


PROBES: dict[str, Callable[[Context], Values]] = {
    "linear": linear,
    "knn": knn,
    "fewshot": few_shots,
}
