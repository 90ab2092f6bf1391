"""`pit-jax launch logs`: the end of a worker's log, and what is added to it.

A worker's log lies in its run's directory. While there is none, and once nobody will write to
it any more, the launch's resource says why.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from pit_jax import files
from pit_jax.errors import ConfigError
from pit_jax.launch import known, records, upload
from pit_jax.launch.known import GONE, UNKNOWN, Known
from pit_jax.rundir import RunDir

FOLLOW_S, FOLLOW_IN_A_BUCKET_S = 1.0, 15.0
_FIRST = ("slice-0-worker-0", "process-0")  # whose log is shown
_OVER = (GONE, "FAILED", "COMPLETED")  # no worker writes any more
_AT_WORK = ("starting", "running", "restarting")  # of a status.json


def show(args: Any) -> None:
    """Prints the end of a worker's log, and with --follow what is added until the run ends.

    Raises:
      ConfigError: if there is none, or nobody will write to it any more though the run has not
        ended.
    """
    if args.lines < 0:
        raise ConfigError(f"--lines {args.lines}: 0 or more")
    record = known.record_of(args)
    run = RunDir(record["workdir"])
    pause_s = FOLLOW_IN_A_BUCKET_S if files.in_bucket(run.path) else FOLLOW_S
    shown: Sequence[str] | None = None
    over = lost = False
    follower = _Follower()
    while True:
        before = over
        with files.told(run.path, "read"):
            now = upload.record(run)
            record = now if records.is_whole(now) else record
            over = _has_ended(run, record)
        lines = _log(run, args.worker)
        if lines is None and (not args.follow or over):
            raise ConfigError(_no_log(run, record, args.worker))
        if lines is not None:
            start = len(lines) - args.lines if args.lines else len(lines)
            new = lines[max(0, start) :] if shown is None else added(shown, lines)
            for line in new:
                print(files.printable(line))
            sys.stdout.flush()
            shown = lines
        # The last lines are written after the status: looked at once more.
        if not args.follow or (over and before):
            return
        if not over and not known.is_local(record):
            one = known.look(record)
            follower.tell(one, lines)
            # An end is written before the resource goes: it is looked for once more.
            was_lost, lost = lost, one.state in _OVER and not _comes_again(record)
            if lost and was_lost:
                raise ConfigError(
                    _no_log(run, record, args.worker) if lines is None else _lost(run, one)
                )
            if lost:
                continue
        time.sleep(pause_s)


def _has_ended(run: RunDir, record: Mapping[str, Any]) -> bool:
    """Whether no worker will write any more; one of --target local is not started again."""
    stopped = known.is_local(record) and run.status().get("state") not in _AT_WORK
    return stopped or upload.ended(run, record)


def _comes_again(record: Mapping[str, Any]) -> bool:
    """Whether a watcher is about to create its resource again."""
    again = record.get("watch")
    return isinstance(again, dict) and again.get("pending") is True


def _resource(one: Known) -> str:
    if one.state == GONE:
        return "its resource is gone"
    return f"its resource is {one.state}" + (f" ({one.reason})" if one.reason else "")


def _lost(run: RunDir, one: Known) -> str:
    """That nobody writes any more, and what the last one said of it."""
    status = run.status()
    said = status.get("reason") if status.get("launch") == one.record.get("id") else ""
    why = f": {said}" if said else ""
    return f"{one.record['name']}: {_resource(one)}, and the run has not ended{why}"


def _no_log(run: RunDir, record: Mapping[str, Any], worker: str | None) -> str:
    """Why there is nothing to print."""
    if there := names(run):
        return f"{run.path} has no log of {worker}; there are {', '.join(there)}"
    name = record["name"]
    if record.get("stopped"):
        return f"{name} has no log: it was stopped before a worker wrote one"
    if known.is_local(record):
        return f"{name} has no log: pit-jax launch --target local writes one"
    one = known.look(record)
    yet = "" if one.state in _OVER else " yet"
    return f"{name} has no log{yet}: {'; '.join(one.notes) or _resource(one)}"


class _Follower:
    """Says on stderr what a resource is while there is nothing to print, each change once."""

    def __init__(self) -> None:
        self._said: set[str] = set()
        self._state = ""

    def tell(self, one: Known, lines: Sequence[str] | None) -> None:
        for note in one.notes:
            if note not in self._said:
                self._said.add(note)
                print(f"note: {note}", file=sys.stderr, flush=True)
        if one.state == self._state or one.state in (UNKNOWN, *_OVER):
            return
        waiting = "" if one.state == "ACTIVE" else "waiting: "
        if self._state or waiting or lines is None:
            print(f"{waiting}{one.state}", file=sys.stderr, flush=True)
        self._state = one.state


def added(before: Sequence[str], after: Sequence[str]) -> Sequence[str]:
    """The lines at the end of `after` that are new.

    A log keeps its last lines: what is new follows the longest end of `before` that `after`
    begins with.
    """
    for gone in range(len(before)):
        kept = len(before) - gone
        if kept <= len(after) and before[gone] == after[0] and before[gone:] == after[:kept]:
            return after[kept:]
    return after


def _log(run: RunDir, worker: str | None) -> Sequence[str] | None:
    """The lines of a worker's log; None if there is none."""
    name = worker
    if name is None:
        there = names(run)
        starts = [f"{first}-startup" for first in _FIRST]
        name = next((one for one in (*_FIRST, *starts, *there) if one in there), None)
    elif "/" in name or name.startswith("."):
        raise ConfigError(f"--worker {ascii(name)[:60]}: a name such as slice-0-worker-0")
    if name is None:
        return None
    path = run.path / "logs" / f"{name}.log"
    with files.told(path, "read"):
        if not path.exists():
            return None
        return path.read_bytes().decode(errors="replace").splitlines()


def names(run: RunDir) -> Sequence[str]:
    """Whose logs there are."""
    folder = run.path / "logs"
    with files.told(folder, "read"):
        found = [path.name for path in folder.iterdir()] if folder.exists() else []
    return sorted(name.removesuffix(".log") for name in found if name.endswith(".log"))
