"""What a fresh run starts from: another run's state, its weights, a file, or scratch."""

from collections.abc import Callable
from typing import Any

import jax
from etils import epath

from pit_jax.checkpoint import Checkpoints
from pit_jax.config import flatten
from pit_jax.data import latent_origin
from pit_jax.errors import ConfigError
from pit_jax.models.vit import has_cls
from pit_jax.rundir import RunDir
from pit_jax.state import State
from pit_jax.weights import huggingface, huggingface_directory, load, tensors

# Fields that decide what a model computes. The sizes among them would be noticed by their
# shapes, too, but not in words that anybody knows.
_DECISIVE = ("model.name", "model.width", "model.depth", "model.mlp", "model.heads")
_DECISIVE += ("model.norm_eps",)
_DECISIVE += ("model.patch", "model.position", "model.pool", "model.embed")
_DECISIVE += ("model.order", "model.order_seed")
_DECISIVE += ("model.frequency_steps", "data.image_size", "data.channels")
_DECISIVE += ("convnet.channels", "convnet.layers", "convnet.kernel", "convnet.downsample")
_DECISIVE += ("perceiver.latents", "perceiver.rounds", "autoregressive.levels")

# What may start afresh: a head for other classes, the norm of averaged tokens, a decoder.
_MAY_BE_NEW = ("head", "depth_head", "pool_norm", "decoder")


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
    if warning := latent_origin.difference(config):
        say(warning)
    merged, report = load.merge(fresh.params, read_weights(config.init_from, config), _MAY_BE_NEW)
    say(f"weights from {config.init_from}\n{report}")
    params = jax.device_put(merged, jax.tree.map(lambda x: x.sharding, fresh.params))
    # A copy: the step donates its state, and no buffer may be donated twice.
    ema = jax.tree.map(lambda x: x.copy(), params) if jax.tree.leaves(fresh.ema) else ()
    return fresh.replace(params=params, ema=ema)


def check(config: Any) -> None:
    """Refuses, before a run directory is made, a start that cannot be.

    Raises:
      ConfigError: if `resume` or `init_from` lack what they should hold, or `init_from` is of
        another task than `init_task` or of a model that computes something else.
    """
    if config.resume:
        _checkpoints(config.resume, "config.resume")
    if config.init_from:
        find(config.init_from, config)
    elif config.init_task:
        raise ConfigError(
            f"config.init_from is empty, but config.init_task={config.init_task!r} asks for the"
            " weights of such a run: name its directory, or train from scratch with"
            " --config.init_task="
        )


def read_weights(path: str, config: Any) -> dict:
    """The weights of a run directory (its evaluated ones), or of a .safetensors file.

    A file is one of ours (`pit-jax weights export --format pit_jax`) or Hugging Face's; of
    the latter the directory may be given, whose config.json is then held against ours.

    Returns:
      A nested dict of NumPy arrays.

    Raises:
      ConfigError: as `find`.
    """
    return find(path, config)()


def find(path: str, config: Any) -> Callable[[], dict]:
    """Looks at what lies at `path`; the function that is returned reads the weights.

    Raises:
      ConfigError: if there are no weights, or not of `config.init_task`, or of a model that
        computes something else than the config's.
    """
    source = epath.Path(path)
    if not source.exists():
        raise ConfigError(f"config.init_from={path} does not exist")
    if source.is_dir() and huggingface_directory.is_one(source):
        fields = huggingface_directory.fields(source)
        check_fields(path, fields, config)
        return lambda: huggingface_directory.read(source, fields, config)
    if source.is_dir():
        try:
            fields = flatten(RunDir(path).config())
        except ConfigError as error:
            raise ConfigError(f"config.init_from: {error}") from None
        check_fields(path, fields, config)
        saved = _checkpoints(path, "config.init_from")
        return lambda: saved.read_weights(saved.newest_intact(repair=False))
    found, fields = tensors.read(source)
    if fields is None:
        if config.init_task not in ("", "classification"):
            raise ConfigError(
                f"config.init_from={path} does not say what it was trained by, and"
                f" config.init_task={config.init_task!r}: name its directory, or import it first"
            )
        return lambda: huggingface.from_huggingface(found, config.model, config.data)
    check_fields(path, fields, config)
    return lambda: tensors.unflatten(found)


def check_fields(path: str, fields: dict[str, Any], config: Any) -> None:
    """Refuses the weights of another task than asked for, and of a model that computes
    something else, be it with the same shapes."""
    ours = flatten(config)
    task = fields.get("task", "classification")  # files of old say nothing: there was no other
    if config.init_task and task != config.init_task:
        raise ConfigError(
            f"config.init_from={path} was trained by task {task!r}, not by"
            f" config.init_task={config.init_task!r}"
        )
    for name in _DECISIVE:
        theirs = fields.get(name, ours[name])
        theirs = tuple(theirs) if isinstance(theirs, list) else theirs  # of a file's JSON
        if name == "model.pool":  # what stands in the sequence must be the same, not the head
            same = has_cls(theirs) == has_cls(ours[name])
        else:
            same = theirs == ours[name]
        if not same:
            raise ConfigError(
                f"the weights in {path} were made with {name}={theirs!r},"
                f" the config has {ours[name]!r}"
            )


def _checkpoints(path: str, field: str) -> Checkpoints:
    checkpoints = Checkpoints(RunDir(path))
    if not checkpoints.steps():
        raise ConfigError(f"{field}={path} holds no checkpoint")
    return checkpoints
