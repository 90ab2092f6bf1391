"""Putting loaded weights into a freshly made model: what was loaded, new and dropped."""

import collections
import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pit_jax.errors import ConfigError
from pit_jax.parallel.rules import map_with_path
from pit_jax.weights import tensors

# Path → the fields that each trailing dimension comes from, to say what does not fit. In
# front of them the scanned blocks have the layers, model.depth.
_DIMENSIONS = (
    (r"embed/position$", ("data.image_size, model.patch or model.pool", "model.width")),
    (r"embed/patch/kernel$", ("model.patch or data.channels", "model.width")),
    (r"embed/colour/table$", ("model.dictionary_bits or data.channels", "model.width")),
    (r"up/kernel$", ("model.width", "model.mlp")),
    (r"up/bias$", ("model.mlp",)),
    (r"down/kernel$", ("model.mlp", "model.width")),
    (r"final/head/(kernel|bias)$", ("model.width", "model.patch or diffusion.learn_sigma")),
    (r"label/table$", ("data.num_classes", "model.width")),
    (r"head/kernel$", ("model.width", "data.num_classes")),
    (r"head/bias$", ("data.num_classes",)),
    (r"embed/cls$|kernel$", ("model.width", "model.width")),
    (r"", ("model.width",)),
)


@dataclasses.dataclass(frozen=True)
class Report:
    """Paths of the parameters that were loaded, stayed new, were left out, and were computed."""

    loaded: tuple[str, ...]
    new: tuple[str, ...]
    dropped: tuple[str, ...]
    computed: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = []
        for field in dataclasses.fields(self):
            paths = getattr(self, field.name)
            if field.name == "computed" and not paths:  # which is seldom
                continue
            groups = collections.Counter(path.partition("/")[0] for path in paths)
            listed = ", ".join(f"{group} ({count})" for group, count in groups.items())
            lines.append(f"  {field.name:8} {listed or 'nothing'}")
        return "\n".join(lines)


def merge(
    params: Any,
    loaded: Any,
    may_be_new: Sequence[str] = ("head",),
    computed: Mapping[str, np.ndarray] | None = None,
) -> tuple[Any, Report]:
    """`params` with the values of `loaded` where both have them.

    Args:
      params: the fresh tree (arrays or shapes); decides which paths and shapes there are.
      loaded: the other tree; what `params` does not have is dropped.
      may_be_new: top-level groups that keep all their fresh values if one of them is missing
        or of another shape in `loaded`: a head for other classes. Half a decoder is none.
      computed: path → the value of a parameter that `loaded` lacks because its model computes
        it.

    Returns:
      The merged tree (loaded leaves are NumPy arrays of the fresh dtype, new ones the fresh
      leaves themselves) and what happened to each path.

    Raises:
      ConfigError: for any other path that is missing or of another shape.
    """
    source, given = tensors.flatten(loaded), computed or {}
    report: dict[str, list[str]] = {"loaded": [], "new": [], "computed": []}
    incomplete: set[str] = set()

    def look(path: str, fresh: Any) -> None:
        if path not in source or source[path].shape != tuple(fresh.shape):
            incomplete.add(path.partition("/")[0])

    def choose(path: str, fresh: Any) -> Any:
        group = path.partition("/")[0]
        if group in may_be_new and group in incomplete:
            report["new"].append(path)
            return fresh
        found = source.get(path, given.get(path))
        if found is None:
            raise ConfigError(f"the weights have no {path}")
        if found.shape != tuple(fresh.shape):
            raise ConfigError(
                f"the weights have {path} of shape {found.shape}, the config makes it"
                f" {tuple(fresh.shape)}: {_cause(path, found.shape, tuple(fresh.shape))}"
            )
        report["loaded" if path in source else "computed"].append(path)
        return np.asarray(found, fresh.dtype)

    map_with_path(look, params)
    merged = map_with_path(choose, params)
    dropped = tuple(path for path in source if path not in report["loaded"])
    return merged, Report(dropped=dropped, **{name: tuple(x) for name, x in report.items()})


def _cause(path: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    """Which config fields the dimensions that differ come from."""
    if len(found) != len(wanted):
        return "the layouts differ"
    trailing = next(fields for rule, fields in _DIMENSIONS if re.search(rule, path))
    names = ("model.depth",) * (len(wanted) - len(trailing)) + trailing
    differing = [name for name, a, b in zip(names, found, wanted, strict=True) if a != b]
    return f"{' and '.join(dict.fromkeys(differing))} differ"
