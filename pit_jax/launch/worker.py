"""What every TPU worker runs: one process of a run, or a shard of a sweep, supervised.

    python -m pit_jax.launch.worker --config PLACE --workdir PLACE --launch ID --name NAME
        --project P --zone Z

Trainers find each other by themselves on Cloud TPU. The worker of process 0 leads: it holds
the directory, writes status.json, and once the run has ended for good it deletes the queued
resource that it runs on, since that costs money until somebody does. A worker that was told
to stop, as a preempted machine is, deletes nothing.

On a TPU VM systemd starts what does not end with 0 again (startup.sh). So a worker that has
nothing left to do ends with 0 there, however its run ended; on GKE with the run's own code.
"""

import argparse
import contextlib
import http.client
import itertools
import os
import re
import sys
import time
import traceback
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any, NoReturn

from pit_jax import configfile, lease, printing
from pit_jax.errors import (
    ASKED,
    EXIT_BUG,
    EXIT_DONE,
    ConfigError,
    PitError,
    StorageError,
)
from pit_jax.fields import FIELDS
from pit_jax.launch import verdict
from pit_jax.launch.cloud_errors import Forbidden
from pit_jax.launch.group import Plan, Process
from pit_jax.launch.limits import Limits
from pit_jax.launch.supervisor import supervise
from pit_jax.rundir import RunDir

HOST = "GCE_METADATA_HOST"  # Google's variable for the address of the metadata server
ATTEMPTS, PAUSE_S = 6, 30.0  # of what must not fail: the last status, the deletion
LONGEST_PAUSE_S = 300.0
_METADATA = "metadata.google.internal"


def parser() -> argparse.ArgumentParser:
    words = argparse.ArgumentParser(prog="pit_jax.launch.worker", allow_abbrev=False)
    what = words.add_mutually_exclusive_group(required=True)
    what.add_argument("--config", metavar="PLACE")
    what.add_argument("--sweep", metavar="FILE[:ARG]")
    words.add_argument("--shard", metavar="K/N", help="of the sweep")
    words.add_argument("--directory", metavar="PLACE", help="of the sweep")
    words.add_argument("--override", action="append", default=[], metavar="--config.a.b=v")
    words.add_argument("--workdir", required=True, metavar="PLACE", help="where status.json is")
    words.add_argument("--launch", required=True, metavar="ID")
    words.add_argument("--name", required=True)
    words.add_argument("--project")
    words.add_argument("--zone")
    return words


# Who this is ---------------------------------------------------------------------------


def number_and_slice() -> tuple[int, int]:
    """This worker's number in its slice, and the slice's.

    As jax finds them: in the environment on GKE, in the metadata of the machine elsewhere.

    Raises:
      ConfigError: if neither says.
      _NoAnswer: if the metadata cannot be had: nobody is process 0 for want of an answer.
    """
    number, found = os.environ.get("TPU_WORKER_ID"), os.environ.get("MEGASCALE_SLICE_ID")
    if not number:
        number = _attribute("agent-worker-number")
        there = _attribute("tpu-env") or ""
        match = re.search(r"^MEGASCALE_SLICE_ID:\s*'?([0-9]+)", there, re.MULTILINE)
        found = found or (match and match[1])
    found = found or "0"
    if number is None or not number.isdecimal() or not found.isdecimal():
        raise ConfigError(
            "this machine does not say which worker of a TPU slice it is: neither TPU_WORKER_ID"
            " nor the attribute agent-worker-number of its metadata"
        )
    return int(number), int(found)


class _NoAnswer(PitError):
    """A later start may have one (exit code 5)."""

    exit_code = 5


def _attribute(name: str) -> str | None:
    """Of the instance's metadata; None if it has none of that name."""
    host = os.environ.get(HOST) or _METADATA
    url = f"http://{host}/computeMetadata/v1/instance/attributes/{name}"
    asked = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    why: Exception | None = None
    for attempt in range(ATTEMPTS):
        try:
            with direct.open(asked, timeout=10) as answer:
                return answer.read().decode(errors="replace").strip()
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, urllib.error.HTTPError) and error.code == 404:
                return None
            why = error
        if attempt < ATTEMPTS - 1:
            time.sleep(min(PAUSE_S, 2.0**attempt))
    raise _NoAnswer(f"the metadata server {host} does not say {name}: {why}")


# The run -------------------------------------------------------------------------------


def work(args: argparse.Namespace) -> int:
    """Supervises this worker's part until the run has ended; returns its exit code.

    Raises:
      PitError: if it has not ended, or its machine is still there, and another start may help.
    """
    number, slice_number = number_and_slice()
    leads = number == slice_number == 0
    worker = f"slice-{slice_number}-worker-{number}"
    run = RunDir(args.workdir)
    code = _final(run, args.launch)
    if code is not None:
        print(f"{args.name} has ended before, with exit code {code}", flush=True)
    else:
        try:
            code, reason = _supervised(args, run, worker, leads)
        except _Taken as error:
            print(f"pit-jax: {error}", file=sys.stderr, flush=True)
            if leads:  # its resource is of no use; what the other one wrote stays
                delete(args)
            return error.exit_code
        if leads and code not in ASKED:
            _settle(run, args.launch, code, reason)
        elif reason:
            with contextlib.suppress(PitError):
                verdict.write(run, worker, args.launch, code, reason)
    if leads and code not in ASKED:
        delete(args)
    return code


class _Taken(ConfigError):
    """A supervisor of another launch holds the directory."""


class _Held(PitError):
    """One of this launch does: on a machine that is about to go, or it will find the end."""

    exit_code = 5


def _supervised(args: argparse.Namespace, run: RunDir, worker: str, leads: bool) -> tuple[int, str]:
    """The exit code, and why where the supervisor could not say so in status.json.

    Whatever goes wrong, it returns where it leads: a machine that nobody ends costs money.

    Raises:
      _Taken: if another launch holds the directory.
      _Held: if another supervisor of this launch does, for longer than a lease lasts.
      Exception: where it does not lead, for what another start may mend.
    """
    owner = lease.new_owner()  # one for all tries: none finds the one before as a stranger
    for attempt in range(ATTEMPTS):
        try:
            plan, limits = _plan(args, run)
            try:
                code = supervise(plan, run, limits, worker, args.launch, leads, owner=owner)
            except ConfigError as error:
                ours = run.status().get("launch") == args.launch
                raise (_Held if ours else _Taken)(str(error)) from None
            return code, ""
        except _Taken:
            raise
        except (StorageError, _Held) as error:  # a bucket may be back in a while, a lease run out
            failed: PitError = error
        except PitError as error:
            print(f"pit-jax: {error}", file=sys.stderr, flush=True)
            return error.exit_code, str(error)
        except Exception as error:
            if not leads:
                raise
            traceback.print_exc()
            return EXIT_BUG, f"{type(error).__name__}: {error}"
        print(f"pit-jax: {failed}", file=sys.stderr, flush=True)
        if attempt < ATTEMPTS - 1:
            time.sleep(PAUSE_S)
    if isinstance(failed, _Held) or not leads:
        raise failed
    return failed.exit_code, str(failed)


def _plan(args: argparse.Namespace, run: RunDir) -> tuple[Plan, Limits]:
    words = [sys.executable, "-m", "pit_jax.cli"]
    if args.sweep:
        if not (args.shard and args.directory):
            raise ConfigError("--sweep needs --shard K/N and --directory PLACE")
        words += ["sweep", args.sweep, "--workdir", args.directory, "--shard", args.shard]
        # A point that fails is tried again by the sweep itself.
        limits = Limits(retries=2, hang_s=FIELDS["launch.hang_s"].default, heartbeat_s=60.0)
        return lambda _: [Process([*words, *args.override])], limits
    config = configfile.load(args.config)
    words += ["train", "--config", args.config, "--workdir", args.workdir]
    return lambda _: [Process(words)], Limits.of(config, run)


# Its end -------------------------------------------------------------------------------


def _final(run: RunDir, launch: str) -> int | None:
    """The exit code of this launch, if status.json says that it is final."""
    with contextlib.suppress(PitError):
        status = run.status()
        if status.get("final") and status.get("launch") == launch:
            return status.get("exit_code", EXIT_BUG)
    return None


def _settle(run: RunDir, launch: str, code: int, reason: str) -> None:
    """Makes sure that status.json says that this launch has ended, before its machine goes."""
    state = "done" if code == EXIT_DONE else "failed"
    fields: dict[str, Any] = {"state": state, "exit_code": code, "final": True}
    for attempt in range(ATTEMPTS):
        if _final(run, launch) is not None:
            return
        try:
            run.write_status(**fields, launch=launch, reason=reason)
            return
        except PitError as error:
            print(f"pit-jax: {error}", file=sys.stderr, flush=True)
        if attempt < ATTEMPTS - 1:
            time.sleep(PAUSE_S)


def delete(args: argparse.Namespace) -> None:
    """Deletes the queued resource that this worker runs on, unless it may not.

    What may pass is tried again for a quarter of an hour. The watcher is the second line.

    Raises:
      Exception: what stood in the way all that time.
    """
    if not _on_tpu_vm(args):  # GKE ends by itself
        return
    from pit_jax.launch import queue

    for attempt in itertools.count(1):
        try:
            client = queue.Client(args.project, args.zone)
            found = client.get(args.name)
            if found is None or found.launch == args.launch:
                client.delete(args.name, args.launch)
                print(f"deleted the queued resource {args.name}", flush=True)
            else:
                print(f"pit-jax: {args.name} is not of this launch: left alone", file=sys.stderr)
            return
        except Exception as error:  # a bug, too, costs money
            print(f"pit-jax: {args.name} was not deleted: {error}", file=sys.stderr, flush=True)
            if isinstance(error, Forbidden):
                return
            if attempt == ATTEMPTS:
                raise
        time.sleep(min(PAUSE_S * 2.0 ** (attempt - 1), LONGEST_PAUSE_S))


def _on_tpu_vm(args: argparse.Namespace) -> bool:
    return bool(args.project and args.zone)


def main(argv: Sequence[str] | None = None) -> NoReturn:
    args = parser().parse_args(argv)
    try:
        code = work(args)
    except PitError as error:
        print(f"pit-jax: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
    print(f"{args.name}: this worker has ended with exit code {code}", flush=True)
    sys.exit(EXIT_DONE if _on_tpu_vm(args) and code not in ASKED else code)


if __name__ == "__main__":
    printing.prepare()
    main()
