"""Does a run that is killed, starved or lied to still end with the same bits?

    python -m experiments.faults runs/faults                    # every fault, 3 kills; minutes
    python -m experiments.faults runs/faults --kills 20 --json experiments/results/faults.json

Question: a run of two processes under the supervisor of `pit-jax launch --target local` is
disturbed in one way. Are its final parameters, bit for bit, those of a run that was left alone,
does metrics.jsonl hold every step once, and is nothing left running? What varies: the fault.
Cost: about half a minute a fault on two CPU cores. The steps at which a fault strikes are drawn
from --seed. Published: nothing.

The disk is filled on a small file system of its own, which takes a mount namespace (root, or
user namespaces); without one that fault is skipped, saying so. The clock jumps for Python's
time.time alone, which is the one that this project asks.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from etils import epath

from experiments.launched import (
    STEPS,
    Launch,
    Unexpected,
    left_running,
    namespace,
    parameters,
    same_bits,
    steps_once,
)
from pit_jax import beat, files, rundir
from pit_jax.errors import EXIT_PREEMPTED, PitError, StorageError

NAMESPACE = "PIT_JAX_FAULTS_NAMESPACE"

# Read by every Python that is started below it: time.time as far off as a file says.
CLOCK = """
import os, time
true = time.time
def wrong():
    try:
        with open(os.environ["PIT_JAX_CLOCK"]) as file:
            return true() + float(file.read() or 0)
    except (OSError, ValueError):
        return true()
time.time = wrong
time.time_ns = lambda: int(wrong() * 1e9)
"""


# Faults -------------------------------------------------------------------------------


def kills(launch: Launch, rng: random.Random, count: int) -> str:
    """SIGKILL of one of the two processes, `count` times, at random steps."""
    launch.start()
    struck: list[int] = []
    for _ in range(count):
        before = max(launch.run.status().get("step", 0), *struck, 0)
        launch.until_step(min(before + rng.randint(1, 9), STEPS - 2))
        time.sleep(rng.uniform(0, 0.02))
        struck.append(launch.logged())
        gone = set(launch.trainers())
        launch.kill_one(rng)
        launch.until(lambda gone=gone: not gone & set(launch.trainers()), "the end of both")
    launch.end()
    return f"after steps {', '.join(map(str, struck))}"


def sigterm(launch: Launch, rng: random.Random) -> str:
    """SIGTERM of the supervisor and all processes; the same command goes on."""
    step = rng.randint(2, STEPS - 10)
    launch.start()
    launch.until_step(step)
    for number in [*launch.trainers(), launch._process.pid]:
        os.kill(number, signal.SIGTERM)
    launch.end(EXIT_PREEMPTED)
    launch.start()
    launch.end()
    return f"at step {step}"


def full_disk(launch: Launch, rng: random.Random) -> str:
    """No space left while checkpoints are written; there is some again later."""
    step = rng.randint(6, 20)
    launch.path.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=24m", "none", str(launch.path)]
    if not os.environ.get(NAMESPACE) or subprocess.run(words, capture_output=True).returncode:
        raise Skipped("no mount namespace here")
    ballast = launch.path / ".ballast"
    launch.start()
    launch.until_step(step)
    with contextlib.suppress(OSError), ballast.open("wb") as file:
        while True:
            file.write(bytes(1 << 16))
            file.flush()
    full = set(launch.trainers())
    launch.until(lambda: not full & set(launch.trainers()), "the storage fault")
    ballast.unlink()
    printed = launch.end()
    if "o space left" not in printed:
        raise Unexpected("nothing was said of the full disk")
    return f"from step {step}"


def flipped(launch: Launch, rng: random.Random) -> str:
    """A byte of the newest checkpoint is changed between two starts."""
    step = rng.randint(12, STEPS - 10)
    launch.start()
    launch.until_step(step)
    launch.send(signal.SIGTERM)
    launch.end(EXIT_PREEMPTED)
    newest = max(int(p.stem) for p in (launch.path / "manifests").iterdir())
    inside = [p for p in (launch.path / "checkpoints" / str(newest)).rglob("*") if p.is_file()]
    largest = max(inside, key=lambda p: p.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[rng.randrange(len(content))] ^= 0x10
    largest.write_bytes(content)
    launch.start()
    if "is damaged and not used" not in launch.end():
        raise Unexpected("the damaged checkpoint was not named")
    return f"in checkpoint {newest}"


def two_supervisors(launch: Launch, rng: random.Random) -> str:
    """A second supervisor on the same directory is refused; the first one goes on."""
    step = rng.randint(1, 20)
    launch.start()
    launch.until_step(step)
    held = list(launch.trainers())
    for number in held:  # or it would be done before the second one has looked
        os.kill(number, signal.SIGSTOP)
    second = Launch(launch.path)
    second.start()
    try:
        printed = second.end(2)
    finally:
        for number in held:
            os.kill(number, signal.SIGCONT)
    if len(printed.strip().splitlines()) != 1:
        raise Unexpected(f"the second one said {printed!r}")
    launch.end()
    return f"at step {step}"


def clock(launch: Launch, rng: random.Random) -> str:
    """The clock jumps an hour ahead, then a day back."""
    offset = launch.path.parent / "clock"
    step = rng.randint(2, 15)
    offset.write_text("0")
    launch.start()
    launch.until_step(step)
    offset.write_text("3600")
    launch.until_step(step + 5)
    offset.write_text("-86400")
    launch.kill_one(rng)
    launch.end()
    return f"at steps {step} and {step + 5}, and a kill"


def evaluation(launch: Launch, rng: random.Random) -> str:
    """SIGKILL in the middle of an evaluation."""
    launch.start()

    def evaluating() -> bool:
        places = [env.get(beat.VARIABLE, "") for env in launch.trainers().values()]
        beats = [beat.read(Path(file)) for file in places]
        return any(found and found[0] == 13 for found in beats) and launch.logged() == 12

    launch.until(evaluating, "an evaluation")
    time.sleep(rng.uniform(0, 0.05))
    launch.kill_one(rng)
    launch.end()
    return "of step 13"


def commit(launch: Launch, rng: random.Random) -> str:
    """SIGKILL while a checkpoint is being committed."""
    step = rng.choice([10, 15, 20, 25])
    launch.start()

    def committing() -> bool:
        folder, manifests = launch.path / "checkpoints", launch.path / "manifests"
        begun = folder.exists() and any(p.name.startswith(str(step)) for p in folder.iterdir())
        return begun and not (manifests / f"{step}.json").exists()

    launch.until(committing, f"the checkpoint of step {step}")
    launch.kill_one(rng)
    launch.end()
    return f"of step {step}"


class Skipped(Exception):
    """This machine cannot bring the fault about."""


FAULTS = {
    "SIGTERM of all": sigterm,
    "full disk": full_disk,
    "flipped byte": flipped,
    "two supervisors": two_supervisors,
    "clock jumps": clock,
    "kill in an evaluation": evaluation,
    "kill in a commit": commit,
}


# What became of it --------------------------------------------------------------------


@dataclasses.dataclass
class Outcome:
    """One line of the table; None where the run never came so far."""

    fault: str
    when: str
    starts: int | None = None
    same_bits: bool | None = None
    steps_once: bool | None = None
    left_running: int | None = None
    seconds: float = 0.0
    note: str = ""

    @property
    def survived(self) -> bool:
        return bool(self.same_bits and self.steps_once and self.left_running == 0)


def examine(
    name: str, fault: Callable[[Launch], str], path: Path, wanted: dict[str, np.ndarray]
) -> Outcome:
    """Runs a training under a fault and looks at what it left."""
    site = path.parent / "site"
    site.mkdir(exist_ok=True)
    (site / "sitecustomize.py").write_text(CLOCK)
    environment = {"PIT_JAX_CLOCK": str(path.parent / "clock")}
    environment["PYTHONPATH"] = os.pathsep.join([str(site), os.getcwd()])
    launch = Launch(path, environment if FAULTS.get(name) is clock else None)
    began = time.monotonic()
    outcome = Outcome(name, "")
    try:
        outcome.when = fault(launch)
        outcome.starts = len(launch.run.environments())
        outcome.same_bits = same_bits(parameters(path), wanted)
        outcome.steps_once = steps_once(path)
    except Skipped as reason:
        outcome.note = f"skipped: {reason}"
    except (Unexpected, StorageError) as error:
        outcome.note = str(error)
    finally:
        outcome.left_running = left_running(path)
    outcome.seconds = time.monotonic() - began
    return outcome


def run(directory: Path, count: int, chosen: list[str], seed: int) -> Iterator[Outcome]:
    """Every fault after the undisturbed run; `count` kills, four a run.

    Raises:
      Unexpected: if the undisturbed run does not end well.
    """
    undisturbed = Launch(directory / "undisturbed")
    undisturbed.start()
    undisturbed.end()
    wanted = parameters(undisturbed.path)
    rng = random.Random(seed)
    faults: list[tuple[str, Callable[[Launch], str]]] = []
    for begin in range(0, count, 4):
        number = min(4, count - begin)
        faults.append((f"{number} × SIGKILL of one", lambda run, n=number: kills(run, rng, n)))
    for name in chosen:
        fault = FAULTS[name]
        faults.append((name, lambda run, f=fault: f(run, rng)))
    for index, (name, fault) in enumerate(faults):
        yield examine(name, fault, directory / f"{index}-{name.replace(' ', '-')}", wanted)


HEADS = ("fault", "when", "starts", "same bits", "steps once", "left", "s")


def cells(outcome: Outcome) -> list[str]:
    def word(value: bool | None) -> str:
        return "–" if value is None else "yes" if value else "NO"

    return [
        outcome.fault,
        outcome.note or outcome.when,
        "–" if outcome.starts is None else str(outcome.starts),
        word(outcome.same_bits),
        word(outcome.steps_once),
        str(outcome.left_running),
        f"{outcome.seconds:.0f}",
    ]


def main(directory: Path, count: int, chosen: list[str], seed: int, output: Path | None) -> int:
    """Prints the table as it grows and writes the figures; 1 if a fault was not survived."""
    from pit_jax.parallel import processes
    from pit_jax.study import tables

    processes.choose_platform()
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    outcomes = []
    for outcome in run(directory.absolute(), count, chosen, seed):
        outcomes.append(outcome)
        print("  ".join(cells(outcome)), file=sys.stderr, flush=True)
    tables.show("", HEADS, [cells(outcome) for outcome in outcomes])
    if output:
        machine = rundir.RunDir(directory.absolute() / "undisturbed").machine()
        found = {"schema": 1, "machine": machine, "cores": os.cpu_count(), "seed": seed}
        found["command"] = f"python -m experiments.faults runs/faults --kills {count}"
        found["faults"] = [dataclasses.asdict(o) | {"survived": o.survived} for o in outcomes]
        files.write(epath.Path(output), json.dumps(found, indent=1) + "\n")
    return int(any(not o.survived and not o.note.startswith("skipped") for o in outcomes))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--only", nargs="*", choices=FAULTS, default=list(FAULTS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if not os.environ.get(NAMESPACE) and (words := namespace()):
        again = [*words, sys.executable, *sys.orig_argv[1:]]
        os.execvpe(again[0], again, os.environ | {NAMESPACE: "1"})
    try:
        sys.exit(main(args.directory, args.kills, args.only, args.seed, args.json))
    except PitError as error:
        print(f"faults: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
