"""Finished runs of run directories and sweeps, as comparisons and reports read them."""

import dataclasses
import datetime
import json
import math
import os
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from etils import epath

from pit_jax.config import flatten, label
from pit_jax.errors import ConfigError, PitError
from pit_jax.rundir import RunDir
from pit_jax.study import handmade


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
        return self.point or self.name

    @property
    def task(self) -> str:
        return self.config["task"]

    @property
    def seed(self) -> int:
        return self.config["train.seed"]

    def cost(self, key: str) -> float | None:
        """ "parameters", "tokens", "forward_flops" or "training_flops" (both an image)."""
        known = [e["cost"] for e in self.environments if isinstance(e.get("cost"), dict)]
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
    found = {p.name: p for p in sorted(path.iterdir()) if (p / "config.json").exists()}
    sweep, points = None, []
    try:
        if (path / "sweep.json").exists():
            described = json.loads((path / "sweep.json").read_text())
            sweep, points = _described(path, described), described["points"]
            points = [(os.path.basename(str(p["directory"])), str(p["label"])) for p in points]
    except (ValueError, KeyError, TypeError, AttributeError):
        notes.append(f"{path / 'sweep.json'} is not what a sweep writes: it was left unread")
        sweep, points = None, []
    if not found and not points:
        raise ConfigError(
            f"{path} is no run and no sweep: there is no config.json here or one level down"
        )
    try:
        sweep = sweep and dataclasses.replace(sweep, handmade=handmade.read(path))
    except ConfigError as error:
        notes.append(f"left unread: {error}")
    places = [(found.pop(name), label) for name, label in points if name in found]
    started = {str(place) for place, _ in places}
    unstarted = {name: label for name, label in points if str(path / name) not in started}
    return sweep, [*places, *((place, "") for place in found.values())], unstarted


def _described(path: epath.Path, described: Mapping[str, Any]) -> Sweep:
    command = described.get("command") or ""
    return Sweep(
        path=str(path),
        file=str(described.get("file") or ""),
        text=str(described.get("docstring") or described.get("title") or "").strip(),
        command=command if isinstance(command, str) else " ".join(map(str, command)),
        published=[
            {"label": str(p["label"]), "metric": str(p["metric"]), "value": float(p["value"])}
            | {"note": str(p.get("note") or "")}
            for p in described.get("published") or ()
        ],
    )


def _read(directory: RunDir, point: str, notes: list[str]) -> Run:
    config = directory.config()
    name = directory.path.name
    status = directory.status()
    status = status if isinstance(status, dict) else {}
    rows, broken = directory.read_rows()
    if broken is not None:
        notes.append(
            f"{name}: metrics.jsonl is broken at line {broken}; the {len(rows)}"
            f" {'row' if len(rows) == 1 else 'rows'} before it are used"
        )
    step = status.get("step")
    step = step if isinstance(step, int) else max((row["step"] for row in rows), default=0)
    result = status.get("result") or _evaluated(rows)
    records, pictures = _newest(directory.path / "records"), _newest(directory.path / "pictures")
    measured = {}
    for record, file in records.items():
        try:
            content = json.loads(file.read_text())
            measured |= {f"{record}/{k}": v for k, v in content.items() if _is_number(v)}
        except (ValueError, AttributeError):
            notes.append(f"{name}: records/{file.name} is no record: it was left unread")
    return Run(
        path=str(directory.path),
        config=flatten(config),
        model=label(config),
        state=str(status.get("state") or "started"),
        step=step,
        rows=rows,
        result=measured | {k: v for k, v in result.items() if _is_number(v)},
        environments=directory.environments(),
        pictures=pictures,
        point=point,
    )


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
    for file in sorted(folder.iterdir()):
        match = re.fullmatch(r"([^.].*)-(\d+)\.(png|json)", file.name)
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
        directory = RunDir(value)
        known = by_path.get(str(directory.path)) or by_name.get(directory.path.name)
        try:
            if known is None and directory.exists():
                config = directory.config()
                known = label(config), flatten(config)
        except (PitError, OSError):  # what it was is not known any more
            known = None
        if known is not None:
            found[value] = known
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _timestamp(text: Any) -> float | None:
    try:
        return datetime.datetime.fromisoformat(text).timestamp()
    except (TypeError, ValueError):
        return None
