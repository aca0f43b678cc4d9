"""Check a dataset before training: its description, its files, and every case in full.

`check_dataset` is for the Medical Segmentation Decathlon's format (MSD), `check_cases` for any.
"""

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO

from workflow_scripts.common.errors import UserError
from workflow_scripts.common.files import read_json, visible
from workflow_scripts.common.formatting import counted
from workflow_scripts.common.images import (
    Image,
    check_name,
    check_values,
    check_whole,
    describe_failure,
    find_reader,
    read_image,
    read_label,
)
from workflow_scripts.common.progress import progress_bar

FAULTS_SHOWN = 10
UNREAD = (0, 0, 0)


def read_description(folder: str | Path) -> dict[str, Any]:
    """Read and check `dataset.json` of an MSD dataset.

    Raises:
        UserError: it is missing, not JSON, or lacks entries that training needs.
    """
    path = Path(folder, "dataset.json")
    description = read_json(path, "an MSD dataset needs a complete one")
    if "test" not in description:
        raise UserError(f"{path}: the list `test` that nnU-Net expects is missing.")
    for key, kind in {"name": str, "modality": dict, "labels": dict, "training": list}.items():
        if not isinstance(description.get(key), kind) or not description[key]:
            raise UserError(f"{path}: `{key}` is missing, empty or not of type {kind.__name__}.")
    for key in ("modality", "labels"):
        if sorted(description[key]) != sorted(str(i) for i in range(len(description[key]))):
            raise UserError(f"{path}: the keys of `{key}` are not 0, 1, 2, … as nnU-Net needs.")
    names = list(description["labels"].values())
    if description["labels"]["0"] != "background" or len(set(names)) < len(names):
        raise UserError(f"{path}: `labels` must name 0 background, and no name twice: {names}.")
    for entry in description["training"]:
        if not isinstance(entry, dict) or not {"image", "label"} <= set(entry):
            raise UserError(f"{path}: `training` has an entry without image or label: {entry}.")
    if description.get("numTraining") != len(description["training"]):
        raise UserError(
            f"{path}: `numTraining` is {description.get('numTraining')}, "
            f"but `training` lists {len(description['training'])} cases."
        )
    return description


def case_name(path: str) -> str:
    """Return the name of a case from its file: `./imagesTr/la_003.nii.gz` -> `la_003`."""
    return PurePosixPath(path).name.removesuffix(".nii.gz")


def check_dataset(folder: str | Path, threads: int = 1) -> int:
    """Check a whole extracted MSD dataset; return its number of labelled cases.

    Every image must have a label and vice versa, all must be listed, and `check_cases` must find no
    fault. Hidden files are ignored, as in nnU-Net's conversion.

    Raises:
        UserError: there are faults; the message contains their number and the first ones by case.
    """
    folder = Path(folder)
    description = read_description(folder)
    faults: list[str] = []
    listed: set[str] = set()
    for entry in description["training"]:
        case = case_name(entry["label"])
        if case_name(entry["image"]) != case or case in listed:
            faults.append(f"{case}: listed twice, or image and label differ in name")
        for key, place in (("image", "imagesTr"), ("label", "labelsTr")):
            if str(PurePosixPath(entry[key])) != f"{place}/{case_name(entry[key])}.nii.gz":
                faults.append(f"{case}: {key} {entry[key]} is not a .nii.gz file in {place}")
        listed.add(case)
    cases = set(listed)
    for place in ("imagesTr", "labelsTr"):
        present = {case_name(path.name) for path in visible(folder / place, "*.nii.gz")}
        faults += [f"{case}: {place}/{case}.nii.gz is missing" for case in listed - present]
        faults += [f"{case}: {place}/{case}.nii.gz is not listed" for case in present - listed]
        cases &= present
    sound = {
        case: ([folder / f"imagesTr/{case}.nii.gz"], folder / f"labelsTr/{case}.nii.gz")
        for case in cases
    }
    labels = {int(key) for key in description["labels"]}
    converted = {"file_ending": ".nii.gz"}  # as nnU-Net's conversion writes them
    faults += check_cases(
        folder.name, sound, converted, len(description["modality"]), labels, threads
    )
    refuse(folder.name, faults)
    return len(description["training"])


def refuse(name: str, faults: Sequence[str]) -> None:
    """Raise UserError if the dataset `name` has faults, with their number and the first ones."""
    if faults:
        shown = "\n  ".join(sorted(faults)[:FAULTS_SHOWN])
        more = f"\n  … and {len(faults) - FAULTS_SHOWN} more" if len(faults) > FAULTS_SHOWN else ""
        count = counted(len(faults), "fault")
        raise UserError(f"{name}: the dataset has {count}:\n  {shown}{more}")


def check_cases(
    name: str,
    cases: Mapping[str, tuple[Sequence[Path], Path]],
    description: Mapping[str, Any],
    channels: int,
    labels: set[int],
    threads: int,
) -> list[str]:
    """Return the faults of all cases of the dataset `name`, read with nnU-Net's reader.

    Args:
        name: shown in the progress bar.
        cases: case -> its images and its label.
        description: content of `dataset.json`, from which nnU-Net chooses the reader.
        channels: number of channels per case.
        labels: declared label values.
        threads: number of cases read in parallel.
    """
    if not cases:
        return []
    faults = [f"{case}: {fault}" for case in cases if (fault := check_name(case))]
    faults += _same_names(cases)
    reader = find_reader(description, cases[min(cases)][0][0])
    pool = ThreadPoolExecutor(max_workers=max(1, threads))
    with pool, progress_bar(len(cases), "case", f"check {name}") as bar:
        values = set[float]()
        flat: dict[bool, str] = {}
        for case, (shape, seen, found) in zip(
            sorted(cases),
            pool.map(
                lambda case: check_case(case, *cases[case], reader, channels, labels), sorted(cases)
            ),
            strict=True,
        ):
            if shape != UNREAD:
                flat.setdefault(1 in shape, case)
            values |= seen
            faults += found
            bar.update(1)
    if len(flat) == 2:
        faults.append(
            f"2D and 3D images are mixed: {flat[True]} has one slice, {flat[False]} several. Make "
            "a dataset of each"
        )
    if not faults and values <= {0}:
        faults.append("no case has foreground, so nnU-Net cannot plan from these labels")
    return faults


def _same_names(cases: Iterable[str]) -> list[str]:
    """Return the cases whose files would replace those of another case on some file systems."""
    first: dict[str, str] = {}
    faults = []
    for case in sorted(cases):
        other = first.setdefault(unicodedata.normalize("NFC", case).casefold(), case)
        if other != case:
            faults.append(
                f"{case}: the name differs from {other} only in case or in the form of its "
                "accents: rename one, or remove it if it is the same case"
            )
    return faults


def check_case(
    case: str,
    images: Sequence[Path],
    label: Path,
    reader: BaseReaderWriter,
    channels: int,
    labels: set[int],
) -> tuple[tuple[int, ...], set[float], list[str]]:
    """Return shape (z, y, x), label values and faults of a case; faults begin with the case's name.

    All files must be readable to the end, contain only finite intensities and declared labels,
    share shape, spacing and position, and have `channels` channels in total. The shape of a case
    that cannot be read is `UNREAD`.
    """
    natural = isinstance(reader, NaturalImage2DIO)
    try:
        reference = _read(label, reader, is_label=True)
        faults = _orientation(reference, label) + _slice_axis(reference)
        if len(reference.values) > 1:
            faults.append(
                f"{label.parent.name}/{label.name} has {len(reference.values)} channels, but a "
                "label has one: save its values as grey"
            )
        values = set(pd.unique(reference.values.ravel()).tolist())
        if alien := sorted(values - labels):
            shown = ", ".join(f"{value:.9g}" for value in alien[:5])
            hint = f": {_grey_hint(alien)}" if natural else ""
            faults.append(f"label values {shown} are not declared ({sorted(labels)}){hint}")
        channels_read = 0
        for path in images:
            image = _read(path, reader, is_label=False)
            faults += _orientation(image, path) if not faults else []
            faults += _differences(image, reference)
            channels_read += len(image.values)
    except _UnreadableError as error:
        return UNREAD, set(), [f"{case}: {error}"]
    if channels_read != channels:
        name = type(reader).__name__
        hint = ": a grey image has 1, RGB 3, RGB with transparency 4" if natural else ""
        faults.append(
            f"{name} reads {channels_read} channels, but `dataset.json` names {channels}{hint}"
        )
    return reference.shape, values, [f"{case}: {fault}" for fault in dict.fromkeys(faults)]


def _grey_hint(alien: Sequence[float]) -> str:
    """Return the likely reason for undeclared values of a label that was drawn or resized."""
    if len(alien) == 1:
        return "a label contains 0, 1, 2, …, which look black; 255 is white in most editors"
    return "values in between come from smoothed edges (anti-aliasing) or from resizing"


def _slice_axis(image: Image) -> list[str]:
    """Return a fault if nnU-Net would not recognise a single slice.

    It takes the axis with the largest spacing for that of the slices (`determine_transpose`).
    """
    if 1 not in image.shape or np.argmax(image.spacing) == image.shape.index(1):
        return []
    thick, side = image.spacing[image.shape.index(1)], max(image.spacing)
    return [
        f"a single slice whose thickness, {thick:g} mm, is smaller than a pixel, {side:g} mm: "
        "nnU-Net would slice along another axis. Save it as a 2D image, or as thicker than a pixel"
    ]


class _UnreadableError(Exception):
    """A file cannot be read; the message gives the reason."""


def _read(path: Path, reader: BaseReaderWriter, is_label: bool) -> Image:
    """Read a file; raise _UnreadableError if that fails or its values are not finite."""
    try:
        check_whole(path)
        if isinstance(reader, NaturalImage2DIO):
            check_values(path)
        image = read_label(reader, path) if is_label else read_image(reader, path)
    except Exception as error:  # each reader has its own exceptions
        fault = describe_failure(reader, error)
        raise _UnreadableError(f"{path.parent.name}/{path.name} {fault}") from None
    if not np.isfinite(image.values.sum(dtype=float)):
        raise _UnreadableError(
            f"{path.parent.name}/{path.name} contains values that are not finite"
        )
    return image


def _orientation(image: Image, path: Path) -> list[str]:
    """Return a fault if an image has no orientation that can be used.

    Readers accept it, and a comparison with NaN finds no difference.
    """
    if image.affine is None or abs(np.linalg.det(image.affine)) > 0:  # False for NaN
        return []
    return [
        f"{path.parent.name}/{path.name} has an axis without length, or NaN, in its orientation "
        "(affine)"
    ]


def _differences(image: Image, reference: Image) -> list[str]:
    """Return how an image and its label differ in shape, spacing or position."""
    if image.shape != reference.shape:
        flat = image.shape[0] == reference.shape[0] == 1
        shapes = [str(one.shape[flat:][::-1]) for one in (image, reference)]
        return [f"image shape {shapes[0]} and label shape {shapes[1]} differ"]
    if not np.allclose(image.spacing, reference.spacing):  # nnU-Net's own tolerance
        spacings = ["×".join(f"{n:g}" for n in one.spacing[::-1]) for one in (image, reference)]
        return [f"image and label differ in their spacing, {spacings[0]} and {spacings[1]} mm"]
    if image.affine is not None and reference.affine is not None:
        corners = np.array(np.meshgrid(*[(0, n - 1) for n in image.shape[::-1]])).reshape(3, 8)
        # An element-wise comparison would fail if a tool rounded the quaternions.
        apart = (image.affine - reference.affine) @ np.vstack([corners, np.ones(8)])
        if np.linalg.norm(apart[:3], axis=0).max() > 0.1 * min(image.spacing):
            return ["image and label differ in their affine"]
    return []
