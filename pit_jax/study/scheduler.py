"""Runs the points of a sweep, each in a process of its own, some at once.

Killed at any moment it leaves nothing that a second start would do twice: what a run is and
how far it is stands in its directory alone, and while a process runs it, it holds the run's
lock, whoever started it.
"""

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from pit_jax import beat, signals
from pit_jax.errors import (
    ASKED,
    EXIT_BUG,
    FINAL,
    PitError,
    Stopped,
    StorageError,
)
from pit_jax.parallel import peers
from pit_jax.study import child
from pit_jax.study.points import Point
from pit_jax.study.progress import Progress
from pit_jax.study.sweepdir import SweepDir

TRAIN = (sys.executable, "-m", "pit_jax.cli", "train")
POLL_S = 0.2
LOOK_S, ELSEWHERE_S = 1.0, 2.0  # between looks at runs of ours, and of other processes
PAUSE_S = 5.0  # before a failed run is tried again

WAITING, RUNNING, ELSEWHERE = "waiting", "running", "elsewhere"
DONE, FAILED, SKIPPED, STOPPED = "done", "failed", "skipped", "stopped"


class Failed(PitError):
    """Some points of a sweep did not end well (exit code 1)."""

    exit_code = EXIT_BUG


@dataclasses.dataclass
class Job:
    """A point and what became of it.

    Attributes:
      note: why it failed or was skipped, in one line.
      starts: how often it was started here.
      failures: how often that went wrong since the checkpoint of step `saved`.
      asked: how many signals it was sent.
    """

    point: Point
    progress: Progress
    state: str = WAITING
    note: str = ""
    starts: int = 0
    failures: int = 0
    saved: int = 0
    asked: int = 0
    began: float = 0.0
    seconds: float = 0.0
    not_before: float = 0.0  # when it is looked at, or tried, again
    slot: int | None = None
    process: subprocess.Popen | None = None

    @property
    def name(self) -> str:
        return f"point {self.point.index} ({self.point.label})"


class Watcher(Protocol):
    """Who is told: the table on the terminal."""

    def changed(self, job: Job) -> None: ...

    def show(self, jobs: Sequence[Job]) -> None: ...


class Scheduler:
    """Runs points until all are done, have failed, or it is told to stop.

    Args:
      sweep: the directory.
      points: to run; those that a point needs are among them.
      shares: what each of the runs at once may use, see child.py.
      retries: how often a run that failed is started again.
      watcher: is told what happens.
      more: another point where a share is free, None if there is none.
      ended: is told of a job that is done or has failed.
    """

    def __init__(
        self,
        sweep: SweepDir,
        points: Sequence[Point],
        shares: Sequence[child.Share],
        retries: int,
        watcher: Watcher,
        more: Callable[[], Point | None] = lambda: None,
        ended: Callable[[Job], None] = lambda job: None,
    ):
        self._sweep, self._retries, self._watcher = sweep, retries, watcher
        self._shares, self._free = shares, list(range(len(shares)))
        self._more, self._ended = more, ended
        self._signals: list[int] = []
        self._asked = 0.0  # when the last one of them came
        self.jobs: list[Job] = []
        for point in points:
            self._add(point)

    def run(self) -> None:
        """Returns when every point is done.

        Raises:
          Failed: if some are not.
          Stopped: after a SIGTERM or Ctrl-C, once the runs have saved and ended.
        """
        with self._handlers(), self._ends_children():
            while True:
                self._pass_on()
                self._reap()
                if not self._signals:
                    self._start()
                self._watcher.show(self.jobs)
                if self._signals and not self._of(RUNNING):
                    break
                if not self._of(RUNNING, WAITING, ELSEWHERE):
                    break
                time.sleep(POLL_S)
        self._conclude()

    # Starting -------------------------------------------------------------------------

    def _add(self, point: Point) -> Job:
        job = Job(point, Progress(self._sweep.run(point)))
        self.jobs.append(job)
        if self._sweep.is_done(point):
            job.progress.read()
            job.state, job.note = DONE, "was done"
            self._ended(job)
        return job

    def _start(self) -> None:
        """Starts what can be started, as long as a share is free."""
        now = time.monotonic()
        for job in self._of(ELSEWHERE):
            if now >= job.not_before:
                self._look(job)
        for job in self._of(WAITING):
            needed = [self._job(other) for other in job.point.needs.values()]
            lost = [other for other in needed if other.state in (FAILED, SKIPPED)]
            if lost:
                self._becomes(job, SKIPPED, f"it starts from {lost[0].name}, which {lost[0].state}")
            elif self._free and now >= job.not_before and all(o.state == DONE for o in needed):
                self._try(job)
        while self._free and not self._of(WAITING) and (point := self._more()):
            job = self._add(point)
            if job.state == WAITING:
                self._try(job)

    def _try(self, job: Job) -> None:
        """Starts a job, unless another process has it or has just ended it."""
        try:
            lock = self._sweep.claim(job.point)
            if lock is None:
                self._becomes(job, ELSEWHERE)
                job.not_before = time.monotonic() + ELSEWHERE_S
                return
            try:
                if self._sweep.is_done(job.point):
                    job.progress.read()
                    self._becomes(job, DONE, "was done")
                    return
                if not job.starts:
                    job.saved = job.progress.run.newest_saved()
                job.starts, job.asked = job.starts + 1, 0
                job.slot = self._free.pop(0)
                self._spawn(job, lock)
            finally:
                os.close(lock)  # the process holds it now
        except OSError as error:
            self._gone(job, StorageError.exit_code, f"cannot be started: {error}")
        except StorageError as error:
            self._gone(job, StorageError.exit_code, str(error))
        else:
            self._becomes(job, RUNNING, f"start {job.starts}" if job.starts > 1 else "")

    def _spawn(self, job: Job, lock: int) -> None:
        point, share = job.point, self._shares[job.slot]
        words = ["--config", self._sweep.write_config(point)]
        words += ["--workdir", str(self._sweep.run(point).path)]
        with open(self._sweep.log_path(point), "ab") as log:
            when = time.strftime("%Y-%m-%d %H:%M:%S")
            log.write(f"--- {when}, start {job.starts} by process {os.getpid()}\n".encode())
            log.flush()
            job.process = subprocess.Popen(
                child.command(share, [*TRAIN, *words]),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=peers.alone(os.environ) | dict(share.environment),
                pass_fds=(lock,),
                # Ctrl-C is for the sweep, which passes it on as SIGTERM, once.
                start_new_session=True,
            )
        job.began = time.monotonic()
        job.not_before = 0.0

    def _look(self, job: Job) -> None:
        """Whether what ran elsewhere still does."""
        job.not_before = time.monotonic() + ELSEWHERE_S
        job.progress.read()
        if self._sweep.is_taken(job.point):
            return
        code = job.progress.status.get("exit_code")
        if self._sweep.is_done(job.point):
            self._becomes(job, DONE, "elsewhere")
        elif job.progress.status.get("state") == "failed" and code in FINAL:
            self._becomes(job, FAILED, f"elsewhere, exit code {code}")
        else:
            job.not_before = 0.0
            self._becomes(job, WAITING, "its other process is gone")

    # Ending ---------------------------------------------------------------------------

    def _reap(self) -> None:
        """Takes note of the processes that have ended."""
        for job in self._of(RUNNING):
            code = job.process.poll()
            if code is not None or time.monotonic() >= job.not_before:
                job.progress.read()
                remote = "://" in str(self._sweep.path)
                job.not_before = time.monotonic() + (10 if remote else 1) * LOOK_S
            if code is None:
                continue
            job.seconds += time.monotonic() - job.began
            if code == 0:
                self._release(job)
                self._becomes(job, DONE)
            elif self._signals and (code < 0 or code in ASKED):
                self._settle(job, code)
                self._release(job)
                how = "saved" if code > 0 else "killed"
                self._becomes(job, STOPPED, f"{how} at step {job.progress.step}")
            else:
                self._settle(job, code)
                self._gone(job, code, self._last_words(job, code))

    def _settle(self, job: Job, code: int) -> None:
        """Says in status.json what a run could not, that was killed: nobody runs it any more."""
        if job.progress.status.get("state") != "running":
            return
        with contextlib.suppress(PitError, OSError):
            lock = self._sweep.claim(job.point)
            if lock is not None:  # nobody has started it again since
                try:
                    shells = 128 - code if code < 0 else code  # as a shell has it
                    job.progress.run.write_status(state="failed", exit_code=shells)
                finally:
                    os.close(lock)

    def _gone(self, job: Job, code: int, why: str) -> None:
        """A run has failed: it waits for another try, or this was the last one."""
        self._release(job)
        newest = job.progress.run.newest_saved()
        goes_on = code in ASKED and newest > job.saved  # somebody stopped it, and it has saved
        if newest > job.saved:
            job.failures, job.saved = 0, newest
        job.failures += not goes_on
        if code not in FINAL and job.failures <= self._retries and not self._signals:
            job.not_before = time.monotonic() + PAUSE_S
            self.jobs.remove(job)  # behind the others, which go on meanwhile
            self.jobs.append(job)
            self._becomes(job, WAITING, f"{why}; it is tried again")
        else:
            self._becomes(job, FAILED, why)

    def _release(self, job: Job) -> None:
        if job.slot is not None:
            self._free.append(job.slot)
        job.slot = job.process = None

    def _last_words(self, job: Job, code: int) -> str:
        """Why a process ended, from the end of its log."""
        how = f"exit code {code}" if code > 0 else f"killed by {signal.Signals(-code).name}"
        said = self._sweep.last_line(job.point).removeprefix("pit-jax: ")
        return f"{how}: {said}" if said else how

    def _becomes(self, job: Job, state: str, note: str = "") -> None:
        job.state, job.note = state, note
        self._watcher.changed(job)
        if state in (DONE, FAILED):
            self._ended(job)

    def _of(self, *states: str) -> list[Job]:
        return [job for job in self.jobs if job.state in states]

    def _job(self, point: Point) -> Job:
        return next(job for job in self.jobs if job.point.index == point.index)

    def _conclude(self) -> None:
        left = self._of(STOPPED, WAITING, ELSEWHERE)
        if self._signals and left:
            code = signals.exit_code(self._signals[0])
            name = signal.Signals(self._signals[0]).name
            count = f"{len(left)} of {len(self.jobs)} points are left"
            raise Stopped(code, f"{name}: {count}; the same command goes on")
        lost = self._of(FAILED, SKIPPED)
        if lost:
            raise Failed(f"{len(lost)} of {len(self.jobs)} points did not end well: {_names(lost)}")

    # Signals --------------------------------------------------------------------------

    @contextlib.contextmanager
    def _handlers(self) -> Iterator[None]:
        """The first signal has every run save and end; the second one kills them.

        Of a supervisor that asks where every thread is, the runs hear, too.
        """
        before = {n: signal.signal(n, self._note) for n in signals.that_stop()}
        if beat.is_watched():
            before[beat.STACKS] = signal.signal(beat.STACKS, lambda n, _: self._tell(n))
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: Any) -> None:
        """A system may say it several times at once, where a person means the second Ctrl-C."""
        now = time.monotonic()
        close = now - self._asked <= signals.together_s(number)
        if number == signal.SIGINT or not (self._signals and close):
            self._signals.append(number)
            self._asked = now

    def _pass_on(self) -> None:
        """Sends the runs what we were sent, one signal for each."""
        for job in self._of(RUNNING):
            while job.asked < min(len(self._signals), 2):
                job.asked += 1
                _send(job.process, signal.SIGTERM if job.asked == 1 else signal.SIGKILL)

    def _tell(self, number: int) -> None:
        for job in self._of(RUNNING):
            _send(job.process, number)

    @contextlib.contextmanager
    def _ends_children(self) -> Iterator[None]:
        """If this fails, no run is left behind: they save and end first."""
        try:
            yield
        except BaseException:
            self._signals.append(signal.SIGTERM)
            while any(job.process.poll() is None for job in self._of(RUNNING)):
                self._pass_on()
                time.sleep(POLL_S)
            raise


def _send(process: subprocess.Popen, number: int) -> None:
    """To the run, and if it is to be killed to the processes that it started, too."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if number == signal.SIGKILL else os.kill)(process.pid, number)


def _names(jobs: Sequence[Job]) -> str:
    names = [str(job.point.index) for job in jobs]
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
