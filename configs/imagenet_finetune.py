"""Fine-tuning on ImageNet of what configs/imagenet_mae.py has pre-trained: public MAE's.

    pit-jax train --config configs/imagenet_finetune.py:vit-b/16 --workdir gs://bucket/tuned \\
        --config.init_from=gs://bucket/mae-vit-b16

Published for ViT-B/16 by public MAE, after 1600 epochs of pre-training: 83.6 %.

Expected cost: `pit-jax preflight` finds at least 19 chip-hours for `vit-b/16` on v5e-64 and
8.3 on v5p-64, by a roofline, which no run reaches; at 40 % of the chips' peak, an estimate,
it is about 48 on v5e, three quarters of an hour.

Published (He et al. 2021, table 9, and the public code): AdamW with betas (0.9, 0.999), base
learning rate 5e-4 per 256 images for Base (1e-3 for Large), batch 1024, weight decay 0.05,
layer-wise decay 0.65 (Large: 0.75), 5 epochs of warm-up, cosine to 1e-6, 100 epochs (Large:
50), RandAugment 9 ± 0.5, label smoothing 0.1, mixup 0.8, cutmix 1.0, random erasing 0.25,
drop path 0.1 (Large: 0.2), the head on the mean of all tokens but [CLS], and positions that
start as the table that pre-training computed and learn from there; the head starts at a
deviation of 2e-5. Assumed: crops of 8 to 100 %, timm's default.

The run refuses to start without `init_from`: a run directory of task "mae", weights made by
one, or a directory of Hugging Face's ViTMAE. `--config.init_task=
--config.optim.layer_decay=1.0` trains the same from scratch, for comparison.
"""

from pit_jax.config import base
from pit_jax.models.sizes import parse_name


def get_config(arg="vit-b/16"):
    c = base()
    c.init_task = "mae"
    c.model.update(parse_name(arg, sizes="bl"), pool="patches", remat="auto")
    large = c.model.depth == 24
    c.model.update(drop_path=0.2 if large else 0.1, initial="timm", head_std=2e-5)
    c.data.update(name="imagenet2012", split="train", eval_split="validation")
    c.data.update(image_size=224, num_classes=1000, workers=8, eval_crop=0.875)
    c.data.update(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    c.data.augmentation.update(crop="resized", scale=(0.08, 1.0), flip=0.5)
    c.data.augmentation.update(randaugment=9.0, erasing=0.25, mixup=0.8, cutmix=1.0)
    c.optim.update(lr=1e-3 if large else 5e-4, lr_batch=256, betas=(0.9, 0.999))
    c.optim.update(weight_decay=0.05, layer_decay=0.75 if large else 0.65)
    c.optim.update(schedule="cosine", warmup="5 epochs", lr_end=1e-6)
    c.train.update(batch_size=1024, epochs=50.0 if large else 100.0, label_smoothing=0.1)
    c.eval.every = "5 epochs"
    c.checkpoint.every = "1 epochs"
    return c
