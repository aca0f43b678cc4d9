"""Stages of the low-frequency curricula as pure functions of the plan: no torch, no nnU-Net.

EfficientTrain++ (Wang et al., arXiv 2405.08768) starts with the low frequencies of every image and
weak augmentation. In ten stages the frequencies grow from 96 of 224 to all of them, and the
augmentation's magnitude from 0 to 9. Here the fractions apply to the planned patch, in 3D or
2D, whose field of view stays. Files and lines below refer to the authors' repository,
github.com/LeapLabTHU/EfficientTrain, at commit 2b9011c.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import prod

from .patch_plan import PatchPlan
from .schedule import Stage, stage_at
from .settings import CurriculumSettings

LOW_FREQUENCY = {"low_frequency": True, "low_frequency_iterations": False}
"""For each curriculum: whether its epochs have equal computation; otherwise equal iterations."""

LOW, MIDDLE, HIGH, ALL = (Fraction(size, 224) for size in (96, 160, 192, 224))


@dataclass(frozen=True)
class FrequencySchedule:
    """A schedule that the authors trained.

    Attributes:
        fractions: fraction of the frequencies that each stage keeps.
        replays: iterations per loaded batch, by fraction; other fractions load a batch in every
            iteration.
    """

    fractions: Sequence[Fraction]
    replays: Mapping[Fraction, int] = field(default_factory=dict)


SCHEDULES = {
    # _ET_pp_main_res50.py:13, _ET_pp_wReplay_main_res50.py:21
    "resnet": FrequencySchedule([LOW] * 2 + [MIDDLE] * 4 + [ALL] * 4, {LOW: 4, MIDDLE: 2}),
    # _ET_pp_main_swinT.py:13, _ET_pp_wReplay_main_swinT.py:21; the same for CSWin
    "swin": FrequencySchedule([LOW] * 2 + [MIDDLE] * 4 + [ALL] * 4, {LOW: 2}),
    # _ET_pp_main_deitS.py:14, _ET_pp_wReplay_main_deitS.py:22
    "deit": FrequencySchedule(
        [LOW] * 2 + [MIDDLE] * 4 + [HIGH] * 2 + [ALL] * 2, {LOW: 4, MIDDLE: 2}
    ),
    # _ET_pp_main_convnextT.py:13; trained without replay
    "convnext": FrequencySchedule([MIDDLE] * 6 + [ALL] * 4),
}


def kept_size(planned: int, unit: int, fraction: Fraction) -> int:
    """Return the size on one axis that keeps about `fraction` of `planned` voxels.

    The size is a multiple of `unit`, rounded half up, and at least two units if the plan has them:
    InstanceNorm cannot normalise a bottleneck of one voxel on every axis.
    """
    whole = planned // unit
    rounded = int(fraction * whole + Fraction(1, 2))
    return unit * min(max(rounded, min(2, whole)), whole)


def choose_schedule(settings: CurriculumSettings) -> FrequencySchedule:
    """Return the named schedule, or the one with the listed fractions.

    Listed stages repeat batches as `resnet` does: four iterations per batch up to 96 of 224
    frequencies, two up to 160.

    Raises ValueError for fractions that are not in (0, 1] or do not end at 1.
    """
    if settings.frequency_fractions is None:
        return SCHEDULES[settings.frequency_schedule]
    listed = list(settings.frequency_fractions)
    try:
        fractions = [Fraction(str(value)) for value in listed]
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"frequency_fractions {listed} must all be numbers") from None
    if not fractions or not all(0 < fraction <= 1 for fraction in fractions):
        raise ValueError(f"frequency_fractions {listed} must all be above 0 and at most 1")
    if fractions[-1] != 1:
        raise ValueError(
            f"frequency_fractions {listed} end at {listed[-1]}: the last stage must keep all "
            "frequencies (1), as validation and prediction do"
        )
    replays = {f: 4 if f <= LOW else 2 for f in fractions if f <= MIDDLE}
    return FrequencySchedule(fractions, replays)


def plan_bands(
    plan: PatchPlan, settings: CurriculumSettings | None = None, *, replay: bool
) -> list[Stage]:
    """Return the stages of the low-frequency curricula; the last is the plan's.

    Every stage has the planned field of view and, unless large batches are wanted, the planned
    batch. Every size is a multiple of the plan's units. With `replay`, stages with few frequencies
    repeat samples.

    Raises ValueError for invalid settings.
    """
    settings = settings or CurriculumSettings()
    planned, units = plan.patch_size, plan.units
    chosen = choose_schedule(settings)
    last = len(chosen.fractions) - 1
    stages = []
    for number, fraction in enumerate(chosen.fractions):
        size = planned
        if settings.lowpass != "none":
            size = tuple(kept_size(n, u, fraction) for n, u in zip(planned, units, strict=True))
        batch = plan.batch_size
        if settings.large_batches_early:
            batch = plan.limited(batch * prod(planned) // prod(size), settings.max_batch)
        repeats = replay and size != planned
        stages.append(
            Stage(
                size,
                batch,
                field_of_view=None if size == planned else planned,
                augmentation=number / last if settings.augmentation_ramp and last else 1.0,
                replay=chosen.replays.get(fraction, 1) if repeats else 1,
            )
        )
    return stages


def spread(stages: int, epochs: int) -> tuple[int, ...]:
    """Return the epochs of each stage, spread evenly: epoch e has stage floor(stages * e / epochs).

    With fewer epochs than stages, some stages are left out, but never the last one (`stage_at`).
    """
    if epochs < stages:
        reached = [stage_at(epoch, epochs, stages) for epoch in range(epochs)]
    else:
        reached = [stages * epoch // epochs for epoch in range(epochs)]
    return tuple(reached.count(stage) for stage in range(stages))
