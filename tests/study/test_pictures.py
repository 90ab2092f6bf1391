"""What the demo draws: the right numbers, in a picture that opens."""

import numpy as np
import pytest
from PIL import Image

from pit_jax.errors import StorageError
from pit_jax.study import pictures


def test_similarity_maps_are_cosines():
    positions = np.random.default_rng(0).normal(size=(9, 5))
    maps = pictures.similarity_maps(positions)
    a, b = positions[4], positions[2]
    expected = a @ b / (np.linalg.norm(a) * np.linalg.norm(b))
    assert maps[1, 1, 0, 2] == pytest.approx(expected)
    np.testing.assert_allclose([maps[r, c, r, c] for r in range(3) for c in range(3)], 1)


def test_neighbours_stand_out_where_positions_know_the_grid():
    side = 8
    rows, columns = np.mgrid[:side, :side].reshape(2, -1)
    angles = np.stack([rows, columns], 1) * (np.pi / side)
    aware = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    near, far = pictures.neighbour_similarity(pictures.similarity_maps(aware))
    assert near > 0.9
    assert far < 0.5
    blind = np.random.default_rng(0).normal(size=(64, 64))
    near, far = pictures.neighbour_similarity(pictures.similarity_maps(blind))
    assert abs(near - far) < 0.1


def rows(offset: float) -> list[dict]:
    found = [{"step": s, "train/loss": offset / s} for s in range(1, 5)]
    return [*found, {"step": 5, "eval/accuracy": 0.9}, {"event": "resume", "step": 5}]


def test_the_demo_picture_is_drawn(tmp_path):
    positions = np.random.default_rng(0).normal(size=(64, 16))
    path = tmp_path / "demo.png"
    pictures.demo({"PiT": rows(1), "ViT/2": rows(2)}, positions, path)
    with Image.open(path) as image:
        assert image.size[0] > 1000
        assert len(image.convert("RGB").getcolors(1 << 24)) > 100


def test_a_picture_that_cannot_be_written_is_one_line(tmp_path):
    with pytest.raises(StorageError, match="could not be written"):
        pictures.demo({"PiT": rows(1)}, np.eye(4), tmp_path / "none" / "demo.png")
