"""Masked autoencoding on ImageNet at 224×224: the public MAE recipe, for ViT/16 and others.

    pit-jax data prepare imagenet2012        # the archives must be downloaded by hand
    pit-jax train --config configs/imagenet_mae.py:vit-b/16 --workdir gs://bucket/mae-vit-b16

Published for ViT-B/16 by public MAE, after 1600 epochs: 83.6 % fine-tuned, 67.8 % by a
linear probe (`pit-jax eval --workdir ... --probe linear`).

Expected cost: `pit-jax preflight` finds at least 170 chip-hours for `vit-b/16` on v5e-64
and 73 on v5p-64, by a roofline, which no run reaches; at 40 % of the chips' peak, an
estimate, it is about 420 on v5e, seven hours.

Published (He et al. 2021, table 8, and the public code): mask ratio 0.75, targets normalised
by patch, fixed sine-cosine positions in encoder and decoder, decoder of width 512 with 8
blocks, AdamW with betas (0.9, 0.95), base learning rate 1.5e-4 per 256 images, batch 4096,
weight decay 0.05, 40 epochs of warm-up, cosine, random resized crops of 20 to 100 % and
flips; evaluation on the central 87.5 %, which the held-out loss is of, too. Not as there: no
weight decay on [CLS] and the mask token. Assumed: that a pixel model (`pit-b` with
--config.data.image_size=28) has learned positions and raw pixels as its target.
"""

from pit_jax.config import base
from pit_jax.models.sizes import parse_decoder, parse_name


def get_config(arg="vit-b/16"):
    c = base()
    c.task = "mae"
    c.model.update(parse_name(arg, sizes="bl"), remat="auto", initial="mae")
    c.mae.update(parse_decoder(arg), mask_ratio=0.75)
    if c.model.patch > 1:
        c.model.position = "sincos2d"
        c.mae.update(decoder_position="sincos2d", normalise_target=True)
    c.data.update(name="imagenet2012", split="train", eval_split="validation")
    c.data.update(image_size=224, num_classes=1000, workers=8, eval_crop=0.875)
    c.data.update(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    c.data.augmentation.update(crop="resized", scale=(0.2, 1.0), flip=0.5)
    c.optim.update(lr=1.5e-4, lr_batch=256, betas=(0.9, 0.95), weight_decay=0.05)
    c.optim.update(schedule="cosine", warmup="40 epochs")
    c.train.update(batch_size=4096, epochs=1600.0)
    c.eval.update(every="20 epochs", what=("reconstruction",))
    c.checkpoint.every = "5 epochs"
    return c
