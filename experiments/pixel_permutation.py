"""What does a ViT on patches lose when the pixels are shuffled before they are cut?

    pit-jax sweep experiments/pixel_permutation.py:tiny --workdir runs/permutation
    pit-jax sweep experiments/pixel_permutation.py:paper --workdir gs://bucket/permutation

Question: patches assume that pixels side by side belong together. T pairs of pixels, at most
δ apart, trade places, the same pairs in every image of both splits. A model on patches should
lose by it; one on pixels with learned positions cannot tell. What varies:
`data.permutation.swaps` (T) and `.distance` (δ; 0 = any), and at tiny scale the patch.

`tiny`: 8×8 digits, where T = 32 moves every pixel; patches of 4×4 (4 tokens), of 2×2 (16
tokens, among which there is more to find out about what belongs together), and single pixels;
three seeds, each with a permutation of its own. 18 minutes on two CPU cores. Nothing is
published at this size.
`paper`: ViT-B/16 on ImageNet at 224×224, where T = 25 000 moves nearly every pixel, one seed;
recipe of configs/imagenet224.py. The published accuracies are those with no swaps and with
25 000; distances and the other T are this project's choice.

In v5e chip-hours at 40 % of the chip's peak, each 133, beside what is published:

    point                 chip-hours   published   how sure
    ViT-B/16, T = 0          133       82.8 %      read in several accounts
    ViT-B/16, T = 25000      133       57.6 %      read in several accounts; one permutation assumed
    all 12 points          1 595

One permutation: for all images, which the paper leaves open; its other reading is
`data.permutation.per_image`. Assumed too: that the pairs are disjoint, and that distance is
|Δrow| + |Δcol|.
"""

from pathlib import Path

from pit_jax.configfile import read
from pit_jax.study.space import grid, scale_of, zipped

CONFIGS = Path(__file__).parent.parent / "configs"
T, DISTANCE = "data.permutation.swaps", "data.permutation.distance"
SWAPS = (1000, 5000, 10_000, 20_000)
SEVERAL = "read in several accounts"
PUBLISHED = [
    {"label": label, "metric": "eval/accuracy", "value": value, "note": note}
    for label, value, note in (
        ("ViT-B/16, T = 0", 0.828, SEVERAL),
        ("ViT-B/16, T = 25000", 0.576, f"{SEVERAL}; one permutation assumed"),
    )
]


def get_config(scale="tiny"):
    base = {"tiny": "digits.py:vit/4", "paper": "imagenet224.py:vit-b/16"}
    return read(str(CONFIGS / scale_of(scale, base)))


def sweep(scale="tiny"):
    return scale_of(scale, {"tiny": tiny, "paper": paper})()


def swapped(model, patch, swaps, distance=0):
    label = f"{model}, T = {swaps}" + (f", δ = {distance}" if distance else "")
    return {"label": label, "model.patch": patch, T: swaps, DISTANCE: distance}


def tiny():
    each = zipped({"train.seed": (0, 1, 2), "data.permutation.seed": (0, 1, 2)})
    models = [
        *(swapped("ViT/4", 4, swaps) for swaps in (0, 8, 16, 24, 32)),
        *(swapped("ViT/4", 4, swaps, 1) for swaps in (16, 32)),
        *(swapped("PiT", 1, swaps) for swaps in (0, 32)),
        *(swapped("ViT/2", 2, swaps) for swaps in (0, 8, 16, 24, 32)),
        *(swapped("ViT/2", 2, swaps, 1) for swaps in (16, 32)),
    ]
    return grid(models, each)


def paper():
    far = [swapped("ViT-B/16", 16, swaps, d) for swaps in SWAPS[-2:] for d in (2, 8, 32)]
    return [*(swapped("ViT-B/16", 16, swaps) for swaps in (0, *SWAPS, 25_000)), *far]
