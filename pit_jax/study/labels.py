"""What the points of a sweep are called, in tables and as directories."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from pit_jax.config import label as model_label
from pit_jax.errors import ConfigError
from pit_jax.study import space

_LONGEST = 60  # characters of a label in a directory's name


def described(entries: Sequence[space.Overrides]) -> list[str]:
    """What errors call the points before their configs are known; checks what they are."""
    for index, entry in enumerate(entries):
        if not isinstance(entry, Mapping) or not all(isinstance(name, str) for name in entry):
            raise ConfigError(
                f"point {index}: {entry!r} should be a dictionary of overrides such as"
                " {'model.patch': 2}"
            )
        label = entry.get("label", "point")
        if not isinstance(label, str) or not label.strip() or not label.isprintable():
            raise ConfigError(f"point {index}: the label {label!r} should be one line of text")
    return [words.replace(",", ", ") for words in space.describe(entries)]


def labels(
    entries: Sequence[space.Overrides], configs: Sequence[ConfigDict], swept: Iterable[str]
) -> list[str]:
    """Each point's own label, or what its config differs in among the fields of the sweep."""
    names = [name for name in dict.fromkeys(k for e in entries for k in e) if name in set(swept)]
    names.sort(key=lambda name: name == "train.seed")  # the last to tell them apart by
    specs = [entry.get("config", "") for entry in entries]
    files = {space.file_and_argument(spec)[0] for spec in specs if spec}
    shown = []
    for entry, config in zip(entries, configs, strict=True):
        values = {name: _given(entry, name, _value(config, name)) for name in names}
        values = {name: value for name, value in values.items() if value is not None}
        spec = _short_spec(entry.get("config", ""), several=len(files) > 1)
        label = {"label": entry["label"]} if "label" in entry else {}
        shown.append(spec | values | label)
    found = space.describe(shown)
    return [words or model_label(config) for words, config in zip(found, configs, strict=True)]


def _value(config: ConfigDict, name: str) -> Any:
    for part in name.split("."):
        config = config[part]
    return config


def _given(entry: space.Overrides, name: str, value: Any) -> Any:
    """The config's value, except that a run to start from is told by its label."""
    given = entry.get(name)
    return given if isinstance(given, str) and given.startswith(space.RUN) else value


def _short_spec(spec: str, several: bool) -> dict[str, str]:
    """{"config": "pit-t"} of "configs/cifar100.py:pit-t", with the file if there are several."""
    if not spec:
        return {}
    file, argument = space.file_and_argument(spec)
    return {"config": ":".join(filter(None, (file * (several or not argument), argument)))}


def file_name(label: str) -> str:
    """A label as part of a file's name, on any file system."""
    safe = re.sub(r"[^A-Za-z0-9._=+-]+", "-", label.replace(",", "_")).strip("-._") or "run"
    return safe[:_LONGEST].rstrip("-._")
