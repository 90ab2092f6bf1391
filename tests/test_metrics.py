"""Writers, progress and the meter."""

import sys
import types

import pytest

from pit_jax import meter, metrics, rundir, validation
from pit_jax.errors import ConfigError, StorageError


def test_wandb_gets_the_same_rows_if_asked_for(tiny, tmp_path, monkeypatch):
    logged, started = [], {}
    fake = types.SimpleNamespace(
        log=lambda row, step: logged.append((step, row)), finish=lambda: None
    )
    monkeypatch.setitem(
        sys.modules, "wandb", types.SimpleNamespace(init=lambda **kw: started.update(kw) or fake)
    )
    tiny.train.wandb = "digits"
    run = rundir.RunDir(tmp_path)
    writers = metrics.Writers(run, validation.resolve(tiny))
    writers.write(3, {"train/loss": 0.5})
    writers.close()
    assert logged == [(3, {"train/loss": 0.5})]
    assert started["project"] == "digits"
    assert run.rows()[0]["train/loss"] == 0.5


def test_wandb_that_is_not_installed_is_named(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    tiny.train.wandb = "digits"
    with pytest.raises(ConfigError, match="pip install wandb"):
        metrics.Writers(rundir.RunDir(tmp_path), validation.resolve(tiny))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (61, "1:01"), (3725, "1:02:05"), (200_000, "2 d 07 h")],
)
def test_durations(seconds, text):
    assert metrics.duration(seconds) == text


@pytest.fixture
def clock(monkeypatch):
    """Time that only passes when a test says so."""
    now = [100.0]
    monkeypatch.setattr(meter.time, "perf_counter", lambda: now[0])

    def pass_time(seconds: float) -> None:
        now[0] += seconds

    return pass_time


def test_the_meter_leaves_compiling_and_evaluation_out(clock):
    found = meter.Meter(batch_size=8, devices=2, flops_per_image=1e9, device_kind="TPU v4")
    clock(30)  # compiling
    found.step()
    assert found.rate() == 0
    for _ in range(4):
        with found.waiting():
            clock(0.25)
        clock(0.75)
        found.step()
    with found.aside("eval"):
        clock(20)
    assert found.left(10) == pytest.approx(10)
    row = found.row()
    assert row["perf/images_per_s"] == pytest.approx(8)
    assert row["perf/images_per_s_per_device"] == pytest.approx(4)
    assert row["perf/step_s"] == pytest.approx(1)
    assert row["perf/input_wait_s"] == pytest.approx(0.25)
    assert row["perf/eval_s"] == 20
    assert row["perf/mfu"] == pytest.approx(8e9 / (2 * 275e12))
    clock(2)
    found.step()
    assert found.row()["perf/images_per_s"] == pytest.approx(4)
    assert found.mean_rate() == pytest.approx(8 * 5 / 6)


def test_no_utilisation_where_the_peak_is_not_known(clock):
    found = meter.Meter(8, 1, 1e9, "cpu")
    found.step()
    clock(1)
    found.step()
    assert "perf/mfu" not in found.row()


def test_plain_lines_where_there_is_no_terminal(capsys):
    with metrics.Progress(20, "PiT") as progress:
        progress.update(10, 0.5, 100, 60)
        progress.line(10, 0.5, 1234, 65, "accuracy 96.4 %")
        progress.line(1, 2.5, 0, 0, "")
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "PiT step 10/20  loss 0.5000  1,234 images/s  1:05 left  accuracy 96.4 %"
    assert out[1] == "PiT step 1/20  loss 2.5000"


def test_every_start_goes_on_with_the_same_run_at_weights_and_biases(tiny, tmp_path, monkeypatch):
    ids = []
    fake = types.SimpleNamespace(log=lambda row, step: None, finish=lambda: None)

    def init(**given):
        assert given["resume"] == "allow"
        ids.append(given["id"])
        return fake

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    tiny.train.wandb = "digits"
    for place in ("one", "one", "other"):
        with metrics.Writers(rundir.RunDir(tmp_path / place), validation.resolve(tiny)):
            pass
    assert ids[0] == ids[1] != ids[2]


def test_of_two_errors_the_first_is_told(tiny, tmp_path, monkeypatch):
    def full(self):
        raise StorageError("the disk is full")

    monkeypatch.setattr(metrics.Writers, "close", full)
    config = validation.resolve(tiny)
    with pytest.raises(RuntimeError), metrics.Writers(rundir.RunDir(tmp_path), config):
        raise RuntimeError("a bug")
    with pytest.raises(StorageError), metrics.Writers(rundir.RunDir(tmp_path), config):
        pass
