"""What each task demands of its config, each refused in one line that names the field.

`require(holds, line)` raises the line as a ConfigError unless it holds.
"""

from collections.abc import Iterable

from ml_collections import ConfigDict

from pit_jax.config import DEPTH, FIELDS
from pit_jax.generative_demands import (
    Require,
    check_autoencoder,
    check_deepest,
    check_diffusion,
)
from pit_jax.models.sizes import num_kept

_PROBES = {"linear", "knn", "fewshot"}


def reads_labels(c: ConfigDict, evaluations: Iterable[str] | None = None) -> bool | None:
    """Whether the classes of images are looked at: by the task, True; else by probes among the
    evaluations (by default those of `eval.what`), None: they do where there are two classes."""
    names = c.eval.what if evaluations is None else evaluations
    probed = c.data.num_classes > 1 and _PROBES.intersection(names)
    return True if _tells_classes(c) else None if probed else False


def _tells_classes(c: ConfigDict) -> bool:
    return c.task == "classification" or (c.task == "diffusion" and c.diffusion.conditional)


def check_labels(c: ConfigDict, require: Require) -> None:
    diffusion = "config.diffusion.conditional=False, or 2 or more"
    require(
        c.data.num_classes > 1 or not _tells_classes(c),
        f"config.data.num_classes=1 leaves task {c.task!r} nothing to tell apart: write"
        f" {diffusion if c.task == 'diffusion' else 'how many classes there are, 2 or more'}",
    )


def check_classification(c: ConfigDict, require: Require) -> None:
    name = c.model.name
    require(
        name in ("vit", "convnet", "perceiver"),
        f"config.model.name={name!r} is no classifier: write 'vit' (PiT is vit with patch 1),"
        " 'convnet' or 'perceiver'",
    )
    common = ("model.pool", "model.drop_path", "model.layer_scale", "optim.layer_decay", *_PLACES)
    if name == "perceiver":
        _leave(c, require, *common, "model.head_std")
        check_deepest(c, require, c.perceiver.rounds * c.model.depth, "perceiver.rounds")
    if name == "convnet":
        _leave(c, require, *common, "model.patch", "model.embed", "model.dropout")
        _leave(c, require, "model.initial", "model.head_std")
        _leave(c, require, "model.position", "model.attention", "mesh.seq", "mesh.model")
        _check_convnet(c, require)


def _check_convnet(c: ConfigDict, require: Require) -> None:
    sizes = c.convnet
    for name in ("channels", "layers"):
        numbers = sizes[name]
        require(
            bool(numbers),
            f"config.convnet.{name}={numbers}: whole numbers of 1 or more, at least one",
        )
    check_deepest(c, require, sum(sizes.layers), "convnet.layers")
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
        f" {channels} channels, every one of which is predicted at every pixel: write at most"
        f" {most} ({MOST_COLOURS} colours)",
    )
    names = [name for name in _PLACES if not name.startswith("model.order")]
    _leave(c, require, "model.patch", "model.pool", "model.embed", *names)
    for name in ("mixup", "cutmix", "erasing"):
        require(
            c.data.augmentation[name] == 0,
            f"config.data.augmentation.{name} has no place in task 'autoregressive', which"
            " would learn to make mixed or erased images",
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
    probes = sorted(_PROBES.intersection(c.eval.what))
    require(not probes, f"{name}, which config.eval.what={c.eval.what} needs for {probes}")


MOST_COLOURS = 4096

# What a model does with the places of its tokens.
_PLACES = ("model.order", "model.window", "model.window_layers", "model.token_drop")


def _leave(c: ConfigDict, require: Require, *names: str) -> None:
    """Refuses fields that the model does not read: whoever changes one expects that it does."""
    for name in names:
        group, leaf = name.split(".")
        require(
            c[group][leaf] in (FIELDS[name].default, FIELDS[name].before),
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
    require(
        c.train.label_smoothing == 0,
        "config.train.label_smoothing has no place in task 'mae', which looks at no labels",
    )
    tensor = c.mesh.model
    require(
        tensor < 1 or heads % tensor == 0,
        f"config.mesh.model={tensor} does not divide config.mae.decoder_heads={heads}",
    )


OF = {"classification": check_classification, "autoregressive": check_autoregressive}
OF |= {"depth": check_depth}
OF |= {"mae": check_mae, "diffusion": check_diffusion, "autoencoder": check_autoencoder}
