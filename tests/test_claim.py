"""Two real processes on one directory: all of them start, or all say why not."""

import re
import socket
import subprocess

from pit_jax import lease, rundir

from .parallel.test_processes import MESH, group, start


def refusals(processes: list[subprocess.Popen]) -> list[str]:
    """The words of processes that all ended with 2, in one line each."""
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [2, 2], "\n".join(outputs)
    said = [re.findall(r"^pit-jax: .*$", output, re.MULTILINE) for output in outputs]
    assert [len(lines) for lines in said] == [1, 1], "\n".join(outputs)
    assert not any("Traceback" in output for output in outputs)
    return [lines[0] for lines in said]


def test_a_directory_that_is_not_shared_is_refused_by_all(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    both = [start(tmp_path / str(n), n, 2, port, **MESH) for n in range(2)]
    said = refusals(both)
    for number, line in enumerate(said):
        assert f"--workdir {tmp_path}/{number} is not shared: process 1 does not see" in line
    assert not [p.name for p in tmp_path.rglob("*") if p.name.startswith(".shared")]
    assert not rundir.RunDir(tmp_path / "0").exists()


def test_a_directory_that_another_run_writes_is_refused_by_all(tmp_path):
    with lease.held(rundir.RunDir(tmp_path)):
        said = refusals(group(tmp_path, 2, **MESH))
    for line in said:
        assert re.search(r"is being written by process \d+ on host \S+, which renewed its", line)
