"""`pit-jax eval --samples`: how good the images are that `pit-jax sample` wrote.

The same numbers and record as those of a generation evaluation, without the model: nothing
is generated or restored, so any machine that holds the feature network will do.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
from etils import epath

from pit_jax import classifier, reference_statistics, rundir
from pit_jax.data import pipeline, sources
from pit_jax.errors import ConfigError
from pit_jax.evals import generation, networks, real_images, reference
from pit_jax.files import sha256
from pit_jax.parallel import mesh as meshes
from pit_jax.validation import resolve

_READ = 256  # images of the file that are read at a time
# What a file of samples must say of them: the numbers depend on it.
_NEEDED = ("checkpoint_step", "checkpoint_sha256", "ema", "sampler", "steps", "eta", "clip")
_NEEDED += ("guidance", "guidance_channels", "guidance_interval", "labels", "seed")
_NEEDED += ("num", "image_shape", "decoder")


def measure(
    config: Any,
    workdir: str | os.PathLike,
    samples: str | os.PathLike,
    devices: Sequence[jax.Device] | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, float]:
    """Compares written samples with `eval.reference`, or the training set.

    Writes records/samples_<the file's SHA-256>-<step>.json into the run's directory.

    Args:
      config: the run's; its evaluation may have been changed.
      workdir: the run that made the samples.
      samples: samples.npz, or the directory that it lies in.
      devices: those to use; all of them by default.
      say: takes what the numbers were measured on.

    Returns:
      {"step": ..., "eval/fid": ..., ...}, named as `evals.generation` names them.

    Raises:
      ConfigError: if the file is no samples of this run, or does not fit network or reference.
      StorageError: if a file is damaged.
    """
    config = resolve(config)
    if config.task != "diffusion":
        raise ConfigError(
            f"--samples: {workdir} was trained by task {config.task!r}, which makes no samples"
        )
    run = rundir.RunDir(workdir)
    run.check_same(config)
    generation.check_features(config)
    path = _file(samples)
    found = reference.read(path)
    made = _made(found, run)
    generation.check_count(made["num"], config, f"the {made['num']} images of {path} are")
    writes = jax.process_index() == 0
    mesh = meshes.make_mesh({"data": -1, "fsdp": 1, "seq": 1, "model": 1}, devices)
    network = classifier.network(config.eval.features, config.eval.resize, mesh)
    network.check(made["image_shape"], f"the images of {path}")
    if writes and not _manifest(run, made).exists():
        say(
            f"checkpoint {made['checkpoint_step']} of {run.path} is gone: only {path} says"
            " that the samples are of it"
        )

    def training_set() -> real_images.Images:
        source = sources.training(config.data, labelled=False)
        reader = pipeline.Reader(source, config.data, train=False)
        return len(reader), reference_statistics.batches(reader, mesh, config.data.workers)

    with jax.set_mesh(mesh):
        real = real_images.describe(config, network, training_set)
        images = reference.image_batches(path, _READ)
        generated = networks.describe(network, images, made["num"], features=None)
        facts = {name: x for name, x in made.items() if name not in ("schema", "num")}
        facts["file"] = {"path": str(path), "sha256": found.sha256}
        record = generation.measured(config, network, generated, real, facts)
    if writes:
        run.write_record(made["checkpoint_step"], f"samples_{found.sha256[:12]}", record)
        say(generation.summary(record))
    metrics = {f"eval/{name}": value for name, value in record["metrics"].items()}
    return {"step": made["checkpoint_step"]} | metrics


def _file(samples: str | os.PathLike) -> epath.Path:
    path = epath.Path(samples)
    if path.is_dir():
        if (path / "sample.json").exists() and not (path / "samples.npz").exists():
            raise ConfigError(f"--samples {path} is not finished: start its `pit-jax sample` again")
        path = path / "samples.npz"
    if not path.exists():
        raise ConfigError(
            f"--samples {path} does not exist: name the samples.npz that `pit-jax sample` wrote,"
            " or its directory"
        )
    return path


def _made(found: reference.Reference, run: rundir.RunDir) -> dict[str, Any]:
    """What a file says of its images, if they are this run's."""
    path, said = found.path, found.provenance or {}
    lacking = [name for name in _NEEDED if name not in said]
    if found.images is None or lacking:
        what = f"does not say its {lacking[0]}" if found.images and said else "is of another kind"
        raise ConfigError(
            f"--samples {path} {what}: only the samples.npz of `pit-jax sample` is measured as a"
            " run's"
        )
    count, *size, _ = found.images
    if [said["num"], *said["image_shape"][:2]] != [count, *size]:
        raise ConfigError(
            f"--samples {path} says that it has {said['num']} images of"
            f" {' × '.join(map(str, said['image_shape'][:2]))}, but it has {count} of"
            f" {' × '.join(map(str, size))}: sample again"
        )
    manifest = _manifest(run, said)
    if manifest.exists() and sha256(manifest) != said["checkpoint_sha256"]:
        raise ConfigError(
            f"--samples {path} is of another run than {run.path}, whose checkpoint"
            f" {said['checkpoint_step']} has other weights: name the run that made it"
        )
    return said


def _manifest(run: rundir.RunDir, said: dict[str, Any]) -> epath.Path:
    return run.path / "manifests" / f"{said['checkpoint_step']}.json"
