"""The tasks of a study: the register of MSD and the user's own datasets."""

import csv
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from workflow_scripts.common.errors import ConfigError
from workflow_scripts.common.nnunet_setup import FOLDS, SPLITS


def read_register(path: str | Path) -> dict[str, dict[str, str]]:
    """Read `config/tables/datasets.tsv`: task -> row (all cells are strings, empty if unknown)."""
    with Path(path).open(encoding="utf-8", newline="") as file:
        return {row["task"]: row for row in csv.DictReader(file, delimiter="\t")}


MSD_CITATION = "Antonelli et al., Nature Communications 13, 2022, doi:10.1038/s41467-022-30695-9"
"""Publication of the data of every task in `config/tables/datasets.tsv`."""

DEMO_TASK = "Task99_BrainTissue"
"""The task that `make_demo_task` makes."""

DEMO_TOLERANCE_MM = "1"
"""Tolerance of the demo task's surface distance: our own choice, half of its voxel edge."""

SOURCE = "source_folder"
"""Key in an imported dataset.json: the folder from which it was imported."""


def dataset_of(task: str) -> str:
    """Return nnU-Net's name: `Task04_Hippocampus` -> `Dataset004_Hippocampus`."""
    number, name = task.removeprefix("Task").split("_")
    return f"Dataset{int(number):03d}_{name}"


GROUPS = "source_groups"
"""Key in an imported dataset.json: the table of groups from which folds were made, if any."""


def absolute(path: str | None) -> str | None:
    """Return a path of the configuration as an absolute path, with `~` expanded."""
    # Links are kept: their targets may change.
    return None if path is None else os.path.abspath(Path(path).expanduser())  # noqa: PTH100


def check_own_tasks(config: dict[str, Any], raw: Path) -> None:
    """Check that the folders of the study's own tasks can be read, before any job runs.

    A task that was already imported to `raw` no longer needs its folder. It must have been imported
    from that folder, so that two studies cannot use one name for different data.

    Raises:
        ConfigError: one line per problem.
    """
    problems = []
    for task in sorted({*config["tasks"]} & {*config["own_tasks"]}):
        own = config["own_tasks"][task]
        imported = raw / dataset_of(task) / "dataset.json"
        if imported.is_file():
            description = json.loads(imported.read_text(encoding="utf-8"))
            for key, name in ((SOURCE, "folder"), (GROUPS, "groups")):
                if description.get(key) != absolute(own.get(name)):
                    problems.append(
                        f"own_tasks.{task}.{name}: {own.get(name)}, but {imported.parent} was "
                        f"imported from {description.get(key)}; give the task another name, or "
                        "remove the imported data (docs/how-to/own_dataset.md)"
                    )
            continue
        folder = Path(str(absolute(own["folder"])))
        if not folder.is_dir():
            problems.append(f"own_tasks.{task}.folder: {folder} is not a folder")
        elif not (folder / "dataset.json").is_file():
            problems.append(f"own_tasks.{task}.folder: {folder} has no dataset.json")
        if own.get("groups") and not Path(str(absolute(own["groups"]))).is_file():
            problems.append(f"own_tasks.{task}.groups: {own['groups']} is not a file")
    _refuse(problems)


ARCHIVES = Path("resources/archives")


def not_imported(own_tasks: Iterable[str], raw: Path) -> list[str]:
    """Return the datasets of own tasks that have not been imported to `raw` yet.

    An imported task is never imported again by itself: its folder may be gone or changed, and
    Snakemake deletes `dataset.json` before a job that makes it again.
    """
    datasets = map(dataset_of, own_tasks)
    return [dataset for dataset in datasets if not (raw / dataset / "dataset.json").is_file()]


def not_converted(tasks: Iterable[str], raw: Path, archives: str | None) -> list[str]:
    """Return the datasets of MSD tasks that are not in `raw`, or whose archive is at hand.

    The others were converted and their archive was removed: an update of the code does not download
    it again. The demo's archive can always be made again.

    Args:
        tasks: MSD's tasks and the demo.
        raw: nnU-Net's folder of raw datasets.
        archives: the folder `archives` of the configuration.
    """
    places = [ARCHIVES, *([Path(str(absolute(archives)))] if archives else [])]
    return [
        dataset_of(task)
        for task in tasks
        if task == DEMO_TASK
        or not (raw / dataset_of(task) / "dataset.json").is_file()
        or any((place / f"{task}.tar").is_file() for place in places)
    ]


def check_folds(config: dict[str, Any], preprocessed: Path) -> None:
    """Check that every task has the folds of the study.

    MSD's tasks have nnU-Net's five. The number for an own task is known once its folds are written.

    Raises:
        ConfigError: one line per problem.
    """
    problems = []
    for task in config["tasks"]:
        splits = preprocessed / dataset_of(task) / SPLITS
        if splits.is_file():
            try:
                count = len(json.loads(splits.read_text(encoding="utf-8")))
            except ValueError:  # reported by the rule that reads it
                continue
        elif task in config["own_tasks"]:
            continue
        else:
            count = FOLDS
        if lacking := [fold for fold in config["folds"] if fold >= count]:
            problems.append(
                f"folds: {task} has the folds 0 to {count - 1}, not {', '.join(map(str, lacking))}"
            )
    _refuse(problems)


def _refuse(problems: list[str]) -> None:
    if problems:
        raise ConfigError("\n".join(f"config: {line}" for line in problems))
