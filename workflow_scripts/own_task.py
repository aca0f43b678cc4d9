"""Datasets of the user's own: found, checked, and named as nnU-Net wants them.

Only the standard library and what Snakemake installs is imported at module level, since
`rules/common.smk` asks this module before any job runs.
"""

import json
import re
from pathlib import Path
from typing import Any

from log import ConfigError, UserError
from msd_check import check_cases, read_json, refuse

ENDING = ".nii.gz"
SOURCE = "source_folder"
"""Key of an imported dataset.json that tells which folder it was made from."""

Cases = dict[str, tuple[list[Path], Path]]
"""Case -> the files of its channels, and its label."""


def dataset_of(task: str) -> str:
    """Return nnU-Net's name: `Task04_Hippocampus` -> `Dataset004_Hippocampus`."""
    number, name = task.removeprefix("Task").split("_")
    return f"Dataset{int(number):03d}_{name}"


def check_own_tasks(config: dict[str, Any], raw: Path) -> None:
    """Find own tasks of the study whose folder cannot be read, before any job runs.

    A task that was imported to `raw` already needs its folder no longer; but it must have been
    that folder, so that two studies cannot mean different data by one name.

    Raises:
        ConfigError: with one line per problem.
    """
    problems = []
    for task in sorted({*config["tasks"]} & {*config["own_tasks"]}):
        folder = Path(config["own_tasks"][task]["folder"])
        imported = raw / dataset_of(task) / "dataset.json"
        if imported.is_file():
            source = json.loads(imported.read_text()).get(SOURCE)
            if source != str(folder.absolute()):
                problems.append(
                    f"own_tasks.{task}.folder: {folder}, but {imported.parent} was made from "
                    f"{source}; give the task another name, or remove what was made of it "
                    "(docs/own_dataset.md)"
                )
        elif not folder.is_dir():
            problems.append(f"own_tasks.{task}.folder: {folder} is not a folder")
        elif not (folder / "dataset.json").is_file():
            problems.append(f"own_tasks.{task}.folder: {folder} has no dataset.json")
    if problems:
        raise ConfigError("\n".join(f"config: {line}" for line in problems))


def is_raw(folder: Path) -> bool:
    """Tell by dataset.json whether a folder is in nnU-Net's raw format; False means MSD's.

    Raises:
        UserError: missing, broken, or neither.
    """
    path = folder / "dataset.json"
    try:
        description = read_json(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from error
    if isinstance(description, dict):
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
        UserError: an entry that nnU-Net needs is missing, or one that this workflow cannot use.
    """
    path = folder / "dataset.json"
    description = read_json(path)
    for key, kind in {"channel_names": dict, "labels": dict, "numTraining": int}.items():
        if not isinstance(description.get(key), kind) or not description[key]:
            raise UserError(f"{path}: `{key}` is missing, empty or not of type {kind.__name__}.")
    channels = description["channel_names"]
    if sorted(channels) != sorted(str(i) for i in range(len(channels))):
        raise UserError(f"{path}: the keys of `channel_names` are not 0, 1, 2, … as nnU-Net needs.")
    ending = description.get("file_ending")
    if ending != ENDING:
        raise UserError(f"{path}: `file_ending` is {ending}; this workflow reads {ENDING} only.")
    labels = description["labels"]
    if "ignore" in labels or not all(type(value) is int for value in labels.values()):
        raise UserError(
            f"{path}: `labels` has regions (lists), an ignore label or a value that is no whole "
            "number; this workflow trains plain labels only."
        )
    values = sorted(labels.values())
    if labels.get("background") != 0 or values != list(range(len(values))) or len(values) < 2:
        raise UserError(f"{path}: `labels` must be background 0, then 1, 2, 3, …: {labels}.")
    return description


def find_cases(folder: Path, description: dict[str, Any]) -> tuple[Cases, list[str]]:
    """List the cases of a raw dataset whose files are all there, and the faults of the others.

    The files are those of imagesTr and labelsTr, or where `dataset` in the description puts them.
    """
    count = len(description["channel_names"])
    faults: list[str] = []
    files: Cases = {}
    if elsewhere := description.get("dataset"):
        for case, entry in elsewhere.items():
            files[case] = [folder / name for name in entry["images"]], folder / entry["label"]
            if len(files[case][0]) != count:
                faults.append(f"{case}: `dataset` lists {len(files[case][0])} of {count} channels")
    else:
        names = set()
        for path in sorted((folder / "imagesTr").glob(f"[!.]*{ENDING}")):
            named = re.fullmatch(r"(.+)_(\d{4})", path.name.removesuffix(ENDING))
            if named and int(named[2]) < count:
                names.add(named[1])
            else:
                last = f"{count - 1:04d}"
                faults.append(f"{path.name}: not CASE_0000{ENDING} … CASE_{last}{ENDING}")
        names |= {
            path.name.removesuffix(ENDING) for path in (folder / "labelsTr").glob(f"[!.]*{ENDING}")
        }
        for case in names:
            images = [folder / f"imagesTr/{case}_{i:04d}{ENDING}" for i in range(count)]
            files[case] = images, folder / f"labelsTr/{case}{ENDING}"
    for case, (images, label) in files.items():
        missing = [path for path in (*images, label) if not path.is_file()]
        faults += [f"{case}: {path.parent.name}/{path.name} is missing" for path in missing]
    if len(files) != description["numTraining"]:
        faults.append(f"`numTraining` is {description['numTraining']}, found {len(files)} cases")
    whole = {c: f for c, f in files.items() if all(path.is_file() for path in (*f[0], f[1]))}
    return whole, faults


def check_raw(folder: Path, threads: int) -> tuple[dict[str, Any], Cases]:
    """Check a dataset in nnU-Net's raw format whole; return its description and its cases.

    Raises:
        UserError: names the first faults by case, and their number.
    """
    description = read_raw_description(folder)
    cases, faults = find_cases(folder, description)
    labels = set(description["labels"].values())
    refuse(folder.name, [*faults, *check_cases(folder.name, cases, 1, labels, threads)])
    return description, cases
