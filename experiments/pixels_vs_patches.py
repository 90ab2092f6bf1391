"""Are pixels better tokens than patches?

    pit-jax sweep experiments/pixels_vs_patches.py:tiny --workdir runs/pixels-vs-patches
    pit-jax sweep experiments/pixels_vs_patches.py:scenes --workdir runs/pixels-scenes
    pit-jax sweep experiments/pixels_vs_patches.py:paper --workdir gs://bucket/pixels-vs-patches
    pit-jax sweep experiments/pixels_vs_patches.py:depth --workdir gs://bucket/pixels-depth

Question: one Transformer, one recipe; is it better on single pixels or on 2×2 patches? What
varies: the patch, and with it the number of tokens and the cost of a step; at the two larger
scales the data and the model's size too.

`tiny`: the 8×8 digits, width 64, depth 4, six seeds each, so that a permutation test can
tell something. 7 minutes on two CPU cores. Nothing is published at this size.
`scenes`: depth of rendered 16×16 scenes, configs/scenes_depth.py, patch 1, 2 and 4, three
seeds; about as long.
`paper`: one seed each, as published, with the recipes of configs/cifar100.py, imagenet28.py
and flowers102.py. `depth`: NYU-v2, configs/nyu_depth.py, apart because errors in metres and
accuracies are not compared.

In v5e chip-hours at 40 % of the chip's peak, beside what is published; `pit-jax preflight`
says more of each:

    point                     chip-hours   published   how sure
    PiT-T, CIFAR-100             24        85.1 %      read in several accounts
    ViT-T/2, CIFAR-100            3.9      83.6 %      read in several accounts
    PiT-S, CIFAR-100             74        86.4 %      read in several accounts
    ViT-S/2, CIFAR-100           14        83.7 %      read in several accounts
    PiT-S, ImageNet 28×28       168        74.1 %      read in several accounts; 28×28 assumed
    ViT-S/2, ImageNet 28×28      34        72.9 %      read in several accounts; 28×28 assumed
    PiT-B, ImageNet 28×28       589        76.1 %      read in several accounts; 28×28 assumed
    ViT-B/2, ImageNet 28×28     132        75.7 %      read in one account; 28×28 assumed
    PiT-L, ImageNet 28×28     1 398        76.9 %      read in several accounts; 28×28 assumed
    ViT-L/2, ImageNet 28×28     321        75.6 %      read in one account; 28×28 assumed
    PiT-T, Flowers                0.5      46.3 %      read in one account; Tiny, 32×32 assumed
    ViT-T/2, Flowers              0.08     45.8 %      read in one account; Tiny, 32×32 assumed
    all 12 points             2 759
    PiT-S, NYU-v2                 6        0.72 m      read in several accounts; 64×64 assumed
    ViT-S/2, NYU-v2               0.8      0.80 m      read in several accounts; 64×64 assumed

Large, flowers and depth are of the paper's second version. With a learned vector for every
colour instead of a linear layer PiT-B is published at 76.6 % (read in one account): that
embedding fits no single chip, and is no point of this study; see configs/imagenet28.py.
"""

from pathlib import Path

from pit_jax.configfile import read
from pit_jax.study.space import grid, scale_of, seeds

CONFIGS = Path(__file__).parent.parent / "configs"
SEVERAL, ONE = "read in several accounts", "read in one account"
SIDE, FLOWERS = "28×28 assumed", "Tiny, 32×32 assumed"
PUBLISHED = [
    {"label": label, "metric": "eval/accuracy", "value": value, "note": note}
    for label, value, note in (
        ("PiT-T, CIFAR-100", 0.851, SEVERAL),
        ("ViT-T/2, CIFAR-100", 0.836, SEVERAL),
        ("PiT-S, CIFAR-100", 0.864, SEVERAL),
        ("ViT-S/2, CIFAR-100", 0.837, SEVERAL),
        ("PiT-S, ImageNet 28×28", 0.741, f"{SEVERAL}; {SIDE}"),
        ("ViT-S/2, ImageNet 28×28", 0.729, f"{SEVERAL}; {SIDE}"),
        ("PiT-B, ImageNet 28×28", 0.761, f"{SEVERAL}; {SIDE}"),
        ("ViT-B/2, ImageNet 28×28", 0.757, f"{ONE}; {SIDE}"),
        ("PiT-L, ImageNet 28×28", 0.769, f"{SEVERAL}; {SIDE}"),
        ("ViT-L/2, ImageNet 28×28", 0.756, f"{ONE}; {SIDE}"),
        ("PiT-T, Flowers", 0.463, f"{ONE}; {FLOWERS}"),
        ("ViT-T/2, Flowers", 0.458, f"{ONE}; {FLOWERS}"),
    )
] + [
    {"label": label, "metric": "eval/rmse", "value": value, "note": f"{SEVERAL}; 64×64 assumed"}
    for label, value in (("PiT-S, NYU-v2", 0.72), ("ViT-S/2, NYU-v2", 0.80))
]
MODELS = {
    "paper": {
        "cifar100.py": ("CIFAR-100", ("pit-t", "vit-t/2", "pit-s", "vit-s/2")),
        "imagenet28.py": (
            "ImageNet 28×28",
            ("pit-s", "vit-s/2", "pit-b", "vit-b/2", "pit-l", "vit-l/2"),
        ),
        "flowers102.py": ("Flowers", ("pit-t", "vit-t/2")),
    },
    "depth": {"nyu_depth.py": ("NYU-v2", ("pit-s", "vit-s/2"))},
}


def get_config(scale="tiny"):
    base = {"tiny": "digits.py:pit", "paper": "cifar100.py:pit-t"}
    base |= {"scenes": "scenes_depth.py:pit", "depth": "nyu_depth.py:pit-s"}
    return read(str(CONFIGS / scale_of(scale, base)))


def sweep(scale="tiny"):
    points = {
        "tiny": grid({"model.patch": (1, 2)}, seeds(6)),
        "scenes": grid({"model.patch": (1, 2, 4)}, seeds(3)),
    }
    return scale_of(scale, points | {name: published(name) for name in MODELS})


def published(scale):
    return [
        {"label": f"{shown(name)}, {data}", "config": f"{CONFIGS / file}:{name}"}
        for file, (data, names) in MODELS[scale].items()
        for name in names
    ]


def shown(name):
    """ "pit-t" as "PiT-T"."""
    return name.upper().replace("IT", "iT")
