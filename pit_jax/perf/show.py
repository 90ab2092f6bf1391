"""`pit-jax show`: what a config is, without training it and without devices."""

from typing import Any

import jax

from pit_jax import optim, tasks
from pit_jax.config import flatten, label
from pit_jax.data import sources
from pit_jax.lengths import total_steps
from pit_jax.parallel import rules
from pit_jax.parallel.mesh import AXES
from pit_jax.perf import flops
from pit_jax.validation import resolve


def show(config: Any) -> str:
    """The resolved fields, every parameter's path, shape and partition, and the cost."""
    config = resolve(config)
    task = tasks.build(config)
    params = jax.eval_shape(task.init, jax.random.key(0))
    optim.check_freeze(config.optim, params)
    sizes = {axis: max(config.mesh[axis], 1) for axis in AXES}
    lines = ["config"]
    lines += [f"  {name} = {value!r}" for name, value in flatten(config).items()]
    lines += ["", "parameters (path, shape, mesh axes of each dimension)"]
    rows: list[tuple[str, str, str]] = []
    rules.map_with_path(lambda path, x: rows.append(_row(path, x, sizes)), params)
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    lines += [f"  {path:{widths[0]}}  {shape:{widths[1]}}  {spec}" for path, shape, spec in rows]
    cost = task.flops()
    lines += [
        "",
        f"model                      {label(config)}",
        f"tokens an image            {cost.tokens:,}",
        f"parameters                 {sum(x.size for x in jax.tree.leaves(params)):,}",
        f"forward FLOPs an image     {cost.forward:.4g} ({cost.forward / 2e9:.4g} GMAC):"
        f" {flops.FORWARD}",
        f"computed FLOPs an image    {cost.computed:.4g}: {flops.COMPUTED}",
        f"training FLOPs an image    {cost.training:.4g}: three times what is computed",
    ]
    examples = sources.num_examples(config.data, config.data.split)
    if examples is not None or config.train.epochs is None:
        steps = total_steps(config.train, examples or 0)
        total = steps * config.train.batch_size * cost.training
        lines.append(f"steps                      {steps:,} of {config.train.batch_size} examples")
        lines.append(f"training FLOPs in all      {total:.3g}")
    return "\n".join(lines)


def _row(path: str, x: Any, sizes: dict[str, int]) -> tuple[str, str, str]:
    spec = rules.partition(path, x.shape, sizes)
    axes = ["+".join(a) if isinstance(a, tuple) else a or "·" for a in spec]
    return path, " × ".join(map(str, x.shape)), ", ".join(axes) or "·"
