"""Tasks: what is trained. The trainer asks for one by name and never which it is.

A task's `loss(params, batch, key)` is a mean and, to log and by name, means that know their
count (means.py), "loss" among them: only so can parts of a batch be put together again.

A task offers `init`, `augment`, `loss`, `evaluate`, `represent`, `tokens`, `batch_shapes`,
`flops`, `attends`, `evaluations` and `steps`; classification.py and images.py say what each
takes and returns. `learns_labels` says whether its weights know a class by its number. `steps`
is what preflight compiles: {"train": Program, "eval": Program, ...}, whatever the task runs on
its devices.
"""

from typing import Any

from pit_jax import derived


def build(config: Any) -> Any:
    """The task that `config.task` names.

    Raises:
      ConfigError: if the config was not resolved.
    """
    derived.require_filled(config)
    match config.task:
        case "classification":
            from pit_jax.tasks.classification import Classification as Task
        case "mae":
            from pit_jax.tasks.mae import MaskedAutoencoding as Task
        case "diffusion":
            from pit_jax.tasks.diffusion import Diffusion as Task
        case "autoencoder":
            from pit_jax.tasks.autoencoder import Autoencoder as Task
        case "autoregressive":
            from pit_jax.tasks.autoregressive import Autoregressive as Task
        case "depth":
            from pit_jax.tasks.depth import Depth as Task
    return Task(config)
