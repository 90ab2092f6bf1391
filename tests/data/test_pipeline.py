"""Batches are a function of the step, and every example comes exactly once."""

import collections
import contextlib
import itertools
import pathlib
import pickle
import threading

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from PIL import Image

from pit_jax.data import order, pipeline, sources
from pit_jax.data.resize import center_view, resize_center_crop
from pit_jax.errors import ConfigError, StorageError
from pit_jax.parallel import mesh as meshes


def sharding(devices: int = 8, **sizes: int) -> NamedSharding:
    shape = dict.fromkeys(meshes.AXES, 1) | (sizes or {"data": devices})
    mesh = meshes.make_mesh(shape, jax.devices()[:devices])
    return NamedSharding(mesh, meshes.batch_spec())


def labels_of(batches, count: int) -> np.ndarray:
    with contextlib.closing(batches):
        taken = list(itertools.islice(batches, count))
    return np.concatenate([np.asarray(b["label"]) for b in taken])


@pytest.fixture
def folder(tmp_path, tiny):
    """Nine pictures of different sizes in three classes; each is one flat colour."""
    for number in range(9):
        path = tmp_path / "train" / "abc"[number % 3] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        size = (20 + 3 * number, 30 - 2 * number)
        Image.new("RGB", size, (number * 25, 255 - number * 25, 10)).save(path)
    tiny.data.update(name="folder", dir=str(tmp_path), eval_split="train")
    tiny.data.update(image_size=8, channels=3, num_classes=3)
    return tiny.data


def test_an_epoch_holds_every_example_once_and_epochs_differ():
    epochs = [order.examples(7, 10, np.arange(10 * e, 10 * e + 10)) for e in range(3)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert not np.array_equal(epochs[0], epochs[1])
    assert not np.array_equal(epochs[0], order.examples(8, 10, np.arange(10)))


def test_batches_run_on_across_epochs():
    positions = np.arange(40)
    whole = order.examples(0, 10, positions)
    parts = [order.examples(0, 10, positions[i : i + 16]) for i in range(0, 40, 16)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert set(collections.Counter(whole).values()) == {4}


def test_any_number_of_processes_sees_the_same_batch(tiny):
    reader = pipeline.Reader(sources.load(tiny.data, "train"), tiny.data, train=True)
    whole = pipeline.TrainBatches(reader, 0, 32, np.arange(32))[5]
    for processes in (2, 4):
        parts = [
            pipeline.TrainBatches(reader, 0, 32, rows)[5]
            for rows in np.split(np.arange(32), processes)
        ]
        for name in whole:
            joined = np.concatenate([part[name] for part in parts])
            np.testing.assert_array_equal(joined, whole[name])


@pytest.mark.parametrize("held", [True, False])
def test_an_example_says_its_number_in_the_split(folder, held):
    """Whatever its place in the batch, and the same where one before it is left out."""
    root = pathlib.Path(folder.dir) / "train"
    (root / "a" / "0.png").write_bytes(b"no image")
    folder.update(corrupt="skip", in_memory_gb=4.0 * held)
    source = sources.load(folder, "train")
    reader = pipeline.Reader(source, folder, train=False)
    assert reader.held == held
    colour = {source[i][0][0, 0, 0]: i for i in range(1, 9)}
    batch = pipeline.EvalBatches(reader, 16, np.arange(16))[0]
    seen = batch["mask"] > 0
    assert seen.sum() == 8
    assert batch["index"].dtype == np.int32
    for number, image in zip(batch["index"][seen], batch["image"][seen], strict=True):
        assert colour[image[0, 0, 0]] == number
    trained = pipeline.TrainBatches(
        pipeline.Reader(source, folder, train=True), 0, 24, np.arange(24)
    )[0]
    for number, image in zip(trained["index"], trained["image"], strict=True):
        assert colour[image[0, 0, 0]] == number


def test_starting_at_a_step_gives_what_would_have_come(tiny):
    reader = pipeline.Reader(sources.load(tiny.data, "train"), tiny.data, train=True)
    data = pipeline.Pipeline(reader, sharding(), 64, 0)
    whole = labels_of(data.train(3, 0), 6)
    np.testing.assert_array_equal(labels_of(data.train(3, 4), 2), whole[4 * 64 :])


@pytest.mark.parametrize("sizes", [{"data": 8}, {"data": 2, "fsdp": 2, "model": 2}, {"model": 8}])
def test_rows_lie_on_the_devices_they_belong_to(sizes):
    layout = sharding(8, **sizes)
    rows = pipeline.local_rows(layout, 16)
    np.testing.assert_array_equal(rows, np.arange(16))
    images = np.arange(32, dtype=np.uint8).reshape(16, 2, 1, 1)
    batch = {"image": images, "label": np.arange(16, dtype=np.int32)}
    found = pipeline.to_devices(batch, rows, layout, 16)
    for name, values in batch.items():
        np.testing.assert_array_equal(found[name], values)
        assert found[name].sharding.is_equivalent_to(layout, values.ndim)


@pytest.mark.parametrize("batch_size", [64, 360, 512])
def test_evaluation_covers_every_example_once(tiny, batch_size):
    source = sources.load(tiny.data, "test")
    reader = pipeline.Reader(source, tiny.data, train=False)
    seen = []
    for batch in pipeline.Pipeline(reader, sharding(), batch_size, 0).evaluate():
        real = np.asarray(batch["mask"]) > 0
        seen += list(np.asarray(batch["label"])[real])
    assert seen == [source[i][1] for i in range(360)]


def test_images_of_other_sizes_are_resized_and_cut_for_evaluation(folder):
    source = sources.load(folder, "train")
    reader = pipeline.Reader(source, folder, train=False)
    assert reader.held
    batch = reader(np.arange(9), np.arange(9))
    assert batch["image"].shape == (9, 8, 8, 3)
    expected = resize_center_crop(source[4][0], 8)
    np.testing.assert_array_equal(batch["image"][4], expected)


def test_resized_crops_of_other_sizes_are_taken_on_the_host(folder, tiny):
    """From the whole image, by (seed, position) alone; the device then crops no more."""
    folder.augmentation.crop = "resized"
    source = sources.load(folder, "train")
    reader = pipeline.Reader(source, folder, train=True, seed=1)
    assert not reader.held
    one, again = (reader(np.array([3]), np.array([70]))["image"] for _ in range(2))
    np.testing.assert_array_equal(one, again)
    assert pipeline.device_config(tiny, source).data.augmentation.crop == "none"
    folder.image_size, digits = 8, tiny.copy_and_resolve_references()
    digits.data.update(name="digits", num_classes=10)
    kept = pipeline.device_config(digits, sources.load(digits.data, "train"))
    assert kept.data.augmentation.crop == "resized"


@pytest.mark.parametrize(("workers", "damage"), [(0, False), (2, False), (0, True)])
def test_streaming_equals_memory(folder, workers, damage):
    """Also the places of what is broken: what takes its place, and what an evaluation masks."""
    if damage:
        folder.corrupt = "skip"
        for name in ("b/4", "b/7", "c/8"):
            broken(folder, name)
    held = pipeline.Reader(sources.load(folder, "train"), folder, train=True)
    folder.in_memory_gb = 0.0
    streamed = pipeline.Reader(sources.load(folder, "train"), folder, train=True)
    assert held.held
    assert not streamed.held
    for reader in (held, streamed):
        data = pipeline.Pipeline(reader, sharding(2), 4, workers if reader is streamed else 0)
        with contextlib.closing(data.train(0, 2)) as batches:
            taken = [jax.device_get(b) for b in itertools.islice(batches, 5)]
        evaluated = [jax.device_get(b) for b in data.evaluate()]
        if reader is held:
            expected = taken + evaluated
    for one, other in zip(expected, taken + evaluated, strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, other)


def broken(folder, name: str = "b/4") -> str:
    path = f"{folder.dir}/train/{name}.png"
    with open(path, "r+b") as file:
        file.truncate(60)
    return path


def test_a_corrupt_image_is_refused_by_name(folder):
    path = broken(folder)
    with pytest.raises(StorageError, match=r"train/b/4\.png cannot be decoded .*corrupt=skip") as e:
        pipeline.Reader(sources.load(folder, "train"), folder, train=True)
    assert path in str(e.value)


@pytest.mark.parametrize("held", [True, False])
def test_a_corrupt_image_is_skipped_and_counted_if_the_config_says_so(folder, held):
    path = broken(folder)
    folder.update(corrupt="skip", in_memory_gb=1.0 if held else 0.0)
    reader = pipeline.Reader(sources.load(folder, "train"), folder, train=True)
    data = pipeline.Pipeline(reader, sharding(2), 4, 0)
    examples = sum(float(np.asarray(b["mask"]).sum()) for b in data.evaluate())
    assert examples == 8
    with contextlib.closing(data.train(0, 0)) as batches:
        for batch in itertools.islice(batches, 5):
            assert (np.asarray(batch["image"]).sum((1, 2, 3)) > 0).all()
    assert pipeline.skipped(reader) == f"{folder.dir}/train: 1 corrupt image(s) skipped: {path}"


@pytest.mark.parametrize("train", [True, False])
def test_what_a_worker_process_skips_is_counted_here(folder, train):
    """A worker's source is a copy of its own; the batch brings the number along."""
    path = broken(folder)
    folder.update(corrupt="skip", in_memory_gb=0.0)
    reader = pipeline.Reader(sources.load(folder, "train"), folder, train=train)
    worker = pickle.loads(pickle.dumps(reader))
    if train:
        batches = pipeline.TrainBatches(worker, 0, 9, np.arange(9))
    else:
        batches = pipeline.EvalBatches(worker, 12, np.arange(12))
    batch = batches[0]
    assert batch["corrupt"] == [4]
    assert reader.source.corrupt == []
    for _ in range(2):  # once, however often it comes up
        reader.note_corrupt(batch["corrupt"])
    assert pipeline.skipped(reader) == f"{folder.dir}/train: 1 corrupt image(s) skipped: {path}"


def refusal(folder, **fields) -> str:
    folder.update(corrupt="skip", **fields)
    source = sources.load(folder, "train", labelled=folder.num_classes > 1)
    with pytest.raises(ConfigError) as caught:
        pipeline.Reader(source, folder, train=fields.get("train", True))
    return str(caught.value)


@pytest.mark.parametrize("gigabytes", [0.0, 1.0])
def test_a_set_that_is_mostly_broken_is_refused(folder, gigabytes):
    """Before it is trained on, or divided by in an evaluation; streamed or held."""
    names = ["a/0", "b/1", "c/2", "a/3", "b/4"]
    for name in names:
        broken(folder, name)
    expected = "is mostly broken: of 9 images tried 5 cannot be decoded"
    assert expected in refusal(folder, in_memory_gb=gigabytes)
    for name in ("c/5", "a/6", "b/7", "c/8"):
        broken(folder, name)
    expected = "holds no image that can be read: of 9 images tried 9 cannot be decoded"
    assert expected in refusal(folder, in_memory_gb=gigabytes)


@pytest.mark.parametrize("gigabytes", [0.0, 1.0])
def test_a_class_that_is_all_broken_is_refused_where_labels_are_read(folder, gigabytes):
    for name in ("b/1", "b/4", "b/7"):
        path = broken(folder, name)
    message = refusal(folder, in_memory_gb=gigabytes)
    assert f"holds no image that can be read of class 1 ({folder.dir}/train/b/1.png)" in message
    source = sources.load(folder, "train", labelled=False)
    assert len(pipeline.Reader(source, folder, train=True)) == 9
    Image.new("RGB", (9, 9)).save(path)
    source = sources.load(folder, "train")
    assert len(pipeline.Reader(source, folder, train=True)) == 9


def test_a_set_that_breaks_while_it_is_trained_on_is_refused(folder, monkeypatch):
    folder.update(corrupt="skip", in_memory_gb=0.0)
    reader = pipeline.Reader(sources.load(folder, "train"), folder, train=True)
    batches = pipeline.TrainBatches(reader, 0, 9, np.arange(9))
    names = [reader.source.example_name(i)[len(folder.dir) + 7 : -4] for i in range(9)]
    for name in names[1:]:
        broken(folder, name)
    assert len(np.unique(batches[0]["image"], axis=0)) == 1  # the one that is left
    broken(folder, names[0])
    with pytest.raises(ConfigError, match="holds no image that can be read"):
        batches[1]
    monkeypatch.setattr(pipeline, "_WHOLE_BATCH", 9)
    with pytest.raises(ConfigError, match="no image of a whole batch of "):
        batches[0]


@pytest.mark.parametrize("crop", ["none", "pad", "resized"])
@pytest.mark.parametrize("share", [0.5, 1.0])
def test_in_order_training_images_are_seen_as_an_evaluation_sees_them(folder, crop, share):
    """What probes of a run in training read, and `pit-jax eval` of its checkpoint."""
    folder.augmentation.crop, folder.eval_crop = crop, share
    noise = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(noise).save(f"{folder.dir}/train/a/0.png")
    source, rows = sources.load(folder, "train"), np.arange(9)
    during = pipeline.in_order(pipeline.Reader(source, folder, train=True), folder)
    afterwards = pipeline.Reader(source, folder, train=False)
    one, other = (reader(rows, rows) for reader in (during, afterwards))
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_an_evaluation_keeps_the_share_of_the_shorter_side_that_it_is_told(folder):
    """Not so training: it sees whole images where nothing is cropped at random."""
    folder.eval_crop = 0.5
    source = sources.load(folder, "train")
    for train, keep in ((True, 1.0), (False, 0.5)):
        reader = pipeline.Reader(source, folder, train=train)
        assert reader.chooser()((40, 60)) == center_view((40, 60), 8, keep)


def test_an_error_in_the_background_reaches_the_caller(folder):
    folder.in_memory_gb = 0.0
    broken(folder)
    reader = pipeline.Reader(sources.load(folder, "train"), folder, train=True)
    with pytest.raises(StorageError, match=r"4\.png cannot be decoded"):
        labels_of(pipeline.Pipeline(reader, sharding(2), 4, 0).train(0, 0), 5)


@pytest.mark.parametrize("held", [False, True])
def test_labels_outside_the_class_count_are_refused(folder, held):
    source = sources.load(folder, "train")  # counts the class folders itself; tfds does not
    folder.update(num_classes=2, in_memory_gb=4.0 if held else 0.0)

    def read() -> None:
        reader = pipeline.Reader(source, folder, train=True)
        labels_of(pipeline.Pipeline(reader, sharding(2), 4, 0).train(0, 0), 5)

    with pytest.raises(ConfigError, match=r"to 2, but config\.data\.num_classes=2"):
        read()


def test_closing_leaves_no_thread_behind(tiny):
    """One that is inside JAX when the interpreter ends would take the process down."""
    reader = pipeline.Reader(sources.load(tiny.data, "train"), tiny.data, train=True)
    data = pipeline.Pipeline(reader, sharding(), 64, 0)
    labels_of(data.train(0, 0), 3)
    next(iter(data.evaluate()))
    assert not [thread for thread in threading.enumerate() if thread.name == "input"]
