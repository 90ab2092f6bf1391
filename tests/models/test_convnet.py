"""The ConvNet: its arithmetic, what filters of one pixel cannot see, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import signal, special

from pit_jax import validation
from pit_jax.errors import ConfigError
from pit_jax.models.convnet import ConvNet
from pit_jax.parallel import rules
from pit_jax.perf import flops
from pit_jax.tasks import build

from ..short_runs import change, losses, losses_by_dtype

SMALL = {"num_classes": 5, "channels": (4, 6), "layers": (1, 2)}


def random_params(model, images: jax.Array) -> dict:
    """Nothing in them is zero or one, so that everything matters."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: (0.5 * rng.normal(size=x.shape)).astype(np.float32), shapes)


def reference(params: dict, images: np.ndarray, downsample: bool) -> np.ndarray:
    """The logits in float64, convolutions by SciPy."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

    def convolve(x: np.ndarray, p: dict) -> np.ndarray:
        out = np.zeros((*x.shape[:3], p["kernel"].shape[-1])) + p["bias"]
        for b, i, o in np.ndindex(len(x), x.shape[-1], out.shape[-1]):
            filters = p["kernel"][:, :, i, o]
            out[b, ..., o] += signal.correlate2d(x[b, ..., i], filters, mode="same")
        return out

    def norm_gelu(x: np.ndarray, p: dict) -> np.ndarray:
        normed = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        y = normed * p["scale"] + p["bias"]
        return y * special.ndtr(y)

    x = convolve(np.asarray(images, np.float64), params["conv_in"])
    for stage, layers in enumerate(SMALL["layers"]):
        if stage and downsample:
            x = (x[:, ::2] + x[:, 1::2]) / 2
            x = (x[:, :, ::2] + x[:, :, 1::2]) / 2
        for layer in range(layers):
            p = params[f"stage_{stage}_block_{layer}"]
            y = convolve(norm_gelu(x, p["norm1"]), p["conv1"])
            y = convolve(norm_gelu(y, p["norm2"]), p["conv2"])
            x = y + (convolve(x, p["shortcut"]) if "shortcut" in p else x)
    x = norm_gelu(x, params["norm"]).mean((1, 2))
    return x @ params["head"]["kernel"] + params["head"]["bias"]


@pytest.mark.parametrize(("kernel", "downsample"), [(3, False), (3, True), (1, False)])
def test_it_computes_what_float64_does(kernel, downsample):
    images = jax.random.normal(jax.random.key(1), (2, 6, 6, 3))
    model = ConvNet(**SMALL, kernel=kernel, downsample=downsample)
    params = random_params(model, images)
    found = jax.jit(model.apply)({"params": params}, images)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, reference(params, images, downsample), rtol=1e-4, atol=1e-5)


def test_filters_of_one_pixel_do_not_know_where_pixels_lie():
    """Any permutation of the pixels leaves the output what it was; with 3×3 filters none does."""
    images = jax.random.normal(jax.random.key(1), (2, 6, 6, 3))
    for kernel in (1, 3):
        model = ConvNet(**SMALL, kernel=kernel)
        params = random_params(model, images)
        apply = jax.jit(model.apply)
        before = apply({"params": params}, images)
        for seed in range(3):
            order = np.random.default_rng(seed).permutation(36)
            shuffled = images.reshape(2, 36, 3)[:, order].reshape(images.shape)
            after = apply({"params": params}, shuffled)
            if kernel == 1:
                np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5)
            else:
                assert np.abs(after - before).max() > 0.05


@pytest.fixture
def small(tiny):
    tiny.model.name = "convnet"
    tiny.convnet.update(channels=(8, 16), layers=(1, 1))
    tiny.train.batch_size = 8
    return tiny


def test_all_but_filters_and_head_are_kept_from_weight_decay(small):
    params = jax.eval_shape(build(validation.resolve(small)).init, jax.random.key(0))
    decayed = set()
    rules.map_with_path(
        lambda path, _: rules.matches(path, rules.NO_DECAY_RULES) or decayed.add(path), params
    )
    assert decayed
    assert all(path.endswith("/kernel") for path in decayed)


def test_the_compiler_counts_the_same_for_filters_of_one_pixel(small):
    """Where every place costs alike; of 3×3 filters it leaves out what lies over the border."""
    small.convnet.update(channels=(192, 256), layers=(1, 2), kernel=1)
    task = build(validation.resolve(small))
    params = jax.eval_shape(task.init, jax.random.key(0))
    image = jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32)
    program = jax.jit(task.represent).lower(params, image).compile()
    assert program.cost_analysis()["flops"] == pytest.approx(task.flops().computed, rel=0.06)


def test_its_cost_by_hand(small):
    small.convnet.downsample = True
    c = validation.resolve(small)
    first = 2 * 64 * 9 * (1 * 8 + 8 * 8 + 8 * 8)
    second = 2 * 16 * (9 * (8 * 16 + 16 * 16) + 8 * 16)
    cost = flops.convnet(c.convnet, c.data)
    assert cost.computed == first + second + 2 * 16 * 10
    assert cost.tokens == 64


def batch(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (8, 8, 8, 1), dtype=np.uint8),
        "label": rng.integers(0, 10, 8).astype(np.int32),
    }


def test_a_mesh_gives_the_values_of_one_device(small, one_device):
    alone = losses(small, {}, one_device, batch)
    assert alone[0] != alone[1]
    shared = losses(small, {"data": 2, "fsdp": 2}, jax.devices()[:4], batch)
    np.testing.assert_allclose(shared, alone, rtol=1e-4)


def test_in_bfloat16_the_loss_stays_close_and_is_float32(small):
    found = losses_by_dtype(
        small, lambda task: random_params(task.model, jnp.zeros((1, 8, 8, 1))), batch
    )
    assert [loss.dtype for loss in found] == [jnp.float32, jnp.float32]
    wide, narrow = (float(loss) for loss in found)
    assert narrow == pytest.approx(wide, rel=0.03)
    assert narrow != wide


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"convnet.layers": (1,)}, r"convnet\.layers=\(1,\) needs a number for each of the 2"),
        ({"convnet.channels": (8, 0)}, r"convnet\.channels=\(8, 0\): 0 must be at least 1"),
        ({"convnet.channels": ()}, r"convnet\.channels=\(\): whole numbers of 1 or more, at least"),
        ({"convnet.kernel": 2}, r"convnet\.kernel=2 has no pixel in its middle"),
        ({"convnet.kernel": 1, "convnet.downsample": True}, "downsample averages neighbours"),
        ({"data.image_size": 9, "convnet.downsample": True}, "image_size=9 is no multiple of 2"),
        ({"model.patch": 2}, r"config\.model\.patch=2 has no place in 'convnet': leave it at 1"),
        ({"model.drop_path": 0.1}, r"model\.drop_path=0\.1 has no place in 'convnet'"),
        ({"model.window": (1.0,)}, r"model\.window=\(1\.0,\) has no place in 'convnet'"),
        ({"mesh.seq": 2}, r"mesh\.seq=2 has no place in 'convnet'"),
        ({"optim.layer_decay": 0.65}, r"optim\.layer_decay=0\.65 has no place in 'convnet'"),
        ({"model.remat": "full"}, r"model\.remat='full' is not offered by 'convnet'"),
        ({"task": "mae"}, r"task 'mae' needs config\.model\.name='vit'"),
        ({"model.name": "dit"}, r"model\.name='dit' is no classifier: write 'vit'"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_in_one_line(small, fields, sentence):
    change(small, fields)
    with pytest.raises(ConfigError, match=sentence) as refusal:
        validation.resolve(small)
    assert "\n" not in str(refusal.value)
