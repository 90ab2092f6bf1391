"""How much do positions matter, and must they be told in two dimensions?

    pit-jax sweep experiments/position_embedding.py:tiny --workdir runs/position
    pit-jax sweep experiments/position_embedding.py:paper --workdir gs://bucket/position

Question: a Transformer that is given the fixed two-dimensional sine-cosine table, learns its
positions from a random start, or knows none (what it sees is then a bag of patches, or of
pixels). What varies: `model.position`, and at tiny scale the patch.

`tiny`: 8×8 digits, patch 2 and 1, three seeds. 9 minutes on two CPU cores. Nothing is
published at this size.
`paper`: ViT-B/16 on ImageNet at 224×224, one seed; recipe of configs/imagenet224.py.

In v5e chip-hours at 40 % of the chip's peak, beside what is published:

    point                chip-hours   published   how sure
    ViT-B/16, learned       133       82.8 %      read in one account or more
    ViT-B/16, sincos2d      133       82.7 %      read in one account or more
    ViT-B/16, none          133       81.2 %      read in one account or more
    all 3 points            399
"""

from pathlib import Path

from pit_jax.configfile import read
from pit_jax.study.space import grid, scale_of, seeds

CONFIGS = Path(__file__).parent.parent / "configs"
POSITIONS = ("learned", "sincos2d", "none")
READ = "read in one account or more"
PUBLISHED = [
    {"label": label, "metric": "eval/accuracy", "value": value, "note": note}
    for label, value, note in (
        ("ViT-B/16, learned", 0.828, READ),
        ("ViT-B/16, sincos2d", 0.827, READ),
        ("ViT-B/16, none", 0.812, READ),
    )
]


def get_config(scale="tiny"):
    base = {"tiny": "digits.py:vit/2", "paper": "imagenet224.py:vit-b/16"}
    return read(str(CONFIGS / scale_of(scale, base)))


def sweep(scale="tiny"):
    points = {
        "tiny": grid([*kinds("ViT/2", 2), *kinds("PiT", 1)], seeds(3)),
        "paper": kinds("ViT-B/16", 16),
    }
    return scale_of(scale, points)


def kinds(model, patch):
    """A model with each kind of position."""
    return [
        {"label": f"{model}, {position}", "model.patch": patch, "model.position": position}
        for position in POSITIONS
    ]
