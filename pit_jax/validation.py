"""The checks of a config, each refused in one line that names the field.

`resolve()` needs nothing but the config; `check_batch()` is asked where the mesh is known.
"""

import difflib
import re
from collections.abc import Callable, Iterable
from typing import Any

from ml_collections import ConfigDict

from pit_jax.config import FIELDS, assign, base, flatten
from pit_jax.errors import ConfigError
from pit_jax.lengths import Length
from pit_jax.models.sizes import num_kept
from pit_jax.parallel import processes


def unknown_field(name: str) -> ConfigError:
    """The error for a field that does not exist, naming the nearest one that does."""
    near = difflib.get_close_matches(name, FIELDS, n=1, cutoff=0.0)
    return ConfigError(f"config.{name} is not a field; did you mean config.{near[0]}?")


def check_value(name: str, value: Any) -> Any:
    """`value` as the field's type, within its range.

    Raises:
      ConfigError: naming the field, the value and what may stand there.
    """
    field = FIELDS.get(name)
    if field is None:
        raise unknown_field(name)
    if value is None and field.default is None:
        return None
    kind = field.type
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if kind is tuple and isinstance(value, list):
        value = tuple(value)
    wrong_bool = isinstance(value, bool) and kind is not bool
    if not isinstance(value, kind) or wrong_bool:
        raise ConfigError(f"config.{name}={value!r} should be of type {kind.__name__}: {field.doc}")
    if field.choices and value not in field.choices:
        near = difflib.get_close_matches(str(value), map(str, field.choices), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(
            f"config.{name}={value!r} is none of {', '.join(map(str, field.choices))}{hint}"
        )
    below = field.low is not None and not value >= field.low  # `not >=`: NaN is refused too
    above = field.high is not None and not value <= field.high
    if below or above:
        limits = [f"at least {field.low}"] if field.low is not None else []
        limits += [f"at most {field.high}"] if field.high is not None else []
        raise ConfigError(f"config.{name}={value!r} must be {' and '.join(limits)}: {field.doc}")
    if kind is float and value == float("inf"):
        raise ConfigError(f"config.{name}={value!r} must be finite")
    if field.length:
        try:
            Length.parse(value)
        except ValueError as error:
            raise ConfigError(f"config.{name}={value!r}: {error}") from None
    return value


def resolve(config: ConfigDict) -> ConfigDict:
    """A checked copy with everything filled in that follows from other fields.

    Raises:
      ConfigError: in one line that names the field.
    """
    flat = flatten(config)
    resolved = base()
    for name, value in flat.items():
        assign(resolved, name, check_value(name, value))
    if resolved.model.mlp == 0:
        resolved.model.mlp = 4 * resolved.model.width
    _check_together(resolved)
    return resolved


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
    if c.task == "mae":
        _check_mae(c, require)
    if c.task == "diffusion":
        _check_diffusion(c, require)
    if c.task == "autoencoder":
        _check_autoencoder(c, require)
    require(
        c.task == "diffusion" or d.name != "latents",
        f"config.data.name='latents' is for task 'diffusion', not {c.task!r}",
    )
    require(
        d.channels in (1, 3) or d.name == "latents",
        f"config.data.channels={d.channels} is neither 1 nor 3",
    )
    given = [name for name in ("steps", "epochs", "examples") if t[name] is not None]
    require(
        len(given) == 1,
        "give exactly one of config.train.steps, config.train.epochs and config.train.examples"
        f" ({' and '.join(given) or 'none'} given)",
    )
    require(t.epochs is None or t.epochs > 0, "config.train.epochs must be more than 0")
    if c.task != "autoencoder":
        _check_tokens(c, require)
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
            len(d[name]) in (1, d.channels) and all(isinstance(x, int | float) for x in d[name]),
            f"config.data.{name}={d[name]} needs one number, or one for each of"
            f" config.data.channels={d.channels}",
        )
    require(all(x > 0 for x in d.std), f"config.data.std={d.std} must be positive")
    require(
        d.channels == 3 or (a.grayscale == 0 and not any(a.jitter[2:])),
        "config.data.augmentation.grayscale and the last two of .jitter (saturation, hue) need"
        f" colour images: config.data.channels={d.channels}",
    )
    for name, size, high in (("scale", 2, 1.0), ("ratio", 2, None), ("jitter", 4, None)):
        value = a[name]
        require(
            len(value) == size
            and all(isinstance(x, int | float) and x >= 0 for x in value)
            and (name == "jitter" or 0 < value[0] <= value[1])
            and (high is None or value[1] <= high),
            f"config.data.augmentation.{name}={value} is not valid: {size} numbers,"
            f" {FIELDS[f'data.augmentation.{name}'].doc}",
        )
    require(a.jitter[3] <= 0.5, "config.data.augmentation.jitter: hue turns by at most 0.5")
    betas = c.optim.betas
    require(
        len(betas) == 2 and all(isinstance(b, int | float) and 0 <= b < 1 for b in betas),
        f"config.optim.betas={betas} must be two numbers in [0, 1)",
    )
    for pattern in c.optim.freeze:
        try:
            re.compile(pattern)
        except (re.error, TypeError) as error:
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
    require(
        all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in shots) and shots,
        f"config.eval.shots={shots}: whole numbers of 1 or more, at least one",
    )


def _check_tokens(c: ConfigDict, require: Callable[[bool, str], None]) -> None:
    m, size = c.model, c.data.image_size
    require(
        size % m.patch == 0,
        f"config.model.patch={m.patch} does not divide config.data.image_size={size}",
    )
    require(
        m.width % m.heads == 0,
        f"config.model.heads={m.heads} does not divide config.model.width={m.width}",
    )
    require(
        m.position != "sincos2d" or m.width % 4 == 0,
        f"config.model.position='sincos2d' needs a width that is a multiple of 4, not {m.width}",
    )


def _check_mae(c: ConfigDict, require: Callable[[bool, str], None]) -> None:
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


def _check_diffusion(c: ConfigDict, require: Callable[[bool, str], None]) -> None:
    f, s, a = c.diffusion, c.sample, c.data.augmentation
    require(c.model.name == "dit", "task 'diffusion' needs config.model.name='dit'")
    require(
        c.model.embed == "linear",
        "config.model.embed='dictionary' cannot look up the colours of noise",
    )
    for name in ("drop_path", "layer_scale"):
        require(c.model[name] == 0, f"config.model.{name} is not offered by 'dit'")
    samplers = {"gaussian": ("ddpm", "ddim", "dpm++"), "flow": ("euler", "heun")}[f.family]
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
            a.crop == "none" and a.grayscale == 0 and not any(a.jitter) and a.randaugment == 0,
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


def _check_autoencoder(c: ConfigDict, require: Callable[[bool, str], None]) -> None:
    sizes, d = c.autoencoder, c.data
    require(
        c.model.name == "autoencoder", "task 'autoencoder' needs config.model.name='autoencoder'"
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


def _batches(c: ConfigDict) -> dict[str, int]:
    """What one pass through the model holds, by the field that says so."""
    return {
        "train.batch_size": c.train.batch_size // c.train.accumulate,
        "eval.batch_size": c.eval.batch_size or c.train.batch_size,
    }


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
