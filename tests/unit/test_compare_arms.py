"""The comparison of arms: numbers computed by hand, and tables that can be read."""

import math
import re
from itertools import product

import pandas as pd
import pytest

from helpers.fake_study import FakeStudy
from helpers.latex import compile_article
from workflow_scripts.common.errors import UserError
from workflow_scripts.common.formatting import TIME, number, unit
from workflow_scripts.evaluation.collect_results import collect_results
from workflow_scripts.evaluation.compare_arms import (
    compare,
    compare_arms,
    to_latex,
    to_markdown,
)
from workflow_scripts.evaluation.latex import latex_text
from workflow_scripts.records.run_reader import OVERALL

NAN = math.nan
A, B = "Task97_A", "Task98_B"


def tables(study):
    """Return runs and cases of a study, read back from CSV as in the rule."""
    outputs = {name: study.root / f"{name}.csv" for name in ("runs", "cases")}
    collect_results(study.write().folders(), outputs)
    return (
        pd.read_csv(outputs["runs"]),
        pd.read_csv(outputs["cases"], dtype={"label": str, "case": str}),
    )


def compared(study, reference="constant"):
    return compare(*tables(study), reference, study.tasks, study.arms)


def row(table, task, arm, label=""):
    chosen = table[(table["task"] == task) & (table["arm"] == arm) & (table["label"] == label)]
    assert len(chosen) == 1
    return chosen.iloc[0]


@pytest.fixture
def by_hand(tmp_path):
    """Two tasks, two arms, two folds of one case with two labels; costs are set afterwards."""
    study = FakeStudy(tmp_path, tasks=(A, B), arms=("constant", "progressive"), folds=(0, 1))
    values = {
        (A, "constant", 0, 1): (0.8, 0.6),
        (A, "constant", 1, 1): (0.9, 0.7),
        (A, "progressive", 0, 1): (0.9, 0.7),
        (A, "progressive", 1, 1): (0.8, 0.6),
        (B, "constant", 0, 1): (0.5, 0.5),
        (B, "constant", 1, 1): (0.5, 0.5),
        (B, "progressive", 0, 1): (0.4, 0.5),
        (B, "progressive", 1, 1): (0.4, 0.4),
    }
    study.dice = {key: {"x": {"1": a, "2": b}} for key, (a, b) in values.items()}
    runs, cases = tables(study)
    seconds = {(A, "constant"): 100, (A, "progressive"): 40}
    seconds |= {(B, "constant"): 300, (B, "progressive"): 120}
    base = [seconds[task, arm] for task, arm in zip(runs["task"], runs["arm"], strict=True)]
    runs["training_seconds"] = base + 10 * runs["fold"]
    return compare(runs, cases, "constant", study.tasks, study.arms)


def test_dice_by_hand(by_hand):
    constant = row(by_hand, A, "constant")
    assert constant["dice_mean"] == pytest.approx(0.75)
    assert constant["dice_std"] == pytest.approx(0.1 / math.sqrt(2))
    assert row(by_hand, A, "constant", "2")["dice_mean"] == pytest.approx(0.65)
    worse = row(by_hand, B, "progressive")
    assert worse["dice_mean"] == pytest.approx((0.45 + 0.4) / 2)
    assert worse["dice_relative"] == pytest.approx(0.425 / 0.5)
    assert worse["dice_difference"] == pytest.approx(-0.075)


def test_overall_dice_is_averaged_over_tasks_fold_by_fold(by_hand):
    overall = row(by_hand, OVERALL, "progressive")
    by_fold = pd.Series([(0.8 + 0.45) / 2, (0.7 + 0.4) / 2])
    assert overall["dice_mean"] == pytest.approx(by_fold.mean())
    assert overall["dice_std"] == pytest.approx(by_fold.std())
    assert overall["folds"] == 2
    assert overall["cases"] == 4


def test_costs_by_hand(by_hand):
    assert row(by_hand, A, "progressive")["training_seconds"] == pytest.approx(45)
    relative = row(by_hand, A, "progressive")["training_seconds_relative"]
    assert relative == pytest.approx(45 / 105)
    overall = row(by_hand, OVERALL, "progressive")
    assert overall["training_seconds"] == pytest.approx((45 + 125) / 2)
    assert overall["training_seconds_relative"] == pytest.approx((45 + 125) / (105 + 305))
    assert by_hand.loc[by_hand["label"] != "", "training_seconds"].isna().all()


def test_memory_and_waiting_are_told(tmp_path):
    study = FakeStudy(tmp_path, tasks=(A, B), arms=("constant", "random"), folds=(0, 1))
    runs, cases = tables(study)
    first = (runs["fold"] == 0) & (runs["task"] == A)
    runs["process_peak_mb"] = 2048 + 1024 * ((runs["arm"] == "random") & first)
    runs["wait_share"] = 0.3 * ((runs["arm"] == "random") & (runs["task"] == A))
    table = compare(runs, cases, "constant", study.tasks, study.arms)
    assert row(table, A, "random")["wait_share"] == pytest.approx(0.3)
    assert row(table, OVERALL, "random")["wait_share"] == pytest.approx(0.15)
    assert row(table, OVERALL, "random")["process_peak_mb"] == 3072
    page = " ".join(to_markdown(table).split())
    assert "Largest memory of a training: process 3.0 GiB (random)." in page
    assert "waiting for batches: random 15 %." in page
    # Runs of earlier versions have neither.
    older = compare(*tables(study), "constant", study.tasks, study.arms)
    assert "memory" not in to_markdown(older)


def test_a_tie_is_at_least_as_good(by_hand):
    """Task A has the same fold values in another order: equal up to rounding."""
    overall = row(by_hand, OVERALL, "progressive")
    assert (overall["at_least_as_good"], overall["tasks"]) == (1, 2)
    assert row(by_hand, OVERALL, "constant")["at_least_as_good"] == 2


def test_order_is_that_of_the_config(tmp_path):
    study = FakeStudy(tmp_path, tasks=(B, A), arms=("random", "constant"), folds=(0,))
    table = compared(study)
    assert table["task"].astype(str).unique().tolist() == [B, A, OVERALL]
    assert table["arm"].astype(str).unique().tolist() == ["random", "constant"]


def test_nan_dice_is_left_out_and_counted(tmp_path):
    study = FakeStudy(tmp_path, arms=("constant",), folds=(0,))
    values = {"x": {"1": 0.8, "2": NAN}, "y": {"1": 0.6, "2": 0.4}}
    study.dice = {study.keys()[0]: values}
    table = compared(study)
    assert row(table, "Task98_Fake", "constant")["dice_mean"] == pytest.approx((0.7 + 0.4) / 2)
    assert row(table, "Task98_Fake", "constant")["nan_dice"] == 1
    assert row(table, "Task98_Fake", "constant", "2")["nan_dice"] == 1
    assert row(table, "Task98_Fake", "constant", "1")["nan_dice"] == 0
    assert "in neither image: 1." in to_markdown(table)


def test_cases_without_foreground_and_a_single_case_are_said_in_words(tmp_path):
    study = FakeStudy(tmp_path, folds=(0,))
    study.dice = {
        run: {"x": {"1": NAN, "2": NAN}} for run in product(study.tasks, study.arms, [0], [1])
    }
    page = to_markdown(compared(study))
    assert "1 fold, 1 validation case**" in page
    assert "nan" not in page.lower()
    assert "<NA>" not in page
    assert "A dash in the column Dice: the label does not occur in any validation case." in page


def test_one_fold_has_an_empty_std(tmp_path):
    study = FakeStudy(tmp_path, folds=(3,))
    runs, _ = tables(study)
    outputs = {ending: tmp_path / f"comparison.{ending}" for ending in ("csv", "md", "tex")}
    compare_arms(
        study.root / "runs.csv",
        study.root / "cases.csv",
        outputs,
        "constant",
        list(study.tasks),
        list(study.arms),
    )
    written = pd.read_csv(outputs["csv"], dtype=str, keep_default_na=False)
    assert set(written["dice_std"]) == {""}
    assert "±" not in outputs["md"].read_text()
    assert len(runs) == 3


def test_missing_values_are_never_printed_as_zero(tmp_path):
    study = FakeStudy(tmp_path)
    runs, cases = tables(study)
    runs.loc[runs["arm"] == "random", ["training_kwh", "training_kg_co2eq"]] = NAN
    table = compare(runs, cases, "constant", study.tasks, study.arms)
    assert math.isnan(row(table, "Task98_Fake", "random")["training_kwh_relative"])
    line = next(line for line in to_markdown(table).splitlines() if line.startswith("| random"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[4:6] == ["–", "–"]
    assert "0" not in cells[4] + cells[5]


def test_reference_arm_must_exist(tmp_path):
    with pytest.raises(UserError, match="scale_space"):
        compared(FakeStudy(tmp_path), reference="scale_space")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *[(NAN, "–"), (0.41234, "0.412"), (84.06, "84.1"), (999.7, "1000"), (1234.5, "1234")],
        *[(1.5, "1.50"), (2.5e7, "2.50e+07"), (0.00001, "1.00e-05")],
    ],
)
def test_numbers(value, text):
    assert number(value) == text


def test_units_fit_the_largest_value():
    assert unit(pd.Series([9999.0, NAN]), TIME)[0] == "s"
    assert unit(pd.Series([1.0, 36000.0]), TIME) == ("h", 1 / 3600)
    assert unit(pd.Series([1e12]), TIME)[0] == "h"


def test_markdown_fits_a_terminal(tmp_path):
    arms = ("constant", "progressive", "progressive_plus")
    text = to_markdown(compared(FakeStudy(tmp_path, arms=arms)))
    assert max(map(len, text.splitlines())) <= 100
    assert text.index("| constant") < text.index("| progressive ")
    assert "relative to the arm constant" in text


def test_latex_escaping():
    escaped = latex_text("a_b & 5% #1 $x$ {y} ~ ^ \\ < >")
    assert re.search(r"(?<!\\)[_&%#$]", escaped.replace(r"$\pm$", "")) is None
    assert r"\textbackslash{}" in escaped
    assert re.search(r"[~<>]|(?<!\\)\^", escaped) is None
    assert latex_text("0.8 ± 0.1 – 1") == r"0.8 $\pm$ 0.1 -- 1"


def test_latex_compiles(tmp_path):
    """Compile only if TeX is installed; check the structure in any case."""
    tasks = (A, "Task98_odd_%name")
    study = FakeStudy(tmp_path, tasks=tasks, arms=("constant", "progressive_plus"))
    text = to_latex(compared(study))
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 5
    assert text.count(r"Task98\_odd\_\%name") == text.count("odd") == 2  # in captions
    assert text.count(r"progressive\_plus &") == text.count("progressive_plus &") + 5
    assert text.count(r"outer \& rim \\") == 2  # in heads
    assert text.count("\\footnotesize\n\\setlength{\\tabcolsep}{2.5pt}\n\\begin{tabular}") == 5
    for body in re.findall(r"\\toprule\n(.*?)\\bottomrule", text, re.S):
        rows = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert len({len(re.findall(r"(?<!\\)&", line)) for line in rows}) == 1
    done = compile_article(tmp_path, text, "booktabs")
    if done is None:
        return
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "article.pdf").stat().st_size > 0
