"""Forecast hours, energy and emissions of a study before its first training."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from workflow_scripts.common import nnunet_setup
from workflow_scripts.common.console import announce, redirect
from workflow_scripts.common.files import write_csv
from workflow_scripts.common.nnunet_setup import find_trainer
from workflow_scripts.forecast import calibration
from workflow_scripts.forecast.calibration import Calibration, Loading
from workflow_scripts.forecast.forecast_columns import SUMS, UNPLANNED
from workflow_scripts.forecast.forecast_page import to_markdown, total_line
from workflow_scripts.forecast.gpu_memory import estimate_memory
from workflow_scripts.forecast.workload import (
    Plan,
    StudyDesign,
    count_work,
    find_plan,
    published_plans,
)
from workflow_scripts.records.energy_meter import energy_mix
from workflow_scripts.study.settings import TrainingSettings
from workflow_scripts.study.specification import Arm

REFERENCE_TRAINER = "nnUNetTrainerConstantPatch"
PUBLISHED_RUN = StudyDesign(
    "3d_fullres", TrainingSettings(1000, 250, 50, seed=0), folds=[0], mirroring=True
)
COLUMNS = [
    *("task", "arm", "plan", "calibration", "patch_size", "batch_size", "folds", "seeds", "stages"),
    *("iterations", *SUMS, "relative_to_reference", "gpu_memory_gb", "beyond_plan_gb"),
]


def forecast_rows(
    plans: Mapping[str, Plan | None],
    arms: Mapping[str, Arm],
    design: StudyDesign,
    calibration: Calibration,
    *,
    reference_arm: str,
    kg_per_kwh: float,
    loading: Loading | None = None,
    workers: int = 1,
) -> pd.DataFrame:
    """Return one row per task and arm with the columns `COLUMNS`, summed over folds and seeds.

    Costs of a task without a plan are missing. `kg_per_kwh` is the carbon intensity; the energies
    of `calibration` already include the power usage effectiveness. If `loading` is given, the time
    that the device waits for batches from `workers` workers is added.
    """
    rows = []
    for task, plan in plans.items():
        for name, arm in arms.items():
            row: dict[str, Any] = {"task": task, "arm": name}
            row |= {"folds": len(design.folds), "seeds": design.seeds}
            rows.append(row | {"plan": UNPLANNED})
            if plan is None:
                continue
            trained = replace(design, training=replace(design.training, **arm.own_length))
            trainer = find_trainer(arm.trainer)
            work = count_work(plan, trainer, arm.parameters, trained)
            memory = estimate_memory(plan, trainer, arm.parameters, trained)
            waiting = (
                calibration.waiting(task, work.of_stages, loading, workers) if loading else 0.0
            )
            seconds, kwh = calibration.cost(task, work.steps, work.tflop, work.epochs, waiting)
            settings = plan.plans["configurations"][design.configuration]
            rows[-1] = row | {
                "plan": plan.source,
                "calibration": calibration.source,
                "patch_size": "x".join(str(int(n)) for n in settings["patch_size"]),
                "batch_size": settings["batch_size"],
                "stages": work.stages,
                "iterations": work.iterations,
                "train_tflop": work.train_tflop,
                "val_tflop": work.val_tflop,
                "final_tflop": work.final_tflop,
                "waiting_hours": waiting / 3600,
                "hours": seconds / 3600,
                "kwh": kwh,
                "kg_co2eq": kwh * kg_per_kwh,
                "gpu_memory_gb": memory.total,
                "beyond_plan_gb": memory.beyond_plan,
            }
    table = pd.DataFrame(rows, columns=COLUMNS)
    whole = ["batch_size", "folds", "seeds", "stages", "iterations"]
    table = table.astype(
        dict.fromkeys(whole, "Int64")
        | dict.fromkeys([*SUMS, "gpu_memory_gb", "beyond_plan_gb"], float)
    )
    reference = table[table["arm"] == reference_arm].set_index("task")["hours"]
    table["relative_to_reference"] = table["hours"] / table["task"].map(reference)
    return table


def published_work(published: Mapping[str, Plan]) -> dict[str, tuple[float, float]]:
    """Return the steps and TFLOP of one published run, including its validations, by task."""
    trainer = find_trainer(REFERENCE_TRAINER)
    counted = {
        task: count_work(plan, trainer, {}, PUBLISHED_RUN) for task, plan in published.items()
    }
    return {task: (work.steps, work.tflop) for task, work in counted.items()}


if __name__ == "__main__":
    redirect(snakemake.log[0])

    nnunet_setup.configure(processes=1)

    params = snakemake.params
    listed = published_plans(Path(snakemake.input.plans))
    loading = None
    in_2d = params.configuration == "2d"
    if params.calibration == "published" and (in_2d or params.device == "cpu"):
        device = "CPU" if params.device == "cpu" else "GPU"
        fitted = calibration.unmeasured(f"{device} in 2D" if in_2d else device)
    elif params.calibration == "published":
        runs = pd.read_csv(snakemake.input.runs, sep="\t")
        fitted = calibration.published(runs, published_work(listed))
        loading = Loading.fit(pd.read_csv(snakemake.input.loading, sep="\t", comment="#"))
    else:  # the measured seconds already include waiting for batches
        fitted = calibration.measured([Path(path).parent for path in params.runs])
    pue = params.pue
    fitted = replace(
        fitted,
        kwh_per_second=fitted.kwh_per_second * pue,
        kwh_per_tflop=fitted.kwh_per_tflop * pue,
    )
    intensity = energy_mix(params.country)["carbon_intensity"] / 1000
    found = {
        task: find_plan(
            own=Path(params.own_plans[task]),
            published=listed[task] if task in params.published else None,
            configuration=params.configuration,
            overrides=params.overrides[task],
        )
        for task in params.tasks
    }
    arms = {name: Arm(**arm) for name, arm in params.arms.items()}
    table = forecast_rows(
        found,
        arms,
        StudyDesign(
            configuration=params.configuration,
            training=TrainingSettings(**params.training),
            folds=params.folds,
            mirroring=params.mirroring,
            seeds=params.seeds,
        ),
        fitted,
        reference_arm=params.reference_arm,
        kg_per_kwh=intensity,
        loading=loading,
        workers=params.workers,
    )
    write_csv(table, Path(snakemake.output.csv))
    Path(snakemake.output.md).write_text(
        to_markdown(
            table,
            study=snakemake.params.study,
            reference_arm=params.reference_arm,
            training=params.training,
            calibration=fitted,
            country=params.country,
            kg_per_kwh=intensity,
            pue=pue,
            workers=params.workers if loading else None,
            arms=arms.values(),
        ),
        encoding="utf-8",
    )
    announce(f"{snakemake.output.md}: {total_line(table, fitted)}")
