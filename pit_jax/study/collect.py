"""Finished runs of run directories and sweeps, as comparisons and reports read them."""

import dataclasses
import datetime
import math
import os
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from etils import epath

from pit_jax import files, runvalues
from pit_jax.config import flatten, label
from pit_jax.errors import ConfigError, PitError, StorageError
from pit_jax.rundir import RunDir
from pit_jax.study import handmade, sweepfile
from pit_jax.study.sweepfile import Sweep

T = TypeVar("T")
_READ = os.R_OK | os.X_OK


@dataclasses.dataclass(frozen=True)
class Run:
    """What one run directory holds.

    Attributes:
      path: absolute, or gs://.
      config: every field, flat: {"model.patch": 1, ...}.
      model: what tables call it, "PiT" or "ViT/2".
      state: of status.json; only "done" runs have a result that counts.
      rows: of metrics.jsonl, as far as it is intact.
      result: the last evaluation, {"eval/accuracy": ..., ...}, and the numbers of the newest
        record of each name, {"locality/...": ...}.
      environments: of env.json, one a start.
      pictures: the newest file of each name.
      point: its label in a sweep, "" without one.
    """

    path: str
    config: Mapping[str, Any]
    model: str
    state: str
    step: int
    rows: Sequence[Mapping[str, Any]]
    result: Mapping[str, float]
    environments: Sequence[Mapping[str, Any]]
    pictures: Mapping[str, epath.Path]
    point: str = ""

    @property
    def name(self) -> str:
        return os.path.basename(self.path)

    @property
    def called(self) -> str:
        """Its label in a sweep, or its directory's name."""
        return self.point or sweepfile.line(self.name)

    @property
    def task(self) -> str:
        return self.config["task"]

    @property
    def seed(self) -> int:
        return self.config["train.seed"]

    def cost(self, key: str) -> float | None:
        """ "parameters", "tokens", "forward_flops" or "training_flops" (both an image, as
        perf/flops.py defines them)."""
        known = [e["cost"] for e in self.environments if "cost" in e]
        return known[-1].get(key) if known else None

    @property
    def images_per_s(self) -> float | None:
        """The median over the logged rows, on all its devices."""
        rates = [row["perf/images_per_s"] for row in self.rows if "perf/images_per_s" in row]
        return statistics.median(rates) if rates else None

    @property
    def device_hours(self) -> float | None:
        """From each start to its last row, times its devices; compiling and evaluating too.

        What a kill took back (rows after the last checkpoint) is not in it.
        """
        begins = [_timestamp(environment.get("time")) for environment in self.environments]
        if not begins or None in begins:
            return None
        times = [row["time"] for row in self.rows if "time" in row]
        total = 0.0
        ends = (*begins[1:], math.inf)
        for environment, begin, end in zip(self.environments, begins, ends, strict=True):
            last = max((time for time in times if begin <= time < end), default=begin)
            total += (last - begin) * environment.get("device_count", 1)
        return total / 3600 or None


@dataclasses.dataclass(frozen=True)
class Collection:
    """Everything that was found, the runs in the order of their sweeps.

    Attributes:
      runs: with a result.
      others: (name, state) of those without: unfinished, or never started.
      sweeps: studies of the runs.
      notes: what is to be said about what was read.
    """

    runs: Sequence[Run]
    others: Sequence[tuple[str, str]]
    sweeps: Sequence[Sweep]
    notes: Sequence[str]


def collect(directories: Iterable[str | os.PathLike]) -> Collection:
    """Reads run directories, and directories of sweeps, which hold them one level down.

    Raises:
      ConfigError: for a directory that is neither, or if none has a result.
    """
    runs: dict[str, Run] = {}
    others: dict[str, str] = {}
    unstarted: dict[str, str] = {}
    started: set[str] = set()
    sweeps, notes = [], []
    for directory in directories:
        given = RunDir(directory)
        if given.exists():
            places = [(given.path, "")]
        else:
            sweep, places, missing = _sweep(given.path, notes)
            sweeps += [sweep] if sweep else []
            unstarted |= missing
        for place, point in places:
            if str(place) in runs:
                continue
            run = _read(RunDir(place), point, notes)
            if run.state == "done":
                runs[run.path] = run
            else:
                others[run.called] = f"{run.state}, step {run.step}"
                started.add(run.name)
    started |= {run.name for run in runs.values()}  # by another shard, on another disk
    others |= {label: "not started" for name, label in unstarted.items() if name not in started}
    if not runs:
        states = "; ".join(f"{name}: {state}" for name, state in others.items())
        raise ConfigError(f"no run is finished, so there is nothing to compare ({states})")
    return Collection(list(runs.values()), list(others.items()), sweeps, notes)


def _sweep(
    path: epath.Path, notes: list[str]
) -> tuple[Sweep | None, list[tuple[epath.Path, str]], dict[str, str]]:
    """A directory of runs: its study, (directory, label) of each run, and {directory's name:
    label} of what never started here."""
    if not path.is_dir():
        raise ConfigError(f"there is no directory {path}")
    found = {p.name: p for p in _inside(path, notes) if RunDir(p).exists()}
    sweep, points = None, []
    try:
        if described := sweepfile.read(path, notes):
            sweep = sweepfile.sweep(path, described)
            points = [(point["directory"], point["label"]) for point in described["points"]]
    except ValueError:
        notes.append(f"{path / sweepfile.FILE} is not what a sweep writes: it was left unread")
    except StorageError as error:
        notes.append(f"left unread: {error}")
    if not found and not points:
        raise ConfigError(
            f"{path} is no run and no sweep: there is no config.json here or one level down"
        )
    try:
        rows = handmade.read(path) if sweep else []
        rows = [row | {"label": sweepfile.line(row["label"])} for row in rows]
        sweep = sweep and dataclasses.replace(sweep, handmade=rows)
    except ConfigError as error:
        notes.append(f"left unread: {error}")
    places = [(found.pop(name), label) for name, label in points if name in found]
    started = {str(place) for place, _ in places}
    unstarted = {name: label for name, label in points if str(path / name) not in started}
    return sweep, [*places, *((place, "") for place in found.values())], unstarted


def _inside(folder: epath.Path, notes: list[str]) -> list[epath.Path]:
    """What lies in a folder, but for directories that may not be read."""
    try:
        found = sorted(folder.iterdir())
    except OSError as error:
        raise files.storage_error(folder, error, "read") from None
    closed = [p for p in found if "://" not in str(p) and p.is_dir() and not os.access(p, _READ)]
    notes += [f"left unread: {p} could not be read: it is closed to this user" for p in closed]
    return [p for p in found if p not in closed]


def _read(directory: RunDir, point: str, notes: list[str]) -> Run:
    config = directory.config()
    name = directory.path.name
    status = _or_note(lambda: directory.status(notes), {}, notes)
    rows, broken = _or_note(lambda: directory.read_rows(notes), ([], None), notes)
    if broken is not None:
        notes.append(
            f"{name}: metrics.jsonl is broken at line {broken}; the {len(rows)}"
            f" {'row' if len(rows) == 1 else 'rows'} before it are used"
        )
    step = status.get("step", max((row["step"] for row in rows), default=0))
    records, pictures = (
        _or_note(lambda at=directory.path / part: _newest(at), {}, notes)
        for part in ("records", "pictures")
    )
    measured = {}
    for record, file in records.items():
        try:
            read = runvalues.record(files.read_json(file))
            read.pop("checkpoint_step", None)  # which measures nothing
            measured |= {f"{record}/{k}": v for k, v in read.items()}
        except ValueError:
            notes.append(f"{name}: records/{file.name} is no record: it was left unread")
        except StorageError as error:
            notes.append(f"left unread: {error}")
    return Run(
        path=str(directory.path),
        config=flatten(config),
        model=label(config),
        state=status.get("state", "started"),
        step=step,
        rows=rows,
        result=measured | (status.get("result") or _evaluated(rows)),
        environments=_or_note(lambda: directory.environments(notes), [], notes),
        pictures=pictures,
        point=point,
    )


def _or_note(read: Callable[[], T], otherwise: T, notes: list[str]) -> T:
    """What is read, or a note of why it cannot be."""
    try:
        return read()
    except StorageError as error:
        notes.append(f"left unread: {error}")
        return otherwise


def _evaluated(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The evaluation of the last step that has one."""
    evaluated = [r for r in rows if any(k.startswith("eval/") for k in r)]
    last = evaluated[-1]["step"] if evaluated else None
    parts = [row for row in evaluated if row["step"] == last]
    return {k: v for row in parts for k, v in row.items() if k.startswith("eval/")}


def _newest(folder: epath.Path) -> dict[str, epath.Path]:
    """{name: file} of the newest step of each <name>-<step>.<ending>."""
    if not folder.is_dir():
        return {}
    newest: dict[str, tuple[int, epath.Path]] = {}
    try:
        found = sorted(folder.iterdir())
    except OSError as error:
        raise files.storage_error(folder, error, "read") from None
    for file in found:
        match = re.fullmatch(r"([^.].*)-([0-9]{1,18})\.(png|json)", file.name)
        if match and int(match[2]) >= newest.get(match[1], (-1, file))[0]:
            newest[match[1]] = int(match[2]), file
    return {name: file for name, (_, file) in newest.items()}


def starts(runs: Iterable[Run]) -> dict[str, tuple[str, Mapping[str, Any]]]:
    """{value of init_from: model and config of the run it names}, where it names one.

    It is looked for among the runs first: a sweep that was moved keeps its names.
    """
    runs = list(runs)
    by_path = {run.path: (run.model, run.config) for run in runs}
    by_name = {run.name: (run.model, run.config) for run in runs}
    found: dict[str, tuple[str, Mapping[str, Any]]] = {}
    for value in {run.config["init_from"] for run in runs} - {""}:
        try:
            directory = RunDir(value)
            known = by_path.get(str(directory.path)) or by_name.get(directory.path.name)
            if known is None and directory.exists():
                config = directory.config()
                known = label(config), flatten(config)
        except (PitError, OSError):  # what it was is not known any more
            known = None
        if known is not None:
            found[value] = known
    return found


def _timestamp(text: Any) -> float | None:
    try:
        return datetime.datetime.fromisoformat(text).timestamp()
    except (TypeError, ValueError, OverflowError):
        return None
