"""Depth of rendered scenes, 16×16: every pixel a token, against patches.

    pit-jax train --config configs/scenes_depth.py:pit --workdir runs/scenes-depth-pit

The scenes are rendered by this project and always at hand: 512 to train on, 128 held out;
spheres and boxes on a chequered floor, with exact depth up to 10 m (data/scenes.py). PiT takes
two minutes on two CPU cores, patches a quarter of one. Nothing is published for the scenes; the
recipe is this project's own. A stand-in for configs/nyu_depth.py that a laptop can train.
"""

from pit_jax.config import base
from pit_jax.models.sizes import parse_name


def get_config(arg="pit"):
    c = base()
    c.task = "depth"
    c.model.update(parse_name(arg))
    c.model.update(width=64, depth=4, heads=2, position_std=0.1)
    c.model.initial = "separate"  # so were all results measured that we show
    c.data.update(name="scenes", image_size=16)
    c.data.augmentation.flip = 0.5
    c.optim.update(lr=2e-3, betas=(0.9, 0.95), weight_decay=0.05, warmup="10%", clip=1.0)
    c.train.update(batch_size=32, steps=600, log_every=50)
    c.eval.update(what=("depth",), every="100 steps")
    c.checkpoint.every = "300 steps"
    return c
