"""Resources on another file system or of another user, and how Snakemake uses their dates.

Empty files stand for another user's prepared data; a dry run sees only names and dates.
"""

import itertools
import os
import re
import time

import pytest

from helpers.tree import copy_tree, plan, trainings

STUDY = ("--configfile", "config/studies/hippocampus.yaml", "--config", "seeds=[1]")
PREPARING = {"download_task", "extract_task", "convert_task", "fingerprint_task", "plan_task"}
PREPARING |= {"override_plans", "preprocess_task", "write_splits"}
MADE = [  # in the order in which the rules make them
    "nnUNet_raw/Dataset004_Hippocampus/dataset.json",
    "nnUNet_preprocessed/Dataset004_Hippocampus/splits_final.json",
    "nnUNet_preprocessed/Dataset004_Hippocampus/dataset_fingerprint.json",
    "nnUNet_preprocessed/Dataset004_Hippocampus/nnUNetPlans.json",
    "nnUNet_preprocessed/Dataset004_Hippocampus/nnUNetPlans_e81f1e3e.json",
    "nnUNet_preprocessed/Dataset004_Hippocampus/nnUNetPlans_3d_fullres.manifest.json",
]


def prepare(folder, files, first):
    """Make empty files, each a second newer than the one before."""
    for name, moment in zip(files, itertools.count(first), strict=False):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.utime(path, (moment, moment))


@pytest.fixture
def tree(tmp_path):
    """A clone of today whose resources/ links to data that another user prepared a day ago."""
    folder = copy_tree(tmp_path / "clone")
    for path in folder.rglob("*"):
        if path.is_file():
            path.touch()
    prepare(tmp_path / "scratch", MADE, time.time() - 86_400)
    (folder / "resources").symlink_to(tmp_path / "scratch")
    return folder


def test_the_files_of_this_test_are_those_of_the_study(tree, tmp_path):
    for name in MADE:
        (tmp_path / "scratch" / name).unlink()
    _, text = plan(tree, *STUDY)
    assert set(re.findall(r"resources/(nnUNet_\w+/[^\s,]+\.json)", text)) == set(MADE)


def test_a_linked_folder_of_ones_own_is_used(tree, tmp_path):
    """Data prepared after the clone are newer than its scripts, so nothing is made again."""
    prepare(tmp_path / "scratch", MADE, time.time() + 1)
    jobs, text = plan(tree, *STUDY)
    assert PREPARING.isdisjoint(jobs)
    assert len(trainings(text)) == jobs["train_fold"]


def test_an_archive_of_a_later_date_makes_nothing_anew(tree, tmp_path):
    """It may have been copied or touched since; its checksum was verified."""
    prepare(tmp_path / "scratch", MADE, time.time() + 1)
    prepare(tmp_path / "scratch", ["archives/Task04_Hippocampus.tar"], time.time() + 100)
    assert PREPARING.isdisjoint(plan(tree, *STUDY)[0])


def test_an_empty_linked_folder_is_filled(tree, tmp_path):
    (tree / "resources").unlink()
    (tmp_path / "empty").mkdir()
    (tree / "resources").symlink_to(tmp_path / "empty")
    assert set(plan(tree, *STUDY)[0]) >= PREPARING


def test_what_was_prepared_before_the_clone_is_left_alone(tree):
    """All scripts are newer than the data, as after an update."""
    jobs, text = plan(tree, *STUDY)
    assert PREPARING.isdisjoint(jobs)
    assert len(trainings(text)) == jobs["train_fold"]


def test_without_the_profile_newer_scripts_prepare_again(tree):
    """Snakemake's own triggers are in effect, for example in a workflow that uses this one."""
    assert PREPARING & set(plan(tree, *STUDY, "--workflow-profile", "none")[0])


def test_a_copy_without_its_dates_would_be_made_again(tree, tmp_path):
    prepare(tmp_path / "scratch", reversed(MADE), time.time())
    assert PREPARING & set(plan(tree, *STUDY)[0])
