"""The schedule of a trainer on a plan, as a table, before anything is trained."""

import json
from collections.abc import Sequence
from math import prod
from pathlib import Path

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from ..schedules.patch_plan import PatchPlan
from ..schedules.planner import iterations_of_stages, plan_schedule
from ..schedules.settings import CurriculumSettings, TrainingLength
from .environment import read_parameters
from .trainers import ARMS, CLASSES, FromEnvironment

EPOCHS = 1000
ITERATIONS = 250
"""Length of nnU-Net's training."""


def describe_schedule(plans: Path, configuration: str, arm: str) -> str:
    """Return the schedule as a table in Markdown, with the parameters of the environment.

    Memory is voxels × samples of a batch, relative to the planned batch.

    Args:
        plans: nnU-Net's file of plans.
        configuration: one of its configurations.
        arm: an arm's name or a trainer's.

    Raises:
        RuntimeError: an unknown configuration.
        ValueError: an unknown arm, or parameters that do not fit the plan.
    """
    trainer = _trainer(arm)
    manager = PlansManager(json.loads(plans.read_text(encoding="utf-8")))
    plan = PatchPlan.of(manager.get_configuration(configuration))
    settings = CurriculumSettings.of(trainer, read_parameters(trainer))
    listed = settings.curriculum == "listed" and settings.stage_list
    epochs = sum(stage["epochs"] for stage in listed) if listed else trainer.length or EPOCHS
    length = TrainingLength(epochs, ITERATIONS, trainer.batch_seed)
    schedule = plan_schedule(plan, length, settings)
    planned = plan.batch_size * prod(plan.patch_size)
    each = schedule.epochs_of_stages if schedule.seed is None else None
    rows = [["stage", "patch size", "batch size", "epochs", "iterations", "memory"]]
    for number, (stage, iterations) in enumerate(
        zip(schedule.stages, iterations_of_stages(schedule), strict=True)
    ):
        size = stage.label.replace("x", " × ")
        of_stage = each[number] if each else "drawn"
        cells = (number + 1, size, stage.batch_size, of_stage, f"{iterations:.0f}")
        rows.append([*map(str, cells), f"{stage.voxels / planned:.2f}"])
    return _table(rows)


def _trainer(arm: str) -> type[FromEnvironment]:
    found = {name: CLASSES[kind.__name__] for name, kind in ARMS.items()} | CLASSES
    if arm not in found:
        raise ValueError(f"unknown arm {arm!r}; known are {', '.join(ARMS)}, and their trainers")
    return found[arm]


def _table(rows: Sequence[Sequence[str]]) -> str:
    header, *others = rows
    lines = [header, ["---:"] * len(header), *others]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
