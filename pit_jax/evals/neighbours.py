"""k nearest neighbours by cosine similarity, with weighted votes.

A neighbour of similarity s votes for its class with exp(s / temperature), as in instance
discrimination (Wu et al. 2018, section 3.4) and DINO (Caron et al. 2021). Nothing is
trained, so there is no seed.
"""

import functools
from collections.abc import Callable, Iterable

import chex
import jax
import jax.numpy as jnp
import numpy as np

QUERY_BLOCK, TRAIN_BLOCK = 1024, 16384  # their similarities are 64 MiB


def accuracy(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    num_classes: int,
    *,
    k: int = 20,
    temperature: float = 0.07,
    until_stopped: Callable[[Iterable], Iterable] = iter,
) -> float:
    """The share of test examples whose neighbours elect their class, in [0, 1].

    Arguments are `predict`'s; test_labels: (M,) int32.
    """
    options = dict(k=k, temperature=temperature, until_stopped=until_stopped)
    predicted = predict(train_features, train_labels, test_features, num_classes, **options)
    chex.assert_equal_shape([predicted, test_labels])
    return float(np.mean(predicted == test_labels))


def predict(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    num_classes: int,
    *,
    k: int = 20,
    temperature: float = 0.07,
    query_block: int = QUERY_BLOCK,
    train_block: int = TRAIN_BLOCK,
    until_stopped: Callable[[Iterable], Iterable] = iter,
) -> np.ndarray:
    """The class of each test example, (M,) int32.

    On the device are the test features, one block of training features, and the best k so
    far. Among equally similar training examples the first in order is nearer, among equal
    votes the lower class wins. A zero feature is equally far (0) from everything.

    Args:
      train_features: (N, d) float32.
      train_labels: (N,) int32 in [0, num_classes).
      test_features: (M, d) float32.
      num_classes: bounds the labels.
      k: neighbours that vote, at most N.
      temperature: of the votes, in units of cosine similarity.
      query_block, train_block: examples compared at a time; they change no result.
      until_stopped: of a context; it is asked before every block of training examples.
    """
    chex.assert_shape(train_labels, (len(train_features),))
    examples, queries = len(train_features), len(test_features)
    k = min(k, examples)
    query_block, train_block = min(query_block, queries), min(train_block, examples)

    test = _fill(test_features, -(-queries // query_block) * query_block)
    test = _unit(test).reshape(-1, query_block, test.shape[1])  # (Q, B, d)
    shape = (*test.shape[:2], k)
    best = jnp.full(shape, -jnp.inf), jnp.full(shape, -1, jnp.int32)
    # Training blocks outside: each is brought to the device once, however many queries.
    for start in until_stopped(range(0, examples, train_block)):
        block = slice(start, start + train_block)
        features = _fill(train_features[block], train_block)
        labels = _fill(train_labels[block].astype(np.int32), train_block, -1)
        # Waiting keeps the next blocks from queueing up in the device's memory.
        best = jax.block_until_ready(_merge(best, test, features, labels, k=k))
    return np.asarray(_vote(best, temperature, num_classes)).reshape(-1)[:queries]


@functools.partial(jax.jit, static_argnames="k")
def _merge(best, test: jax.Array, features: jax.Array, labels: jax.Array, *, k: int):
    """Similarities and labels (Q, B, k) of the nearest, of what was seen and a new block."""
    features = _unit(features)  # (T, d)

    def one(of_query_block):
        similarity, label, queries = of_query_block  # (B, k), (B, k), (B, d)
        # The default precision of a TPU or GPU has 3 digits: neighbours would change places.
        new = jnp.matmul(queries, features.T, precision=jax.lax.Precision.HIGHEST)  # (B, T)
        new = jnp.where(labels >= 0, new, -jnp.inf)  # what only fills up the block
        new, at = jax.lax.top_k(new, min(k, len(labels)))
        # Old before new: top_k takes the first of equals, so blocks do not decide ties.
        joined = jnp.concatenate([similarity, new], -1)
        joined_labels = jnp.concatenate([label, labels[at]], -1)
        similarity, at = jax.lax.top_k(joined, k)
        return similarity, jnp.take_along_axis(joined_labels, at, -1)

    return jax.lax.map(one, (*best, test))


@jax.jit
def _vote(best, temperature: float, num_classes: int) -> jax.Array:
    """(Q, B, k) similarities and labels → (Q, B); only the neighbours' classes are counted."""

    def one(of_query_block):
        similarity, label = of_query_block  # (B, k), (B, k)
        # Relative to the nearest: it changes no election and no exponential overflows.
        weight = jnp.exp((similarity - similarity[:, :1]) / temperature)
        same = label[:, :, None] == label[:, None, :]  # (B, k, k)
        votes = jnp.where(same, weight[:, None, :], 0).sum(-1)  # of each neighbour's class
        elected = votes == votes.max(-1, keepdims=True)
        return jnp.where(elected, label, num_classes).min(-1)

    return jax.lax.map(one, best)


@jax.jit
def _unit(x: jax.Array) -> jax.Array:
    # Scaled first: the squares of large or tiny features leave the range of float32.
    x = x / jnp.maximum(jnp.abs(x).max(-1, keepdims=True), jnp.finfo(x.dtype).tiny)
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1)  # ≥ 1 unless x = 0


def _fill(x: np.ndarray, length: int, value: int = 0) -> np.ndarray:
    widths = [(0, length - len(x))] + [(0, 0)] * (x.ndim - 1)
    return np.pad(x, widths, constant_values=value) if length > len(x) else x
