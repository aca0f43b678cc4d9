"""nnU-Net's mirroring, masks and targets of the loss, for all samples of a batch at once."""

from collections.abc import Callable
from copy import copy
from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import (
    DownsampleSegForDSTransform,
)
from batchgeneratorsv2.transforms.utils.nnunet_masking import MaskImageTransform
from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTransform
from batchgeneratorsv2.transforms.utils.seg_to_regions import ConvertSegmentationToRegionsTransform

from .batch import Batch, Draws


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
    result = t(image=batch.images.transpose(0, 1), segmentation=batch.target.transpose(0, 1))
    batch.target = result["segmentation"].transpose(0, 1)


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
    outputs = t(segmentation=labels.flatten(0, 1))["segmentation"]
    return [output.unflatten(0, channels) for output in outputs]


OTHERS: dict[type, Callable[[Batch, Any, Draws], None]] = {
    MirrorTransform: _mirror,
    MaskImageTransform: _by_voxel,
    RemoveLabelTransform: _by_voxel,
    ConvertSegmentationToRegionsTransform: _to_regions,
    DownsampleSegForDSTransform: _for_each_output,
}
"""For each of nnU-Net's transforms that always apply: the function that applies it to a batch."""
