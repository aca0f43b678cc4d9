"""Interface that the workflow requires of a trainer, beyond nnU-Net's own."""

from collections.abc import Mapping
from typing import Any, Literal, Protocol, runtime_checkable

from workflow_scripts.trainers.curricula.schedules.scale_factors import ScaleSpaceSettings
from workflow_scripts.trainers.curricula.schedules.schedule import Schedule

Phase = Literal["train", "val"]
"""Phase of an epoch: its training, or the validation after it."""


@runtime_checkable
class CurriculumTrainer(Protocol):
    """A trainer with a schedule of batches that can be stopped between any two steps.

    Attributes:
        stop_requested: if it is set, the trainer writes a checkpoint after the current step and
            raises `TrainingStopped`.
    """

    stop_requested: bool

    @property
    def iterations_resumed(self) -> int:
        """Iterations of its first epoch that a resumed training need not repeat."""

    @property
    def pseudo_dice_by_scale(self) -> Mapping[float, float]:
        """Pseudo Dice of the last epoch by scale factor; empty if there is only one size."""

    @classmethod
    def network_settings(cls, parameters: Mapping[str, Any]) -> ScaleSpaceSettings | None:
        """Return the scale-factor settings for an arm's parameters; None if there are none."""

    def schedule(self) -> Schedule:
        """Return the schedule of the whole training; raise ValueError for unsuitable settings."""

    def scale_of_step(self, phase: Phase) -> float | None:
        """Return the scale factor of the next step; None if there is only one size."""

    def save_checkpoint_within_epoch(self) -> None:
        """Write a checkpoint from which a training resumes at its next iteration."""


def mirrors(trainer: type, parameters: Mapping[str, Any]) -> bool:
    """Return whether an arm trains with mirroring, so that its predictions may use it too.

    Args:
        trainer: trainer class of the arm.
        parameters: attributes that the arm sets on it.
    """
    own = getattr(trainer, "mirror_axes", "all")
    return bool(parameters.get("mirror_axes", own) != "none")


def as_curriculum_trainer(trainer: object) -> CurriculumTrainer | None:
    """Return the trainer if it follows `CurriculumTrainer`; None for nnU-Net's own."""
    return trainer if isinstance(trainer, CurriculumTrainer) else None
