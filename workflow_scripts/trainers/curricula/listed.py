"""Stages that a user lists, checked against the plan's network."""

from collections.abc import Mapping, Sequence

from .schedules import Stage


def listed_stages(
    listed: Sequence[Mapping], pooling: Sequence[int], epochs: int
) -> tuple[list[Stage], tuple[int, ...]]:
    """Return the stages that a user listed and the epochs of each.

    Args:
        listed: mappings with `patch_size` (voxels per axis), `batch_size` and `epochs`, in the
            order of training.
        pooling: stride-2 stages per axis of the network.
        epochs: of the whole training.

    Raises:
        ValueError: a size that the network cannot pool, with the nearest ones that it can, or
            epochs that do not add up.
    """
    if not listed:
        raise ValueError("the list of stages is empty")
    units = [2 ** int(count) for count in pooling]
    for number, entry in enumerate(listed, start=1):
        size = [int(n) for n in entry["patch_size"]]
        if len(size) != len(units):
            raise ValueError(f"stage {number}: patch size {size} needs {len(units)} axes")
        for axis, (n, unit) in enumerate(zip(size, units, strict=True)):
            if n < 1 or n % unit:
                near = sorted({max(unit, n // unit * unit), (n // unit + 1) * unit})
                raise ValueError(
                    f"stage {number}: patch size {size}: {n} on axis {axis} is not a multiple of "
                    f"{unit}, as this plan's network needs; the nearest are "
                    f"{' and '.join(map(str, near))}"
                )
        if entry["batch_size"] < 1 or entry["epochs"] < 1:
            raise ValueError(f"stage {number}: batch_size and epochs must be at least 1")
    each = tuple(int(entry["epochs"]) for entry in listed)
    if sum(each) != epochs:
        raise ValueError(f"the epochs of the stages add up to {sum(each)}, but epochs is {epochs}")
    stages = [Stage(tuple(int(n) for n in e["patch_size"]), int(e["batch_size"])) for e in listed]
    return stages, each
