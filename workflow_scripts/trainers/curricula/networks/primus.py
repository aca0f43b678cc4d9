"""nnU-Net's transformer Primus for patches of several sizes.

Source: Wald et al., "Primus: Enforcing Attention Usage for 3D Medical Image Segmentation"
(arXiv 2503.01835), as in nnU-Net 2.8.1's `primus_trainers.py`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from dynamic_network_architectures.architectures.primus import Primus
from dynamic_network_architectures.building_blocks.eva import Eva
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch.nn.functional import interpolate

PATCH_EMBEDDING = (8, 8, 8)
"""Voxels per axis of a token."""
REGULARISATION = {"drop_path_rate": 0.2, "scale_attn_inner": True, "init_values": 0.1}
"""What all of nnU-Net's Primus trainers set."""


class GrowingEva(Eva):
    """Primus's encoder, whose positions follow the grid of tokens.

    Attributes:
        planned_grid: tokens per axis for which the absolute embedding was made.
        grid: those of the next forward pass.
    """

    planned_grid: tuple[int, ...]
    grid: tuple[int, ...]

    def _pos_embed(self, x: torch.Tensor) -> Any:
        """Add the absolute embedding; also return the rotary one.

        On another grid than the planned one, the absolute embedding is resampled, and the rotary
        one is that of a network made for that grid: distances stay distances in voxels.
        """
        if self.grid == self.planned_grid:
            return super()._pos_embed(x)
        planned = self.pos_embed.transpose(1, 2).unflatten(2, self.planned_grid)
        resampled = interpolate(planned, self.grid, mode="trilinear").flatten(2).transpose(1, 2)
        former = self.rope.ref_feat_shape
        self.rope.ref_feat_shape = self.grid
        rotary = self.rope._get_pos_embed_values(self.grid, self.rope.pos_embed.device)
        self.rope.ref_feat_shape = former
        return self.pos_drop(x + resampled), rotary, None


class GrowingPrimus(Primus):
    """Primus that takes patches of any multiple of `PATCH_EMBEDDING`; stock at the planned patch.

    Its weights are those of nnU-Net's Primus of the planned patch.
    """

    def __init__(
        self, input_channels: int, num_classes: int, patch_size: Sequence[int], **size: int
    ) -> None:
        """Take the planned patch in voxels, and `embed_dim`, `eva_depth` and `eva_numheads`."""
        super().__init__(
            input_channels,
            patch_embed_size=PATCH_EMBEDDING,
            num_classes=num_classes,
            input_shape=tuple(patch_size),
            **size,
            **REGULARISATION,
        )
        self.eva.__class__ = GrowingEva  # Primus makes its encoder itself
        self.eva.planned_grid = self.eva.grid = grid_of(patch_size)

    def forward(self, x: torch.Tensor, ret_mask: bool = False) -> Any:
        """Return logits at the size of `x`, and the mask of the tokens kept if wanted."""
        self.eva.grid = grid_of(x.shape[2:])
        return super().forward(x, ret_mask)


def grid_of(size: Sequence[int]) -> tuple[int, ...]:
    """Return the tokens per axis of a patch in voxels."""
    return tuple(int(n) // unit for n, unit in zip(size, PATCH_EMBEDDING, strict=True))


def is_primus(configuration: ConfigurationManager) -> bool:
    """Return whether a plan's network is Primus."""
    return str(configuration.network_arch_class_name).endswith(".Primus")


def build_primus(
    configuration: ConfigurationManager, input_channels: int, output_channels: int
) -> GrowingPrimus:
    """Return the network of a plan whose architecture is Primus."""
    size = {k: v for k, v in configuration.network_arch_init_kwargs.items() if k != "strides"}
    return GrowingPrimus(input_channels, output_channels, configuration.patch_size, **size)
