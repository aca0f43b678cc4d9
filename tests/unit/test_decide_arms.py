"""Decisions of a MADE-UP study: costs, warnings, what would settle them, and the words."""

import math

import numpy as np
import pandas as pd
import pytest

from helpers.fake_study import FakeStudy
from workflow_scripts.common.files import read_csv
from workflow_scripts.evaluation.collect_results import collect_results
from workflow_scripts.evaluation.compare_arms import compare_arms
from workflow_scripts.evaluation.decide_arms import decide_arms
from workflow_scripts.evaluation.learning_checks import check_learning, rise_at_end
from workflow_scripts.evaluation.verdict_texts import (
    duration,
    headline,
    ranks_markdown,
    signed,
    to_markdown,
)

COMPARISON = {"margin": 0.01, "task_margins": {}, "cost": "time"}
ARMS = ("constant", "progressive", "random")


def made_up_dice(study, effects, spread=0.0005):
    """Return Dice of every run: arms differ by `effects`, seeds by `spread`."""
    rng = np.random.default_rng(1)
    dice = {}
    for key in study.folders():
        effect = effects[key[1]] + rng.normal(0, spread)
        cases = {f"case_{key[2]}{case:02d}": 0.7 + 0.01 * case + effect for case in range(8)}
        dice[key] = {case: {"1": value, "2": value} for case, value in cases.items()}
    return dice


def decided(root, effects=None, spread=0.0005, comparison=None, **settings):
    """Return verdicts, ranks and runs of a made-up study."""
    study = FakeStudy(
        root, arms=ARMS, **{"seeds": (1, 2, 3), "epochs": 12, "folds": (0,)} | settings
    )
    study.dice = made_up_dice(study, effects or dict.fromkeys(ARMS, 0.0), spread)
    study.write()
    names = ("runs", "cases", "epochs", "stages", "energy")
    collect_results(study.folders(), {name: root / f"{name}.csv" for name in names})
    outputs = {ending: root / f"comparison.{ending}" for ending in ("csv", "md", "tex")}
    tasks, arms = list(study.tasks), list(study.arms)
    compare_arms(root / "runs.csv", root / "cases.csv", outputs, "constant", tasks, arms)
    tables = {name: read_csv(root / f"{name}.csv") for name in ("runs", "cases", "epochs")}
    tables["comparison"] = read_csv(root / "comparison.csv")
    settled = COMPARISON | (comparison or {})
    return *decide_arms(tables, "constant", tasks, arms, settled, seed=1), tables["runs"]


def test_the_answer_names_the_arm_that_keeps_dice_and_saves_most(tmp_path):
    effects = {"constant": 0.0, "progressive": 0.0, "random": -0.05}
    table, ranks, runs = decided(tmp_path, effects)
    assert list(table["verdict"]) == ["kept", "lost"]
    text = to_markdown(table, runs, "constant", "time")
    saved = table["time"][0]
    assert 0.3 < saved < 0.9
    assert text.startswith(
        f"**Use progressive**: Dice kept within 0.01, at {saved:.2f} of the time"
    )
    assert "1 task, 1 fold × 3 seeds and 8 validation cases" in text
    lines = [line for line in text.splitlines() if line.startswith("- ")]
    assert [line.split("**")[1] for line in lines] == ["progressive", "random"]
    assert "✗ **random**: Dice lost, by more than 0.01" in text
    assert "Also jointly for all 2 arms" in text
    assert "| Task98_Fake | " in ranks_markdown(ranks)


def test_several_tasks_have_a_table_of_marks_and_the_mean_answers(tmp_path):
    tasks = ("Task97_A", "Task98_B")
    table, _, runs = decided(tmp_path, tasks=tasks, comparison={"task_margins": {"Task97_A": 0.02}})
    assert list(table["task"].unique()) == [*tasks, "overall"]
    margins = table.drop_duplicates("task").set_index("task")["margin"]
    assert margins.to_dict() == {"Task97_A": 0.02, "Task98_B": 0.01, "overall": 0.015}
    rows = table[table["arm"] == "random"].set_index("task")
    assert rows.loc["overall", "time"] == pytest.approx(rows.loc[list(tasks), "time"].mean())
    text = to_markdown(table, runs, "constant", "time")
    assert "| Task97_A | ✓           | ✓      |" in text
    assert "| mean     | ✓           | ✓      |" in text
    assert "By task: 2 kept." in text


def test_one_seed_asks_for_two_more_and_says_what_they_cost(tmp_path):
    table, ranks, runs = decided(tmp_path, seeds=(1,))
    row = table.iloc[0]
    assert (row["needed_seeds"], row["needed_trainings"]) == (3, 4)
    both = runs[runs["arm"].isin(["constant", "progressive"])]
    of_arm = (both["training_seconds"] + both["validation_seconds"]).groupby(both["arm"]).mean()
    assert row["needed_seconds"] == pytest.approx(2 * of_arm.sum())
    text = to_markdown(table, runs, "constant", "time")
    assert text.startswith("**No arm is shown to keep the Dice of constant** within 0.01")
    assert "with it\n" in text or "with it alone" in text
    assert "2 further seeds" in text
    assert "unknown: one seed" in ranks_markdown(ranks)


def test_what_is_undecided_has_a_design_and_a_cost(tmp_path):
    table, _, runs = decided(tmp_path, spread=0.012)
    open_ = table[table["verdict"] == "undecided"]
    assert not open_.empty
    row = open_.iloc[0]
    assert row["needed_by"] in ("seeds", "folds")
    further = row["needed_seeds"] * row["needed_folds"] - 3
    assert row["needed_trainings"] == 2 * further
    assert "a verdict has a probability of" in to_markdown(table, runs, "constant", "time")
    assert table.loc[table["verdict"] != "undecided", "needed_seeds"].isna().all()


def test_networks_that_have_not_trained_get_a_warning_instead_of_a_verdict(tmp_path):
    table, ranks, runs = decided(tmp_path, {"constant": 0.0, "progressive": -0.69, "random": 0.0})
    rows = table.set_index("arm")
    assert rows.loc["progressive", "verdict"] == "none"
    assert "not trained" in rows.loc["progressive", "warning"]
    assert rows.loc["random", "verdict"] == "kept"
    assert "progressive" not in set(ranks["arm"])
    text = to_markdown(table, runs, "constant", "time")
    assert "! **progressive**: no verdict, progressive has not trained" in text


def curve(values, arm="constant"):
    return pd.DataFrame({"task": "A", "arm": arm, "epoch": range(len(values))}).assign(
        pseudo_dice=values
    )


def test_a_reference_that_still_rises_steeply_is_warned_about():
    runs = pd.DataFrame({"task": "A", "arm": ["constant"], "dice_foreground_mean": [0.6]})
    rising = np.linspace(0.1, 0.7, 50)  # a fifth of it is 0.12
    warnings = check_learning(runs, curve(rising), "constant")
    assert list(warnings) == [("A", "constant")]
    flat = 0.8 * (1 - np.exp(-np.linspace(0, 9, 50)))
    assert check_learning(runs, curve(flat), "constant") == {}
    other = check_learning(runs.assign(arm="random"), curve(rising, "random"), "constant")
    assert other == {}, "only the reference must have flattened"


def test_the_rise_at_the_end_by_hand():
    assert rise_at_end(pd.Series([0.0] * 8 + [0.1, 0.2, 0.3])) == pytest.approx(0.2)
    noise = pd.Series(0.8 + 0.02 * np.random.default_rng(0).normal(size=100))
    assert rise_at_end(noise) == 0
    assert rise_at_end(pd.Series([0.1, 0.9])) == 0


def row(arm, verdict, time, joint=None, difference=0.0):
    about = {"task": "A", "arm": arm, "reference_arm": "constant", "verdict": verdict}
    about |= {"joint": joint or verdict, "difference": difference, "time": time, "margin": 0.01}
    return about | {"ci_low": -0.001, "ci_high": 0.001, "warning": f"{arm} has not trained"}


@pytest.mark.parametrize(
    ("rows", "start"),
    [
        ([row("a", "kept", 0.5), row("b", "kept", 0.4)], "**Use b**"),
        ([row("a", "kept", 0.5), row("b", "kept", 0.4, "undecided")], "**Use a**"),
        ([row("a", "kept", 0.501), row("b", "better", 0.502)], "**Use b**"),
        ([row("a", "kept", 1.3), row("b", "better", 1.2)], "**Use b**"),
        ([row("a", "kept", 1.3), row("b", "lost", 0.2)], "**Stay with constant**"),
        ([row("a", "undecided", 0.3), row("b", "lost", 0.2)], "**No arm is shown"),
        ([row("a", "none", 0.3)], "**No verdict**: a has not trained"),
        ([row("a", "kept", math.nan)], "**Stay with constant**"),
    ],
)
def test_the_headline(rows, start):
    assert headline(pd.DataFrame(rows), "time").startswith(start)


def test_a_headline_that_no_joint_verdict_supports_says_so():
    rows = [row("a", "kept", 0.5, "undecided"), row("b", "lost", 0.4)]
    assert "not sure as the best" in headline(pd.DataFrame(rows), "time")


def test_numbers_in_words():
    assert [signed(value) for value in (0.0123, -0.0123, -0.0001)] == ["+0.012", "−0.012", "0.000"]
    assert [duration(seconds) for seconds in (90, 1800, 14400)] == ["90.0 s", "30.0 min", "4.00 h"]
