"""Count the computation of a training from its plan, without data, weights or training."""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from workflow_scripts.common.arm_schedule import has_schedule, plan_arm
from workflow_scripts.common.errors import UserError
from workflow_scripts.common.trainer_protocol import mirrors
from workflow_scripts.forecast.plans import Plan
from workflow_scripts.records.flop_counter import FlopTable
from workflow_scripts.study.settings import TrainingSettings
from workflow_scripts.trainers.curricula.networks.primus import is_primus
from workflow_scripts.trainers.curricula.patch_curriculum import LARGEST_BATCHED_PLAN
from workflow_scripts.trainers.curricula.schedules.patch_plan import PatchPlan
from workflow_scripts.trainers.curricula.schedules.planner import iterations_of_stages
from workflow_scripts.trainers.curricula.schedules.scale_factors import ScaleSpaceSettings
from workflow_scripts.trainers.curricula.schedules.schedule import Schedule, Stage


@dataclass(frozen=True)
class StageWork:
    """Loading and computation of the training iterations of one stage.

    Attributes:
        iterations: total over all trainings.
        tflop: operations per iteration.
        loads: batches loaded per iteration; fewer than 1 if batches are repeated.
        samples: samples per loaded batch.
        megavoxels: megavoxels of the images in a loaded batch, summed over channels.
        together: whether the samples are augmented together instead of one by one.
    """

    iterations: float
    tflop: float
    loads: float
    samples: int
    megavoxels: float
    together: bool


@dataclass(frozen=True)
class Work:
    """Computation of one or more trainings of an arm; a TFLOP is 1e12 operations.

    Attributes:
        stages: number of stages of the schedule.
        epochs: total over all trainings, like everything below.
        iterations, val_iterations, predictions: steps of training, steps of the validation after
            each epoch, and forward passes of the final validation.
        train_tflop, val_tflop, final_tflop: operations of these three.
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


@dataclass(frozen=True)
class StudyDesign:
    """Settings that all trainings of a study share.

    Attributes:
        configuration: nnU-Net configuration in the plans.
        training: length and seed.
        folds: numbers of the folds, out of nnU-Net's five.
        mirroring: whether the final validation uses mirroring.
        seeds: number of trainings per fold.
    """

    configuration: str
    training: TrainingSettings
    folds: Sequence[int]
    mirroring: bool
    seeds: int = 1

    @property
    def trainings(self) -> int:
        """Number of trainings per task and arm."""
        return len(self.folds) * self.seeds


def count_work(
    plan: Plan, trainer: Any, parameters: Mapping[str, Any], design: StudyDesign
) -> Work:
    """Return the work of an arm on all folds and seeds of a task.

    Args:
        plan: plan with the study's overrides.
        trainer: trainer class of the arm; nnU-Net's own trainers use the planned size.
        parameters: attributes that the arm sets on the trainer.
        design: design of the study, with the training length of this arm.

    Raises UserError if the settings of the arm do not fit the plan.
    """
    training, trainings = design.training, design.trainings
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
    at_once, planned_too = (
        parameters.get(name, getattr(trainer, name, False))
        for name in ("batched_augmentation", "batched_planned_patch")
    )
    batched_plan = planned_too and math.prod(planned.patch_size) <= LARGEST_BATCHED_PLAN
    channels = len(plan.dataset["channel_names"])
    of_stages = [
        StageWork(
            iterations=n * trainings,
            tflop=flop[stage] / 1e12,
            loads=1 / stage.replay,
            samples=stage.batch_size,
            megavoxels=channels * stage.batch_size * math.prod(stage.loaded_size) / 1e6,
            together=at_once and (batched_plan or stage.loaded_size != planned.patch_size),
        )
        for n, stage in zip(each, schedule.stages, strict=True)
    ]
    val_iterations = training.epochs * training.validation_iterations_per_epoch
    cases = design.seeds * sum(plan.validation_cases(fold) for fold in design.folds)
    predictions = windows(median_shape(plan.plans, design.configuration), planned.patch_size)
    predictions *= cases
    if design.mirroring and mirrors(trainer, parameters):
        predictions *= 2 ** len(planned.patch_size)
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
    configuration, length = design.configuration, design.training.length
    try:
        planned = PatchPlan.of(PlansManager(plan.plans).get_configuration(configuration))
        schedule = plan_arm(plan.plans, configuration, trainer, parameters, length)
        network = trainer.network_settings(parameters) if has_schedule(trainer) else None
        if is_primus(PlansManager(plan.plans).get_configuration(configuration)):
            check_primus(trainer, parameters, network)
    except ValueError as error:
        raise UserError(f"{plan.plans['dataset_name']}, {trainer.__name__}: {error}") from None
    return planned, schedule, network


def check_primus(
    trainer: Any, parameters: Mapping[str, Any], network: ScaleSpaceSettings | None
) -> None:
    """Raise ValueError if an arm cannot train the transformer."""
    if network:
        raise ValueError("it rescales the stages of a U-Net, which planning.network does not have")
    if not has_schedule(trainer):
        raise ValueError("planning.network needs one of the workflow's own trainers")
    if "optimizer_name" in parameters:
        raise ValueError("the network of planning.network has its own optimiser")


def training_flop(table: FlopTable, stages: Iterable[Stage]) -> dict[Stage, float]:
    """Return the operations of a training step of each stage.

    The operations of a convolutional network are proportional to the voxels, because every patch
    size is a whole number at every depth of the network. So only the smallest and the largest
    stage are counted. If their operations per voxel differ, every stage is counted.
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
    """Return the mean operations of a step over equally likely scale factors."""
    each = [count(size.batch_size, size.patch_size, scale) for scale in scales]
    return sum(each) / len(each)


@lru_cache
def _flop_table(
    content: str, configuration: str, build: Any, settings: ScaleSpaceSettings | None = None
) -> FlopTable:
    """Return the operation counts of the network that a trainer builds from a plan.

    `content` contains plans and dataset as JSON; `settings` are passed on to `build` if given.
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
        configuration: nnU-Net configuration in the plans.
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


def median_shape(plans: dict[str, Any], configuration: str) -> tuple[float, ...]:
    """Return the median shape of the preprocessed cases: three axes, also of a 2D plan.

    A 2D plan lists two axes; the number of slices stays that of the images.
    """
    planned = plans["configurations"][configuration]["median_image_size_in_voxels"]
    if len(planned) == 2:
        return (plans["original_median_shape_after_transp"][0], *planned)
    return tuple(planned)


def windows(shape: Sequence[float], patch_size: Sequence[int], step: float = 0.5) -> int:
    """Return the number of windows of nnU-Net's sliding-window prediction of an image.

    As in nnU-Net's `compute_steps_for_sliding_window`, an axis shorter than the patch is padded. A
    2D patch slides over every slice of the image's first axis.
    """
    slices, within = shape[: -len(patch_size)], shape[-len(patch_size) :]
    each = [
        math.ceil((max(size, patch) - patch) / (patch * step)) + 1
        for size, patch in zip(within, patch_size, strict=True)
    ]
    return math.prod(each) * math.ceil(math.prod(slices))
