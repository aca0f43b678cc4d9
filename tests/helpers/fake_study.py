"""A MADE-UP study in the layout of a real one, for tests only: no number here was measured."""

import json
import math
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from workflow_scripts.records.run_reader import RunKey

PATCH = (16, 16, 16)
STAGES = ((8, 8, 8), (8, 16, 16), (16, 16, 16))
SPEED = {"constant": 1.0, "progressive": 0.4, "random": 0.5}


@dataclass
class FakeStudy:
    """Settings of a made-up study. `dice` overrides the Dice of a run: case -> label -> value."""

    root: Path
    tasks: tuple[str, ...] = ("Task98_Fake",)
    arms: tuple[str, ...] = ("constant", "progressive", "random")
    folds: tuple[int, ...] = (0, 1)
    seeds: tuple[int, ...] = (1,)
    epochs: int = 6
    iterations: int = 2
    plans: str = "fakePlans"
    cases: int = 3
    labels: tuple[str, ...] = ("inner", "outer & rim")
    dice: dict[RunKey, dict[str, dict[str, float]]] | None = None

    def keys(self) -> list[RunKey]:
        """Return all runs, in the order of the workflow."""
        return list(product(self.tasks, self.arms, self.folds, self.seeds))

    def folder(self, key: RunKey) -> Path:
        """Return the folder with the files of a run."""
        task, arm, fold, seed = key
        suffix = "" if seed == self.seeds[0] else f"_seed_{seed}"
        return self.root / "results/fake/runs" / task / arm / f"fold_{fold}{suffix}"

    def folders(self) -> dict[RunKey, Path]:
        """Return the folder of every run."""
        return {key: self.folder(key) for key in self.keys()}

    def write(self) -> "FakeStudy":
        """Write the files of every run."""
        for key in self.keys():
            write_run(self, key)
        return self


def stage_of(arm: str, epoch: int, epochs: int) -> int:
    """Return the stage: equal thirds, or one stage for an arm that is not progressive."""
    return min(epoch * len(STAGES) // epochs, 2) if arm.startswith("progressive") else 0


def generator(study: FakeStudy, key: RunKey, *more: int) -> np.random.Generator:
    """Return a generator of random numbers for a run."""
    task, arm, fold, seed = key
    numbers = [*more, study.tasks.index(task), study.arms.index(arm), fold]
    return np.random.default_rng(numbers + ([seed] if seed != study.seeds[0] else []))


def made_up_epochs(study: FakeStudy, key: RunKey) -> pd.DataFrame:
    """Return epochs.csv of a run: the costs follow the patch size, Dice saturates."""
    task, arm, _, _ = key
    size = 1 + study.tasks.index(task)
    rng = generator(study, key)
    rows = []
    for epoch in range(study.epochs):
        stage = stage_of(arm, epoch, study.epochs)
        patch = STAGES[stage] if arm.startswith("progressive") else PATCH
        share = math.prod(patch) / math.prod(PATCH)
        share = 0.45 if arm == "random" else share
        train = 10.0 * size * share * (1 + 0.05 * rng.random())
        progress = (epoch + 1) / study.epochs
        rows.append(
            {
                "epoch": epoch,
                "stage": stage,
                "patch_size": "random" if arm == "random" else "x".join(map(str, patch)),
                "batch_size": 2,
                "lr": 0.01 * (1 - epoch / study.epochs) ** 0.9,
                "train_loss": -progress,
                "val_loss": -0.9 * progress,
                "pseudo_dice": 0.85 * (1 - math.exp(-5 * progress)) + 0.02 * rng.random(),
                "seconds": train + 1,
                "kwh": (train + 1) * 2e-5,
                "kg_co2eq": (train + 1) * 2e-5 * 0.38,
                "gflop": (train + 1) * 50,
                "train_seconds": train,
                "val_seconds": 1.0,
                "train_gflop": train * 50,
                "voxels_per_iteration": 2 * math.prod(PATCH) * share,
                "attempt": 1,
            }
        )
    return pd.DataFrame(rows)


def made_up_summary(study: FakeStudy, key: RunKey) -> dict[str, Any]:
    """Return summary.json of a run, in nnU-Net's layout."""
    fold, rng = key[2], generator(study, key, 7)
    given = (study.dice or {}).get(key)
    if given is None:
        given = {
            f"case_{fold}{number:02d}": {
                str(label + 1): 0.8 - 0.1 * label + 0.1 * rng.random()
                for label in range(len(study.labels))
            }
            for number in range(study.cases)
        }
    per_case = []
    for case, labels in given.items():
        metrics = {
            label: {"Dice": dice, "IoU": dice / (2 - dice), "TP": 8, "FP": 2, "FN": 2, "TN": 99}
            | {"n_pred": 10, "n_ref": 10}
            for label, dice in labels.items()
        }
        files = {f"{name}_file": f"somewhere/{case}.nii.gz" for name in ("reference", "prediction")}
        per_case.append({"metrics": metrics} | files)
    means = {
        label: {"Dice": float(np.nanmean([entry["metrics"][label]["Dice"] for entry in per_case]))}
        for label in next(iter(given.values()))
    }
    foreground = {"Dice": float(np.mean([mean["Dice"] for mean in means.values()]))}
    return {"foreground_mean": foreground, "mean": means, "metric_per_case": per_case}


def made_up_surface(summary: dict[str, Any]) -> pd.DataFrame:
    """Return surface.csv of a run: an NSD between Dice and 1."""
    rows = [
        {
            "case": Path(entry["reference_file"]).name.split(".")[0],
            "label": label,
            "nsd": (1 + metrics["Dice"]) / 2,
            "tolerance_mm": 1.0,
        }
        for entry in summary["metric_per_case"]
        for label, metrics in entry["metrics"].items()
    ]
    return pd.DataFrame(rows)


def write_run(study: FakeStudy, key: RunKey) -> None:
    """Write the files of one run."""
    task, arm, fold, seed = key
    folder = study.folder(key)
    folder.mkdir(parents=True, exist_ok=True)
    epochs = made_up_epochs(study, key)
    summary = made_up_summary(study, key)
    last = {column: (column, "last") for column in ("train_loss", "pseudo_dice")}
    summed = ("seconds", "kwh", "kg_co2eq", "gflop", "train_seconds", "val_seconds", "train_gflop")
    stages = epochs.groupby("stage", as_index=False).agg(
        patch_size=("patch_size", "first"),
        batch_size=("batch_size", "first"),
        epochs=("epoch", "count"),
        first_epoch=("epoch", "first"),
        **{column: (column, "sum") for column in summed},
        voxels_per_iteration=("voxels_per_iteration", "mean"),
        **last,
    )
    energy = stages[["stage", "epochs", "seconds", "kwh", "kg_co2eq"]].assign(
        attempt=1,
        phase="training",
        kwh_kept=stages["kwh"],
        kg_co2eq_kept=stages["kg_co2eq"],
        cpu_kwh=stages["kwh"] * 0.9,
        gpu_kwh=0.0,
        ram_kwh=stages["kwh"] * 0.1,
        sensors="cpu: made up",
        tracking_mode="machine",
        country="DEU",
        g_co2eq_per_kwh=380.0,
        pue=1.0,
        cpu_model="made-up CPU",
        gpu_model="",
        codecarbon="0.0.0",
        error="",
    )
    dice = [
        metrics["Dice"]
        for entry in summary["metric_per_case"]
        for metrics in entry["metrics"].values()
    ]
    total = epochs[["seconds", "kwh", "kg_co2eq"]].sum()
    record = {
        "study": "fake",
        "task": task,
        "dataset": "Dataset" + task.removeprefix("Task"),
        "arm": arm,
        "trainer": f"nnUNetTrainer{arm.title().replace('_', '')}Patch",
        "parameters": {},
        "fold": fold,
        "seed": seed,
        "epochs": study.epochs,
        "iterations_per_epoch": study.iterations,
        "validation_iterations_per_epoch": 1,
        "configuration": "3d_fullres",
        "plans": study.plans,
        "plans_hash": "f" * 16,
        "splits_hash": "e" * 16,
        "patch_size": list(PATCH),
        "batch_size": 2,
        "stages": len(stages),
        "device": "cpu",
        "precision": "fp32",
        "threads": 2,
        "cpu_model": "made-up CPU",
        "gpu_model": None,
        "versions": {"python": "3.11", "torch": "0", "nnunetv2": "0", "codecarbon": "0"}
        | {"batchgeneratorsv2": "0"},
        "git_commit": "0" * 40,
        "trainer_code": "d" * 16,
        "attempts": 1,
        "started": "2000-01-01T00:00:00+00:00",
        "finished": "2000-01-01T01:00:00+00:00",
        "training_seconds": float(total["seconds"]),
        "training_kwh": float(total["kwh"]),
        "training_kg_co2eq": float(total["kg_co2eq"]),
        "validation_seconds": 12.0,
        "validation_kwh": 1e-4,
        "validation_kg_co2eq": 4e-5,
        "total_seconds": float(total["seconds"]) + 20,
        "total_kwh": float(total["kwh"]) + 2e-4,
        "total_kg_co2eq": float(total["kg_co2eq"]) + 8e-5,
        "training_gflop": float(epochs["gflop"].sum()),
        "dice_foreground_mean": summary["foreground_mean"]["Dice"],
        "dice_per_label": {label: mean["Dice"] for label, mean in summary["mean"].items()},
        "label_names": {str(number + 1): name for number, name in enumerate(study.labels)},
        "cases": len(summary["metric_per_case"]),
        "nan_dice": sum(math.isnan(value) for value in dice),
        "results_folder": f"results/fake/nnunet/{task}/{arm}/{folder.name}",
    }
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "summary.json").write_text(json.dumps(summary))
    tables = {"epochs": epochs, "stages": stages, "energy": energy}
    tables["surface"] = made_up_surface(summary)
    for name, table in tables.items():
        table.to_csv(folder / f"{name}.csv", index=False)
