"""What a sweep shows while it runs: a live table on a terminal, plain lines elsewhere."""

import collections
import statistics
import time
from collections.abc import Sequence

import rich.box
import rich.console
import rich.live
import rich.markup
import rich.table
import rich.text

from pit_jax import judge
from pit_jax.metrics import duration
from pit_jax.study import space
from pit_jax.study.points import Point
from pit_jax.study.scheduler import (
    DONE,
    ELSEWHERE,
    FAILED,
    RUNNING,
    SKIPPED,
    STOPPED,
    WAITING,
    Job,
)

_STYLES = {RUNNING: "bold", DONE: "green", FAILED: "red", SKIPPED: "red", STOPPED: "yellow"}
# What is shown first where there is not room for all.
_ORDER = (RUNNING, FAILED, ELSEWHERE, STOPPED, WAITING, SKIPPED, DONE)
_NARROWEST = 12  # columns of a label
_MANY = 1000  # points
_AROUND = 6  # lines beside the table's rows


class Board:
    """Tells a person what the scheduler does; a context, in which the table is live.

    Args:
      jobs: runs at once.
    """

    def __init__(self, jobs: int, console: rich.console.Console | None = None):
        self._jobs = jobs
        self._console = console or rich.console.Console()
        self._live = None
        self._told = 0  # runs that were done when the sweep's own line was printed last
        if self._console.is_terminal:
            self._live = rich.live.Live(
                console=self._console, auto_refresh=False, transient=True, redirect_stderr=False
            )

    def __enter__(self) -> "Board":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live:
            self._live.stop()

    def say(self, line: str) -> None:
        """A line of its own, above the table where there is one."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def changed(self, job: Job) -> None:
        """A line about a job's new state; on a terminal only if something went wrong."""
        if self._live and (job.state in (RUNNING, DONE, STOPPED) or not job.note):
            return
        parts = [job.note]
        if job.state == DONE:
            parts = [_number(job), duration(job.seconds) if job.seconds else job.note]
        told = ", ".join(part for part in parts if part)
        self.say(f"{job.name}: {job.state}" + (f", {told}" if told else ""))

    def show(self, jobs: Sequence[Job]) -> None:
        """Draws the live table anew, as many rows as the screen has room for.

        Elsewhere it is a line on the whole sweep whenever a run has ended and more are to come.
        """
        if not self._live:
            done = sum(job.state == DONE for job in jobs)
            if done != self._told and _left(jobs, self._jobs):
                self._told = done
                self.say(_summary(jobs, jobs, self._jobs).plain)
            return
        room = max(1, self._console.height - _AROUND)
        jobs = sorted(jobs, key=lambda job: job.point.index)
        shown = sorted(jobs, key=lambda job: _ORDER.index(job.state))[:room]
        shown = [job for job in jobs if job in shown]
        group = rich.console.Group(self._table(shown), _summary(jobs, shown, self._jobs))
        self._live.update(group, refresh=True)

    def end(self, jobs: Sequence[Job]) -> None:
        """The table of all points, and of each that went wrong the reason."""
        jobs = sorted(jobs, key=lambda job: job.point.index)
        self._console.print(self._table(jobs, whole=True))
        for job in jobs:
            if job.state in (FAILED, SKIPPED):
                self.say(f"{job.name} {job.state}: {job.note}")

    def _table(self, jobs: Sequence[Job], whole: bool = False) -> rich.table.Table:
        heads = ("state", "step", "loss", "result", "left")[: 4 if whole else 5]
        rows = [(str(job.point.index), *_cells(job)[: len(heads)]) for job in jobs]
        widths = [max(map(len, column)) for column in zip(("#", *heads), *rows, strict=True)]
        # Three columns stand between two cells, and one before the first and after the last.
        room = self._console.width - sum(widths) - 3 * len(widths) - 2
        table = _empty("#", "point", *heads)
        for job, (index, state, *others) in zip(jobs, rows, strict=True):
            label = job.point.label if whole else crop(job.point.label, max(_NARROWEST, room))
            state = rich.text.Text(state, _STYLES.get(job.state, ""))
            table.add_row(index, rich.markup.escape(label), state, *map(rich.markup.escape, others))
        return table


def plan(points: Sequence[Point], states: Sequence[str]) -> None:
    """Prints the points, and the state of those that were started: what --dry-run shows."""
    if len(points) > _MANY:  # a table would take minutes
        for point, state in zip(points, states, strict=True):
            print(f"{point.index:6}  {point.label}  {point.digest[:8]}  {state}")
        return
    table = _empty("#", "point", "hash", "state")
    explicit = any("label" in point.overrides for point in points)
    if explicit:
        table.add_column("overrides", overflow="fold")
    for point, state in zip(points, states, strict=True):
        cells = [str(point.index), point.label, point.digest[:8], state]
        if explicit:
            cells.append(_listed(point.overrides))
        table.add_row(*map(rich.markup.escape, cells))
    rich.console.Console().print(table)


def crop(label: str, width: int) -> str:
    """At most `width` characters of a label: its beginning and its end."""
    if len(label) <= width:
        return label
    end = (width - 1) // 2
    return f"{label[: width - 1 - end]}…{label[len(label) - end :]}"


def _empty(*heads: str) -> rich.table.Table:
    table = rich.table.Table(box=rich.box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for head in heads:
        left = head in ("point", "state", "hash")
        table.add_column(
            head,
            justify="left" if left else "right",
            overflow="fold",
            no_wrap=head != "point",
        )
    return table


def _listed(overrides: space.Overrides) -> str:
    shown = {name: space.text(value, name) for name, value in overrides.items() if name != "label"}
    if "config" in shown:
        shown["config"] = ":".join(filter(None, space.file_and_argument(shown["config"])))
    return ", ".join(f"{name}={value}" for name, value in shown.items())


def _cells(job: Job) -> tuple[str, ...]:
    progress = job.progress
    step = f"{progress.step}/{progress.total or '?'}" if progress.step or progress.total else ""
    loss = "" if progress.loss is None else f"{progress.loss:.4f}"
    left = progress.left_s() if job.state in (RUNNING, ELSEWHERE) else None
    return job.state, step, loss, _number(job), "" if left is None else duration(left)


def _number(job: Job) -> str:
    """The run's main number: "97.2 %" is an accuracy, others say what they are."""
    found = job.progress.main()
    if found is None:
        return ""
    name, value = found
    text = judge.shown(f"eval/{name}", value)
    return text if name == "accuracy" else f"{name} {text}"


def _summary(jobs: Sequence[Job], shown: Sequence[Job], at_once: int) -> rich.text.Text:
    """ "3 done, 2 running, 7 waiting; about 12:30 left"."""
    counts = collections.Counter(job.state for job in jobs)
    words = ", ".join(f"{counts[state]} {state}" for state in (DONE, *_ORDER[:-1]) if counts[state])
    hidden = len(jobs) - len(shown)
    words += f" ({hidden} not shown)" if hidden else ""
    left = _left(jobs, at_once)
    return rich.text.Text(words + (f"; about {duration(left)} left" if left else ""))


def _left(jobs: Sequence[Job], at_once: int) -> float | None:
    """Seconds until all is done, 0 or None as long as that cannot be told."""
    lefts = [job.progress.left_s() for job in jobs if job.state == RUNNING]
    waiting = sum(job.state == WAITING for job in jobs)
    lengths = [job.seconds for job in jobs if job.state == DONE and job.seconds]
    if not lefts or None in lefts:
        return None
    if not lengths:  # none has ended: those that run tell how long one takes
        running = [job for job in jobs if job.state == RUNNING]
        so_far = [time.monotonic() - job.began for job in running]
        lengths = [gone + left for gone, left in zip(so_far, lefts, strict=True)]
    more = waiting * statistics.mean(lengths) if waiting else 0.0
    return max(*lefts, (sum(lefts) + more) / at_once)
