"""The files of a run, derived from its ledger: `run.json` and three tables."""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from workflow_scripts.records.energy_conditions import (
    conditions,
    meter_note,
    other_share,
    shared_note,
    sources_of,
)
from workflow_scripts.records.energy_reading import MeterDescription
from workflow_scripts.records.ledger import (
    CaseWork,
    Entry,
    EpochWork,
    Start,
    ValidationWork,
    Work,
    starts,
)
from workflow_scripts.records.run_columns import ENERGY, EPOCHS, STAGES
from workflow_scripts.records.run_reader import name_labels

Value = TypeVar("Value")
RUN_KEYS = [
    "study", "task", "dataset", "arm", "trainer", "fold", "configuration", "plans", "parameters",
    "seed", "epochs", "iterations_per_epoch", "validation_iterations_per_epoch", "plans_hash",
    "splits_hash",
]  # fmt: skip
TRAINED_KEYS = [
    "device", "precision", "threads", "gpu_model", "versions", "git_commit", "trainer_code", "gpu",
    "nnunet_code", "imported_from", "environment",
]  # fmt: skip
"""Keys of run.json from the start of the last attempt that trained."""
COSTS = ["gflop", "train_seconds", "val_seconds", "train_gflop"]
COUNTED_LATER = ["compile_seconds", "skipped_steps", "wait_seconds"]
"""Sums that ledgers of earlier versions lack."""
PEAKS = ["process_peak_mb", "device_peak_mb"]
"""Maxima that ledgers of earlier versions lack."""
SUMMED = ["seconds", "kwh", "kg_co2eq", *COSTS]
ENERGIES = ["kwh", "kg_co2eq", "cpu_kwh", "gpu_kwh", "ram_kwh"]
METERED = [*ENERGIES, "cpu_seconds", "machine_cpu_seconds"]


@dataclass(frozen=True)
class FinalValidation:
    """A complete final validation: the prediction of each case, and the rest."""

    cases: tuple[CaseWork, ...]
    end: ValidationWork

    @property
    def work(self) -> list[Work]:
        """All its pieces of work, in order."""
        return [*self.cases, self.end]


def kept_work(entries: Iterable[Entry]) -> dict[int, list[EpochWork]]:
    """Return the work behind the final weights by epoch, in order.

    An attempt that resumed at iteration i of epoch r discards the later work of earlier attempts.
    An epoch interrupted with a checkpoint has several parts; only the last has a result.
    """
    kept: dict[int, list[EpochWork]] = {}
    for entry in entries:
        if isinstance(entry, Start):
            resumed = entry.resumed_at
            parts = kept.get(resumed, []) if entry.resumed_within else []
            parts = [part for part in parts if part.result is None]
            kept = {n: rows for n, rows in kept.items() if n < resumed}
            kept |= {resumed: parts} if parts else {}
        elif isinstance(entry, EpochWork):
            kept.setdefault(entry.steps.epoch, []).append(entry)
    return dict(sorted(kept.items()))


def kept_validation(entries: Iterable[Entry]) -> FinalValidation | None:
    """Return the last complete final validation; None if there is none yet.

    If a case was predicted more than once, the last time counts.
    """
    cases: dict[str, CaseWork] = {}
    kept = None
    for entry in entries:
        if isinstance(entry, CaseWork):
            cases[entry.case] = entry
        elif isinstance(entry, ValidationWork):
            kept = FinalValidation(tuple(cases.values()), entry)
    return kept


def epochs_table(entries: Iterable[Entry]) -> pd.DataFrame:
    """Return one row per finished and kept epoch (columns `EPOCHS`).

    `seconds` are those without compilation, unlike in the ledger.
    """
    done = [parts for parts in kept_work(entries).values() if parts[-1].result]
    table = pd.DataFrame([_row_of_epoch(parts) for parts in done], columns=EPOCHS)
    table["seconds"] -= table["compile_seconds"].astype(float).fillna(0)
    floats = dict.fromkeys(("train_loss", "val_loss", "compile_seconds", "loss_scale"), float)
    floats |= dict.fromkeys(PEAKS, float)
    return table.astype(dict.fromkeys(("stage", "batch_size", "skipped_steps"), "Int64") | floats)


def _row_of_epoch(parts: list[EpochWork]) -> dict[str, Any]:
    """Return an epoch's result with the costs and sizes of all its parts."""
    last, trained = parts[-1], [part.steps for part in parts if part.steps.iterations]
    assert last.result is not None  # only finished epochs have a row
    row = asdict(last.steps) | asdict(last.result) | {"attempt": last.attempt}
    row |= {
        name: sum(getattr(part, name) for part in parts) for name in ("seconds", "compile_seconds")
    }
    row |= {
        name: sum(getattr(part.reading, name) for part in parts) for name in ("kwh", "kg_co2eq")
    }
    if len(parts) == 1:
        return row
    row |= {
        name: sum(getattr(part.steps, name) for part in parts)
        for name in (*COSTS, "skipped_steps", "wait_seconds")
    }
    iterations = sum(steps.iterations for steps in trained)
    voxels = sum((steps.voxels_per_iteration or 0) * steps.iterations for steps in trained)
    peaks = {name: [getattr(steps, name) for steps in trained] for name in PEAKS}
    row |= {name: max(values) for name, values in peaks.items() if None not in values}
    return row | {
        "iterations": iterations,
        "patch_size": _common({steps.patch_size for steps in trained}, "random"),
        "field_of_view": _common({steps.field_of_view for steps in trained}, "random"),
        "batch_size": _common({steps.batch_size for steps in trained}, None),
        "voxels_per_iteration": voxels / iterations,
    }


def _common(values: set[Value], otherwise: Value) -> Value:
    """Return the only value of a set, or what stands for several."""
    return values.pop() if len(values) == 1 else otherwise


def stages_table(epochs: pd.DataFrame) -> pd.DataFrame:
    """Return the epochs summed by stage (columns `STAGES`); loss and Dice are the last epoch's."""
    groups = epochs.groupby(["stage", "patch_size"], sort=False, dropna=False)
    table = groups.agg(
        batch_size=("batch_size", "first"),
        epochs=("epoch", "size"),
        first_epoch=("epoch", "min"),
        **{column: (column, lambda values: values.sum(skipna=False)) for column in SUMMED},
        voxels_per_iteration=("voxels_per_iteration", "mean"),
        train_loss=("train_loss", "last"),
        pseudo_dice=("pseudo_dice", "last"),
        iterations=("iterations", lambda values: values.sum(skipna=False)),
        field_of_view=("field_of_view", "first"),
        augmentation=("augmentation", "first"),
        **{column: (column, lambda values: values.sum(skipna=False)) for column in COUNTED_LATER},
        **{column: (column, "max") for column in PEAKS},
    )
    return table.reset_index()[STAGES]


def energy_table(entries: list[Entry]) -> pd.DataFrame:
    """Return one row per attempt, phase and stage (columns `ENERGY`).

    `*_kept` is the part behind the result: kept epochs and the successful final validation. If the
    meter failed for a piece of work, the energies of its row are empty, with the reason. `note`
    says what else a reading includes.
    """
    meters = {start.attempt: _complete(start.meter) for start in starts(entries)}
    validation = kept_validation(entries)
    kept = {id(work) for parts in kept_work(entries).values() for work in parts}
    kept |= {id(work) for work in validation.work} if validation else set()
    work = pd.DataFrame(
        [
            {
                "attempt": entry.attempt,
                "phase": entry.phase,
                "stage": entry.steps.stage if isinstance(entry, EpochWork) else None,
                "ends": isinstance(entry, EpochWork) and entry.result is not None,
                "seconds": entry.seconds,
                **asdict(entry.reading),
                "kept": id(entry) in kept,
            }
            for entry in entries
            if isinstance(entry, Work)
        ]
    )
    rows = []
    for key, group in work.groupby(["attempt", "phase", "stage"], sort=False, dropna=False):
        row = dict(zip(["attempt", "phase", "stage"], key, strict=True))
        row["epochs"] = sum(group["ends"]) if row["phase"] == EpochWork.phase else None
        row |= {name: group[name].sum(skipna=False) for name in ("seconds", *METERED)}
        part = group[group["kept"]]
        row |= {f"{name}_kept": part[name].sum(skipna=False) for name in ENERGIES[:2]}
        row["g_co2eq_per_kwh"] = 1000 * row["kg_co2eq"] / row["kwh"] if row["kwh"] else None
        row["error"] = "; ".join(sorted({error for error in group["error"] if error}))
        meter = meters[row["attempt"]]
        share = other_share(row["cpu_seconds"], row["machine_cpu_seconds"])
        notes = {*group["note"], meter["note"], shared_note(meter["tracking_mode"], share)}
        rows.append(row | meter | {"note": "; ".join(sorted(notes - {""}))})
    table = pd.DataFrame(rows, columns=ENERGY)
    return table.astype({"stage": "Int64", "epochs": "Int64"})


def _complete(meter: MeterDescription) -> dict[str, Any]:
    """Return the columns of a meter, with what earlier versions did not write."""
    columns = asdict(meter)
    if meter.cpu_source is not None:
        return {**columns, "note": ""}
    return {**columns, **sources_of(meter.sensors), "note": meter_note(columns)}


def describe_run(
    run: dict[str, Any],
    plan: dict[str, Any],
    dataset: dict[str, Any],
    entries: list[Entry],
    summary: dict[str, Any],
    folder: Path,
) -> dict[str, Any]:
    """Return the content of `run.json`; unknown numbers are None.

    Args:
        run: names and identity of the training, including its length and seed.
        plan: nnU-Net's plan of the configuration that was trained.
        dataset: nnU-Net's `dataset.json`.
        entries: the ledger's entries.
        summary: nnU-Net's validation summary.
        folder: nnU-Net's fold folder.
    """
    attempts = starts(entries)
    trained = [start for start in attempts if start.resumed_at < run["epochs"]][-1]
    energy, epochs = energy_table(entries), epochs_table(entries)
    validation = kept_validation(entries)
    if validation is None:
        raise ValueError(f"the final validation of {folder} has not ended")
    dice = {label: scores["Dice"] for label, scores in summary["mean"].items()}
    per_case = [
        scores["Dice"] for case in summary["metric_per_case"] for scores in case["metrics"].values()
    ]
    measures = ("seconds", "kwh", "kg_co2eq")
    record = {
        **{key: run[key] for key in RUN_KEYS},
        "patch_size": plan["patch_size"],
        "batch_size": plan["batch_size"],
        "stages": int(epochs["stage"].nunique(dropna=False)),
        **{key: getattr(trained, key) for key in TRAINED_KEYS},
        "cpu_model": trained.meter.cpu_model,
        "attempts": len(attempts),
        "started": attempts[0].started,
        "finished": validation.end.ended,
        **{f"training_{name}": epochs[name].sum(skipna=False) for name in measures},
        "validation_seconds": sum(part.seconds for part in validation.work),
        "validation_kwh": sum(part.reading.kwh for part in validation.work),
        "validation_kg_co2eq": sum(part.reading.kg_co2eq for part in validation.work),
        "validation_mirroring": validation.end.mirroring,
        **{f"total_{name}": energy[name].sum(skipna=False) for name in measures},
        **conditions(energy),
        "training_gflop": epochs["train_gflop"].sum(),
        **{name: epochs[name].sum(skipna=False) for name in COUNTED_LATER[:2]},
        "wait_share": (epochs["wait_seconds"] / epochs["train_seconds"].sum()).sum(skipna=False),
        **{name: epochs[name].max() for name in PEAKS},
        "dice_foreground_mean": summary["foreground_mean"]["Dice"],
        "dice_per_label": {label: _known(value) for label, value in dice.items()},
        "label_names": name_labels(dataset["labels"], dice),
        "file_ending": dataset["file_ending"],
        "cases": len(summary["metric_per_case"]),
        "nan_dice": sum(math.isnan(value) for value in per_case),
        "results_folder": str(folder),
    }
    return {key: _known(value) for key, value in record.items()}


def _known(value: Any) -> Any:
    if value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return None
    return value.item() if isinstance(value, np.generic) else value
