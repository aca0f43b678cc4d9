"""Read the files of finished trainings, check them strictly, and return tidy tables.

A run is one (task, arm, fold, seed). Nothing is filled in: a missing, incomplete, duplicated or
inconsistent run stops the tables with a message that names the file.
"""

import csv
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from workflow_scripts.common.errors import UserError
from workflow_scripts.common.files import read_csv, read_json
from workflow_scripts.records.energy_conditions import complete, conditions
from workflow_scripts.records.run_columns import ADDED_LATER, TABLES, TEXTS

RunKey = tuple[str, str, int, int]
"""Task, arm, fold and seed of a run."""

KEYS = ["task", "arm", "fold", "seed"]
"""Columns of every table that identify the run, as in a `RunKey`."""

OVERALL = "overall"
"""Value for all tasks together in the column `task` of comparison.csv."""

NUMBERS = (
    "training_seconds training_kwh training_kg_co2eq validation_seconds validation_kwh "
    "validation_kg_co2eq total_seconds total_kwh total_kg_co2eq training_gflop "
    "dice_foreground_mean"
).split()

FLAT = (
    "study task dataset arm trainer fold seed epochs iterations_per_epoch "
    "validation_iterations_per_epoch configuration plans plans_hash splits_hash batch_size stages "
    "device precision threads cpu_model gpu_model git_commit trainer_code attempts started finished"
).split()
"""Fields of run.json that become columns of runs.csv unchanged."""

NESTED = ("parameters", "patch_size", "versions", "dice_per_label", "label_names")
OTHER = ("cases", "nan_dice", "results_folder")
COUNTED_LATER = (
    "compile_seconds",
    "skipped_steps",
    "wait_share",
    "process_peak_mb",
    "device_peak_mb",
)
"""Fields that records of earlier versions lack."""

METRICS = {
    "dice": "Dice",
    "iou": "IoU",
    "tp": "TP",
    "fp": "FP",
    "fn": "FN",
    "n_ref": "n_ref",
    "n_pred": "n_pred",
}
"""Column of cases.csv -> name of the metric in nnU-Net's summary.json."""


@dataclass(frozen=True)
class Run:
    """One checked run: run.json as a dict, and its tables without the key columns."""

    key: RunKey
    record: dict[str, Any]
    epochs: pd.DataFrame
    stages: pd.DataFrame
    energy: pd.DataFrame
    cases: pd.DataFrame


def mean_of_all(values: pd.Series) -> float:
    """Return the mean; NaN if a value is missing: means over different sets are not comparable."""
    return float(values.mean(skipna=False))


def without_length(arm: str) -> str:
    """Return a sweep's arm without its length: `constant` for `constant_660`."""
    return re.sub(r"_\d+$", "", arm)


def name_of(key: RunKey) -> str:
    """Return a description of a run for messages."""
    task, arm, fold, seed = key
    return f"{task}, arm {arm}, fold {fold}, seed {seed}"


def read_table(path: Path) -> pd.DataFrame:
    """Read one of a run's tables in `TABLES`; it may have additional columns.

    Raises UserError naming the file if it is missing, truncated (no newline at the end, a short
    row), lacks a column, or contains text instead of a number.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path} is missing; train this fold again") from None
    lines = text.splitlines()
    if len(lines) < 2 or not text.endswith("\n"):
        raise UserError(f"{path} is incomplete (cut off or without rows); train this fold again")
    rows = list(csv.reader(lines))
    for number, row in enumerate(rows, start=1):
        if len(row) != len(rows[0]):
            raise UserError(
                f"{path}, line {number}: {len(row)} values, {len(rows[0])} columns: the file is "
                "incomplete; train this fold again"
            )
    table = read_csv(path)
    absent = [column for column in TABLES[path.name] if column not in table]
    if missing := [column for column in absent if column not in ADDED_LATER]:
        raise UserError(f"{path} lacks the columns {', '.join(missing)}; train this fold again")
    for column in TABLES[path.name]:
        if column not in {*TEXTS, *absent} and not (
            pd.api.types.is_numeric_dtype(table[column]) or table[column].isna().all()
        ):
            raise UserError(f"{path}: the column {column} contains text instead of numbers")
    return table


def label_values(label: str) -> tuple[int, ...]:
    """Return the values in the key of a label (`3`) or region (`(1, 2, 3)`), also for sorting."""
    return tuple(map(int, re.findall(r"\d+", label)))


def name_labels(labels: Mapping[str, Any], keys: Iterable[str]) -> dict[str, str]:
    """Return the name of each label or region, by its key in nnU-Net's summary.json.

    Args:
        labels: from `dataset.json`: name -> value, or list of values for a region.
        keys: keys of labels and regions in the summary.
    """
    key_of = {key: label_values(key) for key in keys}
    names = {
        tuple(value) if isinstance(value, list) else (value,): name
        for name, value in labels.items()
    }
    return {key: names[values] for key, values in key_of.items() if values in names}


def ending_of(record: Mapping[str, Any]) -> str:
    """Return the file ending of a run's dataset, which earlier versions did not record."""
    return str(record.get("file_ending", ".nii.gz"))


def read_cases(path: Path, label_names: Mapping[str, str], ending: str) -> pd.DataFrame:
    """Return one row per case and foreground label of summary.json, labels sorted by value.

    `ending` is that of the dataset's files, such as `.nii.gz`.

    Columns: case, label, label_name and those of `METRICS`. Dice and IoU are NaN if a label is
    absent in reference and prediction, as in nnU-Net.
    """
    summary = read_json(path, "train this fold again")
    rows = []
    try:
        for entry in summary["metric_per_case"]:
            case = Path(entry["reference_file"]).name.removesuffix(ending)
            for label in sorted(label_names, key=label_values):
                metrics = entry["metrics"][label]
                rows.append(
                    {"case": case, "label": label, "label_name": label_names[label]}
                    | {column: metrics[metric] for column, metric in METRICS.items()}
                )
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is not a summary of these labels: {error} is missing") from None
    cases = pd.DataFrame(rows, columns=["case", "label", "label_name", *METRICS])
    doubled = cases.loc[cases.duplicated(["case", "label"]), "case"]
    if len(doubled):
        raise UserError(f"{path} contains the case {doubled.iloc[0]} twice")
    return cases


def add_surface(cases: pd.DataFrame, surface: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Return `cases` with NSD and its tolerance in mm or pixels, from surface.csv at `path`.

    Raises UserError unless both have the same cases and labels.
    """
    keys = ["case", "label"]
    tolerances = {f"tolerance_{unit}": f"nsd_tolerance_{unit}" for unit in ("mm", "px")}
    measured = surface.set_index(keys).reindex(columns=["nsd", *tolerances])
    wanted = pd.MultiIndex.from_frame(cases[keys])
    if not measured.index.is_unique or set(measured.index) != set(wanted):
        raise UserError(
            f"{path} does not contain each case and label of summary.json exactly once; remove it "
            "and run again"
        )
    measured = measured.reindex(wanted).rename(columns=tolerances)
    return cases.join(measured.reset_index(drop=True))


def foreground_mean(cases: pd.DataFrame) -> float:
    """Return nnU-Net's foreground mean of a fold: mean over labels of the nanmean over cases."""
    return float(np.mean(cases.groupby("label")["dice"].mean().to_numpy()))


def read_run(folder: Path, key: RunKey) -> Run:
    """Read and check one run's folder; raise UserError naming a faulty file."""
    path = folder / "run.json"
    record = read_json(path, "train this fold again")
    missing = [field for field in (*FLAT, *NESTED, *NUMBERS, *OTHER) if field not in record]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}; train this fold again")
    found = (record["task"], record["arm"], int(record["fold"]), int(record["seed"]))
    if found != key:
        raise UserError(
            f"{path} is the record of {name_of(found)}, but its folder belongs to {name_of(key)}. "
            "Was the run copied? Remove it and train this fold again"
        )
    for field in NUMBERS:
        if record[field] is not None and not isinstance(record[field], int | float):
            raise UserError(f"{path}: {field} is {record[field]!r}, not a number")

    tables = {name: read_table(folder / name) for name in TABLES}
    epochs = tables["epochs.csv"]
    if epochs["epoch"].tolist() != list(range(record["epochs"])):
        raise UserError(
            f"{folder / 'epochs.csv'} must contain the epochs 0 to {record['epochs'] - 1} once "
            f"each, but has {len(epochs)} rows; train this fold again"
        )
    if tables["stages.csv"]["epochs"].sum() != record["epochs"]:
        raise UserError(f"{folder / 'stages.csv'}: its epochs do not add up to {record['epochs']}")

    cases = read_cases(folder / "summary.json", record["label_names"], ending_of(record))
    _check_summary(folder / "summary.json", record, cases)
    cases = add_surface(cases, tables["surface.csv"], folder / "surface.csv")
    return Run(key, record, epochs, tables["stages.csv"], complete(tables["energy.csv"]), cases)


def _check_summary(path: Path, record: Mapping[str, Any], cases: pd.DataFrame) -> None:
    """Check that run.json and summary.json agree on cases, NaNs and foreground mean."""
    mean = record["dice_foreground_mean"]
    told = {
        "cases": record["cases"],
        "nan_dice": record["nan_dice"],
        "dice_foreground_mean": math.nan if mean is None else mean,
    }
    counted = {
        "cases": cases["case"].nunique(),
        "nan_dice": int(cases["dice"].isna().sum()),
        "dice_foreground_mean": foreground_mean(cases),
    }
    for field, value in told.items():
        if not math.isclose(value, counted[field], abs_tol=1e-6) and not (
            math.isnan(value) and math.isnan(counted[field])
        ):
            raise UserError(
                f"{field} is {counted[field]} in {path}, but {value} in run.json: the files are "
                "from different trainings; train this fold again"
            )


def read_study(folders: Mapping[RunKey, Path]) -> list[Run]:
    """Read every run of a study, in the mapping's order.

    Raises UserError listing the runs without a record, or naming the first faulty file.
    """
    missing = [key for key, folder in folders.items() if not (folder / "run.json").is_file()]
    if missing:
        raise UserError(
            "no run.json of "
            + "; ".join(f"{name_of(key)} ({folders[key]}/run.json)" for key in missing)
        )
    doubled = [folder for folder, runs in Counter(folders.values()).items() if runs > 1]
    if doubled:
        raise UserError(f"{doubled[0]} is used for two runs; every run needs its own folder")
    return [read_run(folder, key) for key, folder in folders.items()]


def flat_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return run.json as one flat row; Dice per label is in cases.csv."""
    row = {field: record[field] for field in FLAT}
    row["parameters"] = json.dumps(record["parameters"], sort_keys=True)
    row["patch_size"] = "x".join(str(size) for size in record["patch_size"])
    row |= {f"version_{name}": value for name, value in record["versions"].items()}
    row |= {field: record[field] for field in (*NUMBERS, *OTHER)}
    return row | {field: record.get(field) for field in COUNTED_LATER}


def steps_of_epochs(epochs: pd.DataFrame, planned: int | pd.Series) -> pd.Series:
    """Return the optimiser steps of each epoch, which differ if epochs have equal computation.

    Args:
        epochs: rows of epochs.csv; runs of earlier versions lack the column `iterations`.
        planned: iterations of epochs for which it is missing.
    """
    counted = epochs.reindex(columns=["iterations"])["iterations"]
    return counted.astype(float).fillna(planned)


def count_steps(run: Run) -> int:
    """Return the optimiser steps of a training."""
    return int(steps_of_epochs(run.epochs, run.record["iterations_per_epoch"]).sum())


def running_totals(epochs: pd.DataFrame, costs: Iterable[str]) -> pd.DataFrame:
    """Return epochs.csv in order, with each cost summed from the start of its training.

    After an epoch without a reading the sum is unknown (NaN), not smaller.
    """
    table = epochs.sort_values([*KEYS, "epoch"], ignore_index=True)
    trainings = table.groupby(KEYS)
    for cost in costs:
        table[cost] = trainings[cost].transform(lambda values: values.cumsum(skipna=False))
    return table


def tidy_tables(runs: list[Run]) -> dict[str, pd.DataFrame]:
    """Return the tables of a study: runs, cases, epochs, stages, energy; each row names its run."""

    def stacked(name: str) -> pd.DataFrame:
        frames = []
        for run in runs:
            frame = getattr(run, name).astype(object)
            for column, value in zip(reversed(KEYS), reversed(run.key), strict=True):
                frame.insert(0, column, value)
            frames.append(frame)
        return pd.concat(frames, ignore_index=True)

    rows = [
        {
            **flat_record(run.record),
            "training_steps": count_steps(run),
            **conditions(run.energy),
        }
        for run in runs
    ]
    tables = {"runs": pd.DataFrame(rows)}
    return tables | {name: stacked(name) for name in ("cases", "epochs", "stages", "energy")}
