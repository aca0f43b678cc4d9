"""FLOPs of nnU-Net's network, counted by torch on the meta device: no weights, no computation."""

import copy
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from workflow_scripts.trainers.curricula.networks.instance_norm import allow_one_voxel


class FlopTable:
    """Floating point operations of one training or validation step, by training size.

    If the network has a `scale_factor`, also by scale factor: `scale` is that of the step.

    A multiplication and an addition count as two operations. Only convolutions and matrix products
    count (as in `torch.utils.flop_counter`). A training step has a forward and a backward pass.
    """

    def __init__(self, network: torch.nn.Module, channels: int) -> None:
        """Take an (uncompiled) network on any device; `channels` is its number of inputs."""
        self._network: Any = copy.deepcopy(network).to("meta")
        self._channels = channels
        self.training_step = lru_cache(None)(self._training_step)
        self.validation_step = lru_cache(None)(self._validation_step)

    def _training_step(
        self, batch_size: int, patch_size: Sequence[int], scale: float | None = None
    ) -> int:
        self._set_scale(scale)
        self._network.train()
        # The first call may come from a validation, which disables gradients.
        with torch.enable_grad(), allow_one_voxel(), FlopCounterMode(display=False) as counter:
            outputs = self._network(self._input(batch_size, patch_size))
            outputs = outputs if isinstance(outputs, (list, tuple)) else [outputs]
            sum(output.sum() for output in outputs).backward()
        return int(counter.get_total_flops())

    def _validation_step(
        self, batch_size: int, patch_size: Sequence[int], scale: float | None = None
    ) -> int:
        self._set_scale(scale)
        self._network.eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            self._network(self._input(batch_size, patch_size))
        return int(counter.get_total_flops())

    def _set_scale(self, scale: float | None) -> None:
        if scale is not None:
            self._network.scale_factor = scale

    def _input(self, batch_size: int, patch_size: Sequence[int]) -> torch.Tensor:
        return torch.empty((batch_size, self._channels, *patch_size), device="meta")
