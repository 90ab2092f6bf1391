"""How good generated images are: FID and its kin, or distances of a classifier's features.

With FID's Inception the metrics have their published names. With a classifier of this project
they begin with its name instead: such a distance is no FID and compares only with distances
of the same classifier.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from pit_jax import files, rundir
from pit_jax.data import latent_origin
from pit_jax.errors import ConfigError, PitError
from pit_jax.evals import generator, networks, real_images
from pit_jax.evals.comparison import Description, compare
from pit_jax.evals.context import Context
from pit_jax.evals.inception_score import SPLIT
from pit_jax.evals.networks import Network
from pit_jax.parallel import leader
from pit_jax.parallel import mesh as meshes
from pit_jax.weights.inception import PUBLIC_FILE


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
    count = config.sample.num
    _check_num(config)
    network = load_network(config, context)
    made_by = generator.of(context)
    network.check(made_by.image_shape, "generated images")
    real = _real(context, network)
    indices = np.arange(count)
    labels, choice = generator.choose_labels(config, indices)
    batches = context.until_stopped(made_by.batches(labels, indices))
    generated = networks.describe(network, batches, count, features=None)
    made = {
        "checkpoint_step": int(context.state.step),
        "ema": config.optim.ema > 0,
        **made_by.provenance(choice),
        "batch_size": made_by.batch_size,
    }
    record = measured(config, network, generated, real, made)
    if context.record:
        context.record("generation", record)
    say(summary(record))
    yield from record["metrics"].items()


def check_start(
    config: Any,
    load: Callable[[str, str, Mesh], Network],
    devices: Sequence[jax.Device] | None = None,
) -> None:
    """Refuses a run that is to measure what it generates and could not, before it trains.

    Looks at all that `evaluate` needs but the training set and the images of a reference. All
    processes call it alike.

    Args:
      config: resolved; where "generation" is not in `eval.what` there is nothing to look at.
      load: what `Context.network` is.
      devices: of the run; all of them by default.

    Raises:
      ConfigError: if `eval.features`, `eval.reference` or the decoder of latents are not there or
        do not fit, or `sample.num` is too small.
      StorageError: if one of them is damaged.
    """
    if config.task != "diffusion" or "generation" not in config.eval.what:
        return
    _check_num(config)
    check_features(config)
    _check_shared(config)
    failure = None
    try:
        _look(config, load, meshes.make_mesh(config.mesh, devices))
    except PitError as error:
        failure = error
    # Who leaves first takes the others down, before they have said why.
    others = leader.on_all(failure is not None)
    if failure:
        raise failure
    if any(others):
        raise ConfigError(f"process {others.index(True)} cannot measure what would be generated")


def _check_shared(config: Any) -> None:
    """Refuses files that some processes have and others do not, who would wait for each other."""
    for name in ("features", "reference"):
        path = config.eval[name]
        with files.told(path, "read"):
            there = bool(path) and epath.Path(path).exists()
        sees = leader.on_all(there)
        if any(sees) and not all(sees):
            raise ConfigError(
                f"config.eval.{name}={path} is not there for process {sees.index(False)}: name a"
                " place that all machines share, or one on gs://"
            )


def _look(config: Any, load: Callable[[str, str, Mesh], Network], mesh: Mesh) -> None:
    network = load(config.eval.features, config.eval.resize, mesh)
    decoder = None
    if config.data.name == "latents":
        origin = latent_origin.of_store(config.data)
        decoder = latent_origin.load_autoencoder(config, origin).model
    network.check(generator.image_shape(config.data, decoder), "generated images")
    if config.eval.reference:
        real_images.opened(config, network)


def _check_num(config: Any) -> None:
    count = config.sample.num
    check_count(count, config, f"config.sample.num={count} images are")


def check_count(count: int, config: Any, whose: str) -> None:
    """Refuses fewer images than `eval.neighbourhood` needs; `whose` begins the sentence."""
    k = config.eval.neighbourhood
    if count <= k:
        raise ConfigError(
            f"{whose} too few for {k} neighbours: write more than {k}, 50000 for numbers that"
            " compare with published ones"
        )


def measured(
    config: Any,
    network: Network,
    generated: Description,
    real: tuple[Description, dict[str, Any]],
    made: dict[str, Any],
) -> dict[str, Any]:
    """The record of a comparison: "metrics", and all that they depend on, as JSON knows it.

    Args:
      config: resolved; `eval.neighbourhood` counts.
      network: that looked at both sets.
      generated: what is measured.
      real: what `real_images.describe` returns.
      made: how the generated images were.
    """
    k, mesh = config.eval.neighbourhood, network.sharding.mesh
    description, origin = real
    rows, scored = description.features, generated.score is not None
    environment = rundir.environment(mesh, jax.process_count())
    del environment["uncommitted"]  # of the code, which env.json keeps
    return {
        "metrics": named(network, compare(generated, description, k=k, mesh=mesh)),
        "samples": generated.count,
        **made,
        "reference": origin,
        "features": network.provenance(),
        "neighbourhood": k,
        "reference_features": None if rows is None else len(rows),
        "inception_score_split": SPLIT if scored else None,
        "environment": environment,
    }


def named(network: Network, found: dict[str, float]) -> dict[str, float]:
    """The metrics of `comparison.compare` under the names that this network gives them."""
    if network.name == "inception":
        return found
    return {
        f"{network.name}_{'distance' if name == 'fid' else name}": value
        for name, value in found.items()
    }


def summary(record: dict[str, Any]) -> str:
    """What the numbers of a record were measured on, in a few lines for people."""
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
        f"{record['sampler']} {record['steps']} steps"
        + (f" ({record['spacing']})" if record.get("spacing", "linspace") != "linspace" else ""),
        *([f"eta {record['eta']:g}"] if record["eta"] else []),
        *([f"{record['variance']} variance"] if "variance" in record else []),
        *(["clipped"] if record["clip"] else []),
        guided,
        f"labels {record['labels']}",
        f"seed {record['seed']}",
        *([f"in {record['dtype']}"] if "dtype" in record else []),
        *([f"decoder {decoder['path']} ({decoder['sha256'][:12]})"] if decoder else []),
    ]
    where = (
        f"{origin['path']} ({origin['sha256'][:12]})"
        if "path" in origin
        else f"{origin['images']} images of {origin['data']}, {origin['split']}"
    )
    how = f", resized as {features['resize']} does" if features["resize"] else ""
    file = record.get("file")
    return "\n".join(
        (
            f"generation: {', '.join(parts)}",
            *([f"  samples   {file['path']} ({file['sha256'][:12]})"] if file else []),
            f"  reference {where}",
            f"  features  {features['path']} ({features['sha256'][:12]}){how}",
            *([f"  measured  {'; '.join(measures)}"] if (measures := _measures(record)) else []),
        )
    )


def _measures(record: dict[str, Any]) -> list[str]:
    """What else the numbers depend on, as far as they were measured."""
    rows, split = record["reference_features"], record["inception_score_split"]
    found = []
    if rows is not None:
        found += [
            f"precision and recall within {record['neighbourhood']} neighbours, of {rows}"
            " reference features"
        ]
    if split is not None:
        # As ADM's evaluator takes them; a short one has too low a score, and counts as much.
        last = record["samples"] % split
        found += [
            f"Inception score in splits of {split}" + (f", the last of {last}" if last else "")
        ]
    return found


def check_features(config: Any) -> None:
    """Refuses a config that names no network."""
    if not config.eval.features:
        raise ConfigError(
            f"config.eval.features is empty: write the path of {PUBLIC_FILE} (published with"
            " pytorch-fid) for FID, or the run directory of a classifier for its own distance"
        )


def load_network(config: Any, context: Context) -> Network:
    """The network that `eval.features` names, a file of Inception's or a classifier's run."""
    check_features(config)
    mesh = context.steps.batch_sharding.mesh
    features, resize = config.eval.features, config.eval.resize
    key = ("features", features, resize)
    if key not in context.kept:
        context.kept[key] = (context.network or networks.inception)(features, resize, mesh)
    return context.kept[key]


def _real(context: Context, network: Network) -> tuple[Description, dict[str, Any]]:
    """The real images as the network sees them, described once a run; and what they are."""
    config = context.config
    key = ("reference", config.eval.reference, network.path, network.resize)
    if key not in context.kept:
        context.kept[key] = real_images.describe(
            config, network, lambda: _training_set(context), context.until_stopped
        )
    return context.kept[key]


def _training_set(context: Context) -> real_images.Images:
    pipeline = context.training()
    read = context.steps.read(_rows)

    def images() -> Iterator[np.ndarray]:
        with contextlib.closing(pipeline.evaluate()) as batches:
            for batch in context.until_stopped(batches):
                found = jax.device_get(read(context.state.eval_params, batch, np.int32(0)))
                yield found["image"][found["mask"] > 0]

    return len(pipeline.reader), images()


def _rows(params: Any, batch: dict, extra: jax.Array) -> dict[str, jax.Array]:
    """A batch as it is: `steps.read` brings it whole to every process."""
    del params, extra
    return {name: batch[name] for name in ("image", "mask")}
