"""The launches that this machine made, so that a name is enough to find one.

One file a launch in $XDG_STATE_HOME/pit_jax/launches, by default ~/.local/state: what
launch.json says but for the request. They hold no secrets, and losing them loses no run.
"""

import contextlib
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pit_jax import files
from pit_jax.errors import ConfigError, PitError

_KEYS = ("name", "target", "workdir")
_OF_TPU = ("project", "zone")  # where its queued resource is
_LEFT_OUT = ("request", "schema")


def folder() -> Path:
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(state).expanduser() / "pit_jax" / "launches"


def keep(made: Mapping[str, Any]) -> None:
    """Notes a launch: fields of launch.json, and perhaps more.

    A launch of the same name in another place stays beside it.
    """
    kept = {name: value for name, value in made.items() if name not in _LEFT_OUT}
    with _told(made):
        path = folder() / f"{made['name']}.json"
        if (there := _read(path)) and _place(there) != _place(made):
            where = re.sub("[^a-z0-9]+", "-", ".".join(map(str, _place(made)[1:])))
            path = folder() / f"{made['name']}.{where}.json"
        files.write(path, json.dumps(kept, indent=1) + "\n")


def note(record: Mapping[str, Any], **fields: Any) -> None:
    """Adds to what is known of a launch; of one that was made elsewhere nothing is kept."""
    with _told(record):
        for path in _paths():
            there = _read(path)
            if there and _place(there) == _place(record) and there.get("id") == record.get("id"):
                files.write(path, json.dumps({**there, **fields}, indent=1) + "\n")


@contextlib.contextmanager
def _told(record: Mapping[str, Any]) -> Iterator[None]:
    """What cannot be noted is said and no more: the launch itself goes on without."""
    try:
        yield
    except (PitError, OSError, RuntimeError) as error:  # RuntimeError: this user has no home
        name = record["name"]
        print(f"note: this machine's record of {name} is not written: {error}", file=sys.stderr)


def all_of(project: str | None = None, zone: str | None = None) -> list[dict[str, Any]]:
    """Every launch known here, the oldest first; of one project or zone, if they are given."""
    found = [record for path in _paths() if (record := _read(path))]
    wanted = {"project": project, "zone": zone}
    found = [
        record
        for record in found
        if all(value is None or record.get(name) == value for name, value in wanted.items())
    ]
    return sorted(found, key=lambda record: (str(record.get("created", "")), record["name"]))


def find(name: str, project: str | None = None, zone: str | None = None) -> dict[str, Any] | None:
    """The launch of a name, None if it is not known here.

    Raises:
      ConfigError: if there are several.
    """
    found = [record for record in all_of(project, zone) if record["name"] == name]
    if len(found) > 1:
        places = "; ".join(", ".join(map(str, filter(None, _place(one)[1:]))) for one in found)
        raise ConfigError(f"there are launches {name} in {places}: add --project and --zone")
    return found[0] if found else None


def _paths() -> list[Path]:
    with contextlib.suppress(OSError):
        return sorted(folder().glob("*.json"))
    return []


def _read(path: Path) -> dict[str, Any] | None:
    """A record; None of what is none."""
    try:
        found = files.parse_json(path.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and is_whole(found) else None


def is_whole(record: Mapping[str, Any]) -> bool:
    """Whether a record says where its launch is, so that it can be looked after."""
    keys = _KEYS + _OF_TPU if record.get("target") == "tpu" else _KEYS
    return all(isinstance(record.get(key), str) for key in keys)


def _place(record: Mapping[str, Any]) -> tuple:
    names = ("target", "project", "zone", "context", "namespace")
    return tuple(record.get(name) for name in names)
