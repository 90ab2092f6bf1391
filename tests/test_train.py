"""The loop: it learns, stops, resumes to the same bits, and says why it refuses."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from pit_jax import checkpoint, configfile, derived, evaluate, rundir, validation
from pit_jax.errors import ConfigError, NonFiniteLoss, Stopped
from pit_jax.models import vit
from pit_jax.train import train
from pit_jax.weights import exchange, initial, tensors

from .saved_runs import stopped


def copy(config: ConfigDict, **fields) -> ConfigDict:
    """A changed and resolved copy; fields are written optim__lr=1e-3."""
    changed = ConfigDict(config.to_dict()).lock()
    for name, value in fields.items():
        group, _, leaf = name.partition("__")
        changed[group].update({leaf: value})
    return validation.resolve(changed)


def rows(path) -> list[dict]:
    """Rows without what depends on the clock, and without the notes of a resume."""
    return [
        {k: v for k, v in row.items() if k != "time" and not k.startswith("perf/")}
        for row in rundir.RunDir(path).rows()
        if "event" not in row
    ]


def final(path) -> dict[str, np.ndarray]:
    saved = checkpoint.Checkpoints(rundir.RunDir(path))
    return tensors.flatten(saved.read(saved.steps()[-1]))


def assert_same_bits(one, other) -> None:
    assert rows(one) == rows(other)
    first, second = final(one), final(other)
    assert set(first) == set(second)
    for path in first:
        np.testing.assert_array_equal(first[path], second[path], err_msg=path)


@pytest.fixture(scope="module")
def config() -> ConfigDict:
    """Everything random is on: augmentation, drop path, dropout."""
    c = configfile.load("configs/digits.py:pit")
    c.model.update(width=16, depth=2, heads=2, drop_path=0.1, dropout=0.1)
    c.data.augmentation.update(crop="pad", pad=1)
    c.optim.update(ema=0.9, warmup="2 steps")
    c.train.update(batch_size=32, epochs=None, steps=12, log_every=2, tensorboard=False)
    c.eval.every = "6 steps"
    c.checkpoint.update(every="3 steps", keep=10)
    return validation.resolve(c)


@pytest.fixture(scope="module")
def undisturbed(config, tmp_path_factory, one_device) -> pathlib.Path:
    path = tmp_path_factory.mktemp("runs") / "undisturbed"
    unresolved = config.copy_and_resolve_references()
    derived.release(unresolved)
    train(unresolved, path, devices=one_device)
    return path


def test_a_run_leaves_what_the_contract_says(undisturbed, config):
    names = {p.name for p in undisturbed.iterdir()}
    assert {"config.json", "env.json", "metrics.jsonl", "status.json", "checkpoints"} <= names
    status = json.loads((undisturbed / "status.json").read_text())
    assert (status["state"], status["exit_code"], status["step"]) == ("done", 0, 12)
    logged = rundir.RunDir(undisturbed).rows()
    assert [row["step"] for row in logged] == [2, 4, 6, 8, 10, 12]
    names = "train/loss train/accuracy train/accuracy_top5 train/lr train/grad_norm"
    names += " train/param_norm perf/images_per_s perf/images_per_s_per_device perf/step_s"
    names += " perf/input_wait_s perf/eval_s perf/checkpoint_s perf/left_s"
    assert set(names.split()) <= set(logged[2])
    assert logged[-1]["eval/examples"] == 360
    assert rundir.RunDir(undisturbed).config().to_dict() == config.to_dict()


def test_it_learns(resolved, tmp_path, one_device):
    easy = copy(resolved, train__steps=120, train__log_every=40, eval__every="100%")
    easy = copy(easy, checkpoint__every="100%", optim__lr=4e-3, train__batch_size=64)
    result = train(easy, tmp_path, devices=one_device)
    assert result.metrics["eval/accuracy"] > 0.6


def test_stopped_anywhere_and_resumed_gives_the_same_bits(
    config, undisturbed, tmp_path, one_device, monkeypatch
):
    """Ctrl-C in the middle of the run: saved, exit code 130, and on from there."""
    from pit_jax import signals

    calls = iter([0] * 6 + [signal.SIGINT] + [0] * 100)
    monkeypatch.setattr(signals.StopRequest, "asked", lambda self: next(calls))
    with pytest.raises(Stopped, match="SIGINT: saved at step 7") as stop:
        train(config, tmp_path, devices=one_device)
    assert stop.value.exit_code == 130
    assert rundir.RunDir(tmp_path).status()["state"] == "preempted"
    train(config, tmp_path, devices=one_device)
    events = [r for r in rundir.RunDir(tmp_path).rows() if "event" in r]
    assert events == [{"event": "resume", "step": 7}]
    assert [r for r in rows(tmp_path) if r["step"] != 7] == rows(undisturbed)
    found = final(tmp_path)
    for path, value in final(undisturbed).items():
        np.testing.assert_array_equal(found[path], value, err_msg=path)


def test_resuming_on_another_mesh_gives_the_same_values(config, undisturbed, tmp_path):
    run = stopped(undisturbed, tmp_path / "run", 6)
    train(copy(config, mesh__fsdp=4), run.path, devices=jax.devices()[:4])
    assert {"event": "resume", "step": 6} in run.rows()
    a, b = rows(run.path), rows(undisturbed)
    assert [r["step"] for r in a] == [r["step"] for r in b]
    np.testing.assert_allclose(
        [r["train/loss"] for r in a], [r["train/loss"] for r in b], rtol=1e-4
    )


def test_a_finished_run_prints_its_result(undisturbed, config, one_device, capsys):
    result = train(config, undisturbed, devices=one_device)
    assert "is done: step 12 of 12. accuracy" in capsys.readouterr().out
    assert result.metrics["eval/accuracy"] == rows(undisturbed)[-1]["eval/accuracy"]
    # Killed after the last checkpoint and before the last line of status.json:
    rundir.RunDir(undisturbed).write_status(state="running", result={})
    train(config, undisturbed, devices=one_device)
    status = rundir.RunDir(undisturbed).status()
    assert (status["state"], status["result"]) == ("done", result.metrics)


def test_another_run_in_the_directory_is_refused(undisturbed, config, one_device):
    with pytest.raises(ConfigError, match=r"config\.optim\.lr was 0\.003, now 0\.5"):
        train(copy(config, optim__lr=0.5), undisturbed, devices=one_device)


def test_evaluation_alone_gives_the_logged_figures(undisturbed, config):
    """Also on eight devices with a batch that does not divide the 360 examples."""
    expected = rows(undisturbed)[-1]
    for devices, batch in ((jax.devices()[:1], 0), (jax.devices(), 56)):
        found = evaluate.evaluate(copy(config, eval__batch_size=batch), undisturbed, None, devices)
        assert found["eval/examples"] == 360
        assert found["eval/accuracy"] == expected["eval/accuracy"]
        np.testing.assert_allclose(found["eval/loss"], expected["eval/loss"], rtol=1e-5)


def test_evaluation_of_a_step_that_is_not_there_is_refused(undisturbed, config, tmp_path):
    with pytest.raises(ConfigError, match=r"has no checkpoint 5, but \[3, 6, 9, 12\]"):
        evaluate.evaluate(config, undisturbed, 5)
    with pytest.raises(ConfigError, match="is no run directory"):
        evaluate.evaluate(config, tmp_path)


def test_evaluation_and_resume_of_another_model_are_refused(
    undisturbed, config, tmp_path, one_device
):
    wide = copy(config, model__width=24)
    with pytest.raises(ConfigError, match=r"config\.model\.width was 16, now 24"):
        evaluate.evaluate(wide, undisturbed)
    wide.resume = str(undisturbed)
    with pytest.raises(ConfigError, match=r"is of another model: .* the config makes it"):
        train(wide, tmp_path, devices=one_device)


def test_a_loss_that_explodes_stops_the_run(resolved, tmp_path, one_device):
    wild = copy(resolved, optim__lr=1e9, optim__clip=0.0, optim__name="sgd")
    wild = copy(wild, checkpoint__every="1 steps", train__steps=8)
    with pytest.raises(
        NonFiniteLoss, match=r"step \d: loss .*last finite values \{'step': \d"
    ) as stop:
        train(wild, tmp_path, devices=one_device)
    assert stop.value.exit_code == 3
    status = rundir.RunDir(tmp_path).status()
    assert (status["state"], status["exit_code"]) == ("failed", 3)
    bad = int(str(stop.value).split()[1].rstrip(":"))
    saved = checkpoint.Checkpoints(rundir.RunDir(tmp_path))
    assert saved.newest_intact() == bad - 1
    # Here nothing of that can be done: another rate is another run.
    assert "may help, in another --workdir, which config.resume=" in str(stop.value)
    assert str(stop.value).endswith(
        f"config.resume={tmp_path} may continue if only the rate differs"
    )
    with pytest.raises(ConfigError, match="already holds another run"):
        train(copy(wild, optim__lr=1e-9), tmp_path, devices=one_device)


def test_whole_state_and_weights_of_another_run(undisturbed, config, tmp_path, one_device):
    state = copy(config, train__log_every=1, train__steps=13, checkpoint__every="1 steps")
    state.resume = str(undisturbed)
    train(state, tmp_path / "state", devices=one_device)
    assert [r["step"] for r in rows(tmp_path / "state")] == [13]

    start = copy(config, optim__lr=0.0, train__steps=1)
    assert start.optim.ema > 0  # both have an average: it starts as what was loaded
    start.init_from = str(undisturbed)
    train(start, tmp_path / "weights", devices=one_device)
    exported = tmp_path / "weights.safetensors"
    exchange.export_weights(str(undisturbed), str(exported), "pit_jax", lambda line: None)
    found = final(tmp_path / "weights")
    read = tensors.flatten(initial.read_weights(str(exported), start))
    for path, value in final(undisturbed).items():
        if path.startswith("ema/"):
            name = path.removeprefix("ema/")
            np.testing.assert_array_equal(found[f"params/{name}"], value)
            np.testing.assert_allclose(found[path], value, rtol=1e-6, atol=1e-9)
            np.testing.assert_array_equal(read[name], value)


def test_what_init_from_and_resume_cannot_find_is_refused(resolved, tmp_path, one_device):
    for field, sentence in (
        ("init_from", "init_from=.*none does not exist"),
        ("resume", "resume=.*none holds no checkpoint"),
    ):
        config = copy(resolved)
        config[field] = str(tmp_path / "none")
        with pytest.raises(ConfigError, match=sentence):
            train(config, tmp_path / field, devices=one_device)


def test_weights_of_another_width_are_refused(undisturbed, config, tmp_path, one_device):
    wide = copy(config, model__width=24)
    wide.init_from = str(undisturbed)
    with pytest.raises(ConfigError, match=r"with model\.width=16, the config has 24"):
        train(wide, tmp_path, devices=one_device)


def test_weights_of_a_model_with_other_heads_are_refused(undisturbed, config, tmp_path, one_device):
    """The shapes are the same, what is computed is not."""
    other = copy(config, model__heads=4)
    other.init_from = str(undisturbed)
    with pytest.raises(ConfigError, match=r"were made with model\.heads=2, the config has 4"):
        train(other, tmp_path, devices=one_device)


def test_the_readmes_example_classifies_an_image(undisturbed):
    run = rundir.RunDir(undisturbed)
    saved = checkpoint.Checkpoints(run)
    params = saved.read_weights(saved.newest_intact())
    model = vit.build(run.config().model, num_classes=10)
    assert model.apply({"params": params}, np.zeros((1, 8, 8, 1))).shape == (1, 10)


def test_an_unknown_evaluation_is_refused(resolved, tmp_path, one_device):
    with pytest.raises(
        ConfigError, match="offers accuracy, linear, knn, fewshot, locality, not 'generation'"
    ):
        train(copy(resolved, eval__what=("generation",)), tmp_path, devices=one_device)


def test_a_profile_is_written(resolved, tmp_path, one_device):
    train(copy(resolved, train__steps=4), tmp_path, profile=(2, 3), devices=one_device)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


# Real processes -------------------------------------------------------------------------


def command(path, *words: str) -> list[str]:
    fields = "model.width=16 model.depth=2 train.batch_size=32 train.log_every=1 train.steps=28"
    fields += " checkpoint.every='2 steps' train.tensorboard=False"
    overrides = [f"--config.{f}".replace("'", "") for f in fields.replace("'2 s", "'2_s").split()]
    overrides = [word.replace("2_s", "2 s") for word in overrides]
    base = [sys.executable, "-m", "pit_jax.cli", "train", "--config", "configs/digits.py:pit"]
    return [*base, "--workdir", str(path), *overrides, *words]


def environment() -> dict[str, str]:
    one = os.environ["XLA_FLAGS"].replace("count=8", "count=1")
    return os.environ | {"XLA_FLAGS": one, "PYTHONPATH": os.getcwd()}


def start(path, *words: str) -> subprocess.Popen:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command(path, *words), env=environment(), **pipes)


def wait_for_step(process: subprocess.Popen, path, step: int) -> None:
    deadline = time.time() + 120
    while time.time() < deadline and process.poll() is None:
        if any(row.get("step", 0) >= step for row in rundir.RunDir(path).rows()):
            return
        time.sleep(0.01)


@pytest.fixture(scope="module")
def never_killed(tmp_path_factory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("killed") / "never"
    process = start(path)
    assert process.wait(120) == 0, process.stdout.read()
    return path


def kill_and_resume(path, seed: int, kills: int) -> None:
    rng = random.Random(seed)
    for _ in range(kills):
        process = start(path)
        done = rundir.RunDir(path).status().get("step", 0)
        wait_for_step(process, path, rng.randint(done + 1, done + 9))
        time.sleep(rng.uniform(0, 0.05))
        process.kill()
        process.wait()
    process = start(path)
    assert process.wait(120) == 0, process.stdout.read()


def test_killed_at_random_steps_ends_with_the_same_bits(never_killed, tmp_path):
    kill_and_resume(tmp_path / "run", seed=0, kills=2)
    assert_same_bits(tmp_path / "run", never_killed)
    steps = [row["step"] for row in rows(tmp_path / "run")]
    assert steps == sorted(set(steps))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 8))
def test_killed_many_times_ends_with_the_same_bits(never_killed, tmp_path, seed):
    kill_and_resume(tmp_path / "run", seed, kills=3)
    assert_same_bits(tmp_path / "run", never_killed)
    steps = [row["step"] for row in rows(tmp_path / "run")]
    assert steps == sorted(set(steps))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_saves_and_says_so(never_killed, tmp_path, number, code):
    process = start(tmp_path / "run")
    wait_for_step(process, tmp_path / "run", 5)
    process.send_signal(number)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == code, output
    assert f"{signal.Signals(number).name}: saved at step" in output
    assert "Traceback" not in output
    assert rundir.RunDir(tmp_path / "run").status()["exit_code"] == code
    if number == signal.SIGINT:
        return  # how it goes on from a Ctrl-C is shown above
    process = start(tmp_path / "run")
    assert process.wait(120) == 0, process.stdout.read()
    one, other = final(tmp_path / "run"), final(never_killed)
    for path in other:
        np.testing.assert_array_equal(one[path], other[path], err_msg=path)
