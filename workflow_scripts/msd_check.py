"""Check of a dataset before training: its description, its files, and every case to the end.

A dataset is in the format of the Medical Segmentation Decathlon (MSD); `check_cases` serves others.
"""

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from log import UserError
from msd import CHUNK, progress_bar

FAULTS_SHOWN = 10


def read_description(folder: str | Path) -> dict[str, Any]:
    """Read and check `dataset.json` of an MSD dataset.

    Raises:
        UserError: missing, not JSON, or without the entries that training needs.
    """
    path = Path(folder, "dataset.json")
    try:
        description = read_json(path)
    except FileNotFoundError:
        raise UserError(f"{path}: missing; this is not an MSD dataset.") from None
    if not isinstance(description, dict) or "test" not in description:
        raise UserError(f"{path}: not an object, or without the list `test` that nnU-Net expects.")
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


def read_json(path: Path) -> Any:
    """Read a description; `UserError` if it is no JSON, FileNotFoundError if it is missing."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}).") from error


def case_name(path: str) -> str:
    """Name of a case from the path of its file: `./imagesTr/la_003.nii.gz` -> `la_003`."""
    return PurePosixPath(path).name.removesuffix(".nii.gz")


def check_dataset(folder: str | Path, threads: int = 1) -> int:
    """Check an extracted MSD dataset whole; return its number of labelled cases.

    Every image has its label and every label its image, all are listed, can be read to the end,
    agree in shape (x, y, z) and affine, have as many channels as `modality` names, and hold only
    finite intensities and declared label values. Files are streamed, so memory stays small.

    Raises:
        UserError: names the first faults by case, and their number.
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
        found = {case_name(path.name) for path in (folder / place).glob("*.nii.gz")}
        faults += [f"{case}: {place}/{case}.nii.gz is missing" for case in listed - found]
        faults += [f"{case}: {place}/{case}.nii.gz is not listed" for case in found - listed]
        cases &= found
    files = {
        case: ([folder / f"imagesTr/{case}.nii.gz"], folder / f"labelsTr/{case}.nii.gz")
        for case in cases
    }
    labels = {int(key) for key in description["labels"]}
    faults += check_cases(folder.name, files, len(description["modality"]), labels, threads)
    refuse(folder.name, faults)
    return len(description["training"])


def refuse(name: str, faults: Sequence[str]) -> None:
    """Raise UserError with the first faults of the dataset `name` and their number, if any."""
    if faults:
        shown = "\n  ".join(sorted(faults)[:FAULTS_SHOWN])
        more = f"\n  … and {len(faults) - FAULTS_SHOWN} more" if len(faults) > FAULTS_SHOWN else ""
        count = f"{len(faults)} fault" + "s" * (len(faults) > 1)
        raise UserError(f"{name}: the dataset has {count}:\n  {shown}{more}")


def check_cases(
    name: str,
    cases: Mapping[str, tuple[Sequence[Path], Path]],
    channels: int,
    labels: set[int],
    threads: int,
) -> list[str]:
    """Faults of all cases of the dataset `name`.

    Args:
        name: for the progress bar.
        cases: case -> its images and its label.
        channels: of each image file.
        labels: declared values.
        threads: cases that are read at once.
    """
    faults: list[str] = []
    pool = ThreadPoolExecutor(max_workers=max(1, threads))
    with pool, progress_bar(len(cases), "case", f"check {name}") as bar:
        for result in pool.map(
            lambda case: check_case(case, *cases[case], channels, labels), sorted(cases)
        ):
            faults += result
            bar.update(1)
    return faults


def check_case(
    case: str, images: Sequence[Path], label: Path, channels: int, labels: set[int]
) -> list[str]:
    """Faults of one case, each beginning with the case's name; empty when there are none."""
    import nibabel
    import numpy as np

    nifti_errors = nibabel.filebasedimages.ImageFileError, nibabel.spatialimages.HeaderDataError
    volumes: list[Any] = []
    found: set[float] = set()
    for path in (*images, label):
        try:
            volumes.append(nibabel.load(path))
            for values in _values(volumes[-1]):
                if not np.isfinite(values.sum(dtype=float)):
                    raise ValueError("values that are not finite")
                if path == label:
                    found |= set(np.unique(values).tolist())
        except (*nifti_errors, OSError, EOFError, ValueError, TypeError, zlib.error) as error:
            return [f"{case}: {path.parent.name}/{path.name} cannot be read ({error})"]
    reference = volumes.pop()
    faults = []
    for image in volumes:
        if image.shape[:3] != reference.shape:
            faults.append(
                f"{case}: image shape {image.shape} and label shape {reference.shape} differ"
            )
        elif _corner_distance(image, reference) > 0.1 * min(image.header.get_zooms()[:3]):
            faults.append(f"{case}: image and label differ in their affine")
        if len(image.shape) not in (3, 4) or (*image.shape, 1)[3] != channels:
            faults.append(f"{case}: image shape {image.shape}, but {channels} modality channels")
    if alien := [f"{value:g}" for value in sorted(found - labels)]:
        faults.append(
            f"{case}: label values {', '.join(alien[:5])} are not declared ({sorted(labels)})"
        )
    return list(dict.fromkeys(faults))


def _values(image: Any) -> Iterator[Any]:
    """Stream the voxels of a NIfTI file, scaled as its header says, in flat chunks.

    Raises EOFError when the file ends before its header says, TypeError on colour or complex data.
    """
    import numpy as np

    dtype = image.get_data_dtype()
    if dtype.kind not in "biuf":
        raise TypeError(f"voxels of type {dtype}")
    slope, inter = image.dataobj.slope, image.dataobj.inter
    remaining = int(np.prod(image.shape, dtype=np.int64)) * dtype.itemsize
    with gzip.open(image.get_filename()) as file:
        file.seek(image.dataobj.offset)
        while remaining:
            data = file.read(min(CHUNK, remaining))
            if not data or len(data) % dtype.itemsize:
                raise EOFError(f"{remaining} bytes short")
            remaining -= len(data)
            values = np.frombuffer(data, dtype.newbyteorder(image.header.endianness))
            yield values if (slope, inter) == (1, 0) else values * slope + inter
        file.read(1)  # reaches the end mark, where gzip compares its checksum


def _corner_distance(one: Any, other: Any) -> float:
    """Greatest distance, in mm, between the places where two affines put a corner voxel.

    Element-wise tolerance would refuse the rounding of quaternions that some tools write.
    """
    import numpy as np

    corners = np.array(np.meshgrid(*[(0, n - 1) for n in one.shape[:3]])).reshape(3, 8)
    difference = (one.affine - other.affine) @ np.vstack([corners, np.ones(8)])
    return float(np.linalg.norm(difference[:3], axis=0).max())
