"""On images of one size, is a smaller patch better all the way down to the pixel?

    pit-jax sweep experiments/trend_fixed_input.py:tiny --workdir runs/fixed-input
    pit-jax sweep experiments/trend_fixed_input.py:paper --workdir gs://bucket/fixed-input

Question: the image stays, the patch shrinks, and the number of tokens grows. What varies:
`model.patch`.

`tiny`: 8×8 digits, patch 8 (one token) to 1 (64 tokens), three seeds. 5 minutes on two CPU
cores. Nothing is published at this size.
`paper`: ViT-S on ImageNet at 64×64, patch 16 to 1 (16 to 4096 tokens), one seed; recipe of
configs/imagenet64.py.

In v5e chip-hours at 40 % of the chip's peak, beside what is published:

    point                   chip-hours   published   how sure
    ViT-S, 64×64, patch 16        2.8    63.7 %      read in several accounts
    ViT-S, 64×64, patch 8        11
    ViT-S, 64×64, patch 4        46
    ViT-S, 64×64, patch 2       237      81.0 %      read in several accounts
    ViT-S, 64×64, patch 1     1 811      81.8 %      read in several accounts
    all 5 points              2 107
"""

from pathlib import Path

from pit_jax.configfile import read
from pit_jax.study.space import grid, scale_of, seeds

CONFIGS = Path(__file__).parent.parent / "configs"
SEVERAL = "read in several accounts"
PUBLISHED = [
    {"label": label, "metric": "eval/accuracy", "value": value, "note": note}
    for label, value, note in (
        ("ViT-S, 64×64, patch 16", 0.637, SEVERAL),
        ("ViT-S, 64×64, patch 2", 0.810, SEVERAL),
        ("ViT-S, 64×64, patch 1", 0.818, SEVERAL),
    )
]


def get_config(scale="tiny"):
    base = {"tiny": "digits.py:pit", "paper": "imagenet64.py:pit-s"}
    return read(str(CONFIGS / scale_of(scale, base)))


def sweep(scale="tiny"):
    points = {
        "tiny": lambda: grid({"model.patch": (8, 4, 2, 1)}, seeds(3)),
        "paper": lambda: [
            {"label": f"ViT-S, 64×64, patch {patch}", "model.patch": patch}
            for patch in (16, 8, 4, 2, 1)
        ],
    }
    return scale_of(scale, points)()
