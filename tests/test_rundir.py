"""The run directory: rows survive a kill, another run is refused field by field."""

import json

import pytest

from pit_jax import config, rundir, train, values
from pit_jax.errors import ConfigError


@pytest.fixture
def run(tmp_path, resolved) -> rundir.RunDir:
    made = rundir.RunDir(tmp_path / "run")
    made.create()
    made.write_config(resolved)
    return made


def test_rows_are_read_back(run):
    run.append_row({"step": 1, "train/loss": 2.5})
    run.append_row({"step": 2, "train/loss": 1.5})
    assert [row["train/loss"] for row in run.rows()] == [2.5, 1.5]


def test_a_line_cut_off_by_a_kill_is_left_out(run):
    run.append_row({"step": 1})
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "train/lo')
    assert run.rows() == [{"step": 1}]
    run.cut_rows(1)
    assert run.rows() == [{"step": 1}, {"event": "resume", "step": 1}]


@pytest.mark.parametrize("line", ["5", "[]", "{}", '{"step": "x"}'])
def test_a_line_that_is_no_row_ends_the_rows(run, line):
    run.append_row({"step": 1})
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write(line + "\n")
    assert run.rows() == [{"step": 1}]


def test_resuming_forgets_what_came_after_the_checkpoint(run):
    for step in (1, 2, 3):
        run.append_row({"step": step})
    run.cut_rows(2)
    assert run.rows() == [{"step": 1}, {"step": 2}, {"event": "resume", "step": 2}]


def test_status_keeps_what_is_not_changed(run):
    run.write_status(state="running", attempt=2, step=0)
    run.write_status(step=7)
    status = run.status()
    assert (status["state"], status["attempt"], status["step"]) == ("running", 2, 7)


@pytest.mark.parametrize(
    ("name", "value"),
    [("mesh.fsdp", 2), ("train.steps", 99), ("train.log_every", 3), ("eval.batch_size", 8)]
    + [("checkpoint.keep", 5), ("model.remat", "full"), ("data.dir", "/x"), ("data.workers", 2)]
    + [("data.corrupt", "skip")],
)
def test_what_may_differ_on_resume(run, resolved, name, value):
    config.assign(resolved, name, value)
    run.check_same(resolved)
    assert config.flatten(run.config())[name] != value


@pytest.mark.parametrize(
    ("name", "value"), [("optim.lr", 0.5), ("train.seed", 1), ("model.width", 8)]
)
def test_what_may_not_differ_is_named(run, resolved, name, value):
    config.assign(resolved, name, value)
    with pytest.raises(
        ConfigError, match=rf"already holds another run: config.{name} was .* now {value}"
    ):
        run.check_same(resolved)


def test_a_directory_of_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ConfigError, match=r"holds no run but other files \(thesis.tex"):
        rundir.RunDir(tmp_path).create()


def test_a_directory_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot be written: Not a directory"):
        rundir.RunDir(tmp_path / "file" / "run").create()


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"is no run directory: it has no config.json"):
        rundir.RunDir(tmp_path).config()


def test_environment_is_one_entry_a_start(run):
    import jax

    from pit_jax.parallel import mesh

    made = mesh.make_mesh(dict.fromkeys(mesh.AXES, 1), jax.devices()[:1])
    entry = rundir.environment(made, processes=1)
    assert run.add_environment(entry) == 1
    assert run.add_environment(entry) == 2
    first = json.loads((run.path / "env.json").read_text())[0]
    assert first["versions"]["jax"] == jax.__version__
    assert first["device_count"] == 1
    assert {"commit", "uncommitted", "command", "mesh"} <= set(first)


@pytest.fixture
def begun_before(run, resolved) -> rundir.RunDir:
    """A run whose config.json was written before there was `data.keyed_by`."""
    tree = resolved.to_dict()
    del tree["data"]["keyed_by"]
    (run.path / "config.json").write_text(json.dumps(tree))
    return run


def test_a_run_goes_on_as_it_was_begun_whatever_came_later(begun_before, resolved):
    field = config.FIELDS["data.keyed_by"]
    assert begun_before.config().data.keyed_by == field.before != field.default
    begun_before.check_same(resolved)
    goes_on = begun_before.as_begun(resolved)
    assert goes_on.data.keyed_by == field.before
    assert resolved.data.keyed_by == field.default  # the caller's stays what it is
    resolved.optim.lr = 0.5  # all else is refused as ever
    with pytest.raises(ConfigError, match=r"config.optim.lr was .* now 0.5"):
        begun_before.check_same(resolved)


def test_training_goes_on_with_what_the_run_was_begun_with(begun_before, resolved, monkeypatch):
    seen = []
    monkeypatch.setattr(
        train, "_train", lambda config, run, data, *rest: seen.append((config, data))
    )
    train.train(resolved, begun_before.path)
    ((goes_on, data),) = seen
    assert goes_on.data.keyed_by == "pixels"
    line = "begun before some fields existed, it goes on with config.data.keyed_by='pixels'"
    assert line in data.remarks


def test_a_run_of_today_is_not_taken_for_an_old_one(run, resolved, tmp_path):
    assert run.as_begun(resolved) is resolved
    assert rundir.RunDir(tmp_path / "new").as_begun(resolved) is resolved
    resolved.data.keyed_by = "pixels"
    with pytest.raises(ConfigError, match=r"config.data.keyed_by was 'index', now 'pixels'"):
        run.check_same(resolved)


def test_what_a_field_was_before_is_a_value_it_may_have():
    for name, field in config.FIELDS.items():
        if field.before is not None:
            assert values.check_value(name, field.before) == field.before
