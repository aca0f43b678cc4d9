"""Time and energy of work, fitted to measured runs.

A piece of work consists of `iterations` steps with `tflop` operations in total. Its time is

    seconds = seconds_per_iteration * iterations + seconds_per_tflop * tflop

Small patches therefore cost more per operation, because they use less of the device. Energy is
linear in the seconds and the operations. Each task has factors for its deviation from this model.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import linprog

from workflow_scripts.common.errors import UserError
from workflow_scripts.common.files import read_json
from workflow_scripts.common.formatting import counted
from workflow_scripts.forecast.workload import StageWork

ONE_SIZE = (
    "Only one patch size was measured, so the cost of an iteration besides its operations is "
    "uncertain, and small patches may be forecast too fast."
)


HOW_TO_MEASURE = (
    "To get time and energy, train one fold on your machine, best of an arm with small patches, "
    "then set in the configuration "
    "`forecast: { calibration: measured, runs: [results/STUDY/runs] }` with that fold's study, and "
    "run `snakemake forecast` again."
)


@dataclass(frozen=True)
class Calibration:
    """A fitted model of time and energy, with its source and its errors.

    Attributes:
        source: description of the measured runs; empty if there are none, so that costs are NaN.
        seconds_per_iteration, seconds_per_tflop: see the docstring of the module.
        seconds_per_epoch: time of an epoch outside its iterations.
        kwh_per_second, kwh_per_tflop: energy at a power usage effectiveness of 1; NaN if no run
            was metered.
        factors: factors of time and of energy, by task.
        errors: relative errors by description: {"each point by all": [0.1, …]}.
        notes: remarks for the reader.
        device: model of the device that was measured.
    """

    source: str
    seconds_per_iteration: float
    seconds_per_tflop: float
    kwh_per_second: float
    kwh_per_tflop: float
    seconds_per_epoch: float = 0.0
    factors: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    errors: Mapping[str, Sequence[float]] = field(default_factory=dict)
    notes: Sequence[str] = ()
    device: str = "device"

    def cost(
        self, task: str, iterations: float, tflop: float, epochs: int, waiting: float = 0.0
    ) -> tuple[float, float]:
        """Return the seconds and kWh of a piece of work of a task.

        `waiting` is the number of seconds that the device waits for batches.
        """
        seconds = self.seconds_per_iteration * iterations + self.seconds_per_tflop * tflop
        seconds += self.seconds_per_epoch * epochs
        slower, hungrier = self.factors.get(task, (1.0, 1.0))
        kwh = self.kwh_per_second * (seconds + waiting / slower) + self.kwh_per_tflop * tflop
        return slower * seconds + waiting, hungrier * kwh

    def waiting(
        self, task: str, stages: Iterable[StageWork], loading: "Loading", workers: int
    ) -> float:
        """Return the seconds that a training waits for batches, given the number of `workers`.

        An iteration takes as long as the network or the loading, whichever is longer.
        """
        slower, _ = self.factors.get(task, (1.0, 1.0))
        seconds = 0.0
        for stage in stages:
            network = self.seconds_per_iteration + self.seconds_per_tflop * stage.tflop
            loaded = loading.seconds(stage) * stage.loads / workers
            seconds += stage.iterations * max(0.0, loaded - slower * network)
        return seconds


@dataclass(frozen=True)
class Loading:
    """Processor time of loading a batch: a part per batch, per sample and per megavoxel.

    Attributes:
        one_by_one: seconds per batch, sample and megavoxel if nnU-Net augments each sample.
        together: the same if all samples of a batch are augmented at once.
    """

    one_by_one: Sequence[float]
    together: Sequence[float]

    @classmethod
    def fit(cls, table: pd.DataFrame) -> "Loading":
        """Fit the times to the measurements of `config/published/loading.tsv`."""

        def fit_some(rows: pd.DataFrame) -> list[float]:
            features = rows.assign(batches=1.0)[["batches", "samples", "megavoxels"]]
            return fit(features.to_numpy(float), rows["seconds"].to_numpy(float)).tolist()

        together = table["together"].astype(bool)
        return cls(fit_some(table[~together]), fit_some(table[together]))

    def seconds(self, stage: StageWork) -> float:
        """Return the processor time of loading a batch of a stage."""
        batch, sample, megavoxel = self.together if stage.together else self.one_by_one
        return batch + sample * stage.samples + megavoxel * stage.megavoxels


def fit(features: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return non-negative coefficients that minimise the sum of absolute relative errors.

    Errors are absolute instead of squared, so that a run on a disturbed machine has little effect.

    Args:
        features: array of points × features.
        values: target of each point, > 0.
    """
    points, width = features.shape
    scaled = features / values[:, None]
    largest = np.maximum(scaled.max(axis=0), np.finfo(float).tiny)
    scaled = scaled / largest
    # Minimise sum(e) with -e <= scaled @ x - 1 <= e.
    above = np.hstack([scaled, -np.eye(points)])
    below = np.hstack([-scaled, -np.eye(points)])
    found = linprog(
        np.r_[np.zeros(width), np.ones(points)],
        A_ub=np.vstack([above, below]),
        b_ub=np.r_[np.ones(points), -np.ones(points)],
    )
    return found.x[:width] / largest


def left_out(features: np.ndarray, values: np.ndarray) -> list[float]:
    """Return the relative error of each point, predicted by a fit to all other points.

    The list is empty if the other points are too few for a fit.
    """
    if len(values) <= features.shape[1]:
        return []
    errors = []
    for point in range(len(values)):
        others = np.arange(len(values)) != point
        predicted = features[point] @ fit(features[others], values[others])
        errors.append(float(predicted / values[point] - 1))
    return errors


def calibrate(points: pd.DataFrame, **rest: Any) -> Calibration:
    """Fit time and energy to measured points.

    Args:
        points: measured work, one row per point: task, iterations, tflop, seconds, kwh.
        rest: further fields of the calibration.
    """
    work = points[["iterations", "tflop"]].to_numpy(float)
    seconds = points["seconds"].to_numpy(float)
    time = fit(work, seconds)
    metered = points.dropna(subset=["kwh"])
    spent = metered[["seconds", "tflop"]].to_numpy(float)
    unknown = np.full(2, math.nan)
    energy = unknown if metered.empty else fit(spent, metered["kwh"].to_numpy(float))
    # Energy factors refer to the fitted seconds, before the time factor of the task, as in `cost`.
    fitted = work @ time
    implied = energy[0] * fitted + energy[1] * points["tflop"].to_numpy(float)
    ratios = pd.DataFrame(
        {"task": points["task"], "time": seconds / fitted, "energy": points["kwh"] / implied}
    )
    medians = ratios.groupby("task").median()
    factors = {str(row.Index): (row.time, row.energy) for row in medians.itertuples()}
    errors = {"each point, forecast from the others": left_out(work, seconds)}
    return Calibration(
        seconds_per_iteration=float(time[0]),
        seconds_per_tflop=float(time[1]),
        kwh_per_second=float(energy[0]),
        kwh_per_tflop=float(energy[1]),
        factors=factors,
        **{**rest, "errors": {**errors, **rest.get("errors", {})}},
    )


def published(runs: pd.DataFrame, work: Mapping[str, tuple[float, float]]) -> Calibration:
    """Calibrate with the published nnU-Net runs.

    Args:
        runs: content of config/published/nnunet_runs.tsv.
        work: iterations and TFLOP of one run including both validations, by task.
    """
    medians = runs.groupby("task")[["hours", "kwh"]].median()
    points = pd.DataFrame(
        [
            {
                "task": task,
                "iterations": work[task][0],
                "tflop": work[task][1],
                "seconds": 3600 * row["hours"],
                "kwh": row["kwh"],
            }
            for task, row in medians.to_dict("index").items()
        ]
    )
    spread = runs["hours"] / runs["task"].map(medians["hours"]) - 1
    gpus = sorted(set(runs["gpu"].str.removeprefix("1 x ")))
    return calibrate(
        points,
        source=f"published nnU-Net runs on one {', '.join(gpus)}",
        device=" or ".join(gpus),
        errors={"published folds against the median of their task": spread.tolist()},
        notes=[
            "Each task is scaled to its own published runs (median of the folds). Differences "
            "between patch sizes come from the fitted line, which one size per task cannot check.",
        ],
    )


def unmeasured(device: str) -> Calibration:
    """Return the calibration of a device that nobody measured: time and energy are unknown."""
    return Calibration(
        source="",
        seconds_per_iteration=math.nan,
        seconds_per_tflop=math.nan,
        kwh_per_second=math.nan,
        kwh_per_tflop=math.nan,
        notes=[
            "The published runs are of U-Nets on a GPU in 3D and say nothing about a "
            f"{device}. {HOW_TO_MEASURE}"
        ],
        device=device,
    )


def measured(folders: Sequence[Path]) -> Calibration:
    """Calibrate with finished runs of one machine, given their folders.

    Raises UserError if there are no runs, or runs of several machines.
    """
    if not folders:
        raise UserError(
            "forecast.calibration is measured, but forecast.runs has no finished run (run.json): "
            "train one fold first, or use the published calibration"
        )
    machines: dict[str, Path] = {}
    devices, tables = [], []
    for folder in folders:
        record = read_json(folder / "run.json", "train this fold again")
        machine = (
            f"{record['gpu_model'] or record['cpu_model']}, {record['precision']}, "
            f"threads: {record['threads']}"
        )
        machines.setdefault(machine, folder)
        devices.append(record["gpu_model"] or record["cpu_model"])
        epochs = pd.read_csv(folder / "epochs.csv", dtype={"patch_size": str})
        pue = pd.read_csv(folder / "energy.csv")["pue"].iloc[0]
        epochs["kwh"] /= pue
        tables.append(epochs.assign(record=[record] * len(epochs)))
    if len(machines) > 1:
        found = "; ".join(f"{machine} ({folder})" for machine, folder in machines.items())
        raise UserError(f"forecast.runs has runs of several machines: {found}. List only one's")
    epochs = pd.concat(tables, ignore_index=True)
    points = measured_points(epochs)
    between = epochs["seconds"] - epochs["train_seconds"] - epochs["val_seconds"]
    return calibrate(
        points,
        source=f"{counted(len(folders), 'finished run')} of "
        f"{', '.join(sorted(set(points['task'])))} on {next(iter(machines))}",
        device=devices[0],
        notes=[] if len(points) > 2 else [ONE_SIZE],
        seconds_per_epoch=float(between.median()),
    )


def measured_points(epochs: pd.DataFrame) -> pd.DataFrame:
    """Return training and validation of the median epoch of every task, patch and batch size.

    The median is taken over the epochs of a run, then over runs, so that each run counts once.

    Args:
        epochs: epochs.csv of all runs, with the record of the run in the column `record`.
    """
    compiled = epochs.reindex(columns=["compile_seconds"])["compile_seconds"].fillna(0)
    energy = epochs["kwh"] / (epochs["seconds"] + compiled)  # the meter also reads compilation
    record = epochs["record"]
    iterations = record.map(lambda run: run["iterations_per_epoch"])
    if "iterations" in epochs:  # older tables lack it: all epochs had the same number
        iterations = epochs["iterations"].fillna(iterations)
    common = {
        "task": record.map(lambda run: run["task"]),
        "run": record.map(lambda run: run["results_folder"]),
        "batch_size": epochs["batch_size"],
    }
    training = epochs.assign(
        **common,
        size=epochs["patch_size"],
        iterations=iterations,
        tflop=epochs["train_gflop"] / 1e3,
        kwh=energy * epochs["train_seconds"],
        seconds=epochs["train_seconds"],
    )
    validation = epochs.assign(
        **common | {"batch_size": record.map(lambda run: run["batch_size"])},
        size="validation",
        iterations=record.map(lambda run: run["validation_iterations_per_epoch"]),
        tflop=(epochs["gflop"] - epochs["train_gflop"]) / 1e3,
        kwh=energy * epochs["val_seconds"],
        seconds=epochs["val_seconds"],
    )
    both = pd.concat([training, validation], ignore_index=True)
    keys = ["task", "size", "batch_size", "iterations"]
    for by in ([*keys, "run"], keys):
        both = both.groupby(by, dropna=False, as_index=False)[["tflop", "seconds", "kwh"]].median()
    return both[both["seconds"] > 0]


def errors_text(errors: Sequence[float]) -> str:
    """Return the median and the largest of relative errors as text, in per cent."""
    sizes = [abs(error) for error in errors if not math.isnan(error)]
    if not sizes:
        return "unknown (too few points)"
    return f"median {statistics.median(sizes):.0%}, largest {max(sizes):.0%}"
