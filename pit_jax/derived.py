"""Fields that follow from another one as long as they are 0: change it, and they go along.

`validation.resolve` fills them in. What a run directory's config.json holds is filled in
already: `release` lets it follow again, so that an override of the source there does what it
does in a Python file.
"""

import dataclasses
from collections.abc import Callable, Container, Mapping
from typing import Any

from ml_collections import ConfigDict

from pit_jax.config import FIELDS, assign
from pit_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Derived:
    """What a field is where it is 0; `rule` makes it of the field `source`."""

    source: str
    rule: Callable[[int], int]


HEAD = 32  # channels of a head in public MAE's decoder


def _heads(width: int) -> int:
    """So many that divide the width, of as nearly HEAD channels as can be."""
    possible = (heads for heads in range(1, width + 1) if width % heads == 0)
    return min(possible, key=lambda heads: abs(width / heads - HEAD))


DERIVED: dict[str, Derived] = {
    "model.mlp": Derived("model.width", lambda width: 4 * width),
    "mae.decoder_heads": Derived("mae.decoder_width", _heads),
}


def fill(config: ConfigDict) -> None:
    """Gives the fields that are 0 what they follow to."""
    for name, derived in DERIVED.items():
        if _of(config, name) == 0:
            assign(config, name, derived.rule(_of(config, derived.source)))


def release(config: ConfigDict) -> None:
    """Sets the fields to 0 that are what they would follow to: undoes `fill`."""
    for name, derived in DERIVED.items():
        if _of(config, name) == derived.rule(_of(config, derived.source)):
            assign(config, name, 0)


def require_filled(config: ConfigDict) -> None:
    """Refuses a config that `validation.resolve` has not seen.

    Raises:
      ConfigError: saying what makes it one that can be built.
    """
    if empty := [name for name in DERIVED if _of(config, name) == 0]:
        raise ConfigError(
            f"config.{empty[0]} is 0, which only a resolved config can do without: pass the"
            " config through pit_jax.validation.resolve(config) first"
        )


def leave_out(config: ConfigDict, given: Container[str]) -> None:
    """Takes guidance out with the classes: a file's scale is of a network that knows them.

    Args:
      given: the fields that somebody has just changed; guidance among them is theirs.
    """
    conditional, scale = "diffusion.conditional", "sample.guidance"
    if conditional in given and scale not in given and not config.diffusion.conditional:
        assign(config, scale, FIELDS[scale].default)


def follows(fields: Mapping[str, Any], name: str) -> bool:
    """Whether a field of a resolved config, given flat, is what it would follow to."""
    derived = DERIVED[name]
    return fields[name] == derived.rule(fields[derived.source])


def _of(config: ConfigDict, name: str) -> int:
    group, leaf = name.split(".")
    return config[group][leaf]
