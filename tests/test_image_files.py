"""Generated images as files: which are there, whole, and of the right shape."""

import threading

import numpy as np
from etils import epath

from pit_jax import image_files

COUNT, SHAPE = 5, (8, 8, 1)


def test_images_are_read_back_several_at_a_time(tmp_path, monkeypatch):
    target = epath.Path(tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (COUNT - 1, *SHAPE)).astype(np.uint8)
    image_files.write(target, np.arange(COUNT - 1), images)
    together = threading.Barrier(COUNT - 1, timeout=20)
    is_image = image_files._is_image

    def meeting(path, shape):
        together.wait()  # raises unless all are here at once
        return is_image(path, shape)

    monkeypatch.setattr(image_files, "_is_image", meeting)
    assert image_files.intact(target, COUNT, SHAPE).tolist() == [True] * 4 + [False]
    monkeypatch.undo()
    assert not image_files.intact(target, COUNT, (8, 8, 3)).any()  # grey ones are none in colour
    found = image_files.read(image_files.path_of(target, 2))
    np.testing.assert_array_equal(found, images[2].repeat(3, -1))
