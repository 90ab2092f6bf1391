"""An autoencoder of scikit-learn's 8×8 handwritten digits, for diffusion on its latents.

    pit-jax train --config configs/digits_autoencoder.py --workdir runs/digits-autoencoder
    pit-jax data latents --config configs/digits_autoencoder.py \\
        --vae runs/digits-autoencoder --out latents/digits

8×8×1 images become 4×4×2 latents, half as many numbers. About two minutes on two CPU cores;
one run ended at a held-out mean squared error of 0.0041 (images in [0, 1]; 24.6 dB), with
latents of deviation 1.6. Nothing is published for this setting: sizes, recipe and length are
this project's own, and so is the weight of the divergence, a thousand times that of Rombach
et al. (2022), whose images have three thousand times as many numbers.
"""

from pit_jax.config import base


def get_config():
    c = base()
    c.task, c.model.name = "autoencoder", "autoencoder"
    c.autoencoder.update(channels=(16, 32), layers=1, latent=2, groups=8, kl_weight=1e-3)
    c.data.update(name="digits", image_size=8, channels=1, num_classes=10)
    c.optim.update(lr=2e-3, betas=(0.9, 0.99), warmup="2 epochs", clip=1.0, ema=0.99)
    c.train.update(batch_size=64, epochs=40.0, log_every=50)
    c.eval.update(every="10%", what=("reconstruction",))
    c.checkpoint.every = "10%"
    return c
