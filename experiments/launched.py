"""A launch on this machine seen from outside, so that it can be disturbed; see faults.py."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pit_jax import rundir
from pit_jax.errors import PitError

STEPS = 40
CONFIG = Path(__file__).parent.parent / "configs" / "digits.py"
FIELDS = (
    "model.width=16 model.depth=2 model.heads=2 train.batch_size=32 train.log_every=1"
    f" train.steps={STEPS} train.tensorboard=False mesh.data=2 eval.every=13_steps"
    " eval.batch_size=8 checkpoint.every=5_steps launch.heartbeat_s=10"
)
WORDS = [f"--config.{field.replace('_steps', ' steps')}" for field in FIELDS.split()]
LONGEST_S = 300.0


class Launch:
    """`pit-jax launch --target local --processes 2` on a run directory, seen from outside."""

    def __init__(self, path: Path | str, environment: dict[str, str] | None = None):
        self.path, self.starts = path, 0
        self._environment = os.environ | {"PYTHONPATH": os.getcwd()} | (environment or {})
        self._process: subprocess.Popen | None = None
        self.run = rundir.RunDir(path)

    def start(self) -> subprocess.Popen:
        words = ["launch", "--target", "local", "--processes", "2", "--config", f"{CONFIG}:pit"]
        words += ["--devices-per-process", "1", "--workdir", str(self.path), *WORDS]
        self.starts += 1
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pit_jax.cli", *words],
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
        )
        return self._process

    def end(self, code: int = 0) -> str:
        """Waits for the launch and returns what it printed.

        Raises:
          Unexpected: if it ends with another code.
        """
        try:
            printed, _ = self._process.communicate(timeout=LONGEST_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise Unexpected(f"not ended after {LONGEST_S:.0f} s") from None
        if self._process.returncode != code:
            last = printed.strip().splitlines()[-5:]
            raise Unexpected(f"exit code {self._process.returncode}: {' / '.join(last)}")
        return printed

    def send(self, number: int) -> None:
        self._process.send_signal(number)

    def trainers(self) -> dict[int, dict[str, str]]:
        """Environment of each training process by its process number."""
        found = {}
        for number, words in processes_of(self.path).items():
            if "train" in words:
                with contextlib.suppress(OSError):
                    entries = Path(f"/proc/{number}/environ").read_bytes().split(b"\0")
                    pairs = (entry.decode(errors="replace").partition("=") for entry in entries)
                    found[number] = {name: value for name, _, value in pairs}
        return found

    def logged(self) -> int:
        """The last step in metrics.jsonl."""
        return max((row["step"] for row in self.run.rows()), default=0)

    def until(self, reached: Callable[[], bool], what: str) -> None:
        """Waits for a moment of the run.

        Raises:
          Unexpected: if the launch ends first.
        """
        deadline = time.monotonic() + LONGEST_S
        while not reached():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise Unexpected(f"never came to {what}")
            time.sleep(0.002)

    def until_step(self, step: int) -> None:
        self.until(lambda: self.logged() >= step and len(self.trainers()) == 2, f"step {step}")

    def kill_one(self, rng: random.Random) -> None:
        """SIGKILL to one of the two training processes."""
        trainers = sorted(self.trainers())
        if trainers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(rng.choice(trainers), signal.SIGKILL)


class Unexpected(PitError):
    """A run did not do what it should have under a fault (exit code 1)."""

    exit_code = 1


def namespace() -> list[str]:
    """What starts a command where file systems can be mounted for it alone; empty if nothing."""
    words = ["unshare", "--mount"] + ([] if os.geteuid() == 0 else ["--map-root-user"])
    mount = ["mount", "-t", "tmpfs", "none", tempfile.gettempdir()]
    with contextlib.suppress(OSError):
        if subprocess.run([*words, *mount], capture_output=True).returncode == 0:
            return words
    return []


def processes_of(path: Path | str) -> dict[int, list[str]]:
    """Command lines that name a directory, by process number; this process is not among them."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
                if str(path) in words:
                    found[int(entry.name)] = words
    return found


# What is left of it ---------------------------------------------------------------------


def parameters(path: Path | str) -> dict[str, np.ndarray]:
    """What the last checkpoint of a run holds, by path."""
    import jax

    from pit_jax import checkpoint
    from pit_jax.parallel.rules import path_of

    saved = checkpoint.Checkpoints(rundir.RunDir(path))
    try:
        saved.require_intact(STEPS)
        tree = saved.read(STEPS)
    finally:
        saved.close()
    return {path_of(keys): x for keys, x in jax.tree_util.tree_leaves_with_path(tree)}


def same_bits(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(
        x.dtype == other[name].dtype and x.tobytes() == other[name].tobytes()
        for name, x in one.items()
    )


def steps_once(path: Path | str) -> bool:
    steps = [row["step"] for row in rundir.RunDir(path).rows() if "event" not in row]
    return steps == list(range(1, STEPS + 1))


def left_running(path: Path | str) -> int:
    """Processes of a run that go on after its end, which gets two seconds; they are killed."""
    deadline = time.monotonic() + 2
    while (found := processes_of(path)) and time.monotonic() < deadline:
        time.sleep(0.05)
    for number in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)
    return len(found)
