"""What each task demands of its config, each refused in one line that names the field.

`require(holds, line)` raises the line as a ConfigError unless it holds.
"""

from collections.abc import Callable

from ml_collections import ConfigDict

from pit_jax.config import DEPTH, FIELDS
from pit_jax.diffusion.names import SAMPLERS
from pit_jax.models.sizes import num_kept

Require = Callable[[bool, str], None]


def check_classification(c: ConfigDict, require: Require) -> None:
    name = c.model.name
    require(
        name in ("vit", "convnet", "perceiver"),
        f"config.model.name={name!r} is no classifier: write 'vit' (PiT is vit with patch 1),"
        " 'convnet' or 'perceiver'",
    )
    common = ("model.pool", "model.drop_path", "model.layer_scale", "optim.layer_decay", *_PLACES)
    if name == "perceiver":
        _leave(c, require, *common)
    if name == "convnet":
        _leave(c, require, *common, "model.patch", "model.embed", "model.dropout")
        _leave(c, require, "model.position", "model.attention", "mesh.seq", "mesh.model")
        _check_convnet(c, require)


def _check_convnet(c: ConfigDict, require: Require) -> None:
    sizes = c.convnet
    for name in ("channels", "layers"):
        numbers = sizes[name]
        require(
            numbers
            and all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in numbers),
            f"config.convnet.{name}={numbers}: whole numbers of 1 or more, at least one",
        )
    stages = len(sizes.channels)
    require(
        len(sizes.layers) == stages,
        f"config.convnet.layers={sizes.layers} needs a number for each of the {stages} stages of"
        f" config.convnet.channels={sizes.channels}",
    )
    require(
        sizes.kernel % 2 == 1,
        f"config.convnet.kernel={sizes.kernel} has no pixel in its middle: write an odd number",
    )
    require(
        sizes.kernel > 1 or not sizes.downsample,
        "config.convnet.downsample averages neighbours, which config.convnet.kernel=1 is to do"
        " without",
    )
    factor = 2 ** (stages - 1) if sizes.downsample else 1
    require(
        c.data.image_size % factor == 0,
        f"config.convnet.downsample halves the side {stages - 1} times, but"
        f" config.data.image_size={c.data.image_size} is no multiple of {factor}",
    )
    require(
        c.model.remat in ("none", "auto"),
        f"config.model.remat={c.model.remat!r} is not offered by 'convnet'",
    )


def check_autoregressive(c: ConfigDict, require: Require) -> None:
    require(c.model.name == "igpt", "task 'autoregressive' needs config.model.name='igpt'")
    levels, channels = c.autoregressive.levels, c.data.channels
    most = max(n for n in range(1, 257) if n**channels <= MOST_COLOURS)
    require(
        levels**channels <= MOST_COLOURS,
        f"config.autoregressive.levels={levels} makes {levels**channels:,} colours of"
        f" {channels} channels, of which the model says every one at every pixel: write at most"
        f" {most} ({MOST_COLOURS} colours)",
    )
    names = [name for name in _PLACES if not name.startswith("model.order")]
    _leave(c, require, "model.patch", "model.pool", "model.embed", *names)
    for name in ("mixup", "cutmix", "erasing"):
        require(
            c.data.augmentation[name] == 0,
            f"config.data.augmentation.{name} has no place in task 'autoregressive', whose colours"
            " would be mixed or erased like it",
        )


def check_depth(c: ConfigDict, require: Require) -> None:
    require(c.model.name == "vit", "task 'depth' needs config.model.name='vit'")
    require(
        c.model.pool != "patches",
        "config.model.pool='patches' has no place in task 'depth', whose head reads every patch:"
        " 'cls' keeps a [CLS] token among them, 'mean' has none",
    )
    require(
        c.data.name.partition(":")[0] in DEPTH,
        f"config.data.name={c.data.name!r} has no depth: task 'depth' is for"
        f" {' and '.join(map(repr, DEPTH))}",
    )
    near, far = c.depth.nearest, c.depth.farthest
    require(
        near < far, f"config.depth.nearest={near} must be less than config.depth.farthest={far}"
    )
    options = c.data.augmentation
    require(
        options.crop in ("none", "pad"),
        f"config.data.augmentation.crop={options.crop!r} is not offered in task 'depth', whose"
        " depths would have to change with the scale: write 'pad' or 'none'",
    )
    for name in ("randaugment", "erasing", "mixup", "cutmix"):
        require(
            options[name] == 0,
            f"config.data.augmentation.{name} has no place in task 'depth': it moves or mixes"
            " images and not their depths",
        )
    require(
        c.train.label_smoothing == 0, "config.train.label_smoothing has no place in task 'depth'"
    )


def check_without_classes(c: ConfigDict, require: Require) -> None:
    """Of a set with depth, whose images have no class."""
    name = f"config.data.name={c.data.name!r} has no classes"
    require(
        c.task not in ("classification", "diffusion"),
        f"{name}, which task {c.task!r} needs: write config.task='depth', or 'mae' to pre-train",
    )
    require(c.data.per_class == 0, f"{name}: leave config.data.per_class at 0")
    probes = sorted({"linear", "knn", "fewshot"}.intersection(c.eval.what))
    require(not probes, f"{name}, which config.eval.what={c.eval.what} needs for {probes}")


MOST_COLOURS = 4096

# What a model does with the places of its tokens.
_PLACES = ("model.order", "model.window", "model.window_layers", "model.token_drop")


def _leave(c: ConfigDict, require: Require, *names: str) -> None:
    """Refuses fields that the model does not read: whoever changes one expects that it does."""
    for name in names:
        group, leaf = name.split(".")
        require(
            c[group][leaf] == FIELDS[name].default,
            f"config.{name}={c[group][leaf]!r} has no place in {c.model.name!r}: leave it at"
            f" {FIELDS[name].default!r}",
        )


def check_mae(c: ConfigDict, require: Require) -> None:
    require(c.model.name == "vit", "task 'mae' needs config.model.name='vit'")
    ratio = c.mae.mask_ratio
    patches = (c.data.image_size // c.model.patch) ** 2
    require(
        0 < ratio < 1,
        f"config.mae.mask_ratio={ratio} must lie between 0 and 1, both excluded:"
        f" {FIELDS['mae.mask_ratio'].doc}",
    )
    kept = num_kept(patches, ratio)
    require(
        0 < kept < patches,
        f"config.mae.mask_ratio={ratio} leaves {kept} of an image's {patches} patches visible:"
        " at least one must be, and one must not",
    )
    require(
        c.model.pool != "patches",
        "config.model.pool='patches' is for fine-tuning: pre-train with 'cls', whose weights it"
        " takes",
    )
    width, heads = c.mae.decoder_width, c.mae.decoder_heads
    require(
        width % heads == 0,
        f"config.mae.decoder_heads={heads} does not divide config.mae.decoder_width={width}",
    )
    require(
        c.mae.decoder_position != "sincos2d" or width % 4 == 0,
        "config.mae.decoder_position='sincos2d' needs a config.mae.decoder_width that is a"
        f" multiple of 4, not {width}",
    )
    require(
        not c.mae.normalise_target or c.model.patch**2 * c.data.channels > 1,
        "config.mae.normalise_target needs patches of more than one number: with"
        f" config.model.patch=1 and config.data.channels={c.data.channels} nothing is left",
    )
    for name in ("mixup", "cutmix", "erasing"):
        require(
            c.data.augmentation[name] == 0,
            f"config.data.augmentation.{name} has no place in task 'mae': what is mixed or erased"
            " cannot be reconstructed",
        )
    tensor = c.mesh.model
    require(
        tensor < 1 or heads % tensor == 0,
        f"config.mesh.model={tensor} does not divide config.mae.decoder_heads={heads}",
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
        f"config.sample.sampler={s.sampler!r} is none of the {f.family} family's:"
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
        f"config.sample.spacing={s.spacing!r} is of timesteps, a flow has none: leave it at"
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
        " trained without them at times: config.diffusion.conditional and .label_drop",
    )
    interval = s.guidance_interval
    require(
        len(interval) == 2
        and all(isinstance(x, int | float) and 0 <= x <= 1 for x in interval)
        and interval[0] <= interval[1],
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
    else:
        require(
            set(c.data.mean) == {0.5} and set(c.data.std) == {0.5},
            f"config.data.mean={c.data.mean} and .std={c.data.std}: diffusion works on pixels"
            " in [-1, 1], which is 0.5 for both",
        )
    measures = "generation" in c.eval.what
    require(
        not measures or c.eval.features,
        "config.eval.what names 'generation', and config.eval.features no network to compare"
        " images by: the file of FID's Inception, or the run directory of a classifier",
    )
    require(
        not measures or c.eval.reference or c.data.name != "latents",
        "config.eval.what names 'generation', and latents have no images to compare with: write"
        " config.eval.reference, which `pit-jax data stats` makes",
    )
    for name in ("mixup", "cutmix", "erasing"):
        require(
            a[name] == 0,
            f"config.data.augmentation.{name} has no place in task 'diffusion', whose samples"
            " would be mixed or erased like it",
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
        channels
        and all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in channels),
        f"config.autoencoder.channels={channels}: whole numbers of 1 or more, at least one",
    )
    require(
        not any(n % sizes.groups for n in channels),
        f"config.autoencoder.groups={sizes.groups} does not divide all of"
        f" config.autoencoder.channels={channels}",
    )
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
            f"config.data.augmentation.{name} has no place in task 'autoencoder', whose images"
            " would be mixed or erased like it",
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


OF = {"classification": check_classification, "autoregressive": check_autoregressive}
OF |= {"depth": check_depth}
OF |= {"mae": check_mae, "diffusion": check_diffusion, "autoencoder": check_autoencoder}
