"""Normalised surface distance: cases computed by hand, and the files of a run."""

import json
import math
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
from skimage import io

from helpers.fake_study import FakeStudy
from workflow_scripts.common.errors import UserError
from workflow_scripts.evaluation.measure_surface_distance import measure_run, surface_dice
from workflow_scripts.records.run_columns import SURFACE

SPACING = (3.0, 2.0, 1.0)


def mask(*voxels):
    array = np.zeros((9, 9, 9), dtype=bool)
    for voxel in voxels:
        array[voxel] = True
    return array


@pytest.mark.parametrize(
    ("other", "tolerance", "share"),
    [
        # A voxel's surface has eight equal elements, at its corners. If the other voxel is two
        # steps of 1 mm away, four corners are 1 mm from its nearest ones, the other four 2 mm.
        *[((4, 4, 6), 0.9, 0.0), ((4, 4, 6), 1.0, 0.5), ((4, 4, 6), 2.0, 1.0)],
        # Neighbours at 3 mm share four corners; the other four are 3 mm away.
        *[((5, 4, 4), 0.0, 0.5), ((5, 4, 4), 2.9, 0.5), ((5, 4, 4), 3.0, 1.0)],
    ],
)
def test_two_voxels_by_hand(other, tolerance, share):
    pair = mask((4, 4, 4)), mask(other)
    assert surface_dice(*pair, SPACING, tolerance) == pytest.approx(share)
    assert surface_dice(*reversed(pair), SPACING, tolerance) == pytest.approx(share)


def test_a_false_island_counts_by_its_surface():
    reference, prediction = mask((1, 4, 4)), mask((1, 4, 4), (7, 4, 4))
    assert surface_dice(reference, prediction, SPACING, 1.0) == pytest.approx((8 + 8) / (8 + 16))


def test_a_mask_at_the_border_has_a_surface_there():
    assert surface_dice(mask((0, 0, 0)), mask((0, 0, 0)), SPACING, 0.0) == 1


def test_empty_masks_as_nnunet_does():
    assert math.isnan(surface_dice(mask(), mask(), SPACING, 1.0))
    assert surface_dice(mask((1, 1, 1)), mask(), SPACING, 1.0) == 0
    assert surface_dice(mask(), mask((1, 1, 1)), SPACING, 1.0) == 0


def describe(raw, **changes):
    labels = {"background": 0, "one": 1, "two": 2}
    description = {"file_ending": ".nii.gz", "labels": labels} | changes
    (raw / "dataset.json").write_text(json.dumps(description))


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A made-up run of three cases whose images are written; returns (run.json, raw dataset)."""
    monkeypatch.chdir(tmp_path)
    study = FakeStudy(tmp_path, arms=("constant",), folds=(0,)).write()
    key = study.keys()[0]
    images, references = tmp_path / "imagesTr", tmp_path / "labelsTr"
    predictions = tmp_path / "results/fake/nnunet" / key[0] / key[1] / "fold_0/validation"
    for folder in (images, references, predictions):
        folder.mkdir(parents=True)
    describe(tmp_path)
    for number in range(3):
        labels = mask((4, 4, 4)).astype(np.uint8)
        moved = np.roll(labels, 2 * (number == 1), axis=2)
        for folder, array in ((references, labels), (predictions, moved)):
            image = nibabel.Nifti1Image(array, np.diag([*SPACING, 1]))
            nibabel.save(image, folder / f"case_0{number:02d}.nii.gz")
        nibabel.save(image, images / f"case_0{number:02d}_0000.nii.gz")
    return study.folder(key) / "run.json", tmp_path


def test_table_of_a_run(run):
    table = measure_run(*run, tolerance=1.0)
    assert table.columns.tolist() == SURFACE
    assert table["case"].tolist() == ["case_000"] * 2 + ["case_001"] * 2 + ["case_002"] * 2
    assert table["label"].tolist() == ["1", "2"] * 3
    expected = pd.Series([1, math.nan, 0.5, math.nan, 1, math.nan])
    pd.testing.assert_series_equal(table["nsd"], expected, check_names=False)
    assert (table["tolerance_mm"] == 1).all()
    assert table["tolerance_px"].isna().all()


def test_without_a_tolerance_no_image_is_read_and_the_cells_are_empty(run):
    table = measure_run(run[0], run[1] / "absent", tolerance=None)
    assert len(table) == 6
    assert table[["nsd", "tolerance_mm", "tolerance_px"]].isna().all(axis=None)


def test_missing_or_other_images_are_named(run, tmp_path):
    (prediction,) = tmp_path.glob("results/**/validation/case_001.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4)), prediction)
    with pytest.raises(UserError, match=r"case_001\.nii\.gz has the shape"):
        measure_run(*run, tolerance=1.0)
    prediction.unlink()
    with pytest.raises(UserError, match=r"case_001\.nii\.gz is missing"):
        measure_run(*run, tolerance=1.0)


def rename(run_json, label, region):
    """Turn a label of a finished run into the region with that key."""
    for path in (run_json, run_json.with_name("summary.json")):
        text = path.read_text()
        path.write_text(text.replace(f'"{label}": ', f'"{region}": '))


def test_a_region_is_all_of_its_labels(run, tmp_path):
    run_json, raw = run
    rename(run_json, 1, "(1, 2)")
    describe(raw, labels={"background": 0, "all": [1, 2], "two": 2})
    before = measure_run(run_json, raw, tolerance=1.0)
    assert before["label"].tolist()[:2] == ["(1, 2)", "2"]
    for path in (*raw.glob("labelsTr/case_000*"), *tmp_path.glob("results/**/case_000*")):
        image = nibabel.load(path)
        values = np.asarray(image.dataobj).copy()
        values[:, :, 2][values[:, :, 2] == 1] = 2  # of another label of the region
        nibabel.save(nibabel.Nifti1Image(values, image.affine), path)
    after = measure_run(run_json, raw, tolerance=1.0)
    assert after["nsd"].tolist()[0] == before["nsd"].tolist()[0] == 1


def test_what_the_reference_ignores_does_not_count(run, tmp_path):
    run_json, raw = run
    path = raw / "labelsTr/case_001.nii.gz"
    (prediction,) = tmp_path.glob("results/**/validation/case_001.nii.gz")
    reference, found = (np.asarray(nibabel.load(one).dataobj) for one in (path, prediction))
    assert measure_run(run_json, raw, tolerance=1.0)["nsd"][2] == 0.5
    hidden = np.where((reference == 1) != (found == 1), 3, reference).astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(hidden, nibabel.load(path).affine), path)
    describe(raw, labels={"background": 0, "one": 1, "two": 2, "ignore": 3})
    assert math.isnan(measure_run(run_json, raw, tolerance=1.0)["nsd"][2])


def test_voxels_in_micrometres_are_those_of_nnunet_s_reader(run, tmp_path):
    run_json, raw = run
    for path in (*raw.glob("*Tr/*.nii.gz"), *tmp_path.glob("results/**/validation/*.nii.gz")):
        image = nibabel.load(path)
        small = nibabel.Nifti1Image(np.asarray(image.dataobj), np.diag([50, 50, 50, 1.0]))
        small.header.set_xyzt_units("micron")
        nibabel.save(small, path)
    table = measure_run(run_json, raw, tolerance=2.0)
    assert table["nsd"].dropna().tolist() == [1, 1, 1], "all of it is within 0.2 mm"


def test_images_without_a_spacing_are_measured_in_pixels(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = FakeStudy(tmp_path, arms=("constant",), folds=(0,)).write()
    key = study.keys()[0]
    run_json = study.folder(key) / "run.json"
    record = json.loads(run_json.read_text()) | {"file_ending": ".png"}
    run_json.write_text(json.dumps(record))
    summary = run_json.with_name("summary.json")
    summary.write_text(summary.read_text().replace(".nii.gz", ".png"))
    predictions = Path(record["results_folder"], "validation")
    for folder in (tmp_path / "imagesTr", tmp_path / "labelsTr", predictions):
        folder.mkdir(parents=True)
    describe(tmp_path, file_ending=".png")
    square = np.zeros((20, 20), np.uint8)
    square[5:15, 5:15] = 1
    for number in range(3):
        name = f"case_0{number:02d}"
        io.imsave(tmp_path / f"imagesTr/{name}_0000.png", square, check_contrast=False)
        io.imsave(tmp_path / f"labelsTr/{name}.png", square, check_contrast=False)
        moved = np.roll(square, 3 * (number == 1), axis=1)
        io.imsave(predictions / f"{name}.png", moved, check_contrast=False)
    table = measure_run(run_json, tmp_path, tolerance=3.0)
    assert (table["tolerance_px"] == 3).all()
    assert table["tolerance_mm"].isna().all()
    assert table.loc[table["label"] == "1", "nsd"].tolist() == [1, 1, 1]
    closer = measure_run(run_json, tmp_path, tolerance=2.0)
    assert closer["nsd"][2] < 1


def test_a_single_slice_has_outlines_only():
    square = np.zeros((1, 20, 20), bool)
    square[:, 5:15, 5:15] = True
    moved = np.roll(square, 3, axis=2)
    nsd = surface_dice(square, moved, (999.0, 1.0, 1.0), 1.0)
    assert 0.4 < nsd < 0.75
    assert surface_dice(square, moved, (999.0, 1.0, 1.0), 3.0) == 1
