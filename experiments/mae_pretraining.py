"""Does pre-training on pixels without labels help where labels are few?

    pit-jax sweep experiments/mae_pretraining.py:tiny --workdir runs/mae-pretraining
    pit-jax sweep experiments/mae_pretraining.py:paper --workdir gs://bucket/mae-pretraining

Question: a model is pre-trained as a masked autoencoder on images whose labels it never sees,
and fine-tuned. Is it better than the same model from scratch? What varies: the start, and at
tiny scale the seed; at `paper` scale the patch and the model's size instead.

`tiny`: PiT on the 1437 training digits, then on ten labels a class, three seeds; which 100
images have labels changes with the seed. Both are trained for 500 steps; layer-wise decay,
which makes sense for loaded weights only, is off from scratch. 13 minutes on two CPU cores.
Nothing is published at this size. experiments/digits_mae.py is the same without a sweep.
`paper`: CIFAR-100, Tiny and Small, patch 1 and 2, one seed. Fine-tuning follows public MAE;
what the paper trained from scratch is configs/cifar100.py, 2400 epochs. Mask ratio 75 % is
read in several accounts; all else of both recipes is assumed, see configs/cifar100_mae.py.

In v5e chip-hours at 40 % of the chip's peak, beside what is published:

    point                   chip-hours   published   how sure
    PiT-T, pre-training        6.0
    PiT-T, with MAE            1.1       86.0 %      read in several accounts
    PiT-T, from scratch       24         85.1 %      read in several accounts
    ViT-T/2, pre-training      1.1
    ViT-T/2, with MAE          0.18      85.7 %      read in several accounts
    ViT-T/2, from scratch      3.9       83.6 %      read in several accounts
    PiT-S, pre-training       19
    PiT-S, with MAE            3.3       87.7 %      read in several accounts
    PiT-S, from scratch       74         86.4 %      read in several accounts
    ViT-S/2, pre-training      4.0
    ViT-S/2, with MAE          0.64      87.4 %      read in several accounts
    ViT-S/2, from scratch     14         83.7 %      read in several accounts
    all 12 points            152
"""

from pathlib import Path

from pit_jax.configfile import read
from pit_jax.study.space import scale_of

CONFIGS = Path(__file__).parent.parent / "configs"
MODELS = ("pit-t", "vit-t/2", "pit-s", "vit-s/2")
SEVERAL = "read in several accounts"
PUBLISHED = [
    {"label": label, "metric": "eval/accuracy", "value": value, "note": note}
    for label, value, note in (
        ("PiT-T, with MAE", 0.860, SEVERAL),
        ("PiT-T, from scratch", 0.851, SEVERAL),
        ("ViT-T/2, with MAE", 0.857, SEVERAL),
        ("ViT-T/2, from scratch", 0.836, SEVERAL),
        ("PiT-S, with MAE", 0.877, SEVERAL),
        ("PiT-S, from scratch", 0.864, SEVERAL),
        ("ViT-S/2, with MAE", 0.874, SEVERAL),
        ("ViT-S/2, from scratch", 0.837, SEVERAL),
    )
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
