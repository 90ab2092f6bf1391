"""The bench end to end on a tiny model: the contract's JSON, the table, what it refuses."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from pit_jax import cli, installation, validation
from pit_jax.errors import ConfigError
from pit_jax.perf import bench
from pit_jax.perf.worker import Worker

TINY = [
    "--config=configs/digits.py:pit",
    "--config.model.width=16",
    "--config.model.depth=2",
    "--config.train.batch_size=8",
]
TINY_MAE = ["--config=configs/digits_mae.py:pit", *TINY[1:], "--config.mae.decoder_depth=1"]
TINY_DIT = ["--config=configs/digits_diffusion.py:pit", *TINY[1:]]
TINY_DIT += ["--config.diffusion.learn_sigma=False"]
FIELDS = {
    "compile_cold_s",
    "compile_warm_s",
    "step_s",
    "step_s_iqr",
    "images_per_s",
    "flops_per_s",
    "share_of_measured_peak",
    "matmul_flops_per_s",
    "mfu",
    "peak_bytes",
}
# Refuses whatever pit_jax itself imports beyond what a bench machine has.
GUARD = """
import builtins
real = builtins.__import__
allowed = {"pit_jax", "jax", "flax", "optax", "ml_collections", "absl", "numpy"}
allowed |= {"torch", "transformers", "safetensors"}
import sys
def guarded(name, globals=None, *rest, **more):
    top, asker = name.split(".")[0], (globals or {}).get("__name__", "")
    module = (globals or {}).get("__spec__")
    asker = module.name if module else asker
    if asker.startswith("pit_jax") and top not in allowed | sys.stdlib_module_names:
        raise ImportError(f"{asker} imports {name}")
    return real(name, globals, *rest, **more)
builtins.__import__ = guarded
"""


def test_the_json_and_what_it_needs(tmp_path):
    """With nothing of ours importing more than jax, flax, optax, ml_collections, NumPy."""
    (tmp_path / "sitecustomize.py").write_text(GUARD)
    out = tmp_path / "bench.json"
    command = [sys.executable, "-m", "pit_jax.cli", "bench", *TINY, "--steps", "2"]
    path = os.pathsep.join([str(tmp_path), os.getcwd()])
    flags = os.environ["XLA_FLAGS"].replace("--xla_force_host_platform_device_count=8", "")
    done = subprocess.run(
        [*command, "--json", str(out)],
        env=os.environ | {"PYTHONPATH": path, "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert {"schema", "config", "machine", "versions", "date", "ours"} <= set(found)
    assert found["command"] == " ".join(["pit-jax bench", *TINY, "--steps 2"])
    ours = found["ours"]
    assert set(ours) >= FIELDS
    assert "torch" not in found
    assert found["config"]["model"]["width"] == 16
    assert ours["images_per_s"] == pytest.approx(8 / ours["step_s"])
    assert 0 < ours["share_of_measured_peak"] < 1
    assert 50 << 20 < ours["start_bytes"] <= ours["peak_bytes"] < 4 << 30
    assert ours["mfu"] is None  # nobody publishes a peak for this CPU
    # Which of them is the smaller is the machine's to say: no test holds seconds.
    assert ours["compile_cold_s"] > 0
    assert ours["compile_warm_s"] > 0
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert "65 tokens, batch 8, attention xla" in lines[0]
    assert any(line.startswith("peak memory") and "MiB" in line for line in lines)


@pytest.mark.slow
def test_against_another_config(tmp_path, capsys):
    """Masked autoencoding against classification, with the same overrides, by turns."""
    out = tmp_path / "bench.json"
    words = ["bench", *TINY_MAE, "--against", "configs/digits.py:pit", "--steps", "2"]
    assert cli.run([*words, "--json", str(out)]) == 0
    found = json.loads(out.read_text())
    assert set(found["other"]) >= FIELDS
    assert (found["label"], found["other_label"]) == ("PiT mae", "PiT")
    assert (found["config"]["task"], found["other_config"]["task"]) == ("mae", "classification")
    assert found["config"]["model"]["width"] == found["other_config"]["model"]["width"] == 16
    ours, other = found["ours"]["images_per_s"], found["other"]["images_per_s"]
    assert found["ratio_to_other"] == pytest.approx(ours / other)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert re.fullmatch(r"PiT mae has \d+\.\d\d times the images/s of PiT", lines[-1])


def test_another_config_that_is_not_there_is_refused(capsys):
    assert cli.run(["bench", *TINY, "--against", "configs/none.py:pit"]) == 2
    assert capsys.readouterr().err == "pit-jax: there is no config file configs/none.py\n"


@pytest.mark.parity
@pytest.mark.parametrize(
    "name", ["TINY", pytest.param("TINY_MAE", marks=pytest.mark.slow), "TINY_DIT"]
)
def test_against_torch_equal_first(tmp_path, name):
    pytest.importorskip("torch")
    out = tmp_path / "bench.json"
    words = globals()[name]
    assert cli.run(["bench", *words, "--against", "torch", "--steps", "2", "--json", str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["difference"]["outputs"] < 1e-4
    assert found["difference"]["loss"] < 1e-4
    ours, theirs = found["ours"]["images_per_s"], found["torch"]["images_per_s"]
    assert found["ratio_to_torch"] == pytest.approx(ours / theirs)
    assert found["torch"]["peak_bytes"] > found["torch"]["start_bytes"] > 50 << 20
    assert {"torch", "diffusers" if "DIT" in name else "transformers"} <= set(found["versions"])


@pytest.mark.parity
def test_other_weights_are_not_timed(tmp_path, monkeypatch):
    """A PyTorch side that computes something else is found out before any timing."""
    pytest.importorskip("torch")
    make = bench._torch_arguments

    def wrong(config, arrays):
        arguments = make(config, arrays)
        arguments["model"]["num_attention_heads"] *= 2
        return arguments

    monkeypatch.setattr(bench, "_torch_arguments", wrong)
    config = bench.configfile.load(TINY[0].removeprefix("--config="), TINY[1:])
    with pytest.raises(bench.Unequal, match=r"outputs of PyTorch differ by .* nothing was timed"):
        bench.bench(config, "torch", 2)


def test_a_model_that_pytorch_cannot_express_is_refused(capsys):
    assert cli.run(["bench", *TINY, "--config.model.pool=mean", "--against", "torch"]) == 2
    assert "has no config.model.pool='mean'" in capsys.readouterr().err.splitlines()[-1]


def test_a_loss_that_pytorch_does_not_have_is_refused(capsys):
    words = [word for word in TINY_DIT if "sigma" not in word]
    assert cli.run(["bench", *words, "--against", "torch"]) == 2
    assert "--config.diffusion.learn_sigma=False" in capsys.readouterr().err.splitlines()[-1]


def test_missing_pytorch_names_the_extra(capsys, monkeypatch):
    monkeypatch.setattr(bench.importlib.util, "find_spec", lambda name: None)
    assert cli.run(["bench", *TINY, "--against", "torch"]) == 2
    expected = (
        f"pit-jax: --against torch needs torch and transformers: {installation.extra('parity')}"
    )
    assert capsys.readouterr().err.splitlines() == [expected]


def test_an_unwritable_result_is_refused_before_anything_runs(capsys):
    assert cli.run(["bench", *TINY, "--json", "/nowhere/at/all.json"]) == 2
    assert capsys.readouterr().err == "pit-jax: --json /nowhere/at/all.json cannot be written\n"


def test_a_dead_worker_is_noticed():
    with Worker("pit_jax.perf.worker") as worker, pytest.raises(RuntimeError, match="ended with"):
        worker.ask("start")


@pytest.mark.parametrize(
    ("cores", "mesh", "batch", "expected"),
    [
        (2, {}, 64, 2),
        (2, {}, 63, 1),  # one example is left over
        (64, {}, 64, 8),  # every device holds all parameters
        (6, {}, 64, 4),
        (4, {"data": 1, "fsdp": -1}, 64, 4),
        (4, {"data": 1, "seq": 2}, 64, 2),
        (4, {"seq": 3}, 64, 3),
        (4, {"data": 8}, 64, 1),  # refused by the mesh, which knows how to say it
    ],
)
def test_a_device_for_every_core(tiny, monkeypatch, cores, mesh, batch, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    tiny.mesh.update(mesh)
    tiny.train.batch_size = batch
    assert validation.cpu_devices(tiny) == expected


def test_a_refusal_in_a_worker_is_a_refusal_here(tiny):
    tiny.model.attention = "splash"
    with pytest.raises(ConfigError, match="it needs a TPU"):
        bench.bench(validation.resolve(tiny), None, 2)


def test_a_processor_says_its_vectors_since_one_name_stands_for_several_kinds():
    features = np._core._multiarray_umath.__cpu_features__
    expected = "AVX-512" if features["AVX512F"] else "AVX2" if features["AVX2"] else ""
    found = bench.processor()
    assert found["vectors"] == expected
    assert found["cpu"]
    assert found["cores"] == len(os.sched_getaffinity(0))
