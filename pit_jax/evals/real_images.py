"""The real images that generated ones are compared with, described by a network.

They are those of a file, or what the run trained on.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from pit_jax.errors import ConfigError
from pit_jax.evals import networks, reference
from pit_jax.evals.comparison import Description
from pit_jax.evals.networks import Network

_BATCH = 256  # images of a file that are read at a time

# Their number, and the images in batches (n, S, S, C) uint8.
Images = tuple[int, Iterable[np.ndarray]]


def describe(
    config: Any,
    network: Network,
    training_set: Callable[[], Images],
    until_stopped: Callable[[Iterable[np.ndarray]], Iterable[np.ndarray]] = iter,
) -> tuple[Description, dict[str, Any]]:
    """What `eval.reference` names, or the training set if it names nothing.

    Args:
      config: resolved.
      network: looks at them.
      training_set: reads it, without augmentation.
      until_stopped: passes on the batches of a file's images, of which there may be minutes.

    Returns:
      The description, and where it is from as JSON knows it.

    Raises:
      ConfigError: if there is no such file, it is another network's, the training set has no
        images, or they are too few.
      StorageError: if the file is damaged.
    """
    data, k = config.data, config.eval.neighbourhood
    if config.eval.reference:
        description, origin = of_file(opened(config, network), network, until_stopped)
    elif data.name == "latents":
        raise ConfigError(
            "config.eval.reference is empty, and a set of latents has no images to compare"
            " with: write the .npz file of a reference (`pit-jax data stats` makes it)"
        )
    else:
        count, batches = training_set()
        description = networks.describe(network, batches, count)
        origin = {"data": data.name, "split": data.split, "per_class": data.per_class}
        origin["images"] = description.count
    if description.features is not None:
        _check_count(len(description.features), k)
    return description, origin


def opened(config: Any, network: Network) -> reference.Reference:
    """The file that `eval.reference` names, without its statistics where they are another
    network's and there are images; those are not looked at.

    Raises:
      ConfigError: if there is no such file, the network cannot compare by it, or it holds too
        few images.
      StorageError: if it is damaged.
    """
    path = config.eval.reference
    found = reference.read(path)
    if found.description is not None and (problem := _of_another(found, network)):
        if found.images is None:
            raise ConfigError(f"{path}: {problem}")
        found = dataclasses.replace(found, description=None)
    features = found.description.features if found.description else None
    if features is not None:
        _check_count(len(features), config.eval.neighbourhood)
    elif found.images is not None:
        network.check(found.images[1:], f"the images of {path}")
        _check_count(found.images[0], config.eval.neighbourhood)
    return found


def of_file(
    found: reference.Reference,
    network: Network,
    until_stopped: Callable[[Iterable[np.ndarray]], Iterable[np.ndarray]] = iter,
) -> tuple[Description, dict[str, Any]]:
    """The description that a file holds, or that of its images; and where it is from.

    Statistics count where a file has both, and its images serve precision and recall, as in
    ADM's evaluator.

    Args:
      found: by `opened`.
      network: looks at its images, if that is needed.
      until_stopped: as `describe` takes it.
    """
    path, whole = found.path, found.description
    origin = {"path": str(path), "sha256": found.sha256, "provenance": found.provenance}
    if found.images is None or (whole is not None and whole.features is not None):
        return whole, origin
    batches = until_stopped(reference.image_batches(path, _BATCH))
    of_images = networks.describe(network, batches, found.images[0])
    if whole is None:
        return of_images, origin
    return dataclasses.replace(whole, features=of_images.features), origin


def _check_count(count: int, k: int) -> None:
    if count <= k:
        raise ConfigError(
            f"the reference has {count} images or features, too few for"
            f" config.eval.neighbourhood={k}"
        )


def _of_another(found: reference.Reference, network: Network) -> str | None:
    """Why the statistics of a file cannot be this network's; None if they can."""
    said = (found.provenance or {}).get("features")
    dim = len(found.description.pool.mean)
    remedy = "make statistics with `pit-jax data stats --features`, or give the images"
    if said:
        if said.get("sha256") != network.sha256:
            return f"its statistics are of {said.get('path')}, not of {network.path}: {remedy}"
        if said.get("resize") != network.resize:
            return (
                f"its statistics are of images resized as {said.get('resize')} does:"
                f" write config.eval.resize={said.get('resize')!r}"
            )
    elif network.name != "inception":
        return f"its statistics are not said to be of {network.path}: {remedy}"
    if dim != network.dim:
        return f"its statistics have {dim} dimensions, {network.path} has {network.dim}: {remedy}"
    return None
