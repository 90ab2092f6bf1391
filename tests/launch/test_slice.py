"""Runs of several processes in a bucket, disturbed: the bits of one on a disk, left alone."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from experiments import launched
from pit_jax import beat, configfile, rundir
from pit_jax.launch.local import free_port

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

LAUNCH = "0123456789ab"
# One worker of a slice: its supervisor with one trainer, at the address that all of them know.
WORKER = f"""
import sys
from pit_jax.launch import local, supervisor
from pit_jax.launch.limits import Limits
from pit_jax.rundir import RunDir
number, port, config, place = sys.argv[1:]
words = [sys.executable, "-m", "pit_jax.cli", "train", "--config", config, "--workdir", place]
processes = local.attempt(words, local.shares_of(2, 1), 1, port)[int(number) :][:1]
limits = Limits(retries=5, hang_s=600.0, heartbeat_s=1.0, pause_s=0.2, ask_s=0.5)
name, leads = f"slice-0-worker-{{number}}", number == "0"
sys.exit(supervisor.supervise(lambda _: processes, RunDir(place), limits, name, "{LAUNCH}", leads))
"""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict:
    launch = launched.Launch(tmp_path_factory.mktemp("disk") / "run")
    launch.start()
    launch.end()
    return launched.parameters(launch.path)


def step(trainers: dict[int, dict[str, str]]) -> int:
    """That all of them have done: rows come to a bucket once a minute."""
    found = [beat.read(pathlib.Path(env.get(beat.VARIABLE, ""))) for env in trainers.values()]
    return min((one[0] or 0 for one in found if one), default=0) if all(found) else 0


def test_a_launch_of_two_processes_goes_on_after_a_kill(undisturbed, bucket):
    launch = launched.Launch(f"{bucket}/run")
    launch.start()
    launch.until(lambda: len(t := launch.trainers()) == 2 and step(t) >= 12, "step 12")
    os.kill(max(launch.trainers()), signal.SIGKILL)
    launch.end()
    assert launched.same_bits(launched.parameters(launch.path), undisturbed)
    assert launched.steps_once(launch.path)
    assert launched.left_running(launch.path) == 0
    assert [row["event"] for row in launch.run.rows() if "event" in row] == ["resume"]


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_workers_of_a_slice_start_again_together(undisturbed, bucket, tmp_path, killed):
    """Each has a supervisor that knows nothing of the other's but what the bucket says."""
    place, port = f"{bucket}/run", str(free_port())
    config = tmp_path / "config.json"
    config.write_text(configfile.to_json(configfile.load(f"{launched.CONFIG}:pit", launched.WORDS)))
    rundir.RunDir(place).create()
    words = [sys.executable, "-c", WORKER]
    workers = [
        subprocess.Popen([*words, str(number), port, str(config), place]) for number in (0, 1)
    ]
    try:
        kill_at(12, place, killed)
        assert [worker.wait(240) for worker in workers] == [0, 0]
    finally:
        for worker in workers:
            worker.kill()
    assert launched.same_bits(launched.parameters(place), undisturbed)
    assert launched.steps_once(place)
    assert launched.left_running(place) == 0
    status = rundir.RunDir(place).status()
    assert (status["state"], status["exit_code"], status["final"]) == ("done", 0, True)


def kill_at(wanted: int, place: str, process: int) -> None:
    """SIGKILL of one of two trainers, once both have done that step."""
    launch, deadline = launched.Launch(place), time.monotonic() + 120
    while len(trainers := launch.trainers()) < 2 or step(trainers) < wanted:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    numbers = {env["JAX_PROCESS_ID"]: number for number, env in trainers.items()}
    os.kill(numbers[str(process)], signal.SIGKILL)
