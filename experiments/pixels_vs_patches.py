"""Are pixels better tokens than patches?

    pit-jax sweep experiments/pixels_vs_patches.py:tiny --workdir runs/pixels-vs-patches
    pit-jax sweep experiments/pixels_vs_patches.py:paper --workdir gs://bucket/pixels-vs-patches

Question: one Transformer, one recipe; is it better on single pixels or on 2×2 patches? What
varies: the patch, and with it the number of tokens and the cost of a step.

`tiny`: the 8×8 digits, width 64, depth 4, six seeds each, so that a permutation test can
tell something. Eight minutes on two CPU cores. Nothing is published at this size.
`paper`: CIFAR-100 at 32×32, Tiny and Small, one seed as published, then ImageNet at 28×28,
Small and Base. At 40 % of a v5e chip's peak the four CIFAR-100 runs are about 116 chip-hours,
the four on ImageNet 920; `pit-jax preflight` says more of each.
"""

from pathlib import Path

from pit_jax.configfile import read
from pit_jax.study.space import grid, scale_of, seeds

CONFIGS = Path(__file__).parent.parent / "configs"
PUBLISHED = [
    {"label": "PiT-T, CIFAR-100", "metric": "eval/accuracy", "value": 0.851},
    {"label": "ViT-T/2, CIFAR-100", "metric": "eval/accuracy", "value": 0.836},
    {"label": "PiT-S, CIFAR-100", "metric": "eval/accuracy", "value": 0.864},
    {"label": "ViT-S/2, CIFAR-100", "metric": "eval/accuracy", "value": 0.837},
    {"label": "PiT-S, ImageNet 28×28", "metric": "eval/accuracy", "value": 0.741},
    {"label": "ViT-S/2, ImageNet 28×28", "metric": "eval/accuracy", "value": 0.729},
    {"label": "PiT-B, ImageNet 28×28", "metric": "eval/accuracy", "value": 0.761},
    {"label": "ViT-B/2, ImageNet 28×28", "metric": "eval/accuracy", "value": 0.757},
]


def get_config(scale="tiny"):
    base = {"tiny": "digits.py:pit", "paper": "cifar100.py:pit-t"}
    return read(str(CONFIGS / scale_of(scale, base)))


def sweep(scale="tiny"):
    points = {"tiny": grid({"model.patch": (1, 2)}, seeds(6)), "paper": paper()}
    return scale_of(scale, points)


def paper():
    models = {
        "cifar100.py": ("CIFAR-100", ("pit-t", "vit-t/2", "pit-s", "vit-s/2")),
        "imagenet28.py": ("ImageNet 28×28", ("pit-s", "vit-s/2", "pit-b", "vit-b/2")),
    }
    return [
        {"label": f"{shown(name)}, {data}", "config": f"{CONFIGS / file}:{name}"}
        for file, (data, names) in models.items()
        for name in names
    ]


def shown(name):
    """ "pit-t" as "PiT-T"."""
    return name.upper().replace("IT", "iT")
