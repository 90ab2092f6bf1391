"""Our autoencoder's parameters under the names of public files, both ways.

Diffusers' AutoencoderKL names the same tensors differently today than when Stable Diffusion
appeared (`to_q` was `query`), and latent diffusion's own code names them in a third way,
with the decoder's levels counted from the other end. All become today's first.
"""

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pit_jax.errors import ConfigError
from pit_jax.models.autoencoder import AutoencoderKL
from pit_jax.parallel.rules import map_with_path
from pit_jax.weights import tensors

Tensors = dict[str, np.ndarray]

# Ours → diffusers', applied one after the other to a whole path.
_RULES = (
    (r"(kernel|scale)$", "weight"),
    (r"^(encoder|decoder)/norm_out/", r"\1.conv_norm_out."),
    (r"^(encoder|decoder)/mid/block_", r"\1.mid_block.resnets."),
    (r"^(encoder|decoder)/mid/attention/", r"\1.mid_block.attentions.0."),
    (r"attentions\.0\.norm/", "attentions.0.group_norm."),
    (r"attentions\.0\.(q|k|v)[a-z]*/", r"attentions.0.to_\1."),
    (r"attentions\.0\.out/", "attentions.0.to_out.0."),
    (r"/(down|up)_(\d+)/block_", r".\1_blocks.\2.resnets."),
    (r"/(down|up)_(\d+)/((?:down|up)sample)/", r".\1_blocks.\2.\3rs.0.conv."),
    (r"/shortcut/", ".conv_shortcut."),
    (r"/", "."),
)

# What diffusers' attention was called before its version 0.17 → today's.
_OLD_ATTENTION = (
    (r"\.query\.", ".to_q."),
    (r"\.key\.", ".to_k."),
    (r"\.value\.", ".to_v."),
    (r"\.proj_attn\.", ".to_out.0."),
)

# Latent diffusion's → diffusers', but for the decoder's levels.
_LATENT_DIFFUSION = (
    (r"\.down\.(\d+)\.block\.", r".down_blocks.\1.resnets."),
    (r"\.up\.(\d+)\.block\.", r".up_blocks.\1.resnets."),
    (r"\.down\.(\d+)\.downsample\.", r".down_blocks.\1.downsamplers.0."),
    (r"\.up\.(\d+)\.upsample\.", r".up_blocks.\1.upsamplers.0."),
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.norm\.", ".mid_block.attentions.0.group_norm."),
    (r"\.mid\.attn_1\.(q|k|v)\.", r".mid_block.attentions.0.to_\1."),
    (r"\.mid\.attn_1\.proj_out\.", ".mid_block.attentions.0.to_out.0."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"\.norm_out\.", ".conv_norm_out."),
)

# Where our axes stand in PyTorch's layout: (out, in, rows, columns), (out, in).
_OUT_FIRST = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}

_PREFIX = "first_stage_model."  # of the autoencoder inside a whole latent diffusion model
_TRAINING_ONLY = ("loss.", "model_ema.")  # what latent diffusion keeps beside it
_LISTED = 3  # names in a refusal


@functools.lru_cache(maxsize=8)
def shapes(model: AutoencoderKL) -> dict[str, tuple[int, ...]]:
    """Path → shape of the parameters that `model` has.

    Raises:
      ConfigError: if there can be no such model.
    """
    images = jnp.zeros((1, model.factor, model.factor, model.image_channels))
    tree = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    return {path: tuple(x.shape) for path, x in _leaves(tree).items()}


def check(found: Mapping[str, Any], wanted: Mapping[str, Sequence[int]], where: str) -> None:
    """Holds tensors against the shapes they should have.

    Args:
      found: arrays by name.
      wanted: shapes by name.
      where: they come from, for the sentence.

    Raises:
      ConfigError: naming the first few that are missing, too many, or of another shape.
    """
    missing = [name for name in wanted if name not in found]
    if missing:
        raise ConfigError(f"{where} lacks {_some(missing)}: it is not a whole AutoencoderKL")
    extra = [name for name in found if name not in wanted]
    if extra:
        raise ConfigError(f"{where} has more than an AutoencoderKL: {_some(extra)}")
    pairs = {name: (tuple(found[name].shape), tuple(shape)) for name, shape in wanted.items()}
    wrong = [f"{n} is {has}, not {should}" for n, (has, should) in pairs.items() if has != should]
    if wrong:
        raise ConfigError(f"{where} has tensors of wrong shapes: {_some(wrong)}")


def to_diffusers(params: Mapping) -> Tensors:
    """Parameters under diffusers' names and in its layout (output channels first)."""
    flat = tensors.flatten(params)
    return {_translate(path, _RULES): x.transpose(_OUT_FIRST[x.ndim]) for path, x in flat.items()}


def from_diffusers(
    found: Mapping[str, np.ndarray], groups: int = 32, where: str = "the file"
) -> tuple[AutoencoderKL, dict[str, Any]]:
    """The model that public tensors belong to, and its parameters.

    Args:
      found: by diffusers' names, of today or of old, or by latent diffusion's.
      groups: of the group norms, which no tensor tells.
      where: they come from, for messages.

    Returns:
      The model, and a nested dict of float32 NumPy arrays.

    Raises:
      ConfigError: if they are no AutoencoderKL that ours can express.
    """
    found = {name: _flat_attention(name, x) for name, x in _todays(found).items()}
    model = _described(found, groups, where)
    wanted = shapes(model)
    names = {path: _translate(path, _RULES) for path in wanted}
    theirs = {}
    for path, shape in wanted.items():
        theirs[names[path]] = tuple(shape[axis] for axis in _OUT_FIRST[len(shape)])
    check(found, theirs, where)
    params = {}
    for path, name in names.items():
        x = np.asarray(found[name], np.float32)
        params[path] = np.ascontiguousarray(x.transpose(np.argsort(_OUT_FIRST[x.ndim])))
    return model, tensors.unflatten(params)


def _todays(found: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """The tensors by the names that diffusers gives them today."""
    inside = {n.removeprefix(_PREFIX): x for n, x in found.items() if n.startswith(_PREFIX)}
    found = inside or found
    levels = {int(m[1]) for n in found if (m := re.match(r"decoder\.up\.(\d+)\.", n))}
    if not levels:
        return {_attention_of_old(name): x for name, x in found.items()}

    def rename(name: str) -> str:
        name = re.sub(
            r"^(decoder\.up\.)(\d+)\.", lambda m: f"{m[1]}{max(levels) - int(m[2])}.", name
        )
        return _translate(name, _LATENT_DIFFUSION)

    return {rename(n): x for n, x in found.items() if not n.startswith(_TRAINING_ONLY)}


def _attention_of_old(name: str) -> str:
    return _translate(name, _OLD_ATTENTION) if ".attentions." in name else name


def _flat_attention(name: str, x: np.ndarray) -> np.ndarray:
    """The attention's products as matrices where they were stored as 1×1 convolutions."""
    pointwise = ".attentions." in name and x.ndim == 4 and x.shape[2:] == (1, 1)
    return x[:, :, 0, 0] if pointwise else x


def _described(found: Mapping[str, np.ndarray], groups: int, where: str) -> AutoencoderKL:
    """The model whose sizes the tensors show."""

    def shape(name: str, dimensions: int = 4) -> tuple[int, ...]:
        if name not in found or found[name].ndim != dimensions:
            raise ConfigError(f"{where} holds no AutoencoderKL: it has no convolution {name}")
        return found[name].shape

    def count(start: str) -> int:
        return len({n.removeprefix(start).split(".")[0] for n in found if n.startswith(start)})

    levels, layers = count("encoder.down_blocks."), count("encoder.down_blocks.0.resnets.")
    blocks = [f"encoder.down_blocks.{i}.resnets.0.conv1.weight" for i in range(max(levels, 1))]
    return AutoencoderKL(
        channels=tuple(shape(name)[0] for name in blocks),
        layers=layers,
        latent=shape("encoder.conv_out.weight")[0] // 2,
        groups=groups,
        image_channels=shape("encoder.conv_in.weight")[1],
        attends=any(".mid_block.attentions." in name for name in found),
        quant_convs=any(name.startswith(("quant_conv.", "post_quant_conv.")) for name in found),
    )


def _translate(name: str, rules: Iterable[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _leaves(tree: Any) -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    map_with_path(lambda path, x: leaves.setdefault(path, x), tree)
    return leaves
