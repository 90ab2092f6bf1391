"""Files of weights: whole or refused."""

import numpy as np
import pytest

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
