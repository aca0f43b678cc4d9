"""Specification of a study from its checked configuration: names and file paths.

All paths are relative to the working directory.
"""

import glob
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Annotated, Any

from workflow_scripts.common.nnunet_setup import PREPROCESSED, RAW, SPLITS
from workflow_scripts.study.curriculum_search import trial_arm
from workflow_scripts.study.tasks import DEMO_TASK, dataset_of
from workflow_scripts.trainers.curricula.schedules.settings import CLOSED, Keywords

PLANS_OF_PLANNER = {
    "ExperimentPlanner": "nnUNetPlans",
    "nnUNetPlannerResEncM": "nnUNetResEncUNetMPlans",
    "nnUNetPlannerResEncL": "nnUNetResEncUNetLPlans",
    "nnUNetPlannerResEncXL": "nnUNetResEncUNetXLPlans",
}


LENGTH = ("epochs", "iterations_per_epoch", "validation_iterations_per_epoch")
"""Keys of the section `training` that an arm may set for itself."""


def own_length(arm: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parts of `LENGTH` that an arm of the configuration sets itself."""
    return {key: arm[key] for key in LENGTH if arm.get(key) is not None}


@dataclass(frozen=True)
class Arm:
    """A trainer class and the attributes that are set on it."""

    __pydantic_config__ = CLOSED

    trainer: Annotated[str, Keywords(pattern="^[A-Za-z_][A-Za-z0-9_]*$")]
    """Name of the trainer class: one of `workflow_scripts/trainers/curricula/arms.py`, or any that
    nnU-Net finds. Several arms may share a class with different parameters."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """Attributes set on the trainer before it starts; others keep the class's value."""
    epochs: Annotated[int, Keywords(minimum=1)] | None = None
    """Epochs of this arm, if they differ from `training.epochs`. Every stage of a curriculum keeps
    its share if the epochs can be divided by the number of stages."""
    iterations_per_epoch: Annotated[int, Keywords(minimum=1)] | None = None
    """Training iterations of an epoch of this arm, if they differ from
    `training.iterations_per_epoch`. The authors of the patch curricula shorten a training with this
    key, not with `epochs`."""
    validation_iterations_per_epoch: Annotated[int, Keywords(minimum=1)] | None = None
    """Validation iterations of an epoch of this arm, if they differ from
    `training.validation_iterations_per_epoch`."""

    @property
    def own_length(self) -> dict[str, Any]:
        """The parts of the length that this arm sets itself."""
        return own_length(vars(self))


@dataclass(frozen=True)
class RunSpec:
    """Identity of a training: the names in `run.json` and the arm's parameters.

    Attributes:
        parameters: attributes that the arm sets on its trainer.
    """

    study: str
    task: str
    dataset: str
    arm: str
    trainer: str
    fold: int
    configuration: str
    plans: str
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def fold_folder(self, results: str | Path) -> Path:
        """Return the fold's folder in nnU-Net's results folder, as nnU-Net's trainer names it."""
        model = f"{self.trainer}__{self.plans}__{self.configuration}"
        return Path(results) / self.dataset / model / f"fold_{self.fold}"


@dataclass(frozen=True)
class Study:
    """A study's tasks, plans, runs and files.

    Attributes:
        config: the checked configuration.
        register: content of `config/tables/datasets.tsv`, by task.
    """

    config: Mapping[str, Any]
    register: Mapping[str, Mapping[str, str]]

    @property
    def name(self) -> str:
        """Name of the study, and of its folder in `results`."""
        return str(self.config["study"])

    @property
    def tasks(self) -> list[str]:
        """The tasks that are trained."""
        return list(self.config["tasks"])

    @cached_property
    def dataset_of(self) -> dict[str, str]:
        """nnU-Net's dataset of every known task, trained or not."""
        return {
            task: dataset_of(task)
            for task in [*self.register, DEMO_TASK, *self.config["own_tasks"]]
        }

    @cached_property
    def task_of(self) -> dict[str, str]:
        """The task of every dataset."""
        return {dataset: task for task, dataset in self.dataset_of.items()}

    @property
    def seeds(self) -> list[int]:
        """Seeds with which every fold is trained."""
        return list(self.config["seeds"])

    @cached_property
    def runs(self) -> list[tuple[str, str, int, int]]:
        """Task, arm, fold and seed of every training."""
        return list(product(self.tasks, self.config["arms"], self.config["folds"], self.seeds))

    def seed_suffix(self, seed: int) -> str:
        """Return the suffix of the folder of a fold's training; empty for `training.seed`.

        The trainings of a study with one seed thus stay where they are when seeds are added.
        """
        return "" if seed == self.config["training"]["seed"] else f"_seed_{seed}"

    def seed_of(self, suffix: str) -> int:
        """Return the seed of a `seed_suffix`."""
        return int(suffix.removeprefix("_seed_") or self.config["training"]["seed"])

    @property
    def configuration(self) -> str:
        """nnU-Net's configuration, such as `3d_fullres`."""
        return str(self.config["planning"]["configuration"])

    @cached_property
    def base_plans(self) -> str:
        """Name of nnU-Net's plans before the study's overrides."""
        planning = self.config["planning"]
        target = planning["gpu_memory_target_gb"]
        suffix = "" if target is None else f"-{target:g}GB"
        return PLANS_OF_PLANNER[planning["planner"]] + suffix

    @property
    def data_identifier(self) -> str:
        """Name of nnU-Net's folder of preprocessed cases."""
        return f"{self.base_plans}_{self.configuration}"

    def overrides(self, task: str) -> dict[str, Any]:
        """Return the changes that the configuration makes to a task's plans."""
        planning = self.config["planning"]
        chosen = planning["overrides"]
        merged = {"network": planning["network"], **chosen.get("all", {}), **chosen.get(task, {})}
        return {key: value for key, value in merged.items() if value is not None}

    def plans_name(self, task: str) -> str:
        """Return the name of a task's plans: nnU-Net's, or a new one if there are overrides."""
        changed = self.overrides(task)
        if not changed:
            return self.base_plans
        changed["configuration"] = self.configuration
        digest = hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()[:8]
        return f"{self.base_plans}_{digest}"

    def raw(self, task: str) -> str:
        """Return the `dataset.json` of a task in nnU-Net's raw format."""
        return str(RAW / self.dataset_of[task] / "dataset.json")

    def preprocessed(self, task: str) -> str:
        """Return nnU-Net's preprocessed folder of a task."""
        return str(PREPROCESSED / self.dataset_of[task])

    def plans(self, task: str) -> str:
        """Return the file of a task's plans."""
        return f"{self.preprocessed(task)}/{self.plans_name(task)}.json"

    def manifest(self, task: str) -> str:
        """Return the file that lists a task's preprocessed cases."""
        return f"{self.preprocessed(task)}/{self.data_identifier}.manifest.json"

    def splits(self, task: str) -> str:
        """Return the file of a task's folds."""
        return f"{self.preprocessed(task)}/{SPLITS}"

    def arm(self, name: str) -> Mapping[str, Any]:
        """Return an arm of the study or a trial of its search, as in the section `arms`."""
        found: Mapping[str, Any] = self.config["arms"].get(name) or trial_arm(name, self.config)
        return found

    def training(self, arm: str, seed_suffix: str = "") -> dict[str, Any]:
        """Return the settings that determine a training: section `training`, the length and seed.

        The number of threads is left out, because it does not define a training. The memory format
        is left out if it is automatic, so that trainings of earlier versions stay finished.
        """
        settings = dict(self.config["training"])
        del settings["threads"]
        if settings.get("memory_format") == "auto":
            del settings["memory_format"]
        settings["seed"] = self.seed_of(seed_suffix)
        return settings | own_length(self.arm(arm))

    def run(self, task: str, arm: str, fold: int) -> dict[str, Any]:
        """Return the names that identify a training: the first fields of a `RunSpec`."""
        return {
            "study": self.name,
            "task": task,
            "dataset": self.dataset_of[task],
            "arm": arm,
            "trainer": self.arm(arm)["trainer"],
            "fold": fold,
            "configuration": self.configuration,
            "plans": self.plans_name(task),
        }

    def results(self, arm: str, seed_suffix: str = "") -> str:
        """Return nnU-Net's results folder of an arm and seed (no subfolder for `training.seed`)."""
        return f"results/{self.name}/nnunet/{arm}" + seed_suffix.replace("_", "/", 1)


def file_digests(patterns: Iterable[str]) -> dict[str, str]:
    """Return a short digest of every file that matches a pattern (`**` is any depth), by path."""
    found = {path for pattern in patterns for path in glob.glob(pattern, recursive=True)}  # noqa: PTH207
    return {
        path: hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16] for path in sorted(found)
    }
