"""Trainer settings of an arm that determine its schedule, and the length of the training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

AUTHORS_PLUS_SEED = 2
"""The literal in the authors' `nnUNetTrainer_PGPS+.py` (line 48)."""


@dataclass(frozen=True)
class TrainerSettings:
    """Related attributes of a trainer; each field has the attribute's name."""

    @classmethod
    def of(cls, trainer: object, parameters: Mapping[str, Any] | None = None) -> Self:
        """Return the settings of a trainer or its class, overridden by an arm's parameters.

        nnU-Net's own trainers lack the attributes, so the defaults apply.
        """
        names = [field.name for field in fields(cls)]
        found = {name: getattr(trainer, name) for name in names if hasattr(trainer, name)}
        return cls(
            **found | {name: value for name, value in (parameters or {}).items() if name in names}
        )


@dataclass(frozen=True)
class CurriculumSettings(TrainerSettings):
    """Attributes of a trainer that determine its schedule.

    Attributes:
        curriculum: name in `schedule.CURRICULA` or `frequency_stages.LOW_FREQUENCY`, or `listed`
            for the stages of `stage_list`.
        pacing: how epochs are shared among the stages, one of `schedule.PACINGS`.
        stage_list: the user's own stages, as `custom_stages.listed_stages` takes them.
        plus_seed: batch at the planned patch from which `progressive_plus` counts backwards. None
            means the planned batch, which is the maximum.
        max_batch: largest batch of small patches, if batches grow; None means no limit.
        one_voxel_bottleneck: False skips the stage of the journal's curricula whose bottleneck is a
            single voxel.
        replay_batches: number of batches that `low_frequency` keeps to repeat; 0 repeats none.
        replay: which iterations see repeated samples, one of `frequency_stages.REPLAY_MODES`.
        frequency_schedule: frequencies kept in each stage of the low-frequency curricula, by name
            in `frequency_stages.SCHEDULES`.
        frequency_fractions: the same as the user's own list (numbers or strings such as `3/7`), in
            stages of equal length; None uses `frequency_schedule`.
        lowpass: how frequencies are cropped; `none` keeps all, so that only the augmentation grows.
        augmentation_ramp: False augments every stage at full strength, so that only the frequencies
            grow.
        large_batches_early: enlarge the batches of smaller patches up to the voxels of the planned
            batch, and at most to `max_batch`.
    """

    curriculum: str = "constant"
    pacing: str = "equal"
    stage_list: Sequence[Mapping[str, Any]] | None = None
    plus_seed: int | None = AUTHORS_PLUS_SEED
    max_batch: int | None = None
    one_voxel_bottleneck: bool = True
    replay_batches: int = 64
    replay: str = "whole"
    frequency_schedule: str = "resnet"
    frequency_fractions: Sequence[float | str] | None = None
    lowpass: str = "fft"
    augmentation_ramp: bool = True
    large_batches_early: bool = False


@dataclass(frozen=True)
class TrainingLength:
    """Length of a whole training.

    Attributes:
        epochs: number of epochs.
        iterations_per_epoch: training steps per epoch.
        seed: seed of drawn sizes (`random`); other curricula ignore it.
    """

    epochs: int
    iterations_per_epoch: int
    seed: int | None = None
