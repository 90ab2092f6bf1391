"""The effective receptive field: finite differences, and what must be exactly zero."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pit_jax import tasks, validation
from pit_jax.evals.locality import receptive_field

from . import encoder
from .test_attention_distance import digits, random_params


def test_energies_are_squared_gradients_of_the_standardised_token(resolved):
    """Against central differences of a float64 forward pass, at every fifth pixel."""
    task = tasks.build(resolved)
    params, images = random_params(task), np.asarray(task.normalise(digits(2)))
    signs = np.random.default_rng(3).choice([-1.0, 1.0], (2, 16)).astype(np.float32)
    token = 36  # row 4, column 4

    def represent(images):
        return task.tokens(params, images, {})[:, token]

    found = jax.jit(lambda x: receptive_field.energy(represent, x, signs))(images)

    def said(images):
        tokens, _ = encoder.run(params["trunk"], encoder.embed(params["embed"], images), 2)
        return (encoder.norm(tokens[:, 1 + token]) * signs).sum(-1)  # (B,)

    for pixel in range(0, 64, 5):
        row, column = divmod(pixel, 8)
        step = np.zeros((1, 8, 8, 1))
        step[0, row, column] = 1e-5
        slope = (said(images + step) - said(images - step)) / 2e-5
        np.testing.assert_allclose(found[:, row, column], slope**2, rtol=5e-3, atol=1e-7)


@pytest.mark.parametrize(("kernel", "reach"), [(3, 5), (1, 0)])
def test_a_convnet_sees_no_further_than_its_filters(tiny, kernel, reach):
    """One filter in front and two in each of two blocks: 5 pixels to each side."""
    tiny.data.image_size = 16
    tiny.model.name = "convnet"
    tiny.convnet.update(channels=(4, 8), layers=(1, 1), kernel=kernel)
    task = tasks.build(validation.resolve(tiny))
    batch = digits(3)
    batch["image"] = batch["image"].repeat(2, 1).repeat(2, 2)
    batch["mask"] = np.array([1, 1, 0], np.float32)
    params = random_params(task)
    measure = jax.jit(receptive_field.reader(task, 8 * 16 + 8))
    found = measure(params, batch, 0)
    rows, columns = np.nonzero(found["energy"])
    assert max(np.abs(rows - 8).max(), np.abs(columns - 8).max()) == reach
    assert found["examples"] == 2
    batch["image"][2] = 0  # a filling row changes nothing
    again = measure(params, batch, 0)
    np.testing.assert_array_equal(found["energy"], again["energy"])


def test_random_signs_give_the_norm_of_the_jacobian_on_average():
    """Of a token that is linear in the pixels but for its standardisation."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(9, 6))

    def represent(images):
        return images.reshape(len(images), 9) @ weights

    image = rng.normal(size=(3, 3, 1))
    signs = rng.choice([-1.0, 1.0], (4000, 6))
    images = jnp.broadcast_to(image, (4000, 3, 3, 1))
    found = jax.jit(lambda x, s: receptive_field.energy(represent, x, s))(images, signs).mean(0)
    x = image.reshape(9) @ weights
    centred = x - x.mean()
    deviation = np.sqrt(np.mean(centred**2) + 1e-6)
    project = np.eye(6) - 1 / 6 - np.outer(centred, centred) / (6 * deviation**2)
    jacobian = weights @ project / deviation  # (9, 6), as the formula of layer norm has it
    np.testing.assert_allclose(found.ravel(), np.square(jacobian).sum(1), rtol=0.1)


def test_three_numbers_of_a_map():
    """Patches of 2 × 2 in 6 × 6 pixels: the middle one's centre lies at (2.5, 2.5)."""
    own = np.zeros((6, 6))
    own[2:4, 2:4] = 1
    found = receptive_field.summary(own, 2, (1, 1))
    assert found == {
        "radius": pytest.approx(0.5**0.5),
        "distance": pytest.approx(0.5**0.5),
        "own": 1,
    }
    far = own.copy()
    far[0, 2] = 6  # (0, 2) is hypot(2.5, 0.5) away
    found = receptive_field.summary(far, 2, (1, 1))
    assert found["radius"] == pytest.approx(6.5**0.5)
    assert found["distance"] == pytest.approx((4 * 0.5**0.5 + 6 * 6.5**0.5) / 10)
    assert found["own"] == pytest.approx(0.4)
