"""Patch sizes and batches of the curricula, derived from the planned ones; see `schedule`."""

from collections.abc import Sequence
from itertools import pairwise
from math import prod

from .patch_plan import PatchPlan


def grow_in_turn(plan: PatchPlan) -> list[tuple[int, ...]]:
    """Grow one axis by one unit per stage, in the order 1, 2, 0, 1, 2, 0, ... (PGPS, MICCAI).

    In 2D, which the authors do not train, the order is 1, 0, 1, 0, ...
    The smallest patch is one unit on every axis, except two on axis 0: a bottleneck of a single
    voxel has no variance for InstanceNorm to divide by.
    """
    planned, units = plan.patch_size, plan.units
    current = list(_smallest(plan, two_voxels=True))
    sizes = [tuple(current)]
    turn = 1
    while tuple(current) != planned:
        axis = turn % len(planned)
        turn += 1
        if current[axis] < planned[axis]:
            current[axis] += units[axis]
            sizes.append(tuple(current))
    return sizes


def grow_shortest(plan: PatchPlan, one_voxel_bottleneck: bool) -> list[tuple[int, ...]]:
    """Grow the axis that one more unit leaves shortest, ties to the first (PGPS, journal)."""
    planned, units = plan.patch_size, plan.units
    current = list(_smallest(plan, two_voxels=not one_voxel_bottleneck))
    sizes = [tuple(current)]
    while tuple(current) != planned:
        growing = [axis for axis, size in enumerate(current) if size < planned[axis]]
        axis = min(growing, key=lambda axis: current[axis] + units[axis])
        current[axis] += units[axis]
        sizes.append(tuple(current))
    return sizes


def _smallest(plan: PatchPlan, two_voxels: bool) -> tuple[int, ...]:
    """Return one unit on every axis; with `two_voxels`, two on axis 0 if the plan has room."""
    first, *others = plan.units
    return (min(plan.patch_size[0], first * (1 + two_voxels)), *others)


def plus_batches(sizes: Sequence[tuple[int, ...]], planned: int, seed: int) -> list[int]:
    """Return the batches of PGPS+: each smaller size uses the volume it saves, floored."""
    batches = [seed]
    for larger, smaller in pairwise(reversed(sizes)):
        batches.append(batches[-1] * prod(larger) // prod(smaller))
    return [max(batch, planned) for batch in reversed(batches)]
