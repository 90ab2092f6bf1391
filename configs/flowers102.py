"""PiT and ViT on Oxford-102-Flower, 32×32, from scratch: the paper's table of supervised results.

    pit-jax data prepare oxford_flowers102
    pit-jax train --config configs/flowers102.py:pit-t --workdir runs/flowers-pit-t

| argument  | tokens | published top-1 % |
|-----------|--------|-------------------|
| `pit-t`   | 1025   | 46.3              |
| `vit-t/2` | 257    | 45.8              |

Expected cost: `pit-jax preflight` finds at least 0.24 chip-hours for `pit-t` on v5e-8 and
0.1 on v5p-16, by a roofline, which no run reaches; at 40 % of the chips' peak, an estimate,
it is about half a chip-hour on v5e, four minutes.

Published (arXiv 2406.09415, second version, read in one account): the two accuracies. All else
is assumed: Tiny, 32×32 pixels, training on the 1020 images of TensorFlow Datasets' `train`
and evaluation on its 6149 of `test`, and the recipe of configs/cifar100.py (AdamW with betas
(0.9, 0.95), learning rate 4e-3 at batch 1024, weight decay 0.3, cosine, MoCo-style crops,
grayscale and jitter, flip, drop path 0.1) with 10 000 steps of 256 images, four an epoch, of
which 500 are warm-up. Crops are taken from the whole photograph, so none is kept in memory.
"""

from pit_jax.config import base
from pit_jax.models.sizes import parse_name


def get_config(arg="pit-t"):
    c = base()
    c.model.update(parse_name(arg, sizes="ts"))
    c.model.update(drop_path=0.1, remat="auto")
    c.data.update(name="oxford_flowers102", split="train", eval_split="test")
    c.data.update(image_size=32, num_classes=102, workers=8)
    c.data.update(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    c.data.augmentation.update(crop="resized", scale=(0.2, 1.0), flip=0.5, grayscale=0.2)
    c.data.augmentation.jitter = (0.4, 0.4, 0.4, 0.4)
    c.optim.update(lr=4e-3, lr_batch=1024, betas=(0.9, 0.95), weight_decay=0.3)
    c.optim.update(schedule="cosine", warmup="500 steps", lr_end=1e-6)
    c.train.update(batch_size=256, steps=10_000, log_every=50)
    c.eval.every = "1000 steps"
    c.checkpoint.every = "1000 steps"
    return c
