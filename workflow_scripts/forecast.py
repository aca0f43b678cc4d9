"""What a training will have to compute, counted from its plan: no data, no weights, no training."""

import csv
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from flops import FlopTable
from log import UserError
from trainers.curricula.planning import (
    SCHEDULE_ATTRIBUTES,
    iterations_of_stages,
    plan_schedule,
)
from trainers.curricula.scales import (
    NETWORK_ATTRIBUTES,
    SCALE_ATTRIBUTES,
    check_hypernetwork,
    plan_scales,
)
from trainers.curricula.schedules import Stage, count_poolings

MIRRORINGS = 8
"""Predictions of a window with test-time mirroring along three axes."""

FOLDS = 5


@dataclass(frozen=True)
class Plan:
    """nnU-Net's plans of a task with what `dataset.json` adds; `source` says whose they are."""

    source: str
    plans: dict[str, Any]
    dataset: dict[str, Any]


@dataclass(frozen=True)
class Work:
    """What the training of one fold, or several, computes; a TFLOP is 1e12 operations.

    Attributes:
        stages: of the schedule.
        epochs: of all folds together, as all that follows.
        iterations, val_iterations, predictions: steps of training, of the validation after each
            epoch, and forward passes of the final validation.
        train_tflop, val_tflop, final_tflop: operations of each.
    """

    stages: int
    epochs: int
    iterations: int
    val_iterations: int
    predictions: int
    train_tflop: float
    val_tflop: float
    final_tflop: float

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
    with table.open(newline="") as file:
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
    """Read nnU-Net's own plans and the `dataset.json` beside them."""
    dataset = json.loads((path.parent / "dataset.json").read_text())
    return Plan("planned here", json.loads(path.read_text()), dataset)


def count_work(
    plan: Plan,
    configuration: str,
    trainer: Any,
    parameters: Mapping[str, Any],
    training: Mapping[str, Any],
    folds: Sequence[int],
    mirroring: bool,
) -> Work:
    """Return the work of an arm on the folds of a task.

    Args:
        plan: with the study's overrides.
        configuration: of the plans.
        trainer: class of the arm; one without a `curriculum` trains at the planned size.
        parameters: attributes that the arm sets on it.
        training: the config's `training` section.
        folds: numbers of nnU-Net's five folds.
        mirroring: of the final validation.

    Raises UserError where the arm's settings do not fit the plan.
    """
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    chosen = PlansManager(plan.plans).get_configuration(configuration)
    planned = Stage(tuple(int(n) for n in chosen.patch_size), int(chosen.batch_size))
    settings = _set_attributes(trainer, parameters, SCHEDULE_ATTRIBUTES)
    is_rescaled = hasattr(trainer, "scale_of_step")
    names = (*SCALE_ATTRIBUTES, *NETWORK_ATTRIBUTES) if is_rescaled else ()
    network = _set_attributes(trainer, parameters, names)
    try:
        scales = plan_scales(*(network[n] for n in SCALE_ATTRIBUTES)) if is_rescaled else None
        if is_rescaled:
            check_hypernetwork(*(network[n] for n in NETWORK_ATTRIBUTES))
        schedule = plan_schedule(
            planned.patch_size,
            count_poolings(chosen.pool_op_kernel_sizes),
            planned.batch_size,
            training["epochs"],
            training["iterations_per_epoch"],
            training["seed"],
            **settings,
        )
    except ValueError as error:
        raise UserError(f"{plan.plans['dataset_name']}, {trainer.__name__}: {error}") from None
    content = json.dumps([plan.plans, plan.dataset])
    table = _flop_table(
        content, configuration, trainer.build_network_architecture, tuple(network.items())
    )
    if scales:
        flop = {planned: _mean_flop(table.training_step, planned, scales.trained)}
        validated = [
            scales.of_validation(i) for i in range(training["validation_iterations_per_epoch"])
        ]
        val = _mean_flop(table.validation_step, planned, validated)
        final = _mean_flop(table.validation_step, planned, [scales.final])
    else:
        flop = training_flop(table, schedule.stages)
        final = val = table.validation_step(planned.batch_size, planned.patch_size)
    each = iterations_of_stages(schedule)
    train = sum(n * flop[stage] for n, stage in zip(each, schedule.stages, strict=True))
    val_iterations = training["epochs"] * training["validation_iterations_per_epoch"]
    cases = sum(cases_of_fold(plan.dataset["numTraining"], fold) for fold in folds)
    predictions = windows(chosen.median_image_size_in_voxels, planned.patch_size) * cases
    predictions *= MIRRORINGS if mirroring else 1
    return Work(
        stages=len(schedule.stages),
        epochs=training["epochs"] * len(folds),
        iterations=round(sum(each)) * len(folds),
        val_iterations=val_iterations * len(folds),
        predictions=predictions,
        train_tflop=train * len(folds) / 1e12,
        val_tflop=val * val_iterations * len(folds) / 1e12,
        final_tflop=final / planned.batch_size * predictions / 1e12,
    )


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


def _set_attributes(
    trainer: Any, parameters: Mapping[str, Any], names: Iterable[str]
) -> dict[str, Any]:
    """Return those attributes that a trainer of this class has with an arm's parameters."""
    return {
        name: parameters.get(name, getattr(trainer, name))
        for name in names
        if name in parameters or hasattr(trainer, name)
    }


def _mean_flop(count: Callable[..., int], size: Stage, scales: Sequence[float]) -> float:
    """Return the mean operations of a step over scale factors that are as likely."""
    each = [count(size.batch_size, size.patch_size, scale) for scale in scales]
    return sum(each) / len(each)


@lru_cache
def _flop_table(
    content: str, configuration: str, build: Any, options: tuple[tuple[str, Any], ...] = ()
) -> FlopTable:
    """Count the network that a trainer builds of a plan.

    `content` is plans and dataset as JSON; `options` are further arguments of `build`.
    """
    import torch
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans, dataset = json.loads(content)
    manager = PlansManager(plans)
    chosen = manager.get_configuration(configuration)
    channels = determine_num_input_channels(manager, chosen, dataset)
    heads = manager.get_label_manager(dataset).num_segmentation_heads
    with torch.device("meta"):
        network = build(manager, chosen, channels, heads, True, **dict(options))
    return FlopTable(network, channels)


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
