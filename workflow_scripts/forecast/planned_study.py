"""A study before its first training: the parameters of the rules that forecast and check it."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workflow_scripts.forecast.plans import Plan, find_plan
from workflow_scripts.forecast.workload import StudyDesign
from workflow_scripts.study.settings import TrainingSettings
from workflow_scripts.study.specification import Arm


@dataclass(frozen=True, kw_only=True)
class PlannedStudy:
    """What both rules are told.

    Attributes:
        study: its name.
        tasks, folds, arms: sections of the configuration.
        seeds: number of trainings per fold.
        configuration: nnU-Net's configuration.
        overrides: changes of the plans, by task.
        training: length and seed from the section `training`.
        mirroring: whether the final validation uses mirroring.
        device: `auto`, `cpu` or `cuda`.
        own_plans: file of nnU-Net's own plans, by task; it need not exist.
        published: tasks whose plans are published.
    """

    study: str
    tasks: Sequence[str]
    folds: Sequence[int]
    seeds: int
    arms: Mapping[str, Mapping[str, Any]]
    configuration: str
    overrides: Mapping[str, dict[str, Any]]
    training: Mapping[str, Any]
    mirroring: bool
    device: str
    own_plans: Mapping[str, str]
    published: Collection[str]

    @property
    def design(self) -> StudyDesign:
        """What determines the work of every arm."""
        return StudyDesign(
            configuration=self.configuration,
            training=TrainingSettings(**self.training),
            folds=self.folds,
            mirroring=self.mirroring,
            seeds=self.seeds,
        )

    def trained_arms(self) -> dict[str, Arm]:
        """Return the arms by name."""
        return {name: Arm(**arm) for name, arm in self.arms.items()}

    def find_plan(self, task: str, published: Mapping[str, Plan]) -> Plan | None:
        """Return the plan of a task as `plans.find_plan`, given all published plans."""
        return find_plan(
            own=Path(self.own_plans[task]),
            published=published[task] if task in self.published else None,
            configuration=self.configuration,
            overrides=self.overrides[task],
        )


@dataclass(frozen=True, kw_only=True)
class ForecastStudy(PlannedStudy):
    """What the rule `forecast_study` is told.

    Attributes:
        reference_arm: arm with which the others are compared.
        workers: processes that load batches.
        country, pue: see `EnergySettings`.
        calibration: `published` or `measured`.
        runs: records of finished runs, with digests, if they are measured.
        found: nnU-Net's own plans that exist, with digests.
    """

    reference_arm: str
    workers: int
    country: str
    pue: float
    calibration: str
    runs: Mapping[str, str]
    found: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class CheckedStudy(PlannedStudy):
    """What the rule `check_needs` is told.

    Attributes:
        records: task, arm and file of every training; the file exists if it is finished.
        manifests, splits: files of the preprocessed cases and of the folds, by task.
    """

    records: Sequence[tuple[str, str, str]]
    manifests: Mapping[str, str]
    splits: Mapping[str, str]
