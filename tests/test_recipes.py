"""The recipes in configs/ are those that were published, number by number."""

import pathlib

import pytest

from pit_jax import configfile
from pit_jax.config import flatten

CONFIGS = pathlib.Path(__file__).parent.parent / "configs"
# The paper's table of CIFAR-100; jitter's hue and drop path are assumed.
CIFAR = {
    "optim.lr": 4e-3,
    "optim.lr_batch": 0,
    "optim.betas": (0.9, 0.95),
    "optim.weight_decay": 0.3,
    "optim.schedule": "cosine",
    "optim.warmup": "20 epochs",
    "optim.lr_end": 1e-6,
    "train.batch_size": 1024,
    "train.epochs": 2400.0,
    "data.image_size": 32,
    "data.augmentation.crop": "resized",
    "data.augmentation.scale": (0.2, 1.0),
    "data.augmentation.flip": 0.5,
    "data.augmentation.grayscale": 0.2,
    "data.augmentation.jitter": (0.4, 0.4, 0.4, 0.4),
}
# He et al. 2021, table 11: from scratch.
IMAGENET = {
    "optim.lr": 1e-4,
    "optim.lr_batch": 256,
    "optim.betas": (0.9, 0.95),
    "optim.weight_decay": 0.3,
    "optim.schedule": "cosine",
    "optim.warmup": "20 epochs",
    "optim.ema": 0.9999,
    "train.batch_size": 4096,
    "train.label_smoothing": 0.1,
    "data.augmentation.randaugment": 9.0,
    "data.augmentation.randaugment_std": 0.5,
    "data.augmentation.mixup": 0.8,
    "data.augmentation.cutmix": 1.0,
}
BASE = IMAGENET | {"train.epochs": 300.0, "model.drop_path": 0.1}
LARGE = IMAGENET | {"train.epochs": 200.0, "model.drop_path": 0.2}
# Peebles and Xie 2023, section 4.
DIT = {
    "optim.lr": 1e-4,
    "optim.weight_decay": 0.0,
    "optim.warmup": "0 steps",
    "optim.ema": 0.9999,
    "train.batch_size": 256,
    "data.augmentation.flip": 0.5,
}


@pytest.mark.parametrize(
    ("spec", "published"),
    [
        ("cifar100.py:pit-t", CIFAR | {"model.width": 192, "model.depth": 12, "model.heads": 12}),
        ("cifar100.py:vit-s/2", CIFAR | {"model.width": 384, "model.depth": 12}),
        ("imagenet28.py:pit-b", BASE | {"model.width": 768, "data.image_size": 28}),
        ("imagenet28.py:pit-l", LARGE | {"model.width": 1024, "model.depth": 24}),
        ("imagenet224.py:vit-b/16", BASE | {"data.image_size": 224, "model.patch": 16}),
        ("imagenet64.py:pit-s", BASE | {"data.image_size": 64, "model.patch": 1}),
        ("imagenet256_latent.py:dit-xl/2", DIT | {"model.width": 1152, "model.depth": 28}),
    ],
)
def test_a_recipe_is_the_published_one(spec, published):
    found = flatten(configfile.load(f"{CONFIGS / spec}"))
    assert {name: found[name] for name in published} == published
