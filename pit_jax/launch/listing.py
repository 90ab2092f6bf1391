"""`pit-jax launch list`: every launch, its resource's state, and how far its run is.

The launches of a sweep stand together, with all that was begun in the sweep's directory: the
runs of a shard lie there and not in the shard's own.
"""

import contextlib
import dataclasses
import datetime
import queue
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import rich.box
import rich.console
import rich.markup
import rich.table

from pit_jax import files, judge
from pit_jax.errors import PitError
from pit_jax.launch import known, records
from pit_jax.launch.known import Known
from pit_jax.rundir import RunDir
from pit_jax.study.progress import Progress
from pit_jax.study.scheduler import DONE
from pit_jax.study.sweepdir import SweepDir

ANSWER_S = 15.0  # nothing that was asked has answered
_AT_ONCE = 8  # directories that are read
_SHORT = {"WAITING_FOR_RESOURCES": "WAITING"}
_WORDS = ("name", "accelerator", "resource", "run")  # columns; the others hold numbers

T = TypeVar("T")


def show(args: Any) -> None:
    """Prints a table of every launch that this machine or the cloud knows of."""
    found = [Known(record) for record in records.all_of(args.project, args.zone)]
    notes = known.ask_cloud(found, args.project, args.zone)
    if args.project and args.zone:
        if not found and not notes:
            print(f"no launches are known in {args.project}, {args.zone}")
    elif args.project or args.zone:
        notes.append("--project and --zone, both, look for launches of other machines too")
    elif not found:
        print("no launches are known here; --project and --zone look in the cloud")
        print("one of --target local has its directory: pit-jax launch status DIRECTORY")
    for one in _each(known.read_run, found):
        notes.append(_silent(f"{one.record['name']}: {one.record['workdir']}"))
    found.sort(key=lambda one: (str(one.record.get("created") or "~"), len(one.record["name"])))
    if single := [one for one in found if not _sweep_of(one)]:
        heads = ("name", "accelerator", "resource", "run", "step", "result", "age")
        _print(heads, [_cells(one) for one in single])
    places = dict.fromkeys(_sweep_of(one) for one in found if _sweep_of(one))
    sweeps = [_Sweep(place, [one for one in found if _sweep_of(one) == place]) for place in places]
    # What did not answer is not asked again.
    answered = [one for one in sweeps if any(launch.progress for launch in one.launches)]
    silent = _each(_Sweep.read, answered)
    runs = [(one, name) for one in answered if one not in silent for name in one.unread()]
    notes += [_silent(one.place) for one in silent]
    notes += [_silent(one.place) for one, _ in _each(lambda run: run[0].read_run(run[1]), runs)]
    for one in sweeps:
        one.show()
    notes += [note for one in (*found, *sweeps) for note in one.notes]
    for note in dict.fromkeys(notes):
        print(f"note: {note}")


def _each(work: Callable[[T], None], things: Sequence[T]) -> list[T]:
    """Does something for each, several at once; returns what it was waited for in vain.

    The threads are daemons, which no process waits for at its end: a bucket's driver would try
    for minutes.
    """
    todo: queue.SimpleQueue[int] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[int, Exception | None]] = queue.SimpleQueue()
    for number in range(len(things)):
        todo.put(number)

    def run() -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                number = todo.get_nowait()
                try:
                    work(things[number])
                    done.put((number, None))
                except Exception as error:
                    done.put((number, error))

    for _ in range(min(_AT_ONCE, len(things))):
        threading.Thread(target=run, name="list", daemon=True).start()
    left = dict(enumerate(things))
    with contextlib.suppress(queue.Empty):
        while left:
            number, error = done.get(timeout=ANSWER_S)
            if error:
                raise error
            del left[number]
    return [*left.values()]


def _silent(what: str) -> str:
    return f"{what} did not answer in {ANSWER_S:.0f} s"


# Sweeps --------------------------------------------------------------------------------


def _sweep_of(one: Known) -> str:
    """The directory of the sweep that a launch is of, a shard or a point; "" of others."""
    found = one.record.get("sweep") or one.record.get("point_of")
    return found if isinstance(found, str) else ""


def _is_shard(one: Known) -> bool:
    return bool(one.record.get("sweep"))


def _share(one: Known) -> list[str]:
    """The directories of a launch's runs, in the sweep's: several of a shard."""
    if not _is_shard(one):
        return [one.record["workdir"].rstrip("/").rpartition("/")[2]]
    found = one.record.get("points")
    return [name for name in found if isinstance(name, str)] if isinstance(found, list) else []


@dataclasses.dataclass(eq=False)
class _Sweep:
    """The launches of a sweep, and its runs by the names of their directories.

    Attributes:
      labels: of the points; of what no sweep.json tells, the directory's name.
      progress: of the runs that could be read.
    """

    place: str
    launches: Sequence[Known]
    labels: dict[str, str] = dataclasses.field(default_factory=dict)
    progress: dict[str, Progress] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        for one in self.launches:
            self.labels |= {name: name for name in _share(one)}
            if one.progress and not _is_shard(one):
                self.progress[_share(one)[0]] = one.progress

    def read(self) -> None:
        """The points, of sweep.json."""
        try:
            with files.told(self.place, "read"):
                points = SweepDir(self.place).read().get("points", ())
            self.labels |= {point["directory"]: point["label"] for point in points}
        except PitError as error:
            self.notes.append(str(error))

    def unread(self) -> list[str]:
        return [name for name in self.labels if name not in self.progress]

    def read_run(self, name: str) -> None:
        try:
            run = RunDir(RunDir(self.place).path / name)
            with files.told(run.path, "read"):
                run.status()
                self.progress[name] = Progress(run).read()
        except PitError as error:
            self.notes.append(str(error))

    def show(self) -> None:
        accelerators = ", ".join(dict.fromkeys(_accelerator(one.record) for one in self.launches))
        done = f"{self._done(self.labels)} of {len(self.labels)} points done"
        print(files.printable(f"{self.place} ({accelerators}): {done}"))
        heads = ("name", "resource", "run", "step", "result", "age")
        _print(heads, [*self._rows()])

    def _done(self, names: Iterable[str]) -> int:
        found = [self.progress[name] for name in names if name in self.progress]
        return sum(one.status.get("state") == DONE for one in found)

    def _rows(self) -> Iterable[Sequence[str]]:
        shown = set()
        for one in self.launches:
            name, _, resource, state, step, *others = _cells(one)
            share = _share(one)
            shown.update(share)
            if _is_shard(one):
                step = f"{self._done(share)}/{len(share)} points" if share else ""
                yield name, resource, state, step, *others
                yield from self._run_rows(share)
            else:
                yield f"{name} {self.labels[share[0]]}", resource, state, step, *others
        yield from self._run_rows([name for name in self.labels if name not in shown])

    def _run_rows(self, names: Iterable[str]) -> Iterable[Sequence[str]]:
        """Of the runs that were begun."""
        for name in names:
            progress = self.progress.get(name)
            if progress and (state := progress.status.get("state", "")):
                cells = ("", state, steps(progress), _result(progress), "")
                yield f"  {self.labels[name]}", *cells


# Tables --------------------------------------------------------------------------------


def _print(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = rich.table.Table(box=rich.box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(heads[0], overflow="fold", min_width=12)
    for head in heads[1:]:
        table.add_column(head, justify="left" if head in _WORDS else "right", no_wrap=True)
    for cells in rows:
        table.add_row(*(rich.markup.escape(files.printable(cell)) for cell in cells))
    console = rich.console.Console(highlight=False)
    with console.capture() as shown:
        console.print(table)
    for line in shown.get().splitlines():
        if line.strip():
            print(line.rstrip())


def _cells(one: Known) -> tuple[str, ...]:
    return (
        str(one.record["name"]),
        _accelerator(one.record),
        _SHORT.get(one.state, one.state),
        one.run_state,
        steps(one.progress),
        _result(one.progress),
        age(one.record.get("created")),
    )


def _accelerator(record: Mapping[str, Any]) -> str:
    slices = record.get("slices") or 1
    name = str(record.get("accelerator") or "")
    return f"{slices}x {name}" if slices != 1 else name


def steps(progress: Progress | None) -> str:
    """ "120/50k"."""
    if progress is None or not (progress.step or progress.total):
        return ""
    return f"{_count(progress.step)}/{_count(progress.total) if progress.total else '?'}"


def _count(number: int) -> str:
    """ "950", "12.5k", "1.25M"."""
    for size, unit in ((1_000_000, "M"), (10_000, "k")):
        if number >= size:
            return f"{number / (1000 if unit == 'k' else size):.4g}{unit}"
    return str(number)


def _result(progress: Progress | None) -> str:
    """ "97.2 %" is an accuracy; without an evaluation the training loss."""
    if progress is None:
        return ""
    if found := progress.main():
        name, value = found
        text = judge.shown(f"eval/{name}", value)
        return text if name == "accuracy" else f"{name} {text}"
    return "" if progress.loss is None else f"loss {progress.loss:.3g}"


def age(stamp: Any) -> str:
    """ "5 min", "3.2 h", "12 d" since an ISO date."""
    seconds = since(stamp)
    if seconds is None:
        return ""
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.0f} d"


def since(stamp: Any) -> float | None:
    try:
        then = datetime.datetime.fromisoformat(stamp)
        return max(0.0, (datetime.datetime.now(datetime.UTC) - then).total_seconds())
    except (TypeError, ValueError):  # none, or one without a zone
        return None
