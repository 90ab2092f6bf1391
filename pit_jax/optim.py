"""The optimiser and its schedule, from config. Which parameters decay, freeze or learn at
another rate is decided by the path rules of parallel/rules.py."""

import dataclasses
import difflib
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from pit_jax.errors import ConfigError
from pit_jax.lengths import Clock, Length
from pit_jax.parallel.rules import NO_DECAY_RULES, map_with_path, matches
from pit_jax.validation import peak_lr

_MOST_INITIAL = 0.5  # of a moving average at the end of training that nobody need be told of


def schedule(optim, clock: Clock) -> optax.Schedule:
    """Learning rate as a function of the number of steps done.

    Warm-up rises linearly from 0; then cosine to `lr_end`, constant, or constant with a
    linear decay to `lr_end` over the last `optim.decay` (warm-up–stable–decay).
    """
    peak = peak_lr(optim, clock.batch_size)
    warmup = min(Length.parse(optim.warmup).steps(clock), clock.total_steps)
    rest = max(clock.total_steps - warmup, 1)
    if optim.schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, rest, alpha=optim.lr_end / peak if peak else 0)
    elif optim.schedule == "constant":
        after = optax.constant_schedule(peak)
    else:
        decay = min(Length.parse(optim.decay).steps(clock), rest)
        falling = optax.linear_schedule(peak, optim.lr_end, max(decay, 1))
        after = optax.join_schedules([optax.constant_schedule(peak), falling], [rest - decay])
    if not warmup:
        return after
    return optax.join_schedules([optax.linear_schedule(0, peak, warmup), after], [warmup])


def check_freeze(optim, params: Any) -> None:
    """Refuses patterns of `optim.freeze` that find nothing, and those that leave nothing.

    Args:
      params: the parameters or their shapes.

    Raises:
      ConfigError: naming the pattern and paths that there are.
    """
    paths: list[str] = []
    map_with_path(lambda path, _: paths.append(path), params)
    for pattern in optim.freeze:
        if not any(matches(path, (pattern,)) for path in paths):
            near = difflib.get_close_matches(pattern, paths, n=1, cutoff=0.0)[0]
            raise ConfigError(
                f"config.optim.freeze: {pattern!r} matches no parameter's path (one is"
                f" {near!r}); `pit-jax show` lists them all"
            )
    if optim.freeze and all(matches(path, optim.freeze) for path in paths):
        raise ConfigError(
            f"config.optim.freeze={optim.freeze} matches the path of every parameter:"
            " nothing would be trained"
        )


def remarks(optim, clock: Clock, first: int = 0, before: int | None = None) -> list[str]:
    """What a run's length makes of its schedule, where it may not be what was meant.

    Args:
      optim: the config's group.
      clock: of the whole run.
      first: steps that are done.
      before: the length in steps that the run had until now, None where it is new.

    Returns:
      Lines for people, most often none.
    """
    total, lines = clock.total_steps, []
    if before is not None:
        old = schedule(optim, dataclasses.replace(clock, total_steps=before))
        last, planned = float(old(max(first - 1, 0))), float(old(first))
        now = float(schedule(optim, clock)(first))
        if before != total and not math.isclose(planned, now, rel_tol=1e-3):
            lines.append(
                f"the length of training was {before} steps and is {total} now, and"
                f" optim.schedule={optim.schedule!r} follows it: the learning rate was"
                f" {last:.3g} in the last step and is {now:.3g} in the next"
            )
        return lines
    peak = peak_lr(optim, clock.batch_size)
    if not peak:
        lines.append("optim.lr=0: nothing is trained")
    warmup = Length.parse(optim.warmup).steps(clock)
    if warmup >= total > 1:
        lines.append(
            f"optim.warmup={optim.warmup!r} is {warmup} steps, but training has {total}: the"
            f" learning rate rises to the end and never reaches its peak of {peak:.3g}"
        )
    decay = Length.parse(optim.decay).steps(clock) if optim.schedule == "wsd" else 0
    if decay and warmup < total < warmup + decay:
        lines.append(
            f"optim.warmup={optim.warmup!r} and optim.decay={optim.decay!r} are"
            f" {warmup + decay} steps, but training has {total}: the decay is cut to"
            f" {total - warmup}"
        )
    left = optim.ema**total
    if left > _MOST_INITIAL:
        lines.append(
            f"optim.ema={optim.ema} over {total} steps: at the end, what is evaluated is still"
            f" {100 * left:.0f} % the weights that training began with"
        )
    return lines


def build(optim, lr: optax.Schedule, params: Any, depth: int) -> optax.GradientTransformation:
    """The gradient transformation that a config's `optim` group describes.

    Args:
      optim: the group.
      lr: learning rate by step, as `schedule` makes it.
      params: the parameters or their shapes.
      depth: layers of the trunk, for layer-wise decay.

    Returns:
      Clipping, AdamW or SGD with decoupled weight decay, layer-wise rates, the schedule.
      Frozen parameters get no gradient, no decay and count in no norm.
    """
    frozen = map_with_path(lambda path, _: matches(path, optim.freeze), params)
    decayed = map_with_path(
        lambda path, _: not matches(path, (*optim.freeze, *NO_DECAY_RULES)), params
    )
    steps = []
    if optim.freeze:
        steps.append(optax.masked(optax.set_to_zero(), frozen))
    if optim.clip:
        steps.append(optax.clip_by_global_norm(optim.clip))
    if optim.name == "adamw":
        steps.append(optax.scale_by_adam(*optim.betas, eps=optim.eps, mu_dtype=jnp.float32))
    elif optim.betas[0]:
        steps.append(optax.trace(decay=optim.betas[0]))
    if optim.weight_decay:
        steps.append(optax.add_decayed_weights(optim.weight_decay, decayed))
    if optim.layer_decay != 1:
        steps.append(_scale_by_layer(optim.layer_decay, depth))
    steps.append(optax.scale_by_learning_rate(lr))
    return optax.chain(*steps)


def layer_scales(path: str, ndim: int, decay: float, depth: int) -> jax.Array | float:
    """The learning rate factor of the parameter at `path`, decay^(layers above it).

    The embedding counts as layer 0, the blocks as 1 to depth, norm and head as
    depth + 1 with factor 1 (BEiT's rule, as in MAE's fine-tuning), and so does a decoder.
    The scanned blocks get one factor for each slice, shaped to broadcast.
    """
    if path.startswith("decoder/"):
        return 1.0
    if "/blocks/" in path:
        layers = jnp.arange(1, depth, dtype=jnp.float32)
        return (decay ** (depth + 1 - layers)).reshape((-1,) + (1,) * (ndim - 1))
    layer = 0 if "embed/" in path else depth if "/last/" in path else depth + 1
    return decay ** (depth + 1 - layer)


def _scale_by_layer(decay: float, depth: int) -> optax.GradientTransformation:
    def scale(updates: Any, params: Any = None) -> Any:
        del params
        return map_with_path(lambda path, u: u * layer_scales(path, u.ndim, decay, depth), updates)

    return optax.stateless(scale)
