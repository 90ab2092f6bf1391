"""What a fresh run starts from: another run's state, its weights, a file, or scratch."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from etils import epath

from pit_jax import files
from pit_jax.checkpoint import Checkpoints
from pit_jax.config import flatten
from pit_jax.data import latent_origin
from pit_jax.errors import ConfigError
from pit_jax.models import order
from pit_jax.models.embed import sincos2d
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

# The same between two runs of one task, whose decoder comes along.
_OF_TASK = {
    "mae": ("mae.decoder_width", "mae.decoder_depth", "mae.decoder_heads")
    + ("mae.decoder_position", "mae.normalise_target"),
    "autoencoder": ("autoencoder.channels", "autoencoder.layers", "autoencoder.latent")
    + ("autoencoder.groups", "autoencoder.attends"),
}

# What a diffusion's network is asked and told. To go over from one to the other is a way of
# fine-tuning (Stable Diffusion 2 did so from epsilon to v): it is said and not refused.
_ASKED = ("family", "predict", "schedule", "timesteps")

# What may start afresh: a head for other classes, the norm of averaged tokens, a decoder.
_MAY_BE_NEW = ("head", "depth_head", "pool_norm", "decoder")

_TABLE = ("sincos2d", "learned")  # a computed table may become the first of learned positions


@dataclasses.dataclass(frozen=True)
class Found:
    """Weights that a run may start from.

    Attributes:
      fields: what is known of the config that they were made with, by dotted names.
      read: the weights, a nested dict of NumPy arrays.
    """

    fields: dict[str, Any]
    read: Callable[[], dict]


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
    found = find(config.init_from, config)
    for warning in (latent_origin.difference(config), asked_otherwise(found.fields, config)):
        if warning:
            say(warning)
    table = computed(found.fields, config, fresh.params)
    merged, report = load.merge(fresh.params, found.read(), _MAY_BE_NEW, table)
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
    elif config.init_task and not config.resume:
        # Without weights below it, a rate that falls layer by layer leaves the first untrained.
        scratch = " --config.optim.layer_decay=1.0" if config.optim.layer_decay != 1 else ""
        raise ConfigError(
            f"config.init_from is empty, but config.init_task={config.init_task!r} asks for the"
            " weights of such a run: name its directory, or train from scratch with"
            f" --config.init_task={scratch}"
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
    return find(path, config).read()


def find(path: str, config: Any) -> Found:
    """Looks at what lies at `path`. What is Hugging Face's is read at once, so that whatever
    does not fit is known before a run directory is made.

    Raises:
      ConfigError: if there are no weights, or not of `config.init_task`, or of a model that
        computes something else than the config's.
    """
    files.check_place(path, "config.init_from")
    source = epath.Path(path)
    with files.told(path, "read"):
        there = source.exists()
    if not there:
        raise ConfigError(f"config.init_from={path} does not exist")
    if source.is_dir() and huggingface_directory.is_one(source):
        fields = huggingface_directory.fields(source)
        check_fields(path, fields, config)
        theirs = huggingface_directory.read(source, fields, config)
        return Found(fields, lambda: theirs)
    if source.is_dir():
        try:
            fields = flatten(RunDir(path).config())
        except ConfigError as error:
            raise ConfigError(f"config.init_from: {error}") from None
        check_fields(path, fields, config)
        saved = _checkpoints(path, "config.init_from")
        return Found(fields, lambda: saved.read_weights(saved.newest_intact(repair=False)))
    found, fields = tensors.read(source)
    if fields is None:
        if config.init_task not in ("", "classification"):
            raise ConfigError(
                f"config.init_from={path} does not say what it was trained by, and"
                f" config.init_task={config.init_task!r}: name its directory, or import it first"
            )
        theirs = huggingface.from_huggingface(
            found, huggingface.with_cls(config.model), config.data
        )
        return Found({}, lambda: theirs)
    check_fields(path, fields, config)
    return Found(fields, lambda: tensors.unflatten(found))


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
    for name in _DECISIVE + (_OF_TASK.get(task, ()) if task == config.task else ()):
        theirs = fields.get(name, ours[name])
        theirs = tuple(theirs) if isinstance(theirs, list) else theirs  # of a file's JSON
        same = theirs == ours[name]
        if name == "model.pool":  # what stands in the sequence must be the same, not the head
            same = has_cls(theirs) == has_cls(ours[name])
        if name == "model.position":
            same = same or (theirs, ours[name]) == _TABLE
        if not same:
            raise ConfigError(
                f"the weights in {path} were made with {name}={theirs!r},"
                f" the config has {ours[name]!r}"
            )


def asked_otherwise(fields: dict[str, Any], config: Any) -> str | None:
    """A warning where a diffusion starts from one whose network was asked something else.

    Args:
      fields: of the config that the weights were made with.
      config: the run's.
    """
    if not config.task == fields.get("task") == "diffusion":
        return None
    ours = config.diffusion
    theirs = {name: fields.get(f"diffusion.{name}", ours[name]) for name in _ASKED}
    flows = "flow" in (ours.family, theirs["family"])  # which have no schedule and no timesteps
    differs = [
        f"config.diffusion.{name}={theirs[name]!r}, now {ours[name]!r}"
        for name in (_ASKED[:2] if flows else _ASKED)
        if theirs[name] != ours[name]
    ]
    if not differs:
        return None
    return (
        f"config.init_from={config.init_from} learnt with {', '.join(differs)}: what its network"
        " says and is told means something else here"
    )


def computed(fields: dict[str, Any], config: Any, params: Any) -> dict[str, np.ndarray]:
    """The table of weights whose model computes its positions, where ours are learned: they
    start from it, as in public MAE's fine-tuning.

    Args:
      fields: of the config that the weights were made with.
      config: the run's.
      params: the fresh tree (arrays or shapes).

    Returns:
      {"embed/position": (tokens, width) float32}, or nothing where nothing is computed.
    """
    model = config.model
    if (fields.get("model.position"), model.position) != _TABLE:
        return {}
    side = config.data.image_size // model.patch
    table = sincos2d((side, side), model.width)[order.indices(model.order, side, model.order_seed)]
    before = len(params["embed"]["position"]) - side**2  # [CLS], which has no place: zeros
    return {"embed/position": np.pad(table, ((before, 0), (0, 0)))}


def _checkpoints(path: str, field: str) -> Checkpoints:
    checkpoints = Checkpoints(RunDir(path))
    if not checkpoints.steps():
        raise ConfigError(f"{field}={path} holds no checkpoint")
    return checkpoints
