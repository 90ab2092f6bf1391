"""How good generated images are: FID and its kin, or distances of a classifier's features.

With FID's Inception the metrics have their published names. With a classifier of this project
they begin with its name instead: such a distance is no FID and compares only with distances
of the same classifier.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from pit_jax import rundir
from pit_jax.errors import ConfigError
from pit_jax.evals import generator, networks, reference
from pit_jax.evals.comparison import Description, compare
from pit_jax.evals.context import Context
from pit_jax.evals.networks import Network
from pit_jax.weights.inception import PUBLIC_FILE

_BATCH = 256  # images of a reference file that are read at a time


def evaluate(context: Context) -> Iterator[tuple[str, float]]:
    """Generates `sample.num` images and compares them with the reference.

    Yields, for Inception, "fid", "sfid" if the reference has it, "inception_score",
    "inception_score_std", "precision" and "recall"; for a classifier "<its name>_distance",
    "<its name>_precision" and "<its name>_recall".

    Records "generation": the same numbers and all that they depend on.

    Raises:
      ConfigError: if `eval.features` or `eval.reference` name nothing that fits.
      NonFiniteLoss: if a sample is not finite.
    """
    config, say = context.config, context.say or (lambda text: None)
    count, k = config.sample.num, config.eval.neighbourhood
    if count <= k:
        raise ConfigError(
            f"config.sample.num={count} images are too few for {k} neighbours: write more than"
            f" {k}, 50000 for numbers that compare with published ones"
        )
    network = load_network(config.eval.features, config.eval.resize, context)
    made_by = generator.of(context)
    network.check(made_by.image_shape, "generated images")
    real, origin = _reference(context, network)
    indices = np.arange(count)
    labels, choice = generator.choose_labels(config, indices)
    generated = networks.describe(network, made_by.batches(labels, indices), count, features=None)
    found = named(network, compare(generated, real, k=k, mesh=network.sharding.mesh))
    record = {
        "metrics": found,
        "samples": count,
        "checkpoint_step": int(context.state.step),
        "ema": config.optim.ema > 0,
        **made_by.provenance(choice),
        "reference": origin,
        "features": network.provenance(),
        "neighbourhood": k,
        "batch_size": made_by.batch_size,
        "environment": rundir.environment(network.sharding.mesh, jax.process_count()),
    }
    del record["environment"]["uncommitted"]  # of the code, which env.json keeps
    if context.record:
        context.record("generation", record)
    say(summary(record))
    yield from found.items()


def named(network: Network, found: dict[str, float]) -> dict[str, float]:
    """The metrics of `comparison.compare` under the names that this network gives them."""
    if network.name == "inception":
        return found
    return {
        f"{network.name}_{'distance' if name == 'fid' else name}": value
        for name, value in found.items()
    }


def summary(record: dict[str, Any]) -> str:
    """What the numbers of a record were measured on, in three lines for people."""
    guided = f"guidance {record['guidance']:g}"
    if record["guidance"] != 1:
        low, high = record["guidance_interval"]
        channels = record["guidance_channels"]
        guided += f" on {f'the first {channels}' if channels else 'all'} channels"
        guided += f" at noise levels {low:g} to {high:g}"
    decoder, origin, features = record["decoder"], record["reference"], record["features"]
    parts = [
        f"{record['samples']} samples of step {record['checkpoint_step']}",
        "EMA weights" if record["ema"] else "weights without EMA",
        f"{record['sampler']} {record['steps']} steps",
        *([f"eta {record['eta']:g}"] if record["eta"] else []),
        *(["clipped"] if record["clip"] else []),
        guided,
        f"labels {record['labels']}",
        f"seed {record['seed']}",
        *([f"decoder {decoder['path']} ({decoder['sha256'][:12]})"] if decoder else []),
    ]
    where = (
        f"{origin['path']} ({origin['sha256'][:12]})"
        if "path" in origin
        else f"{origin['images']} images of {origin['data']}, {origin['split']}"
    )
    how = f", resized as {features['resize']} does" if features["resize"] else ""
    return "\n".join(
        (
            f"generation: {', '.join(parts)}",
            f"  reference {where}",
            f"  features  {features['path']} ({features['sha256'][:12]}){how}",
        )
    )


def load_network(features: str, resize: str, context: Context) -> Network:
    """The network that `eval.features` names, a file of Inception's or a classifier's run."""
    if not features:
        raise ConfigError(
            f"config.eval.features is empty: write the path of {PUBLIC_FILE} (published with"
            " pytorch-fid) for FID, or the run directory of a classifier for its own distance"
        )
    mesh = context.steps.batch_sharding.mesh
    key = ("features", features, resize)
    if key not in context.kept:
        context.kept[key] = (context.network or networks.inception)(features, resize, mesh)
    return context.kept[key]


# The reference ----------------------------------------------------------------------------


def _reference(context: Context, network: Network) -> tuple[Description, dict[str, Any]]:
    """The real images as the network sees them, described once a run; and what they are."""
    config = context.config
    key = ("reference", config.eval.reference, network.path, network.resize)
    if key not in context.kept:
        if config.eval.reference:
            found = of_file(config.eval.reference, network)
        elif config.data.name == "latents":
            raise ConfigError(
                "config.eval.reference is empty, and a set of latents has no images to compare"
                " with: write the .npz file of a reference (`pit-jax data stats` makes it)"
            )
        else:
            found = _of_training_set(context, network)
        context.kept[key] = found
    description, origin = context.kept[key]
    k = config.eval.neighbourhood
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


def _of_training_set(context: Context, network: Network) -> tuple[Description, dict[str, Any]]:
    data = context.config.data
    pipeline = context.training()
    batches = pipeline.evaluate()
    read = context.steps.read(_rows)

    def images() -> Iterator[np.ndarray]:
        with contextlib.closing(batches):
            for batch in batches:
                found = jax.device_get(read(context.state.eval_params, batch, np.int32(0)))
                yield found["image"][found["mask"] > 0]

    description = networks.describe(network, images(), len(pipeline.reader))
    origin = {
        "data": data.name,
        "split": data.split,
        "per_class": data.per_class,
        "images": description.count,
    }
    return description, origin


def _rows(params: Any, batch: dict, extra: jax.Array) -> dict[str, jax.Array]:
    """A batch as it is: `steps.read` brings it whole to every process."""
    del params, extra
    return {name: batch[name] for name in ("image", "mask")}
