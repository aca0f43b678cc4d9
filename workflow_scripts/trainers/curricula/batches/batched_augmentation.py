"""nnU-Net's training augmentation for all samples of a batch at once.

nnU-Net augments sample by sample. For a small patch, nearly all of the time is then call overhead:
about 2 ms, regardless of its size. Here every transform of nnU-Net's pipeline is a few operations
on the whole batch, with parameters drawn for each sample from nnU-Net's own distributions. The
results have nnU-Net's distribution, but not the same values, because the order of draws differs.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.pseudo2d import (
    Convert2DTo3DTransform,
    Convert3DTo2DTransform,
)
from batchgeneratorsv2.transforms.utils.random import RandomTransform

from .batch import Batch, Draws
from .intensities import INTENSITIES
from .label_votes import resample_labels
from .spatial_transform import (
    Placement,
    check_spatial,
    draw_placement,
    resample_images,
    sampling_grid,
)
from .targets import OTHERS

CHUNK = 2**22
"""Maximum number of voxels augmented together, to limit a worker's memory."""

Apply = Callable[[Batch, Draws], None]


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
        check_spatial(self._spatial)
        self._others = [_batched(transform) for transform in kept[1:]]

    def place(self, samples: int, draws: Draws) -> Placement:
        """Draw the spatial transform of every sample."""
        return draw_placement(self._spatial, samples, draws)

    def augment(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        wide_images: torch.Tensor,
        wide_labels: torch.Tensor,
        placement: Placement,
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
        placement: Placement,
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
        placement: Placement,
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
