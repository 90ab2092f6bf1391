"""Does diffusion on single positions draw better images than on patches?

    pit-jax sweep experiments/latent_diffusion.py:tiny --workdir runs/diffusion
    pit-jax sweep experiments/latent_diffusion.py:paper --workdir gs://bucket/diffusion \\
        --config.data.dir=/data/latents --config.autoencoder.weights=VAE.safetensors \\
        --config.eval.features=INCEPTION.pth --config.eval.reference=REFERENCE.npz

Question: PiT (a token a position) and DiT on 2×2 patches learn to generate by class under one
recipe; how far are their samples from real images? What varies: the patch. Both scales have
one seed: they say nothing of its spread.

`tiny`: 8×8 digits, as pixels and not as latents, 1000 samples each against the training
digits in the features of a classifier that the study trains first: it is not FID, whose
network wants photographs. 17 minutes on two CPU cores. Nothing is published at this size.
experiments/digits_diffusion.py asks the same against held-out digits.
`paper`: DiT-L/2 and PiT-L (DiT-L/1) on the 32×32×4 latents of ImageNet at 256×256, guidance
1.5, 50 000 samples. Latents and reference are made by `pit-jax data latents` and
`data stats`. The recipe is assumed, see configs/imagenet256_latent.py.

In v5e chip-hours of training at 40 % of the chip's peak (sampling adds 2 %), beside what is
published of ImageNet 256×256 with guidance:

    point     chip-hours   published        how sure
    DiT-L/2       875      FID 4.16         read in several accounts
                           sFID 4.97        read in one account
                           IS 210.18        read in one account
                           precision 0.88   assumed, read in no account
                           recall 0.49      assumed, read in no account
    PiT-L       3 912      FID 4.05         read in several accounts
                           sFID 4.66        read in one account
                           IS 232.95        read in one account
                           precision 0.88   assumed, read in no account
                           recall 0.49      assumed, read in no account
    all 2 points  4 787

Without guidance DiT-L/2 is published at FID 8.90 (read in several accounts):
`--config.sample.guidance=1.0` of `pit-jax eval`, on the run that is there.
"""

from pathlib import Path

from pit_jax.configfile import read
from pit_jax.study.space import scale_of

CONFIGS = Path(__file__).parent.parent / "configs"
MEASURES = {"eval.what": ("loss", "samples", "generation")}
SEVERAL, ONE, NONE = (
    "read in several accounts",
    "read in one account",
    "assumed, read in no account",
)
PUBLISHED = [
    {"label": label, "metric": f"eval/{metric}", "value": value, "note": note}
    for label, metric, value, note in (
        ("DiT-L/2", "fid", 4.16, SEVERAL),
        ("DiT-L/2", "sfid", 4.97, ONE),
        ("DiT-L/2", "inception_score", 210.18, ONE),
        ("DiT-L/2", "precision", 0.88, NONE),
        ("DiT-L/2", "recall", 0.49, NONE),
        ("PiT-L", "fid", 4.05, SEVERAL),
        ("PiT-L", "sfid", 4.66, ONE),
        ("PiT-L", "inception_score", 232.95, ONE),
        ("PiT-L", "precision", 0.88, NONE),
        ("PiT-L", "recall", 0.49, NONE),
    )
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
