"""InstanceNorm of a single voxel, for the smallest patches of the journal's curricula."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch


@contextlib.contextmanager
def allow_one_voxel() -> Iterator[None]:
    """Let InstanceNorm normalise a single voxel in training, within the block.

    The norm's output is then its bias, and no gradient passes below it: the smallest stage of
    arXiv 2510.23241 trains only biases in its bottleneck. The authors remove torch's check
    permanently, for every network of the process.
    """
    functional: Any = torch.nn.functional
    check = functional._verify_spatial_size
    functional._verify_spatial_size = lambda size: None
    try:
        yield
    finally:
        functional._verify_spatial_size = check
