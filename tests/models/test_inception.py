"""Inception-v3: its shapes, and its resize as the two public evaluators do it."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pit_jax.models.inception import Inception, preprocess, resize_matrix


@pytest.mark.parametrize("shape", [(2, 32, 32, 3), (3, 300, 64, 3), (1, 1, 1, 3)])
def test_shapes_of_what_comes_out(shape):
    x = jax.ShapeDtypeStruct(shape, jnp.uint8)
    out, variables = jax.eval_shape(Inception().init_with_output, jax.random.key(0), x)
    sizes = {"pool": 2048, "spatial": 2023, "logits": 1008, "probabilities": 1008}
    assert {name: value.shape for name, value in out.items()} == {
        name: (shape[0], size) for name, size in sizes.items()
    }
    assert {x.dtype for x in jax.tree.leaves((out, variables))} == {jnp.dtype("float32")}


def test_as_many_parameters_as_the_public_network():
    """Keras counts 21,802,784 with three numbers of batch norm a channel; folded it is one."""
    x = jax.ShapeDtypeStruct((1, 299, 299, 3), jnp.uint8)
    params = jax.eval_shape(Inception().init, jax.random.key(0), x)["params"]
    found = sum(x.size for x in jax.tree.leaves(params))
    assert found == 21_802_784 - 2 * 17_216 + 2048 * 1008 + 1008


def by_loop(size: int, target: int, half: float) -> np.ndarray:
    """Where each output lies among the inputs, weight by weight."""
    matrix = np.zeros((target, size))
    for i in range(target):
        at = max((i + half) * size / target - half, 0)
        low = min(int(at), size - 1)
        matrix[i, low] += 1 - (at - low)
        matrix[i, min(low + 1, size - 1)] += at - low
    return matrix


@pytest.mark.parametrize("size", [1, 2, 8, 64, 256, 299, 512])
@pytest.mark.parametrize(("how", "half"), [("tensorflow", 0.0), ("pytorch", 0.5)])
def test_resize_weights(size, how, half):
    matrix = resize_matrix(size, 299, how)
    np.testing.assert_allclose(matrix, by_loop(size, 299, half), atol=2e-7 * size)
    np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-6)


def test_tensorflow_s_pixels_are_points_and_pytorch_s_squares():
    """Of a row of 0, 1, …, n−1: from one edge on, or symmetric about the middle."""
    ramp = np.arange(8.0)
    at = resize_matrix(8, 16, "tensorflow") @ ramp
    np.testing.assert_allclose(at, np.minimum(np.arange(16) / 2, 7))
    at = resize_matrix(8, 16, "pytorch") @ ramp
    np.testing.assert_allclose(at, np.clip(np.arange(16) / 2 - 0.25, 0, 7))


def test_resizes_as_tensorflow_does():
    """What TensorFlow 2.21 itself computed, see fixtures/make_resize.py; of grey levels up to
    255, scaled to about [-1, 1] here."""
    with np.load(pathlib.Path(__file__).parents[1] / "fixtures" / "tensorflow_resize.npz") as found:
        there = dict(found)
    places = there.pop("places")
    sizes = [name for name in there if not name.endswith(("_rows", "_columns"))]
    assert len(sizes) == 5
    for name in sizes:
        rows, columns = (there[f"{name}_{axis}"].astype(int) for axis in ("rows", "columns"))
        image = ((rows[:, None] + 3 * columns[None]) % 256).astype(np.uint8)
        ours = preprocess(image[None, ..., None].repeat(3, -1), "tensorflow")[0]
        expected = (there[name].astype(np.float64) - 128) / 128
        for colour in range(3):
            ours_there = np.asarray(ours)[..., colour][np.ix_(places, places)]
            np.testing.assert_allclose(ours_there, expected, atol=1e-6, err_msg=name)


def test_range_of_the_two_preprocessings():
    black, white = np.zeros((1, 3, 3, 3), np.uint8), np.full((1, 3, 3, 3), 255, np.uint8)
    for how, low, high in (("tensorflow", -1, 127 / 128), ("pytorch", -1, 1)):
        np.testing.assert_allclose(preprocess(black, how), low, atol=1e-6)
        np.testing.assert_allclose(preprocess(white, how), high, atol=1e-6)


def test_grey_images_are_refused():
    with pytest.raises(AssertionError):
        preprocess(np.zeros((1, 8, 8, 1)), "tensorflow")


# Against PyTorch ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip(
        "torch", reason="PyTorch is not installed: pip install 'pit_jax[parity]'"
    )


@pytest.mark.parity
@pytest.mark.parametrize("size", [(32, 32), (64, 48), (299, 299), (400, 310)])
def test_resizes_as_pytorch_fid(torch, size):
    x = np.random.default_rng(0).integers(0, 256, (2, *size, 3)).astype(np.uint8)
    there = torch.from_numpy(x / 255.0).float().permute(0, 3, 1, 2)
    there = torch.nn.functional.interpolate(there, (299, 299), mode="bilinear", align_corners=False)
    expected = (2 * there - 1).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(preprocess(x, "pytorch"), expected, atol=1e-6)
