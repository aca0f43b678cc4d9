"""Sentences of the results notebook, from tables made by hand."""

import math

import pandas as pd
import pytest

from workflow_scripts.evaluation.tabulate_overview import COSTS as MEASURED
from workflow_scripts.evaluation.tabulate_overview import to_markdown as overview_markdown
from workflow_scripts.report.results_page import (
    Results,
    answer_parts,
    cost_tables,
    describe_arms,
    describe_study,
    listed,
    overview_parts,
    significance_page,
)
from workflow_scripts.study.tasks import DEMO_TASK

DICE = {"constant": 0.8, "fast": 0.82, "cheap": 0.79}
KWH = {"constant": 0.002, "fast": 0.0018, "cheap": 0.001}
SECONDS = {"constant": 7200.0, "fast": 3600.0, "cheap": 1800.0}
COSTS = {"seconds": SECONDS, "kwh": KWH, "gflop": SECONDS}


def comparison(arms, tasks):
    """Return comparison.csv of arms with the same values on each task."""
    rows = [
        {"task": task, "label": None, "arm": arm, "reference_arm": "constant"}
        | {"dice_mean": DICE[arm], "dice_difference": DICE[arm] - DICE["constant"]}
        | {"dice_relative": DICE[arm] / DICE["constant"], "training_steps": 1000}
        | {"training_seconds": SECONDS[arm], "training_kwh": KWH[arm]}
        | {f"training_{name}_relative": of[arm] / of["constant"] for name, of in COSTS.items()}
        | {"tasks": len(tasks), "at_least_as_good": len(tasks) * (DICE[arm] >= DICE["constant"])}
        for task in (*tasks, "overall")
        for arm in arms
    ]
    return pd.DataFrame(rows)


def significance_of(arms, tasks, effect=0.5, p=0.01):
    rows = [
        {"task": task, "label": None, "arm": arm, "measure": measure, "pairs": 20, "note": "few"}
        | {"difference": DICE[arm] - DICE["constant"], "ci_low": -0.01, "ci_high": 0.03}
        | {"p": p, "p_holm": p, "significant": "yes", "new_seed_agrees": 0.9}
        | {"rank_biserial": effect if DICE[arm] > DICE["constant"] else -effect}
        for task in tasks
        for arm in arms
        if arm != "constant"
        for measure in ("dice", "nsd")
    ]
    columns = ["task", "label", "arm", "measure", "pairs", "p", "difference", "new_seed_agrees"]
    return pd.DataFrame(rows, columns=None if rows else columns)


def results(arms=tuple(DICE), tasks=("A", "B"), seeds=("1",), epochs=1000, **tests):
    runs = [
        {"task": task, "arm": arm, "fold": 0, "seed": seed}
        | {"epochs": epochs, "iterations_per_epoch": 250}
        for task in tasks
        for arm in arms
        for seed in seeds
    ]
    return Results(
        comparison(arms, tasks),
        pd.DataFrame(runs),
        pd.DataFrame(),
        significance_of(arms, tasks, **tests),
    )


def test_the_answer_stands_above_the_figure_and_the_arms_below_it():
    assert answer_parts("**Use a**.\n\n- a\n\n- b\n") == ("**Use a**.", "- a\n\n- b\n")
    assert answer_parts("Nothing to compare.\n") == ("Nothing to compare.\n", "")


@pytest.mark.parametrize(
    ("effect", "p", "words"), [(-0.5, 0.01, "higher on 0"), (0.5, None, "few")]
)
def test_a_sentence_says_what_the_tests_decided(effect, p, words):
    """An effect against the mean difference decides nothing."""
    assert words in describe_arms(results(effect=effect, p=p))


def test_unknown_energy_is_not_nan():
    made = results()
    made.comparison[["training_kwh", "training_kwh_relative"]] = math.nan
    assert "an unknown share of its energy" in describe_arms(made)
    assert "nan" not in describe_arms(made)


def test_ratios_are_means_over_tasks():
    made = results()
    table = made.comparison
    table.loc[(table["task"] == "A") & (table["arm"] == "cheap"), "training_kwh_relative"] = 0.1
    assert made.overall.loc["cheap", "training_kwh_relative"] == pytest.approx(0.3)


def test_every_arm_has_a_sentence():
    fast, cheap = describe_arms(results()).splitlines()
    assert "0.820, not below that of constant (+0.020), and not below it on 2 of 2 tasks" in fast
    assert "0.790, below" in cheap
    assert "0.25 of its training time, 0.50 of its energy and 0.25 of its computation" in cheap


def test_a_short_study_of_the_demo_task_is_marked():
    long, short = (results(tasks=("A",), epochs=epochs) for epochs in (1000, 4))
    assert "Reduced budget" not in describe_study(long, "s")
    assert "1,000 training iterations" in describe_study(short, "s")
    assert "semi-synthetic" not in describe_study(short, "s")
    assert "semi-synthetic" in describe_study(results(tasks=(DEMO_TASK,)), "s")


def test_the_overview_is_shown_in_two_halves():
    rows = [
        {"task": task, "measure": measure, "arm": arm, "value": value, "std": None, "best": False}
        | {"significant": "", "reference_arm": "constant", "seeds": 1, "energy_measured": ""}
        for task in ("A", "B", "mean", "mean rank")
        for measure in ("dice", *MEASURED.values())
        for arm, value in DICE.items()
    ]
    page = overview_markdown(pd.DataFrame(rows), "")
    dice, costs = overview_parts(results(), page)
    assert dice + costs == page
    assert dice.startswith("**Dice**")
    assert costs.startswith("**Costs**")
    assert cost_tables(costs, "each").index("Costs") < cost_tables(costs, "each").index("each")
    assert cost_tables(*overview_parts(results(tasks=("A",)), page)[:1], "each") == "each"


@pytest.mark.parametrize(
    ("seeds", "words", "column"),
    [("1", "only one seed", False), ("12", "new seed", False), ("123", "new seed", True)],
)
def test_tests_say_what_they_cover(seeds, words, column):
    text = significance_page(results(seeds=tuple(seeds)))
    assert words in text
    assert ("new seed" in text.splitlines()[0]) == column
    assert "No NSD" not in text


def test_tests_without_a_surface_distance_or_without_arms():
    made = results()
    table = made.significance
    table.loc[(table["task"] == "B") & (table["measure"] == "nsd"), "pairs"] = 0
    assert "No NSD for B:" in significance_page(made)
    assert "nothing to test" in significance_page(results(("constant",)))


def test_readings_that_differ_in_the_last_bit_are_listed_once():
    table = pd.DataFrame({"a": [0.1 + 0.2, 0.3, None], "b": ["x", "y", "x"], "c": [None] * 3})
    assert listed(table, "a") == "0.3"
    assert listed(table, "b") == "x, y"
    assert listed(table, "c") == "not known"
    assert listed(table, "c", "none") == "none"
