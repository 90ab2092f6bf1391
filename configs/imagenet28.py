"""PiT and ViT on ImageNet at 28×28, from scratch: the paper's ImageNet table.

    pit-jax data prepare imagenet2012        # the archives must be downloaded by hand
    pit-jax train --config configs/imagenet28.py:pit-b --workdir gs://bucket/imagenet28-pit-b

| argument  | tokens | published top-1 % | training FLOP of the whole run |
|-----------|--------|-------------------|--------------------------------|
| `pit-s`   | 785    | 74.1              | 4.8e19                         |
| `vit-s/2` | 197    | 72.9              | 9.7e18                         |
| `pit-b`   | 785    | 76.1              | 1.7e20                         |
| `vit-b/2` | 197    | 75.7              | 3.7e19                         |
| `pit-l`   | 785    | 76.9              | 4.0e20                         |
| `vit-l/2` | 197    | 75.6              | 9.1e19                         |

With a learned vector for every colour instead of a linear layer, 12.9 billion numbers, PiT-B
is published at 76.6 (read in one account): `--config.model.embed=dictionary
--config.mesh.data=1 --config.mesh.fsdp=-1`, since no chip holds it alone, without mixup and
cutmix, which blend colours.

Expected cost: `pit-jax preflight` finds at least 314 chip-hours for `pit-b` on v5e-64 and
135 on v5p-64, by a roofline, which no run reaches; at 40 % of the chips' peak, an estimate,
it is about 590 on v5e, some nine hours.

Published (recipe read in one account, the supervised recipe of the MAE paper): AdamW with
betas (0.9, 0.95), base learning rate 1e-4 per 256 images, batch 4096, weight decay 0.3,
none on norms, biases, [CLS] and positions, 20 epochs of warm-up, cosine, 300 epochs (Large:
200), RandAugment of magnitude 9 ± 0.5, mixup 0.8, cutmix 1.0, label smoothing 0.1, drop
path 0.1 (Large: 0.2), EMA 0.9999. Assumed: the size 28×28 itself (accounts disagree),
Small's 12 heads, Small trained like Base, resized crops of 8 to 100 % of the image,
positions started at 0.02, all else xavier-uniform, RandAugment's two layers and its increasing
set as in timm, evaluation on the whole shorter side.
"""

from pit_jax.config import base
from pit_jax.models.sizes import parse_name


def get_config(arg="pit-s"):
    c = base()
    c.model.update(parse_name(arg, sizes="sbl"))
    large = c.model.depth == 24
    c.model.update(drop_path=0.2 if large else 0.1, remat="full")
    c.data.update(name="imagenet2012", split="train", eval_split="validation")
    c.data.update(image_size=28, num_classes=1000, workers=8)
    c.data.update(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    c.data.augmentation.update(crop="resized", scale=(0.08, 1.0), flip=0.5)
    c.data.augmentation.update(randaugment=9.0, randaugment_std=0.5, mixup=0.8, cutmix=1.0)
    c.optim.update(lr=1e-4, lr_batch=256, betas=(0.9, 0.95), weight_decay=0.3, ema=0.9999)
    c.optim.update(schedule="cosine", warmup="20 epochs")
    c.train.update(batch_size=4096, epochs=200.0 if large else 300.0, label_smoothing=0.1)
    c.eval.every = "5 epochs"
    c.checkpoint.every = "1 epochs"
    return c
