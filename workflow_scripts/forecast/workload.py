"""What a training will have to compute, counted from its plan: no data, no weights, no training."""

import csv
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from workflow_scripts.common.errors import UserError
from workflow_scripts.common.files import read_json
from workflow_scripts.common.nnunet_setup import FOLDS, SPLITS
from workflow_scripts.common.trainer_protocol import CurriculumTrainer, mirrors
from workflow_scripts.planning.plan_overrides import override_plans
from workflow_scripts.records.flop_counter import FlopTable
from workflow_scripts.study.settings import TrainingSettings
from workflow_scripts.trainers.curricula.schedules.patch_plan import PatchPlan
from workflow_scripts.trainers.curricula.schedules.planner import (
    iterations_of_stages,
    plan_schedule,
)
from workflow_scripts.trainers.curricula.schedules.scale_factors import ScaleSpaceSettings
from workflow_scripts.trainers.curricula.schedules.schedule import Schedule, Stage
from workflow_scripts.trainers.curricula.schedules.settings import CurriculumSettings

MIRRORINGS = 8
"""Predictions of a window with test-time mirroring along three axes."""


@dataclass(frozen=True)
class Plan:
    """nnU-Net's plans of a task with what `dataset.json` adds; `source` says whose they are.

    `validated` holds the number of validation cases of each fold, once the folds are written.
    """

    source: str
    plans: dict[str, Any]
    dataset: dict[str, Any]
    validated: list[int] | None = None

    def validation_cases(self, fold: int) -> int:
        """Return the number of validation cases of a fold; by default, of nnU-Net's five folds."""
        if self.validated is not None and fold < len(self.validated):
            return self.validated[fold]
        return cases_of_fold(self.dataset["numTraining"], fold)


@dataclass(frozen=True)
class StageWork:
    """What the training iterations of one stage load and compute.

    Attributes:
        iterations: of all folds together.
        tflop: operations of an iteration.
        loads: batches loaded for an iteration; fewer than 1 where batches are repeated.
        samples: of a loaded batch.
        megavoxels: of the images in a loaded batch, channels counted.
        together: whether its samples are augmented together, not one by one.
    """

    iterations: float
    tflop: float
    loads: float
    samples: int
    megavoxels: float
    together: bool


@dataclass(frozen=True)
class Work:
    """What the training of one fold, or several, computes; a TFLOP is 1e12 operations.

    Attributes:
        stages: of the schedule.
        epochs: of all folds together, as all that follows.
        iterations, val_iterations, predictions: steps of training, of the validation after each
            epoch, and forward passes of the final validation.
        train_tflop, val_tflop, final_tflop: operations of each.
        of_stages: the training iterations by stage.
    """

    stages: int
    epochs: int
    iterations: int
    val_iterations: int
    predictions: int
    train_tflop: float
    val_tflop: float
    final_tflop: float
    of_stages: tuple[StageWork, ...] = ()

    @property
    def tflop(self) -> float:
        """Operations of training and validations."""
        return self.train_tflop + self.val_tflop + self.final_tflop

    @property
    def steps(self) -> int:
        """Steps of training and validations."""
        return self.iterations + self.val_iterations + self.predictions


def published_plans(table: Path) -> dict[str, Plan]:
    """Return the plans of config/published/nnunet_plans.tsv, by task, as nnU-Net writes them.

    The table has what differs between tasks; the rest is what nnU-Net 2.8.1's `ExperimentPlanner`
    gives every plain U-Net.
    """
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    found = {}
    for row in rows:
        values = {key: json.loads(row[key]) for key in row if key not in ("task", "dataset")}
        layers = values["anisotropic_kernels"]
        depth = len(values["features_per_stage"])
        architecture = {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": {
                "n_stages": depth,
                "features_per_stage": values["features_per_stage"],
                "conv_op": "torch.nn.modules.conv.Conv3d",
                "kernel_sizes": layers["kernel_sizes"],
                "strides": layers["strides"],
                "n_conv_per_stage": [2] * depth,
                "n_conv_per_stage_decoder": [2] * (depth - 1),
                "conv_bias": True,
                "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
                "norm_op_kwargs": {"eps": 1e-5, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        }
        configuration = {
            "patch_size": values["patch_size"],
            "batch_size": values["batch_size"],
            "median_image_size_in_voxels": values["median_shape"],
            "spacing": values["spacing"],
            "architecture": architecture,
        }
        plans = {
            "dataset_name": row["dataset"],
            "plans_name": "nnUNetPlans",
            "label_manager": "LabelManager",
            "configurations": {"3d_fullres": configuration},
        }
        dataset = {
            "channel_names": {str(n): str(n) for n in range(values["n_input_channels"])},
            "labels": {"background": 0, **{str(n): n for n in range(1, values["n_classes"])}},
            "numTraining": values["n_training_cases"],
        }
        found[row["task"]] = Plan("published", plans, dataset)
    return found


def read_plan(path: Path) -> Plan:
    """Read nnU-Net's own plans, with the `dataset.json` and the folds next to them."""
    splits, validated = path.with_name(SPLITS), None
    if splits.is_file():
        validated = [len(fold["val"]) for fold in read_json(splits, kind=list)]
    dataset = read_json(path.parent / "dataset.json")
    return Plan("planned here", read_json(path), dataset, validated)


def find_plan(
    own: Path, published: Plan | None, configuration: str, overrides: dict[str, Any]
) -> Plan | None:
    """Return the plan of a task with the study's overrides, or None if it is not planned yet.

    Args:
        own: path of nnU-Net's own plans, which take precedence if the file exists.
        published: the published plan, if the study would get the same one.
        configuration: nnU-Net's, such as `3d_fullres`.
        overrides: what the study changes in the plan.

    Raises UserError if the overrides do not fit the plan.
    """
    plan = read_plan(own) if own.is_file() else published
    if plan is None:
        return None
    return replace(plan, plans=override_plans(plan.plans, "forecast", configuration, overrides))


@dataclass(frozen=True)
class StudyDesign:
    """What the trainings of a study have in common.

    Attributes:
        configuration: of nnU-Net's plans.
        training: length and seed.
        folds: numbers of nnU-Net's five folds.
        mirroring: of the final validation.
        seeds: how many trainings each fold has.
    """

    configuration: str
    training: TrainingSettings
    folds: Sequence[int]
    mirroring: bool
    seeds: int = 1

    @property
    def trainings(self) -> int:
        """How many trainings a task has in each arm."""
        return len(self.folds) * self.seeds


def count_work(
    plan: Plan, trainer: Any, parameters: Mapping[str, Any], design: StudyDesign
) -> Work:
    """Return the work of an arm on the folds and seeds of a task.

    Args:
        plan: with the study's overrides.
        trainer: class of the arm; nnU-Net's own train at the planned size.
        parameters: attributes that the arm sets on it.
        design: of the study, with the length of this arm.

    Raises UserError where the arm's settings do not fit the plan.
    """
    training, trainings = design.training, design.trainings
    chosen = PlansManager(plan.plans).get_configuration(design.configuration)
    planned, schedule, network = fit_arm(plan, trainer, parameters, design)
    content = json.dumps([plan.plans, plan.dataset])
    table = _flop_table(content, design.configuration, trainer.build_network_architecture, network)
    size = Stage(planned.patch_size, planned.batch_size)
    if network:
        scales = network.scales
        flop = {size: _mean_flop(table.training_step, size, scales.trained)}
        turns = range(training.validation_iterations_per_epoch)
        validated = [scales.of_validation(turn) for turn in turns]
        val = _mean_flop(table.validation_step, size, validated)
        final = _mean_flop(table.validation_step, size, [scales.final])
    else:
        flop = training_flop(table, schedule.stages)
        final = val = table.validation_step(size.batch_size, size.patch_size)
    each = iterations_of_stages(schedule)
    train = sum(n * flop[stage] for n, stage in zip(each, schedule.stages, strict=True))
    at_once = parameters.get(
        "batched_augmentation", getattr(trainer, "batched_augmentation", False)
    )
    channels = len(plan.dataset["channel_names"])
    of_stages = [
        StageWork(
            iterations=n * trainings,
            tflop=flop[stage] / 1e12,
            loads=1 / stage.replay,
            samples=stage.batch_size,
            megavoxels=channels * stage.batch_size * math.prod(stage.loaded_size) / 1e6,
            together=at_once and stage.loaded_size != planned.patch_size,
        )
        for n, stage in zip(each, schedule.stages, strict=True)
    ]
    val_iterations = training.epochs * training.validation_iterations_per_epoch
    cases = design.seeds * sum(plan.validation_cases(fold) for fold in design.folds)
    predictions = windows(chosen.median_image_size_in_voxels, planned.patch_size) * cases
    predictions *= MIRRORINGS if design.mirroring and mirrors(trainer, parameters) else 1
    return Work(
        stages=len(schedule.stages),
        epochs=training.epochs * trainings,
        iterations=round(sum(each)) * trainings,
        val_iterations=val_iterations * trainings,
        predictions=predictions,
        train_tflop=train * trainings / 1e12,
        val_tflop=val * val_iterations * trainings / 1e12,
        final_tflop=final / planned.batch_size * predictions / 1e12,
        of_stages=tuple(of_stages),
    )


def fit_arm(
    plan: Plan, trainer: Any, parameters: Mapping[str, Any], design: StudyDesign
) -> tuple[PatchPlan, Schedule, ScaleSpaceSettings | None]:
    """Return the planned patch, the schedule of an arm, and the settings of its network, if any.

    Raises UserError if the settings of the arm do not fit the plan.
    """
    chosen = PlansManager(plan.plans).get_configuration(design.configuration)
    try:
        planned = PatchPlan.of(chosen)
        curriculum = CurriculumSettings.of(trainer, parameters)
        schedule = plan_schedule(planned, design.training.length, curriculum)
        # Its class has all that the trainer has.
        is_curriculum = isinstance(trainer, CurriculumTrainer)
        network = trainer.network_settings(parameters) if is_curriculum else None
    except ValueError as error:
        raise UserError(f"{plan.plans['dataset_name']}, {trainer.__name__}: {error}") from None
    return planned, schedule, network


def training_flop(table: FlopTable, stages: Iterable[Stage]) -> dict[Stage, float]:
    """Return the operations of a training step of each stage.

    A convolutional network's are in proportion to the voxels, since every size is whole at every
    depth of the network: so the smallest and the largest are counted and, where they agree, the
    others follow. Else each is counted.
    """
    stages = sorted(set(stages), key=lambda stage: math.prod(stage.patch_size))
    counts = {
        stage: table.training_step(1, stage.patch_size) * stage.batch_size
        for stage in {stages[0], stages[-1]}
    }
    rates = [count / stage.voxels for stage, count in counts.items()]
    if math.isclose(min(rates), max(rates), rel_tol=1e-9):
        return {stage: rates[0] * stage.voxels for stage in stages}
    return {
        stage: float(table.training_step(1, stage.patch_size) * stage.batch_size)
        for stage in stages
    }


def _mean_flop(count: Callable[..., int], size: Stage, scales: Sequence[float]) -> float:
    """Return the mean operations of a step over scale factors that are as likely."""
    each = [count(size.batch_size, size.patch_size, scale) for scale in scales]
    return sum(each) / len(each)


@lru_cache
def _flop_table(
    content: str, configuration: str, build: Any, settings: ScaleSpaceSettings | None = None
) -> FlopTable:
    """Count the network that a trainer builds of a plan.

    `content` is plans and dataset as JSON; `settings` are for a `build` that takes some.
    """
    plans, dataset = json.loads(content)
    network, channels = build_network(plans, dataset, configuration, build, settings)
    return FlopTable(network, channels)


def build_network(
    plans: dict[str, Any],
    dataset: dict[str, Any],
    configuration: str,
    build: Any,
    settings: ScaleSpaceSettings | None,
) -> tuple[torch.nn.Module, int]:
    """Return the network that a trainer builds from a plan, and its number of input channels.

    The network is on the meta device, so its weights take no memory.

    Args:
        plans, dataset: content of nnU-Net's plans and `dataset.json`.
        configuration: of the plans.
        build: the trainer's `build_network_architecture`.
        settings: passed on to `build` if given.
    """
    manager = PlansManager(plans)
    chosen = manager.get_configuration(configuration)
    channels = determine_num_input_channels(manager, chosen, dataset)
    heads = manager.get_label_manager(dataset).num_segmentation_heads
    options = {"settings": settings} if settings else {}
    with torch.device("meta"):
        return build(manager, chosen, channels, heads, True, **options), channels


def windows(shape: Sequence[float], patch_size: Sequence[int], step: float = 0.5) -> int:
    """Return the windows of nnU-Net's sliding-window prediction of an image.

    As its `compute_steps_for_sliding_window`: an axis shorter than the patch is padded to it.
    """
    each = [
        math.ceil((max(size, patch) - patch) / (patch * step)) + 1
        for size, patch in zip(shape, patch_size, strict=True)
    ]
    return math.prod(each)


def cases_of_fold(cases: int, fold: int) -> int:
    """Return the validation cases of one of nnU-Net's five folds: the first ones have the rest."""
    return cases // FOLDS + (fold < cases % FOLDS)
