"""What a frozen model says of every image of a set: one vector each."""

import dataclasses
from typing import Any

import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class Features:
    """Vectors (V, N, d) float32 of V views of N images, and labels (N,) int32.

    The first view is the image itself; others are random crops and flips of it.
    """

    vectors: np.ndarray
    labels: np.ndarray


def extract(task: Any, steps: Any, state: Any, pipeline: Any, views: int = 1) -> Features:
    """Features of every image of a set, in its order, on every process.

    Args:
      task: its `vectors` and `view_vectors` are what is asked.
      steps: `read(function)` jits over the mesh, with results for every process.
      state: its `eval_params` are used.
      pipeline: `evaluate()` iterates over the set, the last batch filled up and masked.
      views: V.
    """
    vectors, labels = [], []
    for view in range(views):
        read = steps.read(task.view_vectors if view else task.vectors)
        found, seen = [], []
        for number, batch in enumerate(pipeline.evaluate()):
            key = jax.random.key_data(jax.random.fold_in(jax.random.key(view), number))
            out = jax.device_get(read(state.eval_params, batch, np.asarray(key)))
            real = out["mask"] > 0
            found.append(out["vector"][real])
            seen.append(out["label"][real])
        vectors.append(np.concatenate(found))
        labels.append(np.concatenate(seen))
    return Features(np.stack(vectors), labels[0])
