"""Loaded weights in a fresh model: every path accounted for, or refused with the reason."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pit_jax import validation
from pit_jax.errors import ConfigError
from pit_jax.models import vit
from pit_jax.weights import load, tensors


@pytest.fixture
def shapes(tiny):
    """The parameters of a small model as jax.ShapeDtypeStructs."""

    def of(channels: int = 3, image_size: int = 8, num_classes: int = 10, **model):
        tiny.model.update(**{"width": 32, "depth": 3, "heads": 4, "mlp": 0, "patch": 1} | model)
        tiny.data.update(image_size=image_size, channels=channels, num_classes=num_classes)
        config = validation.resolve(tiny)
        images = jnp.zeros((1, image_size, image_size, channels))
        module = vit.build(config.model, num_classes)
        return jax.eval_shape(module.init, jax.random.key(0), images)["params"]

    return of


def filled(shapes: dict, seed: int) -> dict:
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), shapes)


def test_a_head_for_other_classes_is_new_and_the_rest_is_loaded(shapes):
    fresh, old = filled(shapes(num_classes=100), 1), filled(shapes(), 0)
    merged, report = load.merge(fresh, old | {"decoder": {"x": np.ones(3)}})
    assert set(report.new) == {"head/kernel", "head/bias"}
    assert set(report.dropped) == {"head/kernel", "head/bias", "decoder/x"}
    assert set(report.loaded) | set(report.new) == set(tensors.flatten(fresh))
    expected = tensors.flatten(old | {"head": fresh["head"]})
    for path, value in tensors.flatten(merged).items():
        np.testing.assert_array_equal(value, expected[path], err_msg=path)


def test_the_report_is_three_lines(shapes):
    _, report = load.merge(filled(shapes(num_classes=100), 1), filled(shapes(), 0))
    assert str(report).split("\n") == [
        "  loaded   embed (4), norm (2), trunk (32)",
        "  new      head (2)",
        "  dropped  head (2)",
    ]


def test_a_missing_head_is_new_and_any_other_gap_is_refused(shapes):
    fresh, old = filled(shapes(), 1), filled(shapes(), 0)
    del old["head"]
    _, report = load.merge(fresh, old)
    assert set(report.new) == {"head/kernel", "head/bias"}
    with pytest.raises(ConfigError, match="the weights have no head/bias"):
        load.merge(fresh, old, may_be_new=())
    del old["norm"]["scale"]
    with pytest.raises(ConfigError, match="the weights have no norm/scale"):
        load.merge(fresh, old)


def test_a_decoder_is_loaded_whole_or_not_at_all():
    """Half of another one says nothing."""
    fresh = {"decoder": {"mask": np.zeros(2), "head": np.zeros(3)}, "norm": np.zeros(2)}
    old = {"decoder": {"mask": np.ones(2), "head": np.ones(3)}, "norm": np.ones(2)}
    merged, report = load.merge(fresh, old, may_be_new=("decoder",))
    assert report.new == ()
    np.testing.assert_array_equal(merged["decoder"]["mask"], 1)
    for other in ({"mask": np.ones(2)}, {"mask": np.ones(2), "head": np.ones(4)}):
        merged, report = load.merge(fresh, old | {"decoder": other}, may_be_new=("decoder",))
        assert report.loaded == ("norm",)
        assert set(report.new) == {"decoder/mask", "decoder/head"}
        assert set(report.dropped) == {f"decoder/{name}" for name in other}
        assert merged["decoder"]["mask"] is fresh["decoder"]["mask"]


def test_what_a_model_computed_stands_in_for_what_it_has_not():
    fresh = {"embed": {"cls": np.zeros(2, "float32"), "position": np.zeros((3, 2), "float32")}}
    table, cls = np.arange(6.0).reshape(3, 2), {"cls": np.ones(2)}
    with pytest.raises(ConfigError, match="the weights have no embed/position"):
        load.merge(fresh, {"embed": cls})
    merged, report = load.merge(fresh, {"embed": cls}, computed={"embed/position": table})
    np.testing.assert_array_equal(merged["embed"]["position"], table)
    assert merged["embed"]["position"].dtype == np.float32
    assert (report.loaded, report.computed) == (("embed/cls",), ("embed/position",))
    assert str(report).endswith("\n  computed embed (1)")
    # what was learned goes before
    merged, report = load.merge(
        fresh, {"embed": cls | {"position": -table}}, computed={"embed/position": table}
    )
    np.testing.assert_array_equal(merged["embed"]["position"], -table)
    assert report.computed == ()


def test_shapes_are_targets_and_flat_trees_are_sources(shapes):
    target, old = shapes(num_classes=100), filled(shapes(), 0)
    merged, _ = load.merge(target, tensors.flatten(old))
    assert merged["head"]["kernel"] is target["head"]["kernel"]
    assert type(merged["norm"]["scale"]) is np.ndarray
    np.testing.assert_array_equal(merged["embed"]["cls"], old["embed"]["cls"])


def test_loaded_values_take_the_dtype_of_the_model(shapes):
    old = jax.tree.map(lambda x: x.astype(np.float16), filled(shapes(), 0))
    merged, _ = load.merge(shapes(), old)
    assert {x.dtype for x in jax.tree.leaves(merged)} == {np.dtype("float32")}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"width": 64}, "embed/cls of shape (1, 64), the config makes it (1, 32): model.width"),
        (
            {"patch": 2},
            "embed/patch/kernel of shape (12, 32), the config makes it (3, 32): model.patch",
        ),
        ({"channels": 1}, "(1, 32), the config makes it (3, 32): model.patch or data.channels"),
        ({"image_size": 12}, "embed/position of shape (145, 32), the config makes it (65, 32)"),
        ({"image_size": 12}, "data.image_size, model.patch or model.pool differ"),
        ({"depth": 4}, "(2, 32): model.depth differ"),
        (
            {"mlp": 64},
            "down/kernel of shape (2, 64, 32), the config makes it (2, 128, 32): model.mlp",
        ),
    ],
    ids=lambda x: str(x)[:30],
)
def test_another_shape_is_refused_with_its_cause(shapes, change, sentence):
    fresh, old = shapes(), filled(shapes(**change), 0)
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        load.merge(fresh, old)


def test_another_number_of_classes_is_the_cause_where_no_head_may_be_new(shapes):
    with pytest.raises(ConfigError, match=r"head/bias of shape \(10,\).*data\.num_classes differ"):
        load.merge(shapes(num_classes=5), filled(shapes(), 0), may_be_new=())
