"""Flow matching on the pixels of ImageNet at 64×64, without an autoencoder: patch 4, 2, 1.

    pit-jax data prepare imagenet2012        # the archives must be downloaded by hand
    pit-jax train --config configs/imagenet64_pixels.py:dit-b/4 --workdir gs://bucket/b4

| argument  | tokens | numbers a token | training FLOP |
|-----------|--------|-----------------|---------------|
| `dit-b/4` | 256    | 48              | 3.5e19        |
| `dit-b/2` | 1024   | 12              | 1.6e20        |
| `pit-b`   | 4096   | 3               | 1.0e21        |

Expected cost, an estimate and not a measurement: at 40 % of a v5e chip's published bf16
peak (197 TFLOP/s) 125, 580 and 3 600 chip-hours. The first is too few: preflight on v5e-256
finds it bound by memory, at 128 hours at least; all three fit.

Nothing is published for this setting. The recipe follows raw-pixel diffusion of 2025 (JiT,
"Back to Basics: Let Denoising Generative Models Denoise"): a straight flow, the network
predicts the image and is trained on the velocity, times from a logit-normal, Heun's method.
Assumed: their mean −0.8 and deviation 0.8, 200 epochs, batch 1024, AdamW with betas (0.9, 0.95)
at a constant 2e-4 after 5 epochs of warm-up, EMA 0.9999, guidance 2 for noise levels up to
0.9. Images are flipped and no more: they are halved by averaging, their shorter side becomes 64
and the centre is cut out, as public JiT and ADM do it and `pit-jax data stats` measures them.
This project's own: the question, whether a pixel model that knows no neighbourhood can generate;
sizes as DiT's; learned positions throughout, so that the rows differ in the patch alone.
"""

from pit_jax.config import base
from pit_jax.models.sizes import DIT_SIZES, parse_dit_name


def get_config(arg="dit-b/4"):
    c = base()
    c.task = "diffusion"
    c.model.update(parse_dit_name(arg, sizes=tuple(DIT_SIZES)), name="dit", remat="auto")
    c.diffusion.update(family="flow", predict="x0", time_mean=-0.8, time_std=0.8)
    c.sample.update(sampler="heun", steps=50, guidance=2.0, guidance_interval=(0.0, 0.9))
    c.sample.update(num=50000, batch_size=256)
    c.data.update(name="imagenet2012", split="train", eval_split="validation")
    c.data.update(image_size=64, num_classes=1000, workers=8, halve=True)
    c.data.augmentation.flip = 0.5
    c.optim.update(lr=2e-4, betas=(0.9, 0.95), schedule="constant", warmup="5 epochs", ema=0.9999)
    c.train.update(batch_size=1024, epochs=200.0)
    c.eval.update(every="10%", what=("loss", "samples"), batch_size=1024)
    c.checkpoint.every = "1%"
    return c
