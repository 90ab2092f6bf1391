"""DeiT-B on ImageNet at 64×64 with patches of 16 down to one pixel: patch scaling.

    pit-jax data prepare imagenet2012        # the archives must be downloaded by hand
    pit-jax train --config configs/patch_scaling.py:pit-b --workdir gs://bucket/scaling-pit-b

| argument   | tokens | published top-1 % |
|------------|--------|-------------------|
| `vit-b/16` | 17     | 68.2              |
| `vit-b/8`  | 65     | 76.9              |
| `vit-b/4`  | 257    | 80.1              |
| `vit-b/2`  | 1025   | 80.8              |
| `pit-b`    | 4097   | 81.3              |

Expected cost: `pit-jax preflight` finds at least 2,288 chip-hours for `pit-b` on v5e-256
and 982 on v5p-256, by a roofline, which no run reaches; at 40 % of the chips' peak, an
estimate, it is about 4,900 on v5e, nineteen hours.

Published by "Scaling Laws in Patchification" (arXiv 2502.03738), which trains DeiT-B. All of
the recipe is assumed to be DeiT's (Touvron et al. 2021, table 9): AdamW, learning rate 5e-4
per 512 images, batch 1024, weight decay 0.05, 5 epochs of warm-up, cosine to 1e-5, 300
epochs, RandAugment 9 ± 0.5, mixup 0.8, cutmix 1.0, label smoothing 0.1, random erasing 0.25,
drop path 0.1, no dropout, no moving average, weights that start at 0.02, each image three
times in a row, evaluation on the central 87.5 %.
"""

from pit_jax.config import base
from pit_jax.models.sizes import parse_name


def get_config(arg="pit-b"):
    c = base()
    c.model.update(parse_name(arg, sizes="b"))
    c.model.update(drop_path=0.1, remat="auto", initial="timm")
    c.data.update(name="imagenet2012", split="train", eval_split="validation")
    c.data.update(image_size=64, num_classes=1000, workers=8)
    c.data.update(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    c.data.eval_crop = 0.875
    c.data.augmentation.update(crop="resized", scale=(0.08, 1.0), flip=0.5, erasing=0.25, repeats=3)
    c.data.augmentation.update(randaugment=9.0, randaugment_std=0.5, mixup=0.8, cutmix=1.0)
    c.optim.update(lr=5e-4, lr_batch=512, betas=(0.9, 0.999), weight_decay=0.05)
    c.optim.update(schedule="cosine", warmup="5 epochs", lr_end=1e-5)
    c.train.update(batch_size=1024, epochs=300.0, label_smoothing=0.1)
    c.eval.every = "5 epochs"
    c.checkpoint.every = "1 epochs"
    return c
