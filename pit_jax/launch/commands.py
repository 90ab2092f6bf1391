"""Looking after launches: `pit-jax launch list | status | logs | stop | watch`.

What is known of a launch is shown, see known.py, and what is out of reach is said.
"""

import contextlib
import datetime
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pit_jax import files
from pit_jax.errors import ConfigError, PitError
from pit_jax.launch import known, listing, logs, money, records, upload
from pit_jax.launch.known import UNKNOWN, Known, find, record_of
from pit_jax.launch.listing import age, since, steps
from pit_jax.launch.supervisor import HEARTBEAT
from pit_jax.metrics import duration
from pit_jax.rundir import RunDir

_FOREGROUND = "was launched with --target local, which stays in the foreground"


# status --------------------------------------------------------------------------------


def status(args: Any) -> None:
    """Prints all that is known of one launch."""
    one = find(args)
    record, progress = one.record, one.progress
    said = progress.status if progress else {}
    where = [record.get(name) for name in ("project", "zone", "context", "namespace")]
    rows = [
        ("launch", f"{record['name']} ({record.get('id') or UNKNOWN})"),
        ("target", ", ".join(map(str, filter(None, [record["target"], *where])))),
    ]
    if not known.is_local(record):
        rows += [
            ("accelerator", _booked(record)),
            ("created", f"{record.get('created', UNKNOWN)}, {age(record.get('created'))} ago"),
            ("resource", one.state + (f": {one.reason}" if one.reason else "")),
        ]
    rows.append(("work directory", record["workdir"]))
    if one.run_state:
        final = ", for good" if said.get("final") else ""
        code = f", exit code {said['exit_code']}" if "exit_code" in said else ""
        rows.append(("run", f"{one.run_state}{code}{final}"))
    if said.get("reason"):
        rows.append(("because", said["reason"]))
    if progress and (far := steps(progress)):
        going = one.run_state == "running" if known.is_local(record) else one.state == "ACTIVE"
        left = progress.left_s() if going else None
        rows.append(("step", far + (f", about {duration(left)} left" if left else "")))
    if progress and progress.loss is not None:
        rows.append(("training loss", f"{progress.loss:.4g}"))
    for name, value in (progress.evaluation if progress else {}).items():
        rows.append((_measured(name), f"{value:.6g}"))
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


def _measured(name: str) -> str:
    """What an evaluation is called beside the training loss."""
    short = name.removeprefix("eval/")
    return "held-out loss" if short == "loss" else short


def _booked(record: Mapping[str, Any]) -> str:
    slices = record.get("slices") or 1
    several = f"{slices} slices of " if slices != 1 else ""
    return f"{several}{record.get('accelerator', UNKNOWN)}{', spot' if record.get('spot') else ''}"


def _beats(one: Known) -> Iterable[tuple[str, str]]:
    run = RunDir(one.record["workdir"])
    with contextlib.suppress(PitError, ValueError):
        with files.told(run.path, "read"):
            path = run.path / HEARTBEAT
            beat = files.read_json(path) if path.exists() else None
        if isinstance(beat, dict):
            seconds = since(beat.get("time"))
            ago = "" if seconds is None else f"{duration(seconds)} ago, "
            yield "heartbeat", f"{ago}step {beat.get('step')}, attempt {beat.get('attempt')}"
    with contextlib.suppress(PitError):
        if names := logs.names(run):
            yield (
                "logs",
                ", ".join(names[:4]) + (f" and {len(names) - 4} more" if names[4:] else ""),
            )


# stop ----------------------------------------------------------------------------------


def stop(args: Any) -> None:
    """Deletes the resources of launches, after asking; their runs keep their directories.

    Raises:
      PitError: the first that stood in the way of one; the others are stopped all the same.
    """
    found = [record_of(args, name) for name in dict.fromkeys(args.of)]
    for record in found:
        if known.is_local(record):
            raise ConfigError(f"{record['name']} {_FOREGROUND}: press Ctrl-C there")
    names = ", ".join(record["name"] for record in found)
    money.check_answer(args.yes, f"stop {names}")
    targets = " and ".join(dict.fromkeys(record["target"] for record in found))
    its = f"its {targets} resource" if len(found) == 1 else f"their {targets} resources"
    money.confirm(f"stop {names} and delete {its}?", args.yes, "stopped")
    failed = []
    for record in found:
        try:
            _stop(record)
        except PitError as error:
            failed.append(error)
    for error in failed[1:]:
        print(f"pit-jax: {error}", file=sys.stderr)
    if failed:
        raise failed[0]


def _stop(record: Mapping[str, Any]) -> None:
    name = record["name"]
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
        found = _to_watch(args.project, args.zone)
    for record in found:
        if known.is_local(record):
            raise ConfigError(f"{record['name']} {_FOREGROUND} and is watched there")
        if record["target"] != "tpu":
            raise ConfigError(f"{record['name']} is on GKE, which starts it again by itself")
    print(f"watching {', '.join(record['name'] for record in found)}; Ctrl-C ends watching alone")
    ended = watcher.watch(found)
    if given_up := [one.name for one in ended if one.outcome == watcher.GIVE_UP]:
        raise ConfigError(f"given up: {', '.join(given_up)}")


def _to_watch(project: str | None, zone: str | None) -> Sequence[Mapping[str, Any]]:
    """The launches on TPU that have not ended: known here, and with a place those found there."""
    found = [Known(record) for record in records.all_of(project, zone)]
    found = [one for one in found if one.record["target"] == "tpu"]
    here = len(found)
    notes = known.ask_cloud(found, project, zone) if project and zone else []
    # Without its directory nobody can tell whether a run has ended.
    new = [one for one in found[here:] if one.state != "DELETING" and one.record["workdir"]]
    ended = ("stopped", "outcome")
    left = [one for one in found[:here] if not any(map(one.record.get, ended))] + new
    if not left:
        where = f" in {project}, {zone}" if project and zone else ""
        also = "" if where else ", or add both --project and --zone to watch what is there"
        nothing = f"there is nothing to watch{where}: name a launch, see pit-jax launch list{also}"
        raise ConfigError(notes[0] if notes else nothing)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    return [one.record for one in left]


ACTIONS = {"list": listing.show, "status": status, "logs": logs.show, "stop": stop, "watch": watch}
