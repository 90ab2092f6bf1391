"""Tasks: what is trained. The trainer asks for one by name and never which it is.

A task offers `init`, `augment`, `loss`, `evaluate`, `represent`, `batch_shapes`, `flops`,
`evaluations` and `steps`; classification.py and images.py say what each takes and returns.
`steps` is what preflight compiles: {"train": Program, "eval": Program, ...}, whatever the
task runs on its devices.
"""

from typing import Any


def build(config: Any) -> Any:
    """The task that `config.task` names."""
    from pit_jax.tasks.classification import Classification
    from pit_jax.tasks.mae import MaskedAutoencoding

    return {"classification": Classification, "mae": MaskedAutoencoding}[config.task](config)
