"""Images are read with nnU-Net's reader, and a fault is reported in one line."""

import json

import nibabel
import numpy as np
import pytest
import SimpleITK
import skimage.io
import tifffile

from workflow_scripts.common.errors import UserError
from workflow_scripts.common.images import (
    check_whole,
    describe_failure,
    find_reader,
    load_image,
    read_image,
    read_label,
    reader_of,
)

VALUES = np.random.default_rng(0).integers(0, 3, (5, 6, 7)).astype(np.uint8)
SPACING = (3.0, 2.0, 0.5)
"""Along z, y, x."""


def write(path, values=VALUES, spacing=SPACING):
    """Write an image (z, y, x), or its first slice, in the format of the file ending."""
    if path.suffix in (".tif", ".tiff"):
        tifffile.imwrite(path, values)
        channel = "_0000" if path.stem.endswith("_0000") else ""
        beside = path.with_name(path.stem.removesuffix(channel) + ".json")
        beside.write_text(json.dumps({"spacing": spacing}))
    elif path.suffix in (".png", ".bmp"):
        skimage.io.imsave(path, values[0], check_contrast=False)
    else:
        image = SimpleITK.GetImageFromArray(values)
        image.SetSpacing(spacing[::-1])
        SimpleITK.WriteImage(image, path)


@pytest.mark.parametrize(
    ("ending", "reader"),
    [
        (".nii.gz", "SimpleITKIO"),
        (".nrrd", "SimpleITKIO"),
        (".mha", "SimpleITKIO"),
        (".gipl", "SimpleITKIO"),
        (".nii", "NibabelIO"),
        (".tif", "Tiff3DIO"),
        (".tiff", "Tiff3DIO"),
        (".png", "NaturalImage2DIO"),
        (".bmp", "NaturalImage2DIO"),
    ],
)
def test_every_ending_of_nnunet_is_read(tmp_path, ending, reader):
    path = tmp_path / f"case_0000{ending}"
    write(path)
    found = find_reader({"file_ending": ending}, path)
    assert type(found).__name__ == reader
    image = read_image(found, path)
    flat = ending in (".png", ".bmp")
    np.testing.assert_array_equal(image.values, VALUES[None, :1] if flat else VALUES[None])
    assert image.spacing == ((999, 1, 1) if flat else SPACING)
    has_axes = reader in ("SimpleITKIO", "NibabelIO")
    assert (image.affine is not None) == has_axes
    if has_axes and ending != ".gipl":  # ITK's GIPL keeps no directions
        np.testing.assert_allclose(image.affine, np.diag([-0.5, -2, 3, 1]), atol=1e-6)
    label = tmp_path / f"case{ending}"
    write(label)
    assert read_label(found, label).spacing == image.spacing


@pytest.mark.parametrize("reader", ["SimpleITKIO", "NibabelIO", "NibabelIOWithReorient"])
def test_affines_of_all_readers_are_those_of_nibabel(tmp_path, reader):
    path = tmp_path / "case_0000.nii.gz"
    affine = np.array([[0, -2.0, 0, 5], [0.5, 0, 0, 6], [0, 0, 3.0, 7], [0, 0, 0, 1]])
    nibabel.save(nibabel.Nifti1Image(VALUES, affine), path)
    names = {"file_ending": ".nii.gz", "overwrite_image_reader_writer": reader}
    image = read_image(find_reader(names, path), path)
    volume = nibabel.load(path)
    if reader.endswith("Reorient"):
        volume = nibabel.as_closest_canonical(volume)
    np.testing.assert_allclose(image.affine, volume.affine, atol=1e-5)
    np.testing.assert_array_equal(image.values[0].T, volume.get_fdata())


def test_micrometres_are_those_of_the_reader(tmp_path):
    path = tmp_path / "case_0000.nii.gz"
    volume = nibabel.Nifti1Image(VALUES, np.diag([50, 50, 50, 1.0]))
    volume.header.set_xyzt_units("micron")
    nibabel.save(volume, path)
    image = read_image(find_reader({"file_ending": ".nii.gz"}, path), path)
    assert image.spacing == pytest.approx((0.05, 0.05, 0.05))


def test_a_scaled_mask_has_whole_numbers(tmp_path):
    path = tmp_path / "case.nii.gz"
    volume = nibabel.Nifti1Image(np.where(VALUES > 0, 255, 0).astype(np.uint8), np.eye(4))
    volume.header.set_slope_inter(1 / 255, 0)
    volume.to_filename(path)
    with_slope = nibabel.load(path).get_fdata()
    assert set(np.unique(with_slope)) != {0, 1}, "nibabel returns 1.00000006"
    label = read_label(find_reader({"file_ending": ".nii.gz"}, path), path)
    assert set(np.unique(label.values)) == {0, 1}


def sheared(path):
    affine = np.eye(4)
    affine[0, 1] = 0.3
    nibabel.save(nibabel.Nifti1Image(VALUES, affine), path)


def test_why_a_sheared_image_cannot_be_read_is_said_in_a_line(tmp_path):
    good, bad = tmp_path / "a_0000.nii.gz", tmp_path / "b_0000.nii.gz"
    write(good)
    sheared(bad)
    reader = find_reader({"file_ending": ".nii.gz"}, good)
    with pytest.raises(UserError) as error:
        load_image(reader, bad)
    text = str(error.value)
    assert text.startswith(f"{bad} cannot be read by nnU-Net's SimpleITKIO (ITK only supports orth")
    assert '"overwrite_image_reader_writer": "NibabelIO"' in text
    assert "\n" not in text
    # nnU-Net chooses by the first image: if that is sheared, it uses nibabel for all.
    assert type(find_reader({"file_ending": ".nii.gz"}, bad)).__name__ == "NibabelIO"


def test_the_reader_of_a_dataset_is_chosen_by_its_first_case(tmp_path):
    (tmp_path / "imagesTr").mkdir()
    (tmp_path / "dataset.json").write_text('{"file_ending": ".nii.gz"}')
    with pytest.raises(UserError, match=r"imagesTr has no \.nii\.gz files"):
        reader_of(tmp_path)
    (tmp_path / "imagesTr/._a_0000.nii.gz").write_text("no image")
    write(tmp_path / "imagesTr/b_0000.nii.gz")
    assert type(reader_of(tmp_path)).__name__ == "SimpleITKIO"
    sheared(tmp_path / "imagesTr/a_0000.nii.gz")
    assert type(reader_of(tmp_path)).__name__ == "NibabelIO"


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha", ".gipl", ".png"])
@pytest.mark.parametrize("lost", [1, 100])
def test_a_file_that_ends_early_is_noticed(tmp_path, ending, lost):
    path = tmp_path / f"case_0000{ending}"
    write(path)
    reader = find_reader({"file_ending": ending}, path)
    check_whole(path)
    path.write_bytes(path.read_bytes()[:-lost])

    def read():
        check_whole(path)
        read_image(reader, path)

    with pytest.raises(Exception) as error:
        read()
    assert "\n" not in describe_failure(reader, error.value)


def test_an_unknown_reader_or_ending_is_refused(tmp_path):
    known = {"file_ending": ".nii.gz", "overwrite_image_reader_writer": "Nibabel"}
    with pytest.raises(UserError, match="is Nibabel, but nnU-Net has no such reader; it has Natu"):
        find_reader(known, tmp_path)
    with pytest.raises(UserError, match=r"`file_ending` is \.dcm, but nnU-Net reads \.png, \.bmp"):
        find_reader({"file_ending": ".dcm"}, tmp_path)
