"""Repeated augmentation: each image several times in a batch, none forgotten."""

import collections

import jax
import numpy as np
import pytest

from pit_jax.data import order, pipeline, sources

from .augmented import run


@pytest.mark.parametrize("repeats", [1, 2, 3, 5])
@pytest.mark.parametrize("batch", [12, 10, 7])
def test_after_as_many_passes_each_has_come_so_many_times(repeats, batch):
    """Whatever the batch size, and at places one after the other."""
    positions = np.arange(10 * repeats)
    parts = [
        order.examples(7, 10, positions[i : i + batch], repeats)
        for i in range(0, len(positions), batch)
    ]
    found = np.concatenate(parts)
    assert collections.Counter(found) == dict.fromkeys(range(10), repeats)
    np.testing.assert_array_equal(found, np.repeat(found[::repeats], repeats))
    np.testing.assert_array_equal(found[::repeats], order.examples(7, 10, np.arange(10)))
    later = order.examples(7, 10, positions + len(positions), repeats)
    assert collections.Counter(later) == collections.Counter(found)
    assert not np.array_equal(later, found)


def test_a_batch_holds_each_of_its_images_three_times():
    for step in range(20):  # across the border of a pass too, which 64 does not divide
        batch = order.examples(3, 100, 48 * step + np.arange(48), 3)
        counts = collections.Counter(batch)
        # Two passes meet in a batch, and by chance an image may stand in both.
        assert set(counts.values()) <= {3, 6}
        if 48 * step % 300 <= 252:
            assert set(counts.values()) == {3}


def test_an_epoch_is_a_third_of_the_images_and_the_next_two_are_the_others():
    """DeiT's epochs are as long, but draw their third anew each time."""
    epochs = [set(order.examples(0, 90, 90 * e + np.arange(90), 3)) for e in range(3)]
    assert [len(epoch) for epoch in epochs] == [30, 30, 30]
    assert set.union(*epochs) == set(range(90))


@pytest.fixture
def reader(tiny) -> pipeline.Reader:
    tiny.data.augmentation.repeats = 3
    return pipeline.Reader(sources.load(tiny.data, "train"), tiny.data, train=True)


def test_any_number_of_processes_sees_the_same_repeated_batch(reader):
    whole = pipeline.TrainBatches(reader, 0, 24, np.arange(24))[5]
    for processes in (2, 4):
        rows = np.split(np.arange(24), processes)
        parts = [pipeline.TrainBatches(reader, 0, 24, own)[5] for own in rows]
        for name in whole:
            joined = np.concatenate([part[name] for part in parts])
            np.testing.assert_array_equal(joined, whole[name])
    images = whole["image"].reshape(8, 3, -1)
    np.testing.assert_array_equal(images, np.repeat(images[:, :1], 3, 1))
    assert len(np.unique(images[:, 0], axis=0)) == 8


def test_the_copies_are_augmented_differently(reader):
    stored = pipeline.TrainBatches(reader, 0, 24, np.arange(24))[0]["image"]
    images, _ = run(stored, jax.random.key(2), crop="pad", pad=2, flip=0.5)
    different = [len(np.unique(np.round(copies), axis=0)) for copies in np.split(images, 8)]
    assert np.mean(different) > 2.5


def test_an_evaluation_repeats_nothing(tiny):
    tiny.data.augmentation.repeats = 3
    reader = pipeline.Reader(sources.load(tiny.data, "test"), tiny.data, train=False)
    labels = pipeline.EvalBatches(reader, 24, np.arange(24))[0]["label"]
    np.testing.assert_array_equal(labels, [reader.source[i][1] for i in range(24)])
