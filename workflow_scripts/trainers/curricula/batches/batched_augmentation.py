"""nnU-Net's training augmentation for all samples of a batch at once.

nnU-Net augments sample by sample. For a small patch, nearly all of the time is then call overhead:
about 2 ms, regardless of its size. Here every transform of nnU-Net's pipeline is a few operations
on the whole batch, with parameters drawn for each sample from nnU-Net's own distributions. The
results have nnU-Net's distribution, but not the same values, because the order of draws differs.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from batchgeneratorsv2.helpers.scalar_type import RandomScalar
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.intensity.contrast import BGContrast, ContrastTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import (
    DownsampleSegForDSTransform,
)
from batchgeneratorsv2.transforms.utils.nnunet_masking import MaskImageTransform
from batchgeneratorsv2.transforms.utils.pseudo2d import (
    Convert2DTo3DTransform,
    Convert3DTo2DTransform,
)
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTransform
from batchgeneratorsv2.transforms.utils.seg_to_regions import ConvertSegmentationToRegionsTransform
from scipy.spatial.transform import Rotation
from torch.nn.functional import grid_sample, interpolate

from .thin_blur import margin

FULL_SCORE = 1000.0
"""Score of a voxel that is entirely one label; in half precision, near ties tie as in nnU-Net."""

CHUNK = 2**22
"""Maximum number of voxels augmented together, to limit a worker's memory."""

EPS = 1e-7
"""Smallest range and standard deviation that `GammaTransform` divides by."""


@dataclass(frozen=True)
class Draws:
    """Random numbers of one batch, a function of its seed alone.

    Attributes:
        numbers: generator of the parameters, on the CPU.
        noise: generator of the Gaussian noise, on the device of the images.
    """

    numbers: np.random.Generator
    noise: torch.Generator

    @classmethod
    def of(cls, seed: Sequence[int], device: torch.device | str = "cpu") -> "Draws":
        """Return the draws for a seed (non-negative integers)."""
        numbers = np.random.default_rng(seed)
        noise = torch.Generator(device).manual_seed(int(numbers.integers(2**62)))
        return cls(numbers, noise)

    def happens(self, probability: float, *shape: int) -> np.ndarray:
        """Return, for each element, whether an event with this probability happens."""
        return self.numbers.random(shape) < probability

    def scalars(self, kind: RandomScalar, count: int) -> np.ndarray:
        """Return `count` independent draws, each distributed like one of `sample_scalar`."""
        if isinstance(kind, BGContrast):
            low, high = kind.contrast_range
            below = self.happens(0.5, count) & (low < 1)
            return np.where(
                below,
                self.numbers.uniform(min(low, 1), 1, count),
                self.numbers.uniform(max(low, 1), high, count),
            )
        if isinstance(kind, int | float):
            return np.full(count, float(kind))
        low, high = kind
        return self.numbers.uniform(low, high, count)


class BatchedAugmentation:
    """nnU-Net's training transforms, applied to a batch.

    Use it in two steps. `place` draws which samples are rotated or scaled, so that only these are
    cropped with a margin. `augment` does the rest.
    """

    def __init__(self, pipeline: ComposeTransforms) -> None:
        """Take the transforms and their ranges from nnU-Net's pipeline.

        Raises NotImplementedError, naming the transform, for one that nnU-Net's default trainer
        does not use in a single training (such as those of the cascade).
        """
        transforms = list(pipeline.transforms)
        self._dummy_2d = isinstance(transforms[0], Convert3DTo2DTransform)
        kept = [
            transform
            for transform in transforms
            if not isinstance(transform, Convert3DTo2DTransform | Convert2DTo3DTransform)
        ]
        self._spatial = kept[0]
        _check_spatial(self._spatial)
        self._others = [_batched(transform) for transform in kept[1:]]

    def place(self, samples: int, draws: Draws) -> "Placement":
        """Draw the spatial transform of every sample."""
        transform, axes = self._spatial, len(self._spatial.patch_size)
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

    def augment(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        wide_images: torch.Tensor,
        wide_labels: torch.Tensor,
        placement: "Placement",
        draws: Draws,
    ) -> tuple[torch.Tensor, Any]:
        """Return augmented images and their targets, as nnU-Net's loader collates them.

        Args:
            images: (batch, channel, *patch), float32; changed in place.
            labels: (batch, channel, *patch), int16; -1 is outside the image. Changed in place.
            wide_images: the samples that `placement` moves, cropped with a margin:
                (moved, channel, *initial patch).
            wide_labels: their labels, of the same shape.
            placement: result of `place` for this batch.
            draws: the same as for `place`.
        """
        together = max(1, CHUNK // images[0].numel())
        targets = []
        for start in range(0, len(images), together):
            here = slice(start, start + together)
            part, there = placement.part(here)
            whole = images[here], labels[here], wide_images[there], wide_labels[there]
            targets.append(self._augment_some(*whole, part, draws))
        if isinstance(targets[0], list):
            return images, [torch.cat(outputs) for outputs in zip(*targets, strict=True)]
        return images, torch.cat(targets)

    def _augment_some(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        wide_images: torch.Tensor,
        wide_labels: torch.Tensor,
        placement: "Placement",
        draws: Draws,
    ) -> Any:
        """Augment all samples at once: change images in place, return targets."""
        if len(placement.moved):
            moved = torch.from_numpy(placement.moved).to(images.device)
            patch = images.shape[2:]
            images[moved] = self._move(wide_images, resample_images, placement, patch)
            labels[moved] = self._move(wide_labels, self._resample_labels, placement, patch)
        batch = Batch(images, labels)
        for apply in self._others:
            apply(batch, draws)
        return batch.target

    def _move(
        self,
        wide: torch.Tensor,
        resample: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        placement: "Placement",
        patch: Sequence[int],
    ) -> torch.Tensor:
        """Resample (moved, channel, *initial patch) at the positions of the transformed patch."""
        if not self._dummy_2d:
            return resample(wide, sampling_grid(placement.affines, patch, wide.shape[2:]))
        channels = wide.shape[1:3]
        grid = sampling_grid(placement.affines, patch[1:], wide.shape[3:])
        return resample(wide.flatten(1, 2), grid).unflatten(1, channels)

    def _resample_labels(self, labels: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
        return resample_labels(labels, grid, int(self._spatial.padding_value_seg))


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


class Batch:
    """Images (batch, channel, *spatial) and labels on their way through the transforms.

    `target` is the input of the loss: the labels, or a list of them for deep supervision.
    """

    def __init__(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        """Start from cropped images and labels."""
        self.images = images
        self.target: Any = labels

    @property
    def planes(self) -> torch.Tensor:
        """View of the images as (batch · channel, *spatial); intensities change per channel."""
        return self.images.view(-1, *self.images.shape[2:])


Apply = Callable[[Batch, Draws], None]


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


def resample_labels(labels: torch.Tensor, grid: torch.Tensor, outside: int) -> torch.Tensor:
    """Return the label with the largest weight at each position of the grid, as in nnU-Net.

    The weights are linear interpolations of each label's indicator. A tie goes to the nearest
    voxel's label if it is among the tied ones, else to the lowest
    (`SpatialTransform._apply_to_segmentation`).

    Args:
        labels: (samples, channel, *spatial), int16.
        grid: (samples, *patch, axes).
        outside: the label outside the image.
    """
    grid = grid.to(labels.device)
    channels = labels.shape[1]
    result = torch.empty(
        (*labels.shape[:2], *grid.shape[1:-1]), dtype=labels.dtype, device=labels.device
    )
    bound = 1 - 1 / torch.tensor(labels.shape[:1:-1], device=grid.device)
    reaches = (grid.abs().flatten(1, -2).amax(1) > bound).any(1)
    for channel in range(channels):
        result[:, channel] = _vote(labels[:, channel], grid, outside, reaches)
    return result


def _vote(
    labels: torch.Tensor, grid: torch.Tensor, outside: int, reaches: torch.Tensor
) -> torch.Tensor:
    """Resample one channel like `resample_labels`; `reaches` marks samples that read from outside.

    Most small patches contain one or two labels and do not need `_vote_of_many`.
    """
    spread = (-1, *[1] * (labels.ndim - 1))
    low, high = torch.aminmax(labels.flatten(1), dim=1)
    low = torch.where(reaches, low.clamp(max=outside), low)
    result = low.view(spread).expand(-1, *grid.shape[1:-1]).clone()
    several = (low < high).nonzero()[:, 0]
    if not len(several):
        return result
    found = labels[several]
    lows, highs = low[several].view(spread), high[several].view(spread)
    two = ((found == lows) | (found == highs)).flatten(1).all(1)

    rows = several[two]
    if len(rows):
        result[rows] = _vote_of_two(found[two], grid[rows], lows[two], highs[two], outside)
    rows = several[~two]
    if len(rows):
        result[rows] = _vote_of_many(found[~two], grid[rows], outside, reaches[rows])
    return result


def _vote_of_two(
    labels: torch.Tensor, grid: torch.Tensor, low: torch.Tensor, high: torch.Tensor, outside: int
) -> torch.Tensor:
    """Vote like `_vote` on samples with two labels each: one score decides."""
    score = _scores(labels, high, grid)
    result = torch.where(score > FULL_SCORE / 2, high, low)
    tied = score == FULL_SCORE / 2
    rows = tied.flatten(1).any(1).nonzero()[:, 0]
    if len(rows):
        nearest = _nearest(labels[rows], grid[rows], outside)
        result[rows] = torch.where(tied[rows], nearest, result[rows])
    return result


def _vote_of_many(
    labels: torch.Tensor, grid: torch.Tensor, outside: int, reaches: torch.Tensor
) -> torch.Tensor:
    """Vote like `_vote` on samples with any number of labels."""
    nearest = _nearest(labels, grid, outside)
    best = torch.full(nearest.shape, -torch.inf, dtype=torch.float16, device=labels.device)
    of_nearest = best.clone()
    result = nearest.clone()
    values = pd.unique(labels.cpu().numpy().ravel())  # takes a third of the time of torch.unique
    for value in sorted({*values.tolist(), outside}):
        present = (labels == value).flatten(1).any(1)
        if value == outside:
            present |= reaches
        rows = present.nonzero()[:, 0]
        score = _scores(labels[rows], value, grid[rows], value == outside)
        former, beside = best[rows], nearest[rows] == value
        better = score > former
        result[rows] = torch.where(better, value, result[rows])
        best[rows] = torch.where(better, score, former)
        of_nearest[rows] = torch.where(beside, score, of_nearest[rows])
    return torch.where(of_nearest == best, nearest, result)


def _scores(
    labels: torch.Tensor, value: torch.Tensor | int, grid: torch.Tensor, outside: bool = False
) -> torch.Tensor:
    """Return a label's share of each position, from 0 to `FULL_SCORE`.

    With `outside`, it is the label of everything outside the image.
    """
    share = (labels == value).float() - float(outside)
    found = resample_images((share * FULL_SCORE)[:, None], grid)[:, 0]
    return (found + FULL_SCORE * outside).half()


def _nearest(labels: torch.Tensor, grid: torch.Tensor, outside: int) -> torch.Tensor:
    shifted = (labels.float() - outside)[:, None]
    found = grid_sample(shifted, grid, mode="nearest", padding_mode="zeros", align_corners=False)
    return (found[:, 0] + outside).to(labels.dtype)


def _check_spatial(transform: BasicTransform) -> None:
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


def _batched(transform: BasicTransform) -> Apply:
    """Return a function that applies one of nnU-Net's transforms to a batch.

    It can be pickled, for workers that are spawned.
    """
    probability, inner = 1.0, transform
    if isinstance(transform, RandomTransform):
        probability, inner = transform.apply_probability, transform.transform
    for kind, change in INTENSITIES.items():
        if isinstance(inner, kind):
            return partial(_apply, change, inner, probability)
    if probability == 1:
        for kind, apply in OTHERS.items():
            if isinstance(inner, kind):
                return partial(_apply, apply, inner)
    raise NotImplementedError(f"no batched form of {transform!r}")


def _apply(function: Callable[..., None], *arguments: Any) -> None:
    """Call a function of a batch, further arguments, and the draws."""
    *options, batch, draws = arguments
    function(batch, *options, draws)


# --- Intensities: each changes a subset of the planes, with one or more parameters per plane


def _choose(batch: Batch, probability: float, per_channel: float, draws: Draws) -> torch.Tensor:
    """Draw which planes a transform changes: per sample, then per channel."""
    samples, channels = batch.images.shape[:2]
    chosen = draws.happens(probability, samples, 1) & draws.happens(per_channel, samples, channels)
    return torch.from_numpy(np.flatnonzero(chosen))


def _values(
    batch: Batch, rows: torch.Tensor, kind: RandomScalar, together: bool, draws: Draws
) -> torch.Tensor:
    """Draw one parameter per chosen plane, shared by a sample's channels if `together`."""
    samples, channels = batch.images.shape[:2]
    found = (
        draws.scalars(kind, samples)[rows.numpy() // channels]
        if together
        else draws.scalars(kind, len(rows))
    )
    return _spread(torch.from_numpy(found).float(), batch)


def _spread(values: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Reshape one value per plane so that it broadcasts over planes."""
    return values.to(batch.images.device).view(-1, *[1] * (batch.images.ndim - 2))


def _add_noise(batch: Batch, t: GaussianNoiseTransform, probability: float, draws: Draws) -> None:
    rows = _choose(batch, probability, t.p_per_channel, draws)
    sigmas = _values(batch, rows, t.noise_variance, t.synchronize_channels, draws)
    planes = batch.planes
    shape = (len(rows), *planes.shape[1:])
    noise = torch.randn(shape, generator=draws.noise, device=planes.device)
    planes.index_add_(0, rows.to(planes.device), noise.mul_(sigmas))


def _blur(batch: Batch, t: GaussianBlurTransform, probability: float, draws: Draws) -> None:
    rows = _choose(batch, probability, t.p_per_channel, draws)
    if not len(rows):
        return
    planes = batch.planes
    found, one = planes[rows], None
    for axis in range(1, planes.ndim):
        if one is None or not t.synchronize_axes:
            one = _values(batch, rows, t.blur_sigma, t.synchronize_channels, draws)
        found = blur_axis(found, one, axis)
    planes[rows] = found


def blur_axis(planes: torch.Tensor, sigmas: torch.Tensor, axis: int) -> torch.Tensor:
    """Blur one axis of planes (count, *spatial), each with its own standard deviation in voxels.

    Kernel and reflection at the borders match batchgeneratorsv2's `blur_dimension`. Thin axes are
    reflected as often as the kernel requires (see `thin_blur`).
    """
    size = planes.shape[axis]
    reaches = torch.tensor([margin(float(sigma)) for sigma in sigmas.flatten()])
    reach = int(reaches.max())
    offsets = torch.arange(-reach, reach + 1)
    weights = torch.exp(-0.5 * (offsets / sigmas.cpu().view(-1, 1)) ** 2)
    weights *= offsets.abs() <= reaches[:, None]
    weights /= weights.sum(1, keepdim=True)
    places = torch.from_numpy(np.pad(np.arange(size), reach, mode="reflect"))
    wide = planes.index_select(axis, places.to(planes.device))
    columns = weights.to(planes.device).T.reshape(len(offsets), *sigmas.shape)
    found = wide.narrow(axis, 0, size) * columns[0]
    for number in range(1, len(columns)):
        found.addcmul_(wide.narrow(axis, number, size), columns[number])
    return found


def _brighten(
    batch: Batch, t: MultiplicativeBrightnessTransform, probability: float, draws: Draws
) -> None:
    rows = _choose(batch, probability, t.p_per_channel, draws)
    factors = _values(batch, rows, t.multiplier_range, t.synchronize_channels, draws)
    batch.planes[rows] *= factors


def _contrast(batch: Batch, t: ContrastTransform, probability: float, draws: Draws) -> None:
    rows = _choose(batch, probability, t.p_per_channel, draws)
    factors = _values(batch, rows, t.contrast_range, t.synchronize_channels, draws)
    planes = batch.planes
    found = planes[rows]
    low, high = _extremes(found)
    mean = _mean(found)
    found.sub_(mean).mul_(factors).add_(mean)
    planes[rows] = found.clamp_(low, high) if t.preserve_range else found


def _lower_resolution(
    batch: Batch, t: SimulateLowResolutionTransform, probability: float, draws: Draws
) -> None:
    rows = _choose(batch, probability, t.p_per_channel, draws)
    planes = batch.planes
    spatial = planes.shape[1:]
    axes: list[np.ndarray] = []
    for _ in spatial:
        if not axes or not t.synchronize_axes:
            found = _values(batch, rows, t.scale, t.synchronize_channels, draws)
        axes.append(found.flatten().cpu().numpy())
    for axis in t.ignore_axes or ():
        axes[axis] = np.ones(len(rows))
    sizes = np.rint(np.stack(axes, 1) * np.array(spatial)).astype(int)
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for row, size in zip(rows.tolist(), sizes.tolist(), strict=True):
        groups[tuple(size)].append(row)
    for size, members in groups.items():
        small = interpolate(planes[members][None], size, mode="nearest-exact")
        mode = "bilinear" if len(spatial) == 2 else "trilinear"
        planes[members] = interpolate(small, spatial, mode=mode)[0]


def _gamma(batch: Batch, t: GammaTransform, probability: float, draws: Draws) -> None:
    rows = _choose(batch, probability, t.p_per_channel, draws)
    gammas = _values(batch, rows, t.gamma, t.synchronize_channels, draws)
    retained = _spread(torch.from_numpy(draws.happens(t.p_retain_stats, len(rows))), batch)
    inverted = _spread(torch.from_numpy(draws.happens(t.p_invert_image, len(rows))), batch)
    planes = batch.planes
    sign = 1 - 2 * inverted.float()
    found = planes[rows] * sign
    mean, deviation = _mean(found), _deviation(found)
    low, high = _extremes(found)
    extent = high - low
    found.sub_(low).div_(extent.clamp(min=EPS)).pow_(gammas).mul_(extent).add_(low)
    ratio = torch.where(retained, deviation / _deviation(found).clamp(min=EPS), 1)
    centre = _mean(found)
    found.sub_(centre).mul_(ratio).add_(torch.where(retained, mean, centre)).mul_(sign)
    planes[rows] = found


def _mean(planes: torch.Tensor) -> torch.Tensor:
    """Return the mean of each plane, in a shape that broadcasts over it."""
    return planes.mean(tuple(range(1, planes.ndim)), keepdim=True)


def _deviation(planes: torch.Tensor) -> torch.Tensor:
    """Return each plane's standard deviation (with Bessel's correction); much faster than `std`."""
    flat = planes.flatten(1)
    squares = (flat - flat.mean(1, keepdim=True)).square_().sum(1)
    return (squares / (flat.shape[1] - 1)).sqrt_().view(-1, *[1] * (planes.ndim - 1))


def _extremes(planes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the minimum and maximum of each plane."""
    shape = (-1, *[1] * (planes.ndim - 1))
    low, high = torch.aminmax(planes.flatten(1), dim=1)
    return low.view(shape), high.view(shape)


INTENSITIES: dict[type, Callable[[Batch, Any, float, Draws], None]] = {
    GaussianNoiseTransform: _add_noise,
    GaussianBlurTransform: _blur,
    MultiplicativeBrightnessTransform: _brighten,
    ContrastTransform: _contrast,
    SimulateLowResolutionTransform: _lower_resolution,
    GammaTransform: _gamma,
}
"""For each of nnU-Net's transforms: the function that applies it to a batch with a probability."""


# --- Mirroring, masks and targets


def _mirror(batch: Batch, t: MirrorTransform, draws: Draws) -> None:
    flips = draws.happens(0.5, len(batch.images), len(t.allowed_axes))
    for pattern in np.unique(flips, axis=0):
        axes = [axis + 2 for axis, flip in zip(t.allowed_axes, pattern, strict=True) if flip]
        rows = torch.from_numpy(np.flatnonzero((flips == pattern).all(1)))
        if axes:
            batch.images[rows] = batch.images[rows].flip(axes)
            batch.target[rows] = batch.target[rows].flip(axes)


def _by_voxel(batch: Batch, t: BasicTransform, draws: Draws) -> None:
    """Apply a voxelwise transform, for which the batch is just another axis.

    Images are changed in place.
    """
    found = t(image=batch.images.transpose(0, 1), segmentation=batch.target.transpose(0, 1))
    batch.target = found["segmentation"].transpose(0, 1)


def _to_regions(batch: Batch, t: ConvertSegmentationToRegionsTransform, draws: Draws) -> None:
    """Convert labels to regions on their device; nnU-Net's transform has its regions on the CPU."""
    there = copy(t)
    there.regions = [region.to(batch.target.device) for region in t.regions]
    _by_voxel(batch, there, draws)


def _for_each_output(batch: Batch, t: DownsampleSegForDSTransform, draws: Draws) -> None:
    batch.target = downsample_targets(t, batch.target)


def downsample_targets(t: DownsampleSegForDSTransform, labels: torch.Tensor) -> list[torch.Tensor]:
    """Return the target of every deep-supervision output for a whole batch of labels."""
    channels = labels.shape[:2]
    found = t(segmentation=labels.flatten(0, 1))["segmentation"]
    return [one.unflatten(0, channels) for one in found]


OTHERS: dict[type, Callable[[Batch, Any, Draws], None]] = {
    MirrorTransform: _mirror,
    MaskImageTransform: _by_voxel,
    RemoveLabelTransform: _by_voxel,
    ConvertSegmentationToRegionsTransform: _to_regions,
    DownsampleSegForDSTransform: _for_each_output,
}
"""For each of nnU-Net's transforms that always apply: the function that applies it to a batch."""
