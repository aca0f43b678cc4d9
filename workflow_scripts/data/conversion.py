"""Convert checked datasets to nnU-Net's raw format: MSD's with nnU-Net's code, others by links."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from workflow_scripts.common.errors import UserError
from workflow_scripts.common.files import read_json, write_json
from workflow_scripts.common.nnunet_setup import SPLITS, pools_on
from workflow_scripts.common.worker_pools import watched_pools
from workflow_scripts.data.dataset_checks import case_name, check_dataset, read_description
from workflow_scripts.data.own_datasets import SPACING_FILES, check_raw, is_raw
from workflow_scripts.data.own_folds import find_folds
from workflow_scripts.study.data_changes import RECORD, write_record
from workflow_scripts.study.tasks import GROUPS, SOURCE, absolute


def convert_task(source: str, target: str, processes: int) -> int:
    """Convert the MSD dataset `source` (`…/Task04_Hippocampus`) to the folder `target`.

    nnU-Net refuses to convert if the dataset's number is taken, so it works in its own staging
    folder. The complete result then replaces an earlier one. Returns the number of cases.

    Raises:
        UserError: the conversion left out a case or channel.
    """
    final = Path(target)
    staging = final.with_name(f".{final.name}.staging")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    os.environ.update(nnUNet_raw=str(staging.resolve()))
    for name in ("nnUNet_preprocessed", "nnUNet_results"):
        os.environ.pop(name, None)
    from nnunetv2.dataset_conversion.convert_MSD_dataset import convert_msd_dataset

    try:
        with pools_on(processes), watched_pools("converts the cases"):
            convert_msd_dataset(source, num_processes=processes)
        description = read_description(source)
        check_conversion(description, staging / final.name)
        if final.exists():
            final.rename(staging / "old")
        (staging / final.name).rename(final)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return len(description["training"])


def check_conversion(description: dict, folder: Path) -> None:
    """Check that an nnU-Net raw dataset has all files of the MSD description it was made from.

    Raises:
        UserError: files are missing; the message names the first.
    """
    wanted = ["dataset.json"]
    for entry in description["training"]:
        case = case_name(entry["label"])
        wanted += [f"imagesTr/{case}_{i:04d}.nii.gz" for i in range(len(description["modality"]))]
        wanted.append(f"labelsTr/{case}.nii.gz")
    missing = [name for name in wanted if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"{folder.name}: nnU-Net's conversion left out {len(missing)} files, "
            f"the first is {missing[0]}."
        )


def import_own_task(
    folder: str,
    target: Path,
    preprocessed: Path,
    task: str,
    threads: int,
    groups: str | None = None,
    check: Callable[[dict[str, Any]], None] = lambda description: None,
) -> int:
    """Check the dataset in `folder` and import it to `target`; return the number of cases.

    Files in nnU-Net's raw format are linked; MSD's format is converted as for MSD's own tasks.
    Folds that come with the data are written to `splits_final.json` in `target`.

    Args:
        folder: the user's folder.
        target: folder of the dataset in nnU-Net's raw folder.
        preprocessed: nnU-Net's preprocessed folder.
        task: name of the task in the configuration.
        threads: number of threads for checking and conversion.
        groups: path of a table of cases and their groups, from which folds are made.
        check: called with the content of `dataset.json` before any image is read.

    Raises:
        UserError: the dataset or its folds are faulty, or another dataset has the same number.
    """
    refuse_taken_number(target, preprocessed, task)
    source = Path(str(absolute(folder)))
    staging = target.with_name(f".{target.name}.import")
    made = staging / target.name
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        raw = is_raw(source)
        check(read_json(source / "dataset.json"))
        if raw:
            cases = link_raw(source, made, threads)
        else:
            cases = convert_msd(source, staging / task, made, threads)
            write_record(source, made / RECORD, threads)
        table = absolute(groups)
        folds = find_folds(source, Path(table) if table else None, cases)
        if folds is not None:
            write_json(folds, made / SPLITS)
        description = read_json(made / "dataset.json")
        told = {SOURCE: str(source)} | ({GROUPS: table} if table else {})
        write_json({**description, **told}, made / "dataset.json")
        if target.exists():
            target.rename(staging / "old")
        made.rename(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return len(cases)


def refuse_taken_number(target: Path, preprocessed: Path, task: str) -> None:
    """Raise UserError if a dataset of another name has the number of `target`."""
    number = target.name.partition("_")[0]
    for other in sorted((*target.parent.glob(f"{number}_*"), *preprocessed.glob(f"{number}_*"))):
        if other.name != target.name:
            raise UserError(
                f"own_tasks.{task}: {other} already has this number, by which nnU-Net "
                "identifies datasets; choose a free one, or delete that folder."
            )


def link_raw(source: Path, target: Path, threads: int) -> list[str]:
    """Check a dataset in nnU-Net's raw format and fill `target` with links to its files.

    Returns the names of its cases. Raises UserError with the faults of the dataset.
    """
    description, cases = check_raw(source, threads)
    ending = description["file_ending"]
    for place in ("imagesTr", "labelsTr"):
        (target / place).mkdir(parents=True)
    for case, (images, label) in cases.items():
        links = {f"labelsTr/{case}{ending}": label}
        links |= {f"imagesTr/{case}_{n:04d}{ending}": image for n, image in enumerate(images)}
        if ending.lower() in SPACING_FILES:
            for place, file in (("imagesTr", images[0]), ("labelsTr", label)):
                if (spacing := file.with_name(f"{case}.json")).is_file():
                    links[f"{place}/{case}.json"] = spacing
        for name, file in links.items():
            (target / name).symlink_to(file.absolute())
    description.pop("dataset", None)
    write_json(description, target / "dataset.json")
    return sorted(cases)


def convert_msd(source: Path, staged: Path, target: Path, threads: int) -> list[str]:
    """Check a dataset in MSD's format and convert it to `target`; return the names of its cases.

    nnU-Net requires a folder of test images and takes the dataset's number and name from the
    folder's name. It therefore gets `staged`, a folder of links.

    Raises UserError with the faults of the dataset.
    """
    check_dataset(source, threads)
    (staged / "imagesTs").mkdir(parents=True)
    for name in ("dataset.json", "imagesTr", "labelsTr"):
        (staged / name).symlink_to(source / name)
    convert_task(str(staged), str(target), threads)
    return [case_name(entry["label"]) for entry in read_description(source)["training"]]
