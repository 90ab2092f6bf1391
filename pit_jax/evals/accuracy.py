"""Loss and accuracy over every held-out example, each exactly once."""

import collections
from collections.abc import Iterator
from typing import Any

import jax


def evaluate(steps: Any, state: Any, data: Any) -> Iterator[tuple[str, float]]:
    """Yields ("loss", ...), ("accuracy", ...), ... as means, then ("examples", count).

    Args:
      steps: `evaluate(params, batch)` gives sums over a batch, "examples" among them.
      state: its `eval_params` are evaluated.
      data: `evaluate()` iterates over the set, the last batch filled up and masked.
    """
    totals: dict[str, float] = collections.defaultdict(float)

    def add(sums: Any) -> None:
        for name, value in jax.device_get(sums).items():
            totals[name] += float(value)

    pending: Any = {}  # fetched one batch late, so that the device always has work
    for batch in data.evaluate():
        sums = steps.evaluate(state.eval_params, batch)
        add(pending)
        pending = sums
    add(pending)
    examples = totals.pop("examples")
    for name, total in totals.items():
        yield name, total / examples
    yield "examples", int(examples)
