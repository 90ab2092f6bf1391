"""What a fresh run starts from: another run's state, its weights, a file, or scratch."""

from collections.abc import Callable
from typing import Any

import jax
from etils import epath

from pit_jax.checkpoint import Checkpoints
from pit_jax.config import flatten
from pit_jax.errors import ConfigError
from pit_jax.rundir import RunDir
from pit_jax.state import State
from pit_jax.weights import huggingface, huggingface_directory, load, tensors


def state(config: Any, steps: Any, say: Callable[[str], None]) -> State:
    """The state at the first step of a run that has no checkpoint of its own.

    Args:
      config: resolved; `resume` takes another run's whole state, `init_from` its weights
        or those of a file.
      steps: the run's `step.Steps`.
      say: takes lines about what was loaded.
    """
    if config.resume:
        source = _checkpoints(config.resume, "config.resume")
        number = source.newest_intact(say, repair=False)
        say(f"starts from the whole state of {config.resume} at step {number}")
        return source.restore(number, steps.shapes)
    fresh = steps.init(jax.random.key(config.train.seed))
    if not config.init_from:
        return fresh
    merged, report = load.merge(fresh.params, read_weights(config.init_from, config))
    say(f"weights from {config.init_from}\n{report}")
    params = jax.device_put(merged, jax.tree.map(lambda x: x.sharding, fresh.params))
    # A copy: the step donates its state, and no buffer may be donated twice.
    ema = jax.tree.map(lambda x: x.copy(), params) if jax.tree.leaves(fresh.ema) else ()
    return fresh.replace(params=params, ema=ema)


def read_weights(path: str, config: Any) -> dict:
    """The weights of a run directory (its evaluated ones), or of a .safetensors file.

    A file is one of ours (`pit-jax weights export --format pit_jax`) or Hugging Face's; of
    the latter the directory may be given, whose config.json is then held against ours.

    Returns:
      A nested dict of NumPy arrays.

    Raises:
      ConfigError: if there are none at `path`.
    """
    if (epath.Path(path) / "manifests").exists():
        saved = _checkpoints(path, "config.init_from")
        check_fields(path, flatten(RunDir(path).config()), config)
        return saved.read_weights(saved.newest_intact(repair=False))
    source = epath.Path(path)
    if not source.exists():
        raise ConfigError(f"config.init_from={path} does not exist")
    if source.is_dir():  # as Hugging Face writes it
        check_fields(path, huggingface_directory.fields(source), config)
        source = source / "model.safetensors"
    found, fields = tensors.read(source)
    if fields is None:
        return huggingface.from_huggingface(found, config.model, config.data)
    check_fields(path, fields, config)
    return tensors.unflatten(found)


def check_fields(path: str, fields: dict[str, Any], config: Any) -> None:
    """Refuses weights of a model that computes something else with the same shapes."""
    ours = flatten(config)
    for name in ("model.heads", "model.norm_eps", "model.position", "model.pool", "model.patch"):
        if name in fields and fields[name] != ours[name]:
            raise ConfigError(
                f"the weights in {path} were made with {name}={fields[name]!r},"
                f" the config has {ours[name]!r}"
            )


def _checkpoints(path: str, field: str) -> Checkpoints:
    checkpoints = Checkpoints(RunDir(path))
    if not checkpoints.steps():
        raise ConfigError(f"{field}={path} holds no checkpoint")
    return checkpoints
