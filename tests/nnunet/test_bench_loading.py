"""The loading times that `make bench` reports."""

import copy

import pytest

from helpers.tree import ROOT
from workflow_scripts.benchmark.bench_loading import (
    ARMS,
    CASES,
    bench_plan,
    some_stages,
    to_markdown,
    with_goals,
    write_cases,
)
from workflow_scripts.forecast.plans import Plan, published_plans


@pytest.fixture(scope="module")
def small():
    """Return a published plan with a smaller patch, so that it loads quickly."""
    found = published_plans(ROOT / "config/published/nnunet_plans.tsv")["Task04_Hippocampus"]
    plans = copy.deepcopy(found.plans)
    plans["configurations"]["3d_fullres"] |= {"patch_size": [16, 24, 16], "batch_size": 3}
    return Plan("made up", plans, found.dataset)


def test_every_arm_is_measured_below_the_planned_patch(small, tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    rows = bench_plan("Task04", small, tmp_path, seconds=0.0, stages=2)
    table = with_goals(rows)
    assert table.groupby("arm").size().to_dict() == dict.fromkeys(ARMS, 2)
    assert (table["seconds"] > 0).all()
    assert (table["constant_seconds"] > 0).all()
    assert "16x24x16" not in set(table["patch_size"])
    performance = table[table["arm"] == "progressive_performance"]
    assert performance["batch_size"].iloc[0] == 36, "3 * 16 * 24 * 16 / 8^3"
    page = to_markdown(table)
    assert page.count("Task04") == 1
    assert f"of {len(table)} stages" in page


def test_cases_have_the_sizes_of_the_plan(small, tmp_path):
    dataset = write_cases(small, tmp_path)
    assert len(dataset.identifiers) == CASES
    data, seg, _, properties = dataset.load_case("case_0")
    assert data.shape == seg.shape == (1, 32, 48, 32), "no more than twice the patch"
    assert set(properties["class_locations"]) == {1, 2}
    found = seg[:]
    for label, places in properties["class_locations"].items():
        assert len(places)
        assert (found[tuple(places.T)] == label).all()


@pytest.mark.parametrize(
    ("count", "most", "expected"),
    [(1, 5, []), (2, 5, [0]), (4, 5, [0, 1, 2]), (15, 5, [0, 3, 6, 10, 13]), (9, 1, [0])],
)
def test_stages_are_spread_from_the_smallest_to_the_last_but_one(count, most, expected):
    assert some_stages(count, most) == expected


def test_goals_follow_the_voxels():
    rows = [
        {"task": "T", "arm": arm, "patch_size": "8x8x8", "batch_size": 4, "voxels": voxels}
        | {"seconds": seconds, "constant_seconds": 2.0}
        for arm, voxels, seconds in (
            ("progressive", 0.3, 1.0),
            ("progressive_plus", 0.3, 1.1),
            ("progressive_efficiency", 0.31, 2.2),
            ("progressive_performance", 1.0, 2.3),
        )
    ]
    table = with_goals(rows)
    assert table["goal"].tolist() == [0.5, 0.5, 1.1, 1.1]
    assert table["met"].tolist() == [True, False, True, False]
    page = to_markdown(table)
    assert "met at 2 of 4 stages" in page
    assert "0.55 at 4 × 8x8x8 (!)" in page
    assert "1.10 at 4 × 8x8x8  " in page
