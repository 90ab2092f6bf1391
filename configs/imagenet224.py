"""ViT on ImageNet at 224×224, from scratch: the baseline of the paper's locality ablations.

    pit-jax data prepare imagenet2012        # the archives must be downloaded by hand
    pit-jax train --config configs/imagenet224.py:vit-b/16 --workdir gs://bucket/vit-b16

| change                                                             | published top-1 % |
|--------------------------------------------------------------------|-------------------|
| none: learned positions                                            | 82.8              |
| `--config.model.position=sincos2d`                                 | 82.7              |
| `--config.model.position=none`                                     | 81.2              |
| `--config.data.permutation.swaps=25000`                            | 57.6              |
| `--config.model.patch=1 --config.data.image_size=14`, 196 tokens   | 63.4              |

experiments/position_embedding.py, pixel_permutation.py and trend_fixed_length.py run them
all. `pit-b` has 50 177 tokens here: 197 times the cost.

Expected cost: `pit-jax preflight` finds at least 54 chip-hours for `vit-b/16` on v5e-64 and
23 on v5p-64, by a roofline, which no run reaches; at 40 % of the chips' peak, an estimate,
it is about 133 on v5e, two hours.

Published (recipe read in one account, the supervised recipe of the MAE paper, whose own
ViT-B/16 reaches 82.3): AdamW with betas (0.9, 0.95), base learning rate 1e-4 per 256 images,
batch 4096, weight decay 0.3, none on norms, biases, [CLS] and positions, 20 epochs of
warm-up, cosine, 300 epochs (Large: 200), RandAugment of magnitude 9 ± 0.5, mixup 0.8, cutmix
1.0, label smoothing 0.1, drop path 0.1 (Large: 0.2), EMA 0.9999. Assumed: that the ablations
share it, resized crops of 8 to 100 % of the image, positions started at 0.02, all else
xavier-uniform, RandAugment's two layers and its increasing set as in timm, evaluation on the
central 87.5 %.
"""

from pit_jax.config import base
from pit_jax.models.sizes import parse_name


def get_config(arg="vit-b/16"):
    c = base()
    c.model.update(parse_name(arg, sizes="sbl"))
    large = c.model.depth == 24
    c.model.update(drop_path=0.2 if large else 0.1, remat="auto")
    c.data.update(name="imagenet2012", split="train", eval_split="validation")
    c.data.update(image_size=224, num_classes=1000, workers=8, eval_crop=0.875)
    c.data.update(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    c.data.augmentation.update(crop="resized", scale=(0.08, 1.0), flip=0.5)
    c.data.augmentation.update(randaugment=9.0, randaugment_std=0.5, mixup=0.8, cutmix=1.0)
    c.optim.update(lr=1e-4, lr_batch=256, betas=(0.9, 0.95), weight_decay=0.3, ema=0.9999)
    c.optim.update(schedule="cosine", warmup="20 epochs")
    c.train.update(batch_size=4096, epochs=200.0 if large else 300.0, label_smoothing=0.1)
    c.eval.every = "5 epochs"
    c.checkpoint.every = "1 epochs"
    return c
