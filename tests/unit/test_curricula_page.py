"""Texts of the notebooks about stages, patches and scale factors, from tables made by hand."""

import pandas as pd
import pytest

from workflow_scripts.report.curricula_page import (
    describe_foreground,
    lost_labels,
    read_shares,
    stage_tables,
)
from workflow_scripts.report.scale_space_page import describe_choices

RUNS = pd.DataFrame({"task": ["A"], "patch_size": ["8x8x8"], "batch_size": [2]})


def cells(table):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_stages_of_the_first_fold_are_shown_relative_to_the_planned_patch():
    rows = [
        {"task": "A", "arm": arm, "fold": fold, "stage": stage, "patch_size": size}
        | {"batch_size": 2, "epochs": 3, "voxels_per_iteration": voxels, "seconds": seconds}
        | {"kwh": 0.001234, "pseudo_dice": 0.5}
        for arm, fold in (("growing", 0), ("growing", 1), ("late", 1))
        for stage, size, voxels, seconds in ((0, "4x4x4", 128, 1), (1, "8x8x8", 1024, 3))
    ]
    rows.append({**rows[0], "arm": "random", "stage": None, "patch_size": "random"})
    title, _, *table = stage_tables(pd.DataFrame(rows), RUNS).splitlines()
    _, _, *body = cells("\n".join(table))
    assert title == "### A"
    assert [row[:2] for row in body] == [
        ["growing", "1"],
        ["growing", "2"],
        ["late", "1"],
        ["late", "2"],
        ["random", "–"],
    ]
    assert body[0][2:] == ["4x4x4", "2", "3", "0.125", "1.0", "25%", "0.00123", "0.500"]
    assert body[4][2] == "drawn each time"


def shares(tmp_path):
    rows = [
        {"task": "A", "label": label, "label_name": name, "patch_size": size, "forced": forced}
        | {"field_of_view": view, "patch_voxels": voxels, "foreground_share": share}
        | {"foreground_share_sem": 0.01, "patches_with_label": patches}
        for label, name in (("0", ""), ("NA", "a|b"))
        for size, view, voxels, share, patches in (
            ("4x4x4", "4x4x4", 64, 0.4, 1.0),
            ("8x8x8", "8x8x8", 512, 0.1, 1.0),
            ("4x4x4", "8x8x8", 64, 0.05, 0.75),
        )
        for forced in (True, False)
    ]
    path = tmp_path / "class_balance.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    return read_shares(path)


def test_foreground_of_the_smallest_and_the_largest_patch_is_compared(tmp_path):
    text = describe_foreground(shares(tmp_path), ["A"])
    assert "patches of 4x4x4 contain 40.00% ± 1.00%" in text
    assert "those of 8x8x8 contain 10.00%" in text
    assert text.endswith("a ratio of 4.00.")


def test_what_a_lower_resolution_loses_is_compared_with_the_planned_size(tmp_path):
    table = lost_labels(shares(tmp_path))
    assert r"a\|b" in table
    last = [cell.strip() for cell in table.splitlines()[-1].strip("|").split("|")]
    assert last[-3:] == ["5.000%", "10.000%", "25.0%"]
    assert len(table.splitlines()) == 4


@pytest.mark.parametrize("passed", [True, False])
def test_the_chosen_scale_factor_is_described(passed):
    choice = {"task": ["A"], "arm": ["s"], "scale": [0.5], "dice": [0.8], "relative_gmac": [0.6]}
    choices = pd.DataFrame({**choice, "best_scale": [1.0], "best_dice": [0.81]})
    checks = pd.DataFrame({"task": ["A"], "arm": ["s"], "passed": [passed]})
    text = describe_choices(choices, checks, "mine")
    assert "**s**, A: scale factor 0.5 has a Dice of 0.800 with 0.60" in text
    assert ("do not follow" in text) != passed
    assert "No arm" in describe_choices(choices[:0], checks, "mine")
