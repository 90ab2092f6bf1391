"""What a fresh run starts from: another run's state, its weights, a file, or scratch."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from pit_jax import files
from pit_jax.checkpoint import Checkpoints
from pit_jax.config import flatten
from pit_jax.data import identity
from pit_jax.errors import ConfigError
from pit_jax.models import order
from pit_jax.models.embed import sincos2d
from pit_jax.models.vit import has_cls
from pit_jax.rundir import RunDir
from pit_jax.state import State
from pit_jax.weights import (
    dit_files,
    huggingface,
    huggingface_directory,
    huggingface_mae,
    load,
    otherwise,
    public_vit,
    tensors,
)

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

# What may start afresh: a head for other classes, the norm of averaged tokens, a decoder.
_MAY_BE_NEW = ("head", "depth_head", "pool_norm", "decoder")

_TABLE = ("sincos2d", "learned")  # a computed table may become the first of learned positions


@dataclasses.dataclass(frozen=True)
class Found:
    """Weights that a run may start from.

    Attributes:
      fields: what is known of the config that they were made with, by dotted names.
      read: the weights, a nested dict of NumPy arrays.
      classes: names of those that they tell apart, where that is known.
      note: a line about which weights these are, "" if there were no others.
    """

    fields: dict[str, Any]
    read: Callable[[], dict]
    classes: Sequence[str] = ()
    note: str = ""


def state(
    config: Any, steps: Any, say: Callable[[str], None], classes: Sequence[str] = ()
) -> State:
    """The state at the first step of a run that has no checkpoint of its own.

    Args:
      config: resolved; `resume` takes another run's whole state, `init_from` its weights
        or those of a file.
      steps: the run's `step.Steps`.
      say: takes lines about what was loaded.
      classes: names of those that the run learns, () if its set does not say them.
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
    group, relearnt = otherwise.classes(found.fields, found.classes, config, classes)
    for warning in (
        identity.latents_differ(config),
        otherwise.asked(found.fields, config),
        *otherwise.seen(found.fields, config),
        relearnt,
        found.note,
    ):
        if warning:
            say(warning)
    weights = {name: tree for name, tree in found.read().items() if name != group}
    table = computed(found.fields, config, fresh.params)
    may_be_new = (*_MAY_BE_NEW, group) if group else _MAY_BE_NEW
    merged, report = load.merge(fresh.params, weights, may_be_new, table)
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
        return Found(fields, lambda: theirs, fields.get("classes", ()))
    if source.is_dir() and dit_files.is_one(source):
        return _public_dit(path, config)
    if source.is_dir():
        try:
            fields = flatten(RunDir(path).config())
        except ConfigError as error:
            raise ConfigError(f"config.init_from: {error}") from None
        check_fields(path, fields, config)
        saved = _checkpoints(path, "config.init_from")
        kept = identity.of_run(RunDir(path))
        return Found(
            fields,
            lambda: saved.read_weights(saved.newest_intact(repair=False)),
            kept.classes if kept else (),
        )
    found, fields, note = public_vit.read(source)
    if fields is None:
        return _public(path, found, config, note)
    check_fields(path, fields, config)
    return Found(fields, lambda: tensors.unflatten(found), fields.get("classes", ()))


def _public(path: str, found: dict, config: Any, note: str) -> Found:
    """Of a file of others, which says by its tensors alone what it is."""
    if dit_files.has_names(found):
        return _public_dit(path, config)
    decodes = any(name.startswith("decoder.") for name in found)
    tells = any(name.startswith("classifier.") for name in found)
    task = "mae" if decodes else "classification" if tells else ""  # an encoder is of any
    asked = config.init_task
    if asked not in ("", *((task,) if task else ("mae", "classification"))):
        raise ConfigError(
            f"config.init_from={path} does not say what it was trained by, and"
            f" config.init_task={asked!r}: name its directory, or import it first"
        )
    if task == config.task == "mae":
        theirs = huggingface_mae.from_huggingface(found, config.model, config.data, config.mae)
    else:
        encoder = {name: x for name, x in found.items() if not name.startswith("decoder.")}
        model = huggingface.with_cls(config.model)
        theirs = huggingface.from_huggingface(encoder, model, config.data)
    return Found({"task": task} if task else {}, lambda: theirs, note=note)


def _public_dit(path: str, config: Any) -> Found:
    """Of a file or directory of a Diffusion Transformer's."""
    if config.task != "diffusion" or config.init_task not in ("", "diffusion"):
        raise ConfigError(
            f"config.init_from={path} is a Diffusion Transformer's, but config.task is"
            f" {config.task!r} and config.init_task {config.init_task!r}"
        )
    notes: list[str] = []
    theirs = dit_files.read(path, config, notes.append)
    return Found({"task": "diffusion"}, lambda: theirs, note="".join(notes))


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
