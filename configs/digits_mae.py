"""Masked autoencoding of PiT and ViT on scikit-learn's 8×8 handwritten digits.

    pit-jax train --config configs/digits_mae.py:pit --workdir runs/digits-mae
    pit-jax train --config configs/digits.py:pit --workdir runs/tuned \\
        --config.init_from=runs/digits-mae --config.optim.layer_decay=0.65

About three minutes on two CPU cores. The model is that of configs/digits.py, which takes its
encoder as it is. Nothing is published for this setting: mask ratio 0.75, raw pixels as the
target, a decoder of two layers and the length are this project's own.
"""

from pit_jax.config import base
from pit_jax.models.sizes import parse_name


def get_config(arg="pit"):
    c = base()
    c.task = "mae"
    c.model.update(parse_name(arg))
    c.model.update(width=64, depth=4, heads=2, position_std=0.1)
    c.model.initial = "separate"  # so were all results measured that we show
    c.mae.update(mask_ratio=0.75, decoder_width=32, decoder_depth=2, decoder_heads=2)
    c.data.update(name="digits", image_size=8, channels=1, num_classes=10)
    c.optim.update(lr=3e-3, betas=(0.9, 0.95), weight_decay=0.05, warmup="5 epochs", clip=1.0)
    c.train.update(batch_size=64, epochs=100.0, log_every=50)
    c.eval.update(every="10%", what=("reconstruction", "knn"))
    c.checkpoint.every = "10%"
    return c
