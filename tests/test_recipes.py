"""The recipes in configs/ are those that were published, number by number."""

import json
import pathlib
import re

import pytest

from pit_jax import cli, configfile
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
# He et al. 2021, table 8, and public MAE's main_pretrain.py.
PRE_TRAINING = {
    "task": "mae",
    "optim.name": "adamw",
    "optim.lr": 1.5e-4,
    "optim.lr_batch": 256,
    "optim.betas": (0.9, 0.95),
    "optim.weight_decay": 0.05,
    "optim.layer_decay": 1.0,
    "optim.clip": 0.0,
    "optim.schedule": "cosine",
    "optim.warmup": "40 epochs",
    "optim.lr_end": 0.0,
    "optim.ema": 0.0,
    "train.epochs": 1600.0,
    "mae.mask_ratio": 0.75,
    "model.pool": "cls",
    "model.drop_path": 0.0,
    "data.augmentation.crop": "resized",
    "data.augmentation.scale": (0.2, 1.0),
    "data.augmentation.flip": 0.5,
    "data.augmentation.jitter": (0.0, 0.0, 0.0, 0.0),
    "data.augmentation.grayscale": 0.0,
    "data.augmentation.randaugment": 0.0,
}
PUBLIC_MAE = PRE_TRAINING | {
    "train.batch_size": 4096,
    "model.position": "sincos2d",
    "mae.decoder_position": "sincos2d",
    "mae.normalise_target": True,
    "mae.decoder_width": 512,
    "mae.decoder_depth": 8,
    "mae.decoder_heads": 16,
    "data.image_size": 224,
    "data.eval_crop": 0.875,
}
# The paper's mask ratio; all else is assumed from public MAE, or as the config's docstring says.
CIFAR_MAE = PRE_TRAINING | {
    "train.batch_size": 1024,
    "model.position": "learned",
    "mae.decoder_position": "learned",
    "mae.normalise_target": False,
    "mae.decoder_depth": 4,
    "data.image_size": 32,
}
# He et al. 2021, table 9, and public MAE's FINETUNE.md, for Base.
FINE_TUNING = {
    "task": "classification",
    "init_task": "mae",
    "optim.name": "adamw",
    "optim.lr": 5e-4,
    "optim.lr_batch": 256,
    "optim.betas": (0.9, 0.999),
    "optim.weight_decay": 0.05,
    "optim.layer_decay": 0.65,
    "optim.clip": 0.0,
    "optim.schedule": "cosine",
    "optim.warmup": "5 epochs",
    "optim.lr_end": 1e-6,
    "optim.ema": 0.0,
    "train.batch_size": 1024,
    "train.epochs": 100.0,
    "train.label_smoothing": 0.1,
    "model.pool": "patches",
    "model.position": "learned",
    "model.drop_path": 0.1,
    "data.augmentation.crop": "resized",
    "data.augmentation.scale": (0.08, 1.0),
    "data.augmentation.flip": 0.5,
    "data.augmentation.randaugment": 9.0,
    "data.augmentation.randaugment_std": 0.5,
    "data.augmentation.randaugment_layers": 2,
    "data.augmentation.erasing": 0.25,
    "data.augmentation.mixup": 0.8,
    "data.augmentation.cutmix": 1.0,
    "data.augmentation.mixup_prob": 1.0,
    "data.augmentation.mixup_switch_prob": 0.5,
}
PUBLIC_TUNING = FINE_TUNING | {"data.image_size": 224, "data.eval_crop": 0.875}
LARGE_TUNING = PUBLIC_TUNING | {"optim.lr": 1e-3, "optim.layer_decay": 0.75}
LARGE_TUNING |= {"train.epochs": 50.0, "model.drop_path": 0.2}
# Peebles and Xie 2023, section 4, and the public code.
DIT = {
    "optim.name": "adamw",
    "optim.lr": 1e-4,
    "optim.lr_batch": 0,
    "optim.betas": (0.9, 0.999),
    "optim.weight_decay": 0.0,
    "optim.schedule": "constant",
    "optim.warmup": "0 steps",
    "optim.clip": 0.0,
    "optim.ema": 0.9999,
    "train.batch_size": 256,
    "data.image_size": 32,
    "data.channels": 4,
    "data.num_classes": 1000,
    "data.augmentation.crop": "none",
    "data.augmentation.flip": 0.5,
    "model.position": "sincos2d",
    "model.dropout": 0.0,
    "model.frequency_steps": 128,
    "diffusion.family": "gaussian",
    "diffusion.schedule": "linear",
    "diffusion.timesteps": 1000,
    "diffusion.predict": "epsilon",
    "diffusion.learn_sigma": True,
    "diffusion.conditional": True,
    "diffusion.label_drop": 0.1,
    "sample.sampler": "ddpm",
    "sample.steps": 250,
    "sample.spacing": "linspace",
    "sample.guidance": 1.5,
    "sample.guidance_channels": 3,
    "sample.guidance_interval": (0.0, 1.0),
    "sample.clip": False,
    "sample.num": 50_000,
}
XL = {"model.width": 1152, "model.depth": 28, "model.heads": 16, "model.mlp": 4608}
# The paper's case study: batch and epochs; warm-up and the learning rate are assumed.
LATENT = DIT | {
    "model.width": 1024,
    "model.depth": 24,
    "model.heads": 16,
    "model.mlp": 4096,
    "optim.lr": pytest.approx(1e-4 * 8**0.5),
    "optim.warmup": "5%",
    "train.batch_size": 2048,
    "train.epochs": 400.0,
}
# "Back to Basics" (JiT, 2025), as configs/imagenet64_pixels.py says it.
JIT = {
    "optim.name": "adamw",
    "optim.lr": 2e-4,
    "optim.lr_batch": 0,
    "optim.betas": (0.9, 0.95),
    "optim.weight_decay": 0.0,
    "optim.schedule": "constant",
    "optim.warmup": "5 epochs",
    "optim.ema": 0.9999,
    "train.batch_size": 1024,
    "train.epochs": 200.0,
    "data.image_size": 64,
    "data.channels": 3,
    "data.augmentation.flip": 0.5,
    "model.width": 768,
    "model.depth": 12,
    "model.heads": 12,
    "model.mlp": 3072,
    "model.position": "learned",
    "diffusion.family": "flow",
    "diffusion.predict": "x0",
    "diffusion.time_mean": -0.8,
    "diffusion.time_std": 0.8,
    "diffusion.min_gap": 0.05,
    "diffusion.label_drop": 0.1,
    "sample.sampler": "heun",
    "sample.steps": 50,
    "sample.guidance": 2.0,
    "sample.guidance_channels": 0,
    "sample.guidance_interval": (0.0, 0.9),
    "sample.num": 50_000,
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
        ("imagenet_mae.py:vit-b/16", PUBLIC_MAE | {"model.width": 768, "model.patch": 16}),
        ("imagenet_mae.py:vit-l/16", PUBLIC_MAE | {"model.width": 1024, "model.depth": 24}),
        ("imagenet_finetune.py:vit-b/16", PUBLIC_TUNING | {"model.width": 768}),
        ("imagenet_finetune.py:vit-l/16", LARGE_TUNING | {"model.width": 1024}),
        ("cifar100_mae.py:pit-t", CIFAR_MAE | {"model.width": 192, "mae.decoder_width": 128}),
        ("cifar100_mae.py:vit-s/2", CIFAR_MAE | {"model.width": 384, "mae.decoder_width": 256}),
        ("cifar100_finetune.py:pit-s", FINE_TUNING | {"model.width": 384, "model.patch": 1}),
        ("cifar100_finetune.py:vit-t/2", FINE_TUNING | {"model.width": 192, "model.patch": 2}),
        (
            "imagenet256_latent.py:dit-xl/2",
            DIT | XL | {"model.patch": 2, "train.steps": 7_000_000, "train.epochs": None},
        ),
        (
            "imagenet256_latent.py:dit-b/4",
            DIT | {"model.width": 768, "model.patch": 4, "train.steps": 400_000},
        ),
        ("imagenet256_latent.py:pit-l", LATENT | {"model.patch": 1, "model.position": "learned"}),
        ("imagenet256_latent.py:dit-l/2", LATENT | {"model.patch": 2}),
        ("imagenet64_pixels.py:dit-b/4", JIT | {"model.patch": 4}),
        ("imagenet64_pixels.py:dit-b/2", JIT | {"model.patch": 2}),
        ("imagenet64_pixels.py:pit-b", JIT | {"model.patch": 1}),
    ],
)
def test_a_recipe_is_the_published_one(spec, published):
    found = flatten(configfile.load(f"{CONFIGS / spec}"))
    assert {name: found[name] for name in published} == published


@pytest.mark.parametrize(
    ("spec", "shown", "cost"),
    [
        ("digits_mae.py:pit", ["mae.mask_ratio = 0.75", "decoder/mask "], ("PiT mae", 17, 2246)),
        ("digits_mae.py:vit/2", ["mae.decoder_depth = 2", "decoder/head/"], ("ViT/2 mae", 5, 2246)),
        ("digits_finetune.py:pit", ["optim.layer_decay = 0.75", "head/kernel "], ("PiT", 65, 500)),
    ],
)
def test_the_small_recipes_are_shown(capsys, spec, shown, cost):
    """Pre-training encodes a quarter of the 64 pixels and [CLS], or of the 16 patches."""
    assert cli.run(["show", "--config", f"{CONFIGS / spec}"]) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {text}" in out for text in shown)
    model, tokens, steps = cost
    assert re.search(rf"\nmodel +{model}\ntokens an image +{tokens}\n", out)
    assert re.search(rf"\nsteps +{steps:,} of (64|40) examples\n", out)


def test_the_small_fine_tuning_is_compiled_for_a_tpu(cache_again, tmp_path):
    """Without the run that it starts from, which is asked for when it is trained."""
    pytest.importorskip("libtpu", reason="libtpu is not installed (x86-64 Linux only)")
    out = tmp_path / "out.json"
    words = ["--config", f"{CONFIGS}/digits_finetune.py:pit", "--topology", "v5e-8"]
    words += ["--config.model.width=128", "--config.model.depth=2", "--json", str(out)]
    assert cli.run(["preflight", *words]) == 0
    steps = json.loads(out.read_text())["steps"]
    assert steps["train"]["fits"]
    assert steps["eval"]["fits"]
    # Every parameter learns, however slowly: as many bytes of gradients are added up.
    reduced = sum(c["bytes"] for c in steps["train"]["collectives"] if c["kind"] == "all-reduce")
    assert reduced >= steps["train"]["params_bytes"] / 2
