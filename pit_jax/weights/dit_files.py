"""Files of Diffusion Transformers that others read and write: diffusers' and public DiT's."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from pit_jax import files, tasks
from pit_jax.errors import ConfigError
from pit_jax.weights import diffusers_dit, public_dit, tensors, torch_file

_FILE, _CLASS = "diffusion_pytorch_model.safetensors", "DiTTransformer2DModel"


def write_diffusers(directory: str, params: Mapping, config: Any) -> None:
    """Writes a directory that diffusers' `DiTTransformer2DModel.from_pretrained` loads.

    Raises:
      ConfigError: if it would compute something else than ours, naming the field.
      StorageError: if a file cannot be written.
    """
    model, data, root = tasks.build(config).model, config.data, epath.Path(directory)
    diffusers_dit.check_expressible(model, plain=True)
    found = diffusers_dit.to_diffusers(params, model, data.image_size)
    fields = diffusers_dit.config(model, data.image_size, data.channels)
    tensors.write(root / _FILE, found)
    text = json.dumps({"_class_name": _CLASS} | fields, indent=2) + "\n"
    files.write(root / "config.json", text.encode())


def write_public(path: str, params: Mapping, config: Any) -> None:
    """Writes the tensors as the public DiT code names them, to a .safetensors file.

    Raises:
      ConfigError: if it would compute something else than ours, naming the field.
      StorageError: if the file cannot be written.
    """
    model = tasks.build(config).model
    tensors.write(path, public_dit.to_public(params, model, config.data.image_size))


def read(source: str, config: Any) -> dict[str, Any]:
    """Our parameters from a diffusers directory, or a file with its or public DiT's names.

    Args:
      source: the directory, a .safetensors file, or a .pt as torch.save writes it.
      config: resolved, of the model that they are for.

    Raises:
      ConfigError: if they are of another model or under other names.
      StorageError: if the file is damaged.
    """
    root = epath.Path(source)
    file = root / _FILE if root.is_dir() else root
    if file.suffix in (".pt", ".pth"):
        try:
            content = file.read_bytes()
        except OSError as error:
            raise ConfigError(f"weights {file}: {error.strerror or error}") from None
        found: dict[str, np.ndarray] = torch_file.tensors(content, str(file))
    else:
        found, _ = tensors.read(file)
    model, data = tasks.build(config).model, config.data
    for names in (public_dit, diffusers_dit):
        if f"{names.NAMES.patch}.weight" in found:
            convert = public_dit.from_public
            if names is diffusers_dit:
                convert = diffusers_dit.from_diffusers
            return convert(found, model, data.image_size, data.channels)
    raise ConfigError(
        f"{file} has neither public DiT's tensors ({public_dit.NAMES.patch}.weight, ...) nor"
        f" diffusers' ({diffusers_dit.NAMES.patch}.weight, ...)"
    )
