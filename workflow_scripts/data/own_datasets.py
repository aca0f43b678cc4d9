"""Find and check the user's own datasets."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunetv2.utilities.label_handling.label_handling import LabelManager

from workflow_scripts.common.errors import UserError
from workflow_scripts.common.files import read_json, visible
from workflow_scripts.common.images import ENDINGS
from workflow_scripts.data.dataset_checks import check_cases, refuse

NEEDED = "docs/how-to/own_dataset.md describes its content"
Cases = dict[str, tuple[list[Path], Path]]
"""Case -> image files of its channels, and its label file."""
JPEG = (".jpg", ".jpeg", ".JPG", ".JPEG")
SPACING_FILES = (".tif", ".tiff")
"""Endings of images that may come with a `.json` file for the spacing."""


def is_raw(folder: Path) -> bool:
    """Return whether a folder's dataset.json is in nnU-Net's raw format; False means MSD's.

    Raises:
        UserError: it is missing, broken, or in neither format.
    """
    path = folder / "dataset.json"
    description = read_json(path, NEEDED)
    if "channel_names" in description:
        return True
    if "modality" in description:
        return False
    raise UserError(
        f"{path}: neither nnU-Net's raw format (it has `channel_names`) nor MSD's (`modality`)."
    )


def read_raw_description(folder: Path) -> dict[str, Any]:
    """Read and check `dataset.json` of a dataset in nnU-Net's raw format.

    Raises:
        UserError: an entry that nnU-Net needs is missing or unusable.
    """
    path = folder / "dataset.json"
    description = read_json(path, NEEDED)
    wanted = {"channel_names": dict, "labels": dict, "numTraining": int, "file_ending": str}
    for key, kind in wanted.items():
        if not isinstance(description.get(key), kind) or not description[key]:
            raise UserError(f"{path}: `{key}` is missing, empty or not of type {kind.__name__}.")
    channels = description["channel_names"]
    if sorted(channels) != sorted(str(i) for i in range(len(channels))):
        raise UserError(f"{path}: the keys of `channel_names` are not 0, 1, 2, … as nnU-Net needs.")
    ending = description["file_ending"]
    if ending.lower() not in ENDINGS:
        why = " JPEG loses detail, and changes labels: save as PNG." if ending in JPEG else ""
        raise UserError(
            f"{path}: `file_ending` is {ending}, but nnU-Net reads {', '.join(ENDINGS)} only.{why}"
        )
    try:
        declared_labels(description)
    except ValueError as error:
        raise UserError(f"{path}: {error}.") from None
    return description


def declared_labels(description: Mapping[str, Any]) -> set[int]:
    """Return the values that label maps may contain, including those of regions and `ignore`.

    Raises:
        ValueError: nnU-Net cannot use the labels; the message gives the reason.
    """
    labels, order = description["labels"], description.get("regions_class_order")
    if labels.get("0") == "background":
        raise ValueError(
            "`labels` maps values to names, as MSD does; the raw format maps names to values, "
            'as in {"background": 0, "tumour": 1}'
        )
    for name, value in labels.items():
        values = value if isinstance(value, list) else [value]
        if not values or not all(type(one) is int for one in values):
            raise ValueError(
                f"`labels` has {name}: {value}, neither a whole number nor a list of them"
            )
    try:
        manager = LabelManager(labels, order)
    except (AssertionError, RuntimeError) as error:
        text = " ".join(str(error).removesuffix("Sorry bro.").split()).rstrip(".!")
        raise ValueError(f"nnU-Net cannot use `labels` and `regions_class_order`: {text}") from None
    found = [int(value) for value in manager.all_labels]
    found += [manager.ignore_label] if manager.has_ignore_label else []
    if found != list(range(len(found))) or len(manager.all_labels) < 2:
        raise ValueError(f"the values of `labels` must be background 0, then 1, 2, 3, …: {labels}")
    if manager.has_regions:
        check_order(manager.foreground_regions, order or [], labels)
    elif len(set(map(str, labels.values()))) < len(labels):
        raise ValueError(f"two names in `labels` have the same value: {labels}")
    return set(found)


def check_order(regions: list[Any], order: list[int], labels: Mapping[str, Any]) -> None:
    """Check that regions can be read back from the label maps that nnU-Net writes.

    nnU-Net writes the value `order[i]` wherever it predicts region i, one region after the other.
    So that value must belong to region i, and to no later region.

    Raises:
        ValueError: a region would be read back as another one, and Dice would be wrong.
    """
    sets = [set(region) if isinstance(region, tuple) else {region} for region in regions]
    for place, value in enumerate(order):
        after = set().union(*sets[place + 1 :])
        if value not in sets[place] or value in after:
            inside = value in sets[place]
            why = "also belongs to a later one" if inside else "does not belong to it"
            raise ValueError(
                f"`regions_class_order` assigns {value} to region {place + 1} of {labels}, but "
                f"this value {why}: predictions would be read back as another region"
            )


def find_cases(folder: Path, description: dict[str, Any]) -> tuple[Cases, list[str]]:
    """Return the complete cases of a raw dataset, and the faults of the others.

    The files are in imagesTr and labelsTr, or at the paths in the description's `dataset`.
    Environment variables in those paths are expanded, as in nnU-Net. Hidden files are ignored.
    """
    if elsewhere := description.get("dataset"):
        faults: list[str] = []
        files: Cases = {}
        for case, entry in elsewhere.items():
            try:
                images, label = [_place(folder, name) for name in entry["images"]], entry["label"]
                files[case] = images, _place(folder, label)
            except (KeyError, TypeError):
                faults.append(f"{case}: `dataset` needs its `images` (a list) and its `label`")
    else:
        files, faults = _list_files(folder, description)
    for case, (images, label) in files.items():
        missing = [path for path in (*images, label) if not path.is_file()]
        faults += [f"{case}: {path.parent.name}/{path.name} is missing" for path in missing]
    if len(files) != description["numTraining"]:
        faults.append(f"`numTraining` is {description['numTraining']}, found {len(files)} cases")
    whole = {c: f for c, f in files.items() if all(path.is_file() for path in (*f[0], f[1]))}
    return whole, faults


def _place(folder: Path, name: str) -> Path:
    return folder / os.path.expandvars(name)


def _list_files(folder: Path, description: dict[str, Any]) -> tuple[Cases, list[str]]:
    """Return the cases in imagesTr and labelsTr, complete or not, and the faults of other files.

    Each channel has its own file. If all files are named `CASE_0000`, each contains all channels.
    """
    ending, count = description["file_ending"], len(description["channel_names"])
    faults, numbers, names = [], set(), set()
    for path in visible(folder / "imagesTr"):
        stem = path.name.removesuffix(ending)
        named = re.fullmatch(r"(.+)_(\d{4})", stem)
        if path.name.endswith(ending) and named and int(named[2]) < count:
            names.add(named[1])
            numbers.add(int(named[2]))
        elif path.name.endswith(ending):
            last = f" … CASE_{count - 1:04d}{ending}" if count > 1 else ""
            faults.append(f"{path.name}: not CASE_0000{ending}{last}")
        elif not _beside(path, ending):
            faults.append(f"imagesTr/{path.name}: does not end in {ending}, the `file_ending`")
    for path in visible(folder / "labelsTr"):
        if path.name.endswith(ending):
            names.add(path.name.removesuffix(ending))
        elif not _beside(path, ending):
            faults.append(f"labelsTr/{path.name}: does not end in {ending}, the `file_ending`")
    channels = range(count if numbers != {0} else 1)
    files = {
        case: (
            [folder / f"imagesTr/{case}_{number:04d}{ending}" for number in channels],
            folder / f"labelsTr/{case}{ending}",
        )
        for case in names
    }
    return files, faults


def _beside(path: Path, ending: str) -> bool:
    """Return whether a file contains the spacing of a TIFF image."""
    return ending.lower() in SPACING_FILES and path.suffix == ".json"


def check_raw(folder: Path, threads: int) -> tuple[dict[str, Any], Cases]:
    """Check a whole dataset in nnU-Net's raw format; return its description and cases.

    Raises:
        UserError: there are faults; the message contains their number and the first ones by case.
    """
    description = read_raw_description(folder)
    cases, faults = find_cases(folder, description)
    channels, labels = len(description["channel_names"]), declared_labels(description)
    try:
        faults += check_cases(folder.name, cases, description, channels, labels, threads)
    except UserError as error:  # nnU-Net has no such reader
        raise UserError(f"{folder / 'dataset.json'}: {error}.") from None
    refuse(folder.name, faults)
    return description, cases
