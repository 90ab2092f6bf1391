"""Adaptive search over a declared space, by Optuna (https://optuna.org): `sweep --search N`.

    objective = "eval/accuracy"  # as large as possible; "-eval/loss" as small; or the task's
    def space():
        return {"optim.lr": log_uniform(1e-4, 1e-2), "model.patch": choice(1, 2)}

Optuna's database says which trials there are; each is a run of the sweep's directory like any
other. A trial that was cut off stays "running" in the database, and is taken up by the next
start on the disk where its run lies.
"""

import contextlib
import datetime
import hashlib
import itertools
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from pit_jax import configfile, installation, judge
from pit_jax.errors import ConfigError
from pit_jax.parallel import processes
from pit_jax.study import board, distributions, points, scheduler, space
from pit_jax.study.distributions import Distribution, choice, integer, log_uniform, uniform
from pit_jax.study.points import Point
from pit_jax.study.resolver import Resolver
from pit_jax.study.scheduler import Job
from pit_jax.study.sweep import check_jobs, conduct, shares_of
from pit_jax.study.sweepdir import SweepDir, published

__all__ = ("choice", "integer", "log_uniform", "plan", "search", "uniform")

_SEED = "seed"  # the study's attribute that its suggestions follow from
_OWNER = "sweep"  # the trial's attribute that names the directory it is run in
_ABANDONED = datetime.timedelta(minutes=10)  # a trial without an owner was cut off at birth


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
    shares = shares_of(jobs, retries)
    declared, directory = _read(spec, workdir, trials, words, storage)
    _optuna()
    url = _url(directory, storage)
    # A database elsewhere is opened before anything is written; the one here needs the directory.
    study = declared.study(url) if storage is not None else None
    owner = directory.write(declared.file, [], adds=True)["id"]
    study = study or declared.study(url)
    shown = board.Board(jobs)
    found = Search(declared, directory, owner, trials, study, shown)
    begun = found.begun()
    shown.say(
        f"{directory.path}: {found.count()} of {trials} trials, {len(begun)} to resume,"
        f" seed {found.seed}"
    )
    runner = scheduler.Scheduler(
        directory,
        [*found.finished(), *begun],
        shares,
        retries,
        shown,
        more=found.more,
        ended=found.ended,
    )
    try:
        conduct(runner, shown, directory)
    finally:
        found.tell_best()
    found.check_any()


def plan(
    spec: str,
    workdir: str | os.PathLike,
    trials: int,
    words: Sequence[str] = (),
    storage: str | None = None,
    jobs: int = 1,
    retries: int = 2,
) -> None:
    """Prints the space and touches nothing; refuses what `search` refuses."""
    check_jobs(jobs, retries)
    declared, _ = _read(spec, workdir, trials, words, storage)
    for name, where in declared.space.items():
        print(f"{name:28} {distributions.listed(name, where)}")
    print(f"{trials} trials for the best {declared.objective}; leave out --dry-run to run them")


def _read(
    spec: str, workdir: str | os.PathLike, trials: int, words: Sequence[str], storage: str | None
) -> tuple["Declared", SweepDir]:
    """What the file declares, and the directory; both and the trials checked."""
    if trials < 1:
        raise ConfigError(f"--search {trials}: at least 1 trial")
    directory = SweepDir(workdir)
    declared = Declared(spec, words)
    directory.check(declared.file, search=True)
    _url(directory, storage)
    declared.check_evaluations()
    return declared, directory


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
        self._resolve = Resolver(self.file, words)
        self.space: Mapping[str, Distribution] = self.file.call("space", optional=True)
        distributions.check(spec, self.space)
        objective = getattr(self.file.module, "objective", None)
        objective = self._usual() if objective is None else objective
        if not isinstance(objective, str) or not objective.removeprefix("-").startswith("eval/"):
            raise ConfigError(
                f"{spec}: objective={objective!r} should be the name of an evaluation such as"
                ' "eval/accuracy", or "-eval/loss" for one that should be small'
            )
        self.objective, self.metric = objective, objective.removeprefix("-")

    def _usual(self) -> str:
        """What judges the task of the file's config."""
        base = configfile.override(self.file.config(), self.words)
        return judge.objective(base.task, base.eval.what)

    def config(self, overrides: space.Overrides) -> Any:
        """The resolved config of a trial; ConfigError if it is not possible."""
        return self._resolve(overrides)

    def check_evaluations(self) -> None:
        """Refuses evaluations that the task does not offer, where the space varies them too.

        Raises:
          ConfigError: naming the values.
        """
        first = {name: where.ends()[0] for name, where in self.space.items()}
        chosen = [name for name in ("eval.what", "task") if name in self.space]
        made = []
        for values in itertools.product(*(self.space[name].ends() for name in chosen)):
            overrides = first | dict(zip(chosen, values, strict=True))
            with contextlib.suppress(ConfigError):  # not possible together: no trial will be
                what = (len(made), _told(overrides), overrides, self.config(overrides))
                made.append(points.point(*what, {}, frozenset(self.space), ""))
        points.check_evaluations(made)

    def study(self, url: str) -> Any:
        """The study in a database, a new one if there is none.

        Raises:
          ConfigError: if it cannot be opened.
        """
        direction = "minimize" if self.objective.startswith("-") else "maximize"
        try:
            study = _optuna().create_study(
                storage=url, study_name=self.name(), direction=direction, load_if_exists=True
            )
            if _SEED not in study.user_attrs:  # of the study's name, the same wherever it begins
                seed = int.from_bytes(hashlib.sha256(self.name().encode()).digest()[:4], "big")
                study.set_user_attr(_SEED, seed)
            return study
        except Exception as error:  # of any database's driver
            line = " ".join(str(error).split())[:200]
            raise ConfigError(f"--storage: {type(error).__name__}: {line}") from None

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
      study: see `Declared.study`.
      owner: the identity of the directory whose runs are this process's to go on with.
    """

    def __init__(
        self,
        declared: Declared,
        directory: SweepDir,
        owner: str,
        trials: int,
        study: Any,
        shown: board.Board,
    ):
        optuna = _optuna()
        self._declared, self._directory, self._owner = declared, directory, owner
        self._trials, self._shown, self._optuna, self._study = trials, shown, optuna, study
        self._distributions = {
            n: distributions.of_optuna(optuna, d) for n, d in declared.space.items()
        }

    @property
    def seed(self) -> int:
        """What all suggestions follow from, together with the results before them."""
        return self._study.user_attrs[_SEED]

    def finished(self) -> list[Point]:
        """The trials whose runs in this directory are done."""
        done = self._optuna.trial.TrialState.COMPLETE
        ours = [
            self._point(trial.number, self._overrides(trial.params))
            for trial in self._study.get_trials(deepcopy=False, states=(done,))
            if trial.user_attrs.get(_OWNER) == self._owner
        ]
        return [point for point in ours if self._directory.is_done(point)]

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
            # A sampler of its own a trial: which one it was asked for counts, not since when.
            seed = (self.seed + self.count()) % 2**32
            self._study.sampler = self._optuna.samplers.TPESampler(seed=seed)
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

    def check_any(self) -> None:
        """Raises Failed if not one trial of all machines has a value, and none may get one."""
        states = self._optuna.trial.TrialState
        hopeful = (states.COMPLETE, states.RUNNING, states.WAITING)
        if not self._study.get_trials(deepcopy=False, states=hopeful):
            raise scheduler.Failed(
                f"none of the {self.count()} trials has an {self._declared.metric}"
            )

    def _point(self, number: int, overrides: space.Overrides) -> Point:
        config, swept = self._declared.config(overrides), frozenset(self._declared.space)
        label = f"trial={number}"
        return points.point(number, label, overrides, config, {}, swept, self._directory.path)

    def _overrides(self, params: Mapping[str, Any]) -> space.Overrides:
        return {
            name: distributions.decoded(self._declared.space[name], value)
            for name, value in params.items()
        }

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
        raise ConfigError(f"--search needs Optuna: {installation.extra('study')}") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _url(directory: SweepDir, storage: str | None) -> str:
    if storage == "":
        raise ConfigError("--storage '': write the URL of a database")
    if storage is None and "://" in str(directory.path):
        raise ConfigError("--search in a bucket needs a database: --storage URL")
    return storage or f"sqlite:///{directory.path / 'search.db'}"


def _told(overrides: space.Overrides) -> str:
    short = space.short_names(overrides)
    return ", ".join(
        f"{short[name]}={space.text(value, name)}" for name, value in overrides.items()
    )
