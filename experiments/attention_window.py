"""How far must a pixel see? A dose–response curve of locality.

    pit-jax sweep experiments/attention_window.py:tiny --workdir runs/window
    pit-jax sweep experiments/attention_window.py:paper --workdir gs://bucket/window

Question: attention of a Pixel Transformer is limited to a radius, from a pixel's own place
(r = 0) to the whole image. Is a local prior a help, a burden, or neither? The paper does not
ask this: nothing is published. What varies: `model.window`, and with `model.window_layers` in
how many of the first layers it holds. The head reads the mean of all tokens and there is no
[CLS], which would carry news across the image in spite of the window.

`tiny`: 8×8 digits, three seeds. 40 minutes on two CPU cores that other work shared.
`paper`: PiT-S on CIFAR-100, one seed; recipe of configs/cifar100.py but for the head, which
makes the last layer compute every row and each point dearer than PiT-S there. In v5e
chip-hours at 40 % of the chip's peak; splash attention skips what no token of a block sees, so
small windows cost less:

    point           chip-hours
    everything          80
    all 10 points      797
"""

from pathlib import Path

from pit_jax.configfile import read
from pit_jax.study.space import chain, grid, scale_of, seeds

CONFIGS = Path(__file__).parent.parent / "configs"
PUBLISHED = []


def get_config(scale="tiny"):
    base = {"tiny": "digits.py:pit", "paper": "cifar100.py:pit-s"}
    config = read(str(CONFIGS / scale_of(scale, base)))
    config.model.pool = "mean"
    return config


def sweep(scale="tiny"):
    points = {
        "tiny": grid(
            chain(EVERYTHING, everywhere(0, 1, 1.5, 2, 3), at_first(1, (1, 2, 3))), seeds(3)
        ),
        "paper": chain(EVERYTHING, everywhere(0, 1, 2, 4, 8, 16), at_first(2, (3, 6, 9))),
    }
    return scale_of(scale, points)


EVERYTHING = [{"label": "everything", "model.window": (), "model.window_layers": 0}]


def everywhere(*radii):
    """One radius in all layers."""
    return [
        {"label": f"r = {radius}", "model.window": (float(radius),), "model.window_layers": 0}
        for radius in radii
    ]


def at_first(radius, layers):
    """A radius in the first layers, and everything in those behind them."""
    return [
        {
            "label": f"r = {radius} in {count} layer{'s' * (count > 1)}",
            "model.window": (float(radius),),
            "model.window_layers": count,
        }
        for count in layers
    ]
