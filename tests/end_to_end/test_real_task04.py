"""A complete study of the real Task04_Hippocampus, with networks too small to be accurate."""

import csv
import json
import os
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from helpers.processes import PATIENCE
from helpers.quick_study import quick_snakemake
from helpers.tree import ROOT, write_config

TASK = "Task04_Hippocampus"
ARMS = [
    *yaml.safe_load((ROOT / "config/studies/hippocampus.yaml").read_text())["arms"],
    "scale_space",
]
ARCHIVES = os.environ.get("MSD_ARCHIVES")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not ARCHIVES or not Path(ARCHIVES, f"{TASK}.tar").is_file(),
        reason=f"MSD_ARCHIVES is not set to a folder with {TASK}.tar",
    ),
]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The study `hippocampus` with trainings of a few seconds, one seed and the planned patch."""
    folder = tmp_path_factory.mktemp("task04")
    config = write_config(
        folder,
        "short",
        yaml.safe_load((ROOT / "config/studies/hippocampus.yaml").read_text()),
        seeds=[1],
        arms={
            "low_frequency": {"trainer": "nnUNetTrainerLowFrequency", "epochs": 2},
            "constant_short": {"trainer": "nnUNetTrainerConstantPatch", "epochs": 1},
            "scale_space": {"trainer": "nnUNetTrainerScaleSpace"},
        },
        planning={"overrides": {"all": {"batch_size": 2, "features_per_stage": [2, 2, 2, 2]}}},
        training={
            "epochs": 2,
            "iterations_per_epoch": 3,
            "validation_iterations_per_epoch": 1,
            "device": "cpu",
            "precision": "auto",
            "threads": 1,
        },
        validation={"mirroring": False},
    )
    arguments = ["--cores", 2, "--configfile", config, "--config", f"archives={ARCHIVES}"]
    run = quick_snakemake(folder, *arguments)
    assert run.returncode == 0, run.stdout + run.stderr
    return SimpleNamespace(
        folder=folder,
        config=config,
        run=run,
        preprocessed=folder / "resources/nnUNet_preprocessed/Dataset004_Hippocampus",
        results=folder / "results/hippocampus",
    )


def test_the_plan_is_the_one_that_nnunet_published(study):
    plans = json.loads((study.preprocessed / "nnUNetPlans.json").read_text())
    chosen = plans["configurations"]["3d_fullres"]
    assert chosen["patch_size"] == [40, 56, 40]
    assert chosen["batch_size"] == 9
    strides = chosen["architecture"]["arch_kwargs"]["strides"]
    assert [[step[axis] for step in strides].count(2) for axis in range(3)] == [3, 3, 3]


def test_overrides_leave_the_rest_of_the_plan(study):
    (path,) = study.preprocessed.glob("nnUNetPlans_????????.json")
    chosen = json.loads(path.read_text())["configurations"]["3d_fullres"]
    assert chosen["patch_size"] == [40, 56, 40]
    assert chosen["batch_size"] == 2


def test_all_260_cases_are_there_in_five_folds(study):
    manifest = json.loads((study.preprocessed / "nnUNetPlans_3d_fullres.manifest.json").read_text())
    assert len(manifest["cases"]) == 260
    splits = json.loads((study.preprocessed / "splits_final.json").read_text())
    assert [len(split["val"]) for split in splits] == [52] * 5
    assert {case for split in splits for case in split["val"]} == set(manifest["cases"])


@pytest.mark.parametrize("arm", ARMS)
def test_an_arm_is_validated_on_the_52_cases_of_its_fold(study, arm):
    folder = study.results / f"runs/{TASK}/{arm}/fold_0"
    record = json.loads((folder / "run.json").read_text())
    assert record["cases"] == 52
    assert record["patch_size"] == [40, 56, 40]
    assert record["label_names"] == {"1": "Anterior", "2": "Posterior"}
    assert len(json.loads((folder / "summary.json").read_text())["metric_per_case"]) == 52


def test_tables_and_report_have_the_real_task(study):
    with (study.results / "tables/cases.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(ARMS) * 52 * 2
    assert TASK in (study.results / "tables/comparison.md").read_text()
    for notebook in ("results", "curricula"):
        assert "<img" in (study.results / f"notebooks/{notebook}.html").read_text()


def test_stock_nnunet_predicts_a_case_with_a_baked_model(study, tmp_path):
    run = quick_snakemake(
        study.folder,
        "bake",
        *("--cores", 2, "--configfile", study.config),
        *("--config", "scale_factor=0.35", f"archives={ARCHIVES}"),
    )
    assert run.returncode == 0, run.stdout + run.stderr
    (model,) = (study.results / "baked/scale_space/scale_0.35").glob("*/*")
    image = study.folder / "resources/nnUNet_raw/Dataset004_Hippocampus/imagesTr"
    image = min(image.glob("*.nii.gz"))
    (tmp_path / "images").mkdir()
    shutil.copy(image, tmp_path / "images")
    predicting = [
        *("nnUNetv2_predict_from_modelfolder", "-m", model, "-f", "0", "-device", "cpu"),
        *("-i", tmp_path / "images", "-o", tmp_path / "predictions", "-npp", "1", "-nps", "1"),
        "--disable_tta",
    ]
    environment = {**os.environ, "nnUNet_extTrainer": str(model / "trainers")}
    subprocess.run(predicting, env=environment, check=True, timeout=PATIENCE)
    case = image.name.replace("_0000.nii.gz", ".nii.gz")
    assert (tmp_path / "predictions" / case).is_file()


def test_the_archive_is_linked_and_where_it_lies_is_no_reason_to_train(study):
    assert (study.folder / f"resources/archives/{TASK}.tar").is_symlink()
    run = quick_snakemake(study.folder, "-n", "--configfile", study.config)
    assert "Nothing to be done" in run.stdout + run.stderr
