"""The task's own numbers over every held-out example, each exactly once."""

import collections
from collections.abc import Iterator
from typing import Any

import jax

from pit_jax.evals.context import Context


def evaluate(context: Context) -> Iterator[tuple[str, float]]:
    """Yields ("loss", ...), ("accuracy", ...), ... as means, then ("examples", count).

    `steps.evaluate(params, batch)` gives sums over a batch, "examples" among them.
    """
    totals: dict[str, float] = collections.defaultdict(float)

    def add(sums: Any) -> None:
        for name, value in jax.device_get(sums).items():
            totals[name] += float(value)

    pending: Any = {}  # fetched one batch late, so that the device always has work
    for batch in context.held_out.evaluate():
        sums = context.steps.evaluate(context.state.eval_params, batch)
        add(pending)
        pending = sums
    add(pending)
    examples = totals.pop("examples")
    for name, total in totals.items():
        yield name, total / examples
    yield "examples", int(examples)
