"""The optimiser: schedules, and which parameters decay, freeze or learn more slowly."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pit_jax import optim
from pit_jax.errors import ConfigError
from pit_jax.lengths import Clock

CLOCK = Clock(batch_size=64, num_examples=640, total_steps=100)


@pytest.fixture
def options(tiny):
    tiny.optim.update(lr=1.0, warmup="10 steps", lr_end=0.1, clip=0.0, weight_decay=0.0)
    return tiny.optim


def at(options, *steps: int) -> list[float]:
    lr = optim.schedule(options, CLOCK)
    return [float(lr(step)) for step in steps]


def test_warm_up_rises_from_zero_to_the_peak(options):
    np.testing.assert_allclose(at(options, 0, 5, 10), [0, 0.5, 1], rtol=1e-6)


def test_cosine_ends_at_lr_end(options):
    half = 0.1 + 0.9 / 2
    np.testing.assert_allclose(at(options, 55, 100), [half, 0.1], rtol=1e-5)


def test_constant_stays(options):
    options.schedule = "constant"
    np.testing.assert_allclose(at(options, 10, 99), [1, 1])


def test_wsd_decays_at_the_end_only(options):
    options.update(schedule="wsd", decay="20 steps")
    np.testing.assert_allclose(at(options, 79, 80, 90, 100), [1, 1, 0.55, 0.1], rtol=1e-5)


def test_lr_is_absolute_unless_a_base_batch_is_given(options):
    assert optim.peak_lr(options, 1024) == 1.0
    options.lr_batch = 256
    assert optim.peak_lr(options, 1024) == 4.0


def params() -> dict:
    def block(*layers: int) -> dict:
        return {
            "query": {"kernel": jnp.ones((*layers, 2, 2)), "bias": jnp.ones((*layers, 2))},
            "norm1": {"scale": jnp.ones((*layers, 2)), "bias": jnp.ones((*layers, 2))},
            "mlp_scale": {"scale": jnp.ones((*layers, 2))},
        }

    return {
        "embed": {
            "patch": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)},
            "cls": jnp.ones((1, 2)),
            "position": jnp.ones((5, 2)),
        },
        "trunk": {"blocks": block(3), "last": block()},
        "norm": {"scale": jnp.ones(2), "bias": jnp.ones(2)},
        "head": {"kernel": jnp.ones((2, 4)), "bias": jnp.ones(4)},
    }


def update(options, gradient: float, tree: dict | None = None) -> dict:
    tree = tree or params()
    tx = optim.build(options, lambda step: 1.0, tree, depth=4)
    grads = jax.tree.map(lambda x: jnp.full_like(x, gradient), tree)
    return tx.update(grads, tx.init(tree), tree)[0]


def test_weight_decay_spares_norms_biases_cls_and_positions(options):
    options.weight_decay = 0.5
    found = update(options, gradient=0.0)
    moved = {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, x in jax.tree_util.tree_leaves_with_path(found)
        if np.any(x)
    }
    assert moved == {
        "embed/patch/kernel",
        "trunk/blocks/query/kernel",
        "trunk/last/query/kernel",
        "head/kernel",
    }
    np.testing.assert_allclose(found["head"]["kernel"], -0.5)


def test_a_decoder_decays_but_for_its_mask_and_positions_and_is_no_layer(options):
    tree = params()
    group = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}
    trunk = {"blocks": {"query": {"kernel": jnp.ones((7, 3, 3))}}, "last": {"query": dict(group)}}
    tree["decoder"] = {"embed": group, "head": dict(group), "trunk": trunk}
    tree["decoder"] |= {"mask": jnp.ones((1, 3)), "position": jnp.ones((5, 3))}
    options.weight_decay = 0.5
    found = update(options, gradient=0.0, tree=tree)["decoder"]
    assert not np.any(found["mask"])
    assert not np.any(found["position"])
    assert not np.any(found["embed"]["bias"])
    np.testing.assert_allclose(found["embed"]["kernel"], -0.5)
    options.update(name="sgd", betas=(0.0, 0.0), layer_decay=0.5, weight_decay=0.0)
    for x in jax.tree.leaves(update(options, gradient=1.0, tree=tree)["decoder"]):
        np.testing.assert_allclose(x, -1)


def test_layer_decay_counts_from_the_head(options):
    options.update(name="sgd", betas=(0.0, 0.0), layer_decay=0.5)
    found = update(options, gradient=1.0)
    np.testing.assert_allclose(found["head"]["kernel"], -1)
    np.testing.assert_allclose(found["norm"]["scale"], -1)
    np.testing.assert_allclose(found["trunk"]["last"]["query"]["bias"], -0.5)
    blocks = found["trunk"]["blocks"]["query"]["kernel"][:, 0, 0]
    np.testing.assert_allclose(blocks, [-(0.5**4), -(0.5**3), -(0.5**2)])
    np.testing.assert_allclose(found["embed"]["position"], -(0.5**5))


def test_frozen_parameters_do_not_move_and_count_in_no_norm(options):
    options.update(name="sgd", betas=(0.0, 0.0), freeze=("^trunk/", "^embed/"), clip=1.0)
    options.weight_decay = 0.5
    tree = params()
    found = update(options, gradient=1.0, tree=tree)
    assert not any(np.any(x) for x in jax.tree.leaves((found["trunk"], found["embed"])))
    free = sum(x.size for x in jax.tree.leaves((tree["norm"], tree["head"])))
    np.testing.assert_allclose(found["norm"]["bias"], -1 / free**0.5, rtol=1e-6)


def test_clipping_bounds_the_global_norm(options):
    options.update(name="sgd", betas=(0.0, 0.0), clip=0.1)
    np.testing.assert_allclose(optax.tree.norm(update(options, 3.0)), 0.1, rtol=1e-5)


def test_adamw_equals_its_definition_in_float64(options):
    """Three steps of Loshchilov and Hutter's algorithm 2, written out."""
    options.update(betas=(0.9, 0.95), weight_decay=0.3)
    tree = {"head": {"kernel": jnp.array([[0.5, -1.0]])}}
    lr = 0.01
    tx = optim.build(options, lambda step: lr, tree, depth=4)
    state = tx.init(tree)
    x, m, v = np.array([[0.5, -1.0]]), 0.0, 0.0
    for step, g in enumerate(([[0.1, -2.0]], [[0.3, 1.0]], [[-0.2, 0.5]]), start=1):
        updates, state = tx.update({"head": {"kernel": jnp.array(g)}}, state, tree)
        tree = optax.apply_updates(tree, updates)
        g = np.array(g)
        m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g**2
        step_size = (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.95**step)) + 1e-8)
        x = x - lr * (step_size + 0.3 * x)
    np.testing.assert_allclose(tree["head"]["kernel"], x, rtol=1e-6)


def test_patterns_that_freeze_nothing_or_everything_are_refused(options):
    for patterns in ((), ("^trunk/",), ("bias$", "scale$")):
        options.freeze = patterns
        optim.check_freeze(options, params())
    options.freeze = ("^trunk/", "^trnk/")
    with pytest.raises(ConfigError, match=r"'\^trnk/' matches no parameter's path"):
        optim.check_freeze(options, params())
    options.freeze = ("^trunk/", ".")
    with pytest.raises(ConfigError, match="every parameter: nothing would be trained"):
        optim.check_freeze(options, params())


def test_a_run_that_is_made_longer_says_both_rates(options):
    finished = Clock(64, 640, 200), 100, 100
    [line] = optim.remarks(options, *finished)
    last, new = at(options, 99)[0], float(optim.schedule(options, finished[0])(100))
    assert last < 0.11 < 0.5 < new
    assert line.startswith("the length of training was 100 steps and is 200 now")
    assert line.endswith(f"was {last:.3g} in the last step and is {new:.3g} in the next")
    options.schedule = "wsd"
    assert len(optim.remarks(options, *finished)) == 1
    options.schedule = "constant"
    assert optim.remarks(options, *finished) == []
    options.schedule = "cosine"
    assert optim.remarks(options, CLOCK, 50, 100) == []  # the same length
    assert len(optim.remarks(options, CLOCK, 50, 60)) == 1


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({}, None),
        ({"warmup": "99 steps"}, None),
        ({"warmup": "20 epochs"}, "warmup='20 epochs' is 200 steps, but training has 100:"),
        (
            {"schedule": "wsd", "decay": "10 epochs"},
            "110 steps, but training has 100: the decay is cut",
        ),
        ({"ema": 0.99}, None),
        ({"ema": 0.9999}, "ema=0.9999 over 100 steps: at the end, what is evaluated is still 99 %"),
        ({"lr": 0.0}, "nothing is trained"),
    ],
)
def test_a_length_that_does_not_go_with_the_schedule_is_said(options, fields, sentence):
    options.update(fields)
    lines = optim.remarks(options, CLOCK)
    assert [sentence in line for line in lines] == ([True] if sentence else [])
