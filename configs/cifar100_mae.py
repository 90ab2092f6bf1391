"""Masked autoencoding of PiT and ViT on CIFAR-100, 32×32: the paper's second case study.

    pit-jax data prepare cifar100
    pit-jax train --config configs/cifar100_mae.py:pit-s --workdir runs/mae-pit-s
    pit-jax train --config configs/cifar100_finetune.py:pit-s --workdir runs/tuned-pit-s \\
        --config.init_from=runs/mae-pit-s

| argument  | tokens seen, of | published top-1 % after fine-tuning, from scratch | training FLOP |
|-----------|-----------------|---------------------------------------------------|---------------|
| `pit-t`   | 257 of 1025     | 86.0, 85.1                                        | 1.7e18        |
| `vit-t/2` | 65 of 257       | 85.7, 83.6                                        | 3.1e17        |
| `pit-s`   | 257 of 1025     | 87.7, 86.4                                        | 5.5e18        |
| `vit-s/2` | 65 of 257       | 87.4, 83.7                                        | 1.1e18        |

Expected cost: `pit-jax preflight` finds at least 8.3 chip-hours for `pit-s` on v5e-8 and
3.5 on v5p-16, by a roofline, which no run reaches; at 40 % of the chips' peak, an estimate,
it is about 19 on v5e, two and a half hours.

Published: mask ratio 0.75. Assumed, from public MAE: 1600 epochs, AdamW with betas (0.9,
0.95), weight decay 0.05, base learning rate 1.5e-4 per 256 images, 40 epochs of warm-up,
cosine, random resized crops of 20 to 100 % and flips only, how weights start. Assumed besides:
batch 1024; the decoder (width 128 and 4 blocks for Tiny, 256 and 4 for Small; the public 512 ×
8 would make PiT-T's pre-training dearer than its classification) and its learned positions; the
target, raw pixels, for both: a pixel token has three numbers, too few to normalise; positions
started at 0.02; [CLS].
"""

from pit_jax.config import base
from pit_jax.models.sizes import parse_decoder, parse_name


def get_config(arg="pit-t"):
    c = base()
    c.task = "mae"
    c.model.update(parse_name(arg, sizes="ts"), remat="auto", initial="mae")
    c.mae.update(parse_decoder(arg), mask_ratio=0.75)
    c.data.update(name="cifar100", image_size=32, num_classes=100)
    c.data.update(mean=(0.5071, 0.4866, 0.4409), std=(0.2673, 0.2564, 0.2762))
    c.data.augmentation.update(crop="resized", scale=(0.2, 1.0), flip=0.5)
    c.optim.update(lr=1.5e-4, lr_batch=256, betas=(0.9, 0.95), weight_decay=0.05)
    c.optim.update(schedule="cosine", warmup="40 epochs")
    c.train.update(batch_size=1024, epochs=1600.0, log_every=50)
    c.eval.update(every="40 epochs", what=("reconstruction", "knn"))
    c.checkpoint.every = "20 epochs"
    return c
