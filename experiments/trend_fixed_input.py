"""On images of one size, is a smaller patch better all the way down to the pixel?

    pit-jax sweep experiments/trend_fixed_input.py:tiny --workdir runs/fixed-input
    pit-jax sweep experiments/trend_fixed_input.py:paper --workdir gs://bucket/fixed-input

Question: the image stays, the patch shrinks, and the number of tokens grows. What varies:
`model.patch`.

`tiny`: 8×8 digits, patch 8 (one token) to 1 (64 tokens), three seeds. Five minutes on two CPU
cores.
`paper`: ViT-S on ImageNet at 64×64, patch 16 to 1 (16 to 4096 tokens). At 40 % of a v5e
chip's peak patch 1 needs about 1800 chip-hours, patch 2 240, the others less than 50 each.
Recipe of configs/imagenet64.py.
"""

from pathlib import Path

from pit_jax.configfile import read
from pit_jax.study.space import grid, scale_of, seeds

CONFIGS = Path(__file__).parent.parent / "configs"
PUBLISHED = [
    {"label": "ViT-S, 64×64, patch 16", "metric": "eval/accuracy", "value": 0.637},
    {"label": "ViT-S, 64×64, patch 2", "metric": "eval/accuracy", "value": 0.810},
    {"label": "ViT-S, 64×64, patch 1", "metric": "eval/accuracy", "value": 0.818},
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
