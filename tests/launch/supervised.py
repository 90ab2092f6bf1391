"""Stand-in trainers under the supervisor, with times so short that a test can wait for them."""

import pathlib
import sys
import time
from collections.abc import Callable, Sequence

import pytest

from pit_jax.launch.group import Process
from pit_jax.launch.limits import Limits
from pit_jax.launch.supervisor import supervise
from pit_jax.rundir import RunDir

FAKE = str(pathlib.Path(__file__).with_name("fake_trainer.py"))
LAUNCH = "0123456789ab"
QUICK = {"settle_s": 0.05, "stacks_s": 0.5, "pause_s": 0.01, "longest_pause_s": 0.04}
QUICK |= {"poll_s": 0.01, "heartbeat_s": 0.05, "ask_s": 0.01}


class Supervised:
    """A run directory whose trainers do as they are told; see fake_trainer.py."""

    def __init__(self, path: pathlib.Path):
        self.run = RunDir(path)
        self.attempts = 0
        self.printed: list[str] = []
        self.on_line: Callable[[str], None] = lambda line: None

    def process(self, words: str) -> Process:
        return Process([sys.executable, FAKE, str(self.run.path), *words.split()])

    def supervise(
        self, *attempts: str | Sequence[str], leads: bool = True, retries: int = 5, **limits: float
    ) -> int:
        """Each attempt is what its process does, or its processes; the last one is repeated."""

        def plan(number: int) -> list[Process]:
            self.attempts = number
            told = attempts[min(number, len(attempts)) - 1]
            return [self.process(words) for words in ([told] if isinstance(told, str) else told)]

        def out(line: str) -> None:
            self.printed.append(line)
            self.on_line(line)

        given = Limits(retries, **({"hang_s": 0.0} | QUICK | limits))
        return supervise(plan, self.run, given, "process-0", LAUNCH, leads, out)

    def there(self, name: str) -> bool:
        return (self.run.path / name).exists()

    def said(self) -> list[str]:
        """By the supervisor."""
        start = "supervisor: "
        return [line.removeprefix(start) for line in self.printed if line.startswith(start)]


@pytest.fixture
def a(tmp_path) -> Supervised:
    return Supervised(tmp_path / "run")


def until(reached) -> None:
    deadline = time.monotonic() + 20
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.01)
