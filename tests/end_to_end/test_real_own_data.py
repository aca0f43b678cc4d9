"""Real data from outside MSD as own tasks: few thick slices (ACDC), two channels (BraTS)."""

import csv
import json
import os
from pathlib import Path

import pytest

from helpers.quick_study import quick_snakemake
from helpers.tiny_study import CONFIG
from helpers.tree import write_config
from workflow_scripts.data.archives import extract_archive

ACDC, BRATS = "Task542_ACDC", "Task543_BraTS"
ARCHIVES = {ACDC: "Task42_ACDC.tar", BRATS: "Task43_BraTS15mini.tar"}
FOLDER = os.environ.get("OWN_ARCHIVES")
ARMS = {
    # On ACDC, its smallest patch has two slices.
    "progressive_performance": {"trainer": "nnUNetTrainerProgressivePerformancePatch"},
    "scale_space": {"trainer": "nnUNetTrainerScaleSpace"},
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not FOLDER or not all(Path(FOLDER, name).is_file() for name in ARCHIVES.values()),
        reason=f"OWN_ARCHIVES is not set to a folder with {' and '.join(ARCHIVES.values())}",
    ),
]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A study of both tasks with tiny networks."""
    data = tmp_path_factory.mktemp("data")
    for name in ARCHIVES.values():
        task = name.removesuffix(".tar")
        extract_archive(Path(FOLDER, name), data / task)
    folder = tmp_path_factory.mktemp("real")
    config = {
        **CONFIG,
        "study": "real",
        "tasks": list(ARCHIVES),
        "own_tasks": {
            task: {"folder": str(data / name.removesuffix(".tar")), "nsd_tolerance_mm": 2}
            for task, name in ARCHIVES.items()
        },
        "arms": ARMS,
        "reference_arm": "scale_space",
        "planning": {
            "overrides": {
                ACDC: {"features_per_stage": [2, 2, 2, 2, 2, 2]},
                BRATS: {"patch_size": [64, 64, 64], "features_per_stage": [2, 2, 2, 2, 2]},
            }
        },
        "training": CONFIG["training"] | {"epochs": 4, "iterations_per_epoch": 2},
    }
    config = write_config(folder, "real", config)
    wanted = ["tables/comparison.md", "tables/significance.csv", "figures/predictions.svg"]
    targets = [f"results/real/{name}" for name in wanted]
    run = quick_snakemake(folder, *targets, "--cores", 2, "--configfile", config)
    assert run.returncode == 0, run.stdout + run.stderr
    return folder / "results/real"


def test_every_arm_is_trained_and_measured(results):
    with (results / "tables/cases.csv").open(newline="") as file:
        cases = list(csv.DictReader(file))
    found = {
        (row["task"], row["arm"]): {r["case"] for r in cases if r["task"] == row["task"]}
        for row in cases
    }
    assert set(found) == {(task, arm) for task in ARCHIVES for arm in ARMS}
    assert len(found[ACDC, "scale_space"]) == 8
    assert len(found[BRATS, "scale_space"]) == 1
    assert all(0 <= float(row["nsd"]) <= 1 for row in cases if row["nsd"])


def test_the_smallest_patch_of_thick_slice_data_has_two_slices(results):
    with (results / f"runs/{ACDC}/progressive_performance/fold_0/stages.csv").open() as file:
        sizes = [row["patch_size"] for row in csv.DictReader(file)]
    assert sizes[0].startswith("2x")
    assert sizes[-1] == "10x256x224"


def test_two_channels_are_two_inputs(results):
    raw = results.parents[1] / "resources/nnUNet_raw/Dataset543_BraTS"
    assert len(json.loads((raw / "dataset.json").read_text())["channel_names"]) == 2
    assert len(list((raw / "imagesTr").glob("*_0001.nii.gz"))) == 5
