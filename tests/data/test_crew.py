"""Processes that share tasks out: what they give back, and how they end."""

import os
import signal
import subprocess
import sys
import time

import pytest

from pit_jax.data import crew
from pit_jax.errors import ConfigError, StorageError


def square(task: int, report) -> tuple[int, int]:
    report(task)
    return task**2, os.getpid()


def refuse(task: int, report) -> None:
    raise ConfigError(f"no task {task}")


def die(task: int, report) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_every_task_is_done_once_by_several_processes():
    told = []
    found = list(crew.each(square, range(9), 2, told.append))
    assert sorted(number for number, _ in found) == [number**2 for number in range(9)]
    assert sorted(told) == list(range(9))
    processes = {process for _, process in found}
    assert len(processes) <= 2
    assert os.getpid() not in processes


@pytest.mark.parametrize(("tasks", "workers"), [(range(3), 1), (range(1), 4)])
def test_one_at_a_time_is_done_here(tasks, workers):
    found = list(crew.each(square, tasks, workers, print))
    assert found == [(number**2, os.getpid()) for number in tasks]
    assert list(crew.each(square, (), workers, print)) == []


def test_what_a_process_refuses_or_dies_of_is_told():
    with pytest.raises(ConfigError, match="no task 3"):
        list(crew.each(refuse, [3, 3], 2, print))
    with pytest.raises(StorageError, match="ended by signal 9, perhaps for want of memory"):
        list(crew.each(die, range(3), 2, print))


ORPHANS = """
import os
import time
from pit_jax.data import crew

def busy(task, report):
    os.write(1, f"{os.getpid()}\\n".encode())  # at once: the other writes there, too
    while True:
        time.sleep(0.02)
        report(1)

if __name__ == "__main__":
    list(crew.each(busy, range(2), 2, lambda count: None))
"""


def test_processes_end_with_the_one_that_started_them(tmp_path):
    script = tmp_path / "orphans.py"
    script.write_text(ORPHANS)
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    words = [sys.executable, str(script)]
    parent = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True)
    numbers = [int(parent.stdout.readline()) for _ in range(2)]
    parent.kill()
    parent.wait()
    deadline = time.time() + 30
    while any(_runs(number) for number in numbers) and time.time() < deadline:
        time.sleep(0.02)
    assert not any(_runs(number) for number in numbers)


def _runs(process: int) -> bool:
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
