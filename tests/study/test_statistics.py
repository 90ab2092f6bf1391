"""Intervals, differences, tests and Holm, against SciPy, by hand and by brute force."""

import itertools

import numpy as np
import pytest
import scipy.stats

from pit_jax.study import statistics

RNG = np.random.default_rng(7)
A, B = RNG.normal(0.90, 0.01, 9), RNG.normal(0.89, 0.02, 9)


def test_the_interval_of_three_values_by_hand():
    # Mean 2, standard error 1/√3, t(0.975, 2) = 0.95 / √(2 · 0.975 · 0.025) = 4.30265.
    low, high = statistics.interval([1.0, 2.0, 3.0])
    assert (low, high) == pytest.approx((2 - 4.30265 / 3**0.5, 2 + 4.30265 / 3**0.5), abs=1e-4)


def test_the_interval_is_scipys():
    expected = scipy.stats.t.interval(0.95, len(A) - 1, A.mean(), scipy.stats.sem(A))
    assert statistics.interval(A) == pytest.approx(expected)


def test_one_value_or_two_have_no_interval():
    assert statistics.interval([0.5]) is None
    assert statistics.interval([0.5, 0.6]) is None
    assert statistics.difference({0: 0.5, 1: 0.6}, {0: 0.25, 1: 0.3}).interval is None
    assert statistics.difference({0: 0.5, 1: 0.6}, {2: 0.25, 3: 0.3}).interval is None
    assert statistics.difference({0: 0.5}, {0: 0.25}) == statistics.Difference(0.25, None, True, 1)
    assert statistics.difference({0: 0.5}, {1: 0.25}) == statistics.Difference(0.25, None, False, 1)


def test_a_paired_difference_is_scipys():
    found = statistics.difference(dict(enumerate(A)), dict(enumerate(B)))
    test = scipy.stats.ttest_rel(A, B)
    assert (found.paired, found.count) == (True, 9)
    assert found.mean == pytest.approx(A.mean() - B.mean())
    assert found.p_t == pytest.approx(test.pvalue)
    assert found.interval == pytest.approx(tuple(test.confidence_interval(0.95)))
    flips = scipy.stats.permutation_test(
        (A - B,), np.mean, permutation_type="samples", n_resamples=np.inf
    )
    assert found.p_permutation == pytest.approx(flips.pvalue)


def test_seeds_are_paired_by_number_not_by_place():
    found = statistics.difference({2: 1.0, 0: 3.0, 1: 2.0}, {0: 3.0, 1: 2.0, 2: 1.0})
    assert found.mean == 0
    assert found.interval == (0, 0)


def test_a_missing_seed_leaves_the_others_paired():
    found = statistics.difference({0: 2.0, 2: 5.0}, {0: 1.0, 1: 9.0, 2: 2.0})
    assert (found.paired, found.count, found.mean) == (True, 2, 2.0)


def test_other_seeds_are_welchs():
    found = statistics.difference(dict(enumerate(A)), dict(enumerate(B[:7], start=5)))
    test = scipy.stats.ttest_ind(A, B[:7], equal_var=False)
    assert (found.paired, found.count) == (False, 7)
    assert found.p_t == pytest.approx(test.pvalue)
    assert found.interval == pytest.approx(tuple(test.confidence_interval(0.95)))
    every = np.concatenate([A, B[:7]])
    reached = []
    for chosen in itertools.combinations(range(16), 9):
        inside = np.isin(np.arange(16), chosen)
        reached.append(abs(every[inside].mean() - every[~inside].mean()))
    expected = np.mean(np.array(reached) >= abs(found.mean) - 1e-12)
    assert found.p_permutation == pytest.approx(expected)


def test_exchanges_of_groups_of_one_size_are_scipys():
    exchanged = scipy.stats.permutation_test(
        (A[:6], B[:6]), lambda x, y: x.mean() - y.mean(), n_resamples=np.inf
    )
    assert statistics.shuffles(A[:6], B[:6]) == pytest.approx(exchanged.pvalue)


@pytest.mark.parametrize("count", [2, 5, 6])
def test_p_values_begin_with_six_seeds(count):
    found = statistics.difference(dict(enumerate(A[:count])), dict.fromkeys(range(count), 0.0))
    if count < 6:
        assert (found.p_t, found.p_permutation) == (None, None)
    else:  # all differences are positive: only all signs and none reach the observed mean
        assert found.p_permutation == 2 / 2**6
        assert found.p_t < 0.05


def test_many_pairs_are_sampled_reproducibly():
    differences = RNG.normal(0.3, 1, 24)
    once, again = statistics.sign_flips(differences), statistics.sign_flips(differences)
    assert once == again
    assert once == pytest.approx(scipy.stats.ttest_1samp(differences, 0).pvalue, abs=0.02)


def test_ties_count_in_whatever_the_order_of_the_sum():
    # 0.1 + 0.2 − 0.3 is not 0 in floating point; every flip here is as far as the observed sum.
    assert statistics.sign_flips([0.1, 0.2, -0.3, 0.0, 0.0, 0.0]) == 1.0


def test_equal_values_have_no_t_test():
    found = statistics.paired([0.01] * 6)
    assert (found.p_t, found.p_permutation) == (None, 2 / 2**6)
    same = statistics.unpaired([0.5] * 6, [0.5] * 6)
    assert (same.mean, same.interval, same.p_t, same.p_permutation) == (0, (0, 0), 1, 1)
    assert statistics.paired([0.0] * 6).p_t == 1
    assert statistics.unpaired([0.6] * 6, [0.5] * 6).p_t is None


def test_a_spread_of_rounding_errors_is_none():
    differences = [(97 - n) / 100 - (96 - n) / 100 for n in range(6)]
    assert len(set(differences)) > 1
    assert statistics.paired(differences).p_t is None


def test_holm_by_hand():
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([None, 0.03, None]) == [None, 0.03, None]
    assert statistics.holm([0.9, 0.8]) == [1.0, 1.0]
    assert statistics.holm([0.01, None, 0.02], tests=3) == pytest.approx([0.03, None, 0.04])


def test_holm_is_the_closed_test_of_bonferroni():
    """A hypothesis falls if Bonferroni rejects every set of hypotheses that holds it."""
    for _ in range(20):
        ps = RNG.uniform(0, 0.2, 4)
        sets = [s for n in range(1, 5) for s in itertools.combinations(range(4), n)]
        expected = [
            max(min(1, len(s) * min(ps[j] for j in s)) for s in sets if i in s) for i in range(4)
        ]
        assert statistics.holm(ps) == pytest.approx(expected)
