"""Does pre-training on pixels without labels help where labels are few?

    pit-jax sweep experiments/mae_pretraining.py:tiny --workdir runs/mae-pretraining
    pit-jax sweep experiments/mae_pretraining.py:paper --workdir gs://bucket/mae-pretraining

Question: a model is pre-trained as a masked autoencoder on images whose labels it never sees,
and fine-tuned. Is it better than the same model from scratch? What varies: the start, the
patch, the seed.

`tiny`: PiT on the 1437 training digits, then on ten labels a class, three seeds; which 100
images have labels changes with the seed. Both are trained for 500 steps; layer-wise decay,
which makes sense for loaded weights only, is off from scratch. Thirteen minutes on two CPU
cores.
`paper`: CIFAR-100, Tiny and Small. Fine-tuning follows public MAE; what the paper trained
from scratch is configs/cifar100.py, 2400 epochs. All in all about 150 v5e chip-hours at
40 % of the chip's peak.
"""

from pathlib import Path

from pit_jax.configfile import read
from pit_jax.study.space import scale_of

CONFIGS = Path(__file__).parent.parent / "configs"
MODELS = ("pit-t", "vit-t/2", "pit-s", "vit-s/2")
PUBLISHED = [
    {"label": "ViT-T/2, from scratch", "metric": "eval/accuracy", "value": 0.836},
    {"label": "ViT-T/2, with MAE", "metric": "eval/accuracy", "value": 0.857},
    {"label": "PiT-T, from scratch", "metric": "eval/accuracy", "value": 0.851},
    {"label": "PiT-T, with MAE", "metric": "eval/accuracy", "value": 0.860},
    {"label": "ViT-S/2, from scratch", "metric": "eval/accuracy", "value": 0.837},
    {"label": "ViT-S/2, with MAE", "metric": "eval/accuracy", "value": 0.874},
    {"label": "PiT-S, from scratch", "metric": "eval/accuracy", "value": 0.864},
    {"label": "PiT-S, with MAE", "metric": "eval/accuracy", "value": 0.877},
]


def get_config(scale="tiny"):
    base = {"tiny": "digits_finetune.py:pit", "paper": "cifar100_finetune.py:pit-t"}
    return read(str(CONFIGS / scale_of(scale, base)))


def sweep(scale="tiny"):
    return scale_of(scale, {"tiny": tiny, "paper": paper})()


def tiny():
    for seed in range(3):
        before = f"pre-training, seed {seed}"
        labels = {"train.seed": seed, "data.per_class_seed": seed}
        yield {
            "label": before,
            "config": f"{CONFIGS}/digits_mae.py:pit",
            "train.seed": seed,
        }
        yield {"label": f"pre-trained, seed {seed}", "init_from": f"run:{before}"} | labels
        scratch = {"init_task": "", "optim.layer_decay": 1.0}
        yield {"label": f"from scratch, seed {seed}"} | scratch | labels


def paper():
    for model in MODELS:
        name = model.upper().replace("IT", "iT")
        before = f"{name}, pre-training"
        yield {"label": before, "config": f"{CONFIGS}/cifar100_mae.py:{model}"}
        yield {
            "label": f"{name}, with MAE",
            "config": f"{CONFIGS}/cifar100_finetune.py:{model}",
            "init_from": f"run:{before}",
        }
        yield {"label": f"{name}, from scratch", "config": f"{CONFIGS}/cifar100.py:{model}"}
