"""The tables and sentences of docs/results agree with the shipped rows."""

import re
from itertools import product

import pandas as pd
import pytest
from scipy.stats import ttest_1samp

from helpers.tree import ROOT
from workflow_scripts.evaluation.budget_page import crossing
from workflow_scripts.evaluation.budget_statistics import (
    COSTS,
    LEVELS,
    measure_differences,
    measure_final_targets,
)
from workflow_scripts.records.run_reader import without_length
from workflow_scripts.trainers.curricula.schedules.patch_plan import PatchPlan
from workflow_scripts.trainers.curricula.schedules.planner import (
    iterations_of_stages,
    plan_schedule,
)
from workflow_scripts.trainers.curricula.schedules.settings import (
    CurriculumSettings,
    TrainingLength,
)

DATA = ROOT / "docs/results/data"
SWEEP, NINE, SPEED = (
    ROOT / f"docs/results/{name}.md" for name in ("budget_sweep", "task04", "performance")
)
TASK04, ACDC = "Task04_Hippocampus", "Task142_ACDC"
DICE = {"mean": "mean", "sd": "std"}
PLANS = {TASK04: PatchPlan((32, 40, 32), (3, 3, 3), 2), ACDC: PatchPlan((8, 80, 80), (1, 4, 4), 2)}


def rows(name):
    return pd.read_csv(DATA / f"{name}.csv")


def tables(page):
    """Return the Markdown tables of a page, in order: header, then rows, cells as plain text."""
    blocks = re.findall(r"(?:^\|.*\|\n)+", page.read_text(encoding="utf-8"), re.M)
    parsed = []
    for block in blocks:
        lines = [line.strip("|").split("|") for line in block.strip().splitlines()]
        cells = [[cell.strip().replace("`", "") for cell in line] for line in lines]
        parsed.append([cells[0], *cells[2:]])
    return parsed


def table_with(page, *header):
    """Return the tables whose header contains these names."""
    return [found for found in tables(page) if set(header) <= set(found[0])]


def test_the_means_of_the_sweep_are_those_of_the_rows():
    runs = rows("budget_sweep_runs")
    runs["arm"] = runs["arm"].map(without_length)
    groups = runs.groupby(["task", "arm", "training_steps"], sort=False)
    costs = {cost: (cost, "mean") for cost in COSTS if cost != "training_steps"}
    dice = {f"dice_{name}": ("dice_foreground_mean", of) for name, of in DICE.items()}
    wanted = groups.agg(epochs=("epochs", "first"), **dice, **costs).reset_index()
    found = rows("budget_sweep_means")
    digits = {"dice_mean": 4, "dice_sd": 4} | dict(zip(costs, (1, 6, 0), strict=True))
    for column, places in digits.items():
        assert (found[column] - wanted[column]).abs().max() <= 0.5001 * 10**-places
    exact = ["task", "arm", "training_steps", "epochs"]
    pd.testing.assert_frame_equal(found[exact], wanted[exact])


def test_the_page_shows_dice_and_energy_of_the_longer_trainings():
    runs = rows("budget_sweep_runs").query("epochs > 22")
    runs["arm"] = runs["arm"].map(without_length)
    (printed,) = table_with(SWEEP, "Dice, Task04", "energy, ACDC")
    assert {line[0] for line in printed[1:]} == set(runs["arm"])
    for arm, *shown in printed[1:]:
        wanted = []
        for _, of_task in runs.groupby("task", sort=False):
            kwh = of_task.groupby("arm")["training_kwh"].mean()
            dice = of_task[of_task["arm"] == arm]["dice_foreground_mean"]
            spread = f"{dice.mean():.3f} ± {dice.std():.3f}"
            wanted += [spread, f"{kwh[arm] / kwh['constant']:.2f}"]
        assert shown == wanted


def test_costs_to_reach_a_dice_are_those_of_the_rows():
    measured = measure_final_targets(rows("budget_sweep_runs"), "constant_84")
    wanted = measured.query("arm != 'constant'").assign(relative=lambda t: t["relative"].round(2))
    found = rows("budget_sweep_targets")
    assert len(found) == 2 * 4 * len(LEVELS) * len(COSTS)
    wanted = wanted[found.columns].reset_index(drop=True)
    pd.testing.assert_frame_equal(found, wanted, check_dtype=False)


def test_the_folds_are_those_of_the_rows():
    runs = rows("budget_sweep_folds_runs")
    runs["arm"] = runs["arm"].map(without_length)
    page = SWEEP.read_text(encoding="utf-8")
    found = dict(re.findall(r"`(\w+)` (0\.\d{3} ± 0\.\d{3})", page))
    dice = runs.groupby("arm")["dice_foreground_mean"]
    assert found == {arm: f"{of.mean():.3f} ± {of.std():.3f}" for arm, of in dice}
    by_fold = runs.pivot(index="fold", columns="arm", values="dice_foreground_mean")
    assert set(by_fold.idxmax(axis=1)) == {"low_frequency"}
    ahead = by_fold.gt(by_fold["constant"], axis=0).drop(columns="low_frequency")
    assert [key for key, value in ahead.stack().items() if value] == [
        (4, "progressive_performance")
    ]


def test_the_page_of_speed_shows_what_was_measured():
    bench = rows("bench").set_index(["figure", "task"])
    goals = bench["goal"].dropna().str.extract(r"(at most|at least) ([\d.]+)")
    limits, measured = goals[1].astype(float), bench.loc[goals.index, "measured"]
    met = (measured <= limits).where(goals[0] == "at most", measured >= limits)
    assert list(met) == list(bench.loc[goals.index, "met"])
    text = " ".join(SPEED.read_text(encoding="utf-8").split())
    assert f"{met.sum()} of {len(met)} goals are met" in text
    (printed,) = table_with(SPEED, "figure", "demo", "goal")
    for figure, *shown, goal in printed[1:]:
        of_figure = bench.loc[figure]
        assert shown == [f"{value:.3f}" for value in of_figure["measured"]]
        assert set(of_figure["goal"]) == {goal}
    loading = rows("bench_loading").set_index("arm")["largest_ratio"]
    performance = loading.index == "progressive_performance"
    orders = rows("memory_format")
    few = orders["features"].isin(["8 to 64", "12 to 96"])
    ranges = [loading[~performance], loading[performance]]
    ranges += [orders.loc[which, ["bf16", "fp32"]].stack() for which in (few, ~few)]
    for values in ranges:
        assert f"{values.min():.2f} to {values.max():.2f}" in text


def test_the_shares_of_the_planned_patch_are_those_of_the_schedules():
    (printed,) = table_with(SWEEP, "share of the epochs at the planned patch")
    for arms, *shares in printed[1:]:
        found = []
        for task, epochs in [*product((TASK04, ACDC), (22, 84)), (TASK04, 1000), (ACDC, 1000)]:
            settings = CurriculumSettings(curriculum=arms.split(",")[0])
            schedule = plan_schedule(PLANS[task], TrainingLength(epochs, 1, 1), settings)
            found.append(round(100 * iterations_of_stages(schedule)[-1] / epochs))
        last = sorted({*found[4:]})
        assert shares[:4] == [f"{share} %" for share in found[:4]]
        assert shares[4] == " to ".join(map(str, last)) + " %"


def printed_difference(differences):
    if len(differences) < 2:
        return f"{differences.mean():+.3f}".replace("-", "−")
    low, high = ttest_1samp(differences, 0).confidence_interval(0.95)
    return f"{differences.mean():+.3f} ({low:+.3f} to {high:+.3f})".replace("-", "−")


@pytest.mark.parametrize(
    ("number", "name"), [(0, "task04_runs"), (1, "task04_adamw_runs"), (2, "task04_2d_runs")]
)
def test_the_nine_arms_are_those_of_the_rows(number, name):
    runs = rows(name).set_index("seed")
    reference = runs[runs["arm"] == "constant"]
    printed = table_with(NINE, "arm", "steps", "TFLOP")[number]
    assert {line[0] for line in printed[1:]} == set(runs["arm"])
    for line in printed[1:]:
        row = dict(zip(printed[0], line, strict=True))
        of_arm = runs[runs["arm"] == row["arm"]]
        dice = of_arm["dice_foreground_mean"]
        spread = f" ± {dice.std():.3f}" if len(dice) > 1 else ""
        assert row["Dice"] == f"{dice.mean():.3f}{spread}"
        assert row.get("seeds", "3") == str(len(dice))
        assert row["steps"] == f"{of_arm['training_steps'].iloc[0]:,}"
        if "merged foreground" in row:
            merged, confused = (
                of_arm[name].mean() for name in ("dice_merged_foreground", "confused_share")
            )
            assert row["merged foreground"] == f"{merged:.3f}"
            assert row["confused"] == f"{100 * confused:.1f} %"
            assert row["TFLOP"] == f"{of_arm['training_gflop'].mean() / 1000:.1f}"
        if row["arm"] != "constant" and len(reference):
            difference = (dice - reference["dice_foreground_mean"]).dropna()
            assert row["difference (95 % interval)"] == printed_difference(difference)
        for column, cost, scale, digits in (
            ("train s", "training_seconds", 1, 0),
            ("Wh", "training_kwh", 1000, 2),
            ("TFLOP", "training_gflop", 1e-3, 1),
        ):
            if column in row and (column != "TFLOP" or "Wh" in row):
                both = of_arm.index.intersection(reference.index)
                ratio = of_arm.loc[both, cost].mean() / reference.loc[both, cost].mean()
                mean = of_arm[cost].mean() * scale
                assert row[column] == f"{mean:.{digits}f} ({ratio:.2f})"


def test_the_page_names_the_differences_of_the_sweep_that_remain_significant():
    found = measure_differences(rows("budget_sweep_runs"), "constant_84")
    page = SWEEP.read_text(encoding="utf-8")
    assert set(found["tests"]) == {38}
    assert "38 comparisons of a task" in page
    # At equal steps, a row of the arm and one of the reference are the same comparison.
    known = found.dropna(subset=["p"])
    twice = known[known["cost"] == "training_steps"].duplicated(["task", "arm", "steps"])
    assert set(twice.groupby(known["task"]).sum()) == {6}
    assert "six appear twice" in page
    rest = found[found["p_holm"] < 0.05].drop_duplicates(["task", "arm", "cost", "steps"])
    significant = rest.set_index("arm")
    assert sorted(significant.index) == ["low_frequency", "progressive_efficiency"]
    assert set(significant["task"]) == {ACDC}
    assert [f"{p:.3f}" for p in significant["p_holm"]] == ["0.037"] * 2
    assert page.count("p = 0.037") == 2
    behind, ahead = (significant.loc[arm] for arm in ("progressive_efficiency", "low_frequency"))
    assert (behind["cost"], behind["steps"]) == ("training_steps", 704)
    assert f"{behind['difference']:.2f}" == "-0.27"
    assert (ahead["cost"], ahead["trained"]) == ("training_gflop", "arm")
    assert f"{ahead['difference']:.2f}" == "0.18"


def test_one_comparison_of_the_sweep_is_decided():
    found = measure_differences(rows("budget_sweep_runs"), "constant_84")
    texts = {
        key: crossing(group, 3) for key, group in found.groupby(["task", "arm", "cost"], sort=False)
    }
    decided = {key: text for key, text in texts.items() if "ahead" in text or "behind" in text}
    assert list(decided) == [(ACDC, "progressive_efficiency", "training_steps")]
    assert "behind up to 704 steps" in decided[ACDC, "progressive_efficiency", "training_steps"]
    page = " ".join(SWEEP.read_text(encoding="utf-8").split())
    assert "One comparison is decided: on ACDC, `progressive_efficiency` is behind at 704" in page


@pytest.mark.parametrize("study", ["task04_adamw", "task04_2d"])
def test_means_over_cases_are_those_of_the_trainings(study):
    runs, cases = rows(f"{study}_runs"), rows(f"{study}_cases")
    keys = ["arm", "seed"]
    labels = cases[cases["label"] != "merged"].groupby([*keys, "label"])["dice"].mean()
    merged = cases[cases["label"] == "merged"].groupby(keys)["dice"].mean()
    for row in runs.to_dict("records"):
        key = (row["arm"], row["seed"])
        assert labels.loc[key].mean() == pytest.approx(row["dice_foreground_mean"], abs=1e-6)
        assert merged.loc[key] == pytest.approx(row["dice_merged_foreground"], abs=1e-6)
    assert cases.groupby([*keys, "label"])["case"].nunique().eq(52).all()
