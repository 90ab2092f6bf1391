"""What weights know otherwise than the run that starts from them: said, since it may be meant."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pit_jax.config import flatten
from pit_jax.data import identity
from pit_jax.weights.preprocessor import spread

# What a diffusion's network is asked and told. To go over from one to the other is a way of
# fine-tuning (Stable Diffusion 2 did so from epsilon to v): it is said and not refused.
_ASKED = ("family", "predict", "schedule", "timesteps")

# Which group of parameters knows classes by their numbers, by task.
_BY_CLASS = {"classification": "head", "diffusion": "label"}


def asked(fields: dict[str, Any], config: Any) -> str | None:
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
        f"config.init_from={config.init_from} learned with {', '.join(differs)}: what its network"
        " takes and gives means something else here"
    )


def classes(
    fields: dict[str, Any], theirs: Sequence[str], config: Any, ours: Sequence[str]
) -> tuple[str | None, str | None]:
    """Where weights of the same task know as many classes, but others.

    A class that both name at different numbers makes the numbers mean something else: what was
    learnt of each is left behind. Names that merely differ may be other words for the same.

    Args:
      fields: of the config that the weights were made with.
      theirs: classes that they know by their numbers, () if that is not known.
      config: the run's.
      ours: the run's classes, likewise.

    Returns:
      The group of parameters that starts afresh, if one does, and a warning, if there is need.
    """
    theirs, ours = tuple(theirs), tuple(ours)
    group = _BY_CLASS.get(config.task)
    if config.task == "diffusion" and not config.diffusion.conditional:
        group = None
    same_task = fields.get("task", "classification") == config.task
    if not (group and same_task and len(theirs) == len(ours)) or theirs == ours:
        return None, None
    said = f"config.init_from={config.init_from} knows other classes"
    if identity.renumbered(theirs, ours):
        differ = identity.difference(theirs, ours)
        return group, f"{said}: {differ}. What it learned of each ({group}) starts afresh"
    number = next(i for i, name in enumerate(ours) if name != theirs[i])
    named = f"{number} is {ours[number]!r} here and {theirs[number]!r} there"
    return None, f"{said} or calls them otherwise ({named}): its {group} is taken number by number"


def seen(fields: dict[str, Any], config: Any) -> list[str]:
    """Warnings where weights learnt from pixels of another mean and standard deviation, and so
    of another range, or with their channels the other way round.

    Args:
      fields: of the config that the weights were made with.
      config: the run's.
    """
    ours, names = flatten(config), ("data.mean", "data.std")
    stored = "latents" in (config.data.name, fields.get("data.name"))
    embeds = (config.model.embed, fields.get("model.embed"))
    if stored or "dictionary" in embeds or not all(name in fields for name in names):
        return []  # which see no pixels, or look colours up
    found = []
    if fields.get("data.order") == "BGR":
        found.append(
            f"config.init_from={config.init_from} was trained on channels in the order blue, green,"
            " red; here it is red, green, blue"
        )
    channels = config.data.channels
    theirs, ours = ([spread(x[name], channels) for name in names] for x in (fields, ours))
    if all(np.allclose(a, b, atol=1e-3) for a, b in zip(theirs, ours, strict=True)):
        return found
    said = [
        f"mean {_numbers(mean)} and standard deviation {_numbers(std)}"
        for mean, std in (theirs, ours)
    ]
    wanted = " ".join(
        f"--config.{name}='{_numbers(x)}'" for name, x in zip(names, theirs, strict=True)
    )
    return [
        *found,
        f"config.init_from={config.init_from} was trained on pixels normalised by {said[0]}, here"
        f" by {said[1]}: write {wanted} to give the weights pixels as they know them",
    ]


def _numbers(values: np.ndarray) -> str:
    """(0.5,) or (0.485, 0.456, 0.406), as a config takes it."""
    found = [f"{x:.4g}" for x in (values[:1] if np.ptp(values) == 0 else values)]
    return f"({found[0]},)" if len(found) == 1 else f"({', '.join(found)})"
