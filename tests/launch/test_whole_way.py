"""The whole way of a launch: command line, upload, start-up script, worker, training, deletion.

Cloud TPU's service and Cloud Storage are servers on loopback, gcloud and uv are stand-ins;
all else is what a TPU VM runs.
"""

import os
import pathlib
import sys

import pytest

from pit_jax import cli
from pit_jax.launch import money
from pit_jax.rundir import RunDir

from .fake_tpu import FakeTpu
from .fake_tpu import service as service
from .machine import Machine

ROOT = pathlib.Path(__file__).parent.parent.parent
FIELDS = (
    "model.width=16 model.depth=2 model.heads=2 train.batch_size=32 train.steps=4"
    " train.log_every=1 train.tensorboard=False eval.every=4_steps checkpoint.every=2_steps"
)
# gcloud storage cp, rsync, du and cat against the server that the environment names.
GCLOUD = """
import shutil, sys
from etils import epath
verb, *words = [word for word in sys.argv[2:] if not word.startswith("--")]
places = [epath.Path(word) for word in words]
if verb == "cp":
    places[1].parent.mkdir(parents=True, exist_ok=True)
    places[1].write_bytes(places[0].read_bytes())
if verb == "cat":
    print(places[0].read_text())
"""


@pytest.mark.slow
def test_from_the_command_line_to_a_deleted_slice(
    service: FakeTpu, bucket: str, tmp_path, monkeypatch, capfd
):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(money, "preflight", lambda *args: None)
    line = f"launch --config {ROOT}/configs/digits.py:pit --workdir {bucket} --target tpu --yes"
    line += " --accelerator v5litepod-8 --zone us-west4-a --project my-project --name pit"
    fields = [f"--config.{field.replace('_steps', ' steps')}" for field in FIELDS.split()]
    assert cli.run([*line.split(), *fields]) == 0
    (asked,) = service.resources.values()
    script = asked.tpu.node_spec[0].node.metadata["startup-script"]

    machine = Machine(tmp_path)
    (tmp_path / "gcloud.py").write_text(GCLOUD)
    for name, command in {
        "gcloud": f'say "gcloud $*"; [ "$1" = storage ] || exit 0; exec {sys.executable}'
        f' {tmp_path}/gcloud.py "$@"',
        "venv-python": f'say "worker"; PYTHONPATH={ROOT} exec {sys.executable} "$@"',
    }.items():
        head = '#!/bin/bash\nsay() { printf "%s\\n" "$*" >>"$MACHINE/calls"; }\n'
        (tmp_path / "bin" / name).write_text(f"{head}{command}\n")
    kept = ("STORAGE_", "TENSORSTORE_", "GOOGLE_", "PIT_JAX_", "JAX_", "NO_PROXY")
    given = {name: value for name, value in os.environ.items() if name.startswith(kept)}
    assert machine.boot(script, **given, TPU_WORKER_ID="0") == 0
    machine.idle(limit_s=300)

    run = RunDir(bucket)
    status = run.status()
    assert (status["state"], status["exit_code"], status["final"]) == ("done", 0, True), machine.log
    assert [row["step"] for row in run.rows() if "train/loss" in row] == [1, 2, 3, 4]
    assert run.evaluation(4)["eval/accuracy"] >= 0
    logs = {path.name: path.read_text() for path in (run.path / "logs").iterdir()}
    assert set(logs) == {"slice-0-worker-0.log", "slice-0-worker-0-startup.log"}
    assert "starting the worker" in logs["slice-0-worker-0-startup.log"]
    assert service.count("DeleteQueuedResource") == 1
