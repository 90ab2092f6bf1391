"""Two real processes of four devices each, over loopback: the same run as on one."""

import os
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from pit_jax import cli, configfile, rundir
from pit_jax.errors import ConfigError
from pit_jax.parallel import processes
from pit_jax.train import train

FIELDS = {
    "model.width": 16,
    "model.depth": 2,
    "train.batch_size": 32,
    "train.steps": 20,
    "train.log_every": 1,
    "train.tensorboard": False,
    "checkpoint.every": "5 steps",
    "eval.batch_size": 56,
    "eval.every": "10 steps",
    "launch.heartbeat_s": 10,
}


def start(workdir, number: int, count: int, port: int, **more) -> subprocess.Popen:
    environment = os.environ | {
        "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("count=8", f"count={8 // count}"),
        "PYTHONPATH": os.getcwd(),
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": str(count),
        "JAX_PROCESS_ID": str(number),
    }
    words = [f"--config.{name}={value}" for name, value in (FIELDS | more).items()]
    command = [sys.executable, "-m", "pit_jax.cli", "train", "--config", "configs/digits.py:pit"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([*command, "--workdir", str(workdir), *words], env=environment, **pipes)


def group(workdir, count: int, **more) -> list[subprocess.Popen]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [start(workdir, number, count, port, **more) for number in range(count)]


def finish(group: list[subprocess.Popen], code: int = 0) -> list[str]:
    outputs = [process.communicate(timeout=180)[0] for process in group]
    assert [process.returncode for process in group] == [code] * len(group), "\n".join(outputs)
    return outputs


def losses(workdir) -> list[float]:
    return [row["train/loss"] for row in rundir.RunDir(workdir).rows() if "train/loss" in row]


GLOO = r"\[Gloo\] Rank|is connected to|peer ranks\. Expected number of connected peer ranks is :"


def own_words(output: str) -> str:
    """What is left without Gloo's greetings: its threads mix them, between and within lines."""
    return re.sub(rf"{GLOO}|[\d\s]", "", output)


MESH = {"mesh.data": 2, "mesh.fsdp": 4}


def alone(workdir) -> None:
    """The run on the eight devices of this process, as far as it still has to go."""
    words = [f"--config.{name}={value}" for name, value in (FIELDS | MESH).items()]
    train(configfile.load("configs/digits.py:pit", words), workdir)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    path = tmp_path_factory.mktemp("processes") / "one"
    alone(path)
    return path


def test_two_processes_give_the_losses_of_one(one, tmp_path):
    outputs = finish(group(tmp_path, 2, **MESH))
    np.testing.assert_allclose(losses(tmp_path), losses(one), rtol=1e-5)
    assert len(losses(one)) == 20
    last, expected = (rundir.RunDir(path).rows()[-1] for path in (tmp_path, one))
    assert last["eval/examples"] == 360
    assert abs(last["eval/accuracy"] - expected["eval/accuracy"]) < 1.5 / 360
    assert "step 20/20" in outputs[0]
    assert own_words(outputs[1]) == ""  # process 0 speaks for all


def test_stopped_on_two_processes_goes_on_with_one(one, tmp_path):
    """SIGTERM to one of them: both save at the same step and leave with 75."""
    both = group(tmp_path, 2, **MESH)
    deadline = time.time() + 120
    while len(losses(tmp_path)) < 3 and time.time() < deadline:
        time.sleep(0.02)
    both[1].send_signal(signal.SIGTERM)
    outputs = finish(both, code=75)
    steps = {re.search(r"saved at step (\d+)", output)[1] for output in outputs}
    assert len(steps) == 1
    alone(tmp_path)
    np.testing.assert_allclose(losses(tmp_path), losses(one), rtol=1e-5)


def test_incomplete_variables_are_refused(monkeypatch):
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    with pytest.raises(ConfigError, match="JAX_NUM_PROCESSES is set, but not JAX_COORDINATOR_ADDR"):
        processes.start(100)


def test_variables_that_are_no_numbers_are_refused(monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "127.0.0.1:1")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "two")
    monkeypatch.setenv("JAX_PROCESS_ID", "0")
    with pytest.raises(ConfigError, match="JAX_NUM_PROCESSES=two is not a number"):
        processes.start(100)


@pytest.mark.parametrize(("patience", "wanted"), [(1800, 1800), (0, None)])
def test_it_waits_for_the_others_for_as_long_as_it_is_told(monkeypatch, patience, wanted):
    """Data may be an hour on its way to their disks."""
    given = {}
    monkeypatch.setattr("jax.distributed.initialize", lambda **options: given.update(options))
    monkeypatch.setattr("jax.config.update", lambda *_: None)
    for name, value in (("COORDINATOR_ADDRESS", "127.0.0.1:1"), ("NUM_PROCESSES", "2")):
        monkeypatch.setenv(f"JAX_{name}", value)
    monkeypatch.setenv("JAX_PROCESS_ID", "0")
    processes.start(100, patience_s=patience)
    assert given.get("initialization_timeout") == wanted
    assert given["heartbeat_timeout_seconds"] == 100


def test_a_process_that_lost_another_says_so_in_a_line(monkeypatch, capsys):
    gloo = "UNKNOWN: Gloo all-reduce failed: [pair.cc:538] Read error [127.0.0.1]:1: Reset by peer"
    raises = {"gloo": jax.errors.JaxRuntimeError(f"{gloo}\nmore"), "bug": ValueError("Gloo")}
    raises["memory"] = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    def fail(config, *_):
        raise raises[config]

    monkeypatch.setattr("pit_jax.configfile.load", fail)
    words = ["train", "--workdir", "nowhere", "--config"]
    assert cli.run([*words, "gloo"]) == 134
    printed = capsys.readouterr().err
    assert printed == "pit-jax: another process of this run is gone: Reset by peer\n"
    for other in ("bug", "memory"):
        with pytest.raises(type(raises[other])):
            cli.run([*words, other])


def test_a_run_gets_huge_pages_and_keeps_its_process(tmp_path):
    """The same process starts itself once more, with the words it was given."""
    wanted = processes.huge_pages()
    if not wanted:
        pytest.skip("this machine does not offer huge pages on request")
    probe = (
        "import os, sys\n"
        "from pit_jax.parallel import processes\n"
        "print(os.getpid(), sys.argv[1:], os.environ.get('GLIBC_TUNABLES'), flush=True)\n"
        "processes.restart_with_huge_pages()\n"
    )
    script = tmp_path / "probe.py"
    script.write_text(probe)
    environment = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
    environment["PYTHONPATH"] = os.getcwd()
    command = [sys.executable, str(script), "--flag", "two words"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    number, words = first.rsplit(" ", 1)[0].split(" ", 1)
    assert first == f"{number} {words} None"
    assert words == "['--flag', 'two words']"
    assert second == f"{number} {words} {wanted['GLIBC_TUNABLES']}"
