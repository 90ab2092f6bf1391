"""The checks of a config, each refused in one line that names the field.

`resolve()` needs nothing but the config; `check_batch()` is asked where the mesh is known.
"""

import os
import re
from collections.abc import Callable, Iterable

from ml_collections import ConfigDict

from pit_jax import demands, derived
from pit_jax.config import DEPTH, FIELDS, assign, base, flatten
from pit_jax.data import known
from pit_jax.errors import ConfigError
from pit_jax.lengths import Length
from pit_jax.models.mask import MOST_WINDOWS, layer_radii
from pit_jax.models.sizes import num_kept
from pit_jax.parallel import processes
from pit_jax.values import check_value

MOST_NUMBERS = 2**31  # of one image's tokens in one layer


def resolve(config: ConfigDict) -> ConfigDict:
    """A checked copy with everything filled in that follows from other fields.

    Raises:
      ConfigError: in one line that names the field.
    """
    flat = flatten(config)
    resolved = base()
    for name, value in flat.items():
        value = check_value(name, value)
        # Whose home it is: config.json is read by others, and on other machines.
        assign(resolved, name, os.path.expanduser(value) if FIELDS[name].place else value)
    derived.fill(resolved)
    _check_together(resolved)
    return resolved


def check_meant(config: ConfigDict) -> None:
    """Refuses what is possible and can hardly be meant, before a run is begun with it.

    What runs were begun with before stays: `resolve` reads it.

    Raises:
      ConfigError: in one line that names the field.
    """

    def require(holds: bool, message: str) -> None:
        if not holds:
            raise ConfigError(message)

    o, a = config.optim, config.data.augmentation
    for group in ("eval", "checkpoint"):
        every = config[group].every
        require(
            Length.parse(every).number > 0,
            f"config.{group}.every={every!r} is no period: write '1 steps' for every step, or"
            " '100%' for the last one only",
        )
    falls = o.schedule != "constant"
    peak = peak_lr(o, config.train.batch_size)
    scaled = f" × {config.train.batch_size} / {o.lr_batch}" if o.lr_batch else ""
    require(
        not falls or o.lr_end <= peak,
        f"config.optim.lr_end={o.lr_end} is more than the peak, config.optim.lr={o.lr}{scaled}:"
        f" schedule {o.schedule!r} would rise towards its end",
    )
    parts = {"warmup": o.warmup} | ({"decay": o.decay} if o.schedule == "wsd" else {})
    lengths = {name: Length.parse(text) for name, text in parts.items()}
    shares = sum(length.number for length in lengths.values() if length.unit == "%")
    named = " and ".join(f"config.optim.{name}={text!r}" for name, text in parts.items())
    require(shares <= 100, f"{named}: more than the whole of training")
    require(
        "decay" not in lengths or lengths["decay"].number > 0,
        f"config.optim.decay={o.decay!r} never falls: write config.optim.schedule='constant'",
    )
    require(
        o.layer_decay > 0,
        "config.optim.layer_decay=0 trains the head alone: write config.optim.freeze for that",
    )
    require(
        a.mixup_prob > 0 or not (a.mixup or a.cutmix),
        "config.data.augmentation.mixup_prob=0 mixes nothing: write .mixup=0 and .cutmix=0",
    )
    require(
        a.jitter_prob > 0 or not any(a.jitter),
        "config.data.augmentation.jitter_prob=0 jitters nothing: write .jitter=(0, 0, 0, 0)",
    )


def peak_lr(optim: ConfigDict, batch_size: int) -> float:
    """`optim.lr`, scaled by batch / lr_batch where that rule is on (Goyal et al. 2017)."""
    return optim.lr * batch_size / optim.lr_batch if optim.lr_batch else optim.lr


def check_names(config: ConfigDict, evaluations: Iterable[str]) -> None:
    """Refuses an evaluation that the task does not offer.

    Raises:
      ConfigError: listing those that it does.
    """
    for name in config.eval.what:
        if name not in evaluations:
            raise ConfigError(
                f"config.eval.what={config.eval.what}: {config.task} offers"
                f" {', '.join(evaluations)}, not {name!r}"
            )


def _check_together(c: ConfigDict) -> None:
    """Refuses fields that are fine one by one and do not fit together."""

    def require(holds: bool, message: str) -> None:
        if not holds:
            raise ConfigError(message)

    m, d, a, t = c.model, c.data, c.data.augmentation, c.train
    require(
        c.task == "diffusion" or d.name != "latents",
        f"config.data.name='latents' is for task 'diffusion', not {c.task!r}",
    )
    require(
        d.channels in (1, 3) or d.name == "latents",
        f"config.data.channels={d.channels} is neither 1 nor 3",
    )
    if c.task in demands.OF:
        demands.OF[c.task](c, require)
    wrong_size = known.wrong_size(d.name, d.image_size)
    require(not wrong_size, str(wrong_size))
    if d.name.partition(":")[0] in DEPTH:
        demands.check_without_classes(c, require)
    else:
        demands.check_labels(c, require)
    given = [name for name in ("steps", "epochs", "examples") if t[name] is not None]
    require(
        len(given) == 1,
        "give exactly one of config.train.steps, config.train.epochs and config.train.examples"
        f" ({' and '.join(given) or 'none'} given)",
    )
    require(t.epochs is None or t.epochs > 0, "config.train.epochs must be more than 0")
    if c.task != "autoencoder":
        _check_tokens(c, require)
    _check_locality(c, require)
    require(
        m.embed != "dictionary" or m.patch == 1,
        "config.model.embed='dictionary' names single colours:"
        f" config.model.patch={m.patch} must be 1",
    )
    require(
        m.embed != "dictionary" or (a.mixup == 0 and a.cutmix == 0),
        "config.model.embed='dictionary' cannot look up the blended colours of mixup and cutmix",
    )
    require(
        m.embed != "dictionary" or a.erasing == 0,
        "config.model.embed='dictionary' cannot look up the noise of"
        f" config.data.augmentation.erasing={a.erasing}",
    )
    require(
        t.batch_size % t.accumulate == 0,
        f"config.train.accumulate={t.accumulate} does not divide"
        f" config.train.batch_size={t.batch_size}",
    )
    for name in ("mean", "std"):
        require(
            len(d[name]) in (1, d.channels),
            f"config.data.{name}={d[name]} needs one number, or one for each of"
            f" config.data.channels={d.channels}",
        )
    require(
        d.channels == 3 or (a.grayscale == 0 and not any(a.jitter[2:])),
        "config.data.augmentation.grayscale and the last two of .jitter (saturation, hue) need"
        f" colour images: config.data.channels={d.channels}",
    )
    for name, size in (("scale", 2), ("ratio", 2), ("jitter", 4)):
        value = a[name]
        require(
            len(value) == size and (name == "jitter" or value[0] <= value[1]),
            f"config.data.augmentation.{name}={value} is not valid: {size} numbers,"
            f" {FIELDS[f'data.augmentation.{name}'].doc}",
        )
    require(
        a.crop != "pad" or a.pad < d.image_size,
        f"config.data.augmentation.pad={a.pad} would cut crops without a pixel of the image out of"
        f" config.data.image_size={d.image_size}: write at most {d.image_size - 1}",
    )
    require(
        a.crop != "simple" or a.pad < d.image_size,
        f"config.data.augmentation.pad={a.pad} rows cannot be mirrored at the border of"
        f" config.data.image_size={d.image_size}: write at most {d.image_size - 1}",
    )
    require(a.jitter[3] <= 0.5, "config.data.augmentation.jitter: hue turns by at most 0.5")
    betas = c.optim.betas
    require(
        len(betas) == 2 and all(0 <= b < 1 for b in betas),
        f"config.optim.betas={betas} must be two numbers in [0, 1)",
    )
    for pattern in c.optim.freeze:
        try:
            re.compile(pattern)
        except (re.error, RecursionError, OverflowError) as error:
            raise ConfigError(
                f"config.optim.freeze: {pattern!r} is no regular expression ({error})"
            ) from None
    axes = {axis: c.mesh[axis] for axis in ("data", "fsdp", "seq", "model")}
    require(
        list(axes.values()).count(-1) <= 1 and 0 not in axes.values(),
        f"config.mesh={axes}: axes are 1 or more, and at most one is -1 (what is left)",
    )
    require(
        axes["model"] < 1 or (m.heads % axes["model"] == 0 and m.mlp % axes["model"] == 0),
        f"config.mesh.model={axes['model']} does not divide config.model.heads={m.heads}"
        f" and config.model.mlp={m.mlp}",
    )
    require(not (c.init_from and c.resume), "give config.init_from or config.resume, not both")
    shots = c.eval.shots
    require(bool(shots), f"config.eval.shots={shots}: whole numbers of 1 or more, at least one")


def _check_tokens(c: ConfigDict, require: Callable[[bool, str], None]) -> None:
    m, size = c.model, c.data.image_size
    require(
        size % m.patch == 0,
        f"config.model.patch={m.patch} does not divide config.data.image_size={size}",
    )
    tokens = (size // m.patch) ** 2
    require(
        tokens * m.width <= MOST_NUMBERS,
        f"config.data.image_size={size} and config.model.patch={m.patch} make {tokens:,} tokens of"
        f" config.model.width={m.width}: at most {MOST_NUMBERS:,} numbers an image",
    )
    require(
        m.width % m.heads == 0,
        f"config.model.heads={m.heads} does not divide config.model.width={m.width}",
    )
    require(
        m.position != "sincos2d" or m.width % 4 == 0,
        f"config.model.position='sincos2d' needs a width that is a multiple of 4, not {m.width}",
    )


def _check_locality(c: ConfigDict, require: Callable[[bool, str], None]) -> None:
    """What is asked about locality: permuted pixels, windows, orders, tokens left out."""
    m, size, p = c.model, c.data.image_size, c.data.permutation
    encodes = c.task == "classification" and m.name == "vit"
    require(
        p.swaps <= size**2 // 2,
        f"config.data.permutation.swaps={p.swaps} is more than the {size**2 // 2} disjoint pairs"
        f" of {size} × {size} pixels",
    )
    require(
        p.swaps == 0 or (c.task != "autoencoder" and c.data.name != "latents"),
        f"config.data.permutation.swaps={p.swaps} has no place where latents are learned or"
        " given: they are not pixels",
    )
    require(
        not p.per_image or c.task != "diffusion",
        "config.data.permutation.per_image has no place in task 'diffusion': a generated image"
        " has no permutation of its own to be undone",
    )
    require(
        not p.per_image or p.distance == 0,
        f"config.data.permutation.distance={p.distance} is offered with one permutation for all"
        " images only: set .per_image=False or .distance=0",
    )
    window = m.window
    require(
        len(window) in (0, 1, m.depth),
        f"config.model.window={window}: one radius, or one for each of config.model.depth="
        f"{m.depth} layers; 0 = itself, negative = everything",
    )
    require(
        m.window_layers == 0 or (len(window) == 1 and m.window_layers <= m.depth),
        f"config.model.window_layers={m.window_layers} needs one radius in config.model.window,"
        f" not {len(window)}, and at most config.model.depth={m.depth} layers",
    )
    radii = set(layer_radii(window, m.window_layers, m.depth, max(size // m.patch, 1)))
    require(
        len(radii) <= MOST_WINDOWS,
        f"config.model.window={window} has {len(radii)} different windows: {MOST_WINDOWS} is the"
        " most in one model, all radii that reach the whole image counting as one",
    )
    require(
        not window or encodes or c.task in ("diffusion", "depth"),
        "config.model.window is offered by 'vit' in tasks 'classification' and 'depth' and by 'dit'"
        f" in task 'diffusion', not by {m.name!r} in task {c.task!r}",
    )
    require(
        not window or m.order == "raster",
        f"config.model.window counts rows and columns: config.model.order={m.order!r} must be"
        " 'raster'",
    )
    require(
        m.order == "raster" or encodes or c.task == "autoregressive",
        f"config.model.order={m.order!r} is offered by 'vit' in task 'classification' and in task"
        f" 'autoregressive', not by {m.name!r} in task {c.task!r}: leave it at 'raster'",
    )
    require(
        m.token_drop == 0 or encodes,
        "config.model.token_drop is offered by 'vit' in task 'classification', not by"
        f" {m.name!r} in task {c.task!r}",
    )
    require(
        m.token_drop == 0 or not window,
        "config.model.token_drop and config.model.window do not go together: what is left of an"
        " image has no rows and columns",
    )
    require(
        num_kept((size // m.patch) ** 2, m.token_drop) > 0 or m.token_drop == 0,
        f"config.model.token_drop={m.token_drop} leaves none of an image's"
        f" {(size // m.patch) ** 2} tokens",
    )


def _batches(c: ConfigDict) -> dict[str, int]:
    """What one pass through the model holds, by the field that says so."""
    found = {
        "train.batch_size": c.train.batch_size // c.train.accumulate,
        "eval.batch_size": c.eval.batch_size or c.train.batch_size,
    }
    if c.task == "diffusion" and c.sample.batch_size:
        found["sample.batch_size"] = c.sample.batch_size
    return found


def sample_batch(c: ConfigDict) -> int:
    """Images that a diffusion run generates at once, over all devices."""
    return c.sample.batch_size or c.eval.batch_size or c.train.batch_size


def sample_dtype(c: ConfigDict) -> str:
    """The compute dtype that a diffusion run generates in, as `model.dtype` says one."""
    return c.model.dtype if c.sample.dtype == "model" else c.sample.dtype


def cpu_devices(c: ConfigDict) -> int:
    """As how many devices the cores of a machine without accelerators serve this run best.

    One a core is faster than one that splits every product over the cores, as long as the
    mesh is left open, or asks for so many, and the batches divide.
    """
    return processes.cpu_devices(c.mesh, tuple(_batches(c).values()))


def check_batch(c: ConfigDict, mesh_sizes: dict[str, int]) -> None:
    """Refuses a batch that the mesh cannot share out; called where devices are known.

    Raises:
      ConfigError: if a micro-batch does not divide over data × fsdp.
    """
    ways = mesh_sizes["data"] * mesh_sizes["fsdp"]
    for name, size in _batches(c).items():
        if size % ways:
            part = f" / accumulate={c.train.accumulate}" if c.train.accumulate > 1 else ""
            raise ConfigError(
                f"config.{name}{part if 'train' in name else ''} = {size} does not divide over"
                f" mesh data {mesh_sizes['data']} × fsdp {mesh_sizes['fsdp']} = {ways}"
            )
