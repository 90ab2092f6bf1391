"""Fine-tuning on CIFAR-100 of what configs/cifar100_mae.py has pre-trained.

    pit-jax train --config configs/cifar100_finetune.py:pit-s --workdir runs/tuned-pit-s \\
        --config.init_from=runs/mae-pit-s

| argument  | published top-1 % with MAE | from scratch | training FLOP of the whole run |
|-----------|----------------------------|--------------|--------------------------------|
| `pit-t`   | 86.0                       | 85.1         | 3.1e17                         |
| `vit-t/2` | 85.7                       | 83.6         | 5.0e16                         |
| `pit-s`   | 87.7                       | 86.4         | 9.4e17                         |
| `vit-s/2` | 87.4                       | 83.7         | 1.8e17                         |

Expected cost: `pit-jax preflight` finds at least 1.5 chip-hours for `pit-s` on v5e-8 and
0.63 on v5p-16, by a roofline, which no run reaches; at 40 % of the chips' peak, an
estimate, it is about three on v5e, half an hour.

The recipe is public MAE's for ViT-B: AdamW with betas (0.9, 0.999), base learning rate 5e-4
per 256 images, weight decay 0.05, layer-wise decay 0.65, 100 epochs with 5 of warm-up, mixup
0.8, cutmix 1.0 (one of them a batch), label smoothing 0.1, RandAugment 9/0.5, random erasing
0.25, drop path 0.1, and the head on the mean of all tokens but [CLS], started at a deviation of
2e-5. The paper says nothing of its own: all of it is assumed, as are batch 1024 and crops of 8
to 100 %, timm's default.

The run refuses to start without `init_from`: a run directory of task "mae", weights made by
one, or a directory of Hugging Face's ViTMAE. `--config.init_task=
--config.optim.layer_decay=1.0` trains the same from scratch, for comparison: layer-wise
decay would leave the first layers of fresh weights as they are.
"""

from pit_jax.config import base
from pit_jax.models.sizes import parse_name


def get_config(arg="pit-t"):
    c = base()
    c.init_task = "mae"
    c.model.update(parse_name(arg, sizes="ts"))
    c.model.update(pool="patches", drop_path=0.1, remat="auto")
    c.model.update(initial="timm", head_std=2e-5)
    c.data.update(name="cifar100", image_size=32, num_classes=100)
    c.data.update(mean=(0.5071, 0.4866, 0.4409), std=(0.2673, 0.2564, 0.2762))
    c.data.augmentation.update(crop="resized", scale=(0.08, 1.0), flip=0.5)
    c.data.augmentation.update(randaugment=9.0, erasing=0.25, mixup=0.8, cutmix=1.0)
    c.optim.update(lr=5e-4, lr_batch=256, betas=(0.9, 0.999), weight_decay=0.05)
    c.optim.update(layer_decay=0.65, schedule="cosine", warmup="5 epochs", lr_end=1e-6)
    c.train.update(batch_size=1024, epochs=100.0, log_every=50, label_smoothing=0.1)
    c.eval.every = "5 epochs"
    c.checkpoint.every = "5 epochs"
    return c
