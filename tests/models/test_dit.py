"""The Diffusion Transformer: its sizes, its start at zero, what it is told and what it knows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pit_jax.errors import ConfigError
from pit_jax.models import dit, sizes
from pit_jax.models.pointwise import gelu_tanh, modulated_norm
from pit_jax.models.transformer import Trunk
from pit_jax.parallel import mesh as meshes
from pit_jax.parallel import rules

SMALL = {"width": 16, "depth": 3, "heads": 2, "mlp": 32, "outputs": 6, "num_classes": 5}


def batch(count: int = 4, latest: float = 1000) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Noisy 4 × 4 images, times, and labels of which the last is none."""
    rng = np.random.default_rng(1)
    labels = np.append(rng.integers(0, 5, count - 1), 5)
    x = rng.normal(size=(count, 4, 4, 3))
    return jnp.float32(x), jnp.float32(rng.uniform(0, latest, count)), jnp.int32(labels)


def random_params(model: dit.DiT, seed: int = 0) -> dict:
    """Parameters in which nothing is zero, so that everything matters."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), *batch())["params"]
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.float32(0.3 * rng.normal(size=x.shape)), shapes)


@functools.partial(jax.jit, static_argnums=0)
def apply(model, params, *inputs) -> jax.Array:
    return model.apply({"params": params}, *inputs)


@functools.partial(jax.jit, static_argnums=0)
def gradient(model, params, *inputs) -> tuple:
    """The loss and its gradient by parameters and by the noisy images."""

    def loss(params, x, *told):
        return jnp.square(model.apply({"params": params}, x, *told)).mean()

    return jax.value_and_grad(loss, (0, 1))(params, *inputs)


def assert_close(found, expected, tolerance: float = 2e-5) -> None:
    """Every leaf, up to `tolerance` of its largest number.

    Leaves a hundred times smaller than the largest are held against a hundredth of it: the
    gradient of a key's bias is zero, and only its rounding is there to be seen.
    """
    sizes = [float(np.abs(x).max()) for x in jax.tree.leaves(expected)]
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), sizes, strict=True)
    for one, other, size in pairs:
        difference = np.abs(np.asarray(one, np.float64) - np.asarray(other, np.float64)).max()
        assert difference <= tolerance * max(size, 1e-2 * max(sizes)), (
            difference,
            size,
            max(sizes),
        )


@pytest.mark.parametrize(
    ("name", "published"), [("dit-xl/2", 675_129_632), ("dit-b/4", 130e6), ("dit-s/2", 33e6)]
)
def test_parameter_counts_equal_the_papers(name, published):
    """Public DiT counts its fixed positions among the parameters."""
    fields = sizes.parse_dit_name(name, ("s", "b", "xl"))
    model = dit.DiT(outputs=8, num_classes=1000, position="sincos2d", **fields)
    inputs = jnp.zeros((1, 32, 32, 4)), jnp.zeros(1), jnp.zeros(1, jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), *inputs)
    count = sum(x.size for x in jax.tree.leaves(params))
    count += dit.num_tokens(model, 32) * model.width
    assert abs(count - published) <= (0 if isinstance(published, int) else 0.02 * published)


@pytest.fixture(scope="module")
def untrained() -> tuple:
    """A model and its parameters as it starts; "rbg" keys compile much faster."""
    model = dit.DiT(**SMALL | {"depth": 2}, patch=2)
    return model, jax.jit(model.init)(jax.random.key(0, impl="rbg"), *batch())["params"]


def test_untrained_it_says_zero_and_its_blocks_do_nothing(untrained):
    model, params = untrained
    x, time, labels = batch()
    found = apply(model, params, x, time, labels)
    assert found.shape == (4, 4, 4, 6)
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, 0)
    patches = x.reshape(4, 2, 2, 2, 2, 3).swapaxes(2, 3).reshape(4, 4, 12)
    embed = params["embed"]
    tokens = patches @ embed["patch"]["kernel"] + embed["patch"]["bias"] + embed["position"]
    represent = jax.jit(functools.partial(model.apply, method="represent"))
    represented = represent({"params": params}, x, time, labels)
    np.testing.assert_allclose(represented, tokens.mean(axis=1), atol=1e-6)


def test_it_learns_from_zero(untrained):
    """Zeros in front of zeros would never move: after three steps, every gradient is there."""
    model, params = untrained
    inputs = batch()

    @jax.jit
    def gradients(params):
        return jax.grad(lambda p: jnp.square(model.apply({"params": p}, *inputs) - 1).mean())(
            params
        )

    moved = []
    for _ in range(4):
        grads = gradients(params)
        moved.append([bool(jnp.any(g)) for g in jax.tree.leaves(grads)])
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)
    assert sum(moved[0]) == 2  # the head's kernel and bias
    assert all(moved[-1])


def test_pit_does_not_know_where_pixels_lie():
    """Permuting pixels with their positions permutes what is said of them, up to rounding."""
    model, (x, *told) = dit.DiT(**SMALL), batch()
    params = random_params(model)
    order = np.random.default_rng(3).permutation(16)

    def permuted(images: jax.Array) -> jax.Array:
        return images.reshape(4, 16, -1)[:, order].reshape(images.shape)

    embed = params["embed"]
    moved = params | {"embed": embed | {"position": embed["position"][order]}}
    expected = permuted(apply(model, params, x, *told))
    assert_close(apply(model, moved, permuted(x), *told), expected)
    # The test can fail: without moving the positions the output is another one.
    assert np.abs(apply(model, params, permuted(x), *told) - expected).max() > 1e-2


def test_every_image_is_told_its_own_time_and_label():
    model, (x, time, labels) = dit.DiT(**SMALL), batch()
    params = random_params(model)
    before = apply(model, params, x, time, labels)
    for told in ((time.at[1].add(1), labels), (time, labels.at[1].set(5))):
        changed = np.abs(apply(model, params, x, *told) - before).max(axis=(1, 2, 3)) > 1e-4
        np.testing.assert_array_equal(changed, [False, True, False, False])


def test_no_labels_are_the_last_row_of_the_table():
    model, (x, time, _) = dit.DiT(**SMALL), batch()
    params = random_params(model)
    assert params["label"]["table"].shape == (6, 16)
    expected = apply(model, params, x, time, jnp.full(4, 5))
    np.testing.assert_array_equal(apply(model, params, x, time), expected)


def test_an_unconditional_model_has_no_table():
    model, (x, time, labels) = dit.DiT(**SMALL | {"num_classes": 0}), batch()
    params = random_params(model)
    assert set(params) == {"embed", "time", "trunk", "final"}
    found = apply(model, params, x, time)
    np.testing.assert_array_equal(apply(model, params, x, time, labels), found)


@pytest.mark.parametrize("steps", [127, 128])
def test_times_are_cosines_then_sines(steps):
    time = np.array([0.0, 0.5, 37.0, 999.0])
    angles = time[:, None] * np.exp(-np.log(10000) * np.arange(128) / steps)
    expected = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
    # A float32 angle near 1000 is known to 3e-5 only, and so is its frequency in it.
    np.testing.assert_allclose(dit.encode_time(jnp.float32(time), steps), expected, atol=2e-4)


def test_labels_are_dropped_at_the_rate_and_by_their_own_key():
    keys = jax.random.split(jax.random.key(0), 20_000)
    labels = jnp.arange(20_000, dtype=jnp.int32) % 10
    dropped = np.asarray(dit.drop_labels(labels, keys, 0.1, 10))
    assert dropped.dtype == np.int32
    assert abs((dropped == 10).mean() - 0.1) < 4 * (0.1 * 0.9 / 20_000) ** 0.5
    np.testing.assert_array_equal(dropped[dropped != 10], labels[dropped != 10])
    some = np.array([7, 19_999, 3])
    again = dit.drop_labels(labels[some], keys[some], 0.1, 10)
    np.testing.assert_array_equal(again, dropped[some])
    np.testing.assert_array_equal(dit.drop_labels(labels, keys, 0.0, 10), labels)


@pytest.fixture(scope="module")
def plain() -> tuple:
    """Model, parameters, inputs, and what it computes plainly on one device.

    The times are early ones: how the compiler fuses a product of nearly 1000 into the sine
    decides on its rounding, and with it on the fifth figure of everything.
    """
    model = dit.DiT(**SMALL | {"heads": 4}, attention="xla")
    params, inputs = random_params(model), batch(8, latest=10)
    return model, params, inputs, gradient(model, params, *inputs)


@pytest.mark.parametrize(
    "change", [{"attention": "blocked", "remat": "dots"}, {"remat": "full"}], ids=str
)
def test_neither_attention_nor_remat_changes_a_gradient(plain, change):
    model, params, inputs, expected = plain
    assert_close(gradient(model.clone(**change), params, *inputs), expected)


@pytest.mark.parametrize(
    "axes",
    [
        {"data": 2, "fsdp": 2, "model": 2},
        {"fsdp": 2, "seq": 2, "model": 2},
    ],
    ids=str,
)
def test_a_mesh_changes_nothing(plain, axes):
    model, params, inputs, expected = plain
    mesh = meshes.make_mesh(dict.fromkeys(meshes.AXES, 1) | axes)
    split = jax.device_put(params, rules.shardings(params, mesh))
    kernel = split["trunk"]["blocks"]["modulation"]["kernel"]
    assert (
        kernel.addressable_shards[0].data.size * axes.get("fsdp", 1) * axes.get("model", 1)
        == kernel.size
    )
    images = jax.device_put(inputs, jax.NamedSharding(mesh, meshes.batch_spec()))
    with jax.set_mesh(mesh):
        found = gradient(model, split, *images)
    assert_close(found, expected)


def test_sixteen_tokens_and_one_over_a_mesh():
    """Filling rows behind the tokens are modulated too, and change no gradient."""
    trunk = Trunk(depth=2, heads=2, mlp=32, activation="gelu_tanh", conditioned=True)
    rng = np.random.default_rng(0)
    x, c = jnp.float32(rng.normal(size=(2, 17, 16))), jnp.float32(rng.normal(size=(2, 16)))
    shapes = jax.eval_shape(lambda: trunk.init(jax.random.key(0), x, c=c))
    params = jax.tree.map(lambda s: jnp.float32(0.3 * rng.normal(size=s.shape)), shapes)

    def loss(params, x, c, rows):
        return jnp.square(trunk.apply(params, x, rows, c=c)[:, :1]).sum()

    run = jax.jit(jax.value_and_grad(loss, (0, 1, 2)), static_argnums=3)
    expected = run(params, x, c, None)
    assert_close(run(params, x, c, 1), expected)  # one row of the last block is enough
    mesh = meshes.make_mesh(dict.fromkeys(meshes.AXES, 1) | {"seq": 4}, jax.devices()[:4])
    with jax.set_mesh(mesh):
        assert_close(run(params, x, c, None), expected)


def test_bfloat16_stays_near_float32_and_so_does_dropout_without_training():
    model, inputs = dit.DiT(**SMALL), batch()
    params = random_params(model)
    exact = apply(model, params, *inputs)
    rough = apply(model.clone(dtype="bfloat16", dropout=0.5), params, *inputs)
    assert rough.dtype == jnp.float32
    assert 0 < np.linalg.norm(rough - exact) < 0.05 * np.linalg.norm(exact)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_modulated_norm_has_the_gradient_of_its_definition(dtype):
    keys = jax.random.split(jax.random.key(0), 4)
    x = (3 * jax.random.normal(keys[0], (2, 5, 32)) + 1).astype(dtype)
    shift, scale = (jax.random.normal(key, (2, 32)) for key in keys[1:3])
    cotangent = jax.random.normal(keys[3], x.shape).astype(dtype)

    def definition(x, shift, scale):
        wide = x.astype(jnp.float32)
        mean, variance = wide.mean(-1, keepdims=True), wide.var(-1, keepdims=True)
        normed = (wide - mean) / jnp.sqrt(variance + 1e-5)
        return (normed * (1 + scale[:, None]) + shift[:, None]).astype(dtype)

    def run(function) -> tuple:
        @jax.jit
        def both(cotangent, *inputs):
            out, pull = jax.vjp(function, *inputs)
            return out, *pull(cotangent)

        return both(cotangent, x, shift, scale)

    found = run(lambda *inputs: modulated_norm(*inputs, 1e-5, dtype))
    expected = run(definition)
    assert [a.dtype for a in found] == [a.dtype for a in expected]
    assert_close(found, expected, 1e-5 if dtype == jnp.float32 else 1e-2)


def test_gelu_tanh_is_the_approximation_and_has_its_gradient():
    """Against float64, and the slope against its central difference there."""
    x = np.linspace(-8, 8, 1001)

    def exact(x):
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    # As a run compiles it: the tests' hurried compiler rounds tanh more coarsely.
    compiled = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 3})
    np.testing.assert_allclose(compiled(gelu_tanh)(jnp.float32(x)), exact(x), atol=2e-6)
    slope = (exact(x + 1e-5) - exact(x - 1e-5)) / 2e-5
    found = compiled(jax.vmap(jax.grad(gelu_tanh)))(jnp.float32(x))
    np.testing.assert_allclose(found, slope, atol=5e-6)


def test_tables_positions_and_biases_do_not_decay():
    shapes = jax.eval_shape(dit.DiT(**SMALL).init, jax.random.key(0), *batch())["params"]
    decays = rules.map_with_path(lambda p, _: not rules.matches(p, rules.NO_DECAY_RULES), shapes)
    kernels = rules.map_with_path(lambda path, _: path.endswith("/kernel"), shapes)
    assert decays == kernels


def test_names_are_read():
    both = ("s", "b", "l", "xl")
    xl = {"patch": 2, "depth": 28, "width": 1152, "mlp": 0, "heads": 16}
    assert sizes.parse_dit_name("dit-xl/2", both) == xl
    assert sizes.parse_dit_name("pit-l", both) == sizes.parse_dit_name("dit-l/1", both)
    assert sizes.parse_dit_name("pit") == {"patch": 1}
    assert sizes.parse_dit_name("dit/8") == {"patch": 8}


@pytest.mark.parametrize(
    "name", ["dit-xl", "pit-xl/1", "dit-xl/3", "dit-h/2", "vit-s/2", "", "pit"]
)
def test_other_names_are_refused(name):
    with pytest.raises(ConfigError, match="write one of pit-l, pit-xl, dit-l/2, dit-xl/2"):
        sizes.parse_dit_name(name, ("l", "xl"))
