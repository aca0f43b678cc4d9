"""The files of a run, derived from its ledger: `run.json` and three tables."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from workflow_scripts.records.energy_conditions import (
    conditions,
    meter_note,
    other_share,
    shared_note,
    sources_of,
)
from workflow_scripts.records.ledger import Entry
from workflow_scripts.records.run_columns import ENERGY, EPOCHS, STAGES
from workflow_scripts.records.run_reader import name_labels

RUN_KEYS = [
    "study", "task", "dataset", "arm", "trainer", "fold", "configuration", "plans", "parameters",
    "seed", "epochs", "iterations_per_epoch", "validation_iterations_per_epoch", "plans_hash",
    "splits_hash",
]  # fmt: skip
TRAINED_KEYS = [
    "device", "precision", "threads", "gpu_model", "versions", "git_commit", "trainer_code",
]  # fmt: skip
ADDED_LATER = ["nnunet_code", "imported_from", "environment"]
"""Keys missing in the ledgers of earlier versions."""
SUMMED = ["seconds", "kwh", "kg_co2eq", "gflop", "train_seconds", "val_seconds", "train_gflop"]
COUNTED_LATER = ["compile_seconds", "skipped_steps"]
"""Sums that ledgers of earlier versions lack."""
ENERGIES = ["kwh", "kg_co2eq", "cpu_kwh", "gpu_kwh", "ram_kwh"]
DEFAULTS = {
    "stage": None, "error": "", "partial": False, "note": "", "cpu_seconds": math.nan,
    "machine_cpu_seconds": math.nan,
}  # fmt: skip
"""Fields that not every entry of the ledger has."""


def kept_work(entries: Iterable[Entry]) -> dict[int, list[Entry]]:
    """Return the ledger's entries behind the final weights, by epoch, in order.

    An attempt that resumed at iteration i of epoch r discards the later work of earlier attempts.
    An epoch interrupted with a checkpoint has several entries; all but the last are `partial`.
    """
    kept: dict[int, list[Entry]] = {}
    for entry in entries:
        if entry["entry"] == "attempt":
            resumed, within = entry["resumed_at"], entry.get("resumed_within", 0)
            parts = [e for e in kept.get(resumed, []) if e.get("partial")] if within else []
            kept = {n: rows for n, rows in kept.items() if n < resumed}
            kept |= {resumed: parts} if parts else {}
        elif entry.get("phase") == "training":
            kept.setdefault(entry["epoch"], []).append(entry)
    return dict(sorted(kept.items()))


def kept_validation(entries: Iterable[Entry]) -> list[Entry]:
    """Return the ledger's entries behind the last final validation, in order.

    If a case was predicted more than once, the last time counts.
    """
    validations = [entry for entry in entries if entry.get("phase") == "validation"]
    ends = [number for number, entry in enumerate(validations) if not entry.get("partial")]
    if not ends:
        return []
    *cases, end = validations[: ends[-1] + 1]
    last = {case["case"]: case for case in cases if case.get("partial")}
    return [*last.values(), end]


def epochs_table(entries: Iterable[Entry]) -> pd.DataFrame:
    """Return one row per finished and kept epoch (columns `EPOCHS`).

    `seconds` are those without compilation, unlike in the ledger.
    """
    done = [parts for parts in kept_work(entries).values() if not parts[-1].get("partial")]
    table = pd.DataFrame([_join_parts(parts) for parts in done], columns=EPOCHS)
    table["seconds"] -= table["compile_seconds"].astype(float).fillna(0)
    floats = dict.fromkeys(("train_loss", "val_loss", "compile_seconds", "loss_scale"), float)
    return table.astype(dict.fromkeys(("stage", "batch_size", "skipped_steps"), "Int64") | floats)


def _join_parts(parts: list[Entry]) -> Entry:
    """Return an epoch's last entry with the costs and sizes of all its parts."""
    if len(parts) == 1:
        return parts[0]
    trained = [part for part in parts if part["iterations"]]
    iterations = sum(part["iterations"] for part in trained)
    voxels = sum(part["voxels_per_iteration"] * part["iterations"] for part in trained)
    sizes = {part["patch_size"] for part in trained}
    views = {part.get("field_of_view") for part in trained}
    batches = {part["batch_size"] for part in trained}
    return {
        **parts[-1],
        **{name: sum(part[name] for part in parts) for name in SUMMED},
        **{
            name: sum(part[name] for part in parts)
            for name in COUNTED_LATER
            if all(name in part for part in parts)
        },
        "iterations": iterations,
        "patch_size": sizes.pop() if len(sizes) == 1 else "random",
        "field_of_view": views.pop() if len(views) == 1 else "random",
        "batch_size": batches.pop() if len(batches) == 1 else None,
        "voxels_per_iteration": voxels / iterations,
    }


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
    )
    return table.reset_index()[STAGES]


def energy_table(entries: list[Entry]) -> pd.DataFrame:
    """Return one row per attempt, phase and stage (columns `ENERGY`).

    `*_kept` is the part behind the result: kept epochs and the successful final validation. If the
    meter failed for a piece of work, the energies of its row are empty, with the reason. `note`
    says what else a reading includes.
    """
    meters = {e["attempt"]: _complete(e["meter"]) for e in entries if e["entry"] == "attempt"}
    kept = {id(entry) for parts in kept_work(entries).values() for entry in parts}
    kept |= {id(entry) for entry in kept_validation(entries)}
    work = pd.DataFrame(
        [{**DEFAULTS, **e, "kept": id(e) in kept}
         for e in entries if e["entry"] == "work"]
    )  # fmt: skip
    rows = []
    for key, group in work.groupby(["attempt", "phase", "stage"], sort=False, dropna=False):
        row = dict(zip(["attempt", "phase", "stage"], key, strict=True))
        row["epochs"] = sum(~group["partial"]) if row["phase"] == "training" else None
        summed = ["seconds", *ENERGIES, "cpu_seconds", "machine_cpu_seconds"]
        row |= {name: group[name].sum(skipna=False) for name in summed}
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


def _complete(meter: dict[str, Any]) -> dict[str, Any]:
    """Return a ledger's description of a meter with what earlier versions did not write."""
    if "cpu_source" in meter:
        return {**meter, "note": ""}
    return {**meter, **sources_of(meter["sensors"]), "note": meter_note(meter)}


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
    attempts = [entry for entry in entries if entry["entry"] == "attempt"]
    trained = [a for a in attempts if a["resumed_at"] < run["epochs"]][-1]
    energy, epochs = energy_table(entries), epochs_table(entries)
    validation = kept_validation(entries)
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
        **{key: trained[key] for key in TRAINED_KEYS},
        "gpu": trained.get("gpu"),
        **{key: trained.get(key) for key in ADDED_LATER},
        "cpu_model": trained["meter"]["cpu_model"],
        "attempts": len(attempts),
        "started": attempts[0]["started"],
        "finished": validation[-1]["ended"],
        **{f"training_{name}": epochs[name].sum(skipna=False) for name in measures},
        **{f"validation_{name}": sum(part[name] for part in validation) for name in measures},
        "validation_mirroring": validation[-1]["mirroring"],
        **{f"total_{name}": energy[name].sum(skipna=False) for name in measures},
        **conditions(energy),
        "training_gflop": epochs["train_gflop"].sum(),
        **{name: epochs[name].sum(skipna=False) for name in COUNTED_LATER},
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
