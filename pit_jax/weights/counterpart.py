"""The model of a PyTorch library that computes what a task's model does: to export, to bench.

Classifiers and masked autoencoders are transformers' ViT and ViTMAE, diffusion models are
diffusers' DiT.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pit_jax import tasks
from pit_jax.errors import ConfigError
from pit_jax.weights import diffusers_dit, huggingface, huggingface_mae


def check_expressible(config: Any) -> None:
    """Raises ConfigError, naming the field, if their model cannot express ours."""
    if config.task == "mae":
        huggingface_mae.check_expressible(config.model, config.mae)
    elif config.task == "classification":
        huggingface.check_expressible(config.model)
    elif config.task == "diffusion":
        diffusers_dit.check_expressible(tasks.build(config).model)
    else:
        raise ConfigError(f"task {config.task!r} has no counterpart in PyTorch here")


def check_loss(config: Any) -> None:
    """Raises ConfigError, naming the field, if their training step has another loss."""
    if config.task == "diffusion" and config.diffusion.learn_sigma:
        raise ConfigError(
            "--against torch knows the squared error alone: --config.diffusion.learn_sigma=False"
        )
    if config.model.token_drop:
        raise ConfigError("--against torch trains on all tokens: --config.model.token_drop=0")


def library(config: Any) -> str:
    """The package that has it."""
    return "diffusers" if config.task == "diffusion" else "transformers"


def description(config: Any, classes: Sequence[str] = ()) -> dict[str, Any]:
    """The config.json of the model; "architectures" names its class, `classes` those it knows."""
    if config.task == "mae":
        return huggingface_mae.config(config.model, config.data, config.mae)
    if config.task == "diffusion":
        model = tasks.build(config).model
        data = config.data
        found = diffusers_dit.config(model, data.image_size, data.channels)
        return {"architectures": ["DiTTransformer2DModel"]} | found
    return huggingface.config(config.model, config.data, classes)


def tensors(params: Mapping, config: Any) -> dict[str, np.ndarray]:
    """Our parameters under its names and in its layout.

    Raises:
      ConfigError: as `check_expressible`.
    """
    if config.task == "mae":
        return huggingface_mae.to_huggingface(params, config.model, config.data, config.mae)
    if config.task == "diffusion":
        model = tasks.build(config).model
        return diffusers_dit.to_diffusers(params, model, config.data.image_size)
    return huggingface.to_huggingface(params, config.model, config.data)


def awake(params: Any) -> Any:
    """Fresh parameters without the zeros that would hide what comes before them."""
    if "head" in params:
        params["head"]["kernel"] = 20 * params["head"]["kernel"]
    if "final" in params:  # a DiT, whose blocks start as the identity
        leaves, tree = jax.tree.flatten(params)
        keys = jax.random.split(jax.random.key(2), len(leaves))
        moved = [
            x + 0.02 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)
        ]
        params = jax.tree.unflatten(tree, moved)
    return params


def inputs(task: Any, batch: dict) -> dict[str, jax.Array]:
    """An augmented batch as their model takes it, images as (B, C, H, W)."""
    if "time" in batch:
        process, x, noise, t = task.process, batch["image"], batch["noise"], batch["time"]
        return {
            "image": jnp.moveaxis(process.noised(x, noise, t), -1, 1),
            "time": process.network_time(t),
            "label": batch["label"],
            "target": jnp.moveaxis(process.target(x, noise, t), -1, 1),
        }
    found = {"image": jnp.moveaxis(batch["image"], -1, 1)}
    if "keep" not in batch:
        return found | {"target": batch["target"]}
    # The other side keeps the patches of the least noise.
    noise = np.ones((len(batch["keep"]), task.patches), np.float32)
    np.put_along_axis(noise, np.asarray(batch["keep"]), 0, axis=1)
    return found | {"noise": noise}
