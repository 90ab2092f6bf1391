"""What can be found out about launches: of this machine's records, the cloud and the directories.

What a launch is stands in three places: records.py of this machine, launch.json of its work
directory, and the queued resource, whose labels and script name the other two. Any of them
may be out of reach; then what is known is returned, with a note. One of --target local has
its directory alone.
"""

import contextlib
import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

from pit_jax import files
from pit_jax.errors import ConfigError, PitError
from pit_jax.launch import records, upload
from pit_jax.rundir import RunDir
from pit_jax.study.progress import Progress

LOOK_S = 15.0  # for the cloud to answer somebody who waits
GONE, UNKNOWN = "gone", "?"


@dataclasses.dataclass
class Known:
    """All that could be found out about one launch.

    Attributes:
      record: of launch.json, of records.py, or made from the resource.
      state: of its resource; GONE if there is none, UNKNOWN if that could not be asked.
      reason: why it is in that state.
      notes: what could not be read, and why.
    """

    record: Mapping[str, Any]
    state: str = UNKNOWN
    reason: str = ""
    progress: Progress | None = None
    notes: list[str] = dataclasses.field(default_factory=list)

    @property
    def run_state(self) -> str:
        """Of status.json, if that is of this launch."""
        status = self.progress.status if self.progress else {}
        if not status.get("state"):
            return "" if self.progress else UNKNOWN
        other = status.get("launch") not in (None, self.record.get("id"))
        return "" if other else status["state"]


def is_local(record: Mapping[str, Any]) -> bool:
    """Whether it has no resource: it runs in the foreground of some machine."""
    return record["target"] == "local"


# Many ----------------------------------------------------------------------------------


def ask_cloud(found: list[Known], project: str | None, zone: str | None) -> list[str]:
    """Fills in the states of resources, and adds ours that are not known here."""
    from pit_jax.launch import queue

    notes = []
    tpu = [one for one in found if one.record["target"] == "tpu"]
    places = {(one.record["project"], one.record["zone"]) for one in tpu if _named(one.record)}
    places |= {(project, zone)} if project and zone else set()
    for place in sorted(places):
        try:
            there = {one.name: one for one in queue.Client(*place, LOOK_S).list() if one.launch}
        except PitError as error:
            notes.append(f"{', '.join(place)}: {error}")
            continue
        for one in tpu:
            if (one.record["project"], one.record["zone"]) == place:
                resource = there.get(one.record["name"])
                own = resource is not None and resource.launch == one.record.get("id")
                one.state, one.reason = _state(resource if own else None)
                if own:
                    del there[resource.name]
        for resource in there.values():
            state, reason = _state(resource)
            found.append(Known(_made_from(resource, *place), state, reason))
    for one in found:
        if one.record["target"] == "gke":
            one.state = _gke_state(one)
    return notes


def _gke_state(one: Known) -> str:
    from pit_jax.launch import gke

    try:
        return gke.state(one.record) or GONE
    except PitError as error:
        one.notes.append(f"{one.record['name']}: {error}")
        return UNKNOWN


# One -----------------------------------------------------------------------------------


def record_of(args: Any, name: str | None = None) -> Mapping[str, Any]:
    """The record of a launch: of its work directory where that can be read.

    Args:
      name: of the launch, or its work directory; by default the one that was given.

    Raises:
      ConfigError: if nobody knows of it.
      StorageError: if a directory was named that cannot be read.
    """
    name = name or args.of
    record = records.find(name, args.project, args.zone)
    if record is None and not (args.project and args.zone):
        record = _in_directory(name)
    if record is None:
        record = _from_cloud(name, args.project, args.zone)
    with contextlib.suppress(PitError):
        run = RunDir(record["workdir"])
        with files.told(run.path, "read"):
            return _completed(record, run)
    return record


def _in_directory(place: str) -> Mapping[str, Any] | None:
    """What launch.json says, or else a run that was launched with --target local."""
    run = RunDir(place)
    found = upload.record(run)
    if found and records.is_whole(found):
        return found
    with files.told(run.path, "read"):
        status = run.status()
    if status:
        id = status.get("launch")
        return {"name": place, "id": id, "target": "local", "workdir": str(run.path)}
    if "/" in place:
        raise ConfigError(f"{place} holds no run that was launched")
    return None


def _from_cloud(name: str, project: str | None, zone: str | None) -> Mapping[str, Any]:
    if not (project and zone):
        known = [one["name"] for one in records.all_of(project, zone)]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f": did you mean {near[0]}?" if near else "."
        raise ConfigError(
            f"no launch {name[:60]} on TPU or GKE was made from this machine"
            f" ({', '.join(known)[:200] or 'none'}){hint} One of another machine: add --project and"
            " --zone; a --target local one: name its directory"
        )
    from pit_jax.launch import queue
    from pit_jax.launch import request as requests

    for field, value in (("name", name), ("project", project), ("zone", zone)):
        requests.check(field, value)
    resource = queue.Client(project, zone, LOOK_S).get(name)
    if resource is None or not resource.launch:
        ours = "" if resource is None else " that pit-jax launched"
        raise ConfigError(f"there is no queued resource {name}{ours} in {project}, {zone}")
    return _made_from(resource, project, zone)


def _made_from(resource: Any, project: str, zone: str) -> Mapping[str, Any]:
    """A record of a launch that this machine does not know, from its labels and script."""
    return {
        "name": resource.name,
        "id": resource.launch,
        "target": "tpu",
        "project": project,
        "zone": zone,
        "accelerator": resource.accelerator,
        "spot": resource.spot,
        "workdir": resource.workdir,
    }


def find(args: Any) -> Known:
    one = look(record_of(args))
    read_run(one)
    return one


def look(record: Mapping[str, Any]) -> Known:
    """What becomes of a launch's resource; one of --target local has none."""
    one = Known(record)
    if record["target"] == "gke":
        one.state = _gke_state(one)
    elif record["target"] == "tpu":
        from pit_jax.launch import queue

        try:
            found = queue.Client(one.record["project"], one.record["zone"], LOOK_S).get(
                one.record["name"]
            )
            own = found is not None and found.launch == one.record.get("id")
            one.state, one.reason = _state(found if own else None)
        except PitError as error:
            one.notes.append(str(error))
    return one


def _state(resource: Any) -> tuple[str, str]:
    if resource is None:
        return GONE, ""
    by = "by its user" if resource.by_user and resource.state.startswith("SUSPEND") else ""
    return resource.state, resource.reason or by


def read_run(one: Known) -> None:
    """How far the run is; a directory that cannot be read is noted."""
    try:
        run = RunDir(one.record["workdir"])
        with files.told(run.path, "read"):
            one.record = _completed(one.record, run)
            run.status()
            one.progress = Progress(run).read()
    except PitError as error:
        one.notes.append(f"{one.record['name']}: {error}")


def _completed(record: Mapping[str, Any], run: RunDir) -> Mapping[str, Any]:
    """A record with what launch.json adds, unless that is of another launch or damaged."""
    found = upload.record(run)
    whole = {**record, **found}
    of_this = found and found.get("id") == record.get("id")
    return whole if of_this and records.is_whole(whole) else record


def _named(record: Mapping[str, Any]) -> bool:
    return all(isinstance(record.get(name), str) for name in ("project", "zone"))
