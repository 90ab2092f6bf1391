"""Step by step against the schedulers of the public diffusers package."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pit_jax.diffusion.gaussian import Gaussian
from pit_jax.diffusion.samplers import sample
from pit_jax.diffusion.schedule import named

pytestmark = pytest.mark.parity

LINEAR = named("linear")
THEIRS = {"epsilon": "epsilon", "x0": "sample", "v": "v_prediction"}
SHAPE = (3, 2, 4, 2)


@pytest.fixture(scope="module")
def diffusers():
    pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'pit_jax[parity]'")
    return pytest.importorskip("diffusers", reason="diffusers is not installed")


def network(outputs: int):
    def denoise(x, time):
        time = time[:, None, None, None] / 1000
        rest = jnp.tanh(0.7 * x[..., ::-1] + time) + 0.2 * jnp.sin(3 * x)
        return jnp.concatenate([rest, jnp.cos(x + time)], axis=-1)[..., :outputs]

    return denoise


def draws():
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(5), i))(jnp.arange(SHAPE[0]))
    return jax.random.normal(jax.random.key(9), SHAPE), keys


def ours(process, denoise, sampler, steps, **options) -> list[np.ndarray]:
    """x before every step, as the network is given it, and behind the last."""
    found = []

    def watched(x, time):
        jax.debug.callback(lambda x: found.append(np.asarray(x)), x, ordered=True)
        return denoise(x, time)

    last = jax.jit(partial(sample, process, watched, sampler=sampler, steps=steps, **options))
    last = np.asarray(last(*draws()))
    jax.effects_barrier()
    return [*found, last]


def theirs(scheduler, denoise, step) -> list[np.ndarray]:
    """The same of their loop over our network: images with channels first, as they want them."""
    import torch

    noise, _ = draws()
    found = [np.asarray(noise)]
    x = torch.from_numpy(np.moveaxis(np.asarray(noise), -1, 1).copy())
    denoise = jax.jit(denoise)
    for i, t in enumerate(scheduler.timesteps):
        image = jnp.asarray(np.moveaxis(x.numpy(), 1, -1))
        output = denoise(image, jnp.full(SHAPE[0], float(t)))
        output = torch.from_numpy(np.moveaxis(np.asarray(output), -1, 1).copy())
        x = step(output, t, x, i).prev_sample.float()
        found.append(np.moveaxis(x.numpy(), 1, -1))
    return found


@jax.jit
def noise_of_step(i) -> jax.Array:
    _, keys = draws()
    return jnp.stack([jax.random.normal(jax.random.fold_in(key, i), SHAPE[1:]) for key in keys])


def drawn(i):
    """Our noise of step i, as theirs."""
    import torch

    return torch.from_numpy(np.moveaxis(np.asarray(noise_of_step(i)), -1, 1).copy())


def options(predict):
    import torch

    return {
        "prediction_type": THEIRS[predict],
        "trained_betas": torch.from_numpy(LINEAR.betas),  # float64, as ours
    }


def test_the_table_is_theirs(diffusers):
    theirs = diffusers.DDIMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
    np.testing.assert_allclose(LINEAR.betas, theirs.betas, rtol=1e-5)
    theirs = diffusers.DDIMScheduler(beta_schedule="squaredcos_cap_v2")
    np.testing.assert_allclose(named("cosine").betas, theirs.betas, rtol=1e-5)


@pytest.mark.parametrize("eta", [0.0, 0.7])
@pytest.mark.parametrize("predict", THEIRS)
def test_ddim(diffusers, predict, eta):
    scheduler = diffusers.DDIMScheduler(
        **options(predict), clip_sample=False, timestep_spacing="leading"
    )
    scheduler.set_timesteps(50)
    denoise = network(2)

    def step(output, t, x, i):
        noise = drawn(i) if eta else None
        return scheduler.step(output, t, x, eta=eta, variance_noise=noise)

    expected = theirs(scheduler, denoise, step)
    process = Gaussian(LINEAR, predict, False)
    found = ours(process, denoise, "ddim", "ddim50", eta=eta)
    assert_equal_steps(found, expected)


@pytest.mark.parametrize("predict", THEIRS)
@pytest.mark.parametrize("steps", [10, 30])
def test_dpm(diffusers, predict, steps):
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **options(predict), algorithm_type="dpmsolver++", solver_order=2, final_sigmas_type="zero"
    )
    timesteps = LINEAR.respaced(steps).timesteps[::-1]
    scheduler.set_timesteps(timesteps=timesteps.tolist())
    denoise = network(2)
    if steps < 15:  # theirs has order one in the last but one step, too, when there are few
        scheduler.register_to_config(lower_order_final=False)
    expected = theirs(scheduler, denoise, lambda o, t, x, i: scheduler.step(o, t, x))
    found = ours(Gaussian(LINEAR, predict, False), denoise, "dpm++", steps)
    assert_equal_steps(found, expected)


@pytest.mark.parametrize(
    ("learn_sigma", "variance"), [(False, "small"), (False, "large"), (True, "large")]
)
@pytest.mark.parametrize("predict", THEIRS)
def test_ddpm(diffusers, predict, learn_sigma, variance, monkeypatch):
    from diffusers.schedulers import scheduling_ddpm

    scheduler = diffusers.DDPMScheduler(
        **options(predict),
        clip_sample=False,
        variance_type="learned_range" if learn_sigma else f"fixed_{variance}",
    )
    timesteps = LINEAR.respaced(25).timesteps[::-1]
    scheduler.set_timesteps(timesteps=timesteps.tolist())
    process = Gaussian(LINEAR, predict, learn_sigma, variance=variance)
    denoise = network(process.outputs(2))

    def step(output, t, x, i):
        monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *a, **k: drawn(i))
        return scheduler.step(output, t, x)

    expected = theirs(scheduler, denoise, step)
    found = ours(process, denoise, "ddpm", 25)
    assert_equal_steps(found, expected)


@pytest.mark.parametrize("predict", ["v"])
def test_noised_images_and_their_velocity(diffusers, predict):
    import torch

    scheduler = diffusers.DDIMScheduler(**options(predict))
    rng = np.random.default_rng(0)
    x, noise = rng.normal(size=(2, *SHAPE)).astype(np.float32)
    t = np.array([0, 400, 999])
    arguments = [torch.from_numpy(a) for a in (x, noise, t)]
    process = Gaussian(LINEAR, predict, False)
    ours = [jnp.asarray(a) for a in (x, noise, t)]
    np.testing.assert_allclose(process.noised(*ours), scheduler.add_noise(*arguments), atol=1e-5)
    np.testing.assert_allclose(process.target(*ours), scheduler.get_velocity(*arguments), atol=1e-5)


def assert_equal_steps(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    for i, (x, wanted) in enumerate(zip(found, expected, strict=True)):
        difference = np.abs(x - wanted).max() / np.abs(wanted).max()
        assert difference < 2e-5, (i, difference)
