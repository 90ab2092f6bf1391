"""The launches of a sweep's points: a limited number alive, until all are done."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pit_jax.errors import EXIT_INTERRUPTED, PitError, Stopped
from pit_jax.launch import queue, tpu, upload, watch
from pit_jax.launch.decision import MOST, pause_s
from pit_jax.launch.request import Request
from pit_jax.rundir import RunDir
from pit_jax.study import board
from pit_jax.study.points import Point
from pit_jax.study.scheduler import DONE, FAILED, RUNNING, SKIPPED, WAITING, Failed
from pit_jax.study.sweepdir import SweepDir


@dataclasses.dataclass(frozen=True)
class Planned:
    """One launch to be: its request and what it uploads."""

    asked: Request
    files: tpu.Contents


@dataclasses.dataclass
class Job:
    """A point and what became of it."""

    point: Point
    planned: Planned
    run: RunDir
    state: str = WAITING
    note: str = ""
    watched: watch.Launch | None = None
    refusals: int = 0
    not_before: float = 0.0

    @property
    def name(self) -> str:
        return f"point {self.point.index} ({self.point.label})"


class Fleet:
    """The launches of a sweep's points, a limited number alive at once.

    Args:
      planned: of each point, in order.
      at_once: resources that may be alive.
    """

    def __init__(
        self,
        directory: SweepDir,
        found: Sequence[Point],
        planned: Sequence[Planned],
        at_once: int,
        say: Callable[[str], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ):
        self._directory, self._at_once = directory, at_once
        self._say = say or (lambda line: print(line, flush=True))
        self._clock, self._sleep = clock, sleep
        self.jobs = [
            Job(point, plan, directory.run(point))
            for point, plan in zip(found, planned, strict=True)
        ]

    def run(self) -> None:
        """Returns once all points are done.

        Raises:
          Failed: if some are not.
          Stopped: after Ctrl-C.
        """
        try:
            asked = self.jobs[0].planned.asked
            found = queue.Client(asked.project, asked.zone).list()
            there = {resource.name: resource.launch for resource in found if resource.launch}
            for job in self.jobs:
                self._take_up(job, there)
            while self._step():
                self._sleep(watch.POLL_S)
        except KeyboardInterrupt:
            alive = [job for job in self.jobs if job.state == RUNNING]
            raise Stopped(
                EXIT_INTERRUPTED,
                f"{len(alive)} launches go on by themselves; the same command again looks after"
                " them and starts the others",
            ) from None
        board.plan([job.point for job in self.jobs], [job.state for job in self.jobs])
        for job in self.jobs:
            if job.state in (FAILED, SKIPPED):
                self._say(f"{job.name} {job.state}: {job.note}")
        self._say(f"next: pit-jax compare {self._directory.given}")
        if bad := sum(job.state != DONE for job in self.jobs):
            raise Failed(f"{bad} of {len(self.jobs)} points did not end well")

    def _step(self) -> bool:
        """Looks at what is alive and starts what may start; whether anything is left."""
        for job in self.jobs:
            if job.state == RUNNING and job.watched.look():
                self._ended(job)
        for job in self.jobs:
            if job.state == WAITING:
                self._consider(job)
        return any(job.state in (RUNNING, WAITING) for job in self.jobs)

    def _take_up(self, job: Job, there: Mapping[str, str]) -> None:
        """What an earlier start of this command has left.

        Args:
          there: the resources that exist: name → launch.
        """
        job.state = DONE if self._directory.is_done(job.point) else WAITING
        record = upload.record(job.run)
        if not record or record.get("target") != "tpu":
            return
        if there.get(record.get("name")) == record.get("id"):
            self._watch(job, record)  # which deletes it if its run has ended
        elif job.state == WAITING and not upload.ended(job.run, record):
            if not (record.get("watch") or {}).get("pending"):  # killed before it was created
                client = queue.Client(record["project"], record["zone"])
                client.create(Request.from_json(record.get("request")))
            self._watch(job, record)

    def _watch(self, job: Job, record: Mapping[str, Any]) -> None:
        job.watched = watch.Launch(record, self._say, self._clock)
        job.state = RUNNING

    def _consider(self, job: Job) -> None:
        states = {other.point.index: other.state for other in self.jobs}
        needs = {other.label: states[other.index] for other in job.point.needs.values()}
        if bad := [label for label, state in needs.items() if state in (FAILED, SKIPPED)]:
            job.state, job.note = SKIPPED, f"it starts from {bad[0]}, which did not end well"
            return
        alive = sum(other.state == RUNNING for other in self.jobs)
        ready = all(state == DONE for state in needs.values())
        if not ready or alive >= self._at_once or self._clock() < job.not_before:
            return
        try:
            upload.check_free(job.run, job.point.config, tpu.alive)
            record = tpu.create(job.run, job.planned.asked, job.planned.files)
        except (queue.Exhausted, queue.Unreachable) as error:
            self._later(job, error)
        except PitError as error:
            job.state, job.note = FAILED, str(error)
            self._say(f"{job.name}: {error}")
        else:
            self._say(f"{job.name}: created {record['name']}")
            self._watch(job, record)

    def _later(self, job: Job, error: PitError) -> None:
        if job.refusals >= MOST:
            job.state, job.note = FAILED, str(error)
            return
        pause = pause_s(job.refusals)
        job.refusals += 1
        job.not_before = self._clock() + pause
        self._say(f"{job.name}: {error}; again in {pause / 60:.0f} min")

    def _ended(self, job: Job) -> None:
        if self._directory.is_done(job.point):
            job.state = DONE
        else:
            job.state, job.note = FAILED, job.watched.reason
        self._say(f"{job.name}: {job.state}")
