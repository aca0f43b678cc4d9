"""Figures of made-up studies: written, whole, the same every time, and true to the tables."""

import math
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import yaml
from matplotlib.colors import to_rgb
from matplotlib.text import Text
from skimage.color import deltaE_ciede2000, rgb2lab

import workflow_scripts.figures.plot_cost as plot_cost_module
from helpers.fake_study import FakeStudy
from workflow_scripts.common.errors import UserError
from workflow_scripts.common.figure_style import load_style, read_tables
from workflow_scripts.evaluation.assess_significance import assess
from workflow_scripts.evaluation.collect_results import collect_results
from workflow_scripts.evaluation.compare_arms import compare_arms
from workflow_scripts.evaluation.measure_class_balance import label_shares, summarise
from workflow_scripts.evaluation.measure_targets import measure_targets
from workflow_scripts.figures.plot_budget_sweep import COSTS, budgets, plot_budget_sweep
from workflow_scripts.figures.plot_class_balance import plot_class_balance
from workflow_scripts.figures.plot_convergence import POINTS, blocks, plot_convergence
from workflow_scripts.figures.plot_cost import plot_cost
from workflow_scripts.figures.plot_decision import apart, panels, plot_decision, reach
from workflow_scripts.figures.plot_dice import plot_dice
from workflow_scripts.figures.plot_differences import axis_limit, differences, plot_differences
from workflow_scripts.figures.plot_patches import plot_patches, seen, stages_of
from workflow_scripts.figures.plot_predictions import pick_cases, plot_predictions, window
from workflow_scripts.figures.plot_profiles import plot_profiles
from workflow_scripts.figures.plot_schedule import plot_schedule, schedule
from workflow_scripts.trainers.curricula.schedules.patch_plan import PatchPlan
from workflow_scripts.trainers.curricula.schedules.planner import plan_schedule
from workflow_scripts.trainers.curricula.schedules.settings import (
    CurriculumSettings,
    TrainingLength,
)

STYLE = Path(__file__).parents[2] / "config" / "plotting.yaml"
SMALL = {"arms": ("constant",), "folds": (0,), "epochs": 2, "cases": 1}
LARGER = {"tasks": ("Task97_A", "Task98_B"), "arms": ("constant", "progressive", "random", "new")}
LARGER |= {"seeds": (1, 2), "cases": 6}


NO_FOREGROUND = {
    key: {"case_000": {"1": math.nan, "2": math.nan}}
    for key in product(("Task98_Fake",), ("constant", "progressive", "random"), (0, 1), (1,))
}


@pytest.fixture(
    scope="module",
    params=[SMALL, LARGER, {"dice": NO_FOREGROUND}],
    ids=["one-of-each", "several", "no-foreground"],
)
def study(request, tmp_path_factory):
    """A made-up study with its tables."""
    study = FakeStudy(tmp_path_factory.mktemp("study"), **request.param).write()
    names = ("runs", "cases", "epochs", "stages", "energy")
    collect_results(study.folders(), {name: study.root / f"{name}.csv" for name in names})
    compare_arms(
        study.root / "runs.csv",
        study.root / "cases.csv",
        {ending: study.root / f"comparison.{ending}" for ending in ("csv", "md", "tex")},
        "constant",
        list(study.tasks),
        list(study.arms),
    )
    of_arms = {"reference_arm": "constant", "tasks": list(study.tasks), "arms": list(study.arms)}
    assess(table(study, "cases"), **of_arms, seed=1).to_csv(study.root / "significance.csv")
    measure_targets(table(study, "epochs"), table(study, "runs"), **of_arms).to_csv(
        study.root / "targets.csv"
    )
    return study


@pytest.fixture(scope="module")
def style():
    """The style, with a low resolution for speed."""
    style = load_style(STYLE)
    return replace(style, figure={**style.figure, "dpi": 50})


def table(study, name):
    return read_tables(study.root / f"{name}.csv")[0]


def check(paths):
    """Check that both files are complete."""
    png, svg = paths
    from PIL import Image

    Image.open(png).verify()
    assert svg.read_text().rstrip().endswith("</svg>")


def outputs(study, name):
    return [study.root / f"{name}.png", study.root / f"{name}.svg"]


@pytest.mark.parametrize(
    ("name", "draw", "tables"),
    [
        ("budget", plot_budget_sweep, ["runs"]),
        ("dice", plot_dice, ["runs"]),
        ("cost", plot_cost, ["comparison"]),
        ("differences", plot_differences, ["significance"]),
        ("profiles", plot_profiles, ["targets"]),
        ("convergence", plot_convergence, ["epochs"]),
        ("schedule", plot_schedule, ["epochs", "runs"]),
    ],
)
def test_figures_are_written(study, style, name, draw, tables):
    paths = outputs(study, name)
    draw(*(table(study, wanted) for wanted in tables), style, paths)
    check(paths)
    before = [path.read_bytes() for path in paths]
    draw(*(table(study, wanted) for wanted in tables), style, paths)
    assert [path.read_bytes() for path in paths] == before


def test_the_line_of_the_cost_crosses_no_text(study, style, monkeypatch):
    """Nor is any text cut off at the edge of the figure."""
    drawn = []
    monkeypatch.setattr(plot_cost_module, "save", lambda figure, *_: drawn.append(figure))
    plot_cost(table(study, "comparison"), style, [])
    (figure,) = drawn
    figure.canvas.draw()
    page = figure.bbox.padded(1)
    for text in figure.findobj(Text):
        if text.get_visible() and text.get_text():
            box = text.get_window_extent()
            assert page.contains(*box.min) and page.contains(*box.max), text.get_text()
    for axis in figure.axes:
        line = axis.transData.transform((1.0, 0))[0]
        ends = [text.get_window_extent() for text in axis.texts]
        assert ends and not any(box.x0 <= line <= box.x1 for box in ends)


def verdicts_of(tasks, **more):
    """Return verdicts.csv of three arms: kept, failed, undecided."""
    arms = {"arm": ["progressive", "random", "new"], "verdict": ["kept", "none", "undecided"]}
    arms |= {"difference": [0.002, -0.8, -0.004], "ci_low": [-0.004, -0.9, -0.02]}
    arms |= {"ci_high": [0.008, -0.7, 0.01], "time": [0.5, 0.4, 0.502], "energy": [0.5, 0.4, 0.5]}
    arms |= {"margin": 0.01, "covers_seeds": True} | more
    return pd.concat([pd.DataFrame(arms).assign(task=task) for task in tasks], ignore_index=True)


@pytest.mark.parametrize("tasks", [["A"], [*"ABCDEFGHIJ", "overall"], []])
def test_the_decision_is_drawn_for_any_number_of_tasks(style, tmp_path, tasks):
    table = verdicts_of(tasks) if tasks else verdicts_of("A").iloc[:0]
    paths = [tmp_path / "decision.png", tmp_path / "decision.svg"]
    plot_decision(table, style, paths, "time", "constant")
    check(paths)
    text = paths[1].read_text()
    assert ("−0.80" in text) == bool(tasks), "a change beyond the axis is written"
    assert ("mean of 10 tasks" in text) == (len(tasks) > 1)
    before = paths[1].read_bytes()
    plot_decision(table, style, paths, "time", "constant")
    assert paths[1].read_bytes() == before


def test_an_interval_over_cases_alone_is_told_from_one_over_seeds(style, tmp_path):
    texts = []
    for covers in (True, False):
        path = tmp_path / f"{covers}.svg"
        plot_decision(verdicts_of("A", covers_seeds=covers), style, [path], "energy", "constant")
        texts.append(path.read_text())
        assert "training energy" in texts[-1]
    assert ["new cases only" in text for text in texts] == [False, True]


def test_the_decision_shows_the_mean_first_and_fits_the_margin():
    table = verdicts_of(["A", "overall"])
    assert panels(table) == ["overall", "A"]
    assert panels(verdicts_of("A")) == ["A"]
    assert reach(table) == pytest.approx(1.1 * 3 * 0.02), "a failed arm does not stretch the axis"
    assert reach(table.assign(margin=0.1)) == pytest.approx(0.16)


def test_marks_of_equal_cost_are_moved_apart():
    places = apart(np.array([0.5, 1.0, 0.501, np.nan]), 0.03)
    assert places == pytest.approx([0.4855, 1.0, 0.5155, np.nan], nan_ok=True)


def test_the_mean_of_the_tasks_combines_their_intervals():
    significance = pd.DataFrame(
        {
            "measure": ["dice", "dice", "nsd", "dice"],
            "label": [np.nan, np.nan, np.nan, "1"],
            "arm": "a",
            "task": ["A", "B", "A", "A"],
            "difference": [0.01, 0.03, 9.0, 9.0],
            "ci_low": [-0.02, -0.01, 9.0, 9.0],
            "ci_high": [0.04, 0.07, 9.0, 9.0],
        }
    )
    table = differences(significance)
    assert table["task"].tolist() == ["A", "B", "overall"]
    # Half-widths 0.03 and 0.04: 0.05 / 2 for the mean of two.
    assert table.iloc[2][["difference", "low", "high"]].tolist() == pytest.approx(
        [0.02, -0.005, 0.045]
    )
    assert len(differences(significance[significance["task"] == "A"])) == 1


def test_an_arm_that_fails_does_not_hide_the_differences_of_the_others(style, tmp_path):
    arms = ["progressive", "random", "progressive_plus", "low_frequency"]
    significance = pd.DataFrame(
        {"measure": "dice", "label": np.nan, "arm": arms, "task": "A", "reference_arm": "constant"}
        | {"folds": 1, "seeds": 3, "difference": [-0.01, -0.3, 0.0, 0.004]}
        | {"ci_low": [-0.02, -0.5, -0.01, 0.001], "ci_high": [0.0, -0.1, 0.01, 0.01]}
    )
    assert axis_limit(differences(significance)) == pytest.approx(1.08 * 3 * 0.015)
    others = significance[significance["arm"] != "random"]
    assert axis_limit(differences(others)) == pytest.approx(1.08 * 0.02)
    equal = others.assign(difference=0.0, ci_low=0.0, ci_high=[0.01, 0.0, 0.0])
    assert axis_limit(differences(equal)) == pytest.approx(1.08 * 0.01), "arms without difference"
    plot_differences(significance, style, [tmp_path / "all.svg"])
    assert "-0.300" in (tmp_path / "all.svg").read_text()
    plot_differences(others, style, [tmp_path / "others.svg"])
    assert "0.300" not in (tmp_path / "others.svg").read_text()


def test_missing_energy_does_not_stop_the_figures(study, style):
    comparison = table(study, "comparison").assign(
        training_kwh=np.nan, training_kwh_relative=np.nan
    )
    plot_cost(comparison, style, outputs(study, "cost"))
    check(outputs(study, "cost"))
    plot_convergence(table(study, "epochs").assign(kwh=np.nan), style, outputs(study, "curve"))
    check(outputs(study, "curve"))


def made_up_volumes(study, raw):
    """Write a ball in noise for every case, and predictions that are off by one voxel."""
    grid = np.mgrid[:20, :24, :16]
    labels = (sum((grid[a] - c) ** 2 for a, c in enumerate((10, 12, 8))) < 36).astype(np.int16)
    image = labels * 50.0 + np.random.default_rng(0).normal(size=labels.shape)
    runs, cases = table(study, "runs"), table(study, "cases")

    def save(array, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(array, np.diag([1.0, 1.0, 2.0, 1.0])), path)

    for run in runs.itertuples():
        same = (cases["task"] == run.task) & (cases["arm"] == run.arm) & (cases["fold"] == run.fold)
        for case in cases.loc[same, "case"].unique():
            save(image, raw / run.dataset / "imagesTr" / f"{case}_0000.nii.gz")
            save(labels, raw / run.dataset / "labelsTr" / f"{case}.nii.gz")
            moved = np.roll(labels, 1, axis=0)
            save(moved, study.root / run.results_folder / "validation" / f"{case}.nii.gz")


def test_predictions(study, style, monkeypatch):
    monkeypatch.chdir(study.root)
    raw = study.root / "raw"
    made_up_volumes(study, raw)
    for folder in raw.iterdir():
        (folder / "dataset.json").write_text('{"file_ending": ".nii.gz", "labels": {}}')
    runs, cases = table(study, "runs"), table(study, "cases")
    paths = outputs(study, "predictions")
    plot_predictions(runs, cases, style, raw, "constant", paths)
    check(paths)
    assert "axial slice" in next(p for p in paths if p.suffix == ".svg").read_text()
    gone = next(raw.glob("*/labelsTr/*.nii.gz"))
    for path in raw.glob("*/labelsTr/*.nii.gz"):
        path.unlink()
    with pytest.raises(UserError, match=gone.parent.name):
        plot_predictions(runs, cases, style, raw, "constant", paths)


def test_no_two_of_twenty_labels_look_alike(style):
    looks = [tuple(style.outline(label).values()) for label in range(1, 21)]
    assert len(set(looks)) == 20


def test_class_balance(study, style):
    rows = [
        {"task": task, "patch_size": size, "patch_voxels": voxels, "forced": forced}
        | {"field_of_view": "16x8x8" if label == "1" else size}
        | {"label": label, "label_name": f"name {label}", "foreground_share": 10 / voxels}
        | {"foreground_share_sem": 0.01, "patches_with_label": 0.5, "samples": 9}
        for task in study.tasks
        for size, voxels in {"8x8x8": 512, "16x8x8": 1024}.items()
        for forced in (False, True)
        for label in ("0", "1")
    ]
    plot_class_balance(pd.DataFrame(rows), style, outputs(study, "class_balance"))
    check(outputs(study, "class_balance"))


def test_cases_picked_by_hand():
    dice = {"a": (0.1, math.nan), "b": (0.5, 0.7), "c": (0.9, 0.9), "d": (math.nan, math.nan)}
    rows = [
        {"arm": "constant", "case": case, "label": str(label), "dice": value}
        for case, values in dice.items()
        for label, value in enumerate(values)
    ]
    undefined = pd.DataFrame(rows)[lambda table: table["case"] == "d"]
    assert pick_cases(undefined, "constant") == {"first": "d"}
    picked = pick_cases(pd.DataFrame(rows), "constant")
    assert picked == {"worst": "a", "median": "b", "best": "c"}
    assert pick_cases(pd.DataFrame(rows[:2]), "constant") == {"median": "a"}


def test_slice_with_the_most_foreground():
    reference = np.zeros((20, 20, 5), dtype=int)
    reference[4, 4, 1] = 1
    reference[5:7, 8:12, 3] = 2
    rows, columns, index = window(reference)
    assert index == 3
    assert rows.start <= 5 and rows.stop >= 7
    assert columns.start <= 8 and columns.stop >= 12
    rows, columns, index = window(np.zeros((4, 4, 2), dtype=int))
    assert (rows, columns) == (slice(0, 4), slice(0, 4))


def test_schedule_is_relative_to_the_plan(tmp_path):
    study = FakeStudy(tmp_path, arms=("progressive", "random"), folds=(1, 2), epochs=3).write()
    names = ("runs", "epochs")
    collect_results(study.folders(), {name: tmp_path / f"{name}.csv" for name in names})
    epochs, runs = read_tables(tmp_path / "epochs.csv", tmp_path / "runs.csv")
    result = schedule(epochs, runs)
    grown = result[result["arm"] == "progressive"]
    assert grown["relative"].tolist() == [0.125, 0.5, 1.0]
    assert grown[["axis_0", "axis_1", "axis_2"]].to_numpy().tolist()[1] == [8, 16, 16]
    assert grown["epoch"].tolist() == [1, 2, 3]
    assert result.loc[result["arm"] == "random", "axis_0"].isna().all()


def test_schedule_tells_what_a_low_pass_left(tmp_path, style):
    """8x16x16 of 16x16x16 voxels are left, 0.5 of one axis; older tables lack these columns."""
    study = FakeStudy(tmp_path, arms=("constant", "progressive"), folds=(0,), epochs=3).write()
    collect_results(study.folders(), {n: tmp_path / f"{n}.csv" for n in ("runs", "epochs")})
    epochs, runs = read_tables(tmp_path / "epochs.csv", tmp_path / "runs.csv")
    plain = schedule(epochs, runs)
    assert (plain["bandwidth"] == 1).all()
    assert (plain["augmentation"] == 1).all()
    reduced = epochs["arm"] == "progressive"
    epochs["field_of_view"] = epochs["patch_size"].where(~reduced, "16x16x16")
    epochs["augmentation"] = np.where(reduced, epochs["epoch"] / 2, np.nan)
    result = schedule(epochs, runs)
    low = result[result["arm"] == "progressive"]
    assert low["bandwidth"].tolist() == pytest.approx([0.5, 0.5 ** (1 / 3), 1.0])
    assert low["augmentation"].tolist() == [0, 0.5, 1]
    whole = result.loc[result["arm"] == "constant", ["bandwidth", "augmentation"]]
    assert (whole == 1).all(axis=None)
    paths = [tmp_path / "low.png", tmp_path / "low.svg"]
    plot_schedule(epochs, runs, style, paths)
    check(paths)
    assert "augmentation" in paths[1].read_text()


def test_schedule_of_2d_plans_has_two_axes(tmp_path, style):
    study = FakeStudy(tmp_path, arms=("constant", "progressive"), folds=(0,), epochs=3).write()
    collect_results(study.folders(), {n: tmp_path / f"{n}.csv" for n in ("runs", "epochs")})
    epochs, runs = read_tables(tmp_path / "epochs.csv", tmp_path / "runs.csv")
    for table in (epochs, runs):
        table["patch_size"] = table["patch_size"].str.partition("x")[2]
    epochs["field_of_view"] = "16x16"
    epochs["augmentation"] = 1.0
    result = schedule(epochs, runs)
    assert [name for name in result if name.startswith("axis")] == ["axis_0", "axis_1"]
    grown = result[result["arm"] == "progressive"]
    assert grown["bandwidth"].tolist()[-1] == 1
    sizes = [tuple(map(int, size.split("x"))) for size in epochs["patch_size"]]
    kept = [(a * b / 256) ** 0.5 for a, b in sizes]
    assert result["bandwidth"].tolist() == pytest.approx(kept)
    paths = [tmp_path / "flat.svg"]
    plot_schedule(epochs, runs, style, paths)
    assert "axis 1" in paths[0].read_text()
    assert "axis 2" not in paths[0].read_text()


TRAINER = SimpleNamespace(lowpass="fft", half_voxel_shift=True)


def planned(curriculum, epochs=20):
    plan, length = PatchPlan((16, 24, 16), (2, 2, 2), 2), TrainingLength(epochs, 5, 7)
    return plan_schedule(plan, length, CurriculumSettings(curriculum))


def test_patches_are_those_of_the_training(tmp_path, style):
    patch = np.random.default_rng(0).normal(size=(16, 24, 16)).astype(np.float32)
    low, grown = planned("low_frequency"), planned("progressive")
    assert stages_of(low) == list(low.stages), "each of the ten stages, whatever its length"
    assert stages_of(planned("low_frequency", 667)) == list(low.stages)
    for stage in low.stages:
        found = seen(patch, stage, TRAINER, {})
        assert found.shape == stage.patch_size
        assert found.mean() == pytest.approx(patch.mean(), abs=1e-5), "the whole field of view"
    resized = seen(patch, low.stages[0], TRAINER, {"lowpass": "resize"})
    assert not np.allclose(resized, seen(patch, low.stages[0], TRAINER, {}))
    first = grown.stages[0]
    assert np.array_equal(seen(patch, first, TRAINER, {}), patch[4:12, 10:14, 6:10])
    names = ("constant", "progressive", "low_frequency", "low_frequency_iterations")
    arms = {name: (planned(name), TRAINER, {}) for name in names}
    arms["dct"] = (low, TRAINER, {"lowpass": "dct"})
    paths = [tmp_path / "patches.png", tmp_path / "patches.svg"]
    plot_patches(patch, arms, "Task98_A", style, paths)
    check(paths)
    labels = [style.arm(name)["label"] for name in names]
    assert all(paths[1].read_text().count(f"<!-- {label} -->") == 1 for label in labels)
    assert paths[1].read_text().count("<!-- augm. 0.00 -->") == 2, "one row for both clocks"


def test_long_trainings_are_averaged_in_blocks():
    epochs = pd.DataFrame({"epoch": range(1000), "task": "t", "arm": "a", "fold": 0, "seed": 1})
    epochs = epochs.assign(seconds=2.0, kwh=1.0, pseudo_dice=epochs["epoch"] / 1000)
    result = blocks(epochs)
    assert len(result) <= POINTS
    assert result["epoch"].iloc[-1] == 1000
    assert result["seconds"].iloc[-1] == 2000
    assert result["pseudo_dice"].iloc[0] == pytest.approx(epochs["pseudo_dice"].iloc[:7].mean())


def test_an_epoch_without_a_reading_makes_the_sum_unknown():
    epochs = pd.DataFrame({"epoch": range(4), "task": "t", "arm": "a", "fold": 0, "seed": 1})
    result = blocks(epochs.assign(seconds=1.0, kwh=[1.0, np.nan, 1.0, 1.0], pseudo_dice=0.5))
    assert result["kwh"].tolist()[0] == 1.0
    assert result["kwh"].iloc[1:].isna().all()


def test_label_shares_by_hand():
    patches = np.zeros((2, 2, 2, 2), dtype=int)
    patches[0, 0, 0] = [1, 2]
    patches[1, 0] = [[-1, 2], [-1, 2]]
    shares = label_shares(patches, [1, 2])
    assert shares.tolist() == [[0.25, 0.125, 0.125], [0.25, 0.0, 0.25]]
    result = summarise(shares)
    assert result["foreground_share"].tolist() == [0.25, 0.0625, 0.1875]
    assert result["foreground_share_sem"].tolist() == [0.0, 0.0625, 0.0625]
    assert result["patches_with_label"].tolist() == [1.0, 0.5, 1.0]


def test_order_of_arms(style):
    assert style.order(["new", "random", "constant", "new"]) == ["constant", "random", "new"]


def test_looks_differ(style):
    looks = [(look["color"], look["marker"]) for look in style.arms.values()]
    assert len(set(looks)) == len(looks)


@pytest.mark.parametrize("study", ["demo", "hippocampus", "paper", "scale_space"])
def test_colours_differ_within_a_study(style, study):
    """Networks of one scale factor each are one kind of arm: same colour, different markers."""
    arms = yaml.safe_load((STYLE.parent / f"studies/{study}.yaml").read_text())["arms"]
    kinds = {arm: "fixed" if arm.startswith("fixed_0") else arm for arm in arms}
    colors = {kind: style.arm(arm)["color"] for arm, kind in kinds.items()}
    assert set(arms) <= set(style.arms)
    assert len(set(colors.values())) == len(colors)


def test_an_outline_has_no_arms_colour(style):
    """CIEDE2000 differences; from about 10 on, colours differ at a glance."""

    def lab(color):
        return rgb2lab([[to_rgb(color)]])

    arms = {look["color"] for look in style.arms.values()}
    near = {
        (label, arm): float(deltaE_ciede2000(lab(label), lab(arm)).item())
        for label, arm in product(style.labels, arms)
    }
    assert min(near.values()) > 15, min(near, key=near.get)
    between = [deltaE_ciede2000(lab(a), lab(b)).item() for a, b in combinations(style.labels, 2)]
    assert min(between) > 15


def test_wrong_key_in_the_style_is_named(tmp_path):
    path = tmp_path / "plotting.yaml"
    path.write_text(STYLE.read_text().replace("  font_size:", "  fontsize:"))
    with pytest.raises(UserError, match="font_size"):
        load_style(path)


def test_a_sweep_joins_the_lengths_of_an_arm():
    runs = pd.DataFrame(
        {
            "task": "Task98_B",
            "seed": 1,
            "arm": ["constant_4", "constant_8", "constant_8", "progressive_plus_4"],
            "fold": [0, 0, 1, 0],
            "training_steps": [4, 8, 8, 4],
            "dice_foreground_mean": [0.5, 0.6, 0.8, 0.4],
            **{cost: [1.0, 2.0, 4.0, 0.5] for cost in COSTS},
        }
    )
    table = budgets(runs).set_index(["arm", "training_steps"])
    assert list(table.index) == [("constant", 4), ("constant", 8), ("progressive_plus", 4)]
    row = table.loc[("constant", 8)]
    assert (row["dice"], row["low"], row["high"], row["training_kwh"]) == pytest.approx(
        (0.7, 0.6, 0.8, 3.0)
    )
