"""Does a Transformer need patches? PiT against ViT/2 on handwritten digits, on a laptop.

    make demo
    pit-jax sweep experiments/demo.py --workdir runs/demo
    pit-jax compare runs/demo --out runs/demo/report.html

Question: is a plain Transformer whose tokens are single pixels, told nothing about where
they lie, as good as the same model on 2×2 patches, and does it find the two dimensions of
the image by itself? What varies: `model.patch` 1 and 2 of configs/digits.py, and the seed.
Two seeds are no statistics: every value is printed, and no interval.

It has this one scale: 3 minutes on two CPU cores. Nothing is published at this size; the
paper's claim (PiT above ViT/2) is for CIFAR-100 and ImageNet, and at what cost to repeat it
there stands in experiments/pixels_vs_patches.py, which asks the same with more seeds.
"""

from pathlib import Path

from pit_jax.configfile import read
from pit_jax.study.space import grid, seeds

CONFIGS = Path(__file__).parent.parent / "configs"
PUBLISHED = []


def get_config():
    config = read(f"{CONFIGS}/digits.py:pit")
    config.eval.update(every="25%", what=("accuracy", "locality"))
    return config


def sweep():
    return grid({"model.patch": (1, 2)}, seeds(2))
