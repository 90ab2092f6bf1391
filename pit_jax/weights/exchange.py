"""`pit-jax weights import|export`: between run directories and the files other tools read."""

from collections.abc import Callable
from typing import Any

import jax
from etils import epath

from pit_jax import checkpoint, configfile, rundir, tasks
from pit_jax.config import assign, base, flatten
from pit_jax.errors import ConfigError
from pit_jax.validation import resolve
from pit_jax.weights import (
    huggingface,
    huggingface_directory,
    huggingface_mae,
    initial,
    load,
    tensors,
)


def export_weights(
    source: str, target: str, layout: str, report: Callable[[str], None] = print
) -> None:
    """Writes the evaluated weights of a run.

    Args:
      source: the run directory.
      target: "huggingface": a directory; "pit_jax": a .safetensors file.
      layout: which of the two.
    """
    run = rundir.RunDir(source)
    config = run.config()
    saved = checkpoint.Checkpoints(run)
    if not saved.steps():
        raise ConfigError(f"{source} holds no checkpoint yet")
    step = saved.newest_intact(report, repair=False)
    params = saved.read_weights(step)
    if layout == "huggingface":
        huggingface_directory.write(target, params, config)
    else:
        tensors.write(target, tensors.flatten(params), _model_fields(config))
    report(f"weights of step {step} written to {target}")


def import_weights(
    source: str,
    target: str,
    spec: str | None,
    interpolate: bool,
    report: Callable[[str], None] = print,
) -> None:
    """Turns Hugging Face weights into a .safetensors file for `config.init_from`.

    Args:
      source: a Hugging Face directory, or its .safetensors file (then `spec` is needed).
      target: the file to write.
      spec: FILE[:ARG] of the model it becomes; by default what its config.json says.
      interpolate: resample positions learned at another image size.
    """
    root = epath.Path(source)
    if spec:
        config = configfile.load(spec)
        if root.is_dir():
            initial.check_fields(source, huggingface_directory.fields(root), config)
    elif root.is_dir():
        config = _described(root)
    else:
        raise ConfigError(
            f"{source} is no directory with a config.json: name the model by --config"
        )
    found, _ = tensors.read(root / "model.safetensors" if root.is_dir() else root)
    if config.task == "mae":
        if interpolate:
            raise ConfigError("--interpolate: a masked autoencoder belongs to one image size")
        groups = (config.model, config.data, config.mae)
        params: Any = huggingface_mae.from_huggingface(found, *groups)
    else:
        params = huggingface.from_huggingface(found, config.model, config.data, interpolate)
    shapes = jax.eval_shape(tasks.build(config).init, jax.random.key(0))
    merged, _ = load.merge(shapes, params, may_be_new=())
    tensors.write(target, tensors.flatten(merged), _model_fields(config))
    count = sum(x.size for x in jax.tree.leaves(merged))
    report(f"{count:,} parameters written to {target}: use it as config.init_from")


def _described(root: epath.Path) -> Any:
    """The config of the model that a Hugging Face directory holds."""
    config = base()
    config.train.steps = 1
    for name, value in huggingface_directory.fields(root).items():
        assign(config, name, value)
    if config.task == "mae":  # whose positions are computed tables, unless we made it
        found, _ = tensors.read(root / "model.safetensors")
        config.model.position, config.mae.decoder_position = huggingface_mae.positions(found)
    return resolve(config)


def _model_fields(config: Any) -> dict[str, Any]:
    kept = ("task", "model.", "data.", *(("mae.",) if config.task == "mae" else ()))
    return {k: v for k, v in flatten(config).items() if k.startswith(kept)}
