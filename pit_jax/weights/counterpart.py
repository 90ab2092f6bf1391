"""The model of transformers that computes what a task's model does: to export, to bench."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from pit_jax.weights import huggingface, huggingface_mae


def check_expressible(config: Any) -> None:
    """Raises ConfigError, naming the field, if transformers' model cannot express ours."""
    if config.task == "mae":
        huggingface_mae.check_expressible(config.model, config.mae)
    else:
        huggingface.check_expressible(config.model)


def description(config: Any) -> dict[str, Any]:
    """The config.json of the model; "architectures" names its class."""
    if config.task == "mae":
        return huggingface_mae.config(config.model, config.data, config.mae)
    return huggingface.config(config.model, config.data)


def tensors(params: Mapping, config: Any) -> dict[str, np.ndarray]:
    """Our parameters under its names and in its layout.

    Raises:
      ConfigError: as `check_expressible`.
    """
    if config.task == "mae":
        return huggingface_mae.to_huggingface(params, config.model, config.data, config.mae)
    return huggingface.to_huggingface(params, config.model, config.data)
