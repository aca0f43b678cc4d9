"""nnU-Net's transforms of intensities, for all samples of a batch at once.

Each changes a subset of the planes (one channel of one sample), with one or more parameters per
plane.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.helpers.scalar_type import RandomScalar
from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.intensity.contrast import ContrastTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
from torch.nn.functional import interpolate

from .batch import Batch, Draws
from .thin_blur import margin

EPS = 1e-7
"""Smallest range and standard deviation that `GammaTransform` divides by."""

LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}
"""Name of linear interpolation for a number of spatial axes."""


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
    values = (
        draws.scalars(kind, samples)[rows.numpy() // channels]
        if together
        else draws.scalars(kind, len(rows))
    )
    return _spread(torch.from_numpy(values).float(), batch)


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
    blurred, sigmas = planes[rows], None
    for axis in range(1, planes.ndim):
        if sigmas is None or not t.synchronize_axes:
            sigmas = _values(batch, rows, t.blur_sigma, t.synchronize_channels, draws)
        blurred = blur_axis(blurred, sigmas, axis)
    planes[rows] = blurred


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
    blurred = wide.narrow(axis, 0, size) * columns[0]
    for number in range(1, len(columns)):
        blurred.addcmul_(wide.narrow(axis, number, size), columns[number])
    return blurred


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
    chosen = planes[rows]
    low, high = _extremes(chosen)
    mean = _mean(chosen)
    chosen.sub_(mean).mul_(factors).add_(mean)
    planes[rows] = chosen.clamp_(low, high) if t.preserve_range else chosen


def _lower_resolution(
    batch: Batch, t: SimulateLowResolutionTransform, probability: float, draws: Draws
) -> None:
    rows = _choose(batch, probability, t.p_per_channel, draws)
    planes = batch.planes
    spatial = planes.shape[1:]
    axes: list[np.ndarray] = []
    for _ in spatial:
        if not axes or not t.synchronize_axes:
            scales = _values(batch, rows, t.scale, t.synchronize_channels, draws)
        axes.append(scales.flatten().cpu().numpy())
    for axis in t.ignore_axes or ():
        axes[axis] = np.ones(len(rows))
    sizes = np.rint(np.stack(axes, 1) * np.array(spatial)).astype(int)
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for row, size in zip(rows.tolist(), sizes.tolist(), strict=True):
        groups[tuple(size)].append(row)
    for size, members in groups.items():
        small = interpolate(planes[members][None], size, mode="nearest-exact")
        planes[members] = interpolate(small, spatial, mode=LINEAR[len(spatial)])[0]


def _gamma(batch: Batch, t: GammaTransform, probability: float, draws: Draws) -> None:
    rows = _choose(batch, probability, t.p_per_channel, draws)
    gammas = _values(batch, rows, t.gamma, t.synchronize_channels, draws)
    retained = _spread(torch.from_numpy(draws.happens(t.p_retain_stats, len(rows))), batch)
    inverted = _spread(torch.from_numpy(draws.happens(t.p_invert_image, len(rows))), batch)
    planes = batch.planes
    sign = 1 - 2 * inverted.float()
    chosen = planes[rows] * sign
    mean, deviation = _mean(chosen), _deviation(chosen)
    low, high = _extremes(chosen)
    extent = high - low
    chosen.sub_(low).div_(extent.clamp(min=EPS)).pow_(gammas).mul_(extent).add_(low)
    ratio = torch.where(retained, deviation / _deviation(chosen).clamp(min=EPS), 1)
    centre = _mean(chosen)
    chosen.sub_(centre).mul_(ratio).add_(torch.where(retained, mean, centre)).mul_(sign)
    planes[rows] = chosen


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
