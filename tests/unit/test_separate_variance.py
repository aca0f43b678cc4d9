"""Variance components, against hand-computed numbers and simulated components."""

import math

import numpy as np
import pandas as pd
import pytest

from helpers.fake_study import FakeStudy
from workflow_scripts.evaluation.collect_results import collect_results
from workflow_scripts.evaluation.separate_variance import COLUMNS, components, separate_variance


def test_components_by_hand():
    found = components(np.array([[1.0, 2.0], [3.0, 6.0]]))
    # Mean squares: folds 9, seeds 4, residual 1.
    assert found["std_fold"] == pytest.approx(math.sqrt((9 - 1) / 2))
    assert found["std_seed"] == pytest.approx(math.sqrt((4 - 1) / 2))
    assert found["std_residual"] == pytest.approx(1)
    assert found["std_retraining"] == pytest.approx(math.sqrt(2.5))


def test_components_are_those_that_were_simulated():
    rng = np.random.default_rng(0)
    squares = []
    for _ in range(400):
        values = rng.normal(scale=0.03, size=(5, 1)) + rng.normal(scale=0.02, size=(1, 6))
        found = components(values + rng.normal(scale=0.01, size=(5, 6)))
        squares.append([value**2 for value in found.values()])
    expected = [0.03, 0.02, 0.01, math.hypot(0.02, 0.01)]
    assert np.sqrt(np.mean(squares, axis=0)) == pytest.approx(expected, rel=0.08)


def test_what_cannot_be_told_apart_is_missing():
    assert np.isnan(list(components(np.array([[0.5]])).values())).all()
    one_fold = components(np.array([[0.5, 0.7]]))
    assert one_fold.pop("std_retraining") == pytest.approx(math.sqrt(0.02))
    assert np.isnan(list(one_fold.values())).all()
    one_seed = components(np.array([[0.5], [0.7]]))
    assert one_seed.pop("std_fold") == pytest.approx(math.sqrt(0.02))
    assert np.isnan(list(one_seed.values())).all()
    assert np.isnan(list(components(np.array([[0.5, math.nan], [0.7, 0.6]])).values())).all()
    assert components(np.array([[1.0, 2.0], [2.0, 1.0]]))["std_fold"] == 0, "negative estimates"


def test_a_row_is_an_arm_and_its_difference_from_the_reference(tmp_path):
    study = FakeStudy(tmp_path, seeds=(1, 2), folds=(0, 1, 2)).write()
    collect_results(study.folders(), {"runs": tmp_path / "runs.csv"})
    runs = pd.read_csv(tmp_path / "runs.csv")
    table = separate_variance(runs, "constant", list(study.tasks), list(study.arms))
    assert table.columns.tolist() == COLUMNS
    assert table["quantity"].tolist() == ["dice", *["dice", "difference"] * 2]
    assert (table["folds"].unique(), table["seeds"].unique()) == ([3], [2])
    means = runs.groupby("arm")["dice_foreground_mean"].mean()
    assert table.loc[2, "mean"] == pytest.approx(means["progressive"] - means["constant"])
    assert table["std_retraining"].notna().all()
