"""Predicted probabilities of a verdict against scipy's distributions and simulated studies."""

import math

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from workflow_scripts.evaluation.sample_size import (
    Design,
    find_designs,
    probability_of_verdict,
)
from workflow_scripts.evaluation.verdicts import change, verdict


@pytest.mark.parametrize("seeds", [3, 6, 15])
@pytest.mark.parametrize("difference", [0.0, -0.004, -0.03])
def test_with_seeds_alone_it_is_the_power_of_two_t_tests(seeds, difference):
    """One test at the margin, one at 0; either rejects in so many of 20,000 simulated studies."""
    deviation, margin = 0.02, 0.05
    studies = np.random.default_rng(seeds).normal(difference, deviation, (20_000, seeds))
    kept = ttest_1samp(studies, -margin, axis=1).pvalue < 0.05
    other = ttest_1samp(studies, 0, axis=1).pvalue < 0.05
    found = probability_of_verdict(difference, margin, 0.0, 10, deviation**2, seeds)
    assert found == pytest.approx((kept | other).mean(), abs=0.015)


def test_it_is_the_share_of_simulated_studies():
    rng = np.random.default_rng(3)
    cases, seeds, of_cases, of_seeds, difference = 30, 6, 0.02, 0.004, -0.002
    results = []
    for _ in range(250):
        values = difference + rng.normal(0, of_seeds, seeds) + rng.normal(0, of_cases, (cases, 1))
        one = change(values, seed=1)
        results.append(verdict(one.low, one.high, 0.01) != "undecided")
    expected = probability_of_verdict(
        difference, 0.01, of_cases**2 / cases, cases - 1, of_seeds**2, seeds
    )
    assert np.mean(results) == pytest.approx(expected[0], abs=0.1)


def test_more_seeds_settle_what_seeds_leave_open():
    designs = find_designs(0.0, 0.01, 1e-7, 0.006**2 / 3, Design(3, 5, 100))
    (number,) = {design.seeds for design in designs.values()}
    few, enough = probability_of_verdict(
        0.0, 0.01, 1e-7, 99, 0.006**2, np.array([number - 1, number])
    )
    assert few < 0.8 <= enough
    assert designs == {"seeds": Design(number, 5, 100)}


def test_seeds_do_not_settle_what_cases_leave_open():
    """Standard error of the cases 0.008 against a margin of 0.01."""
    of_cases, of_seeds = 0.008**2, 0.001**2 / 3
    one_fold = find_designs(0.0, 0.01, of_cases, of_seeds, Design(3, 1, 50))
    assert set(one_fold) == {"folds"}
    assert (one_fold["folds"].folds, one_fold["folds"].cases) == (5, 250)
    all_folds = find_designs(0.0, 0.01, of_cases, of_seeds, Design(3, 5, 50))
    assert set(all_folds) == {"cases"}
    assert all_folds["cases"].cases > 200


def test_what_nothing_settles_has_no_design():
    assert find_designs(-0.005, 0.0001, 1e-7, 0.2**2 / 3, Design(3, 5, 50)) == {}
    assert find_designs(math.nan, 0.01, 1e-7, 1e-5, Design(3, 5, 50)) == {}
