"""The schedule of an arm, from nnU-Net's plans."""

from collections.abc import Mapping
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from workflow_scripts.common.trainer_protocol import CurriculumTrainer
from workflow_scripts.trainers.curricula.schedules.patch_plan import PatchPlan
from workflow_scripts.trainers.curricula.schedules.planner import plan_schedule
from workflow_scripts.trainers.curricula.schedules.schedule import Schedule
from workflow_scripts.trainers.curricula.schedules.settings import (
    CurriculumSettings,
    TrainingLength,
)


def plan_arm(
    plans: dict[str, Any],
    configuration: str,
    trainer: type,
    parameters: Mapping[str, Any],
    length: TrainingLength,
) -> Schedule:
    """Return the schedule of an arm; nnU-Net's own trainers use the planned size throughout.

    Args:
        plans: content of nnU-Net's plans.
        configuration: nnU-Net configuration in the plans.
        trainer: trainer class of the arm.
        parameters: attributes that the arm sets on it.
        length: length of the training.

    Raises ValueError for parameters that do not fit the plan.
    """
    plan = PatchPlan.of(PlansManager(plans).get_configuration(configuration))
    return plan_schedule(plan, length, CurriculumSettings.of(trainer, parameters))


def has_schedule(trainer: type) -> bool:
    """Return whether trainers of a class follow a schedule, unlike nnU-Net's own."""
    return isinstance(trainer, CurriculumTrainer)  # the class already has the attributes
