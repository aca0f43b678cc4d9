"""The forecast's counts and calibrations, the budget's check and the figure."""

import json
import math
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.fake_study import FakeStudy
from workflow_scripts.common.errors import UserError
from workflow_scripts.common.figure_style import load_style
from workflow_scripts.common.formatting import COMPUTATION, in_unit
from workflow_scripts.common.nnunet_setup import find_trainer
from workflow_scripts.forecast import calibration
from workflow_scripts.forecast.check_budget import check_budget
from workflow_scripts.forecast.forecast_page import length_text, to_markdown, total_line
from workflow_scripts.forecast.forecaster import forecast_rows, published_work
from workflow_scripts.forecast.plans import Plan, cases_of_fold, find_plan, published_plans
from workflow_scripts.forecast.plot_forecast import plot_forecast
from workflow_scripts.forecast.workload import (
    StageWork,
    StudyDesign,
    count_work,
    median_shape,
    training_flop,
    windows,
)
from workflow_scripts.records.energy_meter import energy_mix
from workflow_scripts.records.flop_counter import FlopTable
from workflow_scripts.study.settings import TrainingSettings
from workflow_scripts.study.specification import Arm
from workflow_scripts.trainers.curricula.schedules.frequency_stages import LOW_FREQUENCY
from workflow_scripts.trainers.curricula.schedules.patch_plan import PatchPlan, count_poolings
from workflow_scripts.trainers.curricula.schedules.planner import (
    iterations_of_stages,
    plan_schedule,
)
from workflow_scripts.trainers.curricula.schedules.scale_factors import ScaleSpaceSettings
from workflow_scripts.trainers.curricula.schedules.schedule import CURRICULA, Stage, plan_stages
from workflow_scripts.trainers.curricula.schedules.settings import (
    CurriculumSettings,
    TrainingLength,
)

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = ROOT / "config" / "published"
TASK = "Task04_Hippocampus"
TRAINING = TrainingSettings(42, 32, 10, seed=7)
DESIGN = StudyDesign("3d_fullres", TRAINING, folds=[0], mirroring=True)
ARMS = {
    "constant": Arm("nnUNetTrainerConstantPatch", {}),
    "progressive": Arm("nnUNetTrainerProgressivePatch", {}),
}
PLAN = PatchPlan((40, 56, 40), (3, 3, 3), 9)


@pytest.fixture(scope="module")
def plans():
    return published_plans(PUBLISHED / "nnunet_plans.tsv")


@pytest.fixture(scope="module")
def small(plans):
    """Task04's plan with few features, for speed."""
    overrides = {"features_per_stage": [4, 4, 4, 4]}
    return {TASK: find_plan(Path("absent"), plans[TASK], "3d_fullres", overrides)}


# --- Schedules ---


def test_settings_are_attributes_of_the_trainer_overlaid_by_the_arm():
    trainer = find_trainer("nnUNetTrainerScaleSpace")
    assert ScaleSpaceSettings.of(trainer) == ScaleSpaceSettings()
    changed = ScaleSpaceSettings.of(trainer, {"scale_factor": 0.3, "weight_decay": 0.1})
    assert changed == ScaleSpaceSettings(scale_factor=0.3)


def test_a_trainer_of_nnunet_has_the_constant_curriculum():
    trainer = find_trainer("nnUNetTrainer")
    assert CurriculumSettings.of(trainer) == CurriculumSettings(curriculum="constant")
    progressive = find_trainer("nnUNetTrainerProgressivePatch")
    assert CurriculumSettings.of(progressive).curriculum == "progressive"


@pytest.mark.parametrize("curriculum", [*CURRICULA, *LOW_FREQUENCY])
def test_the_iterations_of_the_stages_are_those_of_the_schedule(curriculum):
    schedule = plan_schedule(PLAN, TrainingLength(37, 20, 5), CurriculumSettings(curriculum))
    counted = [0] * len(schedule.stages)
    for iteration in range(schedule.iterations_before(37)):
        counted[schedule.stage_of_iteration(iteration)] += 1
    assert iterations_of_stages(schedule) == counted


def test_of_a_long_random_schedule_a_part_stands_for_all():
    schedule = plan_schedule(PLAN, TrainingLength(1000, 250, 5), CurriculumSettings("random"))
    counts = iterations_of_stages(schedule)
    assert sum(counts) == pytest.approx(250_000)
    assert max(counts) < 1.2 * min(counts)


def test_listed_stages_and_pacing_are_planned_as_the_user_says():
    stages = [
        {"patch_size": [8, 8, 8], "batch_size": 4, "epochs": 1},
        {"patch_size": [40, 56, 40], "batch_size": 2, "epochs": 3},
    ]
    settings = CurriculumSettings("listed", stage_list=stages)
    listed = plan_schedule(PLAN, TrainingLength(4, 5), settings)
    assert iterations_of_stages(listed) == [5, 15]
    plan, settings = (
        PatchPlan((16, 16, 16), (3, 3, 3), 2),
        CurriculumSettings("progressive", "volume"),
    )
    paced = plan_schedule(plan, TrainingLength(100, 1), settings)
    counts = iterations_of_stages(paced)
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]


# --- Counts ---


def test_published_plans_are_whole(plans):
    table = pd.read_csv(PUBLISHED / "nnunet_plans.tsv", sep="\t")
    assert list(plans) == list(table["task"])
    assert len(plans) == 10
    for row in table.itertuples():
        chosen = plans[row.task].plans["configurations"]["3d_fullres"]
        strides = chosen["architecture"]["arch_kwargs"]["strides"]
        assert list(count_poolings(strides)) == json.loads(row.pool_per_axis)
        assert len(plans[row.task].dataset["labels"]) == row.n_classes


def test_work_of_the_constant_arm_is_counted_by_hand(small):
    """A plain U-Net of 4 features, 3 poolings, 1 channel, 3 classes: 2 FLOP per multiply-add."""
    voxels = [40 * 56 * 40 / 8**depth for depth in range(4)]
    conv = 2 * 27 * 4 * 4
    encoder = voxels[0] * 2 * 27 * 4 + sum(voxels) * conv + sum(voxels[1:]) * conv
    decoder = sum(voxels[:3]) * (2 * 4 * 4 + 2 * conv + conv + 2 * 4 * 3)
    forward = encoder + decoder
    backward = 2 * forward - voxels[0] * 2 * 27 * 4  # no gradient for the image
    trainer = find_trainer("nnUNetTrainerConstantPatch")
    work = count_work(small[TASK], trainer, {}, replace(DESIGN, folds=[0, 1]))
    assert work.stages == 1
    assert (work.iterations, work.val_iterations) == (2 * 42 * 32, 2 * 42 * 10)
    assert work.train_tflop == pytest.approx(2 * 42 * 32 * 9 * (forward + backward) / 1e12)
    assert work.val_tflop == pytest.approx(2 * 42 * 10 * 9 * forward / 1e12)
    assert work.predictions == 8 * 2 * 52  # one window, 260 cases in 5 folds
    assert work.final_tflop == pytest.approx(8 * 2 * 52 * forward / 1e12)


def test_an_arm_without_mirror_axes_predicts_without_mirroring(small):
    trainer = find_trainer("nnUNetTrainerConstantPatch")
    all_axes, none = (
        count_work(small[TASK], trainer, {"mirror_axes": axes}, DESIGN) for axes in ("all", "none")
    )
    assert all_axes.predictions == 8 * none.predictions
    assert all_axes.final_tflop == pytest.approx(8 * none.final_tflop)
    assert all_axes.iterations == none.iterations


def test_every_stage_costs_what_is_counted_for_it(small):
    from workflow_scripts.forecast.workload import _flop_table

    plan = small[TASK]
    trainer = find_trainer("nnUNetTrainerProgressivePlusPatch")
    content = json.dumps([plan.plans, plan.dataset])
    table = _flop_table(content, "3d_fullres", trainer.build_network_architecture)
    stages = plan_stages(PLAN, CurriculumSettings("progressive_plus"))
    flop = training_flop(table, stages)
    assert len(flop) == len(stages) == 14
    for stage, count in flop.items():
        assert count == pytest.approx(table.training_step(stage.batch_size, stage.patch_size))


def test_a_network_that_is_not_in_proportion_is_counted_at_every_size():
    class Odd(torch.nn.Module):
        """A convolution, and a product that does not grow with the image."""

        def __init__(self):
            super().__init__()
            self.convolution = torch.nn.Conv3d(1, 2, 3, padding=1)
            self.linear = torch.nn.Linear(2, 2)

        def forward(self, x):
            return self.linear(self.convolution(x).mean((2, 3, 4)))

    table = FlopTable(Odd(), channels=1)
    stages = [Stage((n, n, n), 2) for n in (2, 4, 8)]
    flop = training_flop(table, stages)
    assert [flop[stage] for stage in stages] == [
        table.training_step(2, stage.patch_size) for stage in stages
    ]


@settings(max_examples=50)
@given(
    st.lists(st.integers(1, 300), min_size=3, max_size=3),
    st.lists(st.integers(4, 128), min_size=3, max_size=3),
)
def test_windows_are_those_of_nnunet(shape, patch):
    from nnunetv2.inference.sliding_window_prediction import compute_steps_for_sliding_window

    padded = [max(size, tile) for size, tile in zip(shape, patch, strict=True)]
    steps = compute_steps_for_sliding_window(tuple(padded), tuple(patch), 0.5)
    assert windows(shape, patch) == math.prod(len(axis) for axis in steps)


def test_a_2d_patch_slides_over_every_slice():
    assert windows((20, 100, 60), (64, 64)) == 20 * 3
    plans = {
        "original_median_shape_after_transp": [20, 90, 70],
        "configurations": {
            "2d": {"median_image_size_in_voxels": [100, 60]},
            "3d_fullres": {"median_image_size_in_voxels": [10, 100, 60]},
        },
    }
    assert median_shape(plans, "2d") == (20, 100, 60)
    assert median_shape(plans, "3d_fullres") == (10, 100, 60)


def test_cases_of_the_folds_are_those_of_nnunet():
    from sklearn.model_selection import KFold

    for cases in (20, 131, 484):
        sizes = [len(held) for _, held in KFold(5).split(range(cases))]
        assert [cases_of_fold(cases, fold) for fold in range(5)] == sizes


def test_stages_that_do_not_fit_the_plan_are_named(small):
    trainer = find_trainer("nnUNetTrainerListedPatch")
    listed = {"stage_list": [{"patch_size": [10, 8, 8], "batch_size": 2, "epochs": 42}]}
    with pytest.raises(UserError, match=r"Dataset004_Hippocampus.*10 on axis 0"):
        count_work(small[TASK], trainer, listed, DESIGN)


# --- Calibration ---


def test_the_fit_is_the_line_and_one_disturbed_point_does_not_bend_it():
    work = np.array([[32, tflop] for tflop in (1, 2, 3, 5, 8, 13, 21)], float)
    seconds = work @ [0.07, 4.0]
    assert calibration.fit(work, seconds) == pytest.approx([0.07, 4.0])
    seconds[3] *= 2
    assert calibration.fit(work, seconds) == pytest.approx([0.07, 4.0])
    errors = calibration.left_out(work, seconds)
    assert sorted(round(abs(error), 6) for error in errors) == [0] * 6 + [0.5]


def test_a_cost_is_never_negative():
    work = np.array([[1, 1], [1, 2]], float)
    assert calibration.fit(work, np.array([3.0, 1.0])).min() >= 0


def test_two_points_tell_no_error():
    assert calibration.left_out(np.eye(2), np.ones(2)) == []
    assert calibration.errors_text([]) == "unknown (too few points)"


def test_by_the_published_runs_a_constant_training_takes_what_was_measured(plans):
    runs = pd.read_csv(PUBLISHED / "nnunet_runs.tsv", sep="\t")
    work = published_work(plans)
    fitted = calibration.published(runs, work)
    for task, group in runs.groupby("task"):
        seconds, kwh = fitted.cost(task, *work[task], epochs=1000)
        assert seconds == pytest.approx(3600 * group["hours"].median())
        assert kwh == pytest.approx(group["kwh"].median())
    assert 0 < fitted.seconds_per_iteration < 0.05
    assert "H100" in fitted.source


@pytest.fixture
def runs(tmp_path):
    """Finished runs on a made-up machine: 0.1 s per iteration, 0.02 s per GFLOP, 2 s per epoch."""
    study = FakeStudy(tmp_path, arms=("constant", "progressive")).write()
    folders = list(study.folders().values())
    for folder in folders:
        record = json.loads((folder / "run.json").read_text())
        record |= {"iterations_per_epoch": 5, "validation_iterations_per_epoch": 2}
        (folder / "run.json").write_text(json.dumps(record))
        epochs = pd.read_csv(folder / "epochs.csv")
        volumes = epochs["patch_size"].map(lambda size: math.prod(map(int, size.split("x"))))
        epochs["train_gflop"] = volumes / 100
        epochs["gflop"] = epochs["train_gflop"] + 10
        epochs["train_seconds"] = 5 * 0.1 + 0.02 * epochs["train_gflop"]
        epochs["val_seconds"] = 2 * 0.1 + 0.02 * 10
        epochs["seconds"] = epochs["train_seconds"] + epochs["val_seconds"] + 2
        epochs["kwh"] = epochs["seconds"] * 1e-4
        epochs.to_csv(folder / "epochs.csv", index=False)
    return folders


def test_own_runs_give_the_machine_they_ran_on(runs):
    fitted = calibration.measured(runs)
    assert fitted.seconds_per_iteration == pytest.approx(0.1)
    assert fitted.seconds_per_tflop == pytest.approx(20)
    assert fitted.seconds_per_epoch == pytest.approx(2)
    seconds, kwh = fitted.cost("Task05_Prostate", iterations=100, tflop=3, epochs=10)
    assert seconds == pytest.approx(10 + 60 + 20)
    assert kwh == pytest.approx(90e-4)


def test_compilation_calibrates_nothing(runs):
    """A minute of it in every epoch changes no factor; the meter has read its energy too."""
    for folder in runs:
        epochs = pd.read_csv(folder / "epochs.csv").assign(compile_seconds=60.0)
        epochs["kwh"] += 60 * 1e-4
        epochs.to_csv(folder / "epochs.csv", index=False)
    test_own_runs_give_the_machine_they_ran_on(runs)


def test_the_power_usage_of_a_site_is_taken_off(runs):
    before = calibration.measured(runs).kwh_per_second
    for folder in runs:
        energy = pd.read_csv(folder / "energy.csv")
        energy.assign(pue=2.0).to_csv(folder / "energy.csv", index=False)
    assert calibration.measured(runs).kwh_per_second == pytest.approx(before / 2)


def test_runs_of_several_machines_are_not_mixed(runs):
    path = runs[0] / "run.json"
    path.write_text(path.read_text().replace("made-up CPU", "another CPU"))
    with pytest.raises(UserError, match=r"several machines: another CPU.*made-up CPU"):
        calibration.measured(runs)


def test_without_a_finished_run_it_says_what_to_do():
    with pytest.raises(UserError, match="train one fold first"):
        calibration.measured([])


def test_a_run_without_metered_energy_still_tells_the_time(runs):
    for folder in runs:
        epochs = pd.read_csv(folder / "epochs.csv")
        epochs.assign(kwh=math.nan).to_csv(folder / "epochs.csv", index=False)
    seconds, kwh = calibration.measured(runs).cost("Task98_Fake", 100, 3, 10)
    assert seconds == pytest.approx(90)
    assert math.isnan(kwh)


def test_the_country_gives_the_carbon():
    assert energy_mix("DEU")["carbon_intensity"] == pytest.approx(380.95)
    with pytest.raises(UserError, match=r"energy\.country.*QQQ"):
        energy_mix("QQQ")


# --- Loading ---


def test_every_stage_tells_what_it_loads(small):
    """Whole batches of the stage's size; fewer than one per iteration if batches are repeated."""
    trainer = find_trainer("nnUNetTrainerProgressivePerformancePatch")
    work = count_work(small[TASK], trainer, {}, replace(DESIGN, folds=[0, 1]))
    stages = work.of_stages
    assert len(stages) == work.stages
    assert sum(stage.iterations for stage in stages) == work.iterations
    flop = sum(stage.iterations * stage.tflop for stage in stages)
    assert flop == pytest.approx(work.train_tflop)
    planned = small[TASK].plans["configurations"]["3d_fullres"]
    last = stages[-1]
    assert last.samples == planned["batch_size"] < stages[0].samples
    assert last.megavoxels == last.samples * math.prod(planned["patch_size"]) / 1e6
    assert [stage.together for stage in stages] == [True] * (work.stages - 1) + [False]
    assert {stage.loads for stage in stages} == {1}
    one_by_one = count_work(small[TASK], trainer, {"batched_augmentation": False}, DESIGN)
    assert not any(stage.together for stage in one_by_one.of_stages)
    low = count_work(small[TASK], find_trainer(LOW), {}, DESIGN).of_stages
    assert low[0].loads == 0.25
    assert {stage.megavoxels for stage in low} == {last.megavoxels}, "loaded at the planned size"
    assert not any(stage.together for stage in low)


def test_loading_is_fitted_by_kind():
    rows = [
        {"together": together, "samples": n, "megavoxels": v, "seconds": seconds(n, v)}
        for together, seconds in (
            (0, lambda n, v: 0.002 * n + 0.1 * v),
            (1, lambda n, v: 0.01 + 0.0001 * n + 0.05 * v),
        )
        for n, v in ((2, 1.0), (9, 0.5), (64, 3.0), (500, 0.8))
    ]
    loading = calibration.Loading.fit(pd.DataFrame(rows))
    stage = StageWork(1, 1.0, 1.0, samples=100, megavoxels=2.0, together=False)
    assert loading.seconds(stage) == pytest.approx(0.4)
    assert loading.seconds(replace(stage, together=True)) == pytest.approx(0.12)


def test_an_iteration_lasts_as_long_as_the_slower_of_network_and_loading(small):
    fitted = calibration.Calibration("made up", 0.01, 10.0, 1e-4, 0.0, factors={TASK: (2.0, 1.0)})
    loading = calibration.Loading([0, 0.1, 0], [0, 0.1, 0])
    stages = [
        StageWork(100, 0.004, 1.0, samples=4, megavoxels=1.0, together=True),  # 0.1 s, 0.4 s
        StageWork(100, 0.004, 0.25, samples=4, megavoxels=1.0, together=True),  # 0.1 s, 0.1 s
        StageWork(100, 0.04, 1.0, samples=4, megavoxels=1.0, together=False),  # 0.82 s, 0.4 s
    ]
    assert fitted.waiting(TASK, stages, loading, 1) == pytest.approx(100 * 0.3)
    assert fitted.waiting(TASK, stages, loading, 2) == pytest.approx(100 * 0.1)
    assert fitted.waiting(TASK, stages, loading, 4) == 0
    without, with_waiting = fitted.cost(TASK, 10, 1, 1), fitted.cost(TASK, 10, 1, 1, waiting=7.0)
    assert with_waiting[0] - without[0] == pytest.approx(7)
    assert with_waiting[1] - without[1] == pytest.approx(1e-4 * 7 / 2)


def test_the_page_says_which_arms_wait_for_their_batches(small):
    fitted = calibration.Calibration("made up", 1e-6, 1e-6, 1e-4, 0.0)
    loading = calibration.Loading([0, 0.1, 0], [0, 0.001, 0])
    rows = forecast_rows(
        small,
        ARMS,
        DESIGN,
        fitted,
        reference_arm="constant",
        kg_per_kwh=0.4,
        loading=loading,
        workers=2,
    )
    arguments = ("made_up", "constant", asdict(TRAINING), fitted, "DEU", 0.4, 1.0)
    page = " ".join(to_markdown(rows, *arguments, workers=2).split())
    assert "If loading with 2 workers is slower than the network" in page
    assert re.search(r"share of the hours: constant \d+%, progressive \d+%", page)
    assert "Loading" not in to_markdown(rows, *arguments)


def test_with_the_measured_loading_a_constant_training_keeps_its_published_time(plans):
    """Otherwise the loading table would contradict the runs on which the forecast is based."""
    runs = pd.read_csv(PUBLISHED / "nnunet_runs.tsv", sep="\t")
    fitted = calibration.published(runs, published_work(plans))
    table = pd.read_csv(PUBLISHED / "loading.tsv", sep="\t", comment="#")
    loading = calibration.Loading.fit(table)
    assert min(*loading.one_by_one, *loading.together) >= 0
    predicted = [
        loading.seconds(StageWork(1, 0, 1, row.samples, row.megavoxels, bool(row.together)))
        / row.seconds
        for row in table.itertuples()
    ]
    assert 0.8 < np.median(predicted) < 1.25
    for task, plan in plans.items():
        design = replace(DESIGN, training=TrainingSettings(1000, 250, 50, seed=0))
        work = count_work(plan, find_trainer("nnUNetTrainerConstantPatch"), {}, design)
        waiting = fitted.waiting(task, work.of_stages, loading, workers=8)
        seconds, _ = fitted.cost(task, work.steps, work.tflop, work.epochs)
        assert waiting < 0.05 * seconds, task


# --- Table, page, figure, budget ---


@pytest.fixture
def table(small):
    fitted = calibration.Calibration("made up", 0.01, 10.0, 1e-4, 0.0)
    rows = forecast_rows(
        {**small, "Task99_BrainTissue": None},
        ARMS,
        replace(DESIGN, folds=[0, 1]),
        fitted,
        reference_arm="constant",
        kg_per_kwh=0.4,
    )
    page = to_markdown(rows, "made_up", "constant", asdict(TRAINING), fitted, "DEU", 0.4, 1.0)
    return rows, page


def test_a_row_is_a_task_and_arm_and_sums_its_folds(table):
    rows, _ = table
    constant, progressive = rows.to_dict("records")[:2]
    assert constant["hours"] * 3600 == pytest.approx(
        0.01 * (2 * 42 * 42 + 8 * 104)
        + 10 * (constant["train_tflop"] + constant["val_tflop"] + constant["final_tflop"])
    )
    assert constant["kg_co2eq"] == pytest.approx(0.4 * constant["kwh"])
    assert progressive["stages"] == 14
    assert progressive["relative_to_reference"] == pytest.approx(
        progressive["hours"] / constant["hours"]
    )


def test_an_arm_s_own_length_is_what_is_forecast(small):
    fitted = calibration.Calibration("made up", 0.01, 10.0, 1e-4, 0.0)
    short = replace(ARMS["constant"], iterations_per_epoch=16, validation_iterations_per_epoch=5)
    arms = {**ARMS, "constant_short": short}
    rows = forecast_rows(
        small, arms, DESIGN, fitted, reference_arm="constant", kg_per_kwh=0.4
    ).set_index("arm")
    whole, half = rows.loc["constant"], rows.loc["constant_short"]
    assert (whole["iterations"], half["iterations"]) == (42 * 32, 42 * 16)
    for cost in ("train_tflop", "val_tflop"):
        assert half[cost] == pytest.approx(whole[cost] / 2)


def test_the_page_gives_the_range_of_lengths():
    training = asdict(TRAINING)
    assert length_text(training, ARMS.values()) == "42 epochs × 32 iterations"
    own = replace(ARMS["constant"], epochs=30, iterations_per_epoch=8)
    assert length_text(training, [*ARMS.values(), own]) == "30–42 epochs × 8–32 iterations"


def test_seeds_multiply_everything_that_a_fold_costs(small):
    trainer = find_trainer("nnUNetTrainerConstantPatch")
    one, three = (
        count_work(small[TASK], trainer, {}, replace(DESIGN, seeds=seeds)) for seeds in (1, 3)
    )
    for name in ("epochs", "iterations", "val_iterations", "predictions"):
        assert getattr(three, name) == 3 * getattr(one, name), name
    assert three.tflop == pytest.approx(3 * one.tflop)
    assert three.stages == one.stages


def test_a_task_without_a_plan_has_rows_without_numbers_and_a_note(table):
    rows, page = table
    unplanned = rows[rows["task"] == "Task99_BrainTissue"]
    assert len(unplanned) == 2
    assert unplanned[["stages", "hours", "kwh", "kg_co2eq"]].isna().all(axis=None)
    assert "Task99_BrainTissue. Plan first" in " ".join(page.split())
    assert len(page.splitlines()) < 50


def test_an_unmeasured_device_has_computation_but_neither_time_nor_energy(small, tmp_path):
    fitted = calibration.unmeasured("CPU")
    rows = forecast_rows(
        {**small, "Task99_BrainTissue": None},
        ARMS,
        DESIGN,
        fitted,
        reference_arm="constant",
        kg_per_kwh=0.4,
    )
    assert rows[["hours", "kwh", "kg_co2eq"]].isna().all(axis=None)
    work = rows.groupby("arm", sort=False)[["train_tflop", "val_tflop", "final_tflop"]].sum()
    work = work.sum(axis=1)
    page = to_markdown(rows, "made_up", "constant", asdict(TRAINING), fitted, "DEU", 0.4, 1.0)
    total = total_line(rows, fitted)
    assert total in page.splitlines()
    assert total.startswith(f"Total: {in_unit(1000 * work.sum(), COMPUTATION)} of computation. ")
    assert "CPU" in total
    assert re.search(r"unknown", total)
    assert "calibration: measured" in " ".join(page.split())
    assert not re.search(r"H100|\bnan\b|\d (s|h|Wh|kWh|kg CO2eq)\b", page)
    relative = work["progressive"] / work["constant"]
    assert re.search(rf"^\| progressive +\|.*\b{relative:.2f} ", page, re.M)
    assert "Task99_BrainTissue. Plan first" in " ".join(page.split())
    outputs = [tmp_path / "forecast.svg", tmp_path / "forecast.png"]
    plot_forecast(rows, "constant", load_style(ROOT / "config" / "plotting.yaml"), outputs)
    assert all(path.stat().st_size > 2000 for path in outputs)


def test_the_total_names_the_device_that_was_measured(small):
    runs = pd.read_csv(PUBLISHED / "nnunet_runs.tsv", sep="\t")
    work = {task: (3e5, 1e4 * number) for number, task in enumerate(sorted(set(runs["task"])), 1)}
    fitted = calibration.published(runs, work)
    rows = forecast_rows(small, ARMS, DESIGN, fitted, reference_arm="constant", kg_per_kwh=0.4)
    assert " of one NVIDIA H100" in total_line(rows, fitted)


def test_own_plans_go_before_published_ones_and_overrides_are_applied(plans, tmp_path):
    own = {**plans[TASK].plans, "plans_name": "mine"}
    (tmp_path / "plans.json").write_text(json.dumps(own))
    (tmp_path / "dataset.json").write_text(json.dumps(plans[TASK].dataset))
    own_of = {TASK: tmp_path / "plans.json"}
    found = {
        task: find_plan(
            own_of.get(task, tmp_path / "absent"), plans.get(task), "3d_fullres", changes
        )
        for task, changes in {
            TASK: {"batch_size": 4},
            "Task02_Heart": {},
            "Task99_BrainTissue": {},
        }.items()
    }
    sources = [plan.source if plan else None for plan in found.values()]
    assert sources == ["planned here", "published", None]
    assert found[TASK].plans["configurations"]["3d_fullres"]["batch_size"] == 4
    assert isinstance(plans[TASK], Plan)
    assert plans[TASK].plans["configurations"]["3d_fullres"]["batch_size"] == 9


def test_folds_that_are_written_are_counted_as_they_are(plans, tmp_path):
    (tmp_path / "plans.json").write_text(json.dumps(plans[TASK].plans))
    (tmp_path / "dataset.json").write_text(json.dumps(plans[TASK].dataset))
    found = find_plan(tmp_path / "plans.json", None, "3d_fullres", {})
    assert [found.validation_cases(fold) for fold in range(5)] == [52] * 5
    folds = [{"train": ["a", "b"], "val": ["c"]}, {"train": ["c"], "val": ["a", "b"]}]
    (tmp_path / "splits_final.json").write_text(json.dumps(folds))
    found = find_plan(tmp_path / "plans.json", None, "3d_fullres", {})
    assert [found.validation_cases(fold) for fold in range(2)] == [1, 2]


FORECAST = pd.DataFrame(
    {
        "task": ["Task02_Heart"] * 2,
        "arm": ["constant", "progressive"],
        "hours": [100.0, 50.0],
        "kg_co2eq": [10.0, 4.0],
    }
)


def test_a_forecast_within_the_budget_is_recorded():
    budget = {"gpu_hours": 150, "kg_co2eq": None}
    assert check_budget(FORECAST, budget, "s", "p") == {
        "gpu_hours": {"forecast": 150, "limit": 150}
    }


def test_a_forecast_beyond_the_budget_is_refused_with_the_arithmetic():
    with pytest.raises(UserError) as caught:
        check_budget(FORECAST, {"gpu_hours": 120, "kg_co2eq": 10}, "s", "page.md")
    message = str(caught.value)
    assert "constant 100 + progressive 50.0 = 150 hours: 30.0 too many" in message
    assert "constant 10.0 + progressive 4.00 = 14.0 kg CO2eq: 4.00 too many" in message
    assert "nothing is trained" in message


def test_what_cannot_be_forecast_is_not_within_a_budget():
    unknown = FORECAST.assign(hours=math.nan)
    with pytest.raises(UserError, match="Task02_Heart cannot be forecast"):
        check_budget(unknown, {"gpu_hours": 120, "kg_co2eq": None}, "s", "p")


def test_the_figure_is_drawn_also_where_nothing_is_planned(table, tmp_path):
    rows, _ = table
    style = load_style(ROOT / "config" / "plotting.yaml")
    for name, part in {"some": rows, "none": rows[rows["hours"].isna()]}.items():
        outputs = [tmp_path / f"{name}.svg", tmp_path / f"{name}.png"]
        plot_forecast(part, "constant", style, outputs)
        assert all(path.stat().st_size > 2000 for path in outputs)


# --- Scale space ---


def test_a_scale_space_arm_is_counted_at_its_scales(small):
    """The mean over all scale factors that may be drawn, including the generation of weights."""

    def count(**parameters):
        trainer = find_trainer("nnUNetTrainerScaleSpace")
        return count_work(small[TASK], trainer, parameters, replace(DESIGN, mirroring=False))

    drawn = count(smallest_scale=0.46, rank=2)
    each = {n: count(scale_factor=n / 100, rank=2) for n in range(46, 51)}
    low, high = each[46], each[50]
    assert low.train_tflop < drawn.train_tflop < high.train_tflop
    assert drawn.final_tflop == pytest.approx(high.final_tflop), "validated at the largest scale"
    assert low.val_tflop < drawn.val_tflop < high.val_tflop
    assert drawn.train_tflop == pytest.approx(sum(work.train_tflop for work in each.values()) / 5)
    turns = [50, 48, 46] * 3 + [50]
    assert len(turns) == TRAINING.validation_iterations_per_epoch
    expected = sum(each[n].val_tflop for n in turns) / 10
    assert drawn.val_tflop == pytest.approx(expected), "the first scale has one more turn"
    assert count(smallest_scale=0.46, rank=0).train_tflop < drawn.train_tflop
    assert drawn.iterations == high.iterations == 42 * 32


def test_scales_that_cannot_be_are_named_by_the_forecast(small):
    trainer = find_trainer("nnUNetTrainerScaleSpace")
    with pytest.raises(UserError, match=r"smallest_scale 0\.7 must be at least 0\.01 below"):
        count_work(small[TASK], trainer, {"smallest_scale": 0.7}, DESIGN)
    with pytest.raises(UserError, match="rank 1 with unit_norm"):
        count_work(small[TASK], trainer, {"rank": 1}, DESIGN)


OF_PATCHES = ("nnUNetTrainerConstantPatch", "nnUNetTrainerProgressivePatch")
LOW = "nnUNetTrainerLowFrequency"
SCALES = "nnUNetTrainerScaleSpace"
OPTIONS = [
    *[(trainer, "training_oversample_foreground_percent", 0.2) for trainer in OF_PATCHES],
    *[(trainer, "validation_oversample_foreground_percent", 0.5) for trainer in OF_PATCHES],
    *[(trainer, "faithful_augmentation_per_stage", True) for trainer in OF_PATCHES],
    *[(trainer, "batched_augmentation", False) for trainer in OF_PATCHES],
    ("nnUNetTrainerProgressivePatch", "augment_on_device", True),
    ("nnUNetTrainerBatchedAugmentation", "batched_planned_patch", False),
    *[(trainer, "mirror_axes", "none") for trainer in OF_PATCHES],
    ("nnUNetTrainerProgressivePatch", "pacing", "volume"),
    ("nnUNetTrainerProgressivePerformancePatch", "max_batch", 20),
    ("nnUNetTrainerProgressivePlusPatch", "plus_seed", None),
    ("nnUNetTrainerProgressiveEfficiencyPatch", "one_voxel_bottleneck", False),
    *[(LOW, "lowpass", value) for value in ("fft", "dct", "resize", "none")],
    (LOW, "half_voxel_shift", False),
    (LOW, "replay_batches", 0),
    (LOW, "replay", "mixed"),
    (LOW, "augmentation_ramp", False),
    *[(LOW, "frequency_schedule", name) for name in ("resnet", "swin", "deit", "convnext")],
    (LOW, "frequency_fractions", ["3/7", 0.8, 1]),
    (LOW, "large_batches_early", True),
    (SCALES, "scale_factor", 0.35),
    (SCALES, "smallest_scale", 0.45),
    (SCALES, "largest_scale", 0.27),
    (SCALES, "rank", 0),
    (SCALES, "unit_norm", False),
    (SCALES, "scale_encoding", "circular"),
    (SCALES, "scale_prior", "sqrt"),
    (SCALES, "film", True),
    (SCALES, "optimizer_name", "adamw"),
    (SCALES, "initial_lr", 0.003),
    (SCALES, "weight_decay", 0.0),
]


@pytest.mark.parametrize(("trainer", "name", "value"), OPTIONS)
def test_every_option_of_an_arm_can_be_forecast(small, trainer, name, value):
    quick: dict[str, Any] = {"rank": 0} if name == "film" else {}
    quick |= {"smallest_scale": 0.49} if (trainer, name) != (SCALES, "largest_scale") else {}
    arms = {
        "constant": Arm("nnUNetTrainerConstantPatch", {}),
        "option": Arm(trainer, {**quick, name: value}, epochs=20),
    }
    table = forecast_rows(
        small,
        arms,
        DESIGN,
        calibration.Calibration("made up", 0.1, 0.1, 0.001, 0.001),
        reference_arm="constant",
        kg_per_kwh=0.4,
    )
    row = table.set_index("arm").loc["option"]
    assert row["hours"] > 0
    assert row["iterations"] >= 20 * TRAINING.iterations_per_epoch


def test_no_option_is_left_out_of_the_forecast():
    """`stage_list` has its own test."""
    schema = yaml.safe_load((ROOT / "config/schemas/config.schema.yaml").read_text())
    arm = schema["properties"]["arms"]["additionalProperties"]
    known = arm["properties"]["parameters"]["properties"]
    assert {name for _, name, _ in OPTIONS} | {"stage_list"} == set(known)
