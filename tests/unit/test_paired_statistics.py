"""Paired statistics against numbers that were computed by hand."""

import math

import numpy as np
import pytest
from scipy.stats import ttest_1samp, wilcoxon

from workflow_scripts.common.paired_statistics import (
    Component,
    agreement_of_new_seed,
    compare_pairs,
    half_width,
    holm,
    interval,
    interval_over_seeds,
    p_value,
    rank_biserial,
    variance_of_mean,
)

NAN = math.nan


def test_differences_and_effect_sizes_by_hand():
    base = [0.5] * 8
    arm = [0.6, 0.7, 0.8, 0.9, 0.55, 0.65, 0.46, 0.42]
    row = compare_pairs(arm, base, tests=1, seed=1)
    # Differences .1 .2 .3 .4 .05 .15 -.04 -.08: ranks 4 6 7 8 2 5, and 1 3 for the negative ones.
    assert row["difference"] == pytest.approx(1.08 / 8)
    assert row["rank_biserial"] == pytest.approx((32 - 4) / 36)
    # The rank sum of the negative ones is 4; of 256 signs, 7 have a sum of at most 4 on each side:
    # {}, 1, 2, 3, 4, 1+2, 1+3.
    assert row["p"] == pytest.approx(2 * 7 / 256)
    squares = sum((value - 0.5 - 0.135) ** 2 for value in arm)
    assert row["cohen_dz"] == pytest.approx(0.135 / math.sqrt(squares / 7))
    assert (row["pairs"], row["left_out"], row["zeros"], row["note"]) == (8, 0, 0, "")


def test_nan_pairs_are_left_out_and_counted_and_zeros_take_no_part_in_the_test():
    base = [0.5] * 10
    arm = [NAN, 0.5, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.4, 0.55]
    row = compare_pairs(arm, [*base[:-1], NAN], tests=1, seed=1)
    assert (row["pairs"], row["left_out"], row["zeros"]) == (8, 2, 2)
    assert row["mean"] == pytest.approx(5.35 / 8)
    assert row["p"] == pytest.approx(wilcoxon([0.1, 0.2, 0.3, 0.4, 0.45, -0.1]).pvalue)


def test_rank_biserial_shares_the_ranks_of_ties():
    assert rank_biserial(np.array([1.0, 1.0, -1.0, 3.0])) == pytest.approx((2 + 2 - 2 + 4) / 10)
    assert rank_biserial(np.array([0.0, -2.0])) == -1
    assert math.isnan(rank_biserial(np.zeros(3)))


@pytest.mark.parametrize(
    ("pairs", "tests", "tested"),
    # 2^-5 = 0.031; 0.031 * 2 = 0.0625; 2^-6 * 3 = 0.047; 2^-6 * 4 = 0.0625
    [(1, 1, False), (5, 1, False), (6, 1, True), (6, 2, False), (7, 3, True), (7, 4, False)],
)
def test_no_p_value_that_could_never_be_significant(pairs, tests, tested):
    arm = [0.5 + 0.01 * (n + 1) for n in range(pairs)]
    row = compare_pairs(arm, [0.5] * pairs, tests, seed=1)
    assert math.isnan(row["p"]) != tested
    assert row["note"] == ("" if tested else "too few cases for a test")
    assert math.isnan(row["ci_low"]) == (pairs < 6)
    if tested:
        assert row["p"] == pytest.approx(2.0 ** (1 - pairs))


def test_equal_arms_have_no_p_value():
    row = compare_pairs([0.5] * 20, [0.5] * 20, tests=1, seed=1)
    assert math.isnan(row["p"])
    assert row["note"] == "no pair differs"
    assert (row["difference"], row["ci_low"], row["ci_high"]) == (0, 0, 0)


def test_no_pairs():
    row = compare_pairs([NAN, 0.4], [0.5, NAN], tests=1, seed=1)
    assert (row["pairs"], row["left_out"], row["note"]) == (0, 2, "no pairs")
    assert math.isnan(row["difference"])


def test_interval_holds_the_true_mean_as_often_as_it_says():
    random = np.random.default_rng(5)
    samples = random.normal(0.02, 0.05, (60, 30))
    held = [low <= 0.02 <= high for low, high in (interval(sample, 1) for sample in samples)]
    assert 0.85 <= np.mean(held) <= 1
    low, high = interval(samples[0], 1)
    half = 1.96 * samples[0].std(ddof=1) / math.sqrt(30)
    assert (high - low) / 2 == pytest.approx(half, rel=0.15)


def test_interval_depends_on_the_seed_alone():
    values = np.linspace(-0.1, 0.3, 12)
    assert interval(values, 7) == interval(values, 7)
    assert interval(values, 7) != interval(values, 8)


def test_holm_by_hand():
    # Sorted .01 .02 .03 .04 times 4 3 2 1 = .04 .06 .06 .04, made non-decreasing: .04 .06 .06 .06.
    assert holm([0.04, 0.01, 0.03, 0.02], 4) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9], 2) == pytest.approx([1.0, 1.0])
    assert holm([], 0) == []


def test_holm_counts_planned_tests_that_could_not_be_made():
    corrected = holm([0.01, NAN, 0.03], 3)
    assert corrected[0] == pytest.approx(0.03)
    assert math.isnan(corrected[1])
    assert corrected[2] == pytest.approx(0.06)


def made_up_differences(rng, seeds, shared, per_fold, cases=10, folds=5):
    """Return differences (cases × seeds) with mean 0.02.

    A seed shifts all cases by `shared`, and those of each fold by `per_fold` (standard deviations).
    """
    of_folds = np.repeat(rng.normal(0, per_fold, (folds, seeds)), cases, axis=0)
    of_cases = rng.normal(0, 0.05, (folds * cases, 1))
    rest = rng.normal(0, 0.03, (folds * cases, seeds))
    return 0.02 + rng.normal(0, shared, seeds) + of_folds + of_cases + rest


@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize(
    ("shared", "per_fold"), [(0.0, 0.0), (0.0, 0.05), (0.05, 0.05), (0.17, 0.05)]
)
def test_an_interval_over_seeds_holds_the_true_mean_as_often_as_it_says(seeds, shared, per_fold):
    """At 0.17 and 0.05, drawing the seeds of each fold by themselves covers about half."""
    rng = np.random.default_rng(seeds)
    held = [
        low <= 0.02 <= high
        for low, high in (
            interval_over_seeds(made_up_differences(rng, seeds, shared, per_fold))
            for _ in range(200)
        )
    ]
    assert 0.91 <= np.mean(held) <= 0.99


@pytest.mark.parametrize("cases", [8, 52])
def test_one_fold_of_few_cases_is_covered_too(cases):
    rng = np.random.default_rng(cases)
    samples = (made_up_differences(rng, 3, 0.02, 0.0, cases, folds=1) for _ in range(200))
    held = [low <= 0.02 <= high for low, high in map(interval_over_seeds, samples)]
    assert 0.91 <= np.mean(held) <= 0.99


def test_an_interval_over_cases_does_not_cover_new_seeds():
    rng = np.random.default_rng(0)
    samples = [made_up_differences(rng, 3, 0.17, 0.05)[:, :1] for _ in range(20)]
    held = [low <= 0.02 <= high for low, high in (interval(each[:, 0], 1) for each in samples)]
    assert np.mean(held) < 0.5


def test_the_variance_of_a_mean_by_hand():
    values = np.array([[1.0, 2.0], [3.0, 6.0]])
    # Means of the cases 1.5, 4.5 (variance 4.5), of the seeds 2, 4 (variance 2); rest 1.
    cases, seeds = variance_of_mean(values)
    assert (cases.variance, cases.freedom) == (pytest.approx((4.5 - 1 / 2) / 2), 1)
    assert (seeds.variance, seeds.freedom) == (pytest.approx(2 / 2), 1)
    (alone,) = variance_of_mean(values[:, :1])
    assert (alone.variance, alone.freedom) == (pytest.approx(2 / 2), 1)
    assert half_width([alone]) == pytest.approx(12.7062)
    # t(0.975) is 4.3027 with 2 and 2.0086 with 50 degrees of freedom.
    parts = [Component(9.0, 2), Component(16.0, 50)]
    assert half_width(parts) == pytest.approx((9 * 4.3027 + 16 * 2.0086) / 5, rel=1e-4)
    assert math.isnan(half_width(variance_of_mean(values[:1])))


def test_with_seeds_alone_interval_and_p_are_those_of_students_t():
    of_seeds = np.array([0.01, 0.05, 0.03, 0.06])
    values = np.tile(of_seeds, (20, 1))
    expected = ttest_1samp(of_seeds, 0)
    assert interval_over_seeds(values) == pytest.approx(expected.confidence_interval(0.95))
    row = compare_pairs(values, np.zeros_like(values), tests=1, seed=1)
    assert row["p"] == pytest.approx(expected.pvalue)
    assert row["covers"] == "seeds and cases"


def test_a_p_value_is_the_level_whose_interval_reaches_zero():
    parts = [Component(0.002, 2), Component(0.001, 40)]
    for mean in (0.01, -0.2, 30.0):
        assert half_width(parts, p_value(mean, parts)) == pytest.approx(abs(mean))
    assert p_value(0.0, parts) == p_value(0.0, [Component(0.0, 2)]) == 1
    assert p_value(0.1, [Component(0.0, 2)]) == 0
    assert math.isnan(p_value(0.1, [Component(NAN, 0)]))


@pytest.mark.parametrize(("shared", "per_fold"), [(0.0, 0.05), (0.17, 0.05)])
def test_arms_that_differ_by_their_seeds_alone_are_rarely_significant(shared, per_fold):
    """Over cases alone, with the seeds given, nearly every such study is significant."""
    rng = np.random.default_rng(7)
    found = [
        compare_pairs(values - 0.02, np.zeros_like(values), tests=1, seed=1)["p"] < 0.05
        for values in (made_up_differences(rng, 3, shared, per_fold) for _ in range(60))
    ]
    assert np.mean(found) <= 0.1
    clear = [
        compare_pairs(values + 0.03, np.zeros_like(values), tests=1, seed=1)["p"] < 0.05
        for values in (made_up_differences(rng, 3, 0.003, 0.003) for _ in range(20))
    ]
    assert np.mean(clear) > 0.9


def test_an_interval_over_seeds_leaves_out_what_is_missing():
    values = made_up_differences(np.random.default_rng(1), 3, 0.01, 0.0, cases=10, folds=2)
    whole = interval_over_seeds(values)
    empty = np.column_stack([values, np.full(20, NAN)])
    assert interval_over_seeds(empty) == pytest.approx(whole), "a seed without any value"
    values[3, 1] = NAN
    low, high = interval_over_seeds(values)
    assert (low, high) == pytest.approx(whole, abs=0.01)
    assert (low, high) != whole
    assert np.isnan(interval_over_seeds(values[:5])).all()


def test_what_a_seed_lacks_is_no_effect_of_the_seed():
    """Cases differ by far more than seeds; the case that a seed lacks does not shift its mean."""
    values = np.linspace(0, 10, 12)[:, np.newaxis] + np.array([0.0, 0.01, 0.02])
    whole = variance_of_mean(values)[1]
    values[11, 2] = NAN
    assert variance_of_mean(values)[1].variance == pytest.approx(whole.variance, rel=0.2)


def test_a_case_counts_with_the_seeds_that_have_a_value():
    arm = [[0.6, 0.8], [NAN, 0.7], [NAN, NAN]]
    row = compare_pairs(arm, [[0.5, 0.5]] * 3, tests=1, seed=1)
    assert (row["pairs"], row["left_out"]) == (2, 1)
    assert row["difference"] == pytest.approx(0.2)
    assert row["mean"] == pytest.approx(0.7)
    assert (row["covers"], row["note"]) == ("seeds and cases", "too few cases for a test")
    assert compare_pairs([0.6, 0.7], [0.5, 0.5], tests=1, seed=1)["covers"] == "cases"


def test_agreement_of_a_new_seed_by_hand():
    # Mean 0.02, deviation 0.01: t = 0.02 / (0.01 * sqrt(4 / 3)) = sqrt(3), two degrees of freedom.
    found = agreement_of_new_seed(np.array([[0.01, 0.02, 0.03], [0.01, 0.02, 0.03]]))
    assert found == pytest.approx(0.5 + math.sqrt(3) / (2 * math.sqrt(5)))
    assert agreement_of_new_seed(np.array([[0.1, 0.1, 0.1]])) == 1.0
    assert agreement_of_new_seed(np.array([[-1.0, 1.0, 1e-9]])) == pytest.approx(0.5, abs=1e-6)
    assert math.isnan(agreement_of_new_seed(np.array([[0.1, 0.2]])))
    assert math.isnan(agreement_of_new_seed(np.array([[0.1, 0.2, NAN]])))


@pytest.mark.parametrize(("mean", "bound"), [(0.0, 0.15), (0.5, 0.1), (1.5, 0.05)])
def test_a_new_seed_agrees_about_as_often_as_is_estimated(mean, bound):
    """The estimate is based on the observed mean, so it is too confident at small differences."""
    values = np.random.default_rng(2).normal(mean, 1.0, size=(4000, 6))
    agreed = (values[:, 5] > 0) == (values[:, :5].mean(axis=1) > 0)
    expected = [agreement_of_new_seed(row[np.newaxis, :5]) for row in values]
    assert -0.05 < np.mean(expected) - agreed.mean() < bound
