"""Parameter trees as flat tensors, and the .safetensors files that hold them."""

import json
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy
from etils import epath

from pit_jax import files
from pit_jax.errors import ConfigError, StorageError
from pit_jax.parallel.rules import map_with_path

# Our own files carry their model's fields under this key of the safetensors metadata.
_FIELDS = "pit_jax"

_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BOOL": "?"}
_DTYPES |= {f"{kind}{8 * n}": f"<{kind.lower()}{n}" for kind in "IU" for n in (1, 2, 4, 8)}
_DTYPES |= {"BF16": ml_dtypes.bfloat16, "F8_E4M3": ml_dtypes.float8_e4m3fn}
_DTYPES |= {"F8_E5M2": ml_dtypes.float8_e5m2}


def flatten(tree: Any) -> dict[str, np.ndarray]:
    """A nested tree as {"trunk/last/query/kernel": array, ...}."""
    flat: dict[str, np.ndarray] = {}
    map_with_path(lambda path, x: flat.setdefault(path, np.asarray(x)), tree)
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The nested dicts that `flatten` took apart."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *groups, leaf = path.split("/")
        node = tree
        for group in groups:
            node = node.setdefault(group, {})
        node[leaf] = value
    return tree


def write(path: epath.PathLike, flat: Mapping[str, np.ndarray], fields: dict | None = None) -> None:
    """Writes a .safetensors file as a whole or not at all.

    Args:
      path: local or gs://.
      flat: tensors by name.
      fields: model and data fields of a file in our own layout; None for others.

    Raises:
      StorageError: if the file cannot be written.
    """
    metadata = {_FIELDS: json.dumps(fields)} if fields is not None else {"format": "pt"}
    contiguous = {name: np.asarray(x, order="C") for name, x in flat.items()}
    files.write(path, safetensors.numpy.save(contiguous, metadata))


def read(path: epath.PathLike) -> tuple[dict[str, np.ndarray], dict | None]:
    """The tensors of a .safetensors file, and its fields if it is in our own layout.

    Raises:
      ConfigError: if there is no such file, or NumPy has no such dtype (4 bits).
      StorageError: if it is truncated or no .safetensors file.
    """
    source = epath.Path(path)
    try:
        content = source.read_bytes()
    except OSError as error:
        raise ConfigError(f"weights {source}: {error.strerror or error}") from None
    try:
        tensors = {name: _array(x) for name, x in safetensors.deserialize(content)}
        length = int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8 : 8 + length]).get("__metadata__", {})
        fields = json.loads(metadata[_FIELDS]) if _FIELDS in metadata else None
    except KeyError as error:  # the file is intact; of another dtype
        raise ConfigError(
            f"weights {source}: NumPy cannot read its {error.args[0]} tensors, save them as float32"
        ) from None
    except (safetensors.SafetensorError, ValueError) as error:
        raise StorageError(f"{source} is no intact .safetensors file: {error}") from None
    return tensors, fields


def _array(tensor: Mapping[str, Any]) -> np.ndarray:
    """What `safetensors.deserialize` says of a tensor, as an array."""
    return np.frombuffer(tensor["data"], _DTYPES[tensor["dtype"]]).reshape(tensor["shape"])
