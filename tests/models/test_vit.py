"""The encoder: its parameters, what it must not know about images, what it need not compute."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pit_jax.errors import ConfigError
from pit_jax.models import attention, embed, sizes, transformer, vit
from pit_jax.parallel import rules

SMALL = {"num_classes": 5, "width": 16, "depth": 3, "heads": 2, "mlp": 32}


def images(seed: int = 0, shape: tuple = (2, 4, 4, 3)) -> jax.Array:
    return jnp.float32(np.random.default_rng(seed).normal(size=shape))


def init(model, like: jax.Array) -> dict:
    """Compiled as one program: many times faster than operation by operation."""
    return jax.jit(model.init)(jax.random.key(0), like)


def perturbed(model: vit.ViT, like: jax.Array) -> dict:
    """Parameters in which nothing is zero, so that everything matters."""
    rng = np.random.default_rng(2)
    params = init(model, like)["params"]
    return jax.tree.map(lambda x: x + np.float32(0.1 * rng.normal(size=x.shape)), params)


def count(name: str, image_size: int, classes: int) -> int:
    model = vit.ViT(num_classes=classes, **sizes.parse_name(name, "tsblh"))
    shape = jnp.zeros((1, image_size, image_size, 3))
    params = jax.eval_shape(model.init, jax.random.key(0), shape)
    return sum(x.size for x in jax.tree.leaves(params))


@pytest.mark.parametrize(
    ("name", "image_size", "classes", "expected"),
    [
        ("pit-t", 32, 100, 5_555_812),
        ("vit-t/2", 32, 100, 5.41e6),
        ("pit-s", 32, 100, 21.73e6),
        ("vit-s/2", 32, 100, 21.44e6),
        ("pit-b", 28, 1000, 86.43e6),
        ("pit-l", 28, 1000, 304.15e6),
    ],
)
def test_parameter_counts_equal_the_papers(name, image_size, classes, expected):
    tolerance = 0 if isinstance(expected, int) else 5e-3 * 1e6
    assert abs(count(name, image_size, classes) - expected) <= tolerance


def test_an_mlp_of_no_units_named_is_four_times_as_wide():
    def shapes(mlp: int):
        model = vit.ViT(**SMALL | {"mlp": mlp})
        return jax.eval_shape(model.init, jax.random.key(0), images())

    assert shapes(0) == shapes(4 * SMALL["width"])


def test_parameter_count_does_not_depend_on_heads():
    width, mlp, layers, classes = 16, 32, 3, 5
    block = 4 * (width**2 + width) + 2 * width * mlp + mlp + width + 4 * width
    expected = (3 * width + width) + width + 17 * width + layers * block + 2 * width
    expected += width * classes + classes
    for heads in (2, 4):
        model = vit.ViT(**SMALL | {"heads": heads})
        params = jax.eval_shape(model.init, jax.random.key(0), images())
        assert sum(x.size for x in jax.tree.leaves(params)) == expected


def test_pit_does_not_know_where_pixels_lie():
    """Permuting pixels together with their positions changes nothing, up to rounding."""
    model, x = vit.ViT(**SMALL), images()
    params = perturbed(model, x)
    apply = jax.jit(model.apply)
    before = apply({"params": params}, x)
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(16)
        shuffled = np.asarray(x).reshape(2, 16, 3)[:, order].reshape(x.shape)
        position = np.asarray(params["embed"]["position"])
        moved = params | {
            "embed": params["embed"]
            | {"position": np.concatenate([position[:1], position[1:][order]])}
        }
        np.testing.assert_allclose(apply({"params": moved}, shuffled), before, atol=2e-6)
        # The test can fail: without moving the positions the output is another one.
        assert not np.allclose(apply({"params": params}, shuffled), before, atol=1e-3)


def test_patches_do_know_where_pixels_lie():
    model, x = vit.ViT(**SMALL, patch=2, position="none"), images()
    params = perturbed(model, x)
    swapped = x.at[:, 0, 0].set(x[:, 0, 2]).at[:, 0, 2].set(x[:, 0, 0])
    before, after = (jax.jit(model.apply)({"params": params}, image) for image in (x, swapped))
    assert not np.allclose(before, after, atol=1e-3)


def test_last_block_computes_only_what_is_read():
    """One row of the last block gives the same output and gradients as all of them."""
    trunk = transformer.Trunk(depth=2, heads=2, mlp=32)
    tokens = jax.random.normal(jax.random.key(3), (2, 17, 16))
    params = init(trunk, tokens)

    def first_row(params, tokens, rows):
        return (trunk.apply(params, tokens, rows)[:, 0] ** 2).sum()

    both = jax.jit(jax.value_and_grad(first_row, (0, 1)), static_argnums=2)
    value, grads = both(params, tokens, 1)
    full_value, full_grads = both(params, tokens, None)
    np.testing.assert_allclose(value, full_value, rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), grads, full_grads
    )
    assert jax.eval_shape(lambda: trunk.apply(params, tokens, 1)).shape == (2, 1, 16)


def test_mean_pooling_has_no_cls_token():
    model = vit.ViT(**SMALL, pool="mean")
    params = init(model, images())["params"]
    assert "cls" not in params["embed"]
    assert params["embed"]["position"].shape == (16, 16)
    assert jax.jit(model.apply)({"params": params}, images()).shape == (2, 5)


@pytest.mark.parametrize("remat", ["full", "dots"])
def test_rematerialisation_changes_no_gradient(remat):
    x = images()
    plain, again = vit.ViT(**SMALL), vit.ViT(**SMALL, remat=remat)
    params = perturbed(plain, x)

    def loss(params, model):
        return (model.apply({"params": params}, x) ** 2).sum()

    expected, found = (
        jax.jit(jax.grad(loss), static_argnums=1)(params, model) for model in (plain, again)
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found, expected
    )


def test_program_does_not_grow_with_depth():
    def size(depth: int) -> int:
        model, x = vit.ViT(**SMALL | {"depth": depth}), images()
        params = jax.eval_shape(model.init, jax.random.key(0), x)

        def loss(params):
            return model.apply(params, x).sum()

        return len(jax.jit(jax.grad(loss)).lower(params).as_text())

    assert size(24) < 1.02 * size(12)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_trunk_is_blocks_and_last(depth):
    model = vit.ViT(**SMALL | {"depth": depth})
    trunk = init(model, images())["params"]["trunk"]
    assert set(trunk) == ({"blocks", "last"} if depth > 1 else {"last"})
    assert trunk["last"]["up"]["kernel"].shape == (16, 32)
    if depth > 1:
        assert trunk["blocks"]["up"]["kernel"].shape == (depth - 1, 16, 32)


def test_layers_start_different():
    params = init(vit.ViT(**SMALL), images())["params"]["trunk"]
    first, second = params["blocks"]["query"]["kernel"]
    assert not np.allclose(first, second)


def test_attention_equals_float64():
    rng = np.random.default_rng(0)
    q, k, v = rng.normal(size=(3, 2, 9, 2, 4))
    q = q[:, :5]
    scores = np.einsum("bqhd,bkhd->bhqk", q, k) / 2
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    expected = np.einsum("bhqk,bkhd->bqhd", weights, v)
    found = attention.attention(*(jnp.asarray(x, jnp.float32) for x in (q, k, v)))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_softmax_is_float32_under_bfloat16():
    """Attention over 4096 equal keys averages exactly; a bfloat16 sum would stop at 256."""
    q = jnp.zeros((1, 1, 1, 8), jnp.bfloat16)
    k = jnp.zeros((1, 4096, 1, 8), jnp.bfloat16)
    v = jnp.ones((1, 4096, 1, 8), jnp.bfloat16)
    found = attention.attention(q, k, v)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(np.float32), 1, rtol=1e-2)


def test_bfloat16_stays_near_float32():
    x = images()
    params = perturbed(vit.ViT(**SMALL), x)
    exact = jax.jit(vit.ViT(**SMALL, dtype="float32").apply)({"params": params}, x)
    rough = jax.jit(vit.ViT(**SMALL, dtype="bfloat16").apply)({"params": params}, x)
    assert rough.dtype == jnp.float32
    assert np.linalg.norm(rough - exact) < 0.05 * np.linalg.norm(exact)
    assert not np.array_equal(rough, exact)


def test_drop_path_keeps_whole_examples_and_the_mean():
    kept = transformer.drop_path(jnp.ones((4000, 3, 2)), jnp.float32(0.25), jax.random.key(0))
    per_example = np.asarray(kept)[:, 0, 0]
    assert (np.asarray(kept) == per_example[:, None, None]).all()
    np.testing.assert_allclose(np.unique(per_example), [0, 4 / 3], rtol=1e-6)
    assert abs(per_example.mean() - 1) < 0.03


def test_dropout_keeps_the_mean_and_whatever_stands_before_filling_rows():
    x, key = jnp.ones((20, 30, 40)), jax.random.key(0)
    kept = np.asarray(transformer.dropout(x, 0.25, key))
    np.testing.assert_allclose(np.unique(kept), [0, 4 / 3], rtol=1e-6)
    assert abs(kept.mean() - 1) < 5 * (1 / 3 / kept.size) ** 0.5
    filled = transformer.dropout(jnp.ones((20, 32, 40)), 0.25, key)
    np.testing.assert_array_equal(np.asarray(filled)[:, :30], kept)


def test_drop_path_and_dropout_act_in_training_only():
    x = images()
    model = vit.ViT(**SMALL, drop_path=0.5, dropout=0.1)
    params = {"params": perturbed(model, x)}
    plain = jax.jit(vit.ViT(**SMALL).apply)(params, x)
    np.testing.assert_array_equal(jax.jit(model.apply)(params, x), plain)
    training = jax.jit(lambda key: model.apply(params, x, train=True, rngs={"dropout": key}))
    one, two = (training(jax.random.key(seed)) for seed in (0, 1))
    assert not np.allclose(one, two)


def test_layer_scale_is_off_by_default_and_scales_when_on():
    x = images()
    scaled = init(vit.ViT(**SMALL, layer_scale=0.1), x)["params"]["trunk"]
    assert "attention_scale" not in init(vit.ViT(**SMALL), x)["params"]["trunk"]["last"]
    np.testing.assert_allclose(scaled["last"]["mlp_scale"]["scale"], 0.1)


def test_colour_dictionary_has_a_row_for_every_colour():
    table = embed.ColourDictionary(width=4, bits=2, dtype=jnp.float32)
    pixels = jnp.array([[[0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]])
    params = init(table, pixels)
    rows = params["params"]["table"]
    assert rows.shape == (2**6, 4)
    found = table.apply(params, pixels)[0]
    np.testing.assert_array_equal(found, rows[np.array([0, 63, 3, 48])])


def test_the_vectors_of_colours_are_not_decayed():
    """A rare colour would be shrunk by every step that does not see it."""
    params = init(vit.ViT(**SMALL | {"embed": "dictionary"}), images())["params"]
    paths = []
    rules.map_with_path(lambda path, _: paths.append(path), params)
    (table,) = [path for path in paths if "colour" in path]
    assert rules.matches(table, rules.NO_DECAY_RULES)


def test_sincos_positions_are_maes():
    """Against the formula of MAE written out for one position in float64."""
    table = embed.sincos2d((3, 5), 8)
    row, column = 2, 4
    frequencies = [1.0, 1 / 10000**0.5]
    expected = [np.sin(column * f) for f in frequencies] + [np.cos(column * f) for f in frequencies]
    expected += [np.sin(row * f) for f in frequencies] + [np.cos(row * f) for f in frequencies]
    np.testing.assert_allclose(table[row * 5 + column], expected, rtol=1e-6)


def test_patchify_keeps_rows_and_columns():
    image = jnp.arange(4 * 4 * 2).reshape(1, 4, 4, 2)
    tokens = embed.patchify(image, 2)
    np.testing.assert_array_equal(tokens[0, 1].reshape(2, 2, 2), image[0, 0:2, 2:4])
    np.testing.assert_array_equal(embed.patchify(image, 1)[0, 6], image[0, 1, 2])


@pytest.mark.parametrize("name", ["pit/1", "vit", "pit-x", "vit-t/0", "deit", "", "vit-t"])
def test_unknown_names_are_refused(name):
    with pytest.raises(ConfigError, match="write one of pit-t, pit-s"):
        sizes.parse_name(name, "ts")
