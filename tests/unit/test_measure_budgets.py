"""A sweep of training lengths against curves that are known by hand."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_1samp

from workflow_scripts.common.errors import UserError
from workflow_scripts.evaluation.measure_budgets import (
    COSTS,
    DIFFERENCES,
    TARGETS,
    cost_of,
    crossing,
    dice_at,
    interval,
    measure_differences,
    measure_targets,
    to_markdown,
)

CURVE = (np.array([1.0, 4.0, 16.0]), np.array([0.5, 0.7, 0.8]))


def sweep(progressive=((8, 0.5, 2.0), (32, 0.85, 8.0)), seeds=(1, 2, 3)):
    """runs.csv: constant costs 1, 4 and 16; the other arm has (epochs, Dice, cost) each."""
    constant = ((4, 0.5, 1.0), (16, 0.7, 4.0), (64, 0.8, 16.0))
    rows = [
        {"task": "t", "arm": f"{arm}_{epochs}", "fold": 0, "seed": seed, "epochs": epochs}
        | {"dice_foreground_mean": dice + (0.01 * seed if arm == "progressive" else 0)}
        | dict.fromkeys(COSTS, cost)
        for arm, lengths in (("constant", constant), ("progressive", progressive))
        for epochs, dice, cost in lengths
        for seed in seeds
    ]
    return pd.DataFrame(rows)


def test_dice_is_linear_in_the_logarithm_of_the_cost_and_never_extrapolated():
    assert dice_at(CURVE, 2.0) == pytest.approx(0.6)
    assert dice_at(CURVE, 16.0) == pytest.approx(0.8)
    assert math.isnan(dice_at(CURVE, 0.5))
    assert math.isnan(dice_at(CURVE, 20.0))


def test_the_cost_of_a_dice_is_that_from_which_the_curve_stays_there():
    assert cost_of(CURVE, 0.6) == pytest.approx(2.0)
    assert cost_of(CURVE, 0.8) == pytest.approx(16.0)
    assert cost_of(CURVE, 0.4) == 1.0, "less was not trained"
    assert math.isinf(cost_of(CURVE, 0.81))
    falling = (np.array([1.0, 2.0, 4.0]), np.array([0.7, 0.6, 0.8]))
    assert cost_of(falling, 0.7) == pytest.approx(2 * math.sqrt(2)), "not the first time"


def test_differences_are_those_at_equal_cost():
    table = measure_differences(sweep(), "constant_64")
    assert list(table.columns) == DIFFERENCES
    rows = table[table["cost"] == "training_kwh"].set_index("epochs")
    assert rows["trainings"].tolist() == [3, 3]
    assert rows.loc[8, "dice_reference"] == pytest.approx(0.6)
    assert rows.loc[8, "difference"] == pytest.approx(0.52 - 0.6)
    assert rows.loc[32, "difference"] == pytest.approx(0.87 - 0.75)
    assert rows.loc[32, "relative"] == pytest.approx(0.5)
    wanted = ttest_1samp([0.51 - 0.6, 0.52 - 0.6, 0.53 - 0.6], 0).confidence_interval(0.95)
    assert (rows.loc[8, "ci_low"], rows.loc[8, "ci_high"]) == pytest.approx(tuple(wanted))
    assert interval(np.array([0.1])) == pytest.approx((math.nan, math.nan), nan_ok=True)


def test_a_cost_that_the_reference_was_not_trained_for_has_no_difference():
    table = measure_differences(sweep(((2, 0.5, 0.5), (8, 0.9, 32.0))), "constant_64")
    assert (table["trainings"] == 0).all()
    assert table["difference"].isna().all()
    runs = sweep()
    runs["training_kwh"] = math.nan
    rows = measure_differences(runs, "constant_64").set_index("cost")
    assert rows.loc["training_kwh", "difference"].isna().all()
    assert rows.loc["training_gflop", "difference"].notna().all()


@pytest.mark.parametrize(
    ("lengths", "text"),
    [
        (((8, 0.5, 2.0), (32, 0.85, 8.0)), "ahead from 4.00 Wh on"),
        (((8, 0.5, 2.0), (32, 0.6, 8.0)), "behind up to 8.00 Wh"),
        (((8, 0.7, 2.0), (32, 0.8, 8.0)), "ahead from 2.00 Wh on"),
        (((8, 0.7, 2.0), (16, 0.5, 4.0), (32, 0.8, 8.0)), "ahead from 6.96 Wh on"),
        (((8, 0.7, 64.0),), "no common cost"),
    ],
)
def test_where_an_arm_gets_ahead(lengths, text):
    runs = sweep(lengths, seeds=(0,))
    runs["training_kwh"] /= 1000
    table = measure_differences(runs, "constant_64")
    assert crossing(table[table["cost"] == "training_kwh"]) == text


def test_targets_are_shares_of_the_final_dice_of_the_longest_reference():
    table = measure_targets(sweep(), "constant_4")
    assert list(table.columns) == TARGETS
    rows = table[table["cost"] == "training_gflop"].set_index(["arm", "level"])
    assert rows.loc[("progressive", 1.0), "target"] == pytest.approx(0.8)
    share = (0.8 - 0.52) / (0.87 - 0.52)
    assert rows.loc[("progressive", 1.0), "amount"] == pytest.approx(2 * 4**share)
    assert rows.loc[("progressive", 1.0), "relative"] == pytest.approx(2 * 4**share / 16)
    assert rows.loc[("constant", 1.0), "relative"] == 1
    low = measure_targets(sweep(((8, 0.5, 2.0), (32, 0.785, 8.0))), "constant_4")
    rows = low[low["cost"] == "training_gflop"].set_index(["arm", "level"])
    assert rows.loc[("progressive", 1.0), "reached"] == 2
    assert np.isfinite(rows.loc[("progressive", 1.0), "relative"])
    never = measure_targets(sweep(((8, 0.5, 2.0), (32, 0.7, 8.0))), "constant_4")
    assert np.isinf(never.loc[never["arm"] == "progressive", "relative"]).all()


def test_the_tables_are_printed():
    runs = sweep()
    differences, targets = (
        measure(runs, "constant_64") for measure in (measure_differences, measure_targets)
    )
    text = to_markdown(differences, targets, runs)
    assert "| progressive | 8      | 0.520 ± 0.010" in text
    assert "-0.080 [-0.105, -0.055]" in text
    assert "over 3 seeds (Student's t)" in text
    assert "never" not in text.split("- Mean")[0]
    alone = sweep(seeds=(1,))
    differences, targets = (
        measure(alone, "constant_64") for measure in (measure_differences, measure_targets)
    )
    assert "One training each" in to_markdown(differences, targets, alone)


def test_a_reference_without_a_run_is_named():
    for measure in (measure_differences, measure_targets):
        with pytest.raises(UserError, match="other_8, which has no run"):
            measure(sweep(), "other_8")
