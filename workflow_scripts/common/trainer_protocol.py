"""What the workflow needs from a trainer beyond nnU-Net's own interface."""

from collections.abc import Mapping
from typing import Any, Literal, Protocol, runtime_checkable

from workflow_scripts.trainers.curricula.schedules.scale_factors import ScaleSpaceSettings
from workflow_scripts.trainers.curricula.schedules.schedule import Schedule

Phase = Literal["train", "val"]
"""Of an epoch: its training, or the validation after it."""


@runtime_checkable
class CurriculumTrainer(Protocol):
    """A trainer with a schedule of batches, which can be stopped between any two steps.

    Attributes:
        stop_requested: set it, and after the present step the trainer writes a checkpoint and
            raises `TrainingStopped`.
    """

    stop_requested: bool

    @property
    def iterations_resumed(self) -> int:
        """Training iterations of its first epoch that a resumed training need not repeat."""

    @property
    def pseudo_dice_by_scale(self) -> Mapping[float, float]:
        """Pseudo Dice of the last epoch by scale factor; empty where there is only one size."""

    @classmethod
    def network_settings(cls, parameters: Mapping[str, Any]) -> ScaleSpaceSettings | None:
        """Return the settings of the scale factors for an arm's parameters, if it has any."""

    def schedule(self) -> Schedule:
        """Return the schedule of the whole training; ValueError if its settings do not fit."""

    def scale_of_step(self, phase: Phase) -> float | None:
        """Return the scale factor of the next step; None where there is only one size."""

    def save_checkpoint_within_epoch(self) -> None:
        """Write a checkpoint that a training resumes from at its next iteration."""


def mirrors(trainer: type, parameters: Mapping[str, Any]) -> bool:
    """Return whether an arm trains with mirroring, so that its predictions may use it too.

    Args:
        trainer: class of the arm.
        parameters: attributes that the arm sets on it.
    """
    own = getattr(trainer, "mirror_axes", "all")
    return bool(parameters.get("mirror_axes", own) != "none")


def as_curriculum_trainer(trainer: object) -> CurriculumTrainer | None:
    """Return the trainer if it follows `CurriculumTrainer`; None for nnU-Net's own."""
    return trainer if isinstance(trainer, CurriculumTrainer) else None
