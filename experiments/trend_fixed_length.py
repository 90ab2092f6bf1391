"""With as many tokens as before, do smaller images of smaller patches do as well?

    pit-jax sweep experiments/trend_fixed_length.py:tiny --workdir runs/fixed-length
    pit-jax sweep experiments/trend_fixed_length.py:paper --workdir gs://bucket/fixed-length

Question: the number of tokens stays, patch and image shrink together. Pixels as tokens are no
gain by themselves when the image loses as much. What varies: `model.patch` and
`data.image_size` in step.

`tiny`: the digits, drawn smaller or larger than their 8×8: 16 tokens of 16×16, 8×8 and 4×4,
and 4 tokens of 8×8, 4×4 and 2×2, three seeds. Four minutes on two CPU cores. 16×16 holds no
more than 8×8 does, so the first pair says what interpolation alone does.
`paper`: ViT-B on ImageNet, 196 tokens of 224, 112, 56, 28 and 14 pixels a side. At
40 % of a v5e chip's peak each needs 132 chip-hours: all have the same number of tokens.
Recipe of configs/imagenet224.py.
"""

from pathlib import Path

from pit_jax.configfile import read
from pit_jax.study.space import chain, grid, scale_of, seeds, zipped

CONFIGS = Path(__file__).parent.parent / "configs"
PUBLISHED = [
    {"label": "ViT-B, 224×224", "metric": "eval/accuracy", "value": 0.828},
    {"label": "ViT-B, 14×14", "metric": "eval/accuracy", "value": 0.634},
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
