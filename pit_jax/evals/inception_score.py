"""The Inception score: images should be of a clear class each, and of all classes together.

Salimans et al. 2016, section 4: exp of the mean divergence KL(p(y | x) ‖ p(y)). Splits are
taken in the order of the samples and scored each by itself, as ADM's evaluator does (5000
samples a split: ten of them in 50,000). Sums are float64.
"""

from typing import NamedTuple

import numpy as np

from pit_jax.errors import ConfigError

SPLIT = 5000


class Score(NamedTuple):
    """Mean over the splits, and their standard deviation (over their number)."""

    mean: float
    std: float


class InceptionScore:
    """Of probabilities that come in batches; of each split two sums are kept, not the rows.

    Attributes:
      split: samples a split. The last split may be shorter and counts as much as the others,
        which biases it downwards: draw a multiple.
    """

    def __init__(self, split: int = SPLIT):
        self.split = split
        self._counts: list[int] = []
        self._negentropy: list[float] = []  # Σ over samples of Σ p log p
        self._sums: list[np.ndarray] = []  # Σ over samples of p

    def __len__(self) -> int:
        """Samples so far."""
        return sum(self._counts)

    def add(self, probabilities: np.ndarray) -> None:
        """Adds (n, classes); the rows sum to 1."""
        while len(probabilities):
            if not self._counts or self._counts[-1] == self.split:
                self._counts.append(0)
                self._negentropy.append(0.0)
                self._sums.append(np.zeros(probabilities.shape[1]))
            part = np.asarray(probabilities[: self.split - self._counts[-1]], np.float64)
            self._counts[-1] += len(part)
            self._negentropy[-1] += _p_log_p(part)
            self._sums[-1] += part.sum(0)
            probabilities = probabilities[len(part) :]

    def score(self) -> Score:
        """The score of what was added, between 1 and the number of classes.

        Raises:
          ConfigError: if nothing was added.
        """
        if not self._counts:
            raise ConfigError("an Inception score needs samples, and there are none")
        scores = [
            np.exp(negentropy / count - _p_log_p(total / count))
            for count, negentropy, total in zip(
                self._counts, self._negentropy, self._sums, strict=True
            )
        ]
        return Score(float(np.mean(scores)), float(np.std(scores)))


def _p_log_p(p: np.ndarray) -> float:
    # A float32 softmax may underflow: 0 log 0 is 0.
    return float(np.sum(p * np.log(np.where(p > 0, p, 1))))
