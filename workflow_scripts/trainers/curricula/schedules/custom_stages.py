"""Stages that a user lists, checked against the plan's network."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from .patch_plan import PatchPlan
from .schedule import Stage


def listed_stages(
    plan: PatchPlan, listed: Sequence[Mapping[str, Any]], epochs: int
) -> tuple[list[Stage], tuple[int, ...]]:
    """Return the stages that a user listed and their epochs.

    Args:
        plan: its network must be able to pool the stages.
        listed: mappings with `patch_size` (voxels per axis), `batch_size` and `epochs`, in the
            order of training.
        epochs: number of epochs of the whole training.

    Raises:
        ValueError: a size that the network cannot pool (the message names the nearest valid
            ones), or epochs that do not add up.
    """
    if not listed:
        raise ValueError("the list of stages is empty")
    stages = []
    for number, entry in enumerate(listed, start=1):
        size, batch = tuple(int(n) for n in entry["patch_size"]), int(entry["batch_size"])
        if batch < 1 or entry["epochs"] < 1:
            raise ValueError(f"stage {number}: batch_size and epochs must be at least 1")
        try:
            replace(plan, patch_size=size, batch_size=batch)
        except ValueError as error:
            raise ValueError(f"stage {number}: {error}") from None
        stages.append(Stage(size, batch))
    each = tuple(int(entry["epochs"]) for entry in listed)
    if sum(each) != epochs:
        raise ValueError(f"the epochs of the stages add up to {sum(each)}, but epochs is {epochs}")
    return stages, each
