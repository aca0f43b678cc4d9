"""The overview of a study: numbers by hand, marks, and LaTeX at the width of a page."""

import math
import re

import pandas as pd
import pytest

from helpers.fake_study import FakeStudy
from helpers.latex import ENGINE, compile_article
from workflow_scripts.evaluation.assess_significance import assess
from workflow_scripts.evaluation.collect_results import collect_results
from workflow_scripts.evaluation.compare_arms import compare
from workflow_scripts.evaluation.tabulate_overview import (
    COLUMNS,
    COSTS,
    overview,
    to_latex,
    to_markdown,
)
from workflow_scripts.records.run_reader import OVERALL

ARMS = ("constant", "progressive", "random")
DICE = {"a": (0.8, 0.9, 0.7), "b": (0.5, 0.4, 0.5), OVERALL: (0.65, 0.65, 0.6)}
RATIOS = {"a": (1.0, 0.4, 0.5), "b": (1.0, 0.6, 0.5), OVERALL: (1.0, 0.41, 0.5)}


def compared(tasks=("a", "b", OVERALL), std=0.01, seeds=1):
    rows = [
        {"task": task, "arm": arm, "reference_arm": "constant", "label": None}
        | {"seeds": seeds}
        | {"dice_mean": DICE[task][place], "dice_std": std}
        | {f"{cost}_relative": RATIOS[task][place] for cost in COSTS}
        for task in tasks
        for place, arm in enumerate(ARMS)
    ]
    return pd.DataFrame(rows)


def significance_of(ranks=None, **signs):
    """Return significance.csv with a significant difference per task_arm, and others without."""
    rows = [
        {"measure": measure, "task": task, "arm": arm, "label": label, "difference": difference}
        | {"significant": "yes" if label is None and measure == "dice" else "no"}
        | {"rank_biserial": ranks or difference}
        for name, difference in signs.items()
        for task, arm in [name.split("_")]
        for measure, label in (("dice", None), ("dice", "1"), ("nsd", None))
    ]
    columns = ["measure", "task", "arm", "label", "difference", "significant", "rank_biserial"]
    return pd.DataFrame(rows, columns=columns)


def test_ranks_best_arms_and_significant_differences():
    table = overview(compared(), significance_of(a_progressive=0.1, b_progressive=-0.1))
    assert list(table.columns) == COLUMNS
    rows = table.set_index(["measure", "task", "arm"]).sort_index()
    assert rows.loc[("dice", "rank")]["value"].to_dict() == pytest.approx(
        {"constant": (2 + 1.5) / 2, "progressive": (1 + 3) / 2, "random": (3 + 1.5) / 2}
    )
    assert rows.loc[("time", "rank")]["value"].to_dict() == {
        "constant": 3.0,
        "progressive": 1.5,
        "random": 1.5,
    }
    best = table[table["best"]].groupby(["measure", "task"])["arm"].agg(list)
    assert best["dice", "a"] == ["progressive"]
    assert best["dice", "b"] == ["constant", "random"], "equal values are both the best"
    assert best["energy", "a"] == ["progressive"]
    assert best["dice", "rank"] == ["constant"], "the lowest rank"
    assert rows.loc[("dice", "a", "progressive"), "significant"] == "gain"
    assert rows.loc[("dice", "b", "progressive"), "significant"] == "loss"
    assert (rows["significant"] != "").sum() == 2, "neither labels nor NSD nor costs have marks"


def test_costs_are_averaged_as_ratios():
    """The ratio of the sums, as in comparison.csv, is that of the most expensive tasks."""
    rows = overview(compared(), significance_of()).set_index(["measure", "task", "arm"])
    rows = rows.sort_index()
    assert rows.loc[("time", OVERALL)]["value"].to_dict() == pytest.approx(
        {"constant": 1.0, "progressive": 0.5, "random": 0.5}
    )


def test_a_mean_against_the_ranks_has_no_arrow():
    """Most cases are a little worse and few much better; the test is about the former."""
    table = overview(compared(), significance_of(ranks=-0.9, a_progressive=0.1))
    assert (table["significant"] == "").all()


def test_one_task_has_neither_mean_nor_rank():
    table = overview(compared(("a", OVERALL)), significance_of())
    assert set(table["task"]) == {"a"}
    assert "mean rank" not in to_markdown(table, "")


def test_a_cost_that_is_unknown_is_no_best_one_and_has_no_rank():
    comparison = compared()
    unknown = (comparison["arm"] == "random") & (comparison["task"] == "a")
    comparison.loc[unknown, "training_kwh_relative"] = math.nan
    rows = (
        overview(comparison, significance_of()).set_index(["measure", "task", "arm"]).sort_index()
    )
    assert math.isnan(rows.loc[("energy", "rank", "random"), "value"])
    assert rows.loc[("energy", "rank", "progressive"), "value"] == 1.5
    assert "| –" in to_markdown(rows.reset_index(), "")


def test_the_markdown_tables():
    text = to_markdown(
        overview(compared(), significance_of(a_progressive=0.1, b_progressive=-0.1)), "5 folds"
    )
    lines = {line.split("|")[1].strip(): line for line in text.splitlines() if "|" in line}
    assert "| **0.900**\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}0.010 ↑ |" in lines["a"]
    assert "| 0.400\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}0.010 ↓" in lines["b"]
    assert re.search(r"\| mean rank +\| \*\*1\.8\*\* +\| 2\.0 +\| 2\.2", text)
    assert "deviation over 5\n  folds" in text or "over 5 folds" in text
    assert len(re.findall(r"\| mean +\|", text)) == 1 + len(COSTS)
    alone = to_markdown(overview(compared(std=math.nan), significance_of()), "")
    assert "one training each" in alone
    assert "± 0" not in alone


@pytest.mark.parametrize(
    ("seeds", "words"), [(1, "over cases, given this seed"), (3, "t test over seeds and cases")]
)
def test_a_caption_says_what_significance_refers_to(seeds, words):
    table = overview(compared(seeds=seeds), significance_of(a_progressive=0.1))
    assert words in " ".join(to_markdown(table, "").split())
    assert words in to_latex(table, "")


def full_page(tmp_path):
    """Return the overview of a made-up study of ten tasks and nine arms with several seeds."""
    tasks = tuple(
        f"Task{number:02d}_{'HepaticVessel' if number == 8 else 'x_%'}" for number in range(10)
    )
    arms = ("constant", "progressive", "random", "progressive_plus", "progressive_efficiency")
    arms += ("progressive_performance", "low_frequency", "low_frequency_iterations")
    study = FakeStudy(tmp_path, tasks, (*arms, "constant_short"), seeds=(1, 2), cases=6).write()
    outputs = {name: tmp_path / f"{name}.csv" for name in ("runs", "cases")}
    collect_results(study.folders(), outputs)
    runs, cases = (
        pd.read_csv(path, dtype={"label": str, "case": str}) for path in outputs.values()
    )
    comparison = compare(runs, cases, "constant", study.tasks, study.arms)
    comparison["label"] = comparison["label"].replace("", None)
    significance = assess(cases, "constant", study.tasks, study.arms, 1)
    significance["label"] = significance["label"].replace("", None)
    return overview(comparison, significance)


def test_the_structure_of_the_latex_tables(tmp_path):
    text = to_latex(full_page(tmp_path), "2 folds × 2 seeds")
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 2
    assert text.count(r"\resizebox{\textwidth}{!}{%") == 2
    assert text.count(r"\shortstack[r]{progressive\\performance}") == 2
    for body in re.findall(r"\\toprule\n(.*?)\\bottomrule", text, re.DOTALL):
        rows = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert len({len(re.findall(r"(?<!\\)&", line)) for line in rows}) == 1
        assert "\n\\midrule\n" in body


@pytest.mark.skipif(ENGINE is None, reason="LaTeX is not installed")
def test_latex_compiles_and_fits_the_page(tmp_path):
    text = to_latex(full_page(tmp_path), "2 folds × 2 seeds")
    done = compile_article(tmp_path, text, "booktabs,graphicx")
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout, "a table is wider than the text"
    assert "Float too large" not in done.stdout, "a table is longer than a page"
