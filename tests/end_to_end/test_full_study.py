"""From the files of 400 runs to the report, with the real command. The study is MADE UP.

Ten tasks × five folds × the full-length arms of config/studies/paper.yaml, with 60 cases, in the
layout that trainings produce. It shows that a study of the papers' size runs through, not that it
was trained.
"""

import json
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
import yaml

from helpers.fake_study import FakeStudy
from helpers.quick_study import quick_snakemake
from helpers.tree import ROOT, plan, write_config
from workflow_scripts.common.figure_style import load_style
from workflow_scripts.evaluation.claims import CONTRADICTED, INSUFFICIENT, SUPPORTED
from workflow_scripts.evaluation.collect_results import collect_results
from workflow_scripts.figures.plot_patches import plot_patches
from workflow_scripts.figures.plot_predictions import pick_cases
from workflow_scripts.trainers.curricula.schedules.patch_plan import PatchPlan
from workflow_scripts.trainers.curricula.schedules.planner import plan_schedule
from workflow_scripts.trainers.curricula.schedules.settings import (
    CurriculumSettings,
    TrainingLength,
)

CONFIG = yaml.safe_load((ROOT / "config/studies/paper.yaml").read_text())
SEED = CONFIG["training"].setdefault("seed", 1)
LENGTH = {"epochs": 10, "iterations_per_epoch": 25_000, "validation_iterations_per_epoch": 1}
CONFIG["training"] |= LENGTH
del CONFIG["arms"]["constant_short"]
for arm in CONFIG["arms"].values():
    arm.pop("epochs", None)
del CONFIG["cluster"]  # it would require a forecast, which is not made here
AFTER_TRAINING = ["collect_results", "compare_arms", "assess_significance", "check_claims"]
AFTER_TRAINING += ["separate_variance", "measure_targets", "plot_profiles", "plot_differences"]
AFTER_TRAINING += ["tabulate_overview", "decide_arms", "plot_decision"]
AFTER_TRAINING += [f"plot_{name}" for name in ("dice", "cost", "convergence", "schedule")]
AFTER_TRAINING += ["plot_class_balance", "plot_predictions", "run_notebook", "all"]
TRAINERS = {arm: chosen["trainer"] for arm, chosen in CONFIG["arms"].items()}

pytestmark = pytest.mark.ci


def write_image(path, voxels):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), path)


def write_examples(root, runs, cases):
    """Write the images, references and predictions for the figure of example slices."""
    labels = np.zeros((16, 16, 16), np.uint8)
    labels[4:12, 4:12, 4:12], labels[6:10, 6:10, 6:10] = 1, 2
    image = np.random.default_rng(0).normal(size=labels.shape).astype(np.float32)
    for task, table in cases.groupby("task"):
        for case in pick_cases(table, "constant").values():
            fold = table.loc[table["case"] == case, "fold"].iloc[0]
            chosen = runs[(runs["task"] == task) & (runs["fold"] == fold)]
            raw = root / "resources/nnUNet_raw" / chosen["dataset"].iloc[0]
            write_image(raw / "imagesTr" / f"{case}_0000.nii.gz", image)
            write_image(raw / "labelsTr" / f"{case}.nii.gz", labels)
            for folder in chosen["results_folder"]:
                write_image(root / folder / "validation" / f"{case}.nii.gz", labels)


def write_balance(path, tasks):
    sizes = {("8x8x8", "8x8x8"): 0.3, ("16x16x16", "16x16x16"): 0.1, ("8x8x8", "16x16x16"): 0.1}
    rows = [
        {"task": task, "patch_size": size, "patch_voxels": int(size.split("x")[0]) ** 3}
        | {"forced": forced, "oversample": 0.33 * forced, "label": label, "label_name": name}
        | {"foreground_share": share, "foreground_share_sem": 0.01, "field_of_view": view}
        | {"patches_with_label": 0.5, "samples": 200}
        for task in tasks
        for (size, view), share in sizes.items()
        for forced in (False, True)
        for label, name in enumerate(("any label", "inner", "outer & rim"))
    ]
    path.parent.mkdir(parents=True)
    pd.DataFrame(rows).to_csv(path, index=False)


def write_patches(folder):
    """Draw the one figure that needs preprocessed data, from noise."""
    plan, length = PatchPlan((16, 16, 16), (2, 2, 2), 2), TrainingLength(10, 5)
    schedule = plan_schedule(plan, length, CurriculumSettings("progressive"))
    patch = np.random.default_rng(0).normal(size=(16, 16, 16))
    folder.mkdir(parents=True)
    paths = [folder / f"patches.{kind}" for kind in ("svg", "png")]
    style = load_style(ROOT / "config/plotting.yaml")
    plot_patches(patch, {"progressive": (schedule, None, {})}, "Task98_A", style, paths)


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """Folder, command-line arguments and results folder of the finished study."""
    root = tmp_path_factory.mktemp("full")
    made_up = FakeStudy(
        root,
        tasks=tuple(CONFIG["tasks"]),
        arms=tuple(TRAINERS),
        folds=tuple(CONFIG["folds"]),
        seeds=(SEED,),
        epochs=LENGTH["epochs"],
        iterations=LENGTH["iterations_per_epoch"],
        plans="nnUNetPlans",
        cases=60,
    ).write()
    for key, folder in made_up.folders().items():
        record = json.loads((folder / "run.json").read_text())
        record["trainer"] = TRAINERS[key[1]]
        (folder / "run.json").write_text(json.dumps(record))
    paths = {name: tmp_path_factory.mktemp("tables") / f"{name}.csv" for name in ("runs", "cases")}
    collect_results(made_up.folders(), paths)
    text = {"case": str, "label": str}
    write_examples(root, pd.read_csv(paths["runs"]), pd.read_csv(paths["cases"], dtype=text))
    for folder in (root / "resources/nnUNet_raw").iterdir():
        (folder / "dataset.json").write_text('{"file_ending": ".nii.gz"}')
    results = root / "results/fake"
    write_balance(results / "tables/class_balance.csv", CONFIG["tasks"])
    write_patches(results / "figures")
    arguments = ["--cores", "2", "--configfile", write_config(root, "full", CONFIG, study="fake")]
    arguments += ["--allowed-rules", *AFTER_TRAINING]
    run = quick_snakemake(root, *arguments)
    assert run.returncode == 0, run.stdout + run.stderr
    return root, arguments, results


def test_nothing_is_left_to_do(full):
    root, arguments, _ = full
    assert plan(root, *arguments)[0] == {}


def test_tables_hold_every_run_case_and_comparison(full):
    tables = full[2] / "tables"
    assert len(pd.read_csv(tables / "runs.csv")) == 400
    assert len(pd.read_csv(tables / "cases.csv")) == 400 * 60 * 2
    significance = pd.read_csv(tables / "significance.csv", dtype={"label": str})
    means = significance[significance["label"].isna() & (significance["measure"] == "dice")]
    assert len(means) == 10 * 7
    assert set(means["pairs"]) == {300}
    assert set(means["tests"]) == {70}
    claims = pd.read_csv(tables / "claims.csv").set_index(["claim", "arm"])
    for arm in ("progressive", "progressive_plus"):
        assert claims.loc[("miccai-time", arm), "verdict"] in (SUPPORTED, CONTRADICTED)
        assert claims.loc[("miccai-dice", arm), "verdict"] == INSUFFICIENT, "one seed"


def test_the_report_gathers_it(full):
    root, arguments, _ = full
    run = quick_snakemake(root, "--report", "report.zip", *arguments)
    assert run.returncode == 0, run.stderr
    with zipfile.ZipFile(root / "report.zip") as archive:
        names = {Path(name).name for name in archive.namelist()}
    assert {"results.html", "curricula.html", "dice.png", "claims.csv"} <= names
