"""The autoencoder against its definition in float64, its divergence, and its normalisation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pit_jax.errors import ConfigError
from pit_jax.models import autoencoder
from pit_jax.models.autoencoder import AutoencoderKL, kl
from pit_jax.models.normalisation import Normalisation
from pit_jax.parallel import mesh as meshes

SMALL = AutoencoderKL(channels=(8, 16), layers=1, latent=2, groups=4, image_channels=3)


def weights(model: AutoencoderKL, seed: int = 0, std: float = 0.35) -> dict:
    """Parameters of which every number matters."""
    side = model.factor
    images = jnp.zeros((1, side, side, model.image_channels))
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(std * rng.normal(size=x.shape), x.dtype), shapes)


def pictures(count: int = 2, side: int = 8, channels: int = 3, seed: int = 1) -> np.ndarray:
    shape = (count, side, side, channels)
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


@pytest.fixture(scope="module")
def params() -> dict:
    return weights(SMALL)


@pytest.fixture(scope="module")
def run(params):
    """(images, noise) → reconstruction, mean and deviation; compiled once."""
    call = jax.jit(lambda images, noise: SMALL.apply({"params": params}, images, noise))
    return lambda *arrays: jax.tree.map(np.asarray, call(*arrays))


# Sizes ----------------------------------------------------------------------------------


def test_the_defaults_are_stable_diffusions():
    model = AutoencoderKL()
    images = jax.ShapeDtypeStruct((2, 256, 256, 3), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    assert sum(x.size for x in jax.tree.leaves(params)) == 83_653_863
    assert params["encoder"]["down_1"]["block_0"]["conv1"]["kernel"].shape == (3, 3, 128, 256)
    assert params["decoder"]["up_2"]["block_2"]["conv1"]["kernel"].shape == (3, 3, 256, 256)
    mean, std = jax.eval_shape(
        lambda p, x: model.apply({"params": p}, x, method="encode"), params, images
    )
    assert mean.shape == std.shape == (2, *model.latent_shape(256, 256)) == (2, 32, 32, 4)
    decoded = jax.eval_shape(
        lambda p, x: model.apply({"params": p}, x, method="decode"), params, mean
    )
    assert decoded.shape == (2, 256, 256, 3)


@pytest.mark.parametrize(
    ("channels", "side", "latent_side", "image_channels"),
    [((16, 32), 8, 4, 1), ((16, 32), 32, 16, 3), ((8, 16, 16), 32, 8, 3), ((8,), 5, 5, 2)],
)
def test_small_ones_are_made_for_any_image(channels, side, latent_side, image_channels):
    model = AutoencoderKL(
        channels=channels, latent=3, groups=8, image_channels=image_channels, quant_convs=False
    )
    images = jax.ShapeDtypeStruct((2, side, side, image_channels), jnp.float32)
    (decoded, mean, std), params = jax.eval_shape(model.init_with_output, jax.random.key(0), images)
    assert decoded.shape == images.shape
    assert mean.shape == std.shape == (2, latent_side, latent_side, 3)
    assert set(params["params"]) == {"encoder", "decoder"}


def test_without_attention_there_is_none():
    model = AutoencoderKL(channels=(8,), groups=4, attends=False)
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4, 4, 3)))["params"]
    assert set(params["encoder"]["mid"]) == {"block_0", "block_1"}


def test_what_cannot_be_is_refused_in_a_sentence():
    with pytest.raises(ConfigError, match="groups=3 do not divide its channels 8"):
        weights(AutoencoderKL(channels=(8,), groups=3))
    with pytest.raises(ConfigError, match=r"images of 6×8 cannot be halved 2 times.*multiple of 4"):
        AutoencoderKL(channels=(8, 8, 8)).latent_shape(6, 8)
    with pytest.raises(ConfigError, match="multiple of 2"):
        jax.eval_shape(SMALL.init, jax.random.key(0), jnp.zeros((1, 7, 8, 3)))


# Arithmetic -----------------------------------------------------------------------------


def convolve(x, group, pad=((1, 1), (1, 1)), strides=1):
    """A 3×3 or 1×1 convolution written as sums over its taps."""
    kernel, bias = (np.asarray(group[k], np.float64) for k in ("kernel", "bias"))
    size = kernel.shape[0]
    x = np.pad(x, ((0, 0), *(pad if size > 1 else ((0, 0), (0, 0))), (0, 0)))
    rows, columns = ((n - size) // strides + 1 for n in x.shape[1:3])
    out = np.zeros((len(x), rows, columns, kernel.shape[-1])) + bias
    for i in range(size):
        for j in range(size):
            tap = x[:, i : i + strides * rows : strides, j : j + strides * columns : strides]
            out += tap[:, :rows, :columns] @ kernel[i, j]
    return out


def normalise(x, group, groups):
    b, h, w, c = x.shape
    y = x.reshape(b, h * w, groups, c // groups)
    mean, variance = y.mean((1, 3), keepdims=True), y.var((1, 3), keepdims=True)
    y = ((y - mean) / np.sqrt(variance + 1e-6)).reshape(x.shape)
    return y * np.asarray(group["scale"], np.float64) + np.asarray(group["bias"], np.float64)


def silu(x):
    return x / (1 + np.exp(-x))


def block(x, p, groups):
    y = convolve(silu(normalise(x, p["norm1"], groups)), p["conv1"])
    y = convolve(silu(normalise(y, p["norm2"], groups)), p["conv2"])
    return (convolve(x, p["shortcut"]) if "shortcut" in p else x) + y


def attend(x, p, groups):
    b, h, w, c = x.shape
    y = normalise(x, p["norm"], groups).reshape(b, h * w, c)

    def dense(y, name):
        return y @ np.asarray(p[name]["kernel"], np.float64) + np.asarray(p[name]["bias"])

    q, k, v = (dense(y, name) for name in ("query", "key", "value"))
    scores = np.exp(q @ k.transpose(0, 2, 1) / np.sqrt(c))
    return x + dense(scores / scores.sum(-1, keepdims=True) @ v, "out").reshape(x.shape)


def middle(x, p, groups):
    return block(
        attend(block(x, p["block_0"], groups), p["attention"], groups), p["block_1"], groups
    )


def reference_encode(params, x, groups):
    p = params["encoder"]
    x = convolve(x.astype(np.float64), p["conv_in"])
    for level in (p[f"down_{i}"] for i in range(sum(name.startswith("down") for name in p))):
        for i in range(sum(name.startswith("block") for name in level)):
            x = block(x, level[f"block_{i}"], groups)
        if "downsample" in level:  # a row below and a column to the right
            x = convolve(x, level["downsample"], pad=((0, 1), (0, 1)), strides=2)
    x = convolve(silu(normalise(middle(x, p["mid"], groups), p["norm_out"], groups)), p["conv_out"])
    mean, log_variance = np.split(convolve(x, params["quant_conv"]), 2, axis=-1)
    return mean, np.exp(np.clip(log_variance, -30, 20) / 2)


def reference_decode(params, x, groups):
    p = params["decoder"]
    x = convolve(convolve(x.astype(np.float64), params["post_quant_conv"]), p["conv_in"])
    x = middle(x, p["mid"], groups)
    for level in (p[f"up_{i}"] for i in range(sum(name.startswith("up") for name in p))):
        for i in range(sum(name.startswith("block") for name in level)):
            x = block(x, level[f"block_{i}"], groups)
        if "upsample" in level:
            x = convolve(x.repeat(2, axis=1).repeat(2, axis=2), level["upsample"])
    return convolve(silu(normalise(x, p["norm_out"], groups)), p["conv_out"])


def test_it_computes_its_definition(params, run):
    images = pictures()
    noise = np.random.default_rng(2).normal(size=(2, 4, 4, 2)).astype(np.float32)
    decoded, mean, std = run(images, noise)
    expected = reference_encode(params, images, 4)
    wanted = reference_decode(params, expected[0] + expected[1] * noise, 4)
    for found, value in ((mean, expected[0]), (std, expected[1]), (decoded, wanted)):
        assert value.std() > 0.05  # the weights do something
        np.testing.assert_allclose(found, value, rtol=1e-4, atol=1e-5 * np.abs(value).max())


def test_downsampling_pads_below_and_to_the_right_only():
    """A kernel of one tap tells which pixel each place reads."""
    module = autoencoder.Down(1, 0, 1, True, jnp.float32)
    x = np.arange(1.0, 17).reshape(1, 4, 4, 1)
    for row, column in ((0, 0), (2, 2), (1, 2)):
        kernel = np.zeros((3, 3, 1, 1))
        kernel[row, column] = 1
        group = {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.zeros(1)}
        found = module.apply({"params": {"downsample": group}}, jnp.asarray(x, jnp.float32))
        padded = np.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
        np.testing.assert_array_equal(found, padded[:, row : row + 3 : 2, column : column + 3 : 2])


def test_the_log_variance_is_bounded(params):
    bias = jnp.asarray([0, 0, -1000, 1000], jnp.float32)
    changed = params | {"quant_conv": params["quant_conv"] | {"bias": bias}}
    encode = jax.jit(lambda p, x: SMALL.apply({"params": p}, x, method="encode"))
    _, std = encode(changed, pictures(1))
    np.testing.assert_allclose(std[..., 0], np.exp(-15), rtol=1e-5)
    np.testing.assert_allclose(std[..., 1], np.exp(10), rtol=1e-5)


def test_without_noise_the_mean_is_decoded(run):
    images = pictures()
    zeros = np.zeros((2, 4, 4, 2), np.float32)
    expected, mean, _ = run(images, zeros)
    np.testing.assert_array_equal(run(images, None)[0], expected)
    other, same, _ = run(images, zeros + 1)
    np.testing.assert_array_equal(same, mean)
    assert np.abs(other - expected).max() > 1e-2


def test_bfloat16_leaves_parameters_and_results_in_float32(params, run):
    model = SMALL.clone(dtype="bfloat16")
    shapes = jax.eval_shape(model.init, jax.random.key(0), pictures())["params"]
    assert {x.dtype for x in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    encode = jax.jit(lambda p, x: model.apply({"params": p}, x, method="encode"))
    found = encode(params, pictures())
    for value, expected in zip(found, run(pictures(), None)[1:], strict=True):
        assert value.dtype == jnp.float32
        difference = np.abs(value - expected).max() / np.abs(expected).max()
        assert 1e-6 < difference < 0.1


def test_every_parameter_learns(params):
    noise = np.random.default_rng(2).normal(size=(2, 4, 4, 2)).astype(np.float32)

    @jax.jit
    @jax.grad
    def gradient(params):
        decoded, mean, std = SMALL.apply({"params": params}, pictures(), noise)
        return jnp.square(decoded - pictures()).mean() + 1e-3 * kl(mean, std).mean()

    for keys, value in jax.tree_util.tree_leaves_with_path(gradient(params)):
        assert np.isfinite(value).all(), keys
        if "key" not in str(keys[-2:]) or "bias" not in str(keys[-1]):  # softmax forgets it
            assert np.abs(value).max() > 1e-8, keys


def test_examples_are_shared_over_the_devices_and_nothing_else_travels(params, run):
    images = pictures(8)
    expected = run(images, None)
    mesh = meshes.make_mesh({"data": 4, "fsdp": 2, "seq": 1, "model": 1})
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    batch = jax.sharding.NamedSharding(mesh, meshes.batch_spec())
    with jax.set_mesh(mesh):
        call = jax.jit(lambda p, x: SMALL.apply({"params": p}, x), in_shardings=(everywhere, batch))
        compiled = call.lower(params, images).compile()
        found = compiled(jax.device_put(params, everywhere), jax.device_put(images, batch))
    for value, wanted in zip(found, expected, strict=True):
        assert value.sharding.shard_shape(value.shape)[0] == 1
        np.testing.assert_allclose(value, wanted, atol=2e-5)
    text = compiled.as_text()
    for collective in ("all-gather", "all-to-all", "collective-permute", "all-reduce"):
        assert collective not in text


# The divergence and the normalisation ---------------------------------------------------


def test_the_divergence_is_the_integral_it_stands_for():
    rng = np.random.default_rng(0)
    mean, std = rng.normal(size=(3, 2, 2, 1)), rng.uniform(0.1, 2, size=(3, 2, 2, 1))
    x = np.linspace(-25, 25, 200_001)
    expected = np.zeros(3)
    for row, (m, s) in enumerate(zip(mean.reshape(3, -1), std.reshape(3, -1), strict=True)):
        for one_m, one_s in zip(m, s, strict=True):
            log_q = -0.5 * ((x - one_m) / one_s) ** 2 - np.log(one_s)
            density = np.exp(log_q) / np.sqrt(2 * np.pi)
            expected[row] += np.trapezoid(density * (log_q + 0.5 * x * x), x)
    found = kl(jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_array_equal(kl(jnp.zeros((2, 3)), jnp.ones((2, 3))), [0, 0])


@pytest.mark.parametrize(
    "normalisation",
    [
        Normalisation(scale=0.18215),
        Normalisation(0.0609, 1.5305),
        Normalisation([0.5, -1, 0, 2], (1, 2, 3, 4)),
        Normalisation((0.5, -1, 0, 2), 0.25),
    ],
    ids=str,
)
@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
def test_normalisation_is_undone(normalisation, array):
    latents = array(np.random.default_rng(0).normal(size=(2, 3, 3, 4)).astype(np.float32))
    expected = (np.asarray(latents, np.float64) - normalisation.shift) * normalisation.scale
    found = normalisation.apply(latents)
    assert found.dtype == np.float32
    assert isinstance(found, type(latents))
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(normalisation.invert(found), latents, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((0, 0), "normalisation.scale=0 is not above 0"),
        ((0, (1, -1)), "is not above 0"),
        ((float("nan"), 1), "normalisation.shift=nan is not a finite number"),
        (("a", 1), "normalisation.shift='a' is not a finite number"),
        ((0, ()), r"normalisation.scale=\(\) is not a finite number"),
        (((1, 2), (1, 2, 3)), "shift has 2 channels, normalisation.scale has 3"),
    ],
)
def test_a_normalisation_that_cannot_be_is_refused(arguments, sentence):
    with pytest.raises(ConfigError, match=sentence):
        Normalisation(*arguments)


def test_a_normalisation_of_other_channels_is_refused():
    Normalisation((1, 2)).check_channels(2)
    Normalisation(1).check_channels(7)
    with pytest.raises(ConfigError, match="shift has 2 channels, the latents have 4"):
        Normalisation((1, 2)).check_channels(4)
