"""A U-Net whose stages are rescaled by any factor, and the trainer with which nnU-Net predicts.

This file is self-contained: `bake_model` copies it beside each model that it writes, so that stock
nnU-Net runs the model if `nnUNet_extTrainer` points at the copy's folder.

Source: Gonzalez Ortiz, Guttag, Dalca, "Scale-Space Hypernetworks for Efficient Biomedical Image
Analysis" (NeurIPS 2023): fractional rescaling between the stages. The authors' networks are 2D.
"""

import math
import pydoc
from collections.abc import Sequence
from typing import Any

import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn
from torch.nn.functional import interpolate

SMALLEST = 2
"""Minimum voxels per axis after rescaling: InstanceNorm cannot normalise a single one."""


def stage_sizes(
    size: Sequence[int], strides: Sequence[Sequence[int]], scale_factor: float
) -> list[tuple[int, ...]]:
    """Return the size (voxels per axis) at every stage of the encoder, the input's first.

    If the plan has a stride of 2, the axis shrinks to ceil(scale_factor * n), but not below
    `SMALLEST`; otherwise it stays. At 0.5, and if the strides divide the sizes, these are stock
    nnU-Net's sizes.
    """
    sizes = [tuple(int(n) for n in size)]
    for stride in strides[1:]:
        sizes.append(
            tuple(
                # Rounding errors of the product must not add a voxel.
                min(n, max(SMALLEST, math.ceil(scale_factor * n - 1e-9))) if step > 1 else n
                for n, step in zip(sizes[-1], stride, strict=True)
            )
        )
    return sizes


class RescaledUNet(nn.Module):
    """The U-Net of nnU-Net's plan, rescaled instead of using strides and transposed convolutions.

    Stage 0 is the stock one. Before every further stage of the encoder, the features are resized to
    `stage_sizes` (linear interpolation); its convolutions have a stride of 1. The decoder projects
    with a convolution of one voxel, resizes to the size of the skip connection, and continues as
    the stock one. The projection commutes with the resizing and is cheapest before it. The input
    can have any size; the output has the same size.

    Attributes:
        scale_factor: size of a stage relative to the one above; may be changed at any time.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        strides: Sequence[Any],
        scale_factor: float = 0.5,
        deep_supervision: bool = False,
        **arch_kwargs: Any,
    ) -> None:
        """Take a plan's `arch_kwargs` for `PlainConvUNet` or `ResidualEncoderUNet`."""
        super().__init__()
        stock_class = ResidualEncoderUNet if "n_blocks_per_stage" in arch_kwargs else PlainConvUNet
        stock = stock_class(
            input_channels,
            num_classes=num_classes,
            strides=[1] * len(strides),
            deep_supervision=deep_supervision,
            **arch_kwargs,
        )
        self.encoder, self.decoder = stock.encoder, stock.decoder
        axes = len(stock.encoder.strides[0])
        self.strides = [(s,) * axes if isinstance(s, int) else tuple(s) for s in strides]
        self.scale_factor = float(scale_factor)
        self.decoder.transpconvs = nn.ModuleList(
            stock.encoder.conv_op(up.in_channels, up.out_channels, 1, bias=up.bias is not None)
            for up in stock.decoder.transpconvs
        )
        self.apply(stock.initialize)

    def sizes(self, size: Sequence[int]) -> list[tuple[int, ...]]:
        """Return the size of every stage for an input of this size."""
        return stage_sizes(size, self.strides, self.scale_factor)

    def head_sizes(self, size: Sequence[int]) -> list[tuple[int, ...]]:
        """Return the sizes of the outputs of deep supervision, the input's first."""
        return self.sizes(size)[:-1]

    def forward(self, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """Return logits at the size of `x`; with deep supervision, at all sizes."""
        skips: list[torch.Tensor] = []
        sizes = self.sizes(x.shape[2:])
        stem = getattr(self.encoder, "stem", None)
        for size, stage in zip(sizes, self.encoder.stages, strict=True):
            if stem is not None:
                x, stem = stem(x), None
            x = stage(resize(x, size))
            skips.append(x)
        outputs = []
        x = skips.pop()
        decoder = self.decoder
        for project, stage, head in zip(
            decoder.transpconvs, decoder.stages, decoder.seg_layers, strict=True
        ):
            skip = skips.pop()
            x = stage(torch.cat((resize(project(x), skip.shape[2:]), skip), 1))
            if decoder.deep_supervision or not skips:
                outputs.append(head(x))
        return outputs[::-1] if decoder.deep_supervision else outputs[0]


def resize(x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Resize the spatial axes by linear interpolation; nothing is computed if they fit."""
    if tuple(x.shape[2:]) == tuple(size):
        return x
    return interpolate(x, tuple(size), mode="bilinear" if x.ndim == 4 else "trilinear")


def build_rescaled(
    configuration: ConfigurationManager,
    input_channels: int,
    output_channels: int,
    deep_supervision: bool,
    **changes: Any,
) -> RescaledUNet:
    """Return the rescaled form of a plan's network, with `changes` to its `arch_kwargs`."""
    arguments = {**configuration.network_arch_init_kwargs, **changes}
    for name in configuration.network_arch_init_kwargs_req_import:
        if arguments[name] is not None:
            arguments[name] = pydoc.locate(arguments[name])
    return RescaledUNet(
        input_channels, output_channels, deep_supervision=deep_supervision, **arguments
    )


class nnUNetTrainerRescaledUNet(nnUNetTrainer):
    """Builds the network of a baked model, for prediction by stock nnU-Net."""

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """Return the plan's network at the scale for which the model was baked."""
        return build_rescaled(
            configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision
        )
