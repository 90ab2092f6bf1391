"""The points of a sweep: each a resolved, validated config with a label and a directory."""

import dataclasses
import difflib
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from pit_jax import configfile, validation
from pit_jax.config import FIELDS, assign, flatten
from pit_jax.config import label as model_label
from pit_jax.errors import ConfigError
from pit_jax.rundir import MAY_DIFFER, RunDir
from pit_jax.study import space

_LENGTHS = ("train.steps", "train.epochs", "train.examples")
# Of what a run may go on with differently, this still changes what it ends with.
_CHANGES_RESULT = (*_LENGTHS, "eval.", "sample.")
_HOW = tuple(name for name in MAY_DIFFER if name not in _CHANGES_RESULT)
_LONGEST = 60  # characters of a label in a directory's name


@dataclasses.dataclass(frozen=True)
class Point:
    """One run of a sweep.

    `needs` names for a field of `space.RUNS` the point whose directory it holds; `swept` are
    all fields that the sweep sets anywhere.
    """

    index: int
    label: str
    overrides: space.Overrides
    config: ConfigDict
    digest: str
    directory: str
    needs: Mapping[str, "Point"]
    swept: frozenset[str]

    def same(self, config: ConfigDict) -> bool:
        """Whether this config, of a run that is there, is this point's."""
        return identity(config, self.swept, self.needs) == self.digest

    def record(self) -> dict[str, Any]:
        """The point as sweep.json holds it."""
        return {
            "index": self.index,
            "label": self.label,
            "hash": self.digest[:8],
            "overrides": self.overrides,
            "directory": self.directory,
        }


def build(
    file: configfile.PythonFile,
    entries: Sequence[space.Overrides],
    words: Sequence[str],
    workdir: str | os.PathLike,
) -> list[Point]:
    """Every point, resolved and validated.

    Args:
      file: the file whose `get_config` the points start from.
      entries: what `sweep()` returned.
      words: command-line overrides, which win over the points' own.
      workdir: where the runs' directories will lie.

    Raises:
      ConfigError: naming the index, the label and the field of a point that is wrong, or both
        indices where two are the same.
    """
    described = _described(entries)
    configs = []
    for index, entry in enumerate(entries):
        name = f"point {index} ({described[index]})" if described[index] else f"point {index}"
        try:
            configs.append(resolved(file, entry, words))
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}") from None
    swept = frozenset(name for entry in entries for name in entry if name in FIELDS)
    labels = _labels(entries, configs, swept)
    points: dict[int, Point] = {}
    for index in _in_order(entries, labels):
        needs = {
            name: points[labels.index(label)] for name, label in _needs(entries[index]).items()
        }
        points[index] = point(
            index, labels[index], entries[index], configs[index], needs, swept, workdir
        )
    ordered = [points[index] for index in range(len(entries))]
    _check_distinct(ordered)
    return ordered


def point(
    index: int,
    label: str,
    overrides: space.Overrides,
    config: ConfigDict,
    needs: Mapping[str, Point],
    swept: frozenset[str],
    workdir: str | os.PathLike,
) -> Point:
    """The point of a resolved config, which gets the directories of the runs it needs."""
    digest = identity(config, swept, needs)
    directory = f"{_file_name(label)}-{digest[:8]}"
    for name, other in needs.items():
        assign(config, name, str(RunDir(workdir).path / other.directory))
    return Point(index, label, overrides, config, digest, directory, needs, swept)


def resolved(
    file: configfile.PythonFile, entry: space.Overrides, words: Sequence[str]
) -> ConfigDict:
    """The resolved config of one dictionary of overrides.

    Raises:
      ConfigError: naming the field that is wrong.
    """
    config = file.config() if "config" not in entry else configfile.read(_base(file, entry))
    given = {name: value for name, value in entry.items() if name not in ("config", "label")}
    if any(name in _LENGTHS for name in given):
        for name in _LENGTHS:
            assign(config, name, None)
    for name, value in given.items():
        assign(config, name, validation.check_value(name, value))
    return validation.resolve(configfile.override(config, words))


def identity(config: ConfigDict, swept: Iterable[str], needs: Mapping[str, Point]) -> str:
    """SHA-256 of what makes a run another one, as 64 hexadecimal digits.

    These are the fields that are not at their default, so that a field which a later version
    adds leaves the directories of a sweep where they are. Left out is where and how a run is
    computed (mesh, workers, checkpoints, attention implementation, ...), unless the sweep
    varies it; another length, seed or evaluation is another run. A run that another one
    starts from counts by its own hash and not by its path.
    """
    swept = set(swept)
    found = {
        name: value
        for name, value in flatten(config).items()
        if value != FIELDS[name].default and (name in swept or not name.startswith(_HOW))
    }
    found |= {name: space.RUN + other.digest for name, other in needs.items()}
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def select(points: Sequence[Point], only: str | None) -> list[Point]:
    """Those that `--only INDEX` or `--only SHARD/TOTAL` names, and what they start from.

    Points that start from each other are in one shard, so that shards need nothing of others.

    Raises:
      ConfigError: if there is no such point or shard.
    """
    if only is None:
        return list(points)
    match = re.fullmatch(r"(\d+)(?:/(\d+))?", only)
    if not match:
        raise ConfigError(f"--only {only}: write a point's INDEX, or SHARD/TOTAL such as 0/4")
    number, total = int(match[1]), match[2] and int(match[2])
    if total is None:
        if number >= len(points):
            raise ConfigError(f"--only {only}: the points are 0 to {len(points) - 1}")
        chosen = _with_needs(points[number])
        return [p for p in points if p.index in chosen]
    if number >= total:
        last = f" to {total - 1}/{total}" if total else ""
        raise ConfigError(
            f"shard {only}: shards are counted from 0"
            + (f", 0/{total}{last}" if total else ", and there is one at least: 0/1")
        )
    return [p for p in points if _family(points)[p.index] % total == number]


def check_evaluations(points: Sequence[Point]) -> None:
    """Refuses evaluations that a point's task does not offer; imports JAX if it must.

    Raises:
      ConfigError: naming the index, the label and what is offered.
    """
    usual = FIELDS["eval.what"].default
    unusual = [
        p for p in points if p.config.eval.what != usual or p.config.task != "classification"
    ]
    offered: dict[str, Iterable[str]] = {}
    if unusual and "jax" not in sys.modules:
        import jax

        jax.config.update("jax_platforms", "cpu")  # accelerators are for the runs
    for p in unusual:
        from pit_jax import evaluate, tasks

        if p.config.task not in offered:
            offered[p.config.task] = evaluate.offered(tasks.build(p.config))
        try:
            validation.check_names(p.config, offered[p.config.task])
        except ConfigError as error:
            raise ConfigError(f"point {p.index} ({p.label}): {error}") from None


# Labels ------------------------------------------------------------------------------------------


def _described(entries: Sequence[space.Overrides]) -> list[str]:
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


def _labels(
    entries: Sequence[space.Overrides], configs: Sequence[ConfigDict], swept: Iterable[str]
) -> list[str]:
    """Each point's own label, or what its config differs in among the fields of the sweep."""
    names = [name for name in dict.fromkeys(k for e in entries for k in e) if name in set(swept)]
    names.sort(key=lambda name: name == "train.seed")  # the last to tell them apart by
    shown = []
    for entry, config in zip(entries, configs, strict=True):
        flat = flatten(config)
        values = {name: _given(entry, name, flat[name]) for name in names}
        values = {name: value for name, value in values.items() if value is not None}
        spec = {"config": entry.get("config", "")} if any("config" in e for e in entries) else {}
        label = {"label": entry["label"]} if "label" in entry else {}
        shown.append(_short_specs(spec, entries) | values | label)
    found = space.describe(shown)
    return [words or model_label(config) for words, config in zip(found, configs, strict=True)]


def _given(entry: space.Overrides, name: str, value: Any) -> Any:
    """The config's value, except that a run to start from is told by its label."""
    given = entry.get(name)
    return given if isinstance(given, str) and given.startswith(space.RUN) else value


def _short_specs(spec: Mapping[str, str], entries: Sequence[space.Overrides]) -> dict[str, str]:
    """{"config": "pit-t"} of "configs/cifar100.py:pit-t", with the file if there are several."""
    if not spec.get("config"):
        return {}
    files = {space.file_and_argument(e["config"])[0] for e in entries if "config" in e}
    file, argument = space.file_and_argument(spec["config"])
    several = len(files) > 1 or not argument
    return {"config": ":".join(word for word in (file * several, argument) if word)}


def _file_name(label: str) -> str:
    """A label as part of a file's name, on any file system."""
    safe = re.sub(r"[^A-Za-z0-9._=+-]+", "-", label.replace(",", "_")).strip("-._") or "run"
    return safe[:_LONGEST].rstrip("-._")


# Dependencies ------------------------------------------------------------------------------------


def _needs(entry: space.Overrides) -> dict[str, str]:
    """The labels of the points that this one starts from, by field."""
    return {
        name: entry[name].removeprefix(space.RUN)
        for name in space.RUNS
        if isinstance(entry.get(name), str) and entry[name].startswith(space.RUN)
    }


def _in_order(entries: Sequence[space.Overrides], labels: Sequence[str]) -> list[int]:
    """The indices, each after those it needs.

    Raises:
      ConfigError: if a label is none of the sweep's, or points need each other.
    """
    order: list[int] = []

    def visit(index: int, path: tuple[int, ...]) -> None:
        if index in path:
            circle = " → ".join(str(i) for i in (*path[path.index(index) :], index))
            raise ConfigError(f"points start from each other in a circle: {circle}")
        if index in order:
            return
        for name, label in _needs(entries[index]).items():
            if label not in labels:
                near = difflib.get_close_matches(label, labels, n=1, cutoff=0.0)[0]
                raise ConfigError(
                    f"point {index} ({labels[index]}): {name}='run:{label}' names no point of"
                    f" this sweep; did you mean 'run:{near}'?"
                )
            visit(labels.index(label), (*path, index))
        order.append(index)

    for index in range(len(entries)):
        visit(index, ())
    return order


def _with_needs(p: Point) -> set[int]:
    return {p.index}.union(*(_with_needs(other) for other in p.needs.values()))


def _family(points: Sequence[Point]) -> dict[int, int]:
    """Point → number of its family: those that start from each other, or from the same."""
    family: dict[int, int] = {}
    for p in points:  # joins the families that it connects; small lists: simple is enough
        together = _with_needs(p)
        old = {family[index] for index in together if index in family}
        number = min(old, default=len(family))
        family |= dict.fromkeys(together, number)
        family |= {index: number for index, of in family.items() if of in old}
    numbers = {old: new for new, old in enumerate(dict.fromkeys(family[p.index] for p in points))}
    return {index: numbers[of] for index, of in family.items()}


def _check_distinct(points: Sequence[Point]) -> None:
    by_digest: dict[str, Point] = {}
    by_label: dict[str, Point] = {}
    for p in points:
        if other := by_digest.get(p.digest):
            raise ConfigError(
                f"points {other.index} ({other.label}) and {p.index} ({p.label}) are the same"
                " run: nothing in their configs differs"
            )
        if other := by_label.get(p.label):
            raise ConfigError(f"points {other.index} and {p.index} have the same label {p.label!r}")
        by_digest[p.digest] = by_label[p.label] = p


def _base(file: configfile.PythonFile, entry: space.Overrides) -> str:
    """The other config of a point: relative to the sweep's file, or else where we are."""
    spec = entry["config"]
    if not isinstance(spec, str):
        raise ConfigError(f"config={spec!r} should be FILE[:ARG] of another config")
    beside = os.path.join(os.path.dirname(file.path), spec)
    path = beside.partition(".py:")[0]
    found = any(os.path.isfile(name) for name in (path, f"{path}.py"))
    return beside if found else spec
