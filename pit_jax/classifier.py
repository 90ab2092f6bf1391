"""A classifier that was trained here, as a network whose features compare sets of images."""

import re
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from pit_jax import files, rundir
from pit_jax.config import label
from pit_jax.errors import ConfigError
from pit_jax.evals.networks import Network, inception
from pit_jax.parallel.mesh import batch_spec
from pit_jax.restored import restore


def network(features: str, resize: str, mesh: Mesh) -> Network:
    """What `eval.features` names: the file of FID's Inception, or a run of a classifier.

    Raises:
      ConfigError, StorageError: if it is neither, or damaged.
    """
    source = rundir.RunDir(features)
    if source.path.is_dir():
        return load(features, mesh)
    return inception(features, resize, mesh)


def load(workdir: str, mesh: Mesh) -> Network:
    """The features of the run in `workdir` at its newest intact checkpoint.

    Its features are what the head reads, of the weights that the run evaluates. It is called
    "classifier_<model>", e.g. "classifier_vit_2", and known by the SHA-256 of the manifest
    that has its checkpoint's sums.

    Raises:
      ConfigError: if there is no run, no checkpoint, or another task.
      StorageError: if no checkpoint is intact.
    """
    config = rundir.RunDir(workdir).config()
    if config.task != "classification":
        raise ConfigError(
            f"{workdir} was trained by task {config.task!r}: images are compared by"
            " the features of a classifier, or of the file of FID's Inception"
        )
    found = restore(config, workdir, mesh)
    manifest = found.run.path / "manifests" / f"{found.number}.json"
    task, params = found.task, found.state.eval_params

    def vectors(params: Any, batch: dict, extra: jax.Array) -> dict[str, jax.Array]:
        del extra
        images = task.normalise(batch)
        return {"pool": task.represent(params, images).astype(jax.numpy.float32)}

    read = found.steps.read(vectors)

    def function(images: jax.Array) -> dict[str, jax.Array]:
        with jax.set_mesh(mesh):
            return read(params, {"image": images}, np.int32(0))

    data = config.data
    shape = (data.image_size, data.image_size, data.channels)
    one = jax.ShapeDtypeStruct((1, *shape), np.float32)
    dim = jax.eval_shape(task.represent, found.steps.shapes.eval_params, one).shape[-1]
    return Network(
        name=f"classifier_{re.sub('[^a-z0-9]+', '_', label(config).lower())}",
        path=str(workdir),
        sha256=files.sha256(manifest),
        dim=dim,
        function=function,
        sharding=NamedSharding(mesh, batch_spec()),
        image_shape=shape,
    )
