"""Patch-size schedules as pure functions of the plan: no torch, no nnU-Net, no hidden state.

The trainers, the forecast, the figures and the tests all ask this module, so a schedule is defined
once. Sources: Fischer et al., "Progressive Growing of Patch Size", MICCAI 2024, section 2, and its
reference implementation, `nnUNetTrainer_PGPS.py` and `nnUNetTrainer_RPSS.py`.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

CURRICULA = ("constant", "progressive", "random")


@dataclass(frozen=True)
class Stage:
    """One training size: patch (voxels per axis, in nnU-Net's axis order) and batch (samples)."""

    patch_size: tuple[int, ...]
    batch_size: int

    @property
    def voxels(self) -> int:
        """Input voxels of one batch."""
        return self.batch_size * prod(self.patch_size)

    @property
    def label(self) -> str:
        """The patch size as it stands in every table, such as `40x56x40`."""
        return "x".join(map(str, self.patch_size))


def count_poolings(strides: Sequence[Sequence[int] | int]) -> tuple[int, ...]:
    """Return the number of stride-2 stages per axis from a plan's `arch_kwargs.strides`.

    Raises ValueError for a stride other than 1 or 2, which the schedules are not defined for.
    """
    per_axis = list(zip(*[_as_tuple(stride) for stride in strides], strict=True))
    for axis, values in enumerate(per_axis):
        unknown = set(values) - {1, 2}
        if unknown:
            raise ValueError(f"axis {axis} has a stride of {max(unknown)}; only 1 and 2 are known")
    return tuple(values.count(2) for values in per_axis)


def plan_stages(
    patch_size: Sequence[int], pooling: Sequence[int], batch_size: int, curriculum: str
) -> list[Stage]:
    """Return the distinct training sizes of a curriculum, smallest first; the last is the plan's.

    Args:
        patch_size: planned patch, voxels per axis.
        pooling: stride-2 stages per axis; every size is a multiple of 2**pooling.
        batch_size: planned batch.
        curriculum: `constant` (the plan's size alone), `progressive` (grown one axis at a time) or
            `random` (the progressive sizes, to be drawn from).

    Raises:
        ValueError: unknown curriculum, or a patch that 2**pooling does not divide.
    """
    planned = tuple(int(size) for size in patch_size)
    if curriculum not in CURRICULA:
        raise ValueError(f"unknown curriculum {curriculum!r}; known are {', '.join(CURRICULA)}")
    units = tuple(2 ** int(count) for count in pooling)
    if len(units) != len(planned):
        raise ValueError(f"patch size {planned} and poolings {tuple(pooling)} differ in length")
    for axis, (size, unit) in enumerate(zip(planned, units, strict=True)):
        if size < 1 or size % unit:
            raise ValueError(f"patch size {planned}: axis {axis} is not a multiple of {unit}")
    if curriculum == "constant":
        return [Stage(planned, batch_size)]
    return [Stage(size, batch_size) for size in _grow(planned, units)]


def _grow(planned: tuple[int, ...], units: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Grow the patch by one unit on one axis a stage, axes 1, 2, 0, 1, 2, 0, ... (PGPS, MICCAI).

    The smallest patch is one unit on every axis but two on axis 0: a bottleneck of a single voxel
    has no variance for InstanceNorm to divide by.
    """
    first = tuple(2 * unit if axis == 0 else unit for axis, unit in enumerate(units))
    current = [min(size, full) for size, full in zip(first, planned, strict=True)]
    sizes = [tuple(current)]
    turn = 1
    while tuple(current) != planned:
        axis = turn % len(planned)
        turn += 1
        if current[axis] < planned[axis]:
            current[axis] = min(current[axis] + units[axis], planned[axis])
            sizes.append(tuple(current))
    return sizes


def stage_at(epoch: int, epochs: int, number_of_stages: int) -> int:
    """Return the stage of an epoch: equal epochs a stage, the remainder goes to the last one.

    With fewer epochs than stages the stages are spread evenly, and the last epoch is always at the
    planned size.

    Raises ValueError for an epoch outside 0..epochs-1 or less than one stage.
    """
    if not 0 <= epoch < epochs:
        raise ValueError(f"epoch {epoch} is outside a training of {epochs} epochs")
    if number_of_stages < 1:
        raise ValueError(f"a schedule needs at least one stage, got {number_of_stages}")
    last = number_of_stages - 1
    if epochs >= number_of_stages:
        return min(last, epoch // (epochs // number_of_stages))
    if epochs == 1:
        return last
    return round(epoch * last / (epochs - 1))


@dataclass(frozen=True)
class Schedule:
    """Which stage every batch of a training belongs to: a pure function of the batch's number.

    Attributes:
        stages: the training sizes, smallest first.
        epochs, iterations_per_epoch: length of the whole training.
        seed: of the random draws; `None` grows with the epochs instead.
    """

    stages: tuple[Stage, ...]
    epochs: int
    iterations_per_epoch: int
    seed: int | None = None

    def stage_of_epoch(self, epoch: int) -> int | None:
        """Return the epoch's stage, or None where its batches differ."""
        if self.seed is None:
            return stage_at(epoch, self.epochs, len(self.stages))
        return None if len(self.stages) > 1 else 0

    def stage_of_iteration(self, iteration: int) -> int:
        """Return the stage of a global iteration (0 .. epochs * iterations_per_epoch - 1).

        Random draws are uniform over the stages and depend on (seed, iteration) alone, so a resumed
        training continues the very sequence. Workers prefetch past the end; their surplus batches
        are of the last epoch's kind and are never trained on.
        """
        if self.seed is None:
            epoch = min(iteration // self.iterations_per_epoch, self.epochs - 1)
            return stage_at(epoch, self.epochs, len(self.stages))
        return random.Random(f"{self.seed}/{iteration}").randrange(len(self.stages))


def _as_tuple(stride: Sequence[int] | int) -> tuple[int, ...]:
    return (int(stride),) * 3 if isinstance(stride, int) else tuple(int(s) for s in stride)
