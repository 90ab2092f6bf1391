"""Checkpoints are intact or refused: every kind of damage is found, named and survived."""

import grp
import json
import os
import pwd
import random
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from pit_jax import checkpoint, cli, rundir
from pit_jax.errors import ConfigError, StorageError
from pit_jax.study import progress


def state(value: float) -> dict:
    return {"w": jnp.full((40, 30), value), "b": {"x": jnp.arange(7.0) + value}}


def shapes() -> dict:
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), state(0))


def save(path, scores: dict[int, float | None], **keep) -> checkpoint.Checkpoints:
    saved = checkpoint.Checkpoints(rundir.RunDir(path), **keep)
    for step, score in scores.items():
        saved.save(step, state(step), {} if score is None else {"eval/accuracy": score})
    saved.finish()
    return saved


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    path = tmp_path_factory.mktemp("original")
    save(path, {1: None, 2: None}, keep=2).close()
    return path


@pytest.fixture
def two(original, tmp_path):
    """A run directory with the checkpoints of steps 1 and 2, to be damaged."""
    shutil.copytree(original, tmp_path / "run")
    return tmp_path / "run"


def files(run, step: int = 2) -> list:
    return sorted(p for p in (run / "checkpoints" / str(step)).rglob("*") if p.is_file())


def opened(run) -> tuple[checkpoint.Checkpoints, list[str]]:
    return checkpoint.Checkpoints(rundir.RunDir(run)), []


def test_what_is_restored_is_what_was_saved(two):
    saved, said = opened(two)
    assert saved.newest_intact(said.append) == 2
    assert not said
    restored = saved.restore(2, shapes())
    jax.tree.map(np.testing.assert_array_equal, restored, state(2))
    raw = saved.read(2)
    np.testing.assert_array_equal(raw["b"]["x"], state(2)["b"]["x"])


@pytest.mark.parametrize("seed", range(20))
def test_a_flipped_bit_is_found_and_the_one_before_is_used(two, seed):
    rng = random.Random(seed)
    victim = rng.choice([p for p in files(two) if p.stat().st_size])
    content = bytearray(victim.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    victim.write_bytes(content)
    saved, said = opened(two)
    assert saved.newest_intact(said.append) == 1
    assert said == [
        f"checkpoint 2 is damaged and not used: {victim.relative_to(two / 'checkpoints' / '2')}"
        " has changed (SHA-256 differs)"
    ]
    jax.tree.map(np.testing.assert_array_equal, saved.restore(1, shapes()), state(1))


@pytest.mark.parametrize("damage", ["truncate", "delete", "add", "delete all", "manifest"])
def test_other_damage_is_found(two, damage):
    victim = max(files(two), key=lambda p: p.stat().st_size)
    name = victim.relative_to(two / "checkpoints" / "2")
    if damage == "truncate":
        victim.write_bytes(victim.read_bytes()[:-1])
        sentence = f"{name} has {victim.stat().st_size} bytes, not {victim.stat().st_size + 1}"
    elif damage == "delete":
        victim.unlink()
        sentence = f"{name} is missing"
    elif damage == "add":
        (victim.parent / "extra").write_text("x")
        sentence = "extra does not belong to it"
    elif damage == "delete all":
        shutil.rmtree(two / "checkpoints" / "2")
        sentence = f"{name} is missing"
    else:
        (two / "manifests" / "2.json").write_text('{"files": ')
        sentence = "manifests/2.json is unreadable"
    saved, said = opened(two)
    assert saved.newest_intact(said.append) == 1
    assert sentence in said[0]


def test_damage_is_set_aside_and_the_step_can_be_saved_again(two):
    files(two)[0].write_text("broken")
    saved, said = opened(two)
    assert saved.newest_intact(said.append) == 1
    assert [p.name for p in (two / "corrupt").iterdir()] == ["2-0"]
    saved.save(2, state(5), {})
    saved.finish()
    assert saved.newest_intact(said.append) == 2
    assert float(saved.restore(2, shapes())["w"][0, 0]) == 5


def test_no_intact_checkpoint_is_an_error_not_a_new_start(two):
    for step in (1, 2):
        files(two, step)[0].write_text("broken")
    with pytest.raises(
        StorageError, match=r"no checkpoint in .* is intact \(all of them: \[1, 2\]\)"
    ):
        opened(two)[0].newest_intact(lambda line: None)


def test_reading_alone_repairs_nothing(two):
    files(two)[0].write_text("broken")
    saved, said = opened(two)
    assert saved.newest_intact(said.append, repair=False) == 1
    assert not (two / "corrupt").exists()


def test_what_a_kill_cut_off_does_not_count(two):
    """Killed before the manifest was written, or while orbax was still writing."""
    (two / "manifests" / "2.json").unlink()
    (two / "checkpoints" / "3.orbax-checkpoint-tmp").mkdir()
    saved, said = opened(two)
    assert saved.newest_intact(said.append) == 1
    assert [p.name for p in (two / "checkpoints").iterdir()] == ["1"]


def test_a_new_run_has_no_checkpoint(tmp_path):
    assert opened(tmp_path)[0].newest_intact() is None


def test_the_newest_and_the_best_stay(tmp_path):
    scores = {1: 0.5, 2: 0.9, 3: 0.7, 4: None, 5: 0.8}
    saved = save(tmp_path, scores, keep=2, keep_best=1)
    assert saved.steps() == [2, 4, 5]
    assert saved.best_step() == 2
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["2", "4", "5"]
    assert saved.would_be_best({"eval/accuracy": 0.91})
    assert not saved.would_be_best({"eval/accuracy": 0.9})
    assert not saved.would_be_best({})
    again = checkpoint.Checkpoints(rundir.RunDir(tmp_path), keep_best=1)
    assert again.newest_intact() == 5
    assert again.would_be_best({"eval/accuracy": 0.91})
    assert not again.would_be_best({"eval/accuracy": 0.9})
    assert again.would_be_best({"eval/loss": 3.0})  # of other evaluations, to begin with


def test_the_best_stays_where_less_is_better_and_by_what_the_newest_is_judged(tmp_path):
    """As of masked autoencoding and diffusion; and after resuming with other evaluations."""
    saved = checkpoint.Checkpoints(rundir.RunDir(tmp_path), keep=1, keep_best=1)
    for step, loss in {1: 0.5, 2: 0.2, 3: 0.3}.items():
        saved.save(step, state(step), {"eval/loss": loss})
    saved.finish()
    assert saved.steps() == [2, 3]
    assert saved.best_step() == 2
    for step, fid in {4: 30.0, 5: 40.0}.items():
        assert saved.would_be_best({"eval/fid": fid}) == (step == 4)
        saved.save(step, state(step), {"eval/fid": fid, "eval/loss": 0.1})
    saved.finish()
    assert saved.steps() == [4, 5]


def test_another_state_is_refused(two):
    other = shapes() | {"w": jax.ShapeDtypeStruct((3, 3), jnp.float32)}
    sentence = r"checkpoint 2 in .* is of another model: w is \(40, 30\), the .* it \(3, 3\)"
    with pytest.raises(ConfigError, match=sentence):
        opened(two)[0].restore(2, other)


def test_manifests_name_every_file(two):
    manifest = json.loads((two / "manifests" / "2.json").read_text())
    assert set(manifest["files"]) == {
        str(p.relative_to(two / "checkpoints" / "2")) for p in files(two)
    }
    assert all(len(entry["sha256"]) == 64 for entry in manifest["files"].values())


needs_root = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="a small file system needs root on Linux"
)

FULL_DISK = """
import sys
import jax.numpy as jnp
import numpy as np
from pit_jax import checkpoint, rundir
from pit_jax.errors import StorageError
from pit_jax.parallel import processes

processes.start(100)
if sys.argv[2] == "unforeseen":
    checkpoint.Checkpoints._check_space = lambda *_: None
saved = checkpoint.Checkpoints(rundir.RunDir(sys.argv[1]))
saved.save(1, {"w": jnp.ones((100, 100))}, {})
saved.finish()
noise = np.random.default_rng(0).normal(size=(600, 600)).astype(np.float32)
try:
    saved.save(2, {"w": jnp.asarray(noise)}, {})
    saved.finish()
except StorageError as error:
    print(error)
saved = checkpoint.Checkpoints(rundir.RunDir(sys.argv[1]))
print("intact", saved.newest_intact())
"""


@needs_root
@pytest.mark.parametrize("when", ["foreseen", "unforeseen"])
def test_a_full_disk_is_one_line_and_the_checkpoint_before_stays(tmp_path, when):
    (tmp_path / "program.py").write_text(FULL_DISK)
    disk = tmp_path / "disk"
    done = in_a_small_file_system(disk, f"{sys.executable} {tmp_path}/program.py {disk} {when}")
    lines = done.stdout.splitlines()
    assert "the checkpoint of step 2 could not be written" in lines[0], done.stderr
    assert "no space left on the disk" in lines[0]
    assert lines[0].endswith("; step 1 is intact")
    assert lines[1] == "intact 1"
    # A write of tensorstore's that ends after orbax has given up finds no event loop to tell.
    assert done.stderr.count("Traceback") == done.stderr.count("Event loop is closed"), done.stderr


def in_a_small_file_system(directory, command: str) -> subprocess.CompletedProcess:
    """Runs a shell command with a tmpfs of 1 MB on `directory`, in a mount namespace."""
    directory.mkdir()
    script = f"mount -t tmpfs -o size=1m none {directory} && {command}"
    words = ["unshare", "--mount", "sh", "-c", script]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    if done.stderr.startswith(("unshare", "mount")):
        pytest.skip(f"no mount namespace here: {done.stderr.strip()}")
    return done


@needs_root
def test_training_onto_a_full_disk_ends_with_exit_code_5(tmp_path):
    fields = "model.width=32 model.depth=2 train.steps=12 train.tensorboard=False"
    fields += " mesh.data=1 eval.every=100% checkpoint.every=2_steps checkpoint.keep=9"
    words = " ".join(f"'--config.{field.replace('_s', ' s')}'" for field in fields.split())
    run = tmp_path / "disk" / "run"
    command = f"{sys.executable} -m pit_jax.cli train --config configs/digits.py:pit"
    look = f"code=$?; ls {run}/manifests; cat {run}/status.json; exit $code"
    one = f"export XLA_FLAGS='{os.environ['XLA_FLAGS'].replace('count=8', 'count=1')}'"
    script = f"{one}; {command} --workdir {run} {words}; {look}"
    done = in_a_small_file_system(tmp_path / "disk", script)
    assert done.returncode == 5, done.stderr
    assert done.stderr.count("\n") == 1
    assert re.search(r"[Nn]o space left on", done.stderr)
    assert "2.json" in done.stdout


# Names and owners ---------------------------------------------------------------------------

AWKWARD = ["lr=[1e-3]", "a*b", "a?b", "a\\b", os.fsdecode(b"a\xffb")]


@pytest.mark.parametrize("name", AWKWARD)
@pytest.mark.parametrize("below", ["", "/below"])
def test_names_that_libraries_take_for_patterns_are_refused(tmp_path, name, below, capsys):
    place = f"{tmp_path}/{name}{below}"
    for words in (
        ("train", "--config", "configs/digits.py:pit"),
        ("sweep", "experiments/position_embedding.py:tiny"),
        ("launch", "--target", "local", "--config", "configs/digits.py:pit"),
    ):
        assert cli.run([*words, "--workdir", place]) == 2
        said = capsys.readouterr().err
        assert "can be written under a name" in said
        assert said.count("\n") == 1
        assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("name", ["lr=[1e-3]", "a\\b"])
def test_a_save_counts_only_once_its_arrays_can_be_found(tmp_path, name):
    saved = checkpoint.Checkpoints(rundir.RunDir(tmp_path / name))
    (tmp_path / name).mkdir()
    saved.save(1, state(1), {})
    with pytest.raises(StorageError, match=r"step 1 could not be written .*no arrays"):
        saved.finish()
    assert saved.steps() == []


def test_a_save_of_other_arrays_does_not_count(tmp_path, monkeypatch):
    saved = checkpoint.Checkpoints(rundir.RunDir(tmp_path))
    real = saved._checkpointer.save
    monkeypatch.setattr(saved._checkpointer, "save", lambda path, x: real(path, {"w": x["w"]}))
    saved.save(1, state(1), {})
    with pytest.raises(StorageError, match=r"b/x is missing, it should be \(7,\)"):
        saved.finish()
    assert saved.steps() == []


def test_a_run_that_was_moved_to_such_a_name_can_be_read(two, tmp_path):
    moved = tmp_path / "lr=[1e-3]"
    two.rename(moved)
    saved, said = opened(moved)
    assert saved.newest_intact(said.append, repair=False) == 2
    jax.tree.map(np.testing.assert_array_equal, saved.restore(2, shapes()), state(2))


def test_where_no_number_can_be_found_it_is_one_line(two, tmp_path):
    moved = tmp_path / "a\\b"
    two.rename(moved)
    with pytest.raises(StorageError, match="orbax finds no arrays there"):
        opened(moved)[0].restore(2, shapes())


def test_owners_need_no_name(tmp_path, monkeypatch):
    """Of files in containers and on NFS; conftest.py sees to all other tests."""
    for module, asked in ((pwd, "getpwuid"), (grp, "getgrgid")):
        monkeypatch.setattr(module, asked, lambda number: {}[number])
    with pytest.raises(KeyError):
        epath.Path(tmp_path).stat()
    saved = save(tmp_path, {1: None})
    assert saved.newest_intact() == 1
    (tmp_path / "metrics.jsonl").write_text('{"step": 3, "time": 1.0}\n')
    assert progress.Progress(rundir.RunDir(tmp_path)).read().step == 3
