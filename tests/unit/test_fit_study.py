"""Epochs that fit a budget: against costs that are known by hand."""

import pandas as pd
import pytest
import yaml

from workflow_scripts.common.errors import UserError
from workflow_scripts.forecast.fit_study import (
    LIMITS,
    Limits,
    fit_arms,
    fit_table,
    largest,
    overlay,
    to_markdown,
)
from workflow_scripts.study.specification import Arm

FOLDS = 2
HOURS = {"constant": 0.2, "progressive": 0.1, "low_frequency": 0.15}
"""Hours of an epoch of a training; the final validation takes another 0.5."""
STAGES = {"constant": 1, "progressive": 4, "low_frequency": 3}
FULL = {"constant": 100, "progressive": 100, "low_frequency": 60}
ARMS = {name: Arm("a trainer", epochs=60 if name == "low_frequency" else None) for name in HOURS}


def rows(arms, tasks=("Task98_A",)):
    table = pd.DataFrame(
        [
            {"task": task, "arm": name, "folds": FOLDS, "seeds": 1, "stages": STAGES[name]}
            | {"iterations": FOLDS * 250 * (arm.epochs or 100)}
            | {"hours": FOLDS * (0.5 + HOURS[name] * (arm.epochs or 100))}
            for task in tasks
            for name, arm in arms.items()
        ]
    )
    return table.assign(kwh=table["hours"] / 2, kg_co2eq=table["hours"] / 10)


def limits(per="study", gpus=1, **chosen):
    return Limits.of({**dict.fromkeys(LIMITS), "gpus": gpus, "per": per, **chosen})


def used(epochs, limit):
    arms = {name: Arm("a trainer", epochs=count) for name, count in epochs.items()}
    return limit.used(rows(arms))


def test_bisection_finds_the_largest():
    for most in range(12):
        assert largest(lambda n, most=most: n <= most, 10) == min(most, 10)


def test_a_study_keeps_the_ratios_of_its_arms():
    # Per epoch of constant: 2 × (0.2 + 0.1 + 0.6 × 0.15) = 0.78 h; 3 h for the final validations.
    limit = limits(hours=3 + 0.78 * 50)
    epochs = fit_arms(rows, ARMS, FULL, limit)
    assert epochs == {"constant": 50, "progressive": 48, "low_frequency": 30}
    assert used(epochs, limit)["hours"] <= limit.limits["hours"]
    # With two devices half of the hours pass.
    assert fit_arms(rows, ARMS, FULL, limits(gpus=2, hours=(3 + 0.78 * 50) / 2)) == epochs
    # But never less than the longest training takes.
    assert fit_arms(rows, ARMS, FULL, limits(gpus=90, hours=0.5 + 0.2 * 10))["constant"] == 10


def test_cheaper_arms_get_more_epochs_if_each_training_must_fit():
    limit = limits("training", hours=5.5)
    epochs = fit_arms(rows, ARMS, FULL, limit)
    assert epochs == {"constant": 25, "progressive": 48, "low_frequency": 33}


def test_the_tightest_limit_counts():
    both = fit_arms(rows, ARMS, FULL, limits("training", hours=5.5, kwh=0.5 * 2.5))
    assert both["constant"] == 10


def test_no_arm_gets_more_than_it_has():
    assert fit_arms(rows, ARMS, FULL, limits(hours=1e6)) == FULL


def test_what_cannot_fit_is_refused_with_its_least_cost():
    with pytest.raises(
        UserError, match=r"fit\.hours is 0\.6, but even one epoch of constant .*0\.7"
    ):
        fit_arms(rows, ARMS, FULL, limits("training", hours=0.6))


def test_without_a_limit_or_costs_it_says_what_to_do():
    with pytest.raises(UserError, match="set `hours`, `kwh` or `kg_co2eq`"):
        limits()
    with pytest.raises(UserError, match=r"costs of Task98_A are unknown\. Plan first"):
        fit_arms(lambda arms: rows(arms).assign(hours=float("nan")), ARMS, FULL, limits(hours=1))


def test_table_page_and_configuration():
    epochs = {"constant": 10, "progressive": 8, "low_frequency": 6}
    limit = limits(hours=20, gpus=2)
    fitted = rows({name: Arm("a trainer", epochs=count) for name, count in epochs.items()})
    table = fit_table(fitted, epochs, FULL).set_index("arm")
    assert table.loc["constant", "iterations"] == 2500
    assert table.loc["constant", "share_of_papers"] == 0.01
    assert table.loc["progressive", "hours"] == pytest.approx(2 * (0.5 + 0.8))
    page = to_markdown(table.reset_index(), limit, limit.used(fitted), "mine")
    text = " ".join(page.split())
    assert "6 of 60" in text
    assert "of 20 h on 2 devices" in text
    assert "0.6 % of the papers' iterations" in text
    assert "adamw" in text
    assert yaml.safe_load(overlay(epochs)) == {
        "arms": {name: {"epochs": count} for name, count in epochs.items()}
    }
