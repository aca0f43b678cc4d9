"""nnU-Net's Gaussian blur for patches thinner than its kernel."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.noise.gaussian_blur import (
    GaussianBlurTransform,
    _compute_kernel_size,
)
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform

TRUNCATE = 6.0
"""Kernel width in standard deviations, as in `blur_dimension` of batchgeneratorsv2."""


def margin(sigma: float) -> int:
    """Return the radius of the kernel in voxels; `sigma` is its standard deviation in voxels."""
    return int(_compute_kernel_size(sigma, truncate=TRUNCATE)) // 2


class ThinBlurTransform(GaussianBlurTransform):
    """A blur that reflects the image at its borders as often as the kernel requires.

    torch's padding reflects only once, and raises an error if an axis is not longer than the
    padding. In thick-slice data the smallest patches have two slices; nnU-Net's own never do.
    """

    def _benchmark_wrapper(self, img: torch.Tensor, sigma: float, dim_to_blur: int) -> torch.Tensor:
        axis, reach = dim_to_blur + 1, margin(sigma)
        size = img.shape[axis]
        if size > reach:
            return super()._benchmark_wrapper(img, sigma, dim_to_blur)
        places = torch.from_numpy(np.pad(np.arange(size), reach, mode="reflect"))
        wide = super()._benchmark_wrapper(img.index_select(axis, places), sigma, dim_to_blur)
        return wide.narrow(axis, reach, size)


def blur_thin(pipeline: ComposeTransforms, patch_size: Sequence[int]) -> ComposeTransforms:
    """Return nnU-Net's training transforms, changed in place so that thin patches can be blurred.

    Thick patches keep nnU-Net's own transform. `patch_size` is in voxels per axis.
    """
    for random in pipeline.transforms:
        found: Any = random.transform if isinstance(random, RandomTransform) else None
        if type(found) is GaussianBlurTransform and min(patch_size) <= margin(found.blur_sigma[1]):
            random.transform = ThinBlurTransform(
                found.blur_sigma,
                found.synchronize_channels,
                found.synchronize_axes,
                found.p_per_channel,
                benchmark=True,
            )
    return pipeline
