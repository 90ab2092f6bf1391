"""What is read from run directories and sweeps, and what is refused."""

import json

import numpy as np
import pytest

from pit_jax import configfile
from pit_jax.errors import ConfigError
from pit_jax.study.collect import collect

from .fake_runs import BEGAN, ENVIRONMENT, fake_run, fake_sweep


def test_a_run_and_what_it_was_measured_by(tmp_path):
    run = fake_run(tmp_path / "a", 0.75, seed=3)
    run.write_record(
        40, "locality", {"checkpoint_step": 40, "r2": 0.5, "rows": [1, 2], "kind": "positions"}
    )
    run.write_record(20, "locality", {"r2": 0.1})
    (one,) = collect([run.path]).runs
    assert (one.name, one.model, one.seed, one.state, one.step) == ("a", "PiT", 3, "done", 40)
    assert one.result == {"eval/accuracy": 0.75, "eval/loss": 0.25, "locality/r2": 0.5}
    assert one.config["model.width"] == 16
    assert len(one.rows) == 4


def test_the_newest_picture_of_each_name_counts(tmp_path):
    run = fake_run(tmp_path / "a", 0.75)
    for step in (9, 100, 20):
        run.write_picture(step, "attention-map", np.zeros((2, 2, 3), np.uint8))
    (one,) = collect([run.path]).runs
    assert {name: file.name for name, file in one.pictures.items()} == {
        "attention-map": "attention-map-100.png"
    }


def test_cost_is_what_the_directory_says(tmp_path):
    (one,) = collect([fake_run(tmp_path / "a", 0.5).path]).runs
    assert one.cost("parameters") == 1000
    assert one.images_per_s == 250  # the median of 100, 200, 300, 400
    assert one.device_hours == pytest.approx(4 * 90 * 2 / 3600)


def test_device_hours_leave_out_the_time_between_two_starts(tmp_path):
    run = fake_run(tmp_path / "a", 0.5)
    run.add_environment(ENVIRONMENT | {"time": "2026-01-02T00:00:00+00:00", "device_count": 8})
    run.append_row({"event": "resume", "step": 40})
    run.append_row({"step": 50, "time": BEGAN + 24 * 3600 + 45})
    (one,) = collect([run.path]).runs
    assert one.device_hours == pytest.approx((360 * 2 + 45 * 8) / 3600)


def test_an_older_run_has_no_cost(tmp_path):
    run = fake_run(tmp_path / "a", 0.5)
    (run.path / "env.json").unlink()
    (one,) = collect([run.path]).runs
    assert (one.cost("parameters"), one.device_hours) == (None, None)


def test_a_sweep_gives_order_and_labels(tmp_path):
    fake_run(tmp_path / "one", 0.5, seed=1)
    fake_run(tmp_path / "zero", 0.5, seed=0)
    fake_run(tmp_path / "by-hand", 0.5, seed=2)
    published = [{"label": "x", "metric": "eval/accuracy", "value": 0.8}]
    points = {"seed=0": "zero", "seed=1": "one", "seed=7": "never"}
    fake_sweep(tmp_path, points, "Why?\n\nBecause.", published)
    (tmp_path / "logs").mkdir()
    found = collect([tmp_path])
    assert [(r.name, r.point) for r in found.runs] == [
        ("zero", "seed=0"),
        ("one", "seed=1"),
        ("by-hand", ""),
    ]
    assert found.others == [("seed=7", "not started")]
    assert found.sweeps[0].text == "Why?\n\nBecause."
    assert found.sweeps[0].published == [{**published[0], "note": ""}]


def test_a_run_that_is_named_twice_counts_once(tmp_path):
    fake_run(tmp_path / "a", 0.5)
    assert len(collect([tmp_path, tmp_path / "a"]).runs) == 1


def test_unfinished_runs_are_listed_with_their_state(tmp_path):
    fake_run(tmp_path / "a", 0.5)
    fake_run(tmp_path / "b", None, state="preempted", steps=2)
    assert collect([tmp_path]).others == [("b", "preempted, step 20")]
    with pytest.raises(ConfigError, match=r"no run is finished.*\(b: preempted, step 20\)"):
        collect([tmp_path / "b"])


@pytest.mark.parametrize(
    "junk", [b'{"step": 50, "train/lo', b"\xff\xfe\n", b'"text"\n{"step": 60}']
)
def test_a_broken_metrics_file_is_used_up_to_the_break(tmp_path, junk):
    run = fake_run(tmp_path / "a", 0.5)
    with (run.path / "metrics.jsonl").open("ab") as file:
        file.write(junk)
    found = collect([run.path])
    assert len(found.runs[0].rows) == 4
    assert found.notes == ["a: metrics.jsonl is broken at line 5; the 4 rows before it are used"]


def test_what_is_no_run_is_refused_in_one_line(tmp_path):
    with pytest.raises(ConfigError, match=r"is no run and no sweep: there is no config.json"):
        collect([tmp_path])
    with pytest.raises(ConfigError, match="there is no directory"):
        collect([tmp_path / "none"])
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"a/config.json: not a config"):
        collect([tmp_path])


@pytest.mark.parametrize("text", ["{", "[]", '{"points": [{}]}', '{"points": 3}'])
def test_a_sweep_file_of_another_kind_is_left_unread(tmp_path, text):
    fake_run(tmp_path / "a", 0.5)
    (tmp_path / "sweep.json").write_text(text)
    found = collect([tmp_path])
    assert [run.name for run in found.runs] == ["a"]
    assert "sweep.json is not what a sweep writes" in found.notes[0]


@pytest.mark.parametrize("text", ["[]", "{", "3"])
def test_odd_status_and_environment_are_not_a_crash(tmp_path, text):
    run = fake_run(tmp_path / "a", 0.5)
    for name in ("status.json", "env.json"):
        (run.path / name).write_text(text)
    (run.path / "records").mkdir()
    (run.path / "records" / "odd-1.json").write_text(text)
    with pytest.raises(ConfigError, match=r"no run is finished.*\(a: started, step 40\)"):
        collect([run.path])


def test_fields_that_came_later_have_their_default(tmp_path):
    run = fake_run(tmp_path / "a", 0.5)
    tree = json.loads(configfile.to_json(run.config()))
    del tree["model"]["pool"]
    run.write("config.json", json.dumps(tree))
    assert collect([run.path]).runs[0].config["model.pool"] == "cls"
