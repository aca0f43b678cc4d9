"""The label of each position of a transformed patch: a vote of the voxels around it."""

import pandas as pd
import torch
from torch.nn.functional import grid_sample

from .spatial_transform import resample_images

FULL_SCORE = 1000.0
"""Score of a voxel that is entirely one label; in half precision, near ties tie as in nnU-Net."""


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
    mixed = labels[several]
    lows, highs = low[several].view(spread), high[several].view(spread)
    two = ((mixed == lows) | (mixed == highs)).flatten(1).all(1)

    rows = several[two]
    if len(rows):
        result[rows] = _vote_of_two(mixed[two], grid[rows], lows[two], highs[two], outside)
    rows = several[~two]
    if len(rows):
        result[rows] = _vote_of_many(mixed[~two], grid[rows], outside, reaches[rows])
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
    resampled = resample_images((share * FULL_SCORE)[:, None], grid)[:, 0]
    return (resampled + FULL_SCORE * outside).half()


def _nearest(labels: torch.Tensor, grid: torch.Tensor, outside: int) -> torch.Tensor:
    shifted = (labels.float() - outside)[:, None]
    nearest = grid_sample(shifted, grid, mode="nearest", padding_mode="zeros", align_corners=False)
    return (nearest[:, 0] + outside).to(labels.dtype)
