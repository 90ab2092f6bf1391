"""Class-conditional generation of scikit-learn's 8×8 handwritten digits, by PiT and DiT/2.

    pit-jax train --config configs/digits_diffusion.py:pit --workdir runs/digits-pit
    pit-jax sample --workdir runs/digits-pit --num 1000 --out runs/digits-pit/thousand

A few minutes on two CPU cores, see README.md; `python -m experiments.digits_diffusion` trains
both and compares them. Nothing is published for this setting: width 64, depth 4, the schedule
and the length are this project's own. The network sees pixels in [-1, 1]; the grey levels of
a digit are few, so estimates are clipped to that range while sampling.
"""

from pit_jax.config import base
from pit_jax.models.sizes import parse_dit_name


def get_config(arg="pit"):
    c = base()
    c.task = "diffusion"
    c.model.update(parse_dit_name(arg), name="dit")
    c.model.update(width=64, depth=4, heads=2, position_std=0.1)
    c.model.initial = "separate"  # so were all results measured that we show
    c.diffusion.update(schedule="cosine", learn_sigma=True)
    c.sample.update(sampler="ddpm", steps=100, guidance=1.5, clip=True, num=1000, batch_size=128)
    c.data.update(name="digits", image_size=8, channels=1, num_classes=10)
    c.optim.update(lr=2e-3, betas=(0.9, 0.99), warmup="100 steps", clip=1.0, ema=0.998)
    c.train.update(batch_size=64, steps=3000, log_every=100)
    c.eval.update(every="25%", what=("loss", "samples"), batch_size=64)
    c.checkpoint.every = "25%"
    return c
