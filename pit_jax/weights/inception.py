"""The public weights of the Inception-v3 that FID is measured with.

They are the TensorFlow graph of December 2015 in PyTorch's names and layout, published with
the pytorch-fid package as pt_inception-2015-12-05-6726825d.pth. Read here without PyTorch.
"""

import dataclasses
import functools
import hashlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from pit_jax.errors import ConfigError, StorageError
from pit_jax.models.inception import Inception
from pit_jax.weights import tensors, torch_file

PUBLIC_FILE = "pt_inception-2015-12-05-6726825d.pth"
EPSILON = 0.001  # of its batch norms

# PyTorch's habit: the name ends with the first digits of the content's SHA-256.
_DIGEST_IN_NAME = re.compile(r"-([0-9a-f]{8})\.[a-z]+$")


@dataclasses.dataclass(frozen=True)
class Loaded:
    """Parameters of `Inception`, and the SHA-256 (hexadecimal) of the file they came from."""

    params: dict[str, Any]
    sha256: str


def load(path: epath.PathLike) -> Loaded:
    """Reads the public .pth file, or a .safetensors file with the same names.

    Args:
      path: local or gs://.

    Raises:
      ConfigError: if there is no such file or its tensors are not this network's.
      StorageError: if it is damaged.
    """
    source = epath.Path(path)
    try:
        content = source.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"Inception weights {source}: {error.strerror or error}: give the path of"
            f" {PUBLIC_FILE} (published with pytorch-fid)"
        ) from None
    sha256 = hashlib.sha256(content).hexdigest()
    said = _DIGEST_IN_NAME.search(source.name)
    if said and not sha256.startswith(said[1]):
        raise StorageError(
            f"{source} is not what its name says: its SHA-256 begins with {sha256[:8]}, not"
            f" {said[1]}: fetch it again"
        )
    if source.suffix == ".safetensors":
        found, _ = tensors.read(source)
    else:
        found = torch_file.tensors(content, str(source))
    return Loaded(convert(found, str(source)), sha256)


def convert(found: dict[str, np.ndarray], where: str = "Inception weights") -> dict[str, Any]:
    """PyTorch's tensors to parameters of `Inception`, batch norm folded in (in float64).

    Args:
      found: by name, e.g. "Mixed_5b.branch1x1.conv.weight" (out, in, height, width).
      where: what an error calls them.

    Raises:
      ConfigError: if a tensor is missing, left over, or of another shape.
    """
    left = {name: x for name, x in found.items() if not name.endswith("num_batches_tracked")}

    def take(name: str, *shape: int) -> np.ndarray:
        if name not in left:
            raise ConfigError(f"{where} has no {name}: only {PUBLIC_FILE} or its like is read")
        value = left.pop(name)
        if value.shape != shape:
            raise ConfigError(f"{where}: {name} has shape {value.shape}, Inception-v3's is {shape}")
        return value.astype(np.float64)

    flat: dict[str, np.ndarray] = {}
    for path, (height, width, inputs, outputs) in _convolutions().items():
        name = path.replace("/", ".")
        kernel = take(f"{name}.conv.weight", outputs, inputs, height, width)
        scale, bias, mean, variance = (
            take(f"{name}.bn.{part}", outputs)
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        scale = scale / np.sqrt(variance + EPSILON)
        flat[f"{path}/kernel"] = kernel.transpose(2, 3, 1, 0) * scale  # (height, width, in, out)
        flat[f"{path}/bias"] = bias - mean * scale
    classes, features = _shapes()["fc/kernel"][::-1]
    flat["fc/kernel"] = take("fc.weight", classes, features).T
    flat["fc_bias"] = take("fc.bias", classes)
    if left:
        names = ", ".join(sorted(left)[:3])
        raise ConfigError(f"{where} has {len(left)} tensor(s) too many: {names}")
    return tensors.unflatten({path: x.astype(np.float32) for path, x in flat.items()})


@functools.cache
def _shapes() -> dict[str, tuple[int, ...]]:
    """The shape of every parameter, by its path."""
    images = jax.ShapeDtypeStruct((1, 299, 299, 3), jnp.uint8)
    params = jax.eval_shape(Inception().init, jax.random.key(0), images)["params"]
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {"/".join(key.key for key in path): leaf.shape for path, leaf in leaves}


def _convolutions() -> dict[str, tuple[int, ...]]:
    """(height, width, in, out) of every convolution, by the path of its group."""
    return {
        path.removesuffix("/kernel"): shape for path, shape in _shapes().items() if len(shape) == 4
    }
