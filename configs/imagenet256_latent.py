"""Latent diffusion on ImageNet at 256×256: the paper's third case study, and public DiT.

    pit-jax data prepare imagenet2012        # the archives must be downloaded by hand
    pit-jax data latents --config configs/imagenet256_latent.py:images --vae VAE.safetensors \\
        --out /data/latents
    pit-jax train --config configs/imagenet256_latent.py:pit-l --workdir gs://bucket/pit-l \\
        --config.data.dir=/data/latents --config.autoencoder.weights=VAE.safetensors

| argument   | tokens | published FID-50K at guidance 1.5 | recipe     | training FLOP |
|------------|--------|-----------------------------------|------------|---------------|
| `pit-l`    | 1024   | 4.05                              | paper      | 1.1e21        |
| `dit-l/2`  | 256    | 4.16                              | paper      | 2.5e20        |
| `dit-xl/2` | 256    | 2.27                              | public DiT | 1.3e21        |
| `dit-b/4`  | 64     | none with guidance                | public DiT | 3.4e18        |

Published beside (sFID and IS read in one account, precision and recall in none): `pit-l` sFID
4.66, IS 232.95, precision 0.88, recall 0.49; `dit-l/2` 4.97, 210.18, 0.88, 0.49, and FID 8.90
without guidance; `dit-xl/2` IS 278.2.

`dit-l/1` is another name of `pit-l`. Also `dit-s/2`, `dit-b/2`, `dit-l/4`, `dit-xl/4`, `pit-s`,
... with public DiT's recipe, and `images`: the images that are encoded. VAE.safetensors is the
public Stable Diffusion autoencoder (factor 8, 4 channels, scale 0.18215), 32×32×4 latents.

Expected cost: `pit-jax preflight` finds at least 1,637 chip-hours for `pit-l` on v5e-256
and 703 on v5p-256, by a roofline, which no run reaches; at 40 % of the chips' peak, an
estimate, it is about 3,900 on v5e, fifteen hours.

Published (public DiT, Peebles & Xie 2023): AdamW at a constant 1e-4 without weight decay or
warm-up, batch 256, horizontal flips, EMA 0.9999, label drop 0.1, a linear schedule of 1000
steps, learned variances; 7 M steps for XL/2, 400 k for the others; 250 ancestral steps, 50 000
samples of random classes in float32, guidance on three of the four channels; images halved by
averaging, then resized and cut. Assumed for the paper's two rows: the same but for batch 2048,
400 epochs, a linear warm-up over 5 % and a learning rate that grows with the square root of the
batch. Fixed sine-cosine positions for DiT, learned ones for PiT.
"""

from pit_jax.config import base
from pit_jax.models.sizes import DIT_SIZES, parse_dit_name

_PAPER = ("pit-l", "dit-l/1", "dit-l/2")  # the first two are one model


def get_config(arg="pit-l"):
    c = base()
    c.task = "diffusion"
    c.data.update(num_classes=1000, workers=8, channels=3)
    if arg == "images":  # what `pit-jax data latents` reads
        c.model.update(name="dit", patch=16)
        c.data.update(name="imagenet2012", split="train", eval_split="validation", image_size=256)
        c.data.halve = True
        c.train.steps = 1
        return c
    c.model.update(parse_dit_name(arg, sizes=tuple(DIT_SIZES)), name="dit", remat="auto")
    c.model.position = "learned" if c.model.patch == 1 else "sincos2d"
    c.data.update(name="latents", dir="latents", split="train", eval_split="validation")
    c.data.update(latents_of="imagenet2012", image_size=32, channels=4)
    c.data.augmentation.flip = 0.5
    c.sample.update(sampler="ddpm", steps=250, guidance=1.5, guidance_channels=3)
    c.sample.update(num=50000, batch_size=256, labels="random", dtype="float32")
    c.optim.update(lr=1e-4, betas=(0.9, 0.999), weight_decay=0.0, schedule="constant", ema=0.9999)
    if arg in _PAPER:
        c.optim.update(lr=1e-4 * (2048 / 256) ** 0.5, warmup="5%")
        c.train.update(batch_size=2048, epochs=400.0)
    else:
        c.train.update(batch_size=256, steps=7_000_000 if arg == "dit-xl/2" else 400_000)
    c.eval.update(every="10%", what=("loss",), batch_size=256)
    c.checkpoint.every = "1%"
    return c
