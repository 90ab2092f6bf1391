"""What models that generate demand of their config, see demands.py."""

from collections.abc import Callable

from ml_collections import ConfigDict

from pit_jax.config import DEEPEST
from pit_jax.diffusion.names import SAMPLERS

Require = Callable[[bool, str], None]


def check_deepest(c: ConfigDict, require: Require, layers: int, name: str) -> None:
    group, leaf = name.split(".")
    require(
        layers <= DEEPEST,
        f"config.{name}={c[group][leaf]} makes {layers:,} layers: at most {DEEPEST:,} in all",
    )


def _needs_whole_images(c: ConfigDict, require: Require) -> None:
    """Samples are compared with images cut as those that the model learned from."""
    require(
        c.data.eval_crop == 1,
        f"config.data.eval_crop={c.data.eval_crop} has no place in task {c.task!r}, which is"
        " evaluated on images as it is trained on: leave it at 1.0",
    )


def check_diffusion(c: ConfigDict, require: Require) -> None:
    f, s, a = c.diffusion, c.sample, c.data.augmentation
    _needs_whole_images(c, require)
    require(c.model.name == "dit", "task 'diffusion' needs config.model.name='dit'")
    require(
        c.model.embed == "linear",
        "config.model.embed='dictionary' cannot look up the colours of noise",
    )
    for name in ("drop_path", "layer_scale"):
        require(c.model[name] == 0, f"config.model.{name} is not offered by 'dit'")
    samplers = SAMPLERS[f.family]
    require(
        s.sampler in samplers,
        f"config.sample.sampler={s.sampler!r} is not one of the {f.family} family's:"
        f" {', '.join(samplers)}",
    )
    require(
        f.family == "gaussian" or f.predict != "epsilon",
        "config.diffusion.predict='epsilon' does not go with .family='flow': write 'v' or 'x0'",
    )
    require(
        f.family == "flow" or s.steps <= f.timesteps,
        f"config.sample.steps={s.steps} is more than config.diffusion.timesteps={f.timesteps}",
    )
    require(
        f.family == "gaussian" or s.spacing == "linspace",
        f"config.sample.spacing={s.spacing!r} is about timesteps, and a flow has none: leave it at"
        " 'linspace'",
    )
    possible = {len(range(0, f.timesteps, stride)) for stride in range(1, f.timesteps + 1)}
    nearest = sorted(possible, key=lambda count: abs(count - s.steps))[:2]
    require(
        s.spacing == "linspace" or s.steps in possible,
        f"config.sample.spacing='leading': no integer stride keeps {s.steps} of"
        f" config.diffusion.timesteps={f.timesteps}; write config.sample.steps={nearest[0]} or"
        f" {nearest[-1]}",
    )
    require(
        s.eta == 0 or s.sampler == "ddim",
        f"config.sample.eta={s.eta} is for sampler 'ddim', not {s.sampler!r}",
    )
    require(
        s.guidance == 1 or (f.conditional and f.label_drop > 0),
        f"config.sample.guidance={s.guidance} needs a network that knows classes and was"
        " trained without them at times (config.diffusion.conditional and .label_drop): write"
        " config.sample.guidance=1",
    )
    interval = s.guidance_interval
    require(
        len(interval) == 2 and interval[0] <= interval[1],
        f"config.sample.guidance_interval={interval}: two numbers in [0, 1], the smaller first",
    )
    require(
        s.guidance_channels <= c.data.channels,
        f"config.sample.guidance_channels={s.guidance_channels} is more than"
        f" config.data.channels={c.data.channels}",
    )
    if c.data.name == "latents":
        require(
            a.crop == "none"
            and not any((a.three_augment, a.grayscale, *a.jitter, a.blur, a.randaugment)),
            "config.data.augmentation: of stored latents only .flip is possible",
        )
        require(
            not s.clip,
            "config.sample.clip=True would cut every estimate to [-1, 1], and latents reach beyond:"
            " write --config.sample.clip=False",
        )
    else:
        require(
            set(c.data.mean) == {0.5} and set(c.data.std) == {0.5},
            f"config.data.mean={c.data.mean} and .std={c.data.std}: diffusion works on pixels"
            " in [-1, 1], which is 0.5 for both",
        )
    draws = [name for name in ("samples", "generation") if name in c.eval.what]
    require(
        not draws or c.autoencoder.weights or c.data.name != "latents",
        f"config.eval.what names {' and '.join(map(repr, draws))}, and latents are not images yet:"
        " write config.autoencoder.weights, the autoencoder that made them",
    )
    measures = "generation" in c.eval.what
    require(
        not measures or c.eval.features,
        "config.eval.what names 'generation', and config.eval.features no network to compare"
        " images by: give the file of FID's Inception, or the run directory of a classifier",
    )
    require(
        not measures or c.eval.reference or c.data.name != "latents",
        "config.eval.what names 'generation', and latents have no images to compare with: write"
        " config.eval.reference, which `pit-jax data stats` makes",
    )
    for name in ("mixup", "cutmix", "erasing"):
        require(
            a[name] == 0,
            f"config.data.augmentation.{name} has no place in task 'diffusion', which"
            " would learn to make mixed or erased images",
        )


def check_autoencoder(c: ConfigDict, require: Require) -> None:
    sizes, d = c.autoencoder, c.data
    _needs_whole_images(c, require)
    require(
        c.model.name == "autoencoder", "task 'autoencoder' needs config.model.name='autoencoder'"
    )
    require(
        "locality" not in c.eval.what,
        f"config.eval.what={c.eval.what}: an autoencoder has no tokens whose 'locality' could be"
        " measured",
    )
    channels = sizes.channels
    require(
        bool(channels),
        f"config.autoencoder.channels={channels}: whole numbers of 1 or more, at least one",
    )
    require(
        not any(n % sizes.groups for n in channels),
        f"config.autoencoder.groups={sizes.groups} does not divide all of"
        f" config.autoencoder.channels={channels}",
    )
    check_deepest(c, require, len(channels) * sizes.layers, "autoencoder.layers")
    factor = 2 ** (len(channels) - 1)
    require(
        d.image_size % factor == 0,
        f"config.data.image_size={d.image_size} is no multiple of {factor}, by which"
        f" config.autoencoder.channels={channels} make it smaller",
    )
    require(
        set(d.mean) == {0.5} and set(d.std) == {0.5},
        f"config.data.mean={d.mean} and .std={d.std}: an autoencoder works on images in [-1, 1],"
        " which is 0.5 for both",
    )
    for name in ("mixup", "cutmix", "erasing"):
        require(
            d.augmentation[name] == 0,
            f"config.data.augmentation.{name} has no place in task 'autoencoder', which"
            " would learn to make mixed or erased images",
        )
    # Left as they are they mean nothing here; changed, somebody expects that they do.
    fixed = {"model.embed": "linear", "model.attention": "auto", "optim.layer_decay": 1.0}
    fixed |= {"mesh.seq": 1, "mesh.model": 1, "autoencoder.weights": ""}
    for name, value in fixed.items():
        group, leaf = name.split(".")
        require(
            c[group][leaf] == value,
            f"config.{name}={c[group][leaf]!r} has no place in task 'autoencoder': leave it at"
            f" {value!r}",
        )
    require(
        c.model.remat in ("none", "auto"),
        f"config.model.remat={c.model.remat!r} is not offered by the autoencoder",
    )
