"""ViT and PiT on ImageNet at 64×64: the smaller the patch, the better, down to the pixel.

    pit-jax data prepare imagenet2012        # the archives must be downloaded by hand
    pit-jax train --config configs/imagenet64.py:pit-s --workdir gs://bucket/imagenet64-pit-s

| argument   | tokens | published top-1 % | training FLOP of the whole run |
|------------|--------|-------------------|--------------------------------|
| `vit-s/16` | 17     | 63.7              | 8.0e17                         |
| `vit-s/8`  | 65     |                   | 3.1e18                         |
| `vit-s/4`  | 257    |                   | 1.3e19                         |
| `vit-s/2`  | 1025   | 81.0              | 6.7e19                         |
| `pit-s`    | 4097   | 81.8              | 5.1e20                         |

Expected cost: `pit-jax preflight` finds at least 880 chip-hours for `pit-s` on v5e-256 and
378 on v5p-256, by a roofline, which no run reaches; at 40 % of the chips' peak, an
estimate, it is about 1,800 on v5e, seven hours.

From a copy at 64×64, made once and 16 GB large, nothing is decoded while it trains, and all
images are held in memory:

    pit-jax data prepare imagenet2012 --resize 64
    pit-jax train ... --config.data.name=imagenet2012@64 --config.data.in_memory_gb=16

Random crops are then taken of the copy, on the device. One of 8 % of the area has 18×18 pixels
and is enlarged, where of the whole image it is reduced: not the augmentation that is published.

The recipe is that of configs/imagenet28.py, which the paper has for its ImageNet table; that
it holds at this size, and all that is assumed there, is assumed. Every process holds all
of a copy that is in memory.
"""

from pit_jax.config import base
from pit_jax.models.sizes import parse_name


def get_config(arg="pit-s"):
    c = base()
    c.model.update(parse_name(arg, sizes="sb"))
    c.model.update(drop_path=0.1, remat="auto")
    c.data.update(name="imagenet2012", split="train", eval_split="validation")
    c.data.update(image_size=64, num_classes=1000, workers=8)
    c.data.update(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    c.data.augmentation.update(crop="resized", scale=(0.08, 1.0), flip=0.5)
    c.data.augmentation.update(randaugment=9.0, randaugment_std=0.5, mixup=0.8, cutmix=1.0)
    c.optim.update(lr=1e-4, lr_batch=256, betas=(0.9, 0.95), weight_decay=0.3, ema=0.9999)
    c.optim.update(schedule="cosine", warmup="20 epochs")
    c.train.update(batch_size=4096, epochs=300.0, label_smoothing=0.1)
    c.eval.every = "5 epochs"
    c.checkpoint.every = "1 epochs"
    return c
