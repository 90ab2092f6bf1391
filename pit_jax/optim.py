"""The optimiser and its schedule, from config. Which parameters decay, freeze or learn at
another rate is decided by the path rules of parallel/rules.py."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from pit_jax.lengths import Clock, Length
from pit_jax.parallel.rules import NO_DECAY_RULES, map_with_path, matches


def peak_lr(optim, batch_size: int) -> float:
    """`optim.lr`, scaled by batch / lr_batch where that rule is on (Goyal et al. 2017)."""
    return optim.lr * batch_size / optim.lr_batch if optim.lr_batch else optim.lr


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
