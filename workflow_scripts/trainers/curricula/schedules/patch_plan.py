"""Input of every schedule: the planned patch and batch, and the network's poolings."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

LARGEST_2D_BATCH = 1024
"""Samples of a batch in 2D unless an arm sets `max_batch`. The planned batches of small images have
hundreds of samples (366 of 56×40 for MSD Task04), and thousands of the smallest patch would fit."""


@dataclass(frozen=True)
class PatchPlan:
    """A patch and batch that the network accepts, in 3D or 2D.

    Attributes:
        patch_size: voxels per axis, in nnU-Net's axis order; each a multiple of 2**pooling.
        pooling: stride-2 stages per axis.
        batch_size: samples.

    Raises:
        ValueError: a patch that the network cannot pool (the message names the nearest valid
            sizes), or an empty batch.
    """

    patch_size: tuple[int, ...]
    pooling: tuple[int, ...]
    batch_size: int

    def __post_init__(self) -> None:
        """Check that the network can pool the patch."""
        size = list(self.patch_size)
        if len(size) != len(self.pooling):
            raise ValueError(f"patch size {size} needs {len(self.pooling)} axes")
        for axis, (n, unit) in enumerate(zip(size, self.units, strict=True)):
            if n < 1 or n % unit:
                near = sorted({max(unit, n // unit * unit), (n // unit + 1) * unit})
                raise ValueError(
                    f"patch size {size}: {n} on axis {axis} is not a multiple of {unit}, which "
                    f"this plan's network requires; the nearest are {' and '.join(map(str, near))}"
                )
        if self.batch_size < 1:
            raise ValueError(f"a batch of {self.batch_size} is empty")

    @classmethod
    def from_strides(
        cls, patch_size: Sequence[int], strides: Sequence[Sequence[int] | int], batch_size: int
    ) -> Self:
        """Return the plan of a network with the strides of nnU-Net's plans.

        Also raises ValueError for strides other than 1 or 2.
        """
        size = tuple(int(n) for n in patch_size)
        return cls(size, count_poolings(strides), int(batch_size))

    @classmethod
    def of(cls, configuration: Any) -> Self:
        """Return the plan of a `ConfigurationManager` of nnU-Net."""
        return cls.from_strides(
            configuration.patch_size, configuration.pool_op_kernel_sizes, configuration.batch_size
        )

    @property
    def units(self) -> tuple[int, ...]:
        """Voxels per axis that the network reduces to one: every patch is a multiple of them."""
        return tuple(2**count for count in self.pooling)

    def limited(self, batch: int, max_batch: int | None) -> int:
        """Return a batch of at most `max_batch` samples, but no fewer than planned.

        None is no limit in 3D, and `LARGEST_2D_BATCH` in 2D.
        """
        if max_batch is None and len(self.patch_size) == 2:
            max_batch = LARGEST_2D_BATCH
        return batch if max_batch is None else max(self.batch_size, min(batch, max_batch))


def count_poolings(strides: Sequence[Sequence[int] | int]) -> tuple[int, ...]:
    """Return the number of stride-2 stages per axis from a plan's `arch_kwargs.strides`.

    A single number is the stride of all axes (three, if there are only such numbers). Raises
    ValueError for a stride other than 1 or 2.
    """
    axes = next((len(stride) for stride in strides if not isinstance(stride, int)), 3)
    listed = [(stride,) * axes if isinstance(stride, int) else stride for stride in strides]
    per_axis = [tuple(map(int, values)) for values in zip(*listed, strict=True)]
    for axis, values in enumerate(per_axis):
        unknown = set(values) - {1, 2}
        if unknown:
            raise ValueError(f"axis {axis} has a stride of {max(unknown)}; only 1 and 2 are known")
    return tuple(values.count(2) for values in per_axis)
