"""Where images come from, and the sentences that say what is missing."""

import os
import pathlib
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from pit_jax import installation
from pit_jax.data import copier, known, latent_writer, latents, pipeline, sources
from pit_jax.data.resize import center_view, resize_center_crop
from pit_jax.errors import ConfigError, StorageError
from pit_jax.evals import probes
from pit_jax.models.normalisation import Normalisation

TFDS = "tests/fixtures/tfds"
LAYOUT = "config.data.dir should hold <split>/<class>/<image file>"


@pytest.fixture
def data(tiny):
    tiny.data.update(name="tiny_digits", dir=TFDS, num_classes=4, channels=3)
    return tiny.data


def refused(data, split: str = "train") -> str:
    with pytest.raises(ConfigError) as caught:
        sources.load(data, split)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_digits_are_split_once_and_for_all(tiny):
    train, test = (sources.load(tiny.data, split) for split in ("train", "test"))
    assert (len(train), len(test)) == (1437, 360)
    image, label = test[0]
    assert (image.shape, image.dtype, label) == ((8, 8, 1), np.uint8, 6)
    assert {label for _, label in (test[i] for i in range(360))} == set(range(10))
    everything = {train[i][0].tobytes() for i in range(1437)}
    from sklearn.datasets import load_digits

    assert image.max() == 255
    assert len(everything | {test[i][0].tobytes() for i in range(360)}) == len(
        {x.tobytes() for x in load_digits().images}
    )


def test_a_prepared_set_is_read_without_tensorflow(data):
    """Pixels and labels against scikit-learn's arrays, from which the fixture was made."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    wanted = np.flatnonzero(digits.target < 4)[:60]
    expected = {}
    for number in wanted:
        grey = np.round(digits.images[number] * 255 / 16).astype(np.uint8)
        image = np.stack([grey, 255 - grey, grey // 2], axis=-1)
        expected[image.tobytes()] = digits.target[number]
    source = sources.load(data, "train")
    assert source.native_shape == (8, 8)
    assert {source[i][0].tobytes(): source[i][1] for i in range(len(source))} == expected
    assert "tensorflow" not in sys.modules


def test_parts_of_a_split_can_be_named(data):
    assert len(sources.load(data, "train[:25%]")) == 15


def test_pictures_of_all_sizes(data):
    data.update(name="tiny_photos", num_classes=2)
    source = sources.load(data, "train")
    assert source.native_shape is None
    shapes = {source[i][0].shape for i in range(12)}
    assert len(shapes) == 12
    data.image_size = 16
    reader = pipeline.Reader(source, data, train=False)
    assert reader(np.arange(12), np.arange(12))["image"].shape == (12, 16, 16, 3)


def test_colour_sets_are_read_in_grey_if_asked(data):
    data.channels = 1
    assert sources.load(data, "train")[0][0].shape == (8, 8, 1)


@pytest.mark.parametrize(
    ("fields", "split", "sentence"),
    [
        ({}, "trian", "tiny_digits has the splits test, train, not 'trian'"),
        ({}, "train[:x]", "tiny_digits has the splits test, train, not 'train[:x]'"),
        ({"num_classes": 10}, "train", "num_classes=10, but tiny_digits/train has 4 classes"),
        ({"name": "digits"}, "validation", "digits has the splits train and test"),
        ({"name": "cifar100"}, "train", f"`pit-jax data prepare cifar100 --data-dir {TFDS}`"),
        ({"name": "cifar100"}, "train", "Prepare it (0.13 GB) with"),
        ({"name": "cifar-100"}, "train", "(did you mean cifar100?)"),
        ({"name": "folder", "dir": "none"}, "train", "folder none/train: No such file"),
        ({"name": "folder", "dir": TFDS}, "tiny_digits/1.0.0", "folder"),
    ],
)  # fmt: skip
def test_what_is_not_there_is_said_in_one_line(data, fields, split, sentence):
    data.update(**fields)
    assert sentence in refused(data, split)


def test_a_set_in_another_format_or_half_written_is_refused(data, tmp_path):
    shutil.copytree(TFDS, tmp_path, dirs_exist_ok=True)
    data.dir = str(tmp_path)
    info = tmp_path / "tiny_digits" / "1.0.0" / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    assert "is in tfrecord format, which needs TensorFlow: prepare it as Arr" in refused(data)
    info.write_text("{")
    assert "cannot be read" in refused(data)


def test_a_set_of_float_images_is_refused(data, tmp_path):
    """TensorFlow Datasets keeps each float as the four bytes of a PNG's colours and opacity."""
    shutil.copytree(TFDS, tmp_path, dirs_exist_ok=True)
    data.dir = str(tmp_path)
    features = tmp_path / "tiny_digits" / "1.0.0" / "features.json"
    text = features.read_text().replace('"uint8"', '"float32"')
    features.write_text(text.replace('"3"', '"1"'))
    assert "images of tiny_digits are of float32 levels, whose range is not known" in refused(data)


def test_the_environment_names_the_default_directory(data, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", TFDS)
    data.dir = ""
    assert len(sources.load(data, "test")) == 20


def folder(data, root, names=("a", "b")) -> None:
    data.update(name="folder", dir=str(root), num_classes=len(names))
    for split in ("train", "test"):
        for number, name in enumerate(names):
            path = root / split / name
            path.mkdir(parents=True)
            Image.new("RGB", (9, 7), (10 * number, 0, 0)).save(path / "x.PNG")
            (path / "notes.txt").write_text("no image")


def test_folders_are_classes(data, tmp_path):
    folder(data, tmp_path)
    source = sources.load(data, "test")
    assert [source[i][1] for i in range(len(source))] == [0, 1]
    assert source[1][0].shape == (7, 9, 3)
    (tmp_path / "test" / "c").mkdir()
    assert "has a class folder 'c', which" in refused(data, "test")


def files_in(folder: pathlib.Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("L", (3, 3)).save(folder / name, "PNG")


def test_what_a_folder_holds_beside_its_images_is_said(data, tmp_path):
    """One line a kind: how much, and an example; hidden folders are no classes."""
    folder(data, tmp_path, ("a", "b", "none"))
    train = tmp_path / "train"
    (train / "none" / "x.PNG").unlink()
    for name in (".ipynb_checkpoints", "__MACOSX"):
        files_in(train / name, "x.png")
    files_in(train / "a", "._x.png", ".DS_Store", "y.tif", "z.TIF")
    files_in(train / "b" / "more", "1.png", "2.jpg", "notes")
    files_in(train, "loose.png")
    source = sources.load(data, "train")
    assert (len(source), source.num_classes) == (2, 3)
    assert source.passed_over == [
        f"{train}: hidden folders passed over: 2, such as .ipynb_checkpoints",
        f"{train}: images outside of class folders passed over: 1, such as loose.png",
        f"{train}: hidden images passed over: 1, such as a/._x.png",
        f"{train}: files of other suffixes passed over: 5, such as a/notes.txt",
        f"{train}: images in folders of class folders passed over: 2, such as b/more/1.png",
        f"{train} has no image of 1 of its 3 classes, such as none",
    ]
    assert sources.training(data).passed_over == source.passed_over
    assert sources.Part(source, [0]).passed_over == source.passed_over


def test_the_number_of_classes_is_explained_by_what_was_passed_over(data, tmp_path):
    folder(data, tmp_path, ("a", "b", "none"))
    files_in(tmp_path / "train" / ".thumbs", "x.png")
    (tmp_path / "train" / "none" / "x.PNG").unlink()
    data.num_classes = 2
    message = refused(data)
    assert "num_classes=2, but" in message
    assert "has 3 classes; " in message
    assert "hidden folders passed over: 1, such as .thumbs" in message
    assert message.endswith("has no image of 1 of its 3 classes, such as none")


def test_a_class_that_one_split_lacks_is_said(data, tmp_path):
    folder(data, tmp_path)
    shutil.rmtree(tmp_path / "test" / "b")
    assert sources.load(data, "train").passed_over == [
        f"{tmp_path}/train: files of other suffixes passed over: 2, such as a/notes.txt"
    ]
    lines = sources.load(data, "test").passed_over
    assert lines[-1] == f"{tmp_path}/test has no image of 1 of its 2 classes, such as b"


def test_class_folders_one_level_deeper_are_named_as_the_split_to_write(data, tmp_path):
    data.update(name="folder", dir=str(tmp_path), num_classes=2)
    for name in ("a", "b"):
        files_in(tmp_path / "train" / "images" / name, "1.png")
    assert "the class folders seem to lie in train/images, name that as split" in refused(data)
    data.split = "train/images"
    assert len(sources.load(data, data.split)) == 2


def test_images_without_classes_are_read_where_nobody_reads_labels(data, tmp_path):
    data.update(name="folder", dir=str(tmp_path), num_classes=1)
    files_in(tmp_path / "train", "1.png", "2.png", "._2.png", "notes.txt")
    source = sources.load(data, "train")
    assert [source[i][1] for i in range(len(source))] == [0, 0]
    assert source.example_name(1) == f"{tmp_path}/train/2.png"
    assert len(source.passed_over) == 2
    data.num_classes = 7
    assert "num_classes=7, but" in refused(data)
    for labelled in (False, None):  # None: probes alone would read them
        source = sources.load(data, "train", labelled)
        assert probes.possible(["loss", "knn", "linear"], source) == ["loss"]
    folder(data, tmp_path / "more")
    source = sources.load(data, "train", None)
    assert probes.possible(["loss", "knn"], source) == ["loss", "knn"]
    data.num_classes = 7
    with pytest.raises(ConfigError, match="num_classes=7, but"):
        sources.load(data, "train", None)


@pytest.mark.parametrize("held", [True, False])
def test_any_number_of_classes_will_do_where_nobody_reads_labels(data, tmp_path, held):
    folder(data, tmp_path, ("a", "b", "c"))
    data.update(num_classes=1, image_size=8, in_memory_gb=float(held))
    assert "has 3 classes" in refused(data)
    reader = pipeline.Reader(sources.load(data, "train", labelled=False), data, train=True)
    assert sorted(reader(np.arange(3), np.arange(3))["label"]) == [0, 1, 2]


def test_a_folder_of_images_without_splits_says_how_to_read_it(data, tmp_path):
    files_in(tmp_path, "1.png", "2.png")
    data.update(name="folder", dir=str(tmp_path), num_classes=1)
    assert f"{tmp_path} itself holds images: to read those write '.' as the split" in refused(data)
    data.split = "."
    assert len(sources.load(data, ".")) == 2
    files_in(tmp_path / "val" / "a", "1.png")
    data.split = "train"
    assert f"No such file or directory; {LAYOUT}. {tmp_path} holds val" in refused(data)


def test_folders_that_may_not_be_read_are_told_in_one_line(data, tmp_path, monkeypatch):
    """Root may read everything: scandir is told to be another user's."""
    folder(data, tmp_path)
    real = os.scandir

    def scandir(path):
        if pathlib.Path(path).name == denied:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    for denied in ("train", "b"):
        with pytest.raises(StorageError, match=rf"{denied} cannot be read: Permission denied$"):
            sources.load(data, "train")
        with pytest.raises(StorageError, match="cannot be read"):
            copier.copy("folder", 4, directory=str(tmp_path), workers=1)


def test_empty_folders_are_refused(data, tmp_path):
    folder(data, tmp_path)
    (tmp_path / "train" / "a" / "x.PNG").unlink()
    (tmp_path / "train" / "b" / "x.PNG").unlink()
    assert "holds no images" in refused(data)


def test_an_image_that_the_disk_does_not_give_is_not_taken_for_corrupt(data, tmp_path):
    """It would be another training set, and another one tomorrow."""
    folder(data, tmp_path)
    data.corrupt = "skip"
    source = sources.load(data, "train")
    pathlib.Path(source.example_name(0)).unlink()
    with pytest.raises(StorageError, match=r"train/a/.* cannot be read: No such file"):
        source[0]


def test_a_large_folder_is_sent_to_processes_quickly(data, tmp_path):
    """A list of paths would be some 200 bytes an image, in every worker."""
    folder(data, tmp_path)
    one = (tmp_path / "train" / "a" / "x.PNG").read_bytes()
    before = len(pickle.dumps(sources.load(data, "train")))
    for number in range(300):
        (tmp_path / "train" / "b" / f"n01440764_{number}.png").write_bytes(one)
    after = len(pickle.dumps(sources.load(data, "train")))
    assert (after - before) / 300 < 40


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "RGBA", "LA", "1", "I;16"])
def test_every_kind_of_picture_becomes_rgb(data, tmp_path, mode):
    folder(data, tmp_path)
    for suffix in ("x.PNG", "x.jpg"):
        (tmp_path / "train" / "a" / suffix).unlink(missing_ok=True)
    suffix = "jpg" if mode == "CMYK" else "png"
    Image.new(mode, (5, 5)).save(tmp_path / "train" / "a" / f"x.{suffix}")
    image, _ = sources.load(data, "train")[0]
    assert (image.shape, image.dtype) == ((5, 5, 3), np.uint8)
    if mode in ("RGBA", "LA"):  # transparent: white shows through
        assert image.min() == 255


def test_a_corrupt_picture_is_refused_or_skipped(data, tmp_path, capsys):
    folder(data, tmp_path)
    path = tmp_path / "train" / "a" / "x.PNG"
    path.write_bytes(b"no picture")
    with pytest.raises(StorageError, match=r"a/x\.PNG cannot be decoded"):
        sources.load(data, "train")[0]
    data.corrupt = "skip"
    source = sources.load(data, "train")
    assert source[0] is None
    assert source.corrupt == [str(path)]
    assert f"skipped a corrupt image: {path}" in capsys.readouterr().err


def test_a_view_is_the_same_view_of_the_whole_image(data, tmp_path):
    folder(data, tmp_path)
    data.dir, data.name, data.num_classes = TFDS, "tiny_photos", 2
    photos = sources.load(data, "train")
    data.update(dir=str(tmp_path), name="folder")
    for source in (photos, sources.load(data, "train"), sources.Part(photos, [3, 1])):
        for number in range(2):
            image, label = source[number]
            view, same = source.view(number, lambda shape: center_view(shape, 16))
            np.testing.assert_array_equal(view, resize_center_crop(image, 16))
            assert label == same


def test_a_broken_record_is_refused_or_skipped_by_its_number(data, tmp_path, capsys):
    """One byte of the first photograph's pixels: ArrayRecord's own checksum notices."""
    shutil.copytree(TFDS, tmp_path, dirs_exist_ok=True)
    (path,) = (tmp_path / "tiny_photos" / "1.0.0").glob("*array_record*")
    content = bytearray(path.read_bytes())
    content[content.index(b"\xff\xd8\xff") + 500] ^= 0x55
    path.write_bytes(content)
    data.update(name="tiny_photos", dir=str(tmp_path), num_classes=2, image_size=16)
    with pytest.raises(
        StorageError, match=r"^example 0 of tiny_photos/train cannot be decoded"
    ) as e:
        sources.load(data, "train")[0]
    assert "\n" not in str(e.value)
    with pytest.raises(StorageError, match="example 0 of"):
        sources.load(data, "train").labels()
    data.corrupt = "skip"
    source = sources.load(data, "train")
    assert [source[i] is None for i in range(3)] == [True, False, False]
    assert list(source.labels()[:3]) == [-1, 1, 0]
    assert source.corrupt == ["example 0 of tiny_photos/train"]
    assert "skipped a corrupt image: example 0 of" in capsys.readouterr().err


def test_sizes_are_known_without_the_data(data):
    data.name = "imagenet2012:5.1.0"
    assert sources.num_examples(data, "train") == 1_281_167
    data.name = "my_own"
    assert sources.num_examples(data, "train") is None
    assert known.KNOWN["digits"].splits["test"] == 360


def test_sizes_of_latents_are_those_of_their_store_or_of_the_set_they_are_of(data, tmp_path):
    data.update(name="latents", dir=str(tmp_path))
    assert sources.num_examples(data, "train") is None
    data.latents_of = "imagenet2012"
    assert sources.num_examples(data, "train") == 1_281_167
    shape = (2, 2, 1)
    facts = ("mine", 8, 10, shape, 1, "small", "0" * 64, Normalisation())
    latent_writer.Writer(tmp_path, latents.Manifest(*facts), "train", 7, 2)
    assert sources.num_examples(data, "train") == 7  # what is here counts
    assert sources.num_examples(data, "validation") is None


def test_preparing_needs_tensorflow_and_says_so():
    program = (
        "import sys; sys.modules['tensorflow'] = None\n"
        "from pit_jax.data.prepare import prepare\n"
        "try:\n    prepare('cifar100')\nexcept Exception as e:\n    print(type(e).__name__, e)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert installation.extra("prepare") in done.stdout, done.stderr
    assert done.stdout.startswith("ConfigError")
