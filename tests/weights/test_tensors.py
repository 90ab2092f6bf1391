"""Files of weights: whole or refused."""

import errno
import json

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from etils import epath

from pit_jax.errors import ConfigError, StorageError
from pit_jax.weights import tensors

TREE = {"a": {"b": np.arange(6.0, dtype=np.float32).reshape(2, 3)}, "c": np.ones(2, np.float32)}


def test_a_tree_is_flattened_and_built_again():
    flat = tensors.flatten(TREE)
    assert list(flat) == ["a/b", "c"]
    np.testing.assert_array_equal(tensors.unflatten(flat)["a"]["b"], TREE["a"]["b"])


def test_fields_travel_with_the_tensors(tmp_path):
    path = tmp_path / "x.safetensors"
    tensors.write(path, tensors.flatten(TREE), {"model.width": 8})
    found, fields = tensors.read(path)
    assert fields == {"model.width": 8}
    np.testing.assert_array_equal(found["a/b"], TREE["a"]["b"])
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_files_of_others_have_no_fields(tmp_path):
    tensors.write(tmp_path / "x.safetensors", tensors.flatten(TREE))
    assert tensors.read(tmp_path / "x.safetensors")[1] is None


def test_transposed_views_are_written_as_they_read(tmp_path):
    """safetensors takes the buffer as it lies: a view must be made contiguous first."""
    tensors.write(tmp_path / "x.safetensors", {"t": TREE["a"]["b"].T})
    np.testing.assert_array_equal(
        tensors.read(tmp_path / "x.safetensors")[0]["t"], TREE["a"]["b"].T
    )


def test_a_scalar_stays_one(tmp_path):
    tensors.write(tmp_path / "x.safetensors", {"s": np.float32(3)})
    assert tensors.read(tmp_path / "x.safetensors")[0]["s"].shape == ()


@pytest.mark.parametrize("keep", [0, 5, 40, -1])
def test_a_truncated_file_is_refused(tmp_path, keep):
    path = tmp_path / "x.safetensors"
    tensors.write(path, tensors.flatten(TREE))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(StorageError, match=r"is no intact \.safetensors file"):
        tensors.read(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        tensors.read(tmp_path / "none.safetensors")


def test_fields_that_are_no_json_are_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(safetensors.numpy.save(tensors.flatten(TREE), {"pit_jax": "{cut off"}))
    with pytest.raises(StorageError, match=r"x\.safetensors is no intact \.safetensors file"):
        tensors.read(path)


@pytest.mark.parametrize(
    "dtype", [jnp.bfloat16, jnp.float16, jnp.float8_e4m3fn, np.int64, np.uint8, np.float64, bool]
)
def test_every_dtype_is_read_as_it_is(tmp_path, dtype):
    path, values = tmp_path / "x.safetensors", np.asarray([[1, 0, 3], [1, 0, 1]]).astype(dtype)
    tensors.write(path, {"x": values})
    found = tensors.read(path)[0]["x"]
    assert found.dtype == values.dtype
    np.testing.assert_array_equal(found, values)


def test_a_dtype_that_numpy_has_not_is_no_damage(tmp_path):
    head = json.dumps({"x": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(head).to_bytes(8, "little") + head + b"\0")
    with pytest.raises(ConfigError, match="cannot read its F4 tensors, save them as float32"):
        tensors.read(path)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    tensors.write(path, tensors.flatten(TREE))

    def full(self, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(type(epath.Path(path)), "replace", full)
    with pytest.raises(StorageError, match="could not be written: No space left on device"):
        tensors.write(path, {"c": np.zeros(2)})
    np.testing.assert_array_equal(tensors.read(path)[0]["c"], TREE["c"])
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]
