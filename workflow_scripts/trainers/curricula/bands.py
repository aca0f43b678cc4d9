"""Stages of the low-frequency curricula as pure functions of the plan: no torch, no nnU-Net.

EfficientTrain++ (Wang et al., arXiv 2405.08768) trains on the low frequencies of every image first,
and on weak augmentation: ten stages, of which the first two keep 96 of 224 frequencies, the next
four 160 and the last four all, while the augmentation's magnitude grows from 0 to 9. Here the
fractions are taken of a 3D patch, whose field of view stays as planned.
"""

from collections.abc import Sequence
from fractions import Fraction

from .schedules import Stage, stage_at

LOW_FREQUENCY = {"low_frequency": True, "low_frequency_iterations": False}
"""By name of a curriculum: whether its epochs compute the same; else they iterate the same."""

FRACTIONS = (*[Fraction(96, 224)] * 2, *[Fraction(160, 224)] * 4, *[Fraction(1)] * 4)
"""Of the frequencies that each stage keeps (ResNet-50, Swin and CSWin of EfficientTrain++)."""

REPLAYS = {Fraction(96, 224): 4, Fraction(160, 224): 2, Fraction(1): 1}
"""Iterations to each loaded batch, where there are more than the planned ones (same authors)."""


def kept_size(planned: int, unit: int, fraction: Fraction) -> int:
    """Return the size on one axis that keeps about `fraction` of `planned` voxels.

    A multiple of `unit`, rounded half up, of at least two units where the plan has them: with a
    bottleneck of one voxel on every axis InstanceNorm would have nothing to normalise.
    """
    whole = planned // unit
    rounded = int(fraction * whole + Fraction(1, 2))
    return unit * min(max(rounded, min(2, whole)), whole)


def plan_bands(
    patch_size: Sequence[int],
    pooling: Sequence[int],
    batch_size: int,
    *,
    replay: bool,
) -> list[Stage]:
    """Return the ten stages of the low-frequency curricula; the last is the plan's.

    Args:
        patch_size: planned patch, voxels per axis: the field of view at every stage.
        pooling: stride-2 stages per axis; every size is a multiple of 2**pooling.
        batch_size: planned batch, at every stage.
        replay: whether the stages of few frequencies repeat batches.

    Raises ValueError for a patch that 2**pooling does not divide.
    """
    planned = tuple(int(size) for size in patch_size)
    units = tuple(2 ** int(count) for count in pooling)
    for axis, (whole, unit) in enumerate(zip(planned, units, strict=True)):
        if whole < 1 or whole % unit:
            raise ValueError(f"patch size {planned}: axis {axis} is not a multiple of {unit}")
    stages = []
    for number, fraction in enumerate(FRACTIONS):
        size = tuple(kept_size(n, u, fraction) for n, u in zip(planned, units, strict=True))
        stages.append(
            Stage(
                size,
                batch_size,
                field_of_view=None if size == planned else planned,
                augmentation=number / (len(FRACTIONS) - 1),
                replay=REPLAYS[fraction] if replay and size != planned else 1,
            )
        )
    return stages


def spread(stages: int, epochs: int) -> tuple[int, ...]:
    """Return the epochs of each stage, spread evenly: epoch e is of floor(stages * e / epochs).

    With fewer epochs than stages some are left out, but never the last one (`stage_at`).
    """
    if epochs < stages:
        reached = [stage_at(epoch, epochs, stages) for epoch in range(epochs)]
    else:
        reached = [stages * epoch // epochs for epoch in range(epochs)]
    return tuple(reached.count(stage) for stage in range(stages))
