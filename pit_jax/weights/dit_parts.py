"""The parts that the public DiT and diffusers' share, between their names and layout and ours.

Both have (shift, scale, gate) of attention, then of the MLP, in one dense layer as ours do,
patches flattened by row, column, channel, and learned variances behind the means: only names
and PyTorch's order of axes differ.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from pit_jax.errors import ConfigError
from pit_jax.models.dit import DiT
from pit_jax.models.embed import sincos2d
from pit_jax.weights.huggingface_parts import Taken, Tensors, check_sincos, dense_tensors, depth


@dataclass(frozen=True)
class Names:
    """What one implementation calls the parts; `dense` is ours → theirs inside a block."""

    implementation: str
    patch: str
    position: str
    time: tuple[str, str]
    label: str
    blocks: str
    dense: Mapping[str, str]
    final_modulation: str
    head: str


def to_tensors(params: Mapping, model: DiT, names: Names, image_size: int) -> Tensors:
    """Our parameters under their names and in their layout, one layer of a kind after another.

    Args:
      params: the tree of a DiT.
      model: the module it belongs to.
      names: theirs.
      image_size: side of what the model sees.
    """
    p = model.patch
    kernel = np.asarray(params["embed"]["patch"]["kernel"])  # (p·p·C, d)
    out = {
        f"{names.patch}.weight": kernel.reshape(p, p, -1, model.width).transpose(3, 2, 0, 1),
        f"{names.patch}.bias": np.asarray(params["embed"]["patch"]["bias"]),
        names.position: _positions(params["embed"], model, image_size)[None],
        f"{names.label}.weight": np.asarray(params["label"]["table"]),
    }
    for part, name in zip(("first", "second"), names.time, strict=True):
        out |= dense_tensors(params["time"][part], name)
    for layer in range(model.depth):
        trunk = params["trunk"]
        last = layer == model.depth - 1
        for ours, theirs in names.dense.items():
            dense = trunk["last"][ours] if last else _layer(trunk["blocks"][ours], layer)
            out |= dense_tensors(dense, f"{names.blocks}.{layer}.{theirs}")
    out |= dense_tensors(params["final"]["modulation"], names.final_modulation)
    return out | dense_tensors(params["final"]["head"], names.head)


def from_tensors(
    found: Mapping[str, np.ndarray], model: DiT, names: Names, image_size: int, channels: int
) -> dict[str, Any]:
    """The reverse: a parameter tree of ours. For sincos2d the positions need not be there.

    Args:
      found: their tensors by name.
      model: the module to fill.
      names: theirs.
      image_size, channels: of what the model sees.

    Raises:
      ConfigError: if a tensor is missing, left over, or does not fit.
    """
    theirs = depth(found, names.blocks)
    if theirs != model.depth:
        raise ConfigError(f"the weights have model.depth {theirs}, the config has {model.depth}")
    taken = Taken(found)
    width, p = model.width, model.patch
    kernel = taken.take(f"{names.patch}.weight", width, channels, p, p)
    embed: dict[str, Any] = {
        "patch": {
            "kernel": kernel.transpose(2, 3, 1, 0).reshape(-1, width),
            "bias": taken.take(f"{names.patch}.bias", width),
        }
    }
    if model.position == "learned" or names.position in found:
        shape = 1, (image_size // p) ** 2, width
        positions = taken.take(names.position, *shape)[0]
        if model.position == "learned":
            embed["position"] = positions
        else:
            check_sincos(np.pad(positions, ((1, 0), (0, 0))), "model.position")
    time = {
        "first": taken.dense(names.time[0], width, 256),
        "second": taken.dense(names.time[1], width, width),
    }
    label = {"table": taken.take(f"{names.label}.weight", model.num_classes + 1, width)}
    sizes = {"up": (model.mlp, width), "down": (width, model.mlp), "modulation": (6 * width, width)}
    layers = [
        {
            ours: taken.dense(f"{names.blocks}.{layer}.{theirs}", *sizes.get(ours, (width, width)))
            for ours, theirs in names.dense.items()
        }
        for layer in range(model.depth)
    ]
    trunk = {"last": layers[-1]}
    if model.depth > 1:
        trunk["blocks"] = jax.tree.map(lambda *x: np.stack(x), *layers[:-1])
    final = {
        "modulation": taken.dense(names.final_modulation, 2 * width, width),
        "head": taken.dense(names.head, p * p * model.outputs, width),
    }
    taken.finish()
    return {"embed": embed, "time": time, "label": label, "trunk": trunk, "final": final}


def check_expressible(model: DiT, implementation: str, more: Mapping[str, tuple] = {}) -> None:
    """Refuses a model that the implementation has no field for.

    Args:
      model: ours.
      implementation: what it is called there.
      more: our field → the values that can be expressed, beside those below.

    Raises:
      ConfigError: naming the field.
    """
    possible = {"position": ("learned", "sincos2d"), "norm_eps": (1e-6,), "window": ((),)}
    for field, values in (possible | dict(more)).items():
        value = getattr(model, field)
        if value not in values:
            raise ConfigError(
                f"{implementation} has no config.model.{field}={value!r}, only"
                f" {' or '.join(map(repr, values))}"
            )
    if model.num_classes == 0:
        raise ConfigError(f"{implementation} has no unconditional model")


def _positions(embed: Mapping, model: DiT, image_size: int) -> np.ndarray:
    """(N, width): learned ones, or the table that sincos2d computes."""
    if model.position == "learned":
        return np.asarray(embed["position"])
    side = image_size // model.patch
    return sincos2d((side, side), model.width)


def _layer(stacked: Mapping, layer: int) -> Any:
    return jax.tree.map(lambda x: x[layer], stacked)
