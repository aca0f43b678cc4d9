"""Rotation and scaling of the samples of a batch, in two or three dimensions.

Positions and matrices are in the axis order of the arrays.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from scipy.spatial.transform import Rotation
from torch.nn.functional import grid_sample

from .batch import Draws


@dataclass(frozen=True)
class Placement:
    """Which samples of a batch are rotated or scaled, and how.

    Attributes:
        moved: their indices in the batch, in ascending order.
        affines: for each of them, the matrix (axes × axes) from positions in the augmented patch
            to positions in the image, in voxels from the centre.
    """

    moved: np.ndarray
    affines: np.ndarray

    def part(self, samples: slice) -> tuple["Placement", slice]:
        """Return the placement of some samples, and their slice of `moved`."""
        first, last = np.searchsorted(self.moved, (samples.start, samples.stop))
        there = slice(int(first), int(last))
        return Placement(self.moved[there] - samples.start, self.affines[there]), there


def draw_placement(transform: SpatialTransform, samples: int, draws: Draws) -> Placement:
    """Draw the spatial transform of every sample, with nnU-Net's probabilities and ranges."""
    axes = len(transform.patch_size)
    rotated = draws.happens(transform.p_rotation, samples)
    scaled = draws.happens(transform.p_scaling, samples)
    moved = np.flatnonzero(rotated | scaled)
    count = len(moved)
    angles = draws.scalars(transform.rotation, count * axes).reshape(count, axes)
    angles *= draws.happens(transform.p_rot_per_axis, count, axes)
    angles *= rotated[moved, None]
    scales = draws.scalars(transform.scaling, count * axes).reshape(count, axes)
    together = draws.happens(transform.p_synchronize_scaling_across_axes, count)
    scales[together] = scales[together, :1]
    scales[~scaled[moved]] = 1
    return Placement(moved, affine_matrices(angles, scales))


def affine_matrices(angles: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Return rotation times scaling of each sample, like nnU-Net's `create_affine_matrix_*`.

    Args:
        angles: (samples, axes), radians; in 2D only the last one is used.
        scales: (samples, axes).
    """
    if angles.shape[1] == 3:
        rotations = Rotation.from_euler("xyz", angles).as_matrix() if len(angles) else angles
        return rotations.reshape(-1, 3, 3) * scales[:, None]
    cos, sin = np.cos(angles[:, -1]), np.sin(angles[:, -1])
    rotations = np.stack([cos, -sin, sin, cos], axis=-1).reshape(-1, 2, 2)
    return rotations * scales[:, None]


def sampling_grid(
    affines: np.ndarray, patch: Sequence[int], initial: Sequence[int]
) -> torch.Tensor:
    """Return, for `grid_sample`, the position in the initial patch of each voxel of the patch.

    Shape (samples, *patch, axes), in `grid_sample`'s axis order and unit.
    """
    space = [torch.linspace((1 - size) / 2, (size - 1) / 2, size) for size in patch]
    centred = torch.stack(torch.meshgrid(space, indexing="ij"), -1)
    # One matrix converts voxels to grid_sample's unit (half the initial patch), axes reversed.
    matrices = torch.from_numpy(affines / (np.array(initial)[:, None] / 2)).float().flip(1)
    grid = centred.flatten(0, -2) @ matrices.transpose(1, 2)
    return grid.unflatten(1, tuple(patch))


def resample_images(images: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    """Return images (samples, channel, *spatial) resampled at a grid, zero outside."""
    return grid_sample(
        images, grid.to(images.device), mode="bilinear", padding_mode="zeros", align_corners=False
    )


def check_spatial(transform: BasicTransform) -> None:
    """Raise NotImplementedError for a transform that is not nnU-Net's rotation and scaling."""
    if (
        not isinstance(transform, SpatialTransform)
        or transform.p_elastic_deform
        or transform.random_crop
        or (transform.mode_image, transform.mode_seg) != ("bilinear", "bilinear")
        or transform.padding_mode_image != "zeros"
        or transform.border_mode_seg != "constant"
        or transform.seg_tiebreak != "nearest"
        or transform.align_corners
    ):
        raise NotImplementedError(f"no batched form of {transform!r}")
