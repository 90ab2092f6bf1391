"""The points of a sweep: each a resolved, validated config with a label and a directory."""

import dataclasses
import difflib
import graphlib
import hashlib
import json
import os
import re
import sys
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from pit_jax import configfile, files, validation
from pit_jax.config import FIELDS, assign, flatten, plain
from pit_jax.errors import ConfigError, PitError
from pit_jax.rundir import MAY_DIFFER, RunDir
from pit_jax.study import labels, resolver, space

# Of what a run may go on with differently, this still changes what it ends with.
_CHANGES_RESULT = (*resolver.LENGTHS, "eval.", "sample.")
_HOW = tuple(name for name in MAY_DIFFER if name not in _CHANGES_RESULT)


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

    def is_of(self, run: RunDir) -> bool:
        """The same of the run itself, which an older version may have begun."""
        begun = identity(run.as_begun(self.config), self.swept, self.needs)
        return dataclasses.replace(self, digest=begun).same(run.config())

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
    entries = plain(list(entries))
    described = labels.described(entries)
    resolve, configs = resolver.Resolver(file, words), []
    for index, entry in enumerate(entries):
        name = f"point {index} ({described[index]})" if described[index] else f"point {index}"
        try:
            configs.append(resolve(entry))
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}") from None
    swept = frozenset(name for entry in entries for name in entry if name in FIELDS)
    called = labels.labels(entries, configs, swept)
    place = {label: index for index, label in reversed([*enumerate(called)])}
    there = _directories(RunDir(workdir))
    points: dict[int, Point] = {}
    for index in _in_order(entries, called, place):
        needs = {name: points[place[label]] for name, label in _needs(entries[index]).items()}
        what = (index, called[index], entries[index], configs[index], needs, swept)
        points[index] = point(*what, workdir, there)
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
    there: Mapping[str, Sequence[RunDir]] = types.MappingProxyType({}),
) -> Point:
    """The point of a resolved config, which gets the directories of the runs it needs.

    Args:
      there: runs that a directory holds, by hash; the point goes on with the one that is its
        own, though its label may have been another when that was started.
    """
    digest = identity(config, swept, needs)
    directory = f"{labels.file_name(label)}-{digest[:8]}"
    for name, other in needs.items():
        assign(config, name, str(RunDir(workdir).path / other.directory))
    made = Point(index, label, overrides, config, digest, directory, needs, swept)
    before = identity(without_later(config), swept, needs)  # by a version that knew no such fields
    called = dict.fromkeys((digest[:8], before[:8]))
    known = {run.path.name: run for name in called for run in there.get(name, ())}
    if directory not in known:
        own = (name for name, run in known.items() if _is_of(made, run))
        made = dataclasses.replace(made, directory=next(own, directory))
    return made


def _directories(workdir: RunDir) -> dict[str, list[RunDir]]:
    """The run directories in a sweep's, by the hash that their names end with."""
    found: dict[str, list[RunDir]] = {}
    try:
        names = sorted(p.name for p in workdir.path.iterdir()) if workdir.path.is_dir() else []
    except OSError as error:
        raise files.storage_error(workdir.path, error, "read") from None
    for name in names:
        if match := re.search(r"-([0-9a-f]{8})$", name):
            found.setdefault(match[1], []).append(RunDir(workdir.path / name))
    return found


def _is_of(point: Point, run: RunDir) -> bool:
    """Whether a run that is there is the point's."""
    try:
        return run.exists() and point.is_of(run)
    except PitError:
        return False


def without_later(config: ConfigDict) -> ConfigDict:
    """A copy with the fields that came later, and changed what runs are, at their default."""
    config = config.copy_and_resolve_references()
    for name, field in FIELDS.items():
        if field.before is not None:
            assign(config, name, field.default)
    return config


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
    match = re.fullmatch(r"([0-9]{1,18})(?:/([0-9]{1,18}))?", only)
    if not match:
        short = (only if len(only) < 40 else f"{only[:40]}...") or "''"
        raise ConfigError(f"--only {short}: write a point's INDEX, or SHARD/TOTAL such as 0/4")
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
    family = _family(points)
    return [p for p in points if family[p.index] % total == number]


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


# Dependencies ------------------------------------------------------------------------------------


def _needs(entry: space.Overrides) -> dict[str, str]:
    """The labels of the points that this one starts from, by field."""
    return {
        name: entry[name].removeprefix(space.RUN)
        for name in space.RUNS
        if isinstance(entry.get(name), str) and entry[name].startswith(space.RUN)
    }


def _in_order(
    entries: Sequence[space.Overrides], called: Sequence[str], place: Mapping[str, int]
) -> list[int]:
    """The indices, each after those it needs; `place` is the index of a label.

    Raises:
      ConfigError: if a label is not one of the sweep's, or points need each other.
    """
    graph: dict[int, list[int]] = {}
    for index, entry in enumerate(entries):
        needs = _needs(entry)
        for name, label in needs.items():
            if label not in place:
                near = difflib.get_close_matches(label, called, n=1, cutoff=0.0)[0]
                raise ConfigError(
                    f"point {index} ({called[index]}): {name}='run:{label}' names no point of"
                    f" this sweep; did you mean 'run:{near}'?"
                )
        graph[index] = [place[label] for label in needs.values()]
    try:
        return list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        circle = " → ".join(map(str, reversed(error.args[1])))
        raise ConfigError(f"points start from each other in a circle: {circle}") from None


def _with_needs(p: Point) -> set[int]:
    found: set[int] = set()
    left = [p]
    while left:
        one = left.pop()
        if one.index not in found:
            found.add(one.index)
            left += one.needs.values()
    return found


def _family(points: Sequence[Point]) -> dict[int, int]:
    """Point → number of its family: those that start from each other, or from the same."""
    parent = {p.index: p.index for p in points}

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = index = parent[parent[index]]
        return index

    for p in points:
        for other in p.needs.values():
            one, two = sorted((root(p.index), root(other.index)))
            parent[two] = one  # the first of a family stands for it
    roots = {p.index: root(p.index) for p in points}
    numbers = {index: number for number, index in enumerate(dict.fromkeys(roots.values()))}
    return {index: numbers[of] for index, of in roots.items()}


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
