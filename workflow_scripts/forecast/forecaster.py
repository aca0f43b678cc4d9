"""Hours, energy and emissions of arms from their plans and a calibration."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from workflow_scripts.common.nnunet_setup import find_trainer
from workflow_scripts.forecast import calibration
from workflow_scripts.forecast.calibration import Calibration, Loading
from workflow_scripts.forecast.forecast_columns import SUMS, UNPLANNED
from workflow_scripts.forecast.gpu_memory import estimate_memory
from workflow_scripts.forecast.planned_study import ForecastStudy
from workflow_scripts.forecast.plans import Plan, published_plans
from workflow_scripts.forecast.workload import StudyDesign, count_work
from workflow_scripts.records.energy_meter import energy_mix
from workflow_scripts.study.settings import TrainingSettings
from workflow_scripts.study.specification import Arm

REFERENCE_TRAINER = "nnUNetTrainerConstantPatch"
PUBLISHED_RUN = StudyDesign(
    "3d_fullres", TrainingSettings(1000, 250, 50, seed=0), folds=[0], mirroring=True
)
COLUMNS = [
    "task",
    "arm",
    "plan",
    "calibration",
    "patch_size",
    "batch_size",
    "folds",
    "seeds",
    "stages",
    "iterations",
    *SUMS,
    "relative_to_reference",
    "gpu_memory_gb",
    "beyond_plan_gb",
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


def calibrate(
    study: ForecastStudy, published: Mapping[str, Plan], runs: Path, loading: Path
) -> tuple[Calibration, Loading | None]:
    """Return the calibration that a study asks for, and that of the loading of batches.

    Measured seconds already include waiting for batches, so there is none for those.

    Args:
        study: the study.
        published: published plans, by task.
        runs, loading: tables of the published runs and of the loading of batches.
    """
    if study.calibration == "measured":
        return calibration.measured([Path(path).parent for path in study.runs]), None
    unlike = ""
    if study.configuration == "2d":
        unlike = " in 2D"
    elif any("network" in overrides for overrides in study.overrides.values()):
        unlike = " with a transformer"
    on_cpu = study.device == "cpu"
    if unlike or on_cpu:
        return calibration.unmeasured(f"{'CPU' if on_cpu else 'GPU'}{unlike}"), None
    found = calibration.published(pd.read_csv(runs, sep="\t"), published_work(published))
    return found, Loading.fit(pd.read_csv(loading, sep="\t", comment="#"))


@dataclass(frozen=True)
class Forecaster:
    """What the forecast of a study rests on, whatever the length of its trainings.

    Attributes:
        study: the study.
        plans: the plan of each task; None if it is not planned yet.
        calibration: including the power usage effectiveness.
        loading: of batches; None if measured seconds include it.
        kg_per_kwh: carbon intensity of the study's country.
    """

    study: ForecastStudy
    plans: Mapping[str, Plan | None]
    calibration: Calibration
    loading: Loading | None
    kg_per_kwh: float

    @classmethod
    def of(cls, study: ForecastStudy, plans: Path, runs: Path, loading: Path) -> "Forecaster":
        """Read the published plans, runs and times of loading."""
        listed = published_plans(plans)
        fitted, of_batches = calibrate(study, listed, runs, loading)
        fitted = replace(
            fitted,
            kwh_per_second=fitted.kwh_per_second * study.pue,
            kwh_per_tflop=fitted.kwh_per_tflop * study.pue,
        )
        found = {task: study.find_plan(task, listed) for task in study.tasks}
        intensity = energy_mix(study.country)["carbon_intensity"] / 1000
        return cls(study, found, fitted, of_batches, intensity)

    def rows(self, arms: Mapping[str, Arm]) -> pd.DataFrame:
        """Return the forecast of some arms, as `forecast_rows`."""
        return forecast_rows(
            self.plans,
            arms,
            self.study.design,
            self.calibration,
            reference_arm=self.study.reference_arm,
            kg_per_kwh=self.kg_per_kwh,
            loading=self.loading,
            workers=self.study.workers,
        )
