"""`pit-jax launch --target tpu`: one run on a Cloud TPU slice, as a queued resource.

In order: what the user wrote is checked, credentials, bucket and name are looked at, the
config is compiled for the slice, what it takes is shown and confirmed; then the files are
uploaded, launch.json is written, and the queued resource is created. Nothing is created before
the last yes.
"""

import copy
import json
import os
import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from pit_jax import configfile, waiting
from pit_jax.config import assign
from pit_jax.errors import ConfigError, PitError, Stopped
from pit_jax.launch import accelerators, money, startup, upload, wheel
from pit_jax.launch import request as requests
from pit_jax.launch.accelerators import Accelerator
from pit_jax.launch.cloud_errors import NO_CREDENTIALS, NO_LIBRARIES, NoLogin
from pit_jax.launch.request import Request
from pit_jax.rundir import RunDir

Contents = dict[str, str | bytes | pathlib.Path]


def launch(args: Any, overrides: Sequence[str]) -> None:
    """Creates what the command line asks for, or prints it with --dry-run.

    Raises:
      ConfigError: for what cannot be, cannot be reached, or was not confirmed.
      DoesNotFit: if a step needs more memory than a chip has.
      StorageError: if the work directory cannot be written.
    """
    os.environ["JAX_PLATFORMS"] = "cpu"  # before jax is imported: libtpu only compiles here
    if args.sweep:
        from pit_jax.launch import sweeps

        sweeps.launch(args, overrides)
        return
    if args.at_once is not None or args.shards is not None:
        raise ConfigError("--at-once and --shards belong to --sweep")
    upload.check_bucket(args.workdir, "tpu")
    name = args.name or requests.name_of(args.workdir)
    where = accelerators.find(args.accelerator, args.slices or 1)
    config = configfile.load(args.config, overrides)
    asked = prepare(args, name, args.workdir, project(args))
    unreachable = upload.check_reachable(config, "tpu", data_dir(args))
    own: Contents = {"config.json": upload.config_text(for_workers(config, args))}
    if args.dry_run:
        files = contents(args, asked, own)
        show(asked)
        print("\n".join(summary(args, asked, where, files)))
        print("nothing was created or compiled. Whether it fits, and the chip-hours:")
        print(money.preflight_command(args.config, where, asked.slices, overrides))
        for line in unreachable:
            print(money.refused_later(line))
        return
    if unreachable:
        raise ConfigError(unreachable[0])
    money.check_answer(args.yes)
    upload.check_there(args.workdir)
    run = RunDir(args.workdir)
    upload.check_free(run, config, alive)
    if done := upload.finished(run, config):
        print(done)
        return
    if args.data:
        upload.check_data(args.data)
    check_name(asked)
    with tempfile.TemporaryDirectory() as folder:
        files = contents(args, asked, own, None if args.requirement else wheel.build(folder))
        price = args.price_per_chip_hour
        found = money.preflight(config, where, price, args.anyway)
        print(money.table(where, asked.slices, asked.spot, found, price), flush=True)
        money.check_fits(found, where, args.anyway)
        money.confirm(f"create {asked.name} in {asked.project}, {asked.zone}?", args.yes)
        made = create(run, asked, files)
    told(asked)
    if args.watch:
        stay(run, made)


# What is asked for ---------------------------------------------------------------------


def project(args: Any) -> str:
    """The project of the command line, or else of the credentials; a dry run needs none.

    Raises:
      ConfigError: if there are no credentials, or they name none.
    """
    if args.project is not None:
        return requests.check("project", args.project)
    if args.dry_run:
        return requests.DRY
    try:
        import google.auth
        from google.auth.exceptions import GoogleAuthError
    except ImportError:
        raise ConfigError(NO_LIBRARIES) from None
    try:
        with waiting.announced("Google Cloud", answers=False):
            _, found = google.auth.default()
    except GoogleAuthError:
        raise NoLogin(NO_CREDENTIALS) from None
    if not found:
        raise ConfigError("--project is missing: your credentials name none")
    return found


def for_workers(config: ConfigDict, args: Any) -> ConfigDict:
    """The config as the workers will run it: the data is where it will be for them."""
    config = copy.deepcopy(config)
    if data_dir(args):
        assign(config, "data.dir", data_dir(args))
    return config


def data_dir(args: Any) -> str:
    """Where the workers' data will lie; "" if they are given none."""
    return startup.DATA_DIR if args.data or args.data_disk else ""


def prepare(
    args: Any,
    name: str,
    workdir: str,
    in_project: str,
    work: Sequence[str] | None = None,
    study: str = "",
) -> Request:
    """The request of one launch, everything in it checked.

    Args:
      args: of the command line: zone, accelerator, slices, spot, data and so on.
      work: what its workers do, as arguments of the worker; None: run the uploaded config.
      study: directory of uploaded files to bring to them, see startup.script.

    Raises:
      ConfigError: about the first value that is wrong.
    """
    for field, value in (("name", name), ("workdir", workdir)):
        requests.check(field, value)
    if not args.zone:
        raise ConfigError(
            "--zone is missing, such as us-west4-a; which has what:"
            " cloud.google.com/tpu/docs/regions-zones"
        )
    requests.check("zone", args.zone)
    if args.requirement is not None:
        requests.check_requirement(args.requirement)
    launch_id = requests.new_id()
    place = workdir.rstrip("/")
    arguments = ["--config", upload.config_place(place)] if work is None else list(work)
    arguments += ["--workdir", place, "--launch", launch_id, "--name", name]
    arguments += ["--project", in_project, "--zone", args.zone]
    script = startup.script(
        name=name,
        launch=launch_id,
        project=in_project,
        zone=args.zone,
        workdir=place,
        arguments=arguments,
        wheel="" if args.requirement else wheel.file_name(),
        requirement=args.requirement or "",
        data=args.data or "",
        data_mode=_data_mode(args),
        study=study,
    )
    return Request(
        name=name,
        id=launch_id,
        project=in_project,
        zone=args.zone,
        accelerator=args.accelerator,
        workdir=place,
        script=script,
        slices=args.slices or 1,
        spot=args.spot,
        runtime_version=args.runtime_version,
        service_account=args.service_account,
        network=args.network,
        subnetwork=args.subnetwork,
        data_disk=args.data_disk,
    )


def _data_mode(args: Any) -> str:
    if args.data is not None:
        requests.check("data", args.data)
        if args.data_disk is not None:
            raise ConfigError("--data and --data-disk: give one of them, on which the data lies")
        return args.data_mode or "stage"
    if args.data_mode is not None:
        raise ConfigError("--data-mode belongs to --data gs://...: give that too")
    return "disk" if args.data_disk is not None else ""


# Showing and creating ------------------------------------------------------------------


def contents(
    args: Any, asked: Request, own: Mapping[str, Any], built: pathlib.Path | None = None
) -> Contents:
    """What is uploaded to <workdir>/launch/, by file name.

    Args:
      own: what only this launch has, such as its config.json.
      built: the wheel, see wheel.build; None: it is named and empty.
    """
    files: Contents = {**own, "constraints.txt": wheel.constraints(), "startup.sh": asked.script}
    if not args.requirement:
        name = built.name if built else wheel.file_name()
        if name not in asked.script:
            raise ConfigError("the checkout changed while it was packed: launch again")
        files[name] = built or b""
    return files


def check_name(asked: Request) -> None:
    """Refuses a name that a queued resource has, before anything is compiled for it.

    Raises:
      ConfigError: naming it.
      Unreachable: if it is about to be free.
    """
    from pit_jax.launch import queue

    found = queue.Client(asked.project, asked.zone).get(asked.name)
    if found is not None:
        raise taken(asked, found.state)


def taken(asked: Request, state: str) -> PitError:
    """What there is to say of a name that a queued resource in this state has."""
    from pit_jax.launch import queue

    if state == "DELETING":
        return queue.Unreachable(f"{asked.name} is still being deleted: try again in a minute")
    return ConfigError(
        f"--name {asked.name}: a queued resource of this name exists in {asked.project},"
        f" {asked.zone}: choose another, or pit-jax launch stop {asked.name}"
    )


def create(run: RunDir, asked: Request, files: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """Uploads, writes launch.json, creates the queued resource; returns launch.json.

    Args:
      more: what launch.json says besides.

    Raises:
      ConfigError: if the service refuses it; launch.json is taken back then.
      PitError: if it does not answer, or a file cannot be written.
    """
    from pit_jax.launch import queue

    client = queue.Client(asked.project, asked.zone)
    upload.put(run, files)
    with upload.recorded(run, **described(asked), **more) as made:
        client.create(asked)
    return made


def described(asked: Request) -> dict[str, Any]:
    """A request as launch.json tells it."""
    names = ("id", "name", "project", "zone", "accelerator", "slices", "spot")
    return {
        "target": "tpu",
        **{name: getattr(asked, name) for name in names},
        "request": asked.to_json(),
    }


def alive(before: Mapping[str, Any]) -> str:
    """The state of an earlier launch's resource; "" if it is gone or about to go."""
    if before.get("target") == "gke":
        from pit_jax.launch import gke

        return gke.alive(before)
    from pit_jax.launch import queue

    found = queue.Client(before["project"], before["zone"]).get(before["name"])
    own = found is not None and found.launch == before["id"] and found.state != "DELETING"
    return found.state if own else ""


def show(asked: Request) -> None:
    """Prints what would be sent: the start-up script, and the request."""
    print("start-up script of every worker")
    print("\n".join(f"  {line}".rstrip() for line in asked.script.splitlines()))
    print(f"\nqueued resource {asked.parent}/queuedResources/{asked.name}")
    print(json.dumps(asked.shown(), indent=2))


def summary(args: Any, asked: Request, where: Accelerator, files: Contents) -> list[str]:
    """What a person looks at before the yes, in lines that all stand on one screen."""
    account = asked.service_account or "the project's Compute Engine default account"
    return [
        f"\n{asked.name} in {asked.project}, {asked.zone}",
        money.table(where, asked.slices, asked.spot, None, args.price_per_chip_hour),
        f"  {'account':13} {account}",
        f"  {'labels':13} {requests.NAME_LABEL}={asked.name}, {requests.LABEL}={asked.id}",
        f"uploaded to {asked.workdir}/",
        *upload.listed(files),
    ]


def told(asked: Request) -> None:
    """Prints what to do now."""
    print(f"created {asked.name}; it waits for its slice now")
    for action, about in (
        ("status", "where it is"),
        ("logs", "what its workers print; --follow"),
        ("stop", "delete it"),
        ("watch", "stay, and recreate it when it is preempted"),
    ):
        print(f"  {f'pit-jax launch {action} {asked.name}':50} {about}")


def stay(run: RunDir, made: Mapping[str, Any]) -> None:
    """Watches a launch until it has ended.

    Raises:
      ConfigError: if it was given up.
      Stopped: with the run's exit code, if that is not 0.
    """
    from pit_jax.launch import watch

    (ended,) = watch.watch([made])
    if ended.outcome == watch.GIVE_UP:
        raise ConfigError(f"{made['name']} was given up: {ended.reason}")
    status = run.status()
    if status.get("final") and status.get("exit_code"):
        reason = status.get("reason") or f"exit code {status['exit_code']}"
        raise Stopped(status["exit_code"], f"{made['name']}: {reason}")
