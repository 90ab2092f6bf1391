"""How images become what a model sees, as Hugging Face says it: preprocessor_config.json."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from pit_jax.data.known import copy_of
from pit_jax.errors import ConfigError

FILE = "preprocessor_config.json"
_TYPE = "CLIPImageProcessor"  # resizes and cuts the centre out; ViT's own only squeezes
_BICUBIC = 3  # PIL's number


def describe(data: Any) -> dict[str, Any]:
    """What our evaluation does to an image, for transformers' AutoImageProcessor.

    The boxes and filters are the same: exactly so where PIL resizes, else to the grey level that
    `data.resize` rounds otherwise, a few where bicubic overshoots black or white. But where the
    longer side comes to 10.67 pixels, theirs makes it 10 and ours 11: transformers has no field for
    that, and the square lies up to a pixel elsewhere.

    Args:
      data: the config's group. Of a copy that squeezed whole images, so does what is described.
    """
    side, channels = data.image_size, data.channels
    copy = copy_of(data.name)
    square = {"height": side, "width": side}
    squashed = copy is not None and copy.squashed
    return {
        "image_processor_type": _TYPE,
        "do_convert_rgb": channels == 3,
        "do_resize": True,
        "size": square if squashed else {"shortest_edge": round(side / data.eval_crop)},
        "resample": _BICUBIC,
        "do_center_crop": not squashed,
        "crop_size": square,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": spread(data.mean, channels).tolist(),
        "image_std": spread(data.std, channels).tolist(),
    }


def fields(directory: epath.PathLike) -> dict[str, Any]:
    """`data.mean` and `data.std` that make pixels in [0, 1] what a Hugging Face model sees.

    What it multiplies pixels by is in them: some see [-1, 1] or [0, 255]. {} where the directory
    does not say it, and "data.order": "BGR" beside them where its channels are the other way.

    Raises:
      ConfigError: if the file is damaged.
    """
    path = epath.Path(directory) / FILE
    if not path.exists():
        return {}
    try:
        said = json.loads(path.read_text())
        if not isinstance(said, Mapping):
            raise ValueError("it holds no JSON object")
        scale = 255 * (said.get("rescale_factor", 1 / 255) if said.get("do_rescale", True) else 1.0)
        mean, std = np.zeros(1), np.ones(1)
        if said.get("do_normalize", True):
            if "image_mean" not in said or "image_std" not in said:
                return {}
            mean, std = (np.atleast_1d(said[f"image_{x}"]).astype(float) for x in ("mean", "std"))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    found: dict[str, Any] = {"data.mean": tuple(mean / scale), "data.std": tuple(std / scale)}
    return found | ({"data.order": "BGR"} if said.get("do_flip_channel_order") else {})


def spread(values: Sequence[float], channels: int) -> np.ndarray:
    """One value, or one a channel, as one a channel."""
    values = np.asarray(values, float)
    return np.broadcast_to(values, (channels,)) if values.size == 1 else values
