"""Datasets with features that MSD lacks, from the user's folder to the pages of a study."""

import csv
import json
from types import SimpleNamespace

import pytest

from helpers.formats import write_ignored, write_regions
from helpers.quick_study import quick_snakemake
from helpers.tiny_study import CONFIG
from helpers.tree import write_config

pytestmark = pytest.mark.ci

REGIONS, IGNORED = "Task504_Regions", "Task505_Ignored"
ARMS = ("constant", "low_frequency")


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study of both datasets on fold 1, with folders given relative to `~`."""
    data = tmp_path_factory.mktemp("home")
    write_regions(data / "regions")
    write_ignored(data / "ignored")
    folder = tmp_path_factory.mktemp("formats")
    config = {
        **CONFIG,
        "study": "formats",
        "tasks": [REGIONS, IGNORED],
        "own_tasks": {
            REGIONS: {"folder": "~/regions", "nsd_tolerance_mm": 2},
            IGNORED: {
                "folder": "~/ignored",
                "groups": "~/ignored/patients.csv",
                "nsd_tolerance_mm": 2,
            },
        },
        "folds": [1],
        "arms": {arm: CONFIG["arms"][arm] for arm in ARMS}
        | {"scale_space": {"trainer": "nnUNetTrainerScaleSpace"}},
    }
    arguments = ["--configfile", write_config(folder, "formats", config)]
    run = quick_snakemake(folder, "--cores", 2, *arguments, env={"HOME": str(data)})
    assert run.returncode == 0, run.stdout + run.stderr
    return SimpleNamespace(folder=folder, arguments=arguments, home=data)


def test_regions_are_measured_as_such(study):
    tables = study.folder / "results/formats/tables"
    cases = [row for row in rows(tables / "cases.csv") if row["task"] == REGIONS]
    assert {(row["label"], row["label_name"]) for row in cases} == {
        ("(1, 2)", "whole"),
        ("(2,)", "core"),
    }
    assert {row["case"] for row in cases} == {"patient 0", "patient 1"}, (
        "from the dataset's own fold 1"
    )
    for row in cases:
        assert 0 <= float(row["nsd"]) <= 1
    whole, core = (
        [float(row["n_ref"]) for row in cases if row["label_name"] == name]
        for name in ("whole", "core")
    )
    assert min(whole) > max(core), "the region has the voxels of both labels"
    balance = [row for row in rows(tables / "class_balance.csv") if row["task"] == REGIONS]
    assert {row["label_name"] for row in balance} == {"any label", "whole", "core"}


def test_what_the_reference_ignores_is_neither_trained_nor_measured(study):
    tables = study.folder / "results/formats/tables"
    cases = [row for row in rows(tables / "cases.csv") if row["task"] == IGNORED]
    assert {row["label_name"] for row in cases} == {"outer", "inner"}
    (summary,) = study.folder.glob(f"results/formats/runs/{IGNORED}/constant/fold_1/summary.json")
    for case in json.loads(summary.read_text())["metric_per_case"]:
        counts = case["metrics"]["1"]
        assert counts["TP"] + counts["FP"] + counts["FN"] + counts["TN"] == 20 * 22 * 24


def test_no_patient_is_on_both_sides(study):
    preprocessed = study.folder / "resources/nnUNet_preprocessed/Dataset505_Ignored"
    folds = json.loads((preprocessed / "splits_final.json").read_text())
    assert len(folds) == 5
    for fold in folds:
        sides = [{int(case[-1]) % 5 for case in fold[part]} for part in ("train", "val")]
        assert not sides[0] & sides[1]


def test_pages_and_figures_are_made(study):
    results = study.folder / "results/formats"
    for name in ("notebooks/results.html", "notebooks/curricula.html", "figures/predictions.svg"):
        assert (results / name).stat().st_size > 10_000
    assert "whole" in (results / "notebooks/curricula.html").read_text()


def test_a_fold_that_the_data_do_not_have_is_told_in_one_line(study):
    arguments = [*study.arguments, "--config", "folds=[2]"]
    run = quick_snakemake(study.folder, "-n", *arguments, env={"HOME": str(study.home)})
    assert run.returncode != 0
    assert f"config: folds: {REGIONS} has the folds 0 to 1, not 2" in run.stderr
