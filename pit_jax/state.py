"""The state of a run: everything that a checkpoint holds."""

from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax


@flax.struct.dataclass
class State:
    """`step` counts finished steps; it is also the position in the data."""

    step: jax.Array  # () int32
    params: Any
    opt_state: Any
    ema: Any  # like params, or () when off

    @property
    def eval_params(self) -> Any:
        """The weights to evaluate: the moving average where there is one."""
        return self.ema if jax.tree.leaves(self.ema) else self.params


def create(params: Any, tx: optax.GradientTransformation, ema: bool) -> State:
    """A state at step 0; the moving average starts from the initial weights."""
    average = jax.tree.map(jnp.copy, params) if ema else ()
    return State(jnp.zeros((), jnp.int32), params, tx.init(params), average)
