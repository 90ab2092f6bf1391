"""Every implementation against float64: forward, gradients, on one device and on a mesh."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pit_jax.errors import ConfigError
from pit_jax.models import attention, splash
from pit_jax.models.mask import FULL, Mask
from pit_jax.parallel import mesh as meshes

from .reference import attention as reference
from .reference import inputs


def ours(implementation: str, q, k, v, g, dtype=jnp.float32, mask=FULL) -> tuple:
    q, k, v, g = (jnp.asarray(x, dtype) for x in (q, k, v, g))
    function = functools.partial(attention.attention, implementation=implementation, mask=mask)
    if implementation == "splash":  # the steps of the TPU's kernel, on this CPU
        function = functools.partial(splash.attention, mask=mask, interpret=True)

    @jax.jit
    def run(q, k, v, g):
        out, pull = jax.vjp(function, q, k, v)
        return out, *pull(g)

    return run(q, k, v, g)


def assert_equal(found: tuple, expected: tuple, tolerance: float = 2e-6) -> None:
    for one, true in zip(found, expected, strict=True):
        assert np.abs(one - true).max() < tolerance * np.abs(true).max()


@functools.cache
def exact(lengths: tuple, mask: Mask = FULL) -> tuple:
    """The inputs of these lengths, and the output and gradients in float64."""
    arrays = inputs(*lengths)
    if mask.length:  # a filling query's result is dropped, and nothing flows back
        arrays[3][:, mask.length :] = 0
    return arrays, reference(*arrays, mask)


@pytest.mark.parametrize("implementation", ["xla", "blocked", "splash"])
@pytest.mark.parametrize("lengths", [(64, 64), (785, 785), (1025, 1025), (5, 300), (1, 300)])
def test_output_and_gradients_equal_float64(implementation, lengths):
    arrays, expected = exact(lengths)
    assert_equal(ours(implementation, *arrays), expected)


# 17 × 17 pixels behind [CLS], the last ten keys of 300 filled up.
MASKS = {
    "filled": Mask(length=290),
    "causal": Mask(causal=True),
    "window": Mask(radius=3.0, columns=17, prefix=1),
    "itself": Mask(radius=0.0, columns=17, prefix=1),
    "no_cls": Mask(radius=1.5, columns=20),
    "all_three": Mask(length=290, causal=True, radius=5.0, columns=17, prefix=1),
}


@pytest.mark.parametrize("implementation", ["xla", "blocked", "splash"])
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_masks_equal_float64(implementation, mask):
    arrays, expected = exact((300, 300), mask)
    found = ours(implementation, *arrays, mask=mask)
    real = slice(mask.length)
    assert_equal([x[:, real] for x in found], [x[:, real] for x in expected])


def test_a_window_as_wide_as_the_image_is_full_attention():
    arrays = inputs(257, 257)
    wide = ours("blocked", *arrays, mask=Mask(radius=22.0, columns=16, prefix=1))
    for one, other in zip(wide, ours("blocked", *arrays), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("size", [16, 64, 72, 128])
def test_splash_takes_every_head_size(size):
    arrays = inputs(130, 130, size=size, batch=1)
    assert_equal(ours("splash", *arrays), reference(*arrays))


def test_bfloat16_keeps_its_scores_in_float32():
    arrays, expected = exact((300, 300))
    for found, true in zip(ours("blocked", *arrays, dtype=jnp.bfloat16), expected, strict=True):
        assert found.dtype == jnp.bfloat16
        error = np.linalg.norm(np.asarray(found, np.float64) - true) / np.linalg.norm(true)
        assert error < 1e-2


def test_huge_scores_do_not_overflow():
    q, k, v, g = inputs(300, 300)
    for found in ours("blocked", 100 * q, 100 * k, v, g):
        assert np.isfinite(found).all()


def test_blocked_never_holds_all_scores():
    """The largest array of its program is a block of scores; XLA's own holds L × L."""
    length = 1025
    shape = jax.ShapeDtypeStruct((1, length, 1, 16), jnp.float32)

    def program(implementation: str) -> str:
        def loss(q, k, v):
            return attention.attention(q, k, v, implementation).sum()

        return jax.jit(jax.grad(loss, (0, 1, 2))).lower(shape, shape, shape).as_text()

    assert f"{length}x{length}xf32" in program("xla")
    assert f"{length}x{length}xf32" not in program("blocked")


@pytest.mark.parametrize("layout", [{"data": 8}, {"data": 2, "fsdp": 2, "model": 2}, {"seq": 2}])
def test_a_mesh_changes_nothing(layout):
    arrays = inputs(300, 300, batch=8)
    expected = ours("blocked", *arrays)
    sizes = dict.fromkeys(meshes.AXES, 1) | layout
    mesh = meshes.make_mesh(sizes, jax.devices()[: int(np.prod(list(layout.values())))])
    with jax.set_mesh(mesh):
        found = ours("blocked", *arrays)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-6)


CUDNN_MASKS = {
    "full": FULL,
    "filled": Mask(length=290),
    "filled_odd": Mask(length=299),
    "causal": Mask(causal=True),
    "causal_filled": Mask(length=290, causal=True),
}


@pytest.fixture
def as_on_a_gpu(monkeypatch) -> list[dict]:
    """The kernel's rules as jax's source has them, its numbers by XLA; what was asked of it."""
    asked = []
    original = jax.nn.dot_product_attention

    def kernel(q, k, v, *, implementation, **options):
        assert implementation == "cudnn"
        if q.shape[1] % 2 or k.shape[1] % 2:
            raise NotImplementedError(f"Unsupported sequence length {q.shape[1]}, {k.shape[1]}.")
        asked.append(options | {"lengths": (q.shape[1], k.shape[1])})
        return original(q, k, v, implementation="xla", **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", kernel)
    return asked


@pytest.mark.parametrize("lengths", [(65, 65), (64, 64), (785, 785), (5, 300), (7, 257)])
def test_cudnn_takes_odd_lengths(as_on_a_gpu, lengths):
    """A classifier has one token more than an even number of pixels, and cuDNN no odd lengths."""
    arrays, expected = exact(lengths)
    function = functools.partial(attention._cudnn, FULL, first=0)
    out, pull = jax.vjp(function, *arrays[:3])
    assert_equal((out, *pull(arrays[3])), expected)
    filled = as_on_a_gpu[0]["lengths"]
    assert filled == tuple(n + n % 2 for n in lengths)
    # Keys that nobody may see cost the kernel a mask, so only where there are some.
    assert ("key_value_seq_lengths" in as_on_a_gpu[0]) == (filled[1] > lengths[1])


@pytest.mark.parametrize("mask", CUDNN_MASKS.values(), ids=CUDNN_MASKS)
@pytest.mark.parametrize("keys", [300, 301])
def test_cudnn_masks_equal_float64(as_on_a_gpu, mask, keys):
    arrays, expected = exact((keys, keys), mask)
    out, pull = jax.vjp(functools.partial(attention._cudnn, mask, first=0), *arrays[:3])
    real = slice(mask.length)
    found = (out, *pull(arrays[3]))
    assert_equal([x[:, real] for x in found], [x[:, real] for x in expected])
    assert all(np.isfinite(x).all() for x in found)  # filling, which later layers carry along


@pytest.mark.parametrize(("layout", "batch"), [({"data": 2, "fsdp": 2}, 4), ({"seq": 2}, 2)])
def test_cudnn_counts_a_devices_own_examples(as_on_a_gpu, monkeypatch, layout, batch):
    """The lengths are those of a device's part of the batch, which alone the kernel sees."""
    monkeypatch.setattr(attention, "choose", lambda *_: "cudnn")
    arrays, expected = exact((65, 65))
    arrays = [np.concatenate([x] * (batch // x.shape[0])) for x in arrays]
    expected = [np.concatenate([x] * (batch // x.shape[0])) for x in expected]
    sizes = dict.fromkeys(meshes.AXES, 1) | layout
    mesh = meshes.make_mesh(sizes, jax.devices()[: int(np.prod(list(layout.values())))])
    with jax.set_mesh(mesh):
        assert_equal(ours("cudnn", *arrays), expected)
    local = batch // (sizes["data"] * sizes["fsdp"])
    for asked in as_on_a_gpu:
        assert asked["key_value_seq_lengths"].shape == (local,)


def test_what_cannot_run_here_says_why():
    with pytest.raises(ConfigError, match=r"'splash' cannot run here: it needs a TPU, .* on a CPU"):
        attention.choose("splash", 1025)
    with pytest.raises(ConfigError, match="'cudnn' cannot run here: it needs an NVIDIA GPU"):
        attention.choose("cudnn", 1025)


BF16 = jnp.bfloat16


@pytest.mark.parametrize(
    ("platform", "keys", "size", "dtype", "mask", "expected"),
    [
        ("tpu", 1025, 64, BF16, FULL, "splash"),
        ("tpu", 1025, 16, BF16, Mask(causal=True), "splash"),
        ("tpu", 65, 64, BF16, FULL, "xla"),
        ("tpu", 1025, 256, BF16, FULL, "xla"),
        ("gpu", 1025, 64, BF16, FULL, "cudnn"),
        ("gpu", 1025, 64, jnp.float32, FULL, "blocked"),
        ("gpu", 1025, 64, BF16, Mask(radius=2, columns=32), "blocked"),
        ("gpu", 1025, 128, BF16, FULL, "cudnn"),
        ("gpu", 1025, 136, BF16, FULL, "blocked"),
        ("gpu", 1025, 512, BF16, FULL, "blocked"),  # the autoencoder's one head
        ("gpu", 1025, 20, BF16, FULL, "blocked"),
        ("gpu", 1025, 64, BF16, Mask(length=900, causal=True), "cudnn"),
        ("cpu", 1025, 64, BF16, FULL, "blocked"),
    ],
)
def test_auto_on_each_platform(monkeypatch, platform, keys, size, dtype, mask, expected):
    monkeypatch.setattr(attention, "ambient_platform", lambda: platform)
    assert attention.choose("auto", keys, size, dtype, mask) == expected


@pytest.mark.parametrize(
    ("capability", "expected"), [("7.5", "blocked"), ("8.0", "cudnn"), ("12.0", "cudnn")]
)
def test_auto_leaves_cudnn_alone_on_gpus_too_old_for_it(monkeypatch, capability, expected):
    """cuDNN's fused attention begins with Ampere; the most common free GPU is a T4."""
    monkeypatch.setattr(attention, "ambient_platform", lambda: "gpu")
    gpu = types.SimpleNamespace(platform="gpu", compute_capability=capability)
    monkeypatch.setattr(jax, "local_devices", lambda: [gpu])
    assert attention.choose("auto", 1025, 64, BF16) == expected
    if expected != "cudnn":
        with pytest.raises(ConfigError, match=r"needs a GPU of compute capability 8\.0, .* 7\.5"):
            attention.choose("cudnn", 1025, 64, BF16)


@pytest.mark.parametrize(
    ("name", "platform", "size", "dtype", "mask", "why"),
    [
        ("splash", "tpu", 12, BF16, FULL, "heads of 12 are not between 16 and 128"),
        ("cudnn", "gpu", 64, jnp.float32, FULL, "bfloat16 and float16, not float32"),
        ("cudnn", "gpu", 20, BF16, FULL, "heads of 20"),
        ("cudnn", "gpu", 64, BF16, Mask(radius=2, columns=32), "a 2-D window"),
    ],
)
def test_forced_but_impossible_shapes_say_why(monkeypatch, name, platform, size, dtype, mask, why):
    monkeypatch.setattr(attention, "ambient_platform", lambda: platform)
    with pytest.raises(ConfigError, match=why):
        attention.choose(name, 1025, size, dtype, mask)


@pytest.mark.parametrize(("length", "expected"), [(64, (128, 128)), (785, (896, 896))])
def test_splash_fills_up_little(length, expected):
    assert splash.padded(length) == expected
    for n in range(1, 60000, 997):
        filled, block = splash.padded(n)
        assert filled % block == 0
        assert n <= filled < max(n + 1024, 1.1 * n + 128)


def test_auto_is_blocked_for_long_sequences_on_a_cpu():
    assert attention.choose("auto", 65) == "xla"
    assert attention.choose("auto", 257) == "blocked"
    assert attention.choose("xla", 257) == "xla"
