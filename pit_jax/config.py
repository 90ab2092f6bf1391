"""A config: every field of fields.py, and what a run changes of them.

`base()` is a config with every default; the files in configs/ change what they need.
validation.py checks the values before anything runs.
"""

import functools
import pickle
from typing import Any

from ml_collections import ConfigDict, config_dict

from pit_jax.field import Field, plain
from pit_jax.fields import DEEPEST, DEPTH, EVALUATIONS, FIELDS, TASKS

__all__ = ["DEEPEST", "DEPTH", "EVALUATIONS", "FIELDS", "TASKS", "Field"]
__all__ += ["Config", "assign", "base", "flatten", "label", "plain"]


class Config(ConfigDict):
    """A ConfigDict whose fields take the numbers of NumPy and JAX for Python's."""

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, plain(value))


def base() -> ConfigDict:
    """A config that holds every field with its default."""
    return pickle.loads(_base(tuple(FIELDS)))


@functools.cache
def _base(names: tuple[str, ...]) -> bytes:
    """Pickled: the quickest way to many copies."""
    tree = Config()
    for name in names:
        field = FIELDS[name]
        *groups, leaf = name.split(".")
        node = tree
        for group in groups:
            if group not in node:
                node[group] = Config()
            node = node[group]
        missing = field.default is None
        node[leaf] = config_dict.placeholder(field.type) if missing else field.default
    return pickle.dumps(tree.lock())


def assign(config: ConfigDict, name: str, value: Any) -> None:
    """Sets the field with the dotted `name`."""
    *groups, leaf = name.split(".")
    for group in groups:
        config = config[group]
    config[leaf] = value


def flatten(config: ConfigDict | dict, prefix: str = "") -> dict[str, Any]:
    """{"model.width": 192, ...}, in the order of the config."""
    flat = {}
    for key, value in config.items():
        nested = isinstance(value, ConfigDict | dict)
        flat.update(flatten(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value})
    return flat


def label(c: ConfigDict) -> str:
    """What tables call the model and its task: "PiT", "ViT/2", "PiT mae", "autoencoder f8c4"."""
    if c.task == "autoencoder":  # image's side / latents' side, channels of the latents
        return f"autoencoder f{2 ** (len(c.autoencoder.channels) - 1)}c{c.autoencoder.latent}"
    if c.model.name == "convnet":
        return f"ConvNet {c.convnet.kernel}×{c.convnet.kernel}"
    if c.model.name == "perceiver":
        return "Perceiver" if c.model.patch == 1 else f"Perceiver/{c.model.patch}"
    if c.model.name == "igpt":
        return "iGPT"
    family = "DiT" if c.model.name == "dit" else "ViT"
    name = "PiT" if c.model.patch == 1 else f"{family}/{c.model.patch}"
    return name if c.task == "classification" else f"{name} {c.task}"
