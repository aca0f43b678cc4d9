"""The generated demo task."""

import numpy as np
import pytest
from scipy.ndimage import binary_erosion

from workflow_scripts.data import make_demo_task
from workflow_scripts.data.archives import extract_archive
from workflow_scripts.data.dataset_checks import check_dataset, read_description
from workflow_scripts.study.tasks import DEMO_TASK


@pytest.fixture(scope="module")
def template():
    return make_demo_task.load_template()


def test_case_depends_on_seed_and_case_alone(template):
    image, label = make_demo_task.make_case(template, seed=7, case=3)
    make_demo_task.make_case(template, seed=7, case=2)
    again, label_again = make_demo_task.make_case(template, seed=7, case=3)
    np.testing.assert_array_equal(image, again)
    np.testing.assert_array_equal(label, label_again)
    for seed, case in ((8, 3), (7, 4)):
        other, _ = make_demo_task.make_case(template, seed=seed, case=case)
        assert other.shape != image.shape or not np.array_equal(other, image)


@pytest.mark.parametrize("case", range(4))
def test_image_shows_what_the_label_says(template, case):
    image, label = make_demo_task.make_case(template, seed=2024, case=case)
    assert image.shape == label.shape
    assert max(abs(a - b) for a, b in zip(image.shape, make_demo_task.SHAPE, strict=True)) <= 4
    means = [image[binary_erosion(label == value)].mean() for value in range(3)]
    assert 1.15 * means[1] < means[2], "white matter is brighter than grey matter in T1"
    assert 2 * means[0] < means[1]
    for value in range(3):
        assert 0.15 < (label == value).mean() < 0.6


def test_smooth_field_is_normalised_and_smooth():
    field = make_demo_task.smooth_field(np.random.default_rng(0), (20, 30, 25), period=30)
    assert field.shape == (20, 30, 25)
    assert abs(field.mean()) < 1e-5
    assert abs(field.std() - 1) < 1e-5
    assert max(np.abs(np.diff(field, axis=axis)).max() for axis in range(3)) < 0.5


def test_archive_is_a_whole_dataset_with_the_same_bytes_each_time(tmp_path):
    one, two = tmp_path / "one.tar", tmp_path / "two.tar"
    for path in (one, two):
        make_demo_task.write_archive(path, cases=2, seed=1)
    assert one.read_bytes() == two.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.tar", "two.tar"]

    folder = tmp_path / "msd" / DEMO_TASK
    extract_archive(one, folder)
    assert check_dataset(folder) == 2
    description = read_description(folder)
    assert "Semi-synthetic" in description["description"]
    assert "Copyright (C) 1993-2004 Louis Collins" in description["licence"]


def test_more_cases_leave_the_first_ones_as_they_are(tmp_path):
    for cases in (1, 2):
        make_demo_task.write_archive(tmp_path / f"{cases}.tar", cases=cases, seed=1)
        extract_archive(tmp_path / f"{cases}.tar", tmp_path / str(cases) / DEMO_TASK)
    names = [f"{DEMO_TASK}/{place}/brain_000.nii.gz" for place in ("imagesTr", "labelsTr")]
    for name in names:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()
