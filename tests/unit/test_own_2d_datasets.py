"""A user's own 2D images: which are accepted, and which are refused with what is wrong in 2D."""

import json

import nibabel
import numpy as np
import PIL.Image
import pytest
import SimpleITK
from skimage import io

from workflow_scripts.common.errors import UserError
from workflow_scripts.data.conversion import import_own_task
from workflow_scripts.study.tasks import dataset_of

TASK = "Task501_Photos"
CASES = [f"photo_{number}" for number in range(5)]
SHAPE = (12, 9)


def write(folder, ending=".png", channels=3, **changes):
    """Write five sound photographs and their labels in nnU-Net's raw format."""
    random = np.random.default_rng(0)
    for place in ("imagesTr", "labelsTr"):
        (folder / place).mkdir(parents=True)
    for case in CASES:
        shape = SHAPE if channels == 1 else (*SHAPE, channels)
        image = random.integers(0, 255, shape).astype(np.uint8)
        io.imsave(folder / f"imagesTr/{case}_0000{ending}", image, check_contrast=False)
        label = random.integers(0, 3, SHAPE).astype(np.uint8)
        io.imsave(folder / f"labelsTr/{case}{ending}", label, check_contrast=False)
    description = {
        "channel_names": {str(n): f"channel {n}" for n in range(channels)},
        "labels": {"background": 0, "one": 1, "two": 2},
        "numTraining": 5,
        "file_ending": ending,
    }
    (folder / "dataset.json").write_text(json.dumps(description | changes))


def put(folder):
    target = folder.parent / "nnUNet_raw" / dataset_of(TASK)
    cases = import_own_task(str(folder), target, folder.parent / "preprocessed", TASK, threads=2)
    return target, cases


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "mine"
    write(folder)
    return folder


@pytest.mark.parametrize(
    ("ending", "channels"),
    [(".png", 1), (".png", 3), (".png", 4), (".bmp", 1), (".bmp", 3), (".tif", 1), (".tif", 3)],
)
def test_grey_and_colour_images_are_accepted(tmp_path, ending, channels):
    write(tmp_path / "mine", ending, channels)
    target, cases = put(tmp_path / "mine")
    assert cases == 5
    assert (target / f"imagesTr/photo_0_0000{ending}").is_symlink()


@pytest.mark.parametrize("spacing", [None, (0.5, 0.5, 3)])
def test_a_slice_as_nifti_is_accepted(tmp_path, spacing):
    """As a 2D image, or as a volume of one slice that is thicker than a pixel."""
    write_slices(tmp_path / "mine", spacing)
    assert put(tmp_path / "mine")[1] == 5


def write_slices(folder, spacing, slices=1):
    write(folder, channels=1, file_ending=".nii.gz")
    for path in [*folder.glob("*/*.png")]:
        values = io.imread(path)
        if spacing:
            values = np.repeat(values[None], slices, axis=0)
        image = SimpleITK.GetImageFromArray(values)
        if spacing:
            image.SetSpacing(spacing)
        SimpleITK.WriteImage(image, path.with_suffix(".nii.gz"))
        path.unlink()


def refused(folder, *texts):
    with pytest.raises(UserError) as error:
        put(folder)
    message = str(error.value)
    assert message.count("\n") == 1, message
    for text in texts:
        assert text in message
    assert not list((folder.parent / "nnUNet_raw").glob("Dataset*"))


def test_a_thin_single_slice_is_refused(tmp_path):
    """nnU-Net takes the axis with the largest spacing for that of the slices."""
    write_slices(tmp_path / "mine", (2, 2, 1))
    with pytest.raises(
        UserError, match=r"5 faults:\n  photo_0: a single slice whose thickness, 1 mm"
    ):
        put(tmp_path / "mine")


def test_2d_and_3d_images_are_not_mixed(tmp_path):
    folder = tmp_path / "mine"
    write_slices(folder, (1, 1, 3))
    for path in (folder / "imagesTr/photo_3_0000.nii.gz", folder / "labelsTr/photo_3.nii.gz"):
        image = nibabel.load(path)
        volume = np.repeat(np.asarray(image.dataobj), 4, axis=2)
        nibabel.save(nibabel.Nifti1Image(volume, image.affine), path)
    refused(folder, "2D and 3D images are mixed: photo_0 has one slice, photo_3 several")


def test_another_number_of_channels_is_named(photos):
    grey = io.imread(photos / "imagesTr/photo_2_0000.png")[..., 0]
    io.imsave(photos / "imagesTr/photo_2_0000.png", grey, check_contrast=False)
    refused(photos, "photo_2: ", "reads 1 channels, but `dataset.json` names 3", "RGB 3")


@pytest.mark.parametrize(("place", "name"), [("imagesTr", "photo_1_0000"), ("labelsTr", "photo_1")])
def test_a_palette_is_refused(photos, place, name):
    """nnU-Net would read the colours of the palette."""
    path = photos / place / f"{name}.png"
    indices = PIL.Image.fromarray(np.ones(SHAPE, np.uint8))
    indices.putpalette([0, 0, 0, 255, 0, 0])
    indices.save(path)
    refused(photos, f"photo_1: {place}/{name}.png", "palette", "grey values 0, 1, 2")


def test_a_label_in_colour_is_refused(photos):
    label = io.imread(photos / "labelsTr/photo_4.png")
    io.imsave(photos / "labelsTr/photo_4.png", np.stack([label] * 3, -1), check_contrast=False)
    refused(photos, "labelsTr/photo_4.png has 3 channels", "save its values as grey")


@pytest.mark.parametrize(
    ("values", "hint"),
    [([0, 17, 120, 255], "anti-aliasing"), ([0, 255], "255 is white")],
    ids=["smoothed", "white"],
)
def test_values_of_a_drawn_label_are_explained(photos, values, hint):
    label = np.resize(np.array(values, np.uint8), SHAPE)
    io.imsave(photos / "labelsTr/photo_0.png", label, check_contrast=False)
    refused(photos, "photo_0: label values", "255 are not declared ([0, 1, 2])", hint)


@pytest.mark.parametrize("ending", [".jpg", ".jpeg", ".JPG"])
def test_jpeg_is_refused_with_the_reason(tmp_path, ending):
    write(tmp_path / "mine", file_ending=ending)
    with pytest.raises(UserError, match=rf"is {ending}, but nnU-Net reads .*save as PNG"):
        put(tmp_path / "mine")


def test_a_jpeg_with_another_name_is_refused(photos):
    path = photos / "imagesTr/photo_0_0000.png"
    PIL.Image.fromarray(io.imread(path)).save(path, format="JPEG")
    refused(photos, "imagesTr/photo_0_0000.png", "not a PNG image, despite its name")


def test_shapes_that_differ_are_told_without_a_third_axis(photos):
    label = np.ones((12, 8), np.uint8)
    io.imsave(photos / "labelsTr/photo_0.png", label, check_contrast=False)
    refused(photos, "image shape (9, 12) and label shape (8, 12) differ")
