"""sweep.json: what a sweep says of its study and its points, read so that it can be trusted.

{"id", "file", "argument", "search", "docstring", "command",
 "published": [{"label", "metric", "value", "note"}, ...],
 "points": [{"index", "label", "hash", "overrides", "directory"}, ...]}
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from pit_jax import files, runvalues

FILE = "sweep.json"
_TEXTS = ("id", "file", "argument", "docstring", "title", "command")


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What sweep.json says of the study that runs belong to.

    Attributes:
      text: the study's docstring.
      published: [{"label", "metric", "value", "note"}, ...].
      handmade: rows of features that were made by hand and not by a run, see handmade.py.
    """

    path: str
    file: str = ""
    text: str = ""
    command: str = ""
    published: Sequence[Mapping[str, Any]] = ()
    handmade: Sequence[Mapping[str, Any]] = ()


def read(folder: epath.Path, notes: list[str] | None = None) -> dict[str, Any]:
    """What <folder>/sweep.json holds, {} where there is none.

    Args:
      notes: a line is added for published numbers that are none.

    Raises:
      StorageError: if it cannot be read.
      ValueError: if it is not what a sweep writes.
    """
    path = folder / FILE
    if not path.exists():
        return {}
    found = files.read_json(path)
    if not isinstance(found, dict) or not isinstance(found.get("points"), list):
        raise ValueError("no sweep")
    found |= {name: runvalues.text(found.get(name)) or "" for name in _TEXTS}
    found["search"] = bool(found.get("search"))
    found["points"] = [_point(point) for point in found["points"]]
    published = found.get("published") or []
    published = published if isinstance(published, list) else [published]
    found["published"] = [known for number in published if (known := _number(number))]
    if (lost := len(published) - len(found["published"])) and notes is not None:
        notes.append(
            f"{path}: {lost} of its published numbers are not numbers: they were left unread"
        )
    return found


def sweep(folder: epath.Path, found: Mapping[str, Any]) -> Sweep:
    """The study of what `read` returned."""
    text = (found["docstring"] or found["title"]).strip()
    return Sweep(str(folder), found["file"], text, found["command"], found["published"])


def line(text: Any) -> str:
    """A label or a name: text on one line."""
    return " ".join(files.printable(str(text)).splitlines())


def _point(found: Any) -> dict[str, Any]:
    """Raises ValueError if it is no point."""
    if not isinstance(found, dict) or not {"label", "directory"} <= set(found):
        raise ValueError("no point")
    name = os.path.basename(str(found["directory"]))
    return found | {"label": line(found["label"]), "directory": name}


def _number(found: Any) -> dict[str, Any] | None:
    """A published number, None of anything else."""
    value = runvalues.finite(found.get("value")) if isinstance(found, dict) else None
    if value is None or not {"label", "metric"} <= set(found):
        return None
    words = {name: line(found.get(name) or "") for name in ("label", "metric", "note")}
    return {"label": words["label"], "metric": words["metric"], "value": value} | words
