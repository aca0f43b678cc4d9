"""Data that were imported are kept, whatever happens to their source and to the code."""

import json

import pytest

from helpers.tiny_study import CONFIG as TINY
from helpers.tree import plan, write_config
from workflow_scripts.study.tasks import DEMO_TASK, dataset_of, not_converted, not_imported

OWN = "Task501_Mine"
MSD = "Task04_Hippocampus"
CONFIG = {
    "study": "kept",
    "tasks": [OWN, MSD],
    "folds": [0],
    "own_tasks": {OWN: {"folder": "/gone"}},
    "arms": {"constant": {"trainer": "nnUNetTrainerConstantPatch"}},
    "training": TINY["training"],
}


def imported(folder, task, **description):
    path = folder / "resources/nnUNet_raw" / dataset_of(task) / "dataset.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(description))
    return path.parent


@pytest.fixture
def tree(tmp_path):
    imported(tmp_path, OWN, source_folder="/gone")
    imported(tmp_path, MSD)
    return tmp_path


def test_newer_code_imports_nothing_whose_source_is_gone(tree):
    """Snakemake would delete its dataset.json first, after which nothing could be run."""
    arguments = ["plans", "--configfile", write_config(tree, "kept", CONFIG)]
    jobs, _ = plan(tree, *arguments, "--forcerun", "import_own_task", "convert_task")
    assert (jobs["fingerprint_task"], jobs["plan_task"]) == (2, 2)
    assert not jobs.keys() & {"import_own_task", "convert_task", "extract_task", "download_task"}


def test_an_own_task_is_imported_once(tree):
    raw = tree / "resources/nnUNet_raw"
    assert not_imported([OWN, "Task502_New"], raw) == ["Dataset502_New"]


def test_a_task_of_msd_is_converted_again_only_with_its_archive(tree, monkeypatch):
    monkeypatch.chdir(tree)
    raw = tree / "resources/nnUNet_raw"
    assert not_converted([MSD], raw, None) == []
    assert not_converted(["Task09_Spleen", DEMO_TASK], raw, None) == [
        "Dataset009_Spleen",
        "Dataset099_BrainTissue",
    ]
    (tree / f"{MSD}.tar").touch()
    assert not_converted([MSD], raw, str(tree)) == ["Dataset004_Hippocampus"]
