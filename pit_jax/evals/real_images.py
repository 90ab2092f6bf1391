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
    config: Any, network: Network, training_set: Callable[[], Images]
) -> tuple[Description, dict[str, Any]]:
    """What `eval.reference` names, or the training set if it names nothing.

    Args:
      config: resolved.
      network: looks at them.
      training_set: reads it, without augmentation.

    Returns:
      The description, and where it is from as JSON knows it.

    Raises:
      ConfigError: if there is no such file, it is another network's, the training set has no
        images, or they are too few.
      StorageError: if the file is damaged.
    """
    data, k = config.data, config.eval.neighbourhood
    if config.eval.reference:
        description, origin = of_file(config.eval.reference, network)
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
    if description.features is not None and len(description.features) <= k:
        raise ConfigError(
            f"the reference has {len(description.features)} images or features, too few for"
            f" config.eval.neighbourhood={k}"
        )
    return description, origin


def of_file(path: str, network: Network) -> tuple[Description, dict[str, Any]]:
    """The description that a file holds, or that of its images.

    Statistics count where a file has both, and its images serve precision and recall, as in
    ADM's evaluator.

    Raises:
      ConfigError: if the statistics are of another network and there are no images.
    """
    found = reference.read(path)
    origin = {"path": str(path), "sha256": found.sha256, "provenance": found.provenance}
    whole = found.description
    if whole is not None and (problem := _of_another(found, network)):
        if found.images is None:
            raise ConfigError(f"{path}: {problem}")
        whole = None
    if found.images is None or (whole is not None and whole.features is not None):
        return whole, origin
    network.check(found.images[1:], f"the images of {path}")
    count = found.images[0]
    of_images = networks.describe(network, reference.image_batches(path, _BATCH), count)
    if whole is None:
        return of_images, origin
    return dataclasses.replace(whole, features=of_images.features), origin


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
