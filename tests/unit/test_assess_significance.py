"""The table of significance, from the cases of a made-up study."""

import math

import pandas as pd
import pytest

from helpers.fake_study import FakeStudy
from workflow_scripts.common.errors import UserError
from workflow_scripts.evaluation.assess_significance import COLUMNS, assess
from workflow_scripts.evaluation.collect_results import collect_results

NAN = math.nan
TASK = "Task98_Fake"


def assessed(study, reference="constant"):
    path = study.root / "cases.csv"
    collect_results(study.write().folders(), {"cases": path})
    cases = pd.read_csv(path, dtype={"case": str, "label": str})
    return assess(cases, reference, list(study.tasks), list(study.arms), seed=1)


def better(study, gain):
    """Set the Dice of `progressive`, label 1, to that of `constant` plus `gain(case)`."""
    study.dice = {
        (task, arm, fold, seed): {
            f"case_{fold}{n:02d}": {"1": 0.5 + (gain(n) if arm == "progressive" else 0), "2": 0.4}
            for n in range(study.cases)
        }
        for task, arm, fold, seed in study.folders()
    }
    return study


def test_cases_of_all_folds_are_paired_for_foreground_and_labels(tmp_path):
    study = FakeStudy(tmp_path, arms=("constant", "progressive"), folds=(0, 1), cases=5)
    table = assessed(better(study, lambda n: 0.01 * (n + 1)))
    assert table.columns.tolist() == COLUMNS
    assert table["measure"].tolist() == ["dice"] * 3 + ["nsd"] * 3
    assert table["label"].tolist() == ["", "1", "2"] * 2
    foreground, first, second = (table.iloc[n] for n in range(3))
    assert (first["pairs"], first["folds"]) == (10, 2)
    assert first["difference"] == pytest.approx(0.03)
    assert foreground["difference"] == pytest.approx(0.015)
    assert second["note"] == "no pair differs"
    assert first["rank_biserial"] == 1
    assert table.loc[4, "difference"] == pytest.approx(0.015)  # the made-up NSD is (1 + Dice) / 2


def test_holm_is_over_arms_and_tasks_for_each_measure_and_level(tmp_path):
    study = FakeStudy(tmp_path, tasks=("Task97_A", TASK), folds=(0, 1, 2, 3), cases=5)
    table = assessed(study)
    tests = table.groupby(["measure", table["label"] == ""])["tests"].unique().map(list)
    assert tests.tolist() == [[8], [4], [8], [4]]
    assert (table["p_holm"] >= table["p"]).all()
    assert table["task"].tolist()[:4] == ["Task97_A"] * 2 + [TASK] * 2
    decided = table["p_holm"] < 0.05
    assert (table["significant"] == decided.map({True: "yes", False: "no"})).all()


def test_few_cases_give_a_note_and_no_p_value(tmp_path):
    table = assessed(FakeStudy(tmp_path, folds=(0,), cases=3))
    assert table["p"].isna().all()
    assert set(table["significant"]) == {""}
    assert set(table["note"]) == {"too few cases for a test"}
    assert table["difference"].notna().all()


def test_a_label_that_one_arm_made_up_counts_against_it(tmp_path):
    study = FakeStudy(tmp_path, arms=("constant", "progressive"), folds=(0,), cases=1)
    study.dice = {
        (TASK, "constant", 0, 1): {"a": {"1": 0.8, "2": NAN}},
        (TASK, "progressive", 0, 1): {"a": {"1": 0.8, "2": 0.0}},
    }
    table = assessed(study)
    assert table.loc[0, "difference"] == pytest.approx(-0.4)
    assert (table.loc[2, "pairs"], table.loc[2, "left_out"]) == (0, 1)


def test_a_task_without_nsd_has_no_tests_of_it(tmp_path):
    study = FakeStudy(tmp_path, tasks=("Task97_A", TASK), folds=(0, 1), cases=5).write()
    for key in study.folders():
        if key[0] == "Task97_A":
            path = study.folder(key) / "surface.csv"
            pd.read_csv(path).assign(nsd=None, tolerance_mm=None).to_csv(path, index=False)
    collect_results(study.folders(), {"cases": tmp_path / "cases.csv"})
    cases = pd.read_csv(tmp_path / "cases.csv", dtype={"case": str, "label": str})
    table = assess(cases, "constant", list(study.tasks), list(study.arms), seed=1)
    nsd = table[(table["measure"] == "nsd") & (table["label"] == "")]
    assert nsd["note"].tolist() == ["no pairs", "no pairs", "", ""]
    assert nsd["tests"].unique().tolist() == [2]


def test_the_reference_arm_alone_gives_an_empty_table(tmp_path):
    table = assessed(FakeStudy(tmp_path, arms=("constant",)))
    assert table.empty
    assert table.columns.tolist() == COLUMNS


def test_reference_arm_must_exist(tmp_path):
    with pytest.raises(UserError, match="scale_space"):
        assessed(FakeStudy(tmp_path), reference="scale_space")


def test_seeds_are_averaged_for_each_case(tmp_path):
    study = FakeStudy(tmp_path, arms=("constant", "progressive"), seeds=(1, 2, 3), cases=5)
    gains = {1: 0.01, 2: 0.02, 3: 0.06}
    study.dice = {}
    for key in study.folders():
        _, arm, fold, seed = key
        gain = gains[seed] if arm == "progressive" else 0.0
        values = {f"case_{fold}{n:02d}": 0.5 + gain * (1 + n / 10) for n in range(5)}
        study.dice[key] = {case: {"1": dice, "2": dice} for case, dice in values.items()}
    row = assessed(study).iloc[0]
    assert (row["folds"], row["seeds"], row["pairs"]) == (2, 3, 10)
    assert row["difference"] == pytest.approx(0.03 * 1.2)
    assert row["ci_low"] < 0.02 < row["difference"] < row["ci_high"], "seeds widen it"
    # Three seeds: mean 0.03, standard deviation 0.026; t with 2 degrees of freedom at 0.982.
    assert row["new_seed_agrees"] == pytest.approx(0.785, abs=0.002)
