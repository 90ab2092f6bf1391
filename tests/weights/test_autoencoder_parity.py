"""Autoencoders that compute the same here, in diffusers and in latent diffusion's own layers."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pit_jax.models.autoencoder import AutoencoderKL
from pit_jax.models.normalisation import Normalisation
from pit_jax.weights import autoencoder, autoencoder_names, tensors

from .small_autoencoders import PLAIN, STABLE_DIFFUSION, weights


@pytest.fixture(scope="module")
def diffusers():
    pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'pit_jax[parity]'")
    return pytest.importorskip("diffusers", reason="diffusers is not installed")


CASES = {
    "stable diffusion": (AutoencoderKL(channels=(8, 16, 24, 24), groups=8), Normalisation(0, 0.25)),
    "third": (
        AutoencoderKL(
            channels=(8, 16), layers=1, latent=16, groups=4, image_channels=1, quant_convs=False
        ),
        Normalisation(0.0609, 1.5305),
    ),
    "no attention": (PLAIN, Normalisation((1, 2), (49.0, 0.18215))),
}


def run_theirs(net, images, latents) -> tuple[np.ndarray, ...]:
    import torch

    with torch.no_grad():
        encoded = net.encode(torch.from_numpy(np.moveaxis(images, -1, 1).copy())).latent_dist
        decoded = net.decode(torch.from_numpy(np.moveaxis(latents, -1, 1).copy())).sample
    found = (encoded.mean, encoded.std, decoded)
    return tuple(np.moveaxis(x.numpy(), 1, -1) for x in found)


def run_ours(model, params, images, latents) -> tuple[np.ndarray, ...]:
    @jax.jit
    def run(params, images, latents):
        mean, std = model.apply({"params": params}, images, method="encode")
        return mean, std, model.apply({"params": params}, latents, method="decode")

    with jax.default_matmul_precision("highest"):
        return tuple(map(np.asarray, run(params, jnp.asarray(images), jnp.asarray(latents))))


def assert_equal_results(net, model, params) -> None:
    rng = np.random.default_rng(1)
    images = rng.uniform(-1, 1, (2, 32, 32, model.image_channels)).astype(np.float32)
    latents = rng.normal(size=(2, *model.latent_shape(32, 32))).astype(np.float32)
    expected = run_theirs(net, images, latents)
    found = run_ours(model, params, images, latents)
    for name, value, wanted in zip(("mean", "std", "images"), found, expected, strict=True):
        assert wanted.std() > 0.05, name  # the weights do something
        difference = np.abs(value - wanted).max() / np.abs(wanted).max()
        assert difference < 1e-4, (name, difference)


@pytest.mark.parity
@pytest.mark.parametrize("case", CASES)
def test_our_weights_compute_the_same_there(diffusers, tmp_path, case):
    model, normalisation = CASES[case]
    params = weights(model)
    autoencoder.write_diffusers(tmp_path, model, params, normalisation)
    net, report = diffusers.AutoencoderKL.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    if not isinstance(normalisation.scale, tuple):
        assert net.config.scaling_factor == normalisation.scale
        assert (net.config.shift_factor or 0) == normalisation.shift
    assert_equal_results(net, model, params)


@pytest.mark.parity
@pytest.mark.parametrize("case", CASES)
def test_their_weights_compute_the_same_here(diffusers, tmp_path, case):
    """From what save_pretrained writes, and written back it is the same to the bit."""
    import torch

    model, normalisation = CASES[case]
    config = autoencoder.diffusers_config(model, normalisation)
    net = diffusers.AutoencoderKL.from_config(config).eval()
    torch.manual_seed(0)
    for tensor in net.parameters():
        torch.nn.init.normal_(tensor, std=0.25)
    net.save_pretrained(tmp_path / "theirs")
    loaded = autoencoder.load(tmp_path / "theirs")
    assert (loaded.model, loaded.normalisation) == (model, normalisation)
    assert_equal_results(net, model, loaded.params)
    autoencoder.write_diffusers(tmp_path / "back", model, loaded.params, normalisation)
    name = "diffusion_pytorch_model.safetensors"
    there, back = (tensors.read(tmp_path / side / name)[0] for side in ("theirs", "back"))
    assert set(there) == set(back)
    for key, value in there.items():
        np.testing.assert_array_equal(back[key], value, err_msg=key)


@pytest.mark.parity
def test_the_public_size_is_theirs(diffusers):
    """Names, shapes and number of parameters of Stable Diffusion's own configuration."""
    import torch

    with torch.device("meta"):
        config = autoencoder.diffusers_config(AutoencoderKL(), STABLE_DIFFUSION)
        net = diffusers.AutoencoderKL.from_config(config)
    expected = {name: tuple(x.shape) for name, x in net.named_parameters()}
    assert sum(map(np.prod, expected.values())) == 83_653_863
    zeros = {
        path: np.broadcast_to(np.float32(0), shape)
        for path, shape in autoencoder_names.shapes(AutoencoderKL()).items()
    }
    found = autoencoder_names.to_diffusers(tensors.unflatten(zeros))
    assert {name: x.shape for name, x in found.items()} == expected


@pytest.mark.parity
def test_latent_diffusions_names_compute_the_same(diffusers, tmp_path):
    """Janus' tokenizer in transformers still has latent diffusion's layers and names."""
    import torch

    transformers = pytest.importorskip("transformers")
    from transformers.models.janus import modeling_janus as janus

    config = transformers.JanusVQVAEConfig(
        base_channels=32, channel_multiplier=[1, 2], num_res_blocks=1, latent_channels=2
    )
    config.in_channels = config.out_channels = 3
    config.double_latent, config.dropout = True, 0.0
    halves = {
        "encoder": janus.JanusVQVAEEncoder(config),
        "decoder": janus.JanusVQVAEDecoder(config),
    }
    torch.manual_seed(0)
    found = {}
    for half, net in halves.items():
        net.eval()
        for level in (*getattr(net, "down", ()), *getattr(net, "up", ())):
            level.attn = torch.nn.ModuleList()  # Stable Diffusion's has none there
        for name, tensor in net.named_parameters():
            torch.nn.init.normal_(tensor, std=0.15)
            # Janus keeps the decoder's levels in the order they are run in
            name = re.sub(r"^up\.(\d)", lambda m: f"up.{1 - int(m[1])}", name)
            found[f"first_stage_model.{half}.{name}"] = tensor.detach().numpy()
    tensors.write(tmp_path / "sd.safetensors", found | {"betas": np.zeros(3, np.float32)})
    loaded = autoencoder.load(tmp_path / "sd.safetensors", STABLE_DIFFUSION)
    assert (loaded.model.channels, loaded.model.quant_convs) == ((32, 64), False)
    rng = np.random.default_rng(1)
    images = rng.uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32)
    latents = rng.normal(size=(2, 8, 8, 2)).astype(np.float32)
    with torch.no_grad():
        moments = halves["encoder"](torch.from_numpy(np.moveaxis(images, -1, 1).copy()))
        decoded = halves["decoder"](torch.from_numpy(np.moveaxis(latents, -1, 1).copy()))
    mean, log_variance = np.split(np.moveaxis(moments.numpy(), 1, -1), 2, axis=-1)
    expected = (mean, np.exp(log_variance / 2), np.moveaxis(decoded.numpy(), 1, -1))
    for value, wanted in zip(
        run_ours(loaded.model, loaded.params, images, latents), expected, strict=True
    ):
        assert wanted.std() > 0.05
        assert np.abs(value - wanted).max() < 1e-4 * np.abs(wanted).max()
