"""`pit-jax launch --target gke`: one run on a TPU node pool of GKE, as a JobSet.

The way of tpu.py: checked, looked at, compiled for the slice, shown and confirmed; then
uploaded, launch.json written, and the JobSet created with the official client and the kubeconfig's
credentials. JobSet and the supervisor restart what fails, so nobody has to watch.
"""

import copy
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pit_jax import configfile
from pit_jax.errors import ConfigError
from pit_jax.launch import accelerators, money, tpu, upload
from pit_jax.launch import request as requests
from pit_jax.launch.cluster import ENDED, Cluster, launch_of, missing, state_of
from pit_jax.launch.jobset import JobSet
from pit_jax.rundir import RunDir


def launch(args: Any, overrides: Sequence[str]) -> None:
    """Creates what the command line asks for, or prints it with --dry-run.

    Raises:
      ConfigError: for what cannot be, cannot be reached, or was not confirmed.
      DoesNotFit: if a step needs more memory than a chip has.
      PitError: if the cluster or the work directory cannot be reached.
    """
    os.environ["JAX_PLATFORMS"] = "cpu"  # before jax is imported: libtpu only compiles here
    upload.check_bucket(args.workdir, "gke")
    config = configfile.load(args.config, overrides)
    asked = prepare(args, config.launch.retries)
    where = accelerators.find(asked.accelerator, asked.slices)
    unreachable = upload.check_reachable(config, "gke", tpu.data_dir(args))
    if args.dry_run:
        show(args, overrides, asked, where, unreachable)
        return
    if unreachable:
        raise ConfigError(unreachable[0])
    money.check_answer(args.yes)
    cluster = Cluster(args.context, asked.namespace)
    upload.check_there(args.workdir)
    run = RunDir(args.workdir)
    upload.check_free(run, config, tpu.alive)
    if done := upload.finished(run, config):
        print(done)
        return
    if args.data:
        upload.check_data(args.data)
    before = cluster.check_free(asked.name, asked.workdir)
    price = args.price_per_chip_hour
    found = money.preflight(config, where, price, args.anyway)
    print(money.table(where, asked.slices, asked.spot, found, price), flush=True)
    money.check_fits(found, where, args.anyway)
    place = " in place of the one before" if before else ""
    question = f"create JobSet {asked.name} in {cluster.context}, {asked.namespace}{place}?"
    money.confirm(question, args.yes)
    create(run, asked, cluster, before, upload.config_text(tpu.for_workers(config, args)))
    print(f"created {asked.name}; it waits for its nodes now")
    for action in ("status", "logs", "stop"):
        print(f"  pit-jax launch {action} {asked.name}")


def prepare(args: Any, retries: int) -> JobSet:
    """What the command line asks for, checked.

    Raises:
      ConfigError: about the first value that is wrong.
    """
    return JobSet(
        name=args.name if args.name is not None else requests.name_of(args.workdir),
        id=requests.new_id(),
        workdir=args.workdir,
        accelerator=accelerators.find(args.accelerator).name,
        image=args.image,
        slices=args.slices or 1,
        spot=args.spot,
        service_account=args.service_account,
        queue=args.queue,
        namespace="default" if args.namespace is None else args.namespace,
        retries=retries,
        data=args.data,
    )


def show(
    args: Any,
    overrides: Sequence[str],
    asked: JobSet,
    where: accelerators.Accelerator,
    unreachable: Sequence[str],
) -> None:
    """Prints the manifest as YAML; what else there is to say stands in comments at its end."""
    lines = [f"{asked.name} in the cluster of {args.context or 'your kubeconfig'}"]
    price = args.price_per_chip_hour
    lines += money.table(where, asked.slices, asked.spot, None, price).splitlines()
    lines += [f"uploaded to {upload.config_place(asked.workdir)}: the resolved config"]
    lines += ["nothing was created or compiled. Whether it fits, and the chip-hours:"]
    lines += [money.preflight_command(args.config, where, asked.slices, overrides)]
    lines += [money.refused_later(line) for line in unreachable]
    print(to_yaml(asked.manifest()), end="")
    for line in "\n".join(lines).splitlines():  # an override may hold a line break
        print(f"# {line}")


def to_yaml(manifest: Mapping[str, Any]) -> str:
    try:
        import yaml
    except ImportError:
        raise missing() from None

    class Plain(yaml.SafeDumper):
        """Says a thing again where it stands again, not *id001."""

        def ignore_aliases(self, data: Any) -> bool:
            return True

    # Plain text in YAML 1.1, but not for kubectl: y is true there, and 12e3 a number.
    for kind, text, first in (("bool", "[yYnN]", "yYnN"), ("float", "[0-9]+e[0-9]+", "0123456789")):
        Plain.add_implicit_resolver(
            f"tag:yaml.org,2002:{kind}", re.compile(f"{text}$"), list(first)
        )
    return yaml.dump(copy.deepcopy(manifest), Dumper=Plain, sort_keys=False, width=1000)


def create(
    run: RunDir, asked: JobSet, cluster: Cluster, before: Mapping[str, Any], config: str
) -> dict[str, Any]:
    """Uploads, writes launch.json, creates the JobSet; returns launch.json.

    Args:
      before: the JobSet that has its name, see Cluster.check_free.

    Raises:
      ConfigError: if the cluster refuses it; launch.json is taken back then.
      PitError: if it does not answer, or a file cannot be written.
    """
    manifest = asked.manifest()
    upload.put(run, {"config.json": config, "jobset.yaml": to_yaml(manifest)})
    cluster.make_room(before)
    named = ("id", "name", "accelerator", "slices", "spot", "namespace")
    with upload.recorded(
        run,
        target="gke",
        project=None,
        zone=None,
        context=cluster.context,
        **{name: getattr(asked, name) for name in named},
        request=manifest,
    ) as made:
        cluster.create(manifest)
    return made


def state(record: Mapping[str, Any]) -> str | None:
    """What a launch's JobSet does: "WAITING", "ACTIVE", "SUSPENDED", "DELETING", "COMPLETED" or
    "FAILED"; None if there is none.

    Raises:
      PitError: if the cluster cannot be asked.
    """
    found = _of(record).get(record["name"])
    return state_of(found) if launch_of(found) == record.get("id") and found else None


def alive(record: Mapping[str, Any]) -> str:
    """The state of a launch's JobSet that goes on, "" of others; as `state`."""
    found = state(record)
    return "" if found in (None, "DELETING", *ENDED) else found


def delete(record: Mapping[str, Any]) -> bool:
    """Deletes a launch's JobSet, whose pods save first; whether there was one.

    Raises:
      PitError: if the cluster refuses that or cannot be reached.
    """
    cluster = _of(record)
    found = cluster.get(record["name"])
    if not found or launch_of(found) != record.get("id"):
        return False
    return cluster.delete(found)


def _of(record: Mapping[str, Any]) -> Cluster:
    return Cluster(record.get("context"), record.get("namespace") or "default")
