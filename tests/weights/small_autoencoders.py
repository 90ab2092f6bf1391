"""Autoencoders of a few thousand random weights."""

import numpy as np

from pit_jax.models.autoencoder import AutoencoderKL
from pit_jax.models.normalisation import Normalisation
from pit_jax.weights import autoencoder_names, tensors

SMALL = AutoencoderKL(channels=(8, 16, 16), layers=2, latent=4, groups=8, image_channels=3)
PLAIN = AutoencoderKL(
    channels=(8, 16), layers=1, latent=2, groups=4, attends=False, quant_convs=False
)
STABLE_DIFFUSION = Normalisation(scale=0.18215)


def weights(model: AutoencoderKL, seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    flat = {
        path: (0.25 * rng.normal(size=shape)).astype(np.float32)
        for path, shape in autoencoder_names.shapes(model).items()
    }
    return tensors.unflatten(flat)
