"""Whose examples a run learns: kept when it begins, compared by name ever after."""

import json

import numpy as np
import pytest
from PIL import Image

from pit_jax import configfile, restored, rundir, tasks, train
from pit_jax.data import identity, sources
from pit_jax.errors import ConfigError, StorageError
from pit_jax.parallel import mesh as meshes

from ..saved_runs import save_run

SMALL = ("model.width=16", "model.depth=1", "model.heads=1", "model.patch=4", "data.name=folder")
SMALL += ("data.image_size=8", "data.channels=1", "data.num_classes=2", "train.steps=2")
SMALL += ("train.batch_size=4", "train.tensorboard=False", "eval.batch_size=4")


def folder(root, classes=("bright", "dark"), counts=(4, 4)):
    """A set of grey images, so many of each class in training, so many in evaluation."""
    for split, count in zip(("train", "test"), counts, strict=True):
        for level, name in enumerate(classes):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = np.full((8, 8), 20 + 90 * level + number, np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return root


def settings(root, *changes, spec="configs/digits.py"):
    words = (*SMALL, f"data.dir={root}", *changes)
    return configfile.load(spec, [f"--config.{word}" for word in words])


def opened(config):
    return sources.training(config.data), sources.load(config.data, config.data.eval_split)


def begun(path, config) -> rundir.RunDir:
    """A run that has kept what it learns, and has a config."""
    run = rundir.RunDir(path)
    run.write_config(config)
    identity.keep(run, identity.of_sources(config.data, *opened(config)))
    return run


@pytest.fixture
def run(tmp_path):
    return begun(tmp_path / "run", settings(folder(tmp_path / "set")))


def rename(root, old, new):
    for split in ("train", "test"):
        (root / split / old).rename(root / split / new)


def test_it_lies_in_the_run_by_name_and_number(tmp_path, run):
    kept = json.loads((run.path / "data.json").read_text())
    assert kept["name"] == "folder"
    assert kept["classes"] == ["bright", "dark"]
    assert kept["training"] == {"split": "train", "examples": 8}
    assert kept["evaluation"] == {"split": "test", "examples": 8}
    assert "latents" not in kept
    config = settings(tmp_path / "set")
    assert identity.of_run(run) == identity.of_sources(config.data, *opened(config))


def test_a_renamed_class_is_refused_by_name(tmp_path, run):
    """Whoever starts, and whoever asks; the sorted order changes, so the numbers do."""
    config = settings(tmp_path / "set")
    identity.check_start(config, run, True)
    rename(tmp_path / "set", "bright", "light")
    said = "new 'light'; missing 'bright'; 'dark' was number 1 and is 0"
    for check in (identity.check_start, identity.check_restored):
        with pytest.raises(ConfigError, match=said) as info:
            check(config, run, True)
        assert "\n" not in str(info.value)
    with pytest.raises(ConfigError, match=said):  # what cannot learn names learns their order
        identity.check_start(config, run, False)
    assert identity.check_restored(config, run, False) is None


def test_train_and_eval_ask(tmp_path, run, one_device):
    """Before anything is written."""
    config = settings(tmp_path / "set")
    save_run(config, run.path)
    rename(tmp_path / "set", "bright", "light")
    before = sorted(run.path.iterdir())
    with pytest.raises(ConfigError, match="missing 'bright'"):
        train.train(config, run.path, devices=one_device)
    with pytest.raises(ConfigError, match="missing 'bright'"):
        restored.restore(config, run.path, None)
    config.resume = str(run.path)
    with pytest.raises(ConfigError, match="missing 'bright'"):
        train.train(config, tmp_path / "new", devices=one_device)
    assert not (tmp_path / "new").exists()
    assert sorted(run.path.iterdir()) == before


def test_a_class_more_is_named_before_its_number_is(tmp_path, run, one_device):
    for split in ("train", "test"):
        (tmp_path / "set" / split / "dim").mkdir()
    with pytest.raises(ConfigError, match=r"other classes than .* trained on: new 'dim'"):
        train.train(settings(tmp_path / "set"), run.path, devices=one_device)


def test_the_same_classes_elsewhere_are_the_same(tmp_path, run, one_device):
    """Evaluation may count other examples, of another directory or split."""
    config = settings(folder(tmp_path / "other", counts=(4, 9)))
    identity.check_start(config, run, True)
    identity.check_restored(config, run, True)
    (remark,) = identity.check_counts(
        identity.of_sources(config.data, *opened(config)), config, run
    )
    assert "has 18 evaluation examples in test, earlier evaluations of" in remark
    save_run(settings(tmp_path / "set"), tmp_path / "saved")
    config = settings(tmp_path / "set", "data.eval_split=train")
    with pytest.raises(ConfigError, match="eval_split was 'test'"):
        run.check_same(config)
    mesh = meshes.make_mesh(config.mesh, one_device)
    assert restored.restore(config, tmp_path / "saved", mesh).number == 7


def test_another_number_of_training_examples_is_refused(tmp_path, run):
    config = settings(folder(tmp_path / "other", counts=(5, 4)))
    found = identity.of_sources(config.data, *opened(config))
    with pytest.raises(ConfigError, match=r"has 10 training examples in train, but .* on 8: bring"):
        identity.check_counts(found, config, run)
    config.resume = str(run.path)
    (remark,) = identity.check_counts(found, config, rundir.RunDir(tmp_path / "new"))
    assert remark == f"{run.path} was trained on 8 examples, this run is on 10"


def test_a_run_of_old_adopts_what_it_finds(tmp_path, one_device, capsys):
    config = settings(folder(tmp_path / "set"), "train.steps=1")
    train.train(config, tmp_path / "run", devices=one_device)
    kept = tmp_path / "run" / "data.json"
    first = kept.read_bytes()
    kept.unlink()
    config.train.steps = 2
    train.train(config, tmp_path / "run", devices=one_device)
    said = [line for line in capsys.readouterr().out.splitlines() if "data.json" in line]
    assert len(said) == 1
    assert "from now on data.json does: 2 classes, 8 examples of train and 8 of test" in said[0]
    assert kept.read_bytes() == first


def test_a_subset_is_counted_as_what_it_is(tmp_path):
    config = settings(folder(tmp_path / "set"), "data.per_class=2")
    assert identity.of_sources(config.data, *opened(config)).training.examples == 4


def test_a_corrupt_image_that_is_skipped_counts(tmp_path):
    config = settings(folder(tmp_path / "set"), "data.corrupt=skip")
    before = identity.of_sources(config.data, *opened(config))
    (tmp_path / "set" / "train" / "dark" / "1.png").write_bytes(b"no image")
    assert identity.of_sources(config.data, *opened(config)) == before


@pytest.mark.parametrize(
    ("name", "words", "classes"),
    [
        ("digits", (), tuple("0123456789")),
        ("scenes", ("task=depth", "model.pool=mean"), ()),
        ("tiny_digits", ("data.dir=tests/fixtures/tfds",), tuple("0123")),
        ("tiny_photos", ("data.dir=tests/fixtures/tfds", "data.eval_split=train"), ("a", "b")),
    ],
)
def test_every_kind_of_source_names_its_classes(name, words, classes):
    data = settings("", f"data.name={name}", *words).data
    found = sources.open_split(data, data.eval_split)
    if name == "tiny_photos":
        assert len(found.classes) == found.num_classes > 1
        assert not any(x.isdigit() for x in found.classes)
    else:
        assert tuple(found.classes) == classes


def test_a_copy_knows_the_names(tmp_path):
    from pit_jax.data import copier

    folder(tmp_path / "set")
    copier.copy("folder", 4, directory=str(tmp_path / "set"), out=str(tmp_path), workers=1)
    words = ("data.name=folder@4", "data.image_size=4", "data.channels=3")
    data = settings(tmp_path, *words).data
    assert tuple(sources.open_split(data, "train").classes) == ("bright", "dark")
    manifest = tmp_path / "folder@4" / "copy.json"
    old = json.loads(manifest.read_text())
    del old["classes"]
    manifest.write_text(json.dumps(old))  # as copies of old
    assert tuple(sources.open_split(data, "train").classes) == ()
    copier.copy("folder", 4, directory=str(tmp_path / "set"), out=str(tmp_path), workers=1)


def test_a_set_that_is_not_here_is_not_compared(tmp_path, run):
    """A sample needs no data; whoever does will say that it is not there."""
    identity.check_restored(settings(tmp_path / "nowhere"), run, True)


def test_which_tasks_know_a_class_by_its_number():
    def known(*words, spec="configs/digits.py"):
        config = configfile.load(spec, [f"--config.{word}" for word in words])
        return tasks.build(config).learns_labels

    assert known()
    assert known(spec="configs/digits_diffusion.py")
    assert not known(
        "diffusion.conditional=False", "sample.guidance=1", spec="configs/digits_diffusion.py"
    )
    assert not known(spec="configs/digits_mae.py")
    assert not known(spec="configs/scenes_depth.py")


@pytest.mark.parametrize(
    ("before", "now", "said", "renumbered"),
    [
        ("ab", "ab", "", False),
        ("ab", "cd", "new 'c', 'd'; missing 'a', 'b'", False),
        ("ab", "ba", "'b' was number 1 and is 0, 'a' was number 0 and is 1", True),
        ("ab", "abc", "new 'c'", False),
        ("aba", "aba", "", False),
        ("abcde", "vwxyz", "new 'v', 'w', 'x' and 2 more; missing 'a', 'b', 'c' and 2 more", False),
    ],
)
def test_the_difference_in_words(before, now, said, renumbered):
    assert identity.difference(tuple(before), tuple(now)) == said
    assert identity.renumbered(before, now) == renumbered


@pytest.mark.parametrize("content", ["{", "[]", '{"classes": "ab"}', '{"classes": []}'])
def test_a_damaged_file_is_told_in_one_line(tmp_path, content):
    (tmp_path / "data.json").write_text(content)
    with pytest.raises(StorageError, match=r"data\.json cannot be read") as info:
        identity.of_run(rundir.RunDir(tmp_path))
    assert "\n" not in str(info.value)
