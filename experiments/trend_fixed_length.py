"""With as many tokens as before, do smaller images of smaller patches do as well?

    pit-jax sweep experiments/trend_fixed_length.py:tiny --workdir runs/fixed-length
    pit-jax sweep experiments/trend_fixed_length.py:paper --workdir gs://bucket/fixed-length

Question: the number of tokens stays, patch and image shrink together. Pixels as tokens are no
gain by themselves when the image loses as much. What varies: `model.patch` and
`data.image_size` in step; at tiny scale the number of tokens too.

`tiny`: the digits, drawn smaller or larger than their 8×8: 16 tokens of 16×16, 8×8 and 4×4,
and 4 tokens of 8×8, 4×4 and 2×2, three seeds. 4 minutes on two CPU cores. 16×16 holds no
more than 8×8 does, so the first pair says what interpolation alone does. Nothing is published
at this size.
`paper`: ViT-B on ImageNet, 196 tokens of 224, 112, 56, 28 and 14 pixels a side, one seed;
recipe of configs/imagenet224.py. The published figures are those of both ends.

In v5e chip-hours at 40 % of the chip's peak, beside what is published:

    point             chip-hours   published   how sure
    ViT-B, 224×224       133       82.8 %      read in one account
    ViT-B, 112×112       132
    ViT-B, 56×56         132
    ViT-B, 28×28         132
    ViT-B, 14×14         132       63.4 %      read in one account
    all 5 points         661
"""

from pathlib import Path

from pit_jax.configfile import read
from pit_jax.study.space import chain, grid, scale_of, seeds, zipped

CONFIGS = Path(__file__).parent.parent / "configs"
ONE = "read in one account"
PUBLISHED = [
    {"label": "ViT-B, 224×224", "metric": "eval/accuracy", "value": 0.828, "note": ONE},
    {"label": "ViT-B, 14×14", "metric": "eval/accuracy", "value": 0.634, "note": ONE},
]


def get_config(scale="tiny"):
    base = {"tiny": "digits.py:vit/2", "paper": "imagenet224.py:vit-b/16"}
    return read(str(CONFIGS / scale_of(scale, base)))


def sweep(scale="tiny"):
    def tokens(patches, sides):
        return zipped({"model.patch": patches, "data.image_size": sides})

    points = {
        "tiny": lambda: grid(
            chain(tokens((4, 2, 1), (16, 8, 4)), tokens((4, 2, 1), (8, 4, 2))), seeds(3)
        ),
        "paper": lambda: [
            {"label": f"ViT-B, {point['data.image_size']}×{point['data.image_size']}"} | point
            for point in tokens((16, 8, 4, 2, 1), (224, 112, 56, 28, 14))
        ],
    }
    return scale_of(scale, points)()
