"""The named sizes of ViT, DiT and PiT, and how a name such as `vit-s/2` is read.

Layers and widths are those of PAPER.md's table 1 (ViT-T/S/B/L/H of DeiT and ViT). MLPs are
four times as wide in all of them, which is why none is named here: a number would stay behind
when somebody sweeps over the width. The Pixel Transformer paper gives Tiny 12 heads where DeiT
has 3; Small's 12 heads are assumed (DeiT: 6). The number of heads changes no parameter count.
"""

import difflib
import re
from collections.abc import Sequence

from pit_jax.errors import ConfigError

SIZES = {
    "t": dict(depth=12, width=192, heads=12),
    "s": dict(depth=12, width=384, heads=12),
    "b": dict(depth=12, width=768, heads=12),
    "l": dict(depth=24, width=1024, heads=16),
    "h": dict(depth=32, width=1280, heads=16),
}

# The masked autoencoder's decoder for an encoder of that size. Public MAE has 512 × 8 with
# 16 heads for Base and up; the smaller ones are assumed: with it PiT-T's pre-training would
# cost more than its classification. Heads of 32 channels throughout, as public MAE's.
DECODERS = {
    "t": dict(decoder_width=128, decoder_depth=4),
    "s": dict(decoder_width=256, decoder_depth=4),
    "b": dict(decoder_width=512, decoder_depth=8),
    "l": dict(decoder_width=512, decoder_depth=8),
    "h": dict(decoder_width=512, decoder_depth=8),
}

# Diffusion Transformers (Peebles & Xie 2023, table 1).
DIT_SIZES = {
    "s": dict(depth=12, width=384, heads=6),
    "b": dict(depth=12, width=768, heads=12),
    "l": dict(depth=24, width=1024, heads=16),
    "xl": dict(depth=28, width=1152, heads=16),
}

_DIT_NAME = re.compile(r"(?P<family>pit|dit)(-(?P<size>[a-z]+))?(/(?P<patch>1|2|4|8|16))?")

_NAME = re.compile(r"(?P<family>pit|vit)(-(?P<size>[a-z]))?(/(?P<patch>[1-9]\d*))?")


def parse_name(name: str, sizes: str = "") -> dict:
    """Reads `pit`, `pit-s`, `vit/2` or `vit-s/2` into model fields.

    Args:
      name: the model's name; PiT is patch 1, ViT needs its patch size after a slash.
      sizes: the letters of `SIZES` that may follow the family, for example "ts"; empty
        means that the caller fixes the size and the name must not hold one.

    Returns:
      A dict of `patch` and, where the name holds a size, width, depth and heads, and
      `mlp` 0, which is 4 × width.

    Raises:
      ConfigError: for any other name, listing the ones that would do.
    """
    return _parse(name, _NAME, "vit", SIZES, tuple(sizes), "")


def parse_decoder(name: str) -> dict:
    """The decoder's fields for a name that `parse_name` has read, such as `pit-s`."""
    return dict(decoder_heads=0, **DECODERS[_NAME.fullmatch(name)["size"]])


def parse_dit_name(name: str, sizes: Sequence[str] = ()) -> dict:
    """Reads `pit`, `pit-l`, `dit/2` or `dit-xl/2` into a Diffusion Transformer's fields.

    Args:
      name: the model's name; PiT is patch 1, DiT needs its patch size after a slash.
      sizes: those of `DIT_SIZES` that may follow the family; empty means that the caller
        fixes the size and the name must not hold one.

    Returns:
      A dict of `patch` and, where the name holds a size, width, depth and heads, and
      `mlp` 0, which is 4 × width.

    Raises:
      ConfigError: for any other name, listing the ones that would do.
    """
    return _parse(name, _DIT_NAME, "dit", DIT_SIZES, tuple(sizes), ": 1, 2, 4, 8 or 16")


def _parse(
    name: str, pattern: re.Pattern, family: str, table: dict, sizes: Sequence[str], patches: str
) -> dict:
    """What `parse_name` says, for a family beside PiT, its sizes and its patches."""
    match = pattern.fullmatch(name)
    size = match["size"] if match else None
    well_formed = (
        match
        and (size in sizes if sizes else size is None)
        and (match["family"] == family) == (match["patch"] is not None)
    )
    if not well_formed:
        examples = [f"pit-{s}" for s in sizes] + [f"{family}-{s}/2" for s in sizes]
        examples = examples or ["pit", f"{family}/2"]
        near = difflib.get_close_matches(name, examples, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(
            f"unknown model {name!r}: write one of {', '.join(examples)}"
            f" (the number after the slash is the patch size{patches}){hint}"
        )
    return dict(patch=int(match["patch"] or 1), **(dict(mlp=0, **table[size]) if size else {}))


def num_kept(patches: int, mask_ratio: float) -> int:
    """How many patches a masked autoencoder's encoder sees: rounded down, as public MAE."""
    return int(patches * (1 - mask_ratio))
