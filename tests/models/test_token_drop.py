"""Token dropping: a part of each image in training, all of it in evaluation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pit_jax import validation
from pit_jax.errors import ConfigError
from pit_jax.models import vit
from pit_jax.perf import flops

from .encoded import Encoded

SMALL = {"num_classes": 5, "width": 16, "depth": 2, "heads": 2, "mlp": 32, "position_std": 1.0}


def images(batch: int = 3) -> jax.Array:
    return jax.random.normal(jax.random.key(0), (batch, 6, 6, 2))


@pytest.fixture(scope="module")
def dropping():
    model = vit.ViT(**SMALL, token_drop=0.7)  # 10 of 36 are left
    params = jax.jit(model.init)(jax.random.key(1), images())
    return model, params


def test_each_image_and_step_trains_on_other_tokens_always_as_many(dropping):
    model, params = dropping

    @jax.jit
    def seen(key: jax.Array) -> jax.Array:
        def output(x: jax.Array) -> jax.Array:
            return (model.apply(params, x, train=True, rngs={"dropout": key}) ** 2).sum()

        return jnp.abs(jax.grad(output)(images())).sum(-1).reshape(3, 36) > 0

    found = np.stack([seen(jax.random.key(seed)) for seed in range(40)])  # (40, 3, 36)
    assert (found.sum(-1) == 10).all()
    assert len({tuple(row) for row in found.reshape(-1, 36)}) == 120
    share = found.mean((0, 1))
    assert np.abs(share - 10 / 36).max() < 4.5 * (10 / 36 * 26 / 36 / 120) ** 0.5


def test_nothing_is_computed_of_what_is_left_out(dropping):
    _, params = dropping
    fields = {k: v for k, v in SMALL.items() if k != "num_classes"}
    encoder = Encoded(**fields, token_drop=0.7)

    def tokens(train: bool) -> jax.Array:
        rngs = {"dropout": jax.random.key(0)}
        return encoder.apply(params, images(), train=train, rngs=rngs)

    assert jax.eval_shape(lambda: tokens(True)).shape == (3, 11, 16)
    assert jax.eval_shape(lambda: tokens(False)).shape == (3, 37, 16)


def test_evaluation_sees_everything(dropping):
    model, params = dropping
    found = jax.jit(model.apply)(params, images())
    np.testing.assert_array_equal(found, jax.jit(vit.ViT(**SMALL).apply)(params, images()))


def test_dropping_no_token_draws_nothing():
    """The run without dropping is the one of before, with its drop paths, to the bit."""
    plain = vit.ViT(**SMALL, drop_path=0.5)
    params = jax.jit(plain.init)(jax.random.key(1), images())
    rngs = {"dropout": jax.random.key(3)}

    def program(model) -> str:
        return str(
            jax.make_jaxpr(lambda x: model.apply(params, x, train=True, rngs=rngs))(images())
        )

    assert program(plain) == program(plain.clone(token_drop=0.0))
    assert program(plain) != program(plain.clone(token_drop=0.5))


def test_training_costs_what_is_left(tiny):
    whole = flops.vit(validation.resolve(tiny).model, tiny.data)
    tiny.model.token_drop = 0.75
    part = flops.vit(validation.resolve(tiny).model, tiny.data)
    assert (
        (part.computed, part.tokens) == (whole.computed, whole.tokens) == (whole.training / 3, 65)
    )
    tiny.data.image_size = 4  # as many patches as are left of 8 × 8
    tiny.model.token_drop = 0.0
    assert part.training == flops.vit(validation.resolve(tiny).model, tiny.data).training


def test_impossible_shares_are_refused_in_one_line(tiny):
    tiny.model.token_drop = 1.0
    with pytest.raises(ConfigError, match=r"token_drop=1.0 must be at least 0.0 and at most 0.99"):
        validation.resolve(tiny)
    tiny.model.token_drop = 0.99
    with pytest.raises(ConfigError, match=r"token_drop=0.99 leaves none of an image's 64 tokens"):
        validation.resolve(tiny)
    tiny.task, tiny.eval.what = "mae", ("reconstruction",)
    with pytest.raises(ConfigError, match=r"token_drop is offered by 'vit' in task 'class"):
        validation.resolve(tiny)
