"""What a launch puts beside a run before any worker exists: launch.json and <workdir>/launch/.

launch.json          the launch: its id, where it went, and the whole request
launch/config.json   the resolved config that the workers run
launch/...           the wheel, constraints.txt, startup.sh, a study's files
"""

import contextlib
import datetime
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from pit_jax import configfile, files
from pit_jax.config import flatten
from pit_jax.data import known
from pit_jax.errors import ConfigError, StorageError
from pit_jax.launch import records
from pit_jax.launch.cloud_errors import (
    LOGIN,
    NO_CREDENTIALS,
    NO_LIBRARIES,
    NoLogin,
    needs_login,
)
from pit_jax.lease_store import Bucket, Disk
from pit_jax.rundir import RunDir

SCHEMA = 1
FOLDER = "launch"
RECORD = "launch.json"
CHANGE_S = 30.0  # for a bucket to answer
REACH_S = 60.0  # for one that is out of reach to be asked again
# Fields that name files which the workers would read.
_PLACES = ("init_from", "resume", "autoencoder.weights", "eval.reference", "eval.features")
_MADE = ("digits", "scenes")  # sets that lie nowhere: they are in a package, or drawn


def check_bucket(workdir: str, target: str) -> None:
    """Refuses a work directory that the workers do not share; asks no bucket whether it is there.

    Raises:
      ConfigError: if it is not on gs://.
    """
    if not workdir.startswith("gs://"):
        raise ConfigError(
            f"--workdir {workdir[:80]}: --target {target} writes to gs://BUCKET/DIRECTORY, which"
            " all workers and you can read"
        )


def check_there(workdir: str) -> None:
    """Looks with the credentials that are here whether a work directory's bucket is there.

    Raises:
      ConfigError: if there are no credentials, or there is no such bucket.
      StorageError: if it is not reached, or may not be looked at.
    """
    name = workdir.removeprefix("gs://").partition("/")[0]
    with files.told(f"gs://{name}", "read"):
        _look(name)


def _look(bucket: str) -> None:
    try:
        from google.api_core import exceptions
        from google.auth.exceptions import DefaultCredentialsError
        from google.cloud import storage
        from google.cloud.storage.retry import DEFAULT_RETRY
    except ImportError:
        raise ConfigError(NO_LIBRARIES) from None
    try:
        client = storage.Client(project=None)
        call = {"timeout": CHANGE_S, "retry": DEFAULT_RETRY.with_timeout(REACH_S)}
        next(iter(client.list_blobs(bucket, max_results=1, **call)), None)
    except DefaultCredentialsError:
        raise NoLogin(NO_CREDENTIALS) from None
    except exceptions.NotFound:
        raise ConfigError(
            f"there is no bucket {bucket}: gcloud storage buckets create gs://{bucket}"
            " --location=REGION"
        ) from None
    except exceptions.RetryError as error:
        raise StorageError(
            f"gs://{bucket}: Google Cloud Storage does not answer ({type(error.cause).__name__}):"
            " is there a network? Try again later"
        ) from None
    except Exception as error:
        if needs_login(error):
            raise NoLogin(f"your Google Cloud credentials are not taken: {LOGIN}") from None
        raise


def check_reachable(config: ConfigDict, target: str, data_dir: str = "") -> list[str]:
    """What a config reads from this machine, where no worker would find it; one line each.

    Args:
      target: "tpu" or "gke", whose options are named.
      data_dir: where the workers' data will lie; "" if they get none.
    """
    flat = flatten(config)
    lines = [
        f"config.{name}={flat[name]} is on this machine and not on the workers: copy it to gs://"
        for name in _PLACES
        if flat[name] and "://" not in flat[name] and not _inside(flat[name], data_dir)
    ]
    if config.train.wandb:
        lines.append(
            f"config.train.wandb={config.train.wandb}: the workers have no key of yours, and none"
            " is written where others can read it: leave it empty"
        )
    name = config.data.name
    if not data_dir and (known.copy_of(name) or name.partition(":")[0] not in _MADE):
        disk = " or --data-disk DISK" if target == "tpu" else ""
        lines.append(
            f"config.data.name={name!r} lies nowhere on the workers: give --data gs://...{disk}"
        )
    return lines


def check_data(place: str) -> None:
    """Refuses data sets that are not there, as far as we can see it from here.

    Raises:
      ConfigError: if nothing lies there.
      StorageError: if we cannot look.
    """
    files.check_place(place, "--data")
    found = None
    with files.told(place, "read"), contextlib.suppress(FileNotFoundError):
        found = next(iter(epath.Path(place).iterdir()), None)
    if found is None:
        raise ConfigError(f"--data {place}: nothing lies there")


def check_free(
    run: RunDir, config: ConfigDict | None, alive: Callable[[dict[str, Any]], str]
) -> None:
    """Refuses a work directory with another run in it, or with a launch that has not ended.

    Args:
      config: of the run, if it is one.
      alive: the state of a launch's resource, "" if it is gone; asked only where that matters.

    Raises:
      ConfigError: naming what differs, or the launch.
    """
    if config is not None and run.exists():
        run.check_same(config)
    before = record(run)
    if not before or ended(run, before):
        return
    name, state = before.get("name"), alive(before)
    if state == "FAILED":  # it has to go before another can have its name
        raise ConfigError(
            f"--workdir {run.path}: its launch {name} has FAILED, pit-jax launch status {name} says"
            f" why: pit-jax launch stop {name}, mend, launch again"
        )
    if state:
        raise ConfigError(
            f"--workdir {run.path} belongs to the launch {name}, which has not ended:"
            f" pit-jax launch status {name}, or launch stop {name}"
        )


def finished(run: RunDir, config: ConfigDict) -> str:
    """What a run came to that is done to the length that the config asks for; "" of others.

    A slice for it would be booked for nothing.
    """
    status = run.status()
    if status.get("state") != "done" or not run.exists():
        return ""
    before, now = run.config().train, config.train
    if any(before[name] != now[name] for name in ("steps", "epochs", "examples")):
        return ""
    result = (status.get("result") or {}).items()
    measured = ", ".join(f"{name.removeprefix('eval/')} {value:.4g}" for name, value in result)
    return f"{run.path} is done: step {status.get('step')}" + (f", {measured}" if measured else "")


def ended(run: RunDir, launch: Mapping[str, Any]) -> bool:
    """Whether nobody will go on with a launch: its status is final, or it was stopped."""
    status = run.status()
    final = bool(status.get("final")) and status.get("launch") == launch.get("id")
    return final or bool(launch.get("stopped"))


def record(run: RunDir) -> dict[str, Any]:
    """What launch.json says; {} where there is none, or none that can be read."""
    path = run.path / RECORD
    with files.told(path, "read"):
        return _parsed(path.read_bytes() if path.exists() else None)


def _parsed(content: bytes | None) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        found = files.parse_json(content or b"")
        return found if isinstance(found, dict) else {}
    return {}


def _text(fields: Mapping[str, Any]) -> str:
    return json.dumps(fields, indent=1) + "\n"


def write_record(run: RunDir, **fields: Any) -> dict[str, Any]:
    """Writes launch.json: id, name, target, project, zone, accelerator, slices, spot, request.

    Returns what was written.
    """
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    whole = {"schema": SCHEMA, "workdir": str(run.path), "config": config_place(str(run.path))}
    whole |= {"created": now, **fields}
    run.write(RECORD, _text(whole))
    return whole


@contextlib.contextmanager
def recorded(run: RunDir, **fields: Any) -> Iterator[dict[str, Any]]:
    """Writes launch.json of what the block creates, and keeps a record of it on this machine.

    What was refused (ConfigError) is taken back; whatever else happens, it may be there.
    """
    before = note(run, fields["id"], **fields)
    again = before.get("id") == fields["id"]  # asked for once more: what was noted stays
    made = before if again else write_record(run, **fields)
    try:
        yield made
    except ConfigError:
        forget(run, fields["id"], {} if again else before)
        raise
    except BaseException:
        records.keep(made)
        raise
    records.keep(made)


def note(run: RunDir, launch: str | None, **fields: Any) -> dict[str, Any]:
    """Changes fields of launch.json, if it is of this launch; returns what it says then."""
    return _change(run, launch, lambda found: {**found, **fields})


def forget(run: RunDir, launch: str, before: Mapping[str, Any]) -> None:
    """Takes back launch.json of a launch that was never created; what was there before returns."""
    _change(run, launch, lambda found: dict(before))


def _change(
    run: RunDir, launch: str | None, change: Callable[[dict[str, Any]], dict[str, Any]]
) -> dict[str, Any]:
    """Replaces launch.json only as it was read: of two at once none undoes what the other did."""
    path = run.path / RECORD
    store = Bucket(path, CHANGE_S) if files.in_bucket(path) else Disk(path)
    while True:
        content, version = store.read()
        found = _parsed(content)
        if not found or found.get("id") != launch:
            return found
        changed = change(found)
        if store.replace(_text(changed).encode() if changed else None, version):
            return changed


def listed(contents: Mapping[str, str | bytes | pathlib.Path]) -> list[str]:
    """What `put` would write, and launch.json, in lines for a dry run; a study as its folder."""
    sizes: dict[str, int] = {}
    for name, content in contents.items():
        folder = f"{name.partition('/')[0]}/" if "/" in name else name
        sizes[folder] = sizes.get(folder, 0) + len(content)
    rows = [
        (f"{FOLDER}/{name}", f"{size:,} bytes" if size else "this checkout")
        for name, size in sizes.items()
    ]
    rows.append((RECORD, "the whole request"))
    width = max(len(name) for name, _ in rows)
    return [f"  {name:{width}}  {about}" for name, about in rows]


def put(run: RunDir, contents: Mapping[str, str | bytes | pathlib.Path]) -> None:
    """Writes files of these names into <workdir>/launch/.

    Raises:
      StorageError: if one cannot be written.
    """
    for name, content in contents.items():
        whole = content.read_bytes() if isinstance(content, pathlib.Path) else content
        run.write(f"{FOLDER}/{name}", whole)


def study(spec: str) -> tuple[str, str, dict[str, pathlib.Path]]:
    """What a worker needs to run a study's FILE.py[:ARG]: that file and the configs beside it.

    Returns:
      The directory's name under launch/, FILE[:ARG] relative to it, and the files to `put`.
    """
    path, separator, argument = spec.partition(".py:")
    file = pathlib.Path(path if path.endswith(".py") else f"{path}.py").resolve()
    if not file.is_file():
        raise ConfigError(f"there is no study file {path}")
    # experiments/x.py reads ../configs; a config's own sweep() reads those beside it.
    near = {file, *file.parent.glob("*.py"), *(file.parent.parent / "configs").glob("*.py")}
    names = {one: f"{one.parent.name}/{one.name}" for one in sorted(near)}
    relative = f"{names[file]}:{argument}" if separator else names[file]
    return "study", relative, {f"study/{name}": one for one, name in names.items()}


def config_text(config: ConfigDict) -> str:
    return configfile.to_json(config)


def config_place(workdir: str) -> str:
    """Where the workers read their config."""
    return f"{workdir.rstrip('/')}/{FOLDER}/config.json"


def _inside(path: str, data_dir: str) -> bool:
    return bool(data_dir) and pathlib.PurePosixPath(path).is_relative_to(data_dir)
