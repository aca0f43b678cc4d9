"""Datasets of the user's own: what is accepted, what is refused in one line, and what is made."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from config_tools import ConfigError
from import_own_task import import_own_task
from log import UserError
from own_task import check_own_tasks, check_raw, dataset_of, is_raw

TASK = "Task501_Cube"
SHAPE = (5, 6, 4)
CASES = ["cube_001", "cube_002", "cube_003"]


def save(path, values, affine=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4) if affine is None else affine), path)


def edit(folder, **changes):
    """Change entries of dataset.json; None removes one."""
    path = folder / "dataset.json"
    description = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: v for key, v in description.items() if v is not None}))


@pytest.fixture
def dataset(tmp_path):
    """A sound dataset of three tiny cases with two channels, in nnU-Net's raw format."""
    folder = tmp_path / "mine"
    random = np.random.default_rng(0)
    for case in CASES:
        for channel in range(2):
            values = random.normal(size=SHAPE).astype(np.float32)
            save(folder / f"imagesTr/{case}_{channel:04d}.nii.gz", values)
        save(folder / f"labelsTr/{case}.nii.gz", random.integers(0, 3, SHAPE).astype(np.uint8))
    description = {
        "channel_names": {"0": "T1", "1": "T2"},
        "labels": {"background": 0, "one": 1, "two": 2},
        "numTraining": 3,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


def snapshot(folder):
    return {
        path.relative_to(folder): (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }


def put(folder, tmp_path, task=TASK):
    raw, preprocessed = tmp_path / "nnUNet_raw", tmp_path / "nnUNet_preprocessed"
    target = raw / dataset_of(task)
    return target, import_own_task(str(folder), target, preprocessed, task, threads=2)


def test_names():
    assert dataset_of("Task04_Hippocampus") == "Dataset004_Hippocampus"
    assert dataset_of("Task99_BrainTissue") == "Dataset099_BrainTissue"
    assert dataset_of(TASK) == "Dataset501_Cube"


def test_the_raw_format_is_linked_and_only_read(dataset, tmp_path):
    before = snapshot(dataset)
    target, cases = put(dataset, tmp_path)
    assert cases == 3
    assert snapshot(dataset) == before
    images = sorted(path.name for path in (target / "imagesTr").iterdir())
    assert images == [f"{case}_{channel:04d}.nii.gz" for case in CASES for channel in (0, 1)]
    for path in (*(target / "imagesTr").iterdir(), *(target / "labelsTr").iterdir()):
        assert path.is_symlink()
        assert path.resolve() == dataset / path.parent.name / path.name
    description = json.loads((target / "dataset.json").read_text())
    assert description.pop("source_folder") == str(dataset)
    assert description == json.loads((dataset / "dataset.json").read_text())
    assert [path.name for path in target.parent.iterdir()] == [target.name]


def test_cases_may_lie_elsewhere(dataset, tmp_path):
    (dataset / "labelsTr").rename(tmp_path / "labels")
    listed = {
        case: {
            "images": [f"imagesTr/{case}_{channel:04d}.nii.gz" for channel in (0, 1)],
            "label": str(tmp_path / f"labels/{case}.nii.gz"),
        }
        for case in CASES
    }
    edit(dataset, dataset=listed)
    target, cases = put(dataset, tmp_path)
    assert cases == 3
    label = target / "labelsTr/cube_001.nii.gz"
    assert label.resolve() == tmp_path / "labels/cube_001.nii.gz"
    assert "dataset" not in json.loads((target / "dataset.json").read_text())


def test_msd_s_format_is_converted_and_only_read(tmp_path):
    folder = tmp_path / "in MSD's format"
    random = np.random.default_rng(0)
    for case in CASES:
        save(folder / f"imagesTr/{case}.nii.gz", random.normal(size=(*SHAPE, 2)))
        save(folder / f"labelsTr/{case}.nii.gz", random.integers(0, 2, SHAPE).astype(np.uint8))
    description = {
        "name": "anything",
        "modality": {"0": "T1", "1": "T2"},
        "labels": {"0": "background", "1": "one"},
        "numTraining": 3,
        "training": [
            {"image": f"./imagesTr/{case}.nii.gz", "label": f"./labelsTr/{case}.nii.gz"}
            for case in CASES
        ],
        "test": [],
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    before = snapshot(folder)
    assert not is_raw(folder)
    target, cases = put(folder, tmp_path)
    assert cases == 3
    assert snapshot(folder) == before
    assert len(list((target / "imagesTr").iterdir())) == 6
    made = json.loads((target / "dataset.json").read_text())
    assert made["source_folder"] == str(folder)
    assert made["labels"] == {"background": 0, "one": 1}
    assert [path.name for path in target.parent.iterdir()] == [target.name]


def test_importing_again_replaces_what_was_there(dataset, tmp_path):
    target, _ = put(dataset, tmp_path)
    for path in (*dataset.glob("*/cube_003*"),):
        path.unlink()
    edit(dataset, numTraining=2)
    assert put(dataset, tmp_path) == (target, 2)
    assert len(list((target / "labelsTr").iterdir())) == 2


def remove_label(folder):
    (folder / "labelsTr/cube_002.nii.gz").unlink()


def remove_channel(folder):
    (folder / "imagesTr/cube_002_0001.nii.gz").unlink()


def label_without_image(folder):
    save(folder / "labelsTr/cube_004.nii.gz", np.zeros(SHAPE, np.uint8))
    save(folder / "imagesTr/cube_004_0000.nii.gz", np.zeros(SHAPE, np.float32))
    edit(folder, numTraining=4)


def no_channel_number(folder):
    (folder / "imagesTr/cube.nii.gz").touch()


def third_channel(folder):
    (folder / "imagesTr/cube_001_0002.nii.gz").touch()


def alien_label(folder):
    save(folder / "labelsTr/cube_002.nii.gz", np.full(SHAPE, 7, np.uint8))


def other_shape(folder):
    save(folder / "imagesTr/cube_002_0001.nii.gz", np.zeros((5, 6, 3), np.float32))


def other_affine(folder):
    affine = np.eye(4)
    affine[0, 3] = 0.5
    save(folder / "labelsTr/cube_002.nii.gz", np.zeros(SHAPE, np.uint8), affine)


def cut_label(folder):
    path = folder / "labelsTr/cube_002.nii.gz"
    path.write_bytes(path.read_bytes()[:-20])


def wrong_number(folder):
    edit(folder, numTraining=4)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove_label, "cube_002: labelsTr/cube_002.nii.gz is missing"),
        (remove_channel, "cube_002: imagesTr/cube_002_0001.nii.gz is missing"),
        (label_without_image, "cube_004: imagesTr/cube_004_0001.nii.gz is missing"),
        (no_channel_number, "cube.nii.gz: not CASE_0000.nii.gz … CASE_0001.nii.gz"),
        (third_channel, "cube_001_0002.nii.gz: not CASE_0000.nii.gz … CASE_0001.nii.gz"),
        (alien_label, "cube_002: label values 7 are not declared ([0, 1, 2])"),
        (other_shape, "cube_002: image shape (5, 6, 3) and label shape (5, 6, 4) differ"),
        (other_affine, "cube_002: image and label differ in their affine"),
        (cut_label, "cube_002: labelsTr/cube_002.nii.gz cannot be read ("),
        (wrong_number, "`numTraining` is 4, found 3 cases"),
    ],
)
def test_a_fault_is_named_by_its_case_and_nothing_is_made(dataset, tmp_path, damage, message):
    damage(dataset)
    with pytest.raises(UserError) as error:
        put(dataset, tmp_path)
    assert f"mine: the dataset has 1 fault:\n  {message}" in str(error.value)
    assert list((tmp_path / "nnUNet_raw").iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": None}, "`labels` is missing"),
        ({"numTraining": "3"}, "`numTraining` is missing, empty or not of type int"),
        ({"channel_names": {"1": "T1"}}, "keys of `channel_names` are not 0, 1, 2"),
        ({"file_ending": ".nrrd"}, "`file_ending` is .nrrd; this workflow reads .nii.gz only"),
        ({"labels": {"background": 0, "whole": [1, 2], "core": 2}}, "regions (lists)"),
        ({"labels": {"background": 0, "one": 1, "ignore": 2}}, "an ignore label"),
        ({"labels": {"background": 0, "one": 2}}, "must be background 0, then 1, 2, 3"),
        ({"labels": {"nothing": 0, "one": 1}}, "must be background 0, then 1, 2, 3"),
    ],
)
def test_a_description_that_cannot_be_used_is_refused(dataset, change, message):
    edit(dataset, **change)
    with pytest.raises(UserError) as error:
        check_raw(dataset, threads=1)
    assert str(error.value).startswith(f"{dataset / 'dataset.json'}: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "not valid JSON"), ("[]", "neither nnU-Net's"), ('{"a": 1}', "neither nnU-Net's")],
)
def test_a_dataset_json_of_neither_format(dataset, text, message):
    (dataset / "dataset.json").write_text(text)
    with pytest.raises(UserError, match=message) as error:
        is_raw(dataset)
    assert str(dataset / "dataset.json") in str(error.value)


@pytest.mark.parametrize("place", ["nnUNet_raw", "nnUNet_preprocessed"])
def test_a_number_that_another_dataset_has_is_refused(dataset, tmp_path, place):
    other = tmp_path / place / "Dataset501_Other"
    other.mkdir(parents=True)
    with pytest.raises(UserError, match=f"own_tasks.{TASK}: .*Dataset501_Other has its number"):
        put(dataset, tmp_path)


def config(folder, tasks=(TASK,)):
    return {"tasks": list(tasks), "own_tasks": {TASK: {"folder": str(folder)}}}


def check(folder, tmp_path, **changes):
    check_own_tasks(config(folder, **changes), tmp_path / "nnUNet_raw")


def test_the_folder_is_looked_for_before_any_job(dataset, tmp_path):
    check(dataset, tmp_path)
    nowhere = tmp_path / "nowhere"
    with pytest.raises(ConfigError) as error:
        check(nowhere, tmp_path)
    assert str(error.value) == f"config: own_tasks.{TASK}.folder: {nowhere} is not a folder"
    (dataset / "dataset.json").unlink()
    with pytest.raises(ConfigError, match=r"has no dataset\.json"):
        check(dataset, tmp_path)


def test_a_task_that_the_study_does_not_train_is_not_looked_for(tmp_path):
    check(tmp_path / "nowhere", tmp_path, tasks=["Task04_Hippocampus"])


def test_an_imported_task_needs_its_folder_no_more_but_is_that_folder(dataset, tmp_path):
    put(dataset, tmp_path)
    moved = dataset.rename(tmp_path / "moved")
    check(dataset, tmp_path)
    with pytest.raises(ConfigError) as error:
        check(moved, tmp_path)
    assert f"Dataset501_Cube was made from {dataset}" in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_a_relative_folder_is_that_of_the_working_directory(dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    target, _ = put(Path("mine"), tmp_path)
    check(Path("mine"), tmp_path)
    assert json.loads((target / "dataset.json").read_text())["source_folder"] == str(dataset)
