"""Runs that are killed, starved and lied to end with the bits of one that was left alone."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from experiments import faults, launched
from pit_jax import rundir

ROOT = pathlib.Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def test_three_kills_change_nothing(tmp_path):
    """Of one of two processes, at random steps."""
    (found,) = faults.run(tmp_path, count=3, chosen=[], seed=0)
    assert found.survived, found
    assert found.starts == 4
    events = [
        row["event"]
        for row in rundir.RunDir(tmp_path / "0-3-×-SIGKILL-of-one").rows()
        if "event" in row
    ]
    assert events == ["resume"] * 3


@pytest.mark.slow
def test_twenty_kills_and_every_fault_change_nothing(tmp_path):
    output = tmp_path / "faults.json"
    words = [str(tmp_path / "runs"), "--kills", "20", "--seed", "1", "--json", str(output)]
    subprocess.run([sys.executable, "-m", "experiments.faults", *words], cwd=ROOT, check=True)
    found = json.loads(output.read_text())["faults"]
    assert {o["fault"] for o in found} == {"4 × SIGKILL of one", *faults.FAULTS}
    left = [o["fault"] for o in found if not o["survived"]]
    if left == ["full disk"] and not launched.namespace():
        pytest.skip("the disk cannot be filled: nothing can be mounted here; the rest passed")
    assert not left


def test_a_difference_of_one_bit_is_seen():
    one = {"w": np.float32([1.0, 2.0])}
    assert launched.same_bits(one, {"w": np.float32([1.0, 2.0])})
    assert not launched.same_bits(one, {"w": np.nextafter(np.float32([1.0, 2.0]), np.float32(3))})
    assert not launched.same_bits(one, {})
