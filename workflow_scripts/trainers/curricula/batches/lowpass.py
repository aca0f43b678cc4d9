"""Low-pass and downsampling of patches with one small real matrix per axis.

Cropping the centre of a Fourier spectrum (EfficientTrain, Wang et al., ICCV 2023) is linear and
separable, and real if the lone Nyquist bin is dropped. So transform, crop and inverse transform of
an axis are one matrix (kept × planned), computed once in float64. A crop is then one small matrix
product per axis: the same operator as with the FFT, up to rounding, in a fraction of the time.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch.nn.functional import interpolate


def _fourier(positions: np.ndarray, planned: int, kept: int) -> np.ndarray:
    """Sum the Fourier series of frequencies |k| < kept / 2 at `positions`."""
    distances = positions[:, None] - np.arange(planned)
    frequencies = np.arange(1, (kept + 1) // 2)
    waves = np.cos(2 * np.pi / planned * frequencies * distances[..., None])
    return (1 + 2 * waves.sum(axis=-1)) / planned


def _cosine(positions: np.ndarray, planned: int, kept: int) -> np.ndarray:
    """Sum the first `kept` terms of the cosine series (DCT-II), which has no wrap-around."""
    frequencies = np.pi / planned * np.arange(1, kept)
    there = np.cos((positions[:, None] + 0.5) * frequencies)
    here = np.cos((np.arange(planned)[:, None] + 0.5) * frequencies)
    return (1 + 2 * there @ here.T) / planned


def _lanczos(positions: np.ndarray, planned: int, kept: int) -> np.ndarray:
    """Resample with antialiasing by Lanczos' kernel of three lobes, cut off at the borders."""
    distances = (np.arange(planned) - positions[:, None]) * kept / planned
    weights = np.where(np.abs(distances) < 3, np.sinc(distances) * np.sinc(distances / 3), 0)
    return weights / weights.sum(axis=1, keepdims=True)


LOWPASSES: dict[str, Callable[[np.ndarray, int, int], np.ndarray]] = {
    "fft": _fourier,
    "dct": _cosine,
    "resize": _lanczos,
}


def lowpass_matrix(planned: int, kept: int, method: str, half_voxel_shift: bool) -> np.ndarray:
    """Return the matrix (kept × planned, float64) that reduces an axis to its low frequencies.

    Args:
        planned: voxels of the axis before the reduction.
        kept: voxels of the axis after it.
        method: one of `LOWPASSES`: `fft`, `dct` or `resize`.
        half_voxel_shift: sample at the centres of the larger voxels, (n + 1/2) planned / kept -
            1/2, as for labels; False samples at n planned / kept, as a plain crop of the spectrum
            does.

    Each row sums to 1, so intensities keep their scale. Raises ValueError for an unknown method or
    a `kept` outside 1 .. `planned`.
    """
    if method not in LOWPASSES:
        raise ValueError(f"unknown lowpass {method!r}; known are {', '.join(LOWPASSES)}")
    if not 1 <= kept <= planned:
        raise ValueError(f"cannot reduce {planned} voxels to {kept}")
    if kept == planned:
        return np.eye(planned)
    ratio = planned / kept
    positions = ratio * np.arange(kept) + (ratio - 1) / 2 * half_voxel_shift
    return LOWPASSES[method](positions, planned, kept)


@lru_cache
def _matrix_on(
    planned: int, kept: int, method: str, half_voxel_shift: bool, device: torch.device
) -> torch.Tensor:
    matrix = lowpass_matrix(planned, kept, method, half_voxel_shift)
    return torch.from_numpy(matrix).to(device, torch.float32)


def reduce_image(
    data: torch.Tensor, size: Sequence[int], method: str = "fft", half_voxel_shift: bool = True
) -> torch.Tensor:
    """Return images (batch, channel, *spatial) reduced to `size` voxels by a low-pass, float32.

    Axes that already have the wanted size are left alone. See `lowpass_matrix` for the options.
    """
    if data.shape[2:] == tuple(size):
        return data
    with torch.autocast(data.device.type, enabled=False):
        data = data.float()
        for axis, kept in enumerate(size, start=2):
            planned = data.shape[axis]
            if kept != planned:
                matrix = _matrix_on(planned, kept, method, half_voxel_shift, data.device)
                data = torch.tensordot(data, matrix, ([axis], [1])).movedim(-1, axis)
    return data.contiguous()


def reduce_labels(target: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Return labels (batch, channel, *spatial) of any type at `size`, by nearest neighbour."""
    if target.shape[2:] == tuple(size):
        return target
    return interpolate(target.float(), tuple(size), mode="nearest-exact").to(target.dtype)
