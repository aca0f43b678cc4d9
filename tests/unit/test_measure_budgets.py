"""A sweep of training lengths against hand-computed curves."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_1samp

from workflow_scripts.common.errors import UserError
from workflow_scripts.evaluation.budget_page import crossing, to_markdown
from workflow_scripts.evaluation.budget_statistics import (
    COSTS,
    DIFFERENCES,
    TARGETS,
    Curve,
    measure_differences,
    measure_final_targets,
)

CURVE = Curve(np.array([1.0, 4.0, 16.0]), np.array([0.5, 0.7, 0.8]), np.array([4, 16, 64]))
CONSTANT = ((4, 0.5, 1.0), (16, 0.7, 4.0), (64, 0.8, 16.0))
USUAL = ((8, 0.5, 2.0), (32, 0.85, 8.0))


def sweep(progressive=USUAL, seeds=(1, 2, 3), folds=(0,), step=0.01, constant=CONSTANT):
    """Return runs.csv of (steps, Dice, cost) per length; `step` is progressive's gain per seed."""
    rows = [
        {"task": "t", "arm": f"{arm}_{steps}", "fold": fold, "seed": seed}
        | {"dice_foreground_mean": dice + (step * seed if arm == "progressive" else 0)}
        | dict.fromkeys(COSTS, cost)
        | {"training_steps": steps}
        for arm, lengths in (("constant", constant), ("progressive", progressive))
        for steps, dice, cost in lengths
        for fold in folds
        for seed in seeds
    ]
    return pd.DataFrame(rows)


def differences(runs, trained="arm", cost="training_kwh"):
    table = measure_differences(runs, "constant_64")
    chosen = (table["trained"] == trained) & (table["cost"] == cost)
    return table[chosen].set_index("steps")


def test_dice_is_linear_in_the_logarithm_of_the_cost_and_never_extrapolated():
    assert CURVE.dice_at(2.0) == pytest.approx(0.6)
    assert CURVE.dice_at(16.0) == pytest.approx(0.8)
    assert math.isnan(CURVE.dice_at(0.5))
    assert math.isnan(CURVE.dice_at(20.0))


def test_the_cost_of_a_dice_is_that_from_which_the_curve_stays_there():
    assert CURVE.cost_of(0.6) == (pytest.approx(2.0), False)
    assert CURVE.cost_of(0.8) == (pytest.approx(16.0), False)
    assert CURVE.cost_of(0.4) == (1.0, True), "there is no shorter training"
    assert CURVE.cost_of(0.81) == (math.inf, False)
    falling = Curve(np.array([1.0, 2.0, 4.0]), np.array([0.7, 0.6, 0.8]), np.array([1, 2, 4]))
    assert falling.cost_of(0.7)[0] == pytest.approx(2 * math.sqrt(2)), "not the first time"


def test_differences_are_those_at_equal_cost():
    assert list(measure_differences(sweep(), "constant_64").columns) == DIFFERENCES
    rows = differences(sweep())
    assert rows["trainings"].tolist() == [3, 3]
    assert rows.loc[8, "dice_reference"] == pytest.approx(0.6)
    assert rows.loc[8, "difference"] == pytest.approx(0.52 - 0.6)
    assert rows.loc[32, "difference"] == pytest.approx(0.87 - 0.75)
    assert rows.loc[32, "relative"] == pytest.approx(0.5)
    wanted = ttest_1samp([0.51 - 0.6, 0.52 - 0.6, 0.53 - 0.6], 0).confidence_interval(0.95)
    assert (rows.loc[8, "ci_low"], rows.loc[8, "ci_high"]) == pytest.approx(tuple(wanted))


def test_where_the_reference_was_trained_the_arm_is_interpolated():
    rows = differences(sweep(), "reference")
    assert rows["difference"].notna().tolist() == [False, True, False]
    assert rows.loc[16, "dice"] == pytest.approx((0.52 + 0.87) / 2)
    assert rows.loc[16, "difference"] == pytest.approx(0.695 - 0.7)


def test_one_and_the_same_curve_is_neither_ahead_nor_behind():
    """On a curve that saturates, each side looks better at the costs of its trainings."""

    def dice(cost):
        return 0.9 - 0.4 / cost

    constant = [(int(4 * cost), dice(cost), cost) for cost in (1.0, 4.0, 16.0)]
    arm = [(int(4 * cost), dice(cost), cost) for cost in (2.0, 8.0)]
    runs = sweep(arm, step=0.0, constant=constant)
    assert (differences(runs)["difference"] > 0.01).all()
    assert (differences(runs, "reference")["difference"].dropna() < -0.01).all()
    table = measure_differences(runs, "constant_64")
    text = crossing(table[table["cost"] == "training_gflop"], 3)
    assert text == "undecided up to 8.00 GFLOP"


def test_the_interval_is_over_seeds_whose_folds_are_averaged():
    rows = differences(sweep(folds=(0, 1, 2)))
    assert rows["trainings"].tolist() == [9, 9]
    assert rows.loc[8, "ci_low"] == pytest.approx(differences(sweep()).loc[8, "ci_low"])
    assert differences(sweep(seeds=(1,)))["ci_low"].isna().all()


def test_a_cost_that_the_reference_was_not_trained_for_has_no_difference():
    table = measure_differences(sweep(((2, 0.5, 0.5), (8, 0.9, 32.0))), "constant_64")
    of_arm = table[(table["trained"] == "arm") & (table["cost"] != "training_steps")]
    assert (of_arm["trainings"] == 0).all()
    assert of_arm["difference"].isna().all()
    runs = sweep()
    runs["training_kwh"] = math.nan
    table = measure_differences(runs, "constant_64")
    assert "training_kwh" not in set(table["cost"])
    assert (table["cost"] == "training_gflop").any()


@pytest.mark.parametrize(
    ("lengths", "text"),
    [
        (USUAL, "behind up to 2.00 Wh, undecided up to 8.00 Wh"),
        (((8, 0.5, 2.0), (32, 0.6, 8.0)), "behind up to 8.00 Wh"),
        (((8, 0.7, 2.0), (32, 0.8, 8.0)), "ahead from 4.00 Wh"),
        (((8, 0.5, 1.0), (16, 0.75, 4.0), (32, 0.9, 16.0)), "ahead from 4.00 Wh"),
        (
            ((8, 0.4, 1.0), (16, 0.75, 4.0), (32, 0.9, 16.0)),
            "behind up to 1.00 Wh, ahead from 4.00 Wh",
        ),
        (
            ((8, 0.7, 2.0), (16, 0.5, 4.0), (32, 0.8, 8.0)),
            "behind up to 4.00 Wh, undecided up to 8.00 Wh",
        ),
        (((8, 0.5, 1.0), (32, 0.7, 16.0)), "behind up to 16.0 Wh"),
        (((8, 0.7, 64.0),), "no common cost"),
    ],
)
def test_where_an_arm_is_ahead(lengths, text):
    runs = sweep(lengths, seeds=(0,))
    runs["training_kwh"] /= 1000
    table = measure_differences(runs, "constant_64")
    assert crossing(table[table["cost"] == "training_kwh"], 1) == text


def test_a_cost_that_only_some_trainings_cover_decides_nothing():
    table = measure_differences(sweep(((8, 0.7, 2.0), (32, 0.8, 8.0)), step=0.001), "constant_64")
    rows = table[table["cost"] == "training_gflop"].copy()
    assert crossing(rows, 3) == "ahead from 4.00 GFLOP"
    of_reference = (rows["trained"] == "reference") & rows["difference"].notna()
    rows.loc[of_reference, "trainings"] = 1
    rows.loc[of_reference, ["ci_low", "ci_high", "p", "p_holm"]] = math.nan
    assert crossing(rows, 3) == "undecided up to 8.00 GFLOP"
    rows["trainings"] = 1
    rows[["ci_low", "ci_high", "p", "p_holm"]] = math.nan
    assert crossing(rows, 1) == "ahead from 4.00 GFLOP", "its sign, with one training"
    assert crossing(rows, 3) == "undecided up to 8.00 GFLOP"


def test_seeds_that_disagree_decide_nothing():
    """The means alone would give: ahead from 4."""
    lengths = ((8, 0.56, 1.0), (16, 0.67, 4.0), (32, 0.78, 16.0))
    table = measure_differences(sweep(lengths, step=0.02), "constant_64")
    rows = table[table["cost"] == "training_gflop"]
    assert (rows["difference"] > 0).all()
    assert crossing(rows, 3) == "undecided up to 16.0 GFLOP"


def test_differences_of_a_task_are_corrected_for_their_number():
    """Each of these intervals excludes 0, which one in twenty does by chance alone."""
    lengths = ((8, 0.55, 1.0), (16, 0.75, 4.0), (32, 0.85, 16.0))
    table = measure_differences(sweep(lengths), "constant_64")
    known = table.dropna(subset=["p"])
    assert (table["tests"] == len(known)).all()
    # Three lengths of each side for three costs; of the reference's steps, the arm covers 16 alone.
    assert len(known) == 3 * 6 + 4
    values = sweep(lengths).query("arm == 'progressive_8'")["dice_foreground_mean"] - 0.5
    chosen = known.query("cost == 'training_kwh' and trained == 'arm' and steps == 8")
    (row,) = chosen.to_dict("records")
    assert row["p"] == pytest.approx(ttest_1samp(values, 0).pvalue)
    assert known["p_holm"].min() == pytest.approx(22 * known["p"].min())
    rows = table[table["cost"] == "training_gflop"]
    assert (rows["ci_low"] > 0).all()
    assert crossing(rows, 3) == "undecided up to 16.0 GFLOP"
    text = printed(sweep(lengths))
    assert "have an interval (t: 22)" in " ".join(text.split())
    assert " \\* " not in text.split("- Mean")[0]
    sure = printed(sweep(lengths, step=0.0001))
    assert " \\* " in sure.split("- Mean")[0]


def targets(runs):
    table = measure_final_targets(runs, "constant_4")
    return table[table["cost"] == "training_gflop"].set_index(["arm", "level"])


def test_targets_are_shares_of_the_final_dice_of_the_longest_reference():
    assert list(measure_final_targets(sweep(), "constant_4").columns) == TARGETS
    rows = targets(sweep())
    assert rows.loc[("progressive", 1.0), "target"] == pytest.approx(0.8)
    share = (0.8 - 0.52) / (0.87 - 0.52)
    assert rows.loc[("progressive", 1.0), "amount"] == pytest.approx(2 * 4**share)
    assert rows.loc[("progressive", 1.0), "relative"] == pytest.approx(2 * 4**share / 16)
    assert rows.loc[("constant", 1.0), "relative"] == 1
    rows = targets(sweep(((8, 0.5, 2.0), (32, 0.785, 8.0))))
    assert rows.loc[("progressive", 1.0), "reached"] == 2
    assert np.isfinite(rows.loc[("progressive", 1.0), "relative"])
    never = targets(sweep(((8, 0.5, 2.0), (32, 0.7, 8.0))))
    assert np.isinf(never.loc["progressive", "relative"]).all()


def test_less_than_the_shortest_training_is_a_bound_or_unknown():
    rows = targets(sweep(((8, 0.9, 2.0), (32, 0.95, 8.0))))
    assert rows.loc[("progressive", 1.0), "at_most"]
    assert rows.loc[("progressive", 1.0), "relative"] == pytest.approx(2 / 16)
    flat = sweep(constant=((4, 0.8, 1.0), (64, 0.8, 16.0)))
    assert targets(flat).loc["progressive", "relative"].isna().all()


def printed(runs):
    return to_markdown(
        *(measure(runs, "constant_64") for measure in (measure_differences, measure_final_targets)),
        runs,
    )


def test_the_tables_are_printed():
    text = printed(sweep())
    assert "| progressive | 0.520 ± 0.010 | 8.00 steps " in " ".join(text.split())
    assert "0.520 ± 0.010" in text
    assert "-0.080 [-0.105, -0.055]" in text
    assert "over the seeds (Student's t)" in text
    assert "| arm, 8 steps" in text and "| reference, 16 steps" in text
    assert "One training each" in printed(sweep(seeds=(1,)))
    assert "| ≤ 0.19" in printed(sweep(((8, 0.9, 3.0), (32, 0.95, 8.0))))


def test_lengths_with_equal_epochs_are_told_apart():
    """The authors shorten a training by its iterations per epoch."""
    runs = sweep().assign(epochs=220)
    assert differences(runs).index.tolist() == [8, 32]
    assert differences(runs, "reference").index.tolist() == [4, 16, 64]
    assert " ".join(printed(runs).split()).count("| progressive | 0.") == 2


def test_fewer_trainings_than_there_are_seeds_are_counted():
    runs = sweep()
    first = (runs["arm"] == "progressive_8") & (runs["seed"] == 1)
    runs.loc[first, "training_kwh"] = 0.5
    assert "(n = 2)" in printed(runs)


def test_a_sweep_of_the_reference_alone_or_without_dice_has_no_differences():
    runs = sweep()
    alone = printed(runs[runs["arm"].str.startswith("constant")])
    assert "Dice and costs" in alone
    assert "minus that of constant at equal" not in alone.split("- Mean")[0]
    assert "Dice and costs" in printed(runs.assign(dice_foreground_mean=math.nan))


def test_a_reference_without_a_run_is_named():
    for measure in (measure_differences, measure_final_targets):
        with pytest.raises(UserError, match="other_8, which has no run"):
            measure(sweep(), "other_8")
