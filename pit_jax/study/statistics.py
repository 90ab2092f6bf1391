"""What can be said from a few seeds: intervals, paired differences, tests and their correction.

A run with another seed is one more observation. Intervals are Student's t. p-values are given
from six seeds on: with n pairs the smallest two-sided p that flipping signs can reach is
2 / 2^n, which is above 0.05 up to n = 5.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import scipy.stats

LEVEL = 0.95
ENOUGH = 6  # seeds from which on p-values are given
FEWEST = 3  # from which on intervals are: of two values t is 12.7, which says nothing
_EXACT = 1 << 16  # up to so many permutations all of them are tried, beyond as many are drawn


@dataclasses.dataclass(frozen=True)
class Difference:
    """A group minus the baseline.

    Attributes:
      mean: of the paired differences, or the difference of the means.
      interval: of 95 %; None where there are too few seeds to say.
      paired: whether the same seeds were held against each other; else Welch's.
      count: pairs, or of the smaller group's seeds where unpaired.
      p_t: two-sided, of the paired or Welch's t-test; None below six seeds, and where the
        values differ, but by the same in every seed: there t is infinite.
      p_permutation: two-sided, of the permutation test; None below six seeds.
    """

    mean: float
    interval: tuple[float, float] | None
    paired: bool
    count: int
    p_t: float | None = None
    p_permutation: float | None = None


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Of the mean, 95 %, by Student's t; None of fewer than three values."""
    x = np.asarray(values, np.float64)
    if len(x) < FEWEST:
        return None
    half = _quantile(len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x))
    return float(x.mean() - half), float(x.mean() + half)


def difference(values: Mapping[int, float], baseline: Mapping[int, float]) -> Difference:
    """The values of a group against the baseline's, both as {seed: value}.

    Paired by seed where one's seeds are among the other's; else both groups count as
    independent, and their variances need not be equal (Welch).
    """
    common = sorted(set(values) & set(baseline))
    if common and len(common) == min(len(values), len(baseline)):
        return paired([values[seed] - baseline[seed] for seed in common])
    return unpaired(list(values.values()), list(baseline.values()))


def paired(differences: Sequence[float]) -> Difference:
    """The mean of paired differences, its interval and tests that it is 0."""
    x = np.asarray(differences, np.float64)
    found = Difference(float(x.mean()), interval(x), True, len(x))
    if len(x) < ENOUGH:
        return found
    p_t = _p_t(float(x.mean()), float(x.std(ddof=1)) / math.sqrt(len(x)), len(x) - 1, x)
    return dataclasses.replace(found, p_t=p_t, p_permutation=sign_flips(x))


def unpaired(a: Sequence[float], b: Sequence[float]) -> Difference:
    """mean(a) − mean(b) of independent groups, Welch's interval and tests that it is 0."""
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    mean, count = float(x.mean() - y.mean()), min(len(x), len(y))
    if count < FEWEST:
        return Difference(mean, None, False, count)
    parts = x.var(ddof=1) / len(x), y.var(ddof=1) / len(y)
    error = math.sqrt(sum(parts))
    degrees = float(count - 1)
    if error == 0:
        found = Difference(mean, (mean, mean), False, count)
    else:
        # Welch–Satterthwaite degrees of freedom.
        degrees = sum(parts) ** 2 / (parts[0] ** 2 / (len(x) - 1) + parts[1] ** 2 / (len(y) - 1))
        half = _quantile(degrees) * error
        found = Difference(mean, (mean - half, mean + half), False, count)
    if count < ENOUGH:
        return found
    p_t = _p_t(mean, error, degrees, np.concatenate([x, y]))
    return dataclasses.replace(found, p_t=p_t, p_permutation=shuffles(x, y))


def sign_flips(differences: Sequence[float]) -> float:
    """Two-sided p of the mean of paired differences, under flips of their signs.

    Exact up to 16 pairs; beyond, from 65 536 flips drawn with a fixed seed, the observed one
    counted in.
    """
    x = np.asarray(differences, np.float64)
    if 2 ** len(x) <= _EXACT:
        signs = np.array(list(itertools.product((-1, 1), repeat=len(x))), np.float64)
        return float(np.mean(_at_least(signs @ x, x.sum())))
    signs = np.random.default_rng(0).choice((-1.0, 1.0), size=(_EXACT, len(x)))
    return float((1 + _at_least(signs @ x, x.sum()).sum()) / (1 + _EXACT))


def shuffles(a: Sequence[float], b: Sequence[float]) -> float:
    """Two-sided p of the difference of two groups' means, under exchanges between them.

    Exact up to 65 536 ways to share them out; beyond, from as many drawn with a fixed seed.
    The two-sided p counts differences at least as large in either direction.
    """
    every = np.concatenate([a, b]).astype(np.float64)
    centred = every - every.mean()
    size, total = len(a), len(every)
    observed = centred[:size].sum()  # with the total 0, it grows with mean(a) − mean(b)
    if math.comb(total, size) <= _EXACT:
        chosen = np.array(list(itertools.combinations(range(total), size)))
        return float(np.mean(_at_least(centred[chosen].sum(1), observed)))
    order = np.random.default_rng(0).random((_EXACT, total)).argsort(1)[:, :size]
    return float((1 + _at_least(centred[order].sum(1), observed).sum()) / (1 + _EXACT))


def holm(ps: Sequence[float | None], tests: int = 0) -> list[float | None]:
    """p-values corrected for their number (Holm 1979): step-down, monotone, at most 1.

    Args:
      ps: None where there is none, which counts for nothing.
      tests: how many were made, if more than have a p: the others count as larger ones.
    """
    order = sorted((p, place) for place, p in enumerate(ps) if p is not None)
    corrected: list[float | None] = [None] * len(ps)
    highest = 0.0
    for rank, (p, place) in enumerate(order):
        highest = max(highest, min(1.0, (max(tests, len(order)) - rank) * p))
        corrected[place] = highest
    return corrected


def _p_t(mean: float, error: float, degrees: float, values: np.ndarray) -> float | None:
    """Two-sided p of t = mean / error; 1 where nothing differs, None where t is infinite.

    A spread of rounding errors is none: 0.97 − 0.96 and 0.96 − 0.95 are the same difference.
    """
    if error > 1e-9 * np.abs(values).max():
        return float(2 * scipy.stats.t.sf(abs(mean) / error, degrees))
    return 1.0 if abs(mean) <= 1e-9 * np.abs(values).max() else None


def _quantile(degrees: float) -> float:
    return float(scipy.stats.t.ppf((1 + LEVEL) / 2, degrees))


def _at_least(statistics: np.ndarray, observed: float) -> np.ndarray:
    """Whether each is as far from 0 as the observed one; equal sums may round differently."""
    return np.abs(statistics) >= abs(observed) * (1 - 1e-9) - 1e-15
