"""Does diffusion on single positions draw better images than on patches?

    pit-jax sweep experiments/latent_diffusion.py:tiny --workdir runs/diffusion
    pit-jax sweep experiments/latent_diffusion.py:paper --workdir gs://bucket/diffusion \\
        --config.data.dir=/data/latents --config.autoencoder.weights=VAE.safetensors \\
        --config.eval.features=INCEPTION.pth --config.eval.reference=REFERENCE.npz

Question: PiT (a token a position) and DiT on 2×2 patches learn to generate by class under one
recipe; how far are their samples from real images? What varies: the patch.

`tiny`: 8×8 digits, as pixels and not as latents, 1000 samples each against the training
digits in the features of a classifier that the study trains first: it is not FID, whose
network wants photographs. One seed, seventeen minutes on two CPU cores.
`paper`: DiT-L/2 and PiT-L (DiT-L/1) on the 32×32×4 latents of ImageNet at 256×256, guidance
1.5, 50 000 samples; about 3900 v5e chip-hours for PiT-L and 880 for DiT-L/2 at 40 % of the
chip's peak. Latents and reference are made by `pit-jax data latents` and `data stats`.
"""

from pathlib import Path

from pit_jax.configfile import read
from pit_jax.study.space import scale_of

CONFIGS = Path(__file__).parent.parent / "configs"
MEASURES = {"eval.what": ("loss", "samples", "generation")}
PUBLISHED = [
    {"label": "DiT-L/2", "metric": "eval/fid", "value": 4.16},
    {"label": "PiT-L", "metric": "eval/fid", "value": 4.05},
]


def get_config(scale="tiny"):
    base = {"tiny": "digits_diffusion.py:pit", "paper": "imagenet256_latent.py:pit-l"}
    return read(str(CONFIGS / scale_of(scale, base)))


def sweep(scale="tiny"):
    return scale_of(scale, {"tiny": tiny, "paper": paper})()


def tiny():
    yield {
        "label": "classifier",
        "config": f"{CONFIGS}/digits.py:vit/2",
        "train.epochs": 60.0,
    }
    measured = {"eval.features": "run:classifier", "eval.every": "100%"} | MEASURES
    yield {"label": "PiT"} | measured
    yield {"label": "DiT/2", "model.patch": 2} | measured


def paper():
    measured = {"eval.every": "100%"} | MEASURES
    yield {"label": "PiT-L"} | measured
    yield {"label": "DiT-L/2", "config": f"{CONFIGS}/imagenet256_latent.py:dit-l/2"} | measured
