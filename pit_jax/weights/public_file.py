"""Files of weights as others leave them: the tensors of one network, out of what is around them.

A training checkpoint keeps weights beside optimiser, arguments and moving averages, and wrappers
of PyTorch put their own name before each of the network's. Both are taken off here, whatever
the network is.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from pit_jax.errors import ConfigError
from pit_jax.weights import tensors, torch_file

SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".tar")  # as torch.save writes them

# Where checkpoints keep weights, moving averages first: public DiT samples from them, and timm
# prefers them when it loads.
_AVERAGES = ("ema", "model_ema", "state_dict_ema", "ema_state_dict")
_WEIGHTS = ("model", "state_dict", "model_state_dict", "module")

# What DistributedDataParallel, torch.compile, FSDP and activation checkpointing call what is inside
# them; only the first is a word that a network may use itself.
_OUTER = re.compile(r"^(?:module|_orig_mod)\.")
_WRAPPERS = re.compile(r"(^|\.)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_OWNERS = ("model.", "net.", "network.")  # attributes of a LightningModule


class File(NamedTuple):
    """What a file holds.

    Attributes:
      tensors: of one network, by the names that it gives them.
      fields: of the config, if it is in our own layout, else None.
      note: a line about what else there was to take, "" if nothing was.
    """

    tensors: dict[str, np.ndarray]
    fields: dict[str, Any] | None = None
    note: str = ""


def read(path: epath.PathLike) -> File:
    """Reads a .safetensors file, or one that torch.save wrote; nothing in it is executed.

    Raises:
      ConfigError: if there is no such file, or no dict of tensors in it.
      StorageError: if it is damaged.
    """
    source = epath.Path(path)
    if source.suffix not in SUFFIXES:
        found, fields = tensors.read(source)
        return File(found, fields) if fields is not None else File(unwrapped(found))
    try:
        content = source.read_bytes()
    except OSError as error:
        raise ConfigError(f"weights {source}: {error.strerror or error}") from None
    key = ""

    def choose(found: Any) -> Any:
        nonlocal key
        key = _kept_under(found)
        return found[key] if key else found

    found = torch_file.tensors(content, str(source), choose)
    note = f"{source} is a training checkpoint: its {key!r} was taken" if key else ""
    if key in _AVERAGES:
        note += ", the moving average of the weights"
    return File(unwrapped(found), None, note)


def unwrapped(found: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same tensors without what wrappers put before their names.

    Where two would get the same name all keep theirs.
    """
    names = {name: _unwrapped(name) for name in found}
    for owner in _OWNERS:
        if names and all(name.startswith(owner) for name in names.values()):
            names = {name: inner.removeprefix(owner) for name, inner in names.items()}
    if len(set(names.values())) < len(names):
        return dict(found)
    return {names[name]: tensor for name, tensor in found.items()}


def _unwrapped(name: str) -> str:
    before = None
    while before != name:
        before, name = name, _OUTER.sub("", _WRAPPERS.sub(r"\1", name))
    return name


def _kept_under(found: Any) -> str:
    """The key of a checkpoint under which its weights are, "" if it is none."""
    if not isinstance(found, dict):
        return ""
    for key in (*_AVERAGES, *_WEIGHTS):
        inner = found.get(key)
        if isinstance(inner, dict) and any(isinstance(x, np.ndarray) for x in inner.values()):
            return key
    return ""
