"""Linear classification of frozen features, as MAE's linear probing (He et al. 2021, A.1).

Batch normalisation without affine parameters, then a linear layer with bias, which starts at
weights of deviation 0.01: softmax cross-entropy, 90 epochs, momentum 0.9, no weight decay,
linear warm-up, cosine decay to 0. What differs from MAE's main_linprobe.py, as published for
ViT-B/16:

    MAE                                       here
    a new random resized crop (8 to 100 %)    the image as evaluation sees it, its features
    and flip of each image every epoch        cached; with `eval.views` above 1 one of so many
                                              views an epoch, as data.augmentation crops and flips
    running averages of batch norm            what they converge to, the training set's mean and
                                              variance over all views, in training, too
    LARS (trust 0.001 on the weights), base   plain SGD, at that of nine base rates which is best
    rate 0.1                                  on a tenth of the training set; then on all of it
    batches of 16 384                         of 512, or of all examples if there are fewer
    warm-up over 10 of 90 epochs, from 0      over 10 % of the steps, from the first step's share
    tested on the centre 224 of 256 pixels    on the centre crop that data.eval_crop keeps
    the best epoch's test accuracy            the last one's
    encoder and head in mixed precision       the encoder in model.dtype, the head in float32

LARS makes one base rate fit all layers and widths; without it the rate must be chosen.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from optax import softmax_cross_entropy_with_integer_labels as cross_entropy

# SGD is stable up to a rate of about 4 / (largest eigenvalue of the features' correlation
# matrix): 1 for whitened features, up to the width if all of them say the same. The upper
# end suits the former and short trainings, the lower end a thousand aligned features.
BASE_RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # per 256 examples
MOMENTUM = 0.9
WARMUP = 0.1  # of all steps
EPSILON = 1e-6  # MAE's, added to the variance
HELD_OUT = 10  # every tenth example chooses the rate
BLOCK = 4096  # examples evaluated at a time

Moments = tuple[np.ndarray, np.ndarray]  # mean and scale, (d,) each
Parameters = tuple[jax.Array, jax.Array]  # weights (R, d, num_classes), bias (R, num_classes)


@dataclasses.dataclass(frozen=True)
class Result:
    """Attributes:
    accuracy: on the test examples, in [0, 1], after training on all training examples.
    base_rate: the chosen learning rate per 256 examples; the middle one of `BASE_RATES`
      if there were too few examples to hold any out.
    held_out_accuracy: of that rate, on the tenth of the training examples held out, or
      None. A little optimistic, as the best of several.
    """

    accuracy: float
    base_rate: float
    held_out_accuracy: float | None


def accuracy(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    num_classes: int,
    *,
    epochs: int = 90,
    batch_size: int = 512,
    seed: int = 0,
    until_stopped: Callable[[Iterable], Iterable] = iter,
) -> Result:
    """Trains the probe once per rate to choose one, then once more on everything.

    Args:
      train_features: (N, d) float32, or (V, N, d): V views of the same N examples. An epoch
        sees one view of each example, drawn at random. All stay in the memory of every
        device of the mesh.
      train_labels: (N,) int32 in [0, num_classes); a class may be missing.
      test_features: (M, d) float32, evaluated in blocks.
      test_labels: (M,) int32.
      num_classes: outputs of the linear layer.
      epochs, batch_size: MAE trains 90 epochs, of batches of 16 384. Of an epoch, the
        examples that fill no batch are left out; fewer than batch_size are one batch.
      seed: decides the split, the initial weights, the order and the views.
      until_stopped: of a context; it is asked before every epoch.
    """
    views = train_features if train_features.ndim == 3 else train_features[None]
    chex.assert_shape(train_labels, views.shape[1:2])
    chex.assert_shape(test_features, (len(test_labels), views.shape[2]))
    moments = statistics(views)  # for the split, too: they contain no labels
    resident, labels = jnp.asarray(views), jnp.asarray(train_labels, jnp.int32)

    def train(rows: np.ndarray, rates: tuple[float, ...]) -> Parameters:
        sizes = dict(num_classes=num_classes, epochs=epochs, batch_size=min(batch_size, len(rows)))
        rows, rates = jnp.asarray(rows), jnp.asarray(rates)
        key = jax.random.key(seed)
        given = (resident, labels, rows, moments, rates, key)
        return fit(*given, **sizes, until_stopped=until_stopped)

    kept, held_out = split(train_labels, seed)
    if len(held_out):
        parameters = train(kept, BASE_RATES)
        held_labels = train_labels[held_out]
        measured = [evaluate(parameters, x[held_out], held_labels, moments) for x in views]
        accuracies, losses = np.mean(measured, axis=0)  # (R,), (R,)
        best = np.lexsort((losses, -accuracies))[0]  # few examples tie often: the loss decides
        base_rate, held_out_accuracy = BASE_RATES[best], float(accuracies[best])
    else:
        base_rate, held_out_accuracy = BASE_RATES[len(BASE_RATES) // 2], None
    parameters = train(np.arange(len(train_labels)), (base_rate,))
    accuracies, _ = evaluate(parameters, test_features, test_labels, moments)
    return Result(float(accuracies[0]), base_rate, held_out_accuracy)


def statistics(views: np.ndarray) -> Moments:
    """Mean and 1 / √(variance + 1e-6) of each feature of (V, N, d), both (d,) float32.

    A feature that never varies in training gets scale 0 instead of 1000: its weight stays
    at the initial noise, and the first test example where it does vary would get only that.
    """
    count = views.shape[0] * views.shape[1]
    mean = views.sum((0, 1), dtype=np.float64) / count
    squares = np.zeros_like(mean)
    for view in views:
        for start in range(0, len(view), BLOCK):  # two passes: E[x²] − E[x]² would cancel
            squares += np.square(view[start : start + BLOCK] - mean).sum(0)
    variance = squares / count
    varies = variance > 1e-12 * mean**2  # less is the rounding of float32
    scale = np.where(varies, 1 / np.sqrt(variance + EPSILON), 0)
    return mean.astype(np.float32), scale.astype(np.float32)


def split(labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and rows to choose by: every tenth of a random order within classes.

    A class of n gives n / 10 of them, rounded up or down at random, and never its only
    example. Fewer than ten examples in all are too few: none is held out.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    repeated = np.bincount(labels)[labels[order]] > 1
    held_out = order[repeated][HELD_OUT // 2 :: HELD_OUT] if len(labels) >= HELD_OUT else order[:0]
    return np.setdiff1d(order, held_out), np.sort(held_out)


def fit(
    views: jax.Array,
    labels: jax.Array,
    rows: jax.Array,
    moments: Moments,
    rates: jax.Array,
    key: jax.Array,
    *,
    num_classes: int,
    epochs: int,
    batch_size: int,
    until_stopped: Callable[[Iterable], Iterable] = iter,
) -> Parameters:
    """Trains R probes at once, which differ in nothing but their base rate.

    Args:
      views, labels: (V, N, d) and (N,).
      rows: (n,) which of the N to train on; n ≥ batch_size.
      moments: of `statistics`.
      rates: (R,) per 256 examples.
      key: of the initial weights, the order and the views.
      num_classes, epochs, batch_size, until_stopped: as `accuracy` takes them.
    """
    init_key, epochs_key = jax.random.split(key)
    start = 0.01 * jax.random.normal(init_key, (views.shape[2], num_classes))
    weights = jnp.broadcast_to(start, (len(rates), *start.shape))
    parameters = weights, jnp.zeros((len(rates), num_classes))
    state = parameters, jax.tree.map(jnp.zeros_like, parameters), jnp.int32(0)
    for epoch_key in until_stopped(jax.random.split(epochs_key, epochs)):
        given = (state, epoch_key, views, labels, rows, moments, rates)
        # Waiting lets a stop that was asked for be heard within an epoch.
        state = jax.block_until_ready(_epoch(*given, epochs=epochs, batch_size=batch_size))
    return state[0]


@functools.partial(jax.jit, static_argnames=("epochs", "batch_size"))
def _epoch(state, key, views, labels, rows, moments, rates, *, epochs, batch_size) -> Any:
    """The state, (parameters, their velocity, step), after one of the epochs."""
    mean, scale = moments
    steps = len(rows) // batch_size  # of an epoch
    warmup = max(1, round(WARMUP * epochs * steps))
    decay = max(1, epochs * steps - warmup)

    def loss(parameters: Parameters, x: jax.Array, y: jax.Array) -> jax.Array:
        weights, bias = parameters
        return cross_entropy(x @ weights + bias, y).mean()

    @functools.partial(jax.vmap, in_axes=(0, 0, 0, None, None))
    def update(rate, parameters, velocity, x, y):
        grads = jax.grad(loss)(parameters, x, y)
        velocity = jax.tree.map(lambda v, g: MOMENTUM * v + g, velocity, grads)
        return jax.tree.map(lambda p, v: p - rate * v, parameters, velocity), velocity

    def step(state, batch):
        parameters, velocity, t = state
        row, view = batch  # (B,), (B,)
        x = (views[view, row] - mean) * scale  # (B, d)
        rise = (t + 1) / warmup
        fall = (1 + jnp.cos(jnp.pi * (t - warmup) / decay)) / 2
        rate = rates * (batch_size / 256) * jnp.where(t < warmup, rise, fall)
        return (*update(rate, parameters, velocity, x, labels[row]), t + 1), None

    order_key, view_key = jax.random.split(key)
    shape = (steps, batch_size)
    order = jax.random.permutation(order_key, rows)[: steps * batch_size].reshape(shape)
    view = jax.random.randint(view_key, shape, 0, len(views))
    return jax.lax.scan(step, state, (order, view))[0]


def evaluate(parameters: Parameters, features, labels, moments) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy and mean cross-entropy, (R,) each, on (M, d) features, block by block."""
    block = min(BLOCK, len(labels))
    totals = 0.0
    for start in range(0, len(labels), block):
        x, y = features[start : start + block], labels[start : start + block]
        rest = block - len(y)  # filled up and masked: one shape, one compilation
        x, y = np.pad(x, ((0, rest), (0, 0))), np.pad(y, (0, rest), constant_values=-1)
        totals += np.asarray(_sums(parameters, x, y, moments), np.float64)
    return tuple(totals / len(labels))


@jax.jit
def _sums(parameters, x, y, moments) -> tuple[jax.Array, jax.Array]:
    (weights, bias), (mean, scale) = parameters, moments
    logits = (x - mean) * scale @ weights + bias[:, None]  # (R, B, num_classes)
    # What diverged is wrong everywhere and loses: argmax would take the first NaN as its class.
    finite = jnp.isfinite(logits).all(-1)
    right = finite & (logits.argmax(-1) == y)
    losses = jnp.where(finite, cross_entropy(logits, jnp.broadcast_to(y, finite.shape)), jnp.inf)
    return right.sum(-1), jnp.where(y >= 0, losses, 0).sum(-1)
