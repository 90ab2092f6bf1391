"""The launches of a sweep's points: a limited number alive, until all are done."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pit_jax.errors import EXIT_INTERRUPTED, ConfigError, PitError, Stopped, StorageError
from pit_jax.launch import queue, records, tpu, upload, watch
from pit_jax.launch.decision import MOST, pause_s
from pit_jax.launch.request import Request
from pit_jax.rundir import RunDir
from pit_jax.study import board
from pit_jax.study.points import Point
from pit_jax.study.scheduler import DONE, FAILED, RUNNING, SKIPPED, WAITING, Failed
from pit_jax.study.sweepdir import SweepDir


@dataclasses.dataclass(frozen=True)
class Planned:
    """One launch to be: its request, what it uploads, and what launch.json says besides."""

    asked: Request
    files: tpu.Contents
    more: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Job:
    """A point and what became of it.

    Attributes:
      unsure: whether it may have a resource, since the answer to its creation was lost.
      refusals: of its creation; `logins`: those for want of a login, which is waited for.
    """

    point: Point
    planned: Planned
    run: RunDir
    state: str = WAITING
    note: str = ""
    watched: watch.Launch | None = None
    unsure: bool = False
    refusals: int = 0
    logins: int = 0
    not_before: float = 0.0

    @property
    def name(self) -> str:
        return f"point {self.point.index} ({self.point.label})"

    @property
    def alive(self) -> bool:
        return self.state == RUNNING or (self.state == WAITING and self.unsure)


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
            self._take_up()
            while self._step():
                self._sleep(watch.POLL_S)
        except KeyboardInterrupt:
            alive = sum(job.alive for job in self.jobs)
            raise Stopped(
                EXIT_INTERRUPTED,
                f"{alive} launches go on by themselves; the same command again looks after"
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
                with contextlib.suppress(StorageError):  # then it is asked again
                    self._ended(job)
        for job in self.jobs:
            if job.state == WAITING:
                self._consider(job)
        return any(job.state in (RUNNING, WAITING) for job in self.jobs)

    def _take_up(self) -> None:
        """What an earlier start of this command has left: whatever is alive counts from now on."""
        left = [(job, upload.record(job.run)) for job in self.jobs]
        first = self.jobs[0].planned.asked
        places = {(first.project, first.zone)}
        places |= {(one["project"], one["zone"]) for _, one in left if _is_ours(one)}
        there = {found.launch for place in sorted(places) for found in queue.Client(*place).list()}
        for job, record in left:
            if _is_ours(record) and record.get("id") in there:
                self._watch(job, record)  # which deletes it if its run has ended
            elif self._directory.is_done(job.point):
                job.state = DONE

    def _watch(self, job: Job, record: Mapping[str, Any]) -> None:
        job.watched = watch.Launch(record, self._say, self._clock)
        job.state, job.unsure = RUNNING, False

    def _consider(self, job: Job) -> None:
        states = {other.point.index: other.state for other in self.jobs}
        needs = {other.label: states[other.index] for other in job.point.needs.values()}
        if bad := [label for label, state in needs.items() if state in (FAILED, SKIPPED)]:
            job.state, job.note = SKIPPED, f"it starts from {bad[0]}, which did not end well"
            return
        alive = sum(other.alive for other in self.jobs)
        ready = all(state == DONE for state in needs.values())
        if not ready or self._clock() < job.not_before:
            return
        if not job.alive and alive >= self._at_once:
            return
        try:
            self._watch(job, self._created(job))
        except (queue.Exhausted, queue.NoLogin, queue.Unreachable, StorageError) as error:
            if isinstance(error, queue.Exhausted):
                job.unsure = False
            elif isinstance(error, queue.Unreachable):
                job.unsure = True
            self._later(job, error)
        except PitError as error:
            job.state, job.note = FAILED, str(error)
            self._say(f"{job.name}: {error}")

    def _created(self, job: Job) -> Mapping[str, Any]:
        """The point's launch: the one that was written down before, as long as it has not ended.

        That may be there or not; asking for it again makes no second one.
        """
        before = upload.record(job.run)
        ended = upload.ended(job.run, before)
        if not _is_ours(before) or (ended and before.get("id") != job.planned.asked.id):
            upload.check_free(job.run, job.point.config, tpu.alive)
            planned = job.planned
            record = tpu.create(job.run, planned.asked, planned.files, **planned.more)
            self._say(f"{job.name}: created {record['name']}")
            return record
        pending = (before.get("watch") or {}).get("pending")  # its watcher creates it
        if ended or pending or _is_there(before):
            return before
        with upload.recorded(job.run, **before) as record:
            client = queue.Client(record["project"], record["zone"])
            client.create(Request.from_json(record.get("request")))
        self._say(f"{job.name}: created {record['name']}")
        return record

    def _later(self, job: Job, error: PitError) -> None:
        if isinstance(error, queue.NoLogin):
            pause = pause_s(job.logins)
            job.logins += 1
        elif job.refusals >= MOST and not job.unsure:
            job.state, job.note = FAILED, str(error)
            return
        else:
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


def _is_ours(record: Mapping[str, Any]) -> bool:
    """Whether a launch.json is of a queued resource and says where that is."""
    return record.get("target") == "tpu" and records.is_whole(record)


def _is_there(record: Mapping[str, Any]) -> bool:
    """Raises Unreachable if that cannot be told, for whatever reason: it is no refusal."""
    try:
        return bool(tpu.alive(record))
    except ConfigError as error:
        raise queue.Unreachable(str(error)) from None
