"""Which example stands where: a function of (seed, step) and nothing else.

The training set is passed through epoch by epoch, each in its own random order; batches
run on across epoch borders, so every example comes exactly once an epoch whatever the
batch size. No iterator holds any state: a run that resumes at a step, on any number of
processes, sees the examples it would have seen.
"""

import functools

import numpy as np


@functools.lru_cache(maxsize=2)
def permutation(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    """The order of one epoch: (num_examples,) int64."""
    generator = np.random.Generator(np.random.Philox(key=(seed, epoch)))
    return generator.permutation(num_examples)


def examples(seed: int, num_examples: int, positions: np.ndarray) -> np.ndarray:
    """The examples at global positions; position = step · batch size + row.

    Args:
      positions: (n,) int64.

    Returns:
      (n,) int64 indices into the training set.
    """
    epochs, offsets = np.divmod(positions, num_examples)
    found = np.empty_like(positions)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        found[here] = permutation(seed, int(epoch), num_examples)[offsets[here]]
    return found
