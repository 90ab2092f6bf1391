"""The grammar of `pit-jax launch`: where a run goes, what it takes, and looking after it."""

import argparse
import difflib
import math
from collections.abc import Callable, Sequence
from typing import Any

from pit_jax.errors import ConfigError

TARGETS = ("local", "tpu", "gke")
# Verbs of two words: an override's value may stand by itself, and would be taken for an action.
ACTIONS = {
    "list": "Every launch on TPU and GKE, and how far its run is.",
    "status": "All that is known of one launch.",
    "logs": "What the workers of a launch print.",
    "stop": "Delete a launch's resource; the run's files stay.",
    "watch": "Recreate what was preempted until all have ended.",
}

# Which targets an option is for; those of every target are not listed.
_ONLY = {
    "processes": ("local",),
    "devices_per_process": ("local",),
    "accelerator": ("tpu", "gke"),
    "slices": ("tpu", "gke"),
    "spot": ("tpu", "gke"),
    "service_account": ("tpu", "gke"),
    "price_per_chip_hour": ("tpu", "gke"),
    "anyway": ("tpu", "gke"),
    "yes": ("tpu", "gke"),
    "name": ("tpu", "gke"),
    "zone": ("tpu",),
    "project": ("tpu",),
    "network": ("tpu",),
    "subnetwork": ("tpu",),
    "runtime_version": ("tpu",),
    "requirement": ("tpu",),
    "data": ("tpu", "gke"),
    "data_mode": ("tpu",),
    "data_disk": ("tpu",),
    "watch": ("tpu",),
    "sweep": ("tpu",),
    "at_once": ("tpu",),
    "shards": ("tpu",),
    "image": ("gke",),
    "queue": ("gke",),
    "namespace": ("gke",),
    "context": ("gke",),
}


def joined(words: Sequence[str]) -> list[str]:
    """A command line in which `launch list` and the like are one word.

    Raises:
      ConfigError: if a word that is no action stands there.
    """
    if words[:1] != ["launch"] or not words[1:] or words[1].startswith("-"):
        return list(words)
    if ".py" in words[1] or words[1].endswith(".json"):  # a config, without its flag
        return list(words)
    if words[1] not in ACTIONS:
        near = difflib.get_close_matches(words[1], ACTIONS, n=1)
        hint = f"did you mean launch {near[0]}?" if near else f"there is {', '.join(ACTIONS)}"
        raise ConfigError(f"there is no launch {words[1]}; {hint}")
    return [f"launch {words[1]}", *words[2:]]


def add(verb: Callable[[str, str], argparse.ArgumentParser]) -> None:
    """Adds the verb and its actions; `verb` makes the parser of a name, with a line of help."""
    launch = verb("launch", "Start a run on Cloud TPUs, on GKE or here, and keep it going.")
    launch.set_defaults(action=None, first="config", instead="sweep")
    launch.formatter_class = argparse.RawDescriptionHelpFormatter
    rows = [f"  pit-jax launch {name:8}{line}" for name, line in ACTIONS.items()]
    launch.epilog = "\n".join(["afterwards, each with --help:", *rows])
    what = launch.add_mutually_exclusive_group()
    what.add_argument(
        "--config", metavar="FILE[:ARG]", help="what runs; fields: --config.a.b=value"
    )
    what.add_argument("--sweep", metavar="FILE[:ARG]", help="tpu: every point of a study instead")
    launch.add_argument("--workdir", metavar="DIR", help="run directory, local or gs://")
    launch.add_argument("--target", choices=TARGETS, help="where it runs")
    launch.add_argument("--dry-run", action="store_true", help="print what would be created")
    launch.add_argument("--yes", action="store_true", help="do not ask before money is spent")

    here = launch.add_argument_group("local")
    here.add_argument("--processes", type=int, metavar="N", help="processes on this machine; 1")
    here.add_argument(
        "--devices-per-process", type=int, metavar="M", help="CPU devices of each process; 1"
    )

    cloud = launch.add_argument_group("tpu and gke")
    cloud.add_argument("--accelerator", metavar="NAME", help="TPUs, e.g. v5litepod-64, v5p-128")
    cloud.add_argument("--slices", type=int, metavar="N", help="slices of that accelerator; 1")
    cloud.add_argument("--spot", action="store_true", help="cheaper TPUs, which may be taken away")
    cloud.add_argument("--service-account", metavar="EMAIL", help="account of the workers")
    cloud.add_argument("--name", metavar="NAME", help="name of the launch; made from --workdir")
    cloud.add_argument("--data", metavar="gs://...", help="data sets, copied to every worker")
    cloud.add_argument(
        "--price-per-chip-hour", type=float, metavar="PRICE", help="to say what the run costs"
    )
    cloud.add_argument(
        "--anyway", action="store_true", help="launch although preflight says it does not fit"
    )

    tpu = launch.add_argument_group("tpu: a Cloud TPU queued resource")
    tpu.add_argument("--zone", metavar="ZONE", help="zone, e.g. us-west4-a")
    tpu.add_argument("--project", metavar="ID", help="project; by default your credentials' own")
    tpu.add_argument("--network", metavar="NAME", help="network of the project; default")
    tpu.add_argument("--subnetwork", metavar="NAME", help="subnetwork of that network")
    tpu.add_argument("--runtime-version", metavar="NAME", help="version of the TPU VM image")
    tpu.add_argument(
        "--requirement", metavar="PIP", help="install this instead of a wheel of this checkout"
    )
    tpu.add_argument("--data-mode", choices=("stage", "mount"), help="copy (default) or gcsfuse")
    tpu.add_argument("--data-disk", metavar="DISK", help="a disk to attach, read-only, for data")
    tpu.add_argument("--watch", action="store_true", help="stay, and recreate what is preempted")
    tpu.add_argument("--at-once", type=int, metavar="N", help="--sweep: resources at once; 4")
    tpu.add_argument(
        "--shards", type=int, metavar="N", help="--sweep: N slices that work through a share each"
    )

    gke = launch.add_argument_group("gke: a JobSet")
    gke.add_argument("--image", metavar="NAME", help="container image that has pit_jax[tpu]")
    gke.add_argument("--queue", metavar="NAME", help="Kueue's local queue")
    gke.add_argument("--namespace", metavar="NAME", help="namespace of the cluster; default")
    gke.add_argument("--context", metavar="NAME", help="context of your kubeconfig")

    for name, line in ACTIONS.items():
        action = verb(f"launch {name}", line)
        action.set_defaults(action=name)
        if name == "watch":
            action.add_argument("of", metavar="NAME", nargs="*", help="launches; all by default")
        elif name == "stop":
            action.add_argument("of", metavar="NAME", nargs="+", help="launches")
        elif name != "list":
            action.add_argument("of", metavar="NAME", help="launch; the directory of a local one")
        if name == "logs":
            action.add_argument(
                "--follow", action="store_true", help="go on until the run has ended"
            )
            action.add_argument("--worker", metavar="NAME", help="a worker; the first one")
            action.add_argument(
                "--lines", type=int, default=100, metavar="N", help="how many, the last ones; 100"
            )
        if name == "stop":
            action.add_argument("--yes", action="store_true", help="do not ask")
        action.add_argument("--project", metavar="ID", help="project of a launch made elsewhere")
        action.add_argument("--zone", metavar="ZONE", help="zone of a launch made elsewhere")


def check(args: Any) -> None:
    """Refuses a launch without what it needs, and options of another target.

    Raises:
      ConfigError: naming the option.
    """
    if not args.target:
        raise ConfigError(f"--target is missing: {', '.join(TARGETS)}")
    for name, targets in _ONLY.items():
        value = getattr(args, name)
        if args.target not in targets and value is not None and value is not False:
            flag = name.replace("_", "-")
            raise ConfigError(f"--{flag} is for --target {' or '.join(targets)}")
    if not args.config and not args.sweep:
        raise ConfigError("name what to run: --config FILE[:ARG]")
    if not args.workdir:
        raise ConfigError("--workdir is missing: where the run's files go")
    for name in ("processes", "devices_per_process", "slices", "at_once", "shards"):
        value = getattr(args, name)
        if value is not None and not 1 <= value <= 4096:
            raise ConfigError(f"--{name.replace('_', '-')} {value}: 1 or more")
    price = args.price_per_chip_hour
    if price is not None and not 0 <= price < math.inf:
        raise ConfigError(f"--price-per-chip-hour {price}: a price is 0 or more")
