"""PiT and ViT on scikit-learn's 8×8 handwritten digits: the demo, and the first thing to try.

    pit-jax train --config configs/digits.py:pit --workdir runs/digits        # 64 pixel tokens
    pit-jax train --config configs/digits.py:vit/2 --workdir runs/digits2     # 16 patch tokens

Under a minute on two CPU cores. 1797 real scans, a fixed 360 of them held out. Nothing is
published for this setting; width, depth and recipe are this project's own.
"""

from pit_jax.config import base
from pit_jax.models.sizes import parse_name


def get_config(arg="pit"):
    c = base()
    c.model.update(parse_name(arg))
    c.model.update(width=64, depth=4, heads=2, position_std=0.1)
    c.model.initial = "separate"  # so were all results measured that we show
    c.data.update(name="digits", image_size=8, channels=1, num_classes=10)
    c.optim.update(lr=3e-3, betas=(0.9, 0.95), weight_decay=0.05, warmup="2 epochs", clip=1.0)
    c.train.update(batch_size=64, epochs=30.0, log_every=10)
    c.eval.every = "80 steps"
    c.checkpoint.every = "80 steps"
    return c
