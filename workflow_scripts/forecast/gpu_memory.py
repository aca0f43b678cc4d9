"""GPU memory that a training needs, estimated from its plan. A GB is 2**30 bytes, as in nnU-Net."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from workflow_scripts.forecast.plans import Plan
from workflow_scripts.forecast.workload import StudyDesign, build_network, fit_arm
from workflow_scripts.trainers.curricula.networks.primus import is_primus
from workflow_scripts.trainers.curricula.schedules.settings import CurriculumSettings

REFERENCE = {
    2: {"PlainConvUNet": 85e6, "ResidualEncoderUNet": 135e6},
    3: {"PlainConvUNet": 560e6, "ResidualEncoderUNet": 680e6},
}
"""Values in all feature maps of a sample for which a batch of `REFERENCE_BATCH` needs
`REFERENCE_GB`, by axes (`UNet_reference_val_2d` and `_3d` of nnU-Net's planners)."""
REFERENCE_BATCH, REFERENCE_GB = {2: 12, 3: 2}, 8
GB = 2**30
STATES = {"sgd": 1, "adamw": 3, "primus": 2}
"""States that an optimiser stores per weight: SGD its momentum; AdamW two, three with AMSGrad."""
MADE = 4
"""Copies of the primary network's weights while a hypernetwork makes them: their change, the sum,
and the gradients of both."""


@dataclass(frozen=True)
class GpuMemory:
    """Estimated GPU memory of a training, in GB.

    Attributes:
        plan: nnU-Net's own estimate for the planned patch and batch; NaN for a transformer.
        replay: batches that a low-frequency arm keeps on the GPU.
        hypernetwork: weights, gradients and optimiser states beyond those of the plan's network.
    """

    plan: float
    replay: float
    hypernetwork: float

    @property
    def beyond_plan(self) -> float:
        """Memory that nnU-Net did not plan for."""
        return self.replay + self.hypernetwork

    @property
    def total(self) -> float:
        """The sum."""
        return self.plan + self.beyond_plan

    def __str__(self) -> str:
        """Return the total and its parts."""
        parts = {"the batches that it keeps": self.replay, "its hypernetwork": self.hypernetwork}
        more = "".join(f" + {size:.1f} for {what}" for what, size in parts.items() if size)
        return f"{self.total:.1f} GB of GPU memory ({self.plan:.1f} by nnU-Net's estimate{more})"


def estimate_memory(
    plan: Plan, trainer: Any, parameters: Mapping[str, Any], design: StudyDesign
) -> GpuMemory:
    """Return the estimated GPU memory of an arm.

    Not included: what the CUDA context takes, and gaps between tensors of various sizes.

    Args:
        plan: plan with the study's overrides.
        trainer: trainer class of the arm.
        parameters: attributes that the arm sets on the trainer.
        design: design of the study, with the training length of this arm.

    Raises UserError if the settings of the arm do not fit the plan.
    """
    _, schedule, settings = fit_arm(plan, trainer, parameters, design)
    manager = PlansManager(plan.plans)
    chosen = manager.get_configuration(design.configuration)
    hypernetwork = 0.0
    if settings and settings.rank:
        build = trainer.build_network_architecture
        network: Any = build_network(
            plan.plans, plan.dataset, design.configuration, build, settings
        )[0]
        weights = sum(weight.numel() for weight in network.parameters())
        primary = sum(weight.numel() for weight in network.primary.parameters())
        copies = 2 + STATES[parameters.get("optimizer_name", "sgd")]
        hypernetwork = 4 * (copies * (weights - primary) + MADE * primary) / GB
    channels = len(plan.dataset.get("channel_names", plan.dataset.get("modality", {})))
    labels = manager.get_label_manager(plan.dataset)
    # Labels are int16; regions, and the ignored label beside them, are one byte each.
    bytes_of_labels = 2
    if labels.has_regions:
        bytes_of_labels = len(labels.foreground_regions) + labels.has_ignore_label
    scales = 1 / np.cumprod(np.vstack(chosen.pool_op_kernel_sizes), axis=0)[:-1]
    bytes_per_voxel = 2 * channels + bytes_of_labels * float(scales.prod(axis=1).sum())

    replay = CurriculumSettings.of(trainer, parameters)
    kept = replay.replay_batches + (replay.replay == "mixed")
    voxels = max(
        (s.batch_size * math.prod(s.patch_size) for s in schedule.stages if s.replay > 1), default=0
    )
    return GpuMemory(
        plan=math.nan
        if is_primus(chosen)
        else _planned_memory(json.dumps([plan.plans, plan.dataset]), design.configuration),
        replay=kept * voxels * bytes_per_voxel / GB,
        hypernetwork=hypernetwork,
    )


@lru_cache
def _planned_memory(content: str, configuration: str) -> float:
    """Return nnU-Net's estimate for a plan (`static_estimate_VRAM_usage` of its planners).

    `content` contains plans and dataset as JSON.
    """
    plans, dataset = json.loads(content)
    manager = PlansManager(plans)
    chosen = manager.get_configuration(configuration)
    channels = determine_num_input_channels(manager, chosen, dataset)
    outputs = manager.get_label_manager(dataset).num_segmentation_heads
    kind = chosen.network_arch_class_name
    with torch.device("meta"):
        network = get_network_from_plans(
            kind,
            chosen.network_arch_init_kwargs,
            chosen.network_arch_init_kwargs_req_import,
            channels,
            outputs,
            allow_init=False,
        )
    values = network.compute_conv_feature_map_size(chosen.patch_size)
    axes = len(chosen.patch_size)
    references = REFERENCE[axes]
    reference = references.get(kind.rsplit(".", 1)[-1], references["PlainConvUNet"])
    return REFERENCE_GB * float(values) / reference * chosen.batch_size / REFERENCE_BATCH[axes]


def smallest_gpu(device: str) -> float | None:
    """Return the memory of the smallest GPU that torch sees, in GB; None if it sees none.

    `device` is the config's; for `cpu` the result is None.
    """
    if device == "cpu" or not torch.cuda.is_available():
        return None
    count = torch.cuda.device_count()
    return min(torch.cuda.get_device_properties(n).total_memory for n in range(count)) / GB


def check_memory(memory: Mapping[tuple[str, str], GpuMemory], available: float | None) -> list[str]:
    """Return the faults of trainings that do not fit into a GPU of this size, in GB.

    Only of those that need more than nnU-Net planned for; its own plans are its planner's business.
    """
    return [
        f"arm {arm}, {task}: needs about {need}, but the smallest GPU has {available:.1f} GB: "
        "lower planning.gpu_memory_target_gb, or the arm's rank or replay_batches"
        for (task, arm), need in memory.items()
        if available is not None and need.beyond_plan and need.total > available
    ]
