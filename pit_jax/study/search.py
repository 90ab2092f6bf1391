"""Adaptive search over a declared space, by Optuna (https://optuna.org): `sweep --search N`.

    objective = "eval/accuracy"  # as large as possible; "-eval/loss" as small as possible
    def space():
        return {"optim.lr": log_uniform(1e-4, 1e-2), "model.patch": choice(1, 2)}

Optuna's database says which trials there are; each is a run of the sweep's directory like any
other. A trial that was cut off stays "running" in the database, and is taken up by the next
start on the disk where its run lies.
"""

import dataclasses
import datetime
import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from pit_jax import configfile, validation
from pit_jax.config import FIELDS
from pit_jax.errors import ConfigError
from pit_jax.parallel import processes
from pit_jax.study import board, child, points, scheduler, space
from pit_jax.study.points import Point
from pit_jax.study.scheduler import Job
from pit_jax.study.sweep import check_jobs, conduct
from pit_jax.study.sweepdir import SweepDir, published

_OWNER = "sweep"  # the trial's attribute that names the directory it is run in
_ABANDONED = datetime.timedelta(minutes=10)  # a trial without an owner was cut off at birth


@dataclasses.dataclass(frozen=True)
class Distribution:
    """Where a field's values are looked for: an interval, or a few values."""

    low: float = 0
    high: float = 0
    log: bool = False
    whole: bool = False
    values: tuple = ()

    def ends(self) -> tuple:
        """Values that a config must accept for all the others to be fine."""
        return self.values or (self.low, self.high)


def uniform(low: float, high: float) -> Distribution:
    """Real numbers from `low` to `high`."""
    return Distribution(float(low), float(high))


def log_uniform(low: float, high: float) -> Distribution:
    """Positive real numbers whose logarithm is uniform."""
    return Distribution(float(low), float(high), log=True)


def integer(low: int, high: int) -> Distribution:
    """Whole numbers from `low` to `high`, both included."""
    return Distribution(low, high, whole=True)


def choice(*values: Any) -> Distribution:
    """One of the values."""
    return Distribution(values=values)


def search(
    spec: str,
    workdir: str | os.PathLike,
    trials: int,
    words: Sequence[str] = (),
    storage: str | None = None,
    jobs: int = 1,
    retries: int = 2,
) -> None:
    """Runs trials until the database holds `trials` of them, those of other machines too.

    Args:
      storage: any database URL that Optuna knows; search.db in the directory by default.
      others: as of sweep.sweep.

    Raises:
      ConfigError: if the file declares no space, or Optuna is not installed.
      Failed: if some trials did not end well.
      Stopped: after a SIGTERM or Ctrl-C, once the runs have saved and ended.
    """
    check_jobs(jobs, retries)
    shares = child.shares(jobs)
    declared = Declared(spec, words)
    directory = SweepDir(workdir)
    directory.check(declared.file, search=True)
    _check_trials(trials)
    _optuna()
    owner = directory.write(declared.file, [], adds=True)["id"]
    shown = board.Board(jobs)
    found = Search(declared, directory, owner, trials, _url(directory, storage), shown)
    begun = found.begun()
    shown.say(f"{directory.path}: {found.count()} of {trials} trials, {len(begun)} to go on with")
    runner = scheduler.Scheduler(
        directory, begun, shares, retries, shown, more=found.more, ended=found.ended
    )
    try:
        conduct(runner, shown, directory)
    finally:
        found.tell_best()


def plan(
    spec: str,
    workdir: str | os.PathLike,
    trials: int,
    words: Sequence[str] = (),
    storage: str | None = None,
) -> None:
    """Prints the space and touches nothing; refuses what `search` refuses."""
    declared = Declared(spec, words)
    directory = SweepDir(workdir)
    directory.check(declared.file, search=True)
    _check_trials(trials)
    _url(directory, storage)
    for name, where in declared.space.items():
        print(f"{name:28} {_listed(where)}")
    print(f"{trials} trials for the best {declared.objective}; leave out --dry-run to run them")


class Declared:
    """What a file says of a search: the space, the objective, and what all trials share."""

    def __init__(self, spec: str, words: Sequence[str]):
        processes.choose_platform()
        self.file, self.words = configfile.PythonFile(spec), words
        if not hasattr(self.file.module, "space"):
            raise ConfigError(
                f"{self.file.path} defines no space(): write"
                " `def space(): return {'optim.lr': log_uniform(1e-4, 1e-2)}`"
            )
        published(self.file)
        self.space: Mapping[str, Distribution] = self.file.call("space", optional=True)
        _check_space(spec, self.space)
        objective = getattr(self.file.module, "objective", "eval/accuracy")
        if not isinstance(objective, str) or not objective.removeprefix("-").startswith("eval/"):
            raise ConfigError(
                f"{spec}: objective={objective!r} should be the name of an evaluation such as"
                ' "eval/accuracy", or "-eval/loss" for one that should be small'
            )
        self.objective, self.metric = objective, objective.removeprefix("-")

    def config(self, overrides: space.Overrides) -> Any:
        """The resolved config of a trial; ConfigError if it is not possible."""
        return points.resolved(self.file, overrides, self.words)

    def name(self) -> str:
        """Of the study in the database: another space or other overrides are another study."""
        base = configfile.override(self.file.config(), self.words)
        what = [points.identity(base, self.space, {}), self.objective, repr(dict(self.space))]
        digest = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:8]
        stem = os.path.basename(self.file.path).removesuffix(".py")
        return "-".join(filter(None, (stem, self.file.argument, digest)))


class Search:
    """The trials of one study in Optuna's database.

    Args:
      owner: the identity of the directory whose runs are this process's to go on with.
    """

    def __init__(
        self,
        declared: Declared,
        directory: SweepDir,
        owner: str,
        trials: int,
        url: str,
        shown: board.Board,
    ):
        optuna = _optuna()
        self._declared, self._directory, self._owner = declared, directory, owner
        self._trials, self._shown, self._optuna = trials, shown, optuna
        self._distributions = {n: _of_optuna(optuna, d) for n, d in declared.space.items()}
        direction = "minimize" if declared.objective.startswith("-") else "maximize"
        try:
            self._study = optuna.create_study(
                storage=url, study_name=declared.name(), direction=direction, load_if_exists=True
            )
        except Exception as error:  # of any database's driver
            line = " ".join(str(error).split())[:200]
            raise ConfigError(f"--storage: {type(error).__name__}: {line}") from None

    def begun(self) -> list[Point]:
        """The trials of this directory that no one has ended."""
        found = []
        running = self._optuna.trial.TrialState.RUNNING
        for trial in self._study.get_trials(deepcopy=False, states=(running,)):
            owner = trial.user_attrs.get(_OWNER)
            if owner == self._owner:
                found.append(self._point(trial.number, self._overrides(trial.params)))
            elif owner is None and trial.datetime_start < datetime.datetime.now() - _ABANDONED:
                self._fail(trial.number)
        return found

    def count(self) -> int:
        """Trials that there are, whatever became of them."""
        return len(self._study.get_trials(deepcopy=False))

    def more(self) -> Point | None:
        """A new trial that can be run, None once there are as many as are wanted."""
        while self.count() < self._trials:
            trial = self._study.ask(self._distributions)
            if trial.number >= self._trials:  # another machine was quicker
                self._fail(trial.number)
                return None
            trial.set_user_attr(_OWNER, self._owner)
            overrides = self._overrides(trial.params)
            try:
                point = self._point(trial.number, overrides)
            except ConfigError as error:
                self._shown.say(f"trial {trial.number} ({_told(overrides)}) cannot be: {error}")
                self._fail(trial.number)
                continue
            if (value := self._known(trial)) is not None:
                self._shown.say(
                    f"trial {trial.number} ({_told(overrides)}) is an earlier one again"
                )
                self._study.tell(trial.number, value)
                continue
            self._directory.write(self._declared.file, [point], adds=True)
            self._shown.say(f"trial {trial.number}: {_told(overrides)}")
            return point
        return None

    def ended(self, job: Job) -> None:
        """Tells Optuna the objective of a run that is done, or that it failed."""
        value = job.progress.evaluation.get(self._declared.metric)
        number = job.point.index
        if job.state == scheduler.DONE and isinstance(value, float) and math.isfinite(value):
            self._study.tell(number, value, skip_if_finished=True)
            return
        if job.state == scheduler.DONE:
            offered = ", ".join(sorted(job.progress.evaluation)) or "none"
            self._shown.say(
                f"{job.name} has no {self._declared.metric}, but {offered}: it counts as failed"
            )
        self._fail(number)

    def tell_best(self) -> None:
        """Prints the best trial of all machines so far."""
        done = self._optuna.trial.TrialState.COMPLETE
        if self._study.get_trials(deepcopy=False, states=(done,)):
            best = self._study.best_trial
            told = _told(self._overrides(best.params))
            self._shown.say(
                f"best {self._declared.metric}: {best.value:.4g}, trial {best.number} ({told})"
            )

    def _point(self, number: int, overrides: space.Overrides) -> Point:
        config, swept = self._declared.config(overrides), frozenset(self._declared.space)
        label = f"trial={number}"
        return points.point(number, label, overrides, config, {}, swept, self._directory.path)

    def _overrides(self, params: Mapping[str, Any]) -> space.Overrides:
        return {name: _decoded(self._declared.space[name], value) for name, value in params.items()}

    def _known(self, trial: Any) -> float | None:
        """The objective of an earlier trial with the same values."""
        done = self._optuna.trial.TrialState.COMPLETE
        earlier = self._study.get_trials(deepcopy=False, states=(done,))
        return next((t.value for t in earlier if t.params == trial.params), None)

    def _fail(self, number: int) -> None:
        failed = self._optuna.trial.TrialState.FAIL
        self._study.tell(number, state=failed, skip_if_finished=True)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise ConfigError("--search needs Optuna: pip install 'pit_jax[study]'") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _check_trials(trials: int) -> None:
    if trials < 1:
        raise ConfigError(f"--search {trials}: at least 1 trial")


def _check_space(spec: str, declared: Any) -> None:
    """Refuses a space with fields or values that no config has."""
    if not isinstance(declared, Mapping) or not declared:
        raise ConfigError(f"{spec}: space() should return {{field: distribution, ...}}")
    for name, where in declared.items():
        if not isinstance(where, Distribution):
            raise ConfigError(
                f"{spec}: space(): {name}={where!r} is no distribution: write uniform(low, high),"
                " log_uniform(low, high), integer(low, high) or choice(...)"
            )
        if not where.values and (not where.low < where.high or (where.log and where.low <= 0)):
            raise ConfigError(
                f"{spec}: space(): {name} has no values from {where.low} to {where.high}"
            )
        for value in where.ends():
            try:
                validation.check_value(name, value)
            except ConfigError as error:
                raise ConfigError(f"{spec}: space(): {error}") from None
        if FIELDS[name].type is int and not where.whole and not where.values:
            raise ConfigError(
                f"{spec}: space(): config.{name} is a whole number: write integer(...)"
            )


def _url(directory: SweepDir, storage: str | None) -> str:
    if storage is None and "://" in str(directory.path):
        raise ConfigError("--search in a bucket needs a database: --storage URL")
    return storage or f"sqlite:///{directory.path / 'search.db'}"


def _of_optuna(optuna: Any, where: Distribution) -> Any:
    kinds = optuna.distributions
    if where.values:
        return kinds.CategoricalDistribution([_encoded(value) for value in where.values])
    if where.whole:
        return kinds.IntDistribution(where.low, where.high)
    return kinds.FloatDistribution(where.low, where.high, log=where.log)


def _encoded(value: Any) -> Any:
    """A value as the database takes it: a tuple becomes its text."""
    return value if isinstance(value, bool | int | float | str) else repr(value)


def _decoded(where: Distribution, value: Any) -> Any:
    return next((v for v in where.values if _encoded(v) == value), value)


def _told(overrides: space.Overrides) -> str:
    short = space.short_names(overrides)
    return ", ".join(f"{short[name]}={space.text(value)}" for name, value in overrides.items())


def _listed(where: Distribution) -> str:
    if where.values:
        return f"one of {', '.join(map(space.text, where.values))}"
    kind = "whole numbers" if where.whole else "logarithmic" if where.log else "uniform"
    return f"{space.text(where.low)} to {space.text(where.high)}, {kind}"
