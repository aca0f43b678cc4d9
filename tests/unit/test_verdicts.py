"""Verdicts on made-up differences: by hand, against scipy's tests, and by simulated studies."""

import math
import re
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_1samp

from workflow_scripts.common.paired_statistics import Component, half_width
from workflow_scripts.evaluation.verdicts import change, decide, mean_change, verdict

ROOT = Path(__file__).parents[2]
DATA = ROOT / "docs/results/data"
NAN = math.nan
WRONG = {
    ("better",): 0.0,
    ("kept", "better"): -1.0,
    ("worse", "lost"): 0.0,
    ("lost",): -1.0,
}
"""Verdicts that are wrong at a true change (in margins), where they are given most often."""
STUDIES = 200


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.001, 0.03, "better"),
        (0.0, 0.03, "kept"),
        (-0.009, 0.03, "kept"),
        (-0.009, -0.001, "kept"),
        (-0.02, -0.001, "worse"),
        (-0.03, -0.011, "lost"),
        (-0.01, 0.001, "undecided"),
        (-0.02, 0.0, "undecided"),
        (-0.5, 0.5, "undecided"),
        (NAN, NAN, "undecided"),
    ],
)
def test_a_verdict_by_where_the_interval_lies(low, high, expected):
    assert verdict(low, high, margin=0.01) == expected


def made_up(rng, mean, spread_of_seeds, spread_of_cases, cases, seeds):
    """Return differences, cases × seeds."""
    return (
        mean + rng.normal(0, spread_of_seeds, seeds) + rng.normal(0, spread_of_cases, (cases, 1))
    ) + rng.normal(0, 0.5 * spread_of_cases, (cases, seeds))


def test_with_seeds_alone_kept_and_lost_are_scipys_one_sided_tests_at_the_margin():
    rng = np.random.default_rng(4)
    found = set()
    for mean in np.linspace(-0.03, 0.02, 26):
        of_seeds = rng.normal(mean, 0.004, 4)
        one = change(np.tile(of_seeds, (8, 1)), seed=1)
        assert (one.low, one.high) == pytest.approx(one.students())
        result = verdict(one.low, one.high, 0.01)
        above = ttest_1samp(of_seeds, -0.01, alternative="greater").pvalue < 0.025
        below = ttest_1samp(of_seeds, -0.01, alternative="less").pvalue < 0.025
        positive = ttest_1samp(of_seeds, 0, alternative="greater").pvalue < 0.025
        assert (result in ("kept", "better"), result == "lost") == (above, below)
        assert (result == "better") == positive
        found.add(result)
    assert found == {"better", "kept", "undecided", "lost"} | (found & {"worse"})


def measured_spreads():
    """Return the standard deviations measured on Task04 and ACDC: of seeds by task, and of cases.

    Those of seeds are medians over the arms that trained, as differences from the reference arm.
    Cases were kept for Task04 only.
    """
    runs = pd.read_csv(DATA / "budget_sweep_runs.csv")
    dice = runs.pivot(index=["task", "seed"], columns="arm", values="dice_foreground_mean")
    long = [arm for arm in dice if arm.endswith(("_84", "_56")) and arm != "constant_84"]
    of_seeds = dice[long].sub(dice["constant_84"], axis=0).groupby("task").std().median(axis=1)
    cases = pd.read_csv(DATA / "task04_adamw_cases.csv")
    whole = cases[cases["label"] != "merged"].groupby(["arm", "case"])["dice"].mean().unstack("arm")
    spread = whole.sub(whole["random"], axis=0).drop(columns="random").std().median()
    tasks = {"Task04": "Task04_Hippocampus", "ACDC": "Task142_ACDC"}
    return {name: of_seeds[task] for name, task in tasks.items()}, float(spread)


def error_rates(task, seeds, studies, rng_seed=6):
    """Return how often each verdict is given although it is wrong, at its worst true change.

    One fold of 52 cases (Task04) or 20 (ACDC), margin 0.01. With one seed: the verdict that the
    interval over cases would give.
    """
    of_seeds, of_cases = measured_spreads()
    cases = {"Task04": 52, "ACDC": 20}[task]
    rng = np.random.default_rng(rng_seed)
    results = {}
    for truth in set(WRONG.values()):
        results[truth] = []
        for _ in range(studies):
            values = made_up(rng, 0.01 * truth, of_seeds[task], of_cases, cases, seeds)
            one = change(values, seed=1)
            results[truth].append(verdict(*one.interval(0.05), 0.01))
    return {wrong: float(np.isin(results[truth], wrong).mean()) for wrong, truth in WRONG.items()}


def documented_rates():
    """Return the table of evidence.md: (task, seeds) -> verdict -> rate."""
    text = (ROOT / "docs/explanation/evidence.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (Task04|ACDC) \| (\d+) \| (.*) \|$", text, re.MULTILINE)
    return {
        (task, int(seeds)): dict(
            zip(WRONG, (float(n.strip(" %")) / 100 for n in rates.split("|")), strict=True)
        )
        for task, seeds, rates in rows
    }


@pytest.mark.parametrize(("task", "seeds"), list(product(("Task04", "ACDC"), (1, 3, 5, 10))))
def test_the_error_rate_of_each_verdict_is_what_the_page_says(task, seeds, monkeypatch):
    monkeypatch.setattr("workflow_scripts.evaluation.verdicts.interval", lambda *_: (NAN, NAN))
    documented = documented_rates()[task, seeds]
    measured = error_rates(task, seeds, STUDIES)
    for name, rate in measured.items():
        bound = 3.5 * math.sqrt(max(documented[name], 0.02) / STUDIES)
        assert rate == pytest.approx(documented[name], abs=bound), name
        assert seeds == 1 or documented[name] <= 0.03, name
    # Given one seed, a verdict would be wrong far more often than one that covers new seeds.
    if seeds == 1 and task == "ACDC":
        assert min(measured.values()) > 0.05


def test_the_mean_of_tasks_counts_a_seed_once_and_adds_the_variances_of_cases():
    rng = np.random.default_rng(1)
    tables = [made_up(rng, 0.01, 0.004, 0.02, cases, 4) for cases in (9, 14)]
    one, two = (change(table, seed=1) for table in tables)
    both = mean_change([one, two])
    assert both.mean == pytest.approx((one.mean + two.mean) / 2)
    of_seeds = (tables[0].mean(axis=0) + tables[1].mean(axis=0)) / 2
    cases, seeds = both.components
    assert cases.variance == pytest.approx(
        (one.components[0].variance + two.components[0].variance) / 4
    )
    assert seeds == pytest.approx(Component(of_seeds.var(ddof=1) / 4, 3))
    assert both.high - both.mean == pytest.approx(half_width(both.components))
    assert both.students() == pytest.approx(ttest_1samp(of_seeds, 0).confidence_interval())
    short = change(tables[0][:, :2], seed=1)
    assert math.isnan(mean_change([short, two]).low), "tasks with different seeds"


def table_of(differences, seeds=(1, 2, 3), folds=1):
    """Return cases.csv: task -> arm -> differences (cases × seeds) from `constant`."""
    rows = []
    for task, arms in differences.items():
        for arm, values in ({"constant": None} | arms).items():
            values = np.zeros((12, len(seeds))) if values is None else np.asarray(values)
            for (case, place), value in np.ndenumerate(values):
                about = {"task": task, "arm": arm, "fold": case % folds, "seed": seeds[place]}
                rows += [
                    about | {"case": f"c{case}", "label": label, "dice": 0.8 + value + offset}
                    for label, offset in (("1", 0.05), ("2", -0.05))
                ]
    return pd.DataFrame(rows)


def constant_change(value, seeds=3):
    return np.full((12, seeds), value) + np.linspace(-1e-4, 1e-4, seeds)


def rows_of(table):
    return {(row.task, row.arm): row for row in table.itertuples()}


def test_verdicts_of_a_study_by_task_and_over_tasks():
    cases = table_of(
        {
            "A": {"same": constant_change(0.0), "less": constant_change(-0.02)},
            "B": {"same": constant_change(-0.008), "less": constant_change(-0.008)},
        }
    )
    margins = {"A": 0.01, "B": 0.005}
    arms = ["constant", "same", "less"]
    rows = rows_of(decide(cases, "constant", ["A", "B"], arms, margins, seed=1))
    assert {key: row.verdict for key, row in rows.items()} == {
        ("A", "same"): "kept",
        ("A", "less"): "lost",
        ("B", "same"): "lost",
        ("B", "less"): "lost",
        ("overall", "same"): "kept",
        ("overall", "less"): "lost",
    }
    assert rows["overall", "same"].margin == pytest.approx(0.0075)
    assert rows["overall", "less"].difference == pytest.approx(-0.014)
    assert (rows["A", "same"].seeds, rows["A", "same"].cases) == (3, 12)


def test_one_seed_gives_no_verdict_but_says_what_these_trainings_show():
    cases = table_of({"A": {"less": constant_change(-0.02, 1)}}, seeds=(1,))
    row = rows_of(decide(cases, "constant", ["A"], ["constant", "less"], {"A": 0.01}, seed=1))
    row = row["A", "less"]
    assert (row.verdict, row.reason, row.given_seeds) == ("undecided", "one seed", "lost")
    assert not row.covers_seeds
    assert math.isnan(row.t_low)


def test_few_cases_give_no_verdict():
    cases = table_of({"A": {"less": constant_change(-0.02)}})
    few = cases[cases["case"].isin(["c0", "c1", "c2"])]
    (row,) = rows_of(
        decide(few, "constant", ["A"], ["constant", "less"], {"A": 0.01}, seed=1)
    ).values()
    assert (row.verdict, row.joint, row.reason) == ("undecided", "undecided", "fewer than 6 cases")


def test_a_network_that_has_not_learned_has_a_warning_and_spoils_the_mean():
    cases = table_of({task: {"same": constant_change(0.0)} for task in "AB"})
    margins = {"A": 0.01, "B": 0.01}
    warnings = {("B", "constant"): "constant has not trained"}
    table = decide(cases, "constant", ["A", "B"], ["constant", "same"], margins, 1, warnings)
    rows = rows_of(table)
    assert rows["A", "same"].verdict == "kept"
    assert (rows["B", "same"].verdict, rows["B", "same"].warning) == (
        "none",
        "constant has not trained",
    )
    assert rows["overall", "same"].verdict == "none"
    assert "on B" in rows["overall", "same"].warning


def test_joint_verdicts_are_those_of_wider_intervals():
    """t of 2 degrees of freedom: 4.30 at 0.05, 6.21 at 0.05 / 2, 8.86 at 0.05 / 4."""
    of_seeds = 0.005 + 0.004 * np.array([-1.0, 0.0, 1.0])  # standard error 0.00231
    values = np.tile(of_seeds, (12, 1))
    arms = {f"arm{number}": values for number in range(4)}
    for count, joint in ((1, "kept"), (2, "kept"), (4, "undecided")):
        chosen = dict(list(arms.items())[:count])
        cases = table_of({"A": chosen})
        table = decide(cases, "constant", ["A"], ["constant", *chosen], {"A": 0.01}, seed=1)
        assert set(table["verdict"]) == {"kept"}
        assert set(table["joint"]) == {joint}, count


def test_a_case_that_one_arm_lacks_is_left_out():
    values = constant_change(-0.02)
    whole = change(values, seed=1)
    lacking = values.copy()
    lacking[3, :] = NAN
    found = change(lacking, seed=1)
    assert (found.cases, found.mean) == (11, pytest.approx(whole.mean))
    assert change(np.full((12, 3), NAN), seed=1).cases == 0
