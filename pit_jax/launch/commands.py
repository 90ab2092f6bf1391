"""Looking after launches: `pit-jax launch list | status | logs | stop | watch`.

What is known of a launch is shown, see known.py, and what is out of reach is said.
"""

import contextlib
import datetime
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pit_jax import files
from pit_jax.errors import ConfigError, PitError
from pit_jax.launch import listing, records, upload
from pit_jax.launch.known import UNKNOWN, Known, find, record_of
from pit_jax.launch.listing import age, since, steps
from pit_jax.metrics import duration
from pit_jax.rundir import RunDir

FOLLOW_S, FOLLOW_IN_A_BUCKET_S = 1.0, 15.0
_FIRST = ("slice-0-worker-0", "process-0")  # whose log is shown


# status --------------------------------------------------------------------------------


def status(args: Any) -> None:
    """Prints all that is known of one launch."""
    one = find(args)
    record, progress = one.record, one.progress
    said = progress.status if progress else {}
    where = [record.get(name) for name in ("project", "zone", "context", "namespace")]
    rows = [
        ("launch", f"{record['name']} ({record.get('id', UNKNOWN)})"),
        ("target", ", ".join(map(str, filter(None, [record["target"], *where])))),
        ("accelerator", _booked(record)),
        ("created", f"{record.get('created', UNKNOWN)}, {age(record.get('created'))} ago"),
        ("resource", one.state + (f": {one.reason}" if one.reason else "")),
        ("work directory", record["workdir"]),
    ]
    if one.run_state:
        final = ", for good" if said.get("final") else ""
        code = f", exit code {said['exit_code']}" if "exit_code" in said else ""
        rows.append(("run", f"{one.run_state}{code}{final}"))
    if said.get("reason"):
        rows.append(("because", said["reason"]))
    if progress and (far := steps(progress)):
        left = progress.left_s() if one.state == "ACTIVE" else None
        rows.append(("step", far + (f", about {duration(left)} left" if left else "")))
    if progress and progress.loss is not None:
        rows.append(("loss", f"{progress.loss:.4g}"))
    for name, value in (progress.evaluation if progress else {}).items():
        rows.append((name.removeprefix("eval/"), f"{value:.6g}"))
    rows += _beats(one)
    again = record.get("watch")
    if isinstance(again, dict) and again.get("recreations"):
        rows.append(("created again", f"{again['recreations']} times since the last checkpoint"))
    if record.get("stopped"):
        rows.append(("stopped", str(record["stopped"])))
    for name, text in rows:
        print(f"{name:15} {files.printable(str(text))}".rstrip())
    for note in one.notes:
        print(f"note: {note}")


def _booked(record: Mapping[str, Any]) -> str:
    slices = record.get("slices") or 1
    several = f"{slices} slices of " if slices != 1 else ""
    return f"{several}{record.get('accelerator', UNKNOWN)}{', spot' if record.get('spot') else ''}"


def _beats(one: Known) -> Iterable[tuple[str, str]]:
    run = RunDir(one.record["workdir"])
    with contextlib.suppress(PitError, ValueError):
        with files.told(run.path, "read"):
            path = run.path / "heartbeat.json"
            beat = files.read_json(path) if path.exists() else None
        if isinstance(beat, dict):
            seconds = since(beat.get("time"))
            ago = "" if seconds is None else f"{duration(seconds)} ago, "
            yield "heartbeat", f"{ago}step {beat.get('step')}, attempt {beat.get('attempt')}"
    with contextlib.suppress(PitError):
        if names := _logs(run):
            yield (
                "logs",
                ", ".join(names[:4]) + (f" and {len(names) - 4} more" if names[4:] else ""),
            )


# logs ----------------------------------------------------------------------------------


def logs(args: Any) -> None:
    """Prints the end of a worker's log, and with --follow what is added until the run ends."""
    if args.lines < 0:
        raise ConfigError(f"--lines {args.lines}: 0 or more")
    record = record_of(args)
    run = RunDir(record["workdir"])
    pause_s = FOLLOW_IN_A_BUCKET_S if files.in_bucket(run.path) else FOLLOW_S
    shown: Sequence[str] | None = None
    over = False
    while True:
        before = over
        with files.told(run.path, "read"):
            over = upload.ended(run, upload.record(run) or record)
        lines = _log(run, args.worker)
        if lines is None and (not args.follow or over):
            there = _logs(run)
            names = (
                f"; there are {', '.join(there)}" if there else ": no worker has written one yet"
            )
            raise ConfigError(f"{run.path} has no log of {args.worker or 'a worker'}{names}")
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
        time.sleep(pause_s)


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
        there = _logs(run)
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


def _logs(run: RunDir) -> Sequence[str]:
    """Whose logs there are."""
    folder = run.path / "logs"
    with files.told(folder, "read"):
        names = [path.name for path in folder.iterdir()] if folder.exists() else []
    return sorted(name.removesuffix(".log") for name in names if name.endswith(".log"))


# stop ----------------------------------------------------------------------------------


def stop(args: Any) -> None:
    """Deletes a launch's resource, after asking; its run keeps its directory."""
    record = record_of(args)
    name = record["name"]
    if not args.yes:
        if not sys.stdin.isatty():
            raise ConfigError(f"nobody is here to ask whether to stop {name}: add --yes")
        print(f"stop {name} and delete its {record['target']} resource? [y/N] ", end="", flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise ConfigError("nothing was stopped")
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    run = RunDir(record["workdir"])
    try:  # first, so that no watcher creates it again
        upload.note(run, record.get("id"), stopped=now)
    except PitError as error:
        print(f"note: a watcher may create it again: {error}", file=sys.stderr)
    if record["target"] == "gke":
        from pit_jax.launch import gke

        kind, there = "JobSet", gke.delete(record)
    else:
        from pit_jax.launch import queue

        client = queue.Client(record["project"], record["zone"])
        kind, there = "resource", client.delete(name, record.get("id", ""))
    print(f"{name} is being deleted" if there else f"{name}: there is no {kind} of it any more")
    records.note(record, stopped=now)
    print(f"its run stays in {run.path}, and the same launch again goes on with it")


# watch ---------------------------------------------------------------------------------


def watch(args: Any) -> None:
    """Looks after launches, all or those named, until every one has ended.

    Raises:
      ConfigError: if a name is not known; at the end, if a launch was given up.
    """
    from pit_jax.launch import watch as watcher

    if args.of:
        found = [record_of(args, name) for name in args.of]
    else:
        found = [
            record
            for record in records.all_of(args.project, args.zone)
            if record["target"] == "tpu" and not (record.get("stopped") or record.get("outcome"))
        ]
    if other := [record["name"] for record in found if record["target"] != "tpu"]:
        raise ConfigError(f"{other[0]} is on GKE, which starts it again by itself")
    if not found:
        raise ConfigError("there is nothing to watch: name a launch, or see pit-jax launch list")
    print(f"watching {', '.join(record['name'] for record in found)}; Ctrl-C ends watching alone")
    ended = watcher.watch(found)
    if given_up := [one.name for one in ended if one.outcome == watcher.GIVE_UP]:
        raise ConfigError(f"given up: {', '.join(given_up)}")


ACTIONS = {"list": listing.show, "status": status, "logs": logs, "stop": stop, "watch": watch}
