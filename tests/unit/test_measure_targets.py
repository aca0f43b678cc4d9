"""Time to target, against trainings with a known smoothed Dice."""

import math
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest

from helpers.fake_study import FakeStudy
from workflow_scripts.common.errors import UserError
from workflow_scripts.evaluation.collect_results import collect_results
from workflow_scripts.evaluation.measure_targets import (
    COLUMNS,
    measure_targets,
    to_markdown,
)
from workflow_scripts.evaluation.time_to_target import cost_until, progress, smoothed
from workflow_scripts.figures.plot_profiles import profile


def epochs_of(dice, arm="constant", task="t", fold=0, seed=1, seconds=10.0):
    """Return epochs.csv of a training whose smoothed pseudo Dice is `dice`."""
    raw = [dice[0], *(10 * (b - 0.9 * a) for a, b in pairwise(dice))]
    table = pd.DataFrame({"epoch": range(len(dice)), "pseudo_dice": raw})
    table = table.assign(task=task, arm=arm, fold=fold, seed=seed, seconds=seconds)
    return table.assign(kwh=seconds / 1000, gflop=100.0)


def runs_of(epochs):
    runs = epochs.drop_duplicates(["task", "arm", "fold", "seed"])
    return runs[["task", "arm", "fold", "seed"]].assign(iterations_per_epoch=5)


def measured(*tables, arms=("constant", "progressive")):
    epochs = pd.concat(tables)
    tasks = list(dict.fromkeys(epochs["task"]))
    table = measure_targets(epochs, runs_of(epochs), "constant", tasks, list(arms))
    return table.set_index(["task", "arm", "level"])


REFERENCE = epochs_of([0.1, 0.72, 0.77, 0.79, 0.80])


def test_the_moving_average_is_that_of_nnunet(tmp_path):
    from nnunetv2.training.logging.nnunet_logger import MetaLogger

    dice = [0.2, 0.5, 0.4, 0.8]
    logger = MetaLogger(str(tmp_path), resume=False)
    for epoch, value in enumerate(dice):
        logger.log("mean_fg_dice", value, epoch)
    theirs = logger.get_value("ema_fg_dice", step=None)
    assert smoothed(pd.Series(dice)).tolist() == pytest.approx(theirs)


def test_costs_are_those_until_the_training_stays_there():
    table = measured(REFERENCE, epochs_of([0.5, 0.73, 0.70, 0.76, 0.85], "progressive", seconds=4))
    reference = table.loc["t", "constant"]
    assert reference["seconds"].tolist() == [20, 30, 50, 50]  # 0.72, 0.76, 0.792, 0.8
    assert reference["steps"].tolist() == [10, 15, 25, 25]
    assert (reference["seconds_relative"] == 1).all()
    progressive = table.loc["t", "progressive"]
    assert progressive["seconds"].tolist() == [16, 16, 20, 20], "at 0.73 it did not stay"
    assert progressive["kwh_relative"].tolist() == pytest.approx([0.8, 16 / 30, 0.4, 0.4])
    assert table["target"].loc["t", "constant"].tolist() == pytest.approx([0.72, 0.76, 0.792, 0.8])


def test_an_arm_that_ends_below_the_target_never_reaches_it():
    table = measured(REFERENCE, epochs_of([0.1, 0.82, 0.82, 0.78, 0.77], "progressive"))
    progressive = table.loc["t", "progressive"]
    assert progressive["seconds"].tolist() == [20, 20, math.inf, math.inf]
    assert progressive["reached"].tolist() == [1, 1, 0, 0]
    page = to_markdown(table.reset_index())
    assert "| 20.0 s (1.00) | 20.0 s (0.67) | never" in page
    assert page.count("**") == 6
    assert "medians" not in page, "of one training"


def test_each_training_is_measured_against_its_own_reference():
    """The result is the median over folds and seeds, or never if at most half reach the target."""
    dice = [0.5, 0.6, 0.7, 0.8]
    tables = []
    for seed, shift in ((1, 0.0), (2, 0.1), (3, 0.1)):
        tables.append(epochs_of([value + shift for value in dice], seed=seed))
        tables.append(epochs_of([0.8 + shift] * 4, "progressive", seed=seed, seconds=seed))
    table = measured(*tables)
    row = table.loc["t", "progressive", 1.0]
    assert (row["folds"], row["seeds"], row["reached"]) == (1, 3, 3)
    assert row["seconds"] == 2
    assert row["seconds_relative"] == pytest.approx(2 / 40)
    for column in (1, 3):
        tables[column] = epochs_of([0.1] * 4, "progressive", seed=(column + 1) // 2)
    row = measured(*tables).loc["t", "progressive", 1.0]
    assert (row["reached"], row["seconds"]) == (1, math.inf)
    assert "medians over 3 seeds" in to_markdown(measured(*tables).reset_index())


def test_an_epoch_without_a_reading_makes_the_cost_unknown():
    reference = REFERENCE.assign(kwh=[0.1, math.nan, 0.1, 0.1, 0.1])
    table = measured(reference, arms=("constant",))
    assert table["kwh"].isna().all()
    assert table["seconds"].notna().all()
    assert "–" in to_markdown(table.reset_index())


def test_steps_of_epochs_that_have_more_are_counted():
    epochs = REFERENCE.assign(iterations=[7, 7, None, None, 5])
    table = progress(epochs, runs_of(epochs))
    assert table["steps"].tolist() == [7, 14, 19, 24, 29]


def test_a_diverged_training_never_arrives():
    training = progress(REFERENCE, runs_of(REFERENCE)).assign(dice=math.nan)
    assert cost_until(training, 0.5)["seconds"] == math.inf


def test_a_study_gives_a_row_for_each_task_arm_and_level(tmp_path):
    study = FakeStudy(tmp_path, tasks=("Task98_B", "Task97_A"), seeds=(1, 2)).write()
    paths = {name: tmp_path / f"{name}.csv" for name in ("epochs", "runs")}
    collect_results(study.folders(), paths)
    epochs, runs = (pd.read_csv(path) for path in paths.values())
    table = measure_targets(epochs, runs, "constant", list(study.tasks), list(study.arms))
    assert table.columns.tolist() == COLUMNS
    assert len(table) == 2 * 3 * 4
    assert table["task"].drop_duplicates().tolist() == ["Task98_B", "Task97_A"]
    assert (table["reached"] <= 4).all()
    with pytest.raises(UserError, match="scale_space"):
        measure_targets(epochs, runs, "scale_space", list(study.tasks), list(study.arms))


def test_a_profile_is_relative_to_the_best_arm_of_each_task():
    targets = pd.DataFrame(
        {
            "task": ["A", "A", "B", "B", "C", "C"],
            "arm": ["x", "y"] * 3,
            "seconds": [2.0, 4.0, np.inf, 3.0, np.inf, np.inf],
        }
    )
    table = profile(targets, "seconds")
    assert table["x"].tolist() == [1.0, np.inf, np.inf]
    assert table["y"].tolist() == [2.0, 1.0, np.inf]
