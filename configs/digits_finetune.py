"""Fine-tuning on ten labels a class of what configs/digits_mae.py has pre-trained.

    pit-jax train --config configs/digits_finetune.py:pit --workdir runs/digits-tuned \\
        --config.init_from=runs/digits-mae

Half a minute on two CPU cores. Nothing is published for this setting; the recipe is this
project's own: layer-wise decay 0.75, 500 steps on the same 100 images, chosen by
`data.per_class_seed` (`--config.data.per_class=0` trains on all). experiments/digits_mae.py
compares it with training from scratch, `--config.init_task= --config.optim.layer_decay=1.0`.
"""

from pit_jax.config import base
from pit_jax.models.sizes import parse_name


def get_config(arg="pit"):
    c = base()
    c.init_task = "mae"
    c.model.update(parse_name(arg))
    c.model.update(width=64, depth=4, heads=2, position_std=0.1)
    c.model.initial = "separate"  # so were all results measured that we show
    c.data.update(name="digits", image_size=8, channels=1, num_classes=10, per_class=10)
    c.optim.update(lr=3e-3, betas=(0.9, 0.95), weight_decay=0.05, warmup="10%", clip=1.0)
    c.optim.layer_decay = 0.75
    c.train.update(batch_size=40, steps=500, log_every=50)
    c.eval.every = "100 steps"
    c.checkpoint.every = "250 steps"
    return c
