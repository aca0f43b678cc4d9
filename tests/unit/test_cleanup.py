"""Which files are removed to free space, and which are kept."""

import os

import pytest

from workflow_scripts.cleanup.clean_archives import clean_archives
from workflow_scripts.cleanup.clean_preprocessed import clean_preprocessed
from workflow_scripts.cleanup.disk_usage import size_of, size_text
from workflow_scripts.common.errors import UserError

TASK, DATASET = "Task04_Hippocampus", "Dataset004_Hippocampus"
KEPT = ["dataset.json", "dataset_fingerprint.json", "nnUNetPlans.json", "splits_final.json"]


def write(path, size=10):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))


@pytest.fixture
def folder(tmp_path):
    """A preprocessed dataset with two configurations."""
    folder = tmp_path / "resources/nnUNet_preprocessed" / DATASET
    for name in KEPT:
        write(folder / name)
    for identifier in ("nnUNetPlans_3d_fullres", "nnUNetPlans_3d_lowres"):
        write(folder / f"{identifier}.manifest.json", 100)
        write(folder / identifier / "case_001.b2nd", 1000)
        write(folder / identifier / "case_001_seg.b2nd", 500)
    write(folder / "gt_segmentations/case_001.nii.gz", 7)
    return folder


def clean(folder, configuration="3d_fullres"):
    results = folder.parents[2] / "results"
    return clean_preprocessed({TASK: folder}, "nnUNetPlans", configuration, results)


def test_arrays_go_and_plans_stay(folder):
    assert clean(folder) == {TASK: 1600}
    left = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert left == {
        *KEPT,
        "nnUNetPlans_3d_lowres.manifest.json",
        "nnUNetPlans_3d_lowres/case_001.b2nd",
        "nnUNetPlans_3d_lowres/case_001_seg.b2nd",
        "gt_segmentations/case_001.nii.gz",
    }
    # The references of the validation are removed only with the last configuration.
    assert clean(folder, "3d_lowres") == {TASK: 1607}
    assert sorted(path.name for path in folder.iterdir()) == KEPT
    assert clean(folder) == {TASK: 0}


def fold_of(
    folder, *files, plans="nnUNetPlans_31abc177", configuration="3d_fullres", arm="constant"
):
    trainer = f"nnUNetTrainerConstantPatch__{plans}__{configuration}"
    fold = folder.parents[2] / "results/mine/nnunet" / arm / DATASET / trainer / "fold_0"
    for name in files:
        write(fold / name)
    return fold


@pytest.mark.parametrize("arm", ["constant", "constant/seed_2"])
@pytest.mark.parametrize(
    "files",
    [
        ("identity.json",),
        ("identity.json", "checkpoint_latest.pth"),
        ("identity.json", "checkpoint_final.pth"),
        ("identity.json", "checkpoint_final.pth", "checkpoint_latest.pth"),
    ],
)
def test_a_training_that_is_not_finished_keeps_its_data(folder, files, arm):
    fold = fold_of(folder, *files, arm=arm)
    with pytest.raises(UserError) as error:
        clean(folder)
    assert str(error.value).startswith(f"{fold} is not finished")
    assert "Nothing was removed" in str(error.value)
    assert (folder / "nnUNetPlans_3d_fullres.manifest.json").exists()
    assert clean(folder, "3d_lowres") == {TASK: 1600}


def test_a_finished_training_needs_its_data_no_more(folder):
    fold_of(folder, "identity.json", "checkpoint_final.pth", "validation/summary.json")
    assert clean(folder) == {TASK: 1600}


def test_a_link_to_shared_arrays_is_removed_and_the_arrays_stay(folder, tmp_path):
    arrays = folder / "nnUNetPlans_3d_fullres"
    shared = arrays.rename(tmp_path / "shared")
    arrays.symlink_to(shared)
    assert clean(folder) == {TASK: 100}
    assert not os.path.lexists(arrays)
    assert size_of(shared) == 1500


def test_archives_that_were_converted_go(tmp_path):
    write(tmp_path / "archives/Task01.tar", 50)
    write(tmp_path / "archives/Task02.tar", 60)
    write(tmp_path / "mine/Task03.tar", 70)
    (tmp_path / "archives/Task03.tar").symlink_to(tmp_path / "mine/Task03.tar")
    tasks = ["Task01", "Task02", "Task03", "Task04"]
    for task in ("Task01", "Task03", "Task04"):
        write(tmp_path / f"raw/{task}/dataset.json")
    freed = clean_archives(
        {task: tmp_path / f"archives/{task}.tar" for task in tasks},
        {task: tmp_path / f"raw/{task}/dataset.json" for task in tasks},
    )
    assert freed == {"Task01": 50, "Task03": 0, "Task04": 0}
    assert [path.name for path in (tmp_path / "archives").iterdir()] == ["Task02.tar"]
    assert (tmp_path / "mine/Task03.tar").exists()


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (37_951, "38 kB"), (60_163_915, "60.2 MB"), (28.9e9, "28.9 GB")],
)
def test_sizes_as_text(size, text):
    assert size_text(size) == text
