"""Ranks of made-up arms under the bootstrap, and what a data set can tell apart."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import f_oneway

from workflow_scripts.evaluation.rank_stability import rank_arms, resampled_means, sensitivity


def test_sensitivity_is_the_analysis_of_variance():
    values = np.random.default_rng(2).normal([[0.8], [0.81], [0.85]], 0.01, (3, 4))
    found = sensitivity(values)
    assert found["p_arms"] == pytest.approx(f_oneway(*values).pvalue)
    assert found["between_arms"] == pytest.approx(values.mean(axis=1).std(ddof=1))
    assert found["ratio"] == pytest.approx(found["between_arms"] / found["between_seeds"])
    one = sensitivity(values[:, :1])
    assert math.isnan(one["ratio"])
    assert math.isnan(one["p_arms"])


def test_arms_that_differ_by_chance_alone_are_rarely_told_apart():
    rng = np.random.default_rng(5)
    found = [sensitivity(rng.normal(0.8, 0.01, (5, 3)))["p_arms"] < 0.05 for _ in range(300)]
    assert 0.01 < np.mean(found) < 0.1


def test_resampled_means_vary_as_seeds_and_cases_do():
    rng = np.random.default_rng(1)
    values = rng.normal(0, 1, (1, 400, 1)) + rng.normal(0, 0.1, (1, 1, 30))
    means = resampled_means(values, rng, 2000)
    expected = math.sqrt(1 / 400 + 0.1**2 / 30)
    assert means.std() == pytest.approx(expected, rel=0.2)
    lacking = values.copy()
    lacking[0, :5] = np.nan
    assert np.isfinite(resampled_means(lacking, rng, 10)).all()


def test_a_clear_order_is_stable_and_a_tie_is_not():
    rng = np.random.default_rng(0)
    rows = []
    for arm, mean in (("worst", 0.7), ("tied", 0.8), ("same", 0.8)):
        for seed in (1, 2, 3):
            effect = rng.normal(0, 0.005)
            rows += [
                {"task": "A", "arm": arm, "fold": 0, "seed": seed, "case": f"c{case}"}
                | {"dice": mean + effect}
                for case in range(8)
            ]
    table = rank_arms(pd.DataFrame(rows), ["A"], ["worst", "tied", "same"], seed=1)
    found = table.set_index("arm")
    assert tuple(found.loc["worst", ["rank", "rank_low", "rank_high", "first"]]) == (3, 3, 3, 0)
    assert found.loc[["tied", "same"], "first"].sum() == pytest.approx(1, abs=0.05)
    assert found.loc[["tied", "same"], "rank_high"].max() == 2
    assert set(found["tells_apart"]) == {"yes"}
    rest = rank_arms(pd.DataFrame(rows), ["A"], ["worst", "tied", "same"], 1, [("A", "worst")])
    assert set(rest["arm"]) == {"tied", "same"}
