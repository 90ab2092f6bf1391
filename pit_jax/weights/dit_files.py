"""Files of Diffusion Transformers that others read and write: diffusers' and public DiT's."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from etils import epath

from pit_jax import files, tasks
from pit_jax.errors import ConfigError
from pit_jax.weights import diffusers_dit, huggingface_directory, public_dit, public_file, tensors

_FILE, _CLASS = "diffusion_pytorch_model.safetensors", "DiTTransformer2DModel"
_OLD_CLASS = "Transformer2DModel"  # which held DiT, told by its norm_type, among others

# What config.json must agree with us on → what of ours makes it, and what diffusers takes where
# it says nothing. Of norm_eps that would be 1e-5; but the public conversion to diffusers left
# it out, and its weights were trained with 1e-6.
_COMPARED: dict[str, tuple[str, Any]] = {
    "num_attention_heads": ("config.model.heads", 16),
    "attention_head_dim": ("config.model.width / config.model.heads", 72),
    "num_layers": ("config.model.depth", 28),
    "patch_size": ("config.model.patch", 2),
    "sample_size": ("config.data.image_size", 32),
    "in_channels": ("config.data.channels", 4),
    "out_channels": ("config.data.channels with config.diffusion.learn_sigma", None),
    "num_embeds_ada_norm": ("config.data.num_classes", 1000),
    "norm_eps": ("", 1e-6),
    "activation_fn": ("", "gelu-approximate"),
    "attention_bias": ("", True),
    "norm_type": ("", "ada_norm_zero"),
    "norm_elementwise_affine": ("", False),
}


def write_diffusers(directory: str, params: Mapping, config: Any) -> None:
    """Writes a directory that diffusers' `DiTTransformer2DModel.from_pretrained` loads.

    Raises:
      ConfigError: if it would compute something else than ours, naming the field, and the
        format that can hold it.
      StorageError: if a file cannot be written.
    """
    model, data, root = tasks.build(config).model, config.data, epath.Path(directory)
    try:
        diffusers_dit.check_expressible(model, plain=True)
    except ConfigError as error:
        raise ConfigError(f"{error}: write --format {_other_format(model)}") from None
    found = diffusers_dit.to_diffusers(params, model, data.image_size)
    fields = diffusers_dit.config(model, data.image_size, data.channels)
    tensors.write(root / _FILE, found)
    text = json.dumps({"_class_name": _CLASS} | fields, indent=2) + "\n"
    files.write(root / "config.json", text.encode())


def write_public(path: str, params: Mapping, config: Any) -> None:
    """Writes the tensors as the public DiT code names them, to a .safetensors file.

    Raises:
      ConfigError: if it would compute something else than ours, naming the field, and the
        format that can hold it.
      StorageError: if the file cannot be written.
    """
    model = tasks.build(config).model
    try:
        public_dit.check_expressible(model)
    except ConfigError as error:
        raise ConfigError(f"{error}: write --format pit_jax") from None
    tensors.write(path, public_dit.to_public(params, model, config.data.image_size))


def read(source: str, config: Any, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Our parameters from a diffusers directory, or a file with its or public DiT's names.

    Args:
      source: the directory, whose config.json is held against ours, a .safetensors file, or a
        .pt as torch.save writes it, of the weights or of a training checkpoint.
      config: resolved, of the model that they are for.
      say: takes a line about which weights of a checkpoint were taken.

    Raises:
      ConfigError: if they are of another model or under other names.
      StorageError: if the file is damaged.
    """
    root = epath.Path(source)
    file = root
    if root.is_dir():
        _check_config(root, config)
        file = root / _FILE
    found = public_file.read(file)
    if not has_names(found.tensors):
        raise ConfigError(
            f"{file} has neither public DiT's tensors ({public_dit.NAMES.patch}.weight, ...) nor"
            f" diffusers' ({diffusers_dit.NAMES.patch}.weight, ...)"
        )
    if found.note:
        say(found.note)
    return parameters(found.tensors, config)


def has_names(found: Mapping[str, np.ndarray]) -> bool:
    """Whether tensors are called as public DiT's or diffusers'."""
    return any(f"{names.NAMES.patch}.weight" in found for names in (public_dit, diffusers_dit))


def parameters(found: Mapping[str, np.ndarray], config: Any) -> dict[str, Any]:
    """Our parameters from tensors that `has_names` knows.

    Raises:
      ConfigError: if they are of another model.
    """
    model, data = tasks.build(config).model, config.data
    public = f"{public_dit.NAMES.patch}.weight" in found
    convert = public_dit.from_public if public else diffusers_dit.from_diffusers
    return convert(found, model, data.image_size, data.channels)


def is_one(directory: epath.PathLike) -> bool:
    """Whether the config.json there is one of diffusers' DiT."""
    try:
        return _is_dit(_read_config(epath.Path(directory)))
    except ConfigError:
        return False


def _check_config(root: epath.Path, config: Any) -> None:
    """Refuses a diffusers directory whose module computes something else than ours would."""
    theirs, where = _read_config(root), root / "config.json"
    if not _is_dit(theirs):
        raise ConfigError(f"{where} describes a {theirs.get('_class_name')!r}, not a {_CLASS!r}")
    data = config.data
    ours = diffusers_dit.config(tasks.build(config).model, data.image_size, data.channels)
    for name, (field, default) in _COMPARED.items():
        said = theirs.get(name, default)
        if name == "out_channels" and said is None:  # as many as come in
            said = theirs.get("in_channels", _COMPARED["in_channels"][1])
        if said == ours[name]:
            continue
        if name == "norm_eps":
            raise ConfigError(
                f"{where} has norm_eps={said!r} in half of its norms, where ours have"
                f" {ours[name]!r} in all: name {root / _FILE} if the weights were trained with"
                f" {ours[name]!r}, as public DiT's were"
            )
        made = f"{field} makes it {ours[name]!r}" if field else f"only {ours[name]!r} is supported"
        raise ConfigError(f"{where} has {name}={said!r}, {made}")


def _is_dit(theirs: Mapping[str, Any]) -> bool:
    old = theirs.get("_class_name") == _OLD_CLASS and theirs.get("norm_type") == "ada_norm_zero"
    return old or theirs.get("_class_name") == _CLASS


def _read_config(root: epath.Path) -> dict[str, Any]:
    path = root / "config.json"
    if not path.exists():
        raise ConfigError(f"{root} holds no config.json: name the .safetensors file in it")
    return huggingface_directory.read_config(path)


def _other_format(model: Any) -> str:
    """Of an export that holds a model which diffusers' DiT cannot express."""
    try:
        public_dit.check_expressible(model)
    except ConfigError:
        return "pit_jax"
    return "public (public DiT's names)"
