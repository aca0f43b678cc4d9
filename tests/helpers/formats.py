"""Small datasets with features that MSD lacks: regions, an ignore label, other formats."""

import csv
import json

import numpy as np
import SimpleITK
import tifffile

SHAPE = (20, 28, 24)
"""Voxels along z, y, x."""


def nested_boxes(number):
    """Return labels 0, 1 and 2 (2 within 1) and a noisy image of them."""
    rng = np.random.default_rng(number)
    labels = np.zeros(SHAPE, np.uint8)
    z, y, x = rng.integers(0, 4, 3)
    labels[z + 3 : z + 15, y + 4 : y + 22, x + 3 : x + 19] = 1
    labels[z + 6 : z + 12, y + 8 : y + 18, x + 6 : x + 14] = 2
    return labels, (10.0 * labels + rng.normal(size=SHAPE)).astype(np.float32)


def _begin(folder, name, count, **entries):
    """Make the folders and `dataset.json` of a dataset; return the names of its cases."""
    for place in ("imagesTr", "labelsTr"):
        (folder / place).mkdir(parents=True)
    (folder / "dataset.json").write_text(json.dumps({"numTraining": count, **entries}))
    return [f"{name}{number}" for number in range(count)]


def write_regions(folder):
    """Write four two-channel NRRD cases with overlapping regions, and two folds."""
    cases = _begin(
        folder,
        "patient ",
        4,
        channel_names={"0": "T1", "1": "T2"},
        labels={"background": 0, "whole": [1, 2], "core": [2]},
        regions_class_order=[1, 2],
        file_ending=".nrrd",
    )
    for number, case in enumerate(cases):
        labels, image = nested_boxes(number)
        for name, array in (
            (f"imagesTr/{case}_0000", image),
            (f"imagesTr/{case}_0001", image.max() - image),
            (f"labelsTr/{case}", labels),
        ):
            volume = SimpleITK.GetImageFromArray(array)
            volume.SetSpacing((1.0, 1.0, 1.5))
            SimpleITK.WriteImage(volume, folder / f"{name}.nrrd", True)
    folds = [{"train": cases[:2], "val": cases[2:]}, {"train": cases[2:], "val": cases[:2]}]
    (folder / "splits_final.json").write_text(json.dumps(folds))
    (folder / "imagesTr/._patient 0_0000.nrrd").write_text("of macOS")


def write_ignored(folder):
    """Write seven partly labelled 3D TIFF cases of five patients, and the table of groups."""
    cases = _begin(
        folder,
        "scan_",
        7,
        channel_names={"0": "EM"},
        labels={"background": 0, "outer": 1, "inner": 2, "ignore": 3},
        file_ending=".tif",
    )
    for number, case in enumerate(cases):
        labels, image = nested_boxes(number)
        labels[:, 22:] = 3
        for name, array in ((f"imagesTr/{case}_0000", image), (f"labelsTr/{case}", labels)):
            tifffile.imwrite(folder / f"{name}.tif", array)
            place = name.partition("/")[0]
            (folder / place / f"{case}.json").write_text('{"spacing": [1.5, 1.0, 1.0]}')
    with (folder / "patients.csv").open("w", newline="") as file:
        rows = [{"case": case, "group": f"P{n % 5}"} for n, case in enumerate(cases)]
        table = csv.DictWriter(file, ["case", "group"])
        table.writeheader()
        table.writerows(rows)
