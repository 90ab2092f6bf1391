"""Putting loaded weights into a freshly made model: what was loaded, new and dropped."""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from pit_jax.errors import ConfigError
from pit_jax.parallel.rules import map_with_path
from pit_jax.weights import tensors

# Which fields a path's shape comes from, to say what does not fit.
_FIELDS = (
    ("embed/position", "data.image_size, model.patch, model.pool or model.width"),
    ("embed/patch", "model.patch, data.channels or model.width"),
    ("blocks/", "model.depth, model.width or model.mlp"),
    ("last/", "model.width or model.mlp"),
)


@dataclasses.dataclass(frozen=True)
class Report:
    """Paths of the parameters that were loaded, stayed new, and were left out."""

    loaded: tuple[str, ...]
    new: tuple[str, ...]
    dropped: tuple[str, ...]

    def __str__(self) -> str:
        lines = []
        for field in dataclasses.fields(self):
            paths = getattr(self, field.name)
            groups = collections.Counter(path.partition("/")[0] for path in paths)
            listed = ", ".join(f"{group} ({count})" for group, count in groups.items())
            lines.append(f"  {field.name:8} {listed or 'nothing'}")
        return "\n".join(lines)


def merge(params: Any, loaded: Any, may_be_new: Sequence[str] = ("head",)) -> tuple[Any, Report]:
    """`params` with the values of `loaded` where both have them.

    Args:
      params: the fresh tree (arrays or shapes); decides which paths and shapes there are.
      loaded: the other tree; what `params` does not have is dropped.
      may_be_new: top-level groups that keep their fresh values if they are missing or of
        another shape in `loaded`: a head for other classes.

    Returns:
      The merged tree (loaded leaves as they came) and what happened to each path.

    Raises:
      ConfigError: for any other path that is missing or of another shape.
    """
    source = tensors.flatten(loaded) if isinstance(loaded, Mapping) else loaded
    report: dict[str, list[str]] = {"loaded": [], "new": []}

    def choose(path: str, fresh: Any) -> Any:
        found = source.get(path)
        if found is not None and found.shape == tuple(fresh.shape):
            report["loaded"].append(path)
            return found
        if path.partition("/")[0] in may_be_new:
            report["new"].append(path)
            return fresh
        if found is None:
            raise ConfigError(f"the weights have no {path}")
        cause = next((fields for part, fields in _FIELDS if part in path), "model.width")
        raise ConfigError(
            f"the weights have {path} of shape {found.shape}, the config makes it"
            f" {tuple(fresh.shape)}: {cause} differ"
        )

    merged = map_with_path(choose, params)
    dropped = tuple(path for path in source if path not in report["loaded"])
    return merged, Report(tuple(report["loaded"]), tuple(report["new"]), dropped)
