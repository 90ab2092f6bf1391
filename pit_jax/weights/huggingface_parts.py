"""The parts that Hugging Face's ViT and ViTMAE share, between its names and layout and ours.

PyTorch's kernels are (out, in) where ours are (in, out); its layers stand one by one where
ours are stacked (`blocks`, all but the last) and `last`.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pit_jax.errors import ConfigError
from pit_jax.models.embed import sincos2d_with_cls

# Ours → theirs, inside one block.
_DENSE = {
    "query": "attention.attention.query",
    "key": "attention.attention.key",
    "value": "attention.attention.value",
    "out": "attention.output.dense",
    "up": "intermediate.dense",
    "down": "output.dense",
}
_NORMS = {"norm1": "layernorm_before", "norm2": "layernorm_after"}
_PATCH = "vit.embeddings.patch_embeddings.projection"
_POSITION = "vit.embeddings.position_embeddings"
_CLS = "vit.embeddings.cls_token"
ENCODER = "vit.encoder.layer"

Tensors = dict[str, np.ndarray]


class Taken:
    """Their tensors by name, each taken once and held against the shape it should have."""

    def __init__(self, found: Mapping[str, np.ndarray]):
        self._left = dict(found)

    def take(self, name: str, *shape: int | None) -> np.ndarray:
        """The tensor as float32; None in `shape` is any size.

        Raises:
          ConfigError: if it is missing or of another shape.
        """
        if name not in self._left:
            raise ConfigError(f"the weights have no tensor {name}")
        array = np.asarray(self._left.pop(name), np.float32)
        fits = len(array.shape) == len(shape)
        if not fits or any(s not in (None, a) for a, s in zip(array.shape, shape, strict=True)):
            wanted = str(shape).replace("None", "any")
            raise ConfigError(
                f"the weights have {name} of shape {array.shape}, the config makes it {wanted}"
            )
        return array

    def dense(self, name: str, features: int | None, inputs: int) -> Tensors:
        weight = self.take(f"{name}.weight", features, inputs)
        return {"kernel": weight.T, "bias": self.take(f"{name}.bias", features)}

    def norm(self, name: str, width: int) -> Tensors:
        return {
            "scale": self.take(f"{name}.weight", width),
            "bias": self.take(f"{name}.bias", width),
        }

    def trunk(self, prefix: str, depth: int, width: int, mlp: int) -> dict[str, Any]:
        """The `depth` blocks under `prefix`."""
        layers = []
        for layer in range(depth):
            block = {}
            for ours, theirs in _DENSE.items():
                features = mlp if ours == "up" else width
                inputs = mlp if ours == "down" else width
                block[ours] = self.dense(f"{prefix}.{layer}.{theirs}", features, inputs)
            for ours, theirs in _NORMS.items():
                block[ours] = self.norm(f"{prefix}.{layer}.{theirs}", width)
            layers.append(block)
        trunk = {"last": layers[-1]}
        if depth > 1:
            trunk["blocks"] = jax.tree.map(lambda *x: np.stack(x), *layers[:-1])
        return trunk

    def embed(self, model: Any, data: Any, interpolate: bool) -> dict[str, Any]:
        """Patch projection, [CLS] and positions; refuses another width or patch by name."""
        kernel = self.take(f"{_PATCH}.weight", None, None, None, None)  # (d, C, p, p)
        width, channels, rows, columns = kernel.shape
        mlp = self._left.get(f"{ENCODER}.0.intermediate.dense.bias", np.empty(0))
        for field, theirs, ours in (
            ("model.width", width, model.width),
            ("data.channels", channels, data.channels),
            ("model.patch", rows, model.patch),
            ("model.patch", columns, model.patch),
            ("model.depth", depth(self._left, ENCODER), model.depth),
            ("model.mlp", len(mlp), model.mlp),
        ):
            if theirs != ours:
                raise ConfigError(f"the weights have {field} {theirs}, the config has {ours}")
        embed = {
            "patch": {
                "kernel": kernel.transpose(2, 3, 1, 0).reshape(-1, width),
                "bias": self.take(f"{_PATCH}.bias", width),
            },
            "cls": self.take(_CLS, 1, 1, width)[0],
        }
        positions = self.take(_POSITION, 1, None, width)[0]
        if model.position == "learned":
            embed["position"] = _resampled(positions, model, data, interpolate)
        else:
            check_sincos(positions, "model.position")
        return embed

    def finish(self) -> None:
        """Raises ConfigError if tensors are left over."""
        if self._left:
            raise ConfigError(
                f"the weights have {len(self._left)} tensor(s) too many: {min(self._left)}, ..."
            )


def embed_tensors(embed: Mapping, model: Any, data: Any) -> Tensors:
    """Our embedding under their names; positions that are computed become their table."""
    p, c = model.patch, data.channels
    kernel = np.asarray(embed["patch"]["kernel"])  # (p·p·C, d)
    side = data.image_size // p
    return {
        f"{_PATCH}.weight": kernel.reshape(p, p, c, -1).transpose(3, 2, 0, 1),  # (d, C, p, p)
        f"{_PATCH}.bias": np.asarray(embed["patch"]["bias"]),
        _CLS: np.asarray(embed["cls"])[None],
        _POSITION: positions(embed, model.position, side, model.width)[None],
    }


def trunk_tensors(trunk: Mapping, depth: int, prefix: str) -> Tensors:
    """Our trunk under their names."""
    out: Tensors = {}
    for layer in range(depth):
        block = _layer(trunk, layer, depth)
        for ours, theirs in _DENSE.items():
            out |= dense_tensors(block[ours], f"{prefix}.{layer}.{theirs}")
        for ours, theirs in _NORMS.items():
            out |= norm_tensors(block[ours], f"{prefix}.{layer}.{theirs}")
    return out


def dense_tensors(dense: Mapping, name: str) -> Tensors:
    return {
        f"{name}.weight": np.asarray(dense["kernel"]).T,
        f"{name}.bias": np.asarray(dense["bias"]),
    }


def norm_tensors(norm: Mapping, name: str) -> Tensors:
    return {
        f"{name}.weight": np.asarray(norm["scale"]),
        f"{name}.bias": np.asarray(norm["bias"]),
    }


def positions(group: Mapping, kind: str, side: int, width: int) -> np.ndarray:
    """(1 + side², width): learned ones, or the table that sincos2d computes."""
    if kind == "learned":
        return np.asarray(group["position"])
    return sincos2d_with_cls((side, side), width, cls=True)


def check_sincos(positions: np.ndarray, field: str) -> None:
    """Refuses to lose learned positions to a model that computes its own."""
    side = _side(positions)
    expected = sincos2d_with_cls((side, side), positions.shape[1], cls=True)
    if not np.allclose(positions, expected, rtol=0, atol=1e-2):  # weights may be float16
        raise ConfigError(
            f"the weights have learned positions, config.{field}='sincos2d' would drop them"
        )


def depth(found: Mapping, prefix: str) -> int:
    """How many layers stand under `prefix`."""
    start = f"{prefix}."
    return len({n.removeprefix(start).split(".")[0] for n in found if n.startswith(start)})


def check_expressible(name: str, needed: Mapping[str, tuple[Any, tuple]]) -> None:
    """Refuses a model that Hugging Face's has no field for.

    Args:
      name: what the model is called there.
      needed: our field → its value, and the values that can be expressed.

    Raises:
      ConfigError: naming the field.
    """
    for field, (value, possible) in needed.items():
        if value not in possible:
            raise ConfigError(
                f"Hugging Face's {name} has no config.{field}={value!r}, only"
                f" {' or '.join(map(repr, possible))}"
            )


def _layer(trunk: Mapping, layer: int, depth: int) -> Any:
    if layer == depth - 1:
        return trunk["last"]
    return jax.tree.map(lambda x: x[layer], trunk["blocks"])


def _side(positions: np.ndarray) -> int:
    """The side of the square grid that positions (1 + side², d) lie on."""
    side = math.isqrt(len(positions) - 1)
    if side**2 != len(positions) - 1:
        raise ConfigError(
            f"the weights have {len(positions)} positions: no [CLS] and a square grid"
        )
    return side


def _resampled(positions: np.ndarray, model: Any, data: Any, interpolate: bool) -> np.ndarray:
    """Positions (1 + old², d) as (1 + new², d): [CLS] kept, the grid by jax.image's "cubic"."""
    side = data.image_size // model.patch
    wanted, given = side**2 + 1, len(positions)
    if given == wanted:
        return positions
    if not interpolate:
        why = (
            "a PiT's positions were learned without any notion of a grid, so there is nothing"
            " to interpolate between"
            if model.patch == 1
            else "learned positions belong to one image size"
        )
        raise ConfigError(
            f"the weights have {given} positions, the config needs {wanted}: {why}"
            " (--interpolate resamples them all the same)"
        )
    old = _side(positions)
    grid = jnp.asarray(positions[1:]).reshape(old, old, -1)
    grid = jax.image.resize(grid, (side, side, grid.shape[-1]), "cubic")
    return np.concatenate([positions[:1], np.asarray(grid).reshape(side * side, -1)])
