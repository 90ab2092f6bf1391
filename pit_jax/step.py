"""The one place where training and evaluation steps are built, jitted and laid out.

The trainer, preflight and bench all take their steps from here, so what is measured and
what is compiled ahead is what runs.

Gradients are added up across devices in the dtype of the products they come from: with
bfloat16 products in bfloat16, on purpose. That is half the traffic of float32, and its
rounding (2⁻⁹ of an element) is far below the noise of a batch; parameters, moments and
their updates are float32 always. `model.dtype="float32"` adds up in float32.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pit_jax import optim
from pit_jax.lengths import Clock
from pit_jax.parallel import mesh as meshes
from pit_jax.parallel import rules
from pit_jax.state import State, create


@dataclasses.dataclass(frozen=True)
class Steps:
    """Jitted functions of one run and how their arguments are laid out.

    init(key) → State; train(state, batch) → (State, metrics), the old state is donated;
    evaluate(params, batch) → sums over the batch; finite(params) → whether all of them are.
    read(function) jits any other
    function(params, batch, extra) of the task, `extra` an array that all devices get; its
    results come whole to every process. Call them under `jax.set_mesh(mesh)`.
    """

    init: Callable
    train: Callable
    evaluate: Callable
    read: Callable
    finite: Callable
    shapes: State  # ShapeDtypeStructs that carry their shardings
    batch_sharding: NamedSharding


def build(task: Any, config: Any, mesh: Mesh, clock: Clock) -> Steps:
    """Builds the steps of `task` for a mesh.

    Args:
      task: see tasks/; offers init, augment, loss and evaluate.
      config: the resolved config.
      mesh: the devices; they need not be here (compiling ahead).
      clock: batch size, training set size and total steps, for the schedule.
    """
    params = jax.eval_shape(task.init, jax.random.key(0))
    lr = optim.schedule(config.optim, clock)
    tx = optim.build(config.optim, lr, params, config.model.depth)

    def init(key: jax.Array) -> State:
        return create(task.init(key), tx, config.optim.ema > 0)

    # jax.random.key inside eval_shape: no concrete operation may run under a mesh of
    # devices that are not here.
    shapes = jax.eval_shape(lambda: init(jax.random.key(0)))
    layout = rules.shardings(shapes, mesh)
    shapes = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, layout
    )
    batch_sharding = NamedSharding(mesh, meshes.batch_spec())
    replicated = NamedSharding(mesh, PartitionSpec())
    return Steps(
        init=jax.jit(init, out_shardings=layout),
        train=jax.jit(
            _train_step(task, config, tx, lr),
            in_shardings=(layout, batch_sharding),
            out_shardings=(layout, replicated),
            donate_argnums=0,
        ),
        evaluate=jax.jit(
            task.evaluate,
            in_shardings=(layout.params, batch_sharding),
            out_shardings=replicated,
        ),
        finite=jax.jit(
            lambda params: jnp.all(
                jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(params)])
            ),
            in_shardings=(layout.params,),
            out_shardings=replicated,
        ),
        read=functools.cache(
            lambda function: jax.jit(
                function,
                in_shardings=(layout.params, batch_sharding, replicated),
                out_shardings=replicated,
            )
        ),
        shapes=shapes,
        batch_sharding=batch_sharding,
    )


def gradients(
    task: Any, params: Any, batch: dict, key: jax.Array, parts: int
) -> tuple[Any, dict[str, jax.Array]]:
    """The gradient of the loss of an augmented batch, and what to log of it.

    Args:
      parts: of how many equal parts the batch is computed one after the other. What comes out
        is that of the whole batch, but for rounding and for dropout, which is drawn for each
        part: parts count as what their losses are means of, be it as different as the images
        with any depth.
    """
    grad = jax.grad(task.loss, has_aux=True)
    if parts == 1:
        grads, means = grad(params, batch, key)
        return grads, {name: mean.value for name, mean in means.items()}

    # Part p takes rows p, p + parts, ...: every device splits the rows it holds, so no example
    # moves.
    def split(x: jax.Array) -> jax.Array:
        return x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1)

    def one_part(total: Any, part: tuple) -> tuple[Any, None]:
        number, rows = part
        rows = jax.tree.map(lambda x: meshes.constrain(x, "batch", *[None] * (x.ndim - 1)), rows)
        grads, means = grad(params, rows, jax.random.fold_in(key, number))
        grads = jax.tree.map(lambda x: x * means["loss"].count, grads)
        return jax.tree.map(jnp.add, total, (grads, means)), None

    slices = (jnp.arange(parts), jax.tree.map(split, batch))
    like = jax.eval_shape(grad, params, jax.tree.map(lambda x: x[0], slices[1]), key)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
    (grads, means), _ = jax.lax.scan(one_part, zeros, slices)
    count = jnp.maximum(means["loss"].count, 1)
    grads = jax.tree.map(lambda x: x / count, grads)
    return grads, {name: mean.value for name, mean in means.items()}


def _train_step(
    task: Any, config: Any, tx: optax.GradientTransformation, lr: optax.Schedule
) -> Callable[[State, dict], tuple[State, dict]]:
    def step(state: State, batch: dict) -> tuple[State, dict]:
        # All randomness of a step is a function of (seed, step, example): no key is kept.
        key = jax.random.fold_in(jax.random.key(config.train.seed), state.step)
        augment_key, model_key = jax.random.split(key)
        batch = task.augment(batch, augment_key)
        parts = config.train.accumulate
        grads, metrics = gradients(task, state.params, batch, model_key, parts)
        metrics |= {
            "lr": lr(state.step),
            "grad_norm": optax.tree.norm(grads),
            "param_norm": optax.tree.norm(state.params),
        }
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if config.optim.ema:
            decay = config.optim.ema
            ema = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, ema, params)
        return State(state.step + 1, params, opt_state, ema), metrics

    return step
