"""PiT and ViT on NYU-v2 depth, 64×64: the paper's table of depth regression.

    pit-jax data prepare nyu_depth_v2
    pit-jax train --config configs/nyu_depth.py:pit-s --workdir gs://bucket/nyu-depth-pit-s

| argument  | tokens | published RMSE, metres |
|-----------|--------|------------------------|
| `pit-s`   | 4097   | 0.72                   |
| `vit-s/2` | 1025   | 0.80                   |

Expected cost: `pit-jax preflight` finds at least 2.9 chip-hours for `pit-s` on v5e-8 and
1.2 on v5p-16, by a roofline, which no run reaches; at 40 % of the chips' peak, an estimate,
it is about six on v5e, three quarters of an hour. Patches of 2 take an eighth of it.

Published (arXiv 2406.09415, second version): Small, RMSE 0.80 with patches of 2 and 0.72 with
pixels. All else is assumed: 64×64 pixels from the whole 640×480 (the shorter side resized, the
centre cut out, depths taken from the nearest pixel), the 47 584 training and 654 evaluation
frames of TensorFlow Datasets (Eigen's own evaluation has a crop of these, at full size), the
scale-invariant loss with λ = 0.5 (Eigen et al. 2014), depths up to 10 m, RMSE over all pixels
of all images, no alignment, flip and colour jitter alone, AdamW, learning rate 5e-4 per 256
images, weight decay 0.05, 25 epochs from scratch, drop path 0.1.

All 47 584 frames are decoded at the start and then held, 1.4 GB: a quarter of an hour on a few
cores, in every process; `--config.data.in_memory_gb=0` decodes them while it trains.
"""

from pit_jax.config import base
from pit_jax.models.sizes import parse_name


def get_config(arg="pit-s"):
    c = base()
    c.task = "depth"
    c.model.update(parse_name(arg, sizes="ts"))
    c.model.update(drop_path=0.1, remat="auto")
    c.data.update(name="nyu_depth_v2", split="train", eval_split="validation")
    c.data.update(image_size=64, workers=8)
    c.data.update(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    c.data.augmentation.update(flip=0.5, jitter=(0.2, 0.2, 0.2, 0.05))
    c.optim.update(lr=5e-4, lr_batch=256, betas=(0.9, 0.95), weight_decay=0.05, clip=1.0)
    c.optim.update(schedule="cosine", warmup="1 epochs", lr_end=1e-6)
    c.train.update(batch_size=256, epochs=25.0)
    c.eval.update(what=("depth",), every="5 epochs")
    c.checkpoint.every = "1 epochs"
    return c
