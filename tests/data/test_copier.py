"""`pit-jax data prepare --resize`: what it writes, how it goes on, and what it refuses."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from pit_jax import cli
from pit_jax.data import copier, sources
from pit_jax.data.copies import CopySource
from pit_jax.errors import ConfigError
from pit_jax.perf.bench_input import photographs

from ..test_checkpoint import in_a_small_file_system, needs_root
from .images import from_pil, noise, to_pil

BICUBIC = Image.Resampling.BICUBIC
TFDS = "tests/fixtures/tfds"


@pytest.fixture
def data(tiny):
    return tiny.data


def prepare(*words) -> int:
    return cli.run(["data", "prepare", *map(str, words), "--workers", "1"])


def opened(data, directory, name: str, split: str = "train", **fields) -> CopySource:
    size = int(name.partition("@")[2].partition("-")[0])
    data.update(name=name, dir=str(directory), image_size=size, **fields)
    return sources.load(data, split)


def files(directory) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def folder(root, images: dict[str, bytes]) -> None:
    """Image files by their names <split>/<class>/<file>."""
    for name, content in images.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


def png(image: np.ndarray) -> bytes:
    content = io.BytesIO()
    to_pil(image).save(content, "png")
    return content.getvalue()


def test_a_copy_is_what_pil_makes_of_every_image(data, tmp_path):
    """To a grey level in the mean: where strokes end, bicubic overshoots black and white."""
    assert prepare("digits", "--resize", 5, "--data-dir", tmp_path, "--shards", 2) == 0
    for split in ("train", "test"):
        copy, digits = opened(data, tmp_path, "digits@5", split, channels=1), sources.Digits(split)
        assert len(copy) == len(digits)
        np.testing.assert_array_equal(copy.labels(), digits.labels())
        apart = []
        for number in range(0, len(digits), 7):
            image, label = copy[number]
            picture = to_pil(digits[number][0]).resize((5, 5), BICUBIC)
            apart.append(np.abs(image - from_pil(picture)).mean())
            assert label == digits[number][1]
        assert np.mean(apart) < 1


@pytest.mark.parametrize(
    ("flags", "name"), [((), "folder@64"), (("--squash",), "folder@64-squash")]
)
def test_photographs_are_decoded_at_a_fraction_and_stay_near_pils(data, tmp_path, flags, name):
    """500×375 to 64×64 is decoded at 1/2; the bound is that of data/resize.py."""
    tall, wide = photographs(500, 375, 1)[0], photographs(375, 500, 2)[1]
    folder(tmp_path, {"train/a/0.jpg": tall, "train/b/1.jpg": wide})
    assert prepare("folder", "--resize", 64, *flags, "--data-dir", tmp_path) == 0
    copy = opened(data, tmp_path, name, channels=3, num_classes=2)
    for (image, _), file in zip((copy[0], copy[1]), (tall, wide), strict=True):
        picture = Image.open(io.BytesIO(file))
        if flags:
            wanted = picture.resize((64, 64), BICUBIC)
        else:
            wanted = picture.resize([side * 64 // 375 for side in picture.size], BICUBIC)
            left, top = ((side - 64) // 2 for side in wanted.size)
            wanted = wanted.crop((left, top, left + 64, top + 64))
        assert np.abs(image - from_pil(wanted)).mean() < 2
        assert image.std() > 20


def test_a_set_of_tensorflow_datasets_is_copied_with_its_version(data, tmp_path):
    words = ("--data-dir", TFDS, "--out", tmp_path, "--split", "train")
    assert prepare("tiny_digits", "--resize", 8, *words) == 0
    found = opened(data, tmp_path, "tiny_digits@8", channels=3, num_classes=4)
    assert found.manifest.image_set == "tiny_digits:1.0.0"
    data.update(name="tiny_digits", dir=TFDS)
    source = sources.load(data, "train")
    assert len(found) == len(source) == 60
    for number in range(60):
        np.testing.assert_array_equal(found[number][0], source[number][0])
        assert found[number][1] == source[number][1]


def test_two_processes_write_what_one_writes(tmp_path, capsys):
    words = ["digits", "--resize", 4, "--shards", 3]
    assert prepare(*words, "--data-dir", tmp_path / "one") == 0
    words = [*map(str, words), "--data-dir", str(tmp_path / "two"), "--workers", "2"]
    assert cli.run(["data", "prepare", *words]) == 0
    assert files(tmp_path / "two" / "digits@4") == files(tmp_path / "one" / "digits@4")
    assert "digits@4 1797/1797" in capsys.readouterr().out


def test_the_last_line_says_how_to_train_on_it(data, tmp_path, capsys):
    assert prepare("digits", "--resize", 4, "--data-dir", tmp_path) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-2].startswith(
        f"{tmp_path}/digits@4: 1,437 train + 360 test images of digits at 4 × 4 × 1, "
    )
    words = "--config.data.name=digits@4 --config.data.image_size=4 --config.data.num_classes=10"
    assert said[-1] == f"train on them with {words} --config.data.dir={tmp_path}"
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "digits@4").iterdir()}
    assert prepare("digits", "--resize", 4, "--data-dir", tmp_path) == 0
    assert f"{tmp_path}/digits@4: every file is as it was written" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "digits@4").iterdir()} == before


SLOW = """
import sys, time
from pit_jax.data import sources, copier
read = sources.Digits.__getitem__

def slowly(self, index):
    time.sleep(0.002)
    return read(self, index)

sources.Digits.__getitem__ = slowly
copier.copy("digits", 4, directory=sys.argv[1], split=["train"], shards=6, workers=1)
"""


def test_killed_in_the_middle_it_goes_on(tmp_path, data):
    words = ["digits", "--resize", 4, "--split", "train", "--shards", 6, "--data-dir"]
    prepare(*words, tmp_path / "whole")
    part = tmp_path / "part" / "digits@4"
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    process = subprocess.Popen([sys.executable, "-c", SLOW, str(part.parent)], env=environment)
    deadline = time.time() + 60
    while not list(part.glob(".train-00001-of-00006.*.tmp")) and time.time() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = (part / "train-00000-of-00006.array_record").stat().st_mtime_ns
    shutil.copytree(part, tmp_path / "read" / "digits@4")
    with pytest.raises(ConfigError, match="split 'train' is not finished"):
        opened(data, tmp_path / "read", "digits@4", channels=1)
    assert prepare(*words, part.parent) == 0
    assert (part / "train-00000-of-00006.array_record").stat().st_mtime_ns == kept
    assert files(part) == files(tmp_path / "whole" / "digits@4")


def test_damaged_files_are_written_again(tmp_path):
    words = ("digits", "--resize", 4, "--shards", 2, "--data-dir", tmp_path)
    prepare(*words)
    root = tmp_path / "digits@4"
    before = files(root)
    (root / "train-00001-of-00002.array_record").write_bytes(b"")
    (root / "test-labels.npy").unlink()
    assert prepare(*words) == 0
    assert files(root) == before


def test_two_calls_at_once_do_not_write_one_directory(tmp_path, capsys):
    words = ("digits", "--resize", 4, "--data-dir", tmp_path)
    with copier._alone(tmp_path / "digits@4"):
        assert prepare(*words) == 5
    assert capsys.readouterr().err == (
        f"pit-jax: another process is writing {tmp_path}/digits@4: wait for it\n"
    )
    assert prepare(*words) == 0


@needs_root
def test_a_disk_that_fills_leaves_nothing_that_looks_whole(tmp_path):
    """Two processes; what they have finished stays, and is gone on with where there is room."""
    disk = tmp_path / "disk"
    command = f"{sys.executable} -m pit_jax.cli data prepare digits --resize 8 --split train"
    command += f" --shards 12 --workers 2 --data-dir {disk}"
    again = f"mount -o remount,size=9m {disk}; {command} | tail -1"
    script = f"{command} > /dev/null; echo $?; ls -A {disk}/digits@8; {again}"
    done = in_a_small_file_system(disk, script)
    code, *names = done.stdout.splitlines()
    assert code == "5", done.stderr
    (line,) = done.stderr.splitlines()
    assert "could not be written: write() failed: No space left on device" in line
    assert "copy.json" in names
    assert not [name for name in names if name.endswith((".tmp", ".npy"))]
    assert names[-1].startswith("train on them with")


@pytest.fixture
def broken(tmp_path):
    """Four images in two classes, of which one is cut off and one is no image."""
    images = [png(noise(9, 12, 3, seed=seed)) for seed in range(4)]
    photo = photographs(60, 80, 1)[0]
    names = ("train/a/0.png", "train/a/1.jpg", "train/b/2.png", "train/b/3.png")
    contents = (images[0], photo[: len(photo) // 2], b"no image", images[3])
    folder(tmp_path, dict(zip(names, contents, strict=True)))
    return tmp_path


def test_a_broken_image_ends_it_in_one_line(broken, capsys):
    assert prepare("folder", "--resize", 8, "--data-dir", broken) == 5
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"pit-jax: {broken}/train/a/1.jpg cannot be decoded (")
    assert line.endswith("); --skip-corrupt leaves such images out")
    assert {path.name for path in (broken / "folder@8").iterdir()} == {"copy.json"}


@pytest.mark.parametrize("workers", [1, 2])
def test_broken_images_are_left_out_where_that_is_asked_for(broken, data, capsys, workers):
    words = ["folder", "--resize", "8", "--data-dir", str(broken), "--skip-corrupt"]
    assert cli.run(["data", "prepare", *words, "--shards", "2", "--workers", str(workers)]) == 0
    said = capsys.readouterr()
    assert sorted(line.partition(" (")[0] for line in said.err.splitlines()) == [
        f"skipped a corrupt image: {broken}/train/a/1.jpg",
        f"skipped a corrupt image: {broken}/train/b/2.png",
    ]
    assert "2 of them could not be decoded and were left out" in said.out
    copy = opened(data, broken, "folder@8", channels=3, num_classes=2)
    assert (len(copy), list(copy.labels())) == (2, [0, 1])
    assert "2 images left out" in copy.copy


@pytest.mark.parametrize("workers", [1, 2])
def test_files_are_counted_by_what_they_are_whatever_their_name(tmp_path, capsys, workers):
    folder = tmp_path / "train" / "a"
    folder.mkdir(parents=True)
    made = [("RGB", "jpeg"), ("RGB", "jpeg"), ("L", "jpeg"), ("CMYK", "jpeg"), ("RGB", "png")]
    for number, (mode, kind) in enumerate(made):
        Image.new(mode, (12, 10)).save(folder / f"{number}.JPEG", kind)
    words = ["--data-dir", tmp_path, "--shards", 2, "--workers", workers]
    assert prepare("folder", "--resize", 8, *words) == 0
    expected = "by their bytes: 2 JPEG, 1 greyscale JPEG, 1 CMYK JPEG, 1 PNG"
    (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("by their")]
    assert sorted(line.partition(": ")[2].split(", ")) == sorted(
        expected.partition(": ")[2].split(", ")
    )


def test_what_only_the_disk_does_not_give_is_not_left_out(broken, capsys):
    (broken / "train" / "a" / "1.jpg").unlink()
    (broken / "train" / "a" / "1.jpg").symlink_to("nowhere")
    assert prepare("folder", "--resize", 8, "--data-dir", broken, "--skip-corrupt") == 5
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"pit-jax: {broken}/train/a/1.jpg cannot be read: No such file or directory"


def test_images_smaller_than_the_copy_are_enlarged_and_counted(tmp_path, data, capsys):
    images = {f"train/a/{n}.png": png(noise(5, n, 3)) for n in (1, 4, 20)}
    folder(tmp_path, images | {"train/b/0.png": png(noise(40, 40, 3))})
    assert prepare("folder", "--resize", 8, "--data-dir", tmp_path) == 0
    assert "3 of them were smaller than 8 × 8 and were enlarged" in capsys.readouterr().out
    assert len(opened(data, tmp_path, "folder@8", channels=3, num_classes=2)) == 4


def test_labels_outside_the_class_count_are_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sources.Digits, "num_classes", 9)
    assert prepare("digits", "--resize", 4, "--data-dir", tmp_path) == 2
    assert capsys.readouterr().err == (
        "pit-jax: example 1 of digits/train has label 9, but digits/train counts 9 classes\n"
    )
    assert {path.name for path in (tmp_path / "digits@4").iterdir()} == {"copy.json"}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("digits --resize 4 --split trian", "digits has the splits train, test, not 'trian'"),
        ("digits --resize 9", "images of digits are 8 × 8 pixels: a copy at 9 × 9 would only"),
        ("digits --resize 0", "--resize 0: at least 1"),
        ("digits --resize 4 --shards 0", "--shards 0: at least 1"),
        ("digits --resize 4 --shards 9999", "1437 example(s) cannot be shared out to 9999 shards"),
        ("digits --squash", "--squash is for a copy: add --resize N"),
        ("digits --split train", "--split is for a copy: add --resize N"),
        ("digits@8 --resize 4", "digits@8 is no set of image files"),
        ("scenes --resize 4", "scenes is no set of image files"),
        ("digits --resize 4 --data-dir gs://b/d", "gs://b/d is no local directory"),
        ("digits --resize 4 --data-dir setup.cfg", "setup.cfg/digits@4 could not be written"),
        ("folder --resize 4 --data-dir none", "none: No such file or directory"),
        (f"tiny_digits --resize 4 --data-dir {TFDS} --split val", "has the splits test, train, no"),
        ("digits --resize 4 --config.data.name=x", "unexpected argument --config.data.name=x"),
    ],
)  # fmt: skip
def test_bad_words_are_refused_in_one_line(words, sentence, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert prepare(*words.split()) in (2, 5)
    (line,) = capsys.readouterr().err.splitlines()
    assert sentence in line


def test_a_folder_without_a_place_or_without_images_is_refused(tmp_path, capsys):
    assert prepare("folder", "--resize", 4) == 2
    assert "folder needs --data-dir" in capsys.readouterr().err
    assert prepare("folder", "--resize", 4, "--data-dir", tmp_path) == 2
    assert "holds no <split>/<class>/<image file>" in capsys.readouterr().err


def test_a_copy_of_another_set_is_not_gone_on_with(tmp_path, capsys):
    for name in ("a", "b"):
        folder(tmp_path / name, {"train/x/0.png": png(noise(9, 9, 3))})
    words = ("folder", "--resize", 8, "--out", tmp_path, "--data-dir")
    assert prepare(*words, tmp_path / "a") == 0
    assert prepare(*words, tmp_path / "b") == 2
    assert f"holds other resized images: source '{tmp_path}/a', not" in capsys.readouterr().err
    folder(tmp_path / "a", {"train/x/1.png": png(noise(9, 9, 3))})
    assert prepare(*words, tmp_path / "a") == 2
    assert "train holds other resized images: count 1, not 2" in capsys.readouterr().err
    manifest = json.loads((tmp_path / "folder@8" / "copy.json").read_text())
    assert manifest["splits"]["train"]["count"] == 1
