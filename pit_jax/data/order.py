"""Which example stands where: a function of (seed, step) and nothing else.

The training set is passed through again and again, each time in its own random order; batches
run on across the borders, so every example comes exactly once a pass whatever the batch size.
A pass is an epoch, or with repeated augmentation several. No iterator holds any state: a run
that resumes at a step, on any number of processes, sees the examples it would have seen.
"""

import functools

import numpy as np


@functools.lru_cache(maxsize=2)
def permutation(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    """The order of one pass: (num_examples,) int64."""
    generator = np.random.Generator(np.random.Philox(key=(seed, epoch)))
    return generator.permutation(num_examples)


def examples(seed: int, num_examples: int, positions: np.ndarray, repeats: int = 1) -> np.ndarray:
    """The examples at global positions; position = step · batch size + row.

    Args:
      positions: (n,) int64.
      repeats: each example stands at so many positions in a row, which is repeated augmentation
        (Hoffer et al. 2020). DeiT's sampler ends an epoch after num_examples positions, so that
        a third of the images come in it, three times each, and draws the next epoch's from all
        of them. Here positions run on to the images still left: after repeats · num_examples
        of them each has come exactly `repeats` times.

    Returns:
      (n,) int64 indices into the training set.
    """
    epochs, offsets = np.divmod(positions // repeats, num_examples)
    found = np.empty_like(positions)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        found[here] = permutation(seed, int(epoch), num_examples)[offsets[here]]
    return found
