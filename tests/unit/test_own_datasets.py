"""A user's own datasets: which are accepted, which are refused in one line, and the outputs."""

import gzip
import json
import re
import struct
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from workflow_scripts.common.errors import UserError
from workflow_scripts.common.images import Image
from workflow_scripts.data.conversion import import_own_task
from workflow_scripts.data.dataset_checks import _orientation
from workflow_scripts.data.own_datasets import check_raw, is_raw
from workflow_scripts.data.own_folds import draw_folds, find_folds, read_groups
from workflow_scripts.planning.write_splits import find_splits
from workflow_scripts.study.config_validation import ConfigError
from workflow_scripts.study.tasks import check_folds, check_own_tasks, dataset_of

TASK = "Task501_Cube"
SHAPE = (5, 6, 4)
CASES = ["cube_001", "cube_002", "cube_003"]
FOLDS = [{"train": CASES[:2], "val": CASES[2:]}, {"train": CASES[2:], "val": CASES[:2]}]


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
    (folder / "splits_final.json").write_text(json.dumps(FOLDS))
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


def test_a_check_comes_before_any_image_is_read(dataset, tmp_path):
    def refuse(description):
        raise UserError(f"{description['numTraining']} cases")

    target = tmp_path / "nnUNet_raw" / dataset_of(TASK)
    for path in (dataset / "imagesTr").iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"^3 cases$"):
        import_own_task(str(dataset), target, tmp_path / "pre", TASK, threads=1, check=refuse)
    assert not target.exists()


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
    (folder / "splits_final.json").write_text(json.dumps(FOLDS))
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
    folds = [{"train": CASES[:1], "val": CASES[1:2]}]
    (dataset / "splits_final.json").write_text(json.dumps(folds))
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


def mask_of_255(folder):
    save(folder / "labelsTr/cube_002.nii.gz", np.full(SHAPE, 255, np.uint8))


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


def other_ending(folder):
    (folder / "imagesTr/cube_004_0000.nii").touch()


def name_of_a_segmentation(folder):
    for path in folder.glob("*/cube_002*"):
        path.rename(path.with_name(path.name.replace("cube_002", "cube_seg")))
    folds = [{"train": ["cube_001"], "val": ["cube_003"]}]
    (folder / "splits_final.json").write_text(json.dumps(folds))


def other_spacing(folder):
    affine = np.diag([1, 1, 1.01, 1])
    save(folder / "labelsTr/cube_002.nii.gz", np.zeros(SHAPE, np.uint8), affine)


def sheared(folder):
    affine = np.eye(4)
    affine[0, 1] = 0.3
    for path in folder.glob("*/cube_002*"):
        save(path, np.asarray(nibabel.load(path).dataobj), affine)


def too_many_channels(folder):
    for channel in range(2):
        values = np.zeros((*SHAPE, 2), np.float32)
        save(folder / f"imagesTr/cube_002_{channel:04d}.nii.gz", values)


def nan_in_the_affine(folder):
    patch_headers(folder, 280, float("nan"))


def patch_headers(folder, offset, *values):
    """Write float32 numbers into the NIfTI headers of a case; nibabel would not save them."""
    for path in folder.glob("*/cube_002*"):
        content = bytearray(gzip.decompress(path.read_bytes()))
        struct.pack_into(f"<{len(values)}f", content, offset, *values)
        path.write_bytes(gzip.compress(bytes(content)))


def complex_numbers(folder):
    save(folder / "imagesTr/cube_002_0000.nii.gz", np.ones(SHAPE, np.complex64))


def copy_case(folder, name):
    for path in folder.glob("*/cube_002*"):
        path.with_name(path.name.replace("cube_002", name)).write_bytes(path.read_bytes())
    edit(folder, numTraining=4)


def name_in_capitals(folder):
    copy_case(folder, "CUBE_002")


def test_an_axis_without_length_is_no_orientation():
    values = np.zeros((1, *SHAPE), np.float32)
    for affine, faulty in ((np.eye(4), False), (np.diag([1.0, 1, 0, 1]), True), (None, False)):
        image = Image(values, (1.0, 1.0, 1.0), affine)
        assert bool(_orientation(image, Path("imagesTr/a.nii.gz"))) is faulty


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            nan_in_the_affine,
            "cube_002: labelsTr/cube_002.nii.gz has an axis without length, or NaN",
        ),
        (complex_numbers, "cube_002: imagesTr/cube_002_0000.nii.gz cannot be read by nnU-Net's"),
        (name_in_capitals, "cube_002: the name differs from CUBE_002 only in case"),
        (remove_label, "cube_002: labelsTr/cube_002.nii.gz is missing"),
        (remove_channel, "cube_002: imagesTr/cube_002_0001.nii.gz is missing"),
        (label_without_image, "cube_004: imagesTr/cube_004_0001.nii.gz is missing"),
        (no_channel_number, "cube.nii.gz: not CASE_0000.nii.gz … CASE_0001.nii.gz"),
        (third_channel, "cube_001_0002.nii.gz: not CASE_0000.nii.gz … CASE_0001.nii.gz"),
        (alien_label, "cube_002: label values 7 are not declared ([0, 1, 2])"),
        (mask_of_255, "cube_002: label values 255 are not declared ([0, 1, 2])"),
        (other_shape, "cube_002: image shape (5, 6, 3) and label shape (5, 6, 4) differ"),
        (other_affine, "cube_002: image and label differ in their affine"),
        (cut_label, "cube_002: labelsTr/cube_002.nii.gz cannot be read by nnU-Net's SimpleITKIO ("),
        (wrong_number, "`numTraining` is 4, found 3 cases"),
        (other_ending, "imagesTr/cube_004_0000.nii: does not end in .nii.gz, the `file_ending`"),
        (name_of_a_segmentation, "cube_seg: nnU-Net treats files ending in _seg as segmentations"),
        (other_spacing, "cube_002: image and label differ in their spacing, 1×1×1 and 1×1×1.01 mm"),
        (
            sheared,
            "cube_002: labelsTr/cube_002.nii.gz cannot be read by nnU-Net's SimpleITKIO (ITK",
        ),
        (
            too_many_channels,
            "cube_002: SimpleITKIO reads 4 channels, but `dataset.json` names 2",
        ),
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
        ({"file_ending": ".dcm"}, "`file_ending` is .dcm, but nnU-Net reads .png, .bmp, .tif, "),
        ({"labels": {"background": 0, "one": 2}}, "must be background 0, then 1, 2, 3"),
        ({"labels": {"background": 0, "one": 1, "two": 1}}, "two names in `labels` have the same"),
        ({"labels": {"background": 0}}, "must be background 0, then 1, 2, 3"),
        ({"labels": {"background": 0, "one": "1"}}, "neither a whole number nor a list"),
        ({"labels": {"nothing": 0, "one": 1}}, "Background label not declared"),
        ({"labels": {"background": 0, "one": 1, "ignore": 1}}, "ignore label it must have the hi"),
        ({"labels": {"background": 0, "all": [1, 2], "core": 2}}, "define regions_class_order"),
        (
            {"labels": {"background": 0, "all": [1, 2], "core": 2}, "regions_class_order": [1]},
            "regions_class_order must have as many entries",
        ),
        ({"labels": {"0": "background", "1": "one"}}, "maps values to names, as MSD does"),
        (
            {"labels": {"background": 0, "all": [1, 2], "core": 2}, "regions_class_order": [1, 3]},
            "assigns 3 to region 2 of {'background': 0, 'all': [1, 2], 'core': 2}, but this "
            "value does not belong to it",
        ),
        (
            {"labels": {"background": 0, "all": [1, 2], "core": 1}, "regions_class_order": [1, 2]},
            "assigns 1 to region 1 of {'background': 0, 'all': [1, 2], 'core': 1}, but this "
            "value also belongs to a later one",
        ),
        (
            {"labels": {"background": 0, "all": [1, 2], "core": 2}, "regions_class_order": [2, 1]},
            "also belongs to a later one: predictions would be read back as another region",
        ),
        ({"overwrite_image_reader_writer": "Nibable"}, "nnU-Net has no such reader; it has Nat"),
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
    [
        ("{", "not valid JSON"),
        ("[]", "not contain a JSON object"),
        ('{"a": 1}', "neither nnU-Net's"),
    ],
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
    with pytest.raises(
        UserError, match=f"own_tasks.{TASK}: .*Dataset501_Other already has this number"
    ):
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
    assert f"Dataset501_Cube was imported from {dataset}" in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_a_relative_folder_is_that_of_the_working_directory(dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    target, _ = put(Path("mine"), tmp_path)
    check(Path("mine"), tmp_path)
    assert json.loads((target / "dataset.json").read_text())["source_folder"] == str(dataset)


@pytest.mark.parametrize("ending", [".nii", ".nrrd", ".mha", ".gipl", ".tif", ".tiff"])
def test_every_ending_of_nnunet_s_readers_is_imported(dataset, tmp_path, ending):
    for path in [*dataset.glob("*/*.nii.gz")]:
        other = path.with_name(path.name.removesuffix(".nii.gz") + ending)
        image = SimpleITK.ReadImage(path)
        if ending.startswith(".tif"):
            tifffile.imwrite(other, SimpleITK.GetArrayFromImage(image))
            case = re.sub(r"_\d{4}$", "", other.stem)
            other.with_name(f"{case}.json").write_text('{"spacing": [3, 2, 1]}')
        else:
            SimpleITK.WriteImage(image, other)
        path.unlink()
    # If nnU-Net may choose the reader, it takes the four slices of a TIFF for channels.
    reader = "Tiff3DIO" if ending.startswith(".tif") else None
    edit(dataset, file_ending=ending, overwrite_image_reader_writer=reader)
    target, cases = put(dataset, tmp_path)
    assert cases == 3
    found = {str(path.relative_to(target)) for path in target.glob("*/*")}
    assert f"imagesTr/cube_001_0001{ending}" in found
    assert f"labelsTr/cube_003{ending}" in found
    beside = {f"{place}Tr/{case}.json" for place in ("images", "labels") for case in CASES}
    assert (beside <= found) == ending.startswith(".tif")


def test_all_channels_may_be_in_one_file(dataset, tmp_path):
    for case in CASES:
        save(dataset / f"imagesTr/{case}_0000.nii.gz", np.zeros((*SHAPE, 2), np.float32))
        (dataset / f"imagesTr/{case}_0001.nii.gz").unlink()
    target, _ = put(dataset, tmp_path)
    assert len(list((target / "imagesTr").iterdir())) == 3


@pytest.mark.parametrize(
    ("labels", "order"),
    [
        ({"background": 0, "whole": [1, 2], "core": 2}, [1, 2]),
        ({"background": 0, "whole": [1, 2], "core": [2]}, [1, 2]),
        ({"background": 0, "one": 1, "ignore": 2}, None),
        ({"background": 0, "whole": [1], "ignore": 2}, None),
    ],
)
def test_regions_and_the_ignore_label_are_accepted(dataset, tmp_path, labels, order):
    edit(dataset, labels=labels, regions_class_order=order)
    assert put(dataset, tmp_path)[1] == 3


def test_a_key_that_is_there_twice_is_refused(dataset):
    path = dataset / "dataset.json"
    path.write_text(path.read_text().replace('"one": 1', '"one": 1, "one": 1'))
    with pytest.raises(UserError, match="duplicate key 'one'"):
        check_raw(dataset, threads=1)


def test_a_byte_order_mark_is_no_fault(dataset, tmp_path):
    for name in ("dataset.json", "splits_final.json"):
        path = dataset / name
        path.write_text("\ufeff" + path.read_text(), encoding="utf-8")
    assert put(dataset, tmp_path)[1] == 3


def test_labels_stored_as_floating_point_numbers_are_accepted(dataset, tmp_path):
    path = dataset / "labelsTr/cube_001.nii.gz"
    save(path, np.asarray(nibabel.load(path).dataobj).astype(np.float64))
    assert put(dataset, tmp_path)[1] == 3


def test_a_dataset_without_foreground_is_refused(dataset, tmp_path):
    for path in dataset.glob("labelsTr/*.nii.gz"):
        save(path, np.zeros(SHAPE, np.uint8))
    with pytest.raises(UserError, match="no case has foreground"):
        put(dataset, tmp_path)


def test_hidden_files_are_ignored(dataset, tmp_path):
    for place in ("imagesTr", "labelsTr"):
        (dataset / place / ".DS_Store").write_text("of macOS")
        (dataset / place / "._cube_001_0000.nii.gz").write_text("of macOS")
    target, cases = put(dataset, tmp_path)
    assert cases == 3
    assert not list(target.glob("*/.*"))


def test_environment_variables_of_listed_files_are_filled_in(dataset, tmp_path, monkeypatch):
    monkeypatch.setenv("DATA", str(dataset))
    listed = {
        case: {
            "images": [f"$DATA/imagesTr/{case}_{channel:04d}.nii.gz" for channel in (0, 1)],
            "label": f"${{DATA}}/labelsTr/{case}.nii.gz",
        }
        for case in CASES
    }
    edit(dataset, dataset=listed)
    assert put(dataset, tmp_path)[1] == 3
    edit(dataset, dataset=listed | {"cube_001": {"images": 3}})
    with pytest.raises(UserError, match="cube_001: `dataset` needs its `images`"):
        put(dataset, tmp_path)


def test_a_home_folder_is_filled_in(dataset, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    target = tmp_path / "nnUNet_raw" / dataset_of(TASK)
    import_own_task("~/mine", target, tmp_path / "nnUNet_preprocessed", TASK, threads=1)
    check(Path("~/mine"), tmp_path)
    check(dataset, tmp_path)


# Folds


def test_own_folds_come_with_the_data(dataset, tmp_path):
    target, _ = put(dataset, tmp_path)
    assert json.loads((target / "splits_final.json").read_text()) == FOLDS
    assert find_splits(target) == FOLDS


@pytest.mark.parametrize(
    ("folds", "message"),
    [
        ([], "no folds"),
        ([{"train": CASES}], "fold 0: it needs the lists `train` and `val`"),
        ([{"train": CASES, "val": []}], "fold 0: no case in `val`"),
        ([{"train": [], "val": CASES}], "fold 0: no case in `train`"),
        ([{"train": CASES, "val": CASES[:1]}], "fold 0: cube_001 in both `train` and `val`"),
        ([{"train": CASES[:1], "val": ["cube"]}], "fold 0: cube not in the dataset"),
        (2 * FOLDS[:1], "fold 1: cube_003 in `val` of fold 0 too"),
    ],
)
def test_folds_that_cannot_be_used_are_refused(dataset, tmp_path, folds, message):
    (dataset / "splits_final.json").write_text(json.dumps(folds))
    with pytest.raises(UserError) as error:
        put(dataset, tmp_path)
    assert str(error.value) == f"{dataset / 'splits_final.json'}: {message}"
    assert list((tmp_path / "nnUNet_raw").iterdir()) == []


def test_fewer_than_five_cases_need_folds_of_their_own(dataset, tmp_path):
    (dataset / "splits_final.json").unlink()
    with pytest.raises(UserError, match=r"3 cases are too few .* put a splits_final\.json"):
        put(dataset, tmp_path)


@given(
    patients=st.lists(st.integers(0, 8), min_size=5, max_size=40).filter(lambda p: len({*p}) >= 5)
)
def test_no_patient_is_on_both_sides_of_a_fold(patients):
    group_of = {f"case_{n}": f"patient {p}" for n, p in enumerate(patients)}
    folds = draw_folds(group_of)
    assert folds == draw_folds(group_of)
    assert len(folds) == 5
    validated = [case for fold in folds for case in fold["val"]]
    assert sorted(validated) == sorted(group_of)
    for fold in folds:
        assert sorted(fold["train"] + fold["val"]) == sorted(group_of)
        sides = [{group_of[case] for case in fold[part]} for part in ("train", "val")]
        assert not sides[0] & sides[1]


def grouped(tmp_path, text, name="patients.csv"):
    table = tmp_path / name
    table.write_text(text)
    return table


def test_groups_are_read_as_text(tmp_path):
    rows = [f"cube_{n},{n // 2:03d},F" for n in range(10)]
    table = grouped(tmp_path, "\n".join(["case,group,sex", *rows, "other,NA,M"]))
    found = read_groups(table, [f"cube_{n}" for n in range(10)])
    assert found["cube_3"] == "001"
    assert "other" not in found
    for mark in "\t;,":
        excel = grouped(tmp_path, f"\ufeffcase{mark}group\n1.0{mark}NA\n")
        assert read_groups(excel, ["1.0"]) == {"1.0": "NA"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("case,patient\na,1\n", "no table with the columns `case` and `group`"),
        ("", "no table with the columns `case` and `group`"),
        ("case,group\na,1\na,2\n", "line 3: a is twice in the column `case`.*line 2"),
        ("case,group\na,1\n", "no group for b, c, d and 1 more"),
        ("case,group\na,\nb,1\nc,1\nd,1\ne,1\n", "line 2: no group for a"),
        ("case,group,group\na,1,1\n", "once each"),
        ("case,group\na,1\nb,1,2\n", "line 3: 3 cells, but the header has 2"),
        ("case,group\na\n", "line 2: 1 cells, but the header has 2"),
    ],
)
def test_a_table_of_groups_that_cannot_be_used_is_refused(tmp_path, text, message):
    with pytest.raises(UserError, match=message) as error:
        read_groups(grouped(tmp_path, text), list("abcde"))
    assert str(tmp_path / "patients.csv") in str(error.value)


SAME = {
    "a space behind": ("patient_1 ", "\ufeffcase,group\n"),
    "a space in front, quoted": ('" patient_1"', "case,group\n"),
    "a non-breaking space": ("patient_1\xa0", "case,group\n"),
    "no width": ("patient_1\u200b", "case,group\n"),
    "tabs": ("patient_1 ", "case\tgroup\n"),
    "semicolons and Excel's first line": ("patient_1 ", "sep=;\ncase;group\n"),
    "a comment and an empty line": ("patient_1", "# scans\n\nCase , Group\n"),
}


@pytest.mark.parametrize("kind", SAME)
@pytest.mark.parametrize("ending", ["\n", "\r\n"], ids=["LF", "CRLF"])
def test_what_nobody_sees_makes_no_other_patient(tmp_path, kind, ending):
    """Scans of one patient would lie in training and validation."""
    group, header = SAME[kind]
    mark = next(mark for mark in "\t;," if mark in header.splitlines()[-1])
    text = f"{header}a{mark}patient_1\n b {mark}{group}\n"
    table = tmp_path / "patients.csv"
    table.write_bytes(text.replace("\n", ending).encode())
    assert read_groups(table, ["a", "b"]) == {"a": "patient_1", "b": "patient_1"}


def test_names_of_two_unicode_forms_are_the_same_case_and_group(tmp_path):
    composed, decomposed = "Zo\xeb", "Zoe\u0308"
    table = tmp_path / "patients.csv"
    table.write_text(f"case,group\n{composed},{decomposed}\nb,{composed}\n", encoding="utf-16")
    assert read_groups(table, [decomposed, "b"]) == {decomposed: composed, "b": composed}
    splits = tmp_path / "splits_final.json"
    splits.write_text(json.dumps([{"train": ["b "], "val": [composed]}]))
    assert find_folds(tmp_path, None, [decomposed, "b"]) == [{"train": ["b"], "val": [decomposed]}]


@pytest.mark.parametrize(
    "other", ["Patient 7", "patient7", "patient07", "patient7.0", "ｐatient 7"]
)
def test_groups_that_are_probably_one_are_refused_with_both_lines(tmp_path, other):
    table = grouped(tmp_path, f"case,group\na,patient 7\nb,patient 8\nc,{other}\n")
    with pytest.raises(
        UserError, match=r"line 4: the group .* is probably the 'patient 7' of line 2"
    ):
        read_groups(table, list("abc"))


def test_groups_that_differ_stay_apart(tmp_path):
    groups = dict(zip("abcdef", ["1", "10", "100", "1.5", "1.05", "p1"], strict=True))
    rows = "\n".join(f"{case},{group}" for case, group in groups.items())
    assert read_groups(grouped(tmp_path, f"case,group\n{rows}"), list(groups)) == groups


def test_a_table_in_another_encoding_is_refused_with_its_line(tmp_path):
    table = tmp_path / "patients.csv"
    table.write_bytes("case,group\na,Müller\n".encode("cp1252"))
    with pytest.raises(UserError, match=r"patients\.csv, line 2: not UTF-8 text"):
        read_groups(table, ["a"])


def test_fewer_groups_than_folds_and_both_kinds_of_folds_are_refused(dataset, tmp_path):
    with pytest.raises(UserError, match="2 groups are too few for 5 folds"):
        draw_folds(dict(zip("abcde", "11222", strict=True)))
    table = grouped(tmp_path, "case,group\n")
    with pytest.raises(UserError, match="both define the folds: use one of them"):
        find_folds(dataset, table, CASES)


def test_a_task_was_imported_with_the_groups_of_its_configuration(dataset, tmp_path):
    put(dataset, tmp_path)
    own = config(dataset)
    own["own_tasks"][TASK]["groups"] = str(grouped(tmp_path, "case,group\n"))
    with pytest.raises(ConfigError, match=r"patients\.csv, but .* was imported from None"):
        check_own_tasks(own, tmp_path / "nnUNet_raw")


def test_folds_that_a_task_does_not_have_are_found_before_any_job(tmp_path):
    own = config("anywhere", tasks=(TASK, "Task04_Hippocampus"))
    check_folds({**own, "folds": [0, 4]}, tmp_path)
    with pytest.raises(ConfigError) as error:
        check_folds({**own, "folds": [0, 5, 6]}, tmp_path)
    assert str(error.value) == "config: folds: Task04_Hippocampus has the folds 0 to 4, not 5, 6"
    splits = tmp_path / dataset_of(TASK) / "splits_final.json"
    splits.parent.mkdir()
    splits.write_text(json.dumps(FOLDS))
    with pytest.raises(ConfigError, match=f"folds: {TASK} has the folds 0 to 1, not 4"):
        check_folds({**own, "folds": [0, 4]}, tmp_path)
