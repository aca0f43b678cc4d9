"""The trainer of one network for a whole accuracy-cost curve, and its controls."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch.nn.functional import interpolate

from .networks.hypernetwork import ScaleSpaceNetwork
from .networks.rescaled_unet import build_rescaled
from .patch_curriculum import nnUNetTrainerPatchCurriculum
from .schedules.scale_factors import Scales, ScaleSpaceSettings
from .schedules.schedule import Schedule
from .schedules.settings import attributes_of

SMALLEST_SUPERVISED = 4
"""Minimum voxels per axis of an output that contributes to the loss."""


def build_scale_space(
    plans_manager: PlansManager,
    configuration_manager: ConfigurationManager,
    num_input_channels: int,
    num_output_channels: int,
    enable_deep_supervision: bool = True,
    *,
    settings: ScaleSpaceSettings | None = None,
) -> ScaleSpaceNetwork:
    """Return the rescaled network of a plan within its hypernetwork.

    The first arguments are those of nnU-Net's `build_network_architecture`. `settings` are those of
    the trainer; the default is its class's.
    """
    settings = settings or ScaleSpaceSettings()
    primary = build_rescaled(
        configuration_manager,
        num_input_channels,
        num_output_channels,
        enable_deep_supervision,
        scale_factor=settings.scales.final,
    )
    return ScaleSpaceNetwork(primary, settings)


@attributes_of(ScaleSpaceSettings)
class nnUNetTrainerScaleSpace(nnUNetTrainerPatchCurriculum):
    """Scale-space hypernetwork (SSHN, NeurIPS 2023) in 3D: each step draws its scale factor.

    Its controls use the same class. `rank: 0` shares one set of weights among all scale factors
    ("stochastic"), and `film` also scales and shifts its features. A `scale_factor` trains for that
    one alone: with `rank: 0` an ordinary network ("fixed"), otherwise the hypernetwork at a
    constant input.

    nnU-Net's `checkpoint_best` is kept: every epoch validates equally often at the same scale
    factors, so its pseudo Dice compares epochs over the whole range. Nothing here uses it. The
    final checkpoint is the one that is validated at the end and baked.

    The fields of `ScaleSpaceSettings` are attributes too.

    Attributes:
        pseudo_dice_by_scale: with several GPUs, that of this one's share.
    """

    build_network_architecture = staticmethod(build_scale_space)
    network: Any
    _validated = 0

    @classmethod
    def network_settings(cls, parameters: Mapping[str, Any]) -> ScaleSpaceSettings:
        """Return the network's settings with an arm's parameters; raise ValueError if invalid."""
        return ScaleSpaceSettings.of(cls, parameters)

    @property
    def scales(self) -> Scales:
        """The scale factors of the training."""
        return ScaleSpaceSettings.of(self).scales

    @property
    def scale_space(self) -> ScaleSpaceNetwork:
        """The network without its wrapper for several GPUs."""
        return getattr(self.network, "module", self.network)

    def schedule(self) -> Schedule:
        """Return the schedule of the batches; also raise ValueError for an invalid network."""
        ScaleSpaceSettings.of(self)
        return super().schedule()

    def initialize(self) -> None:
        """Prepare as nnU-Net does, with the network of this arm's parameters."""
        settings = ScaleSpaceSettings.of(self)
        self.build_network_architecture = partial(build_scale_space, settings=settings)
        super().initialize()

    def _do_i_compile(self) -> bool:
        """Return False: each scale factor would need its own compilation."""
        return False

    @staticmethod
    def get_training_transforms(
        patch_size: Any,
        rotation_for_DA: Any,  # noqa: N803
        deep_supervision_scales: Any,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Return nnU-Net's augmentation; targets stay at full size, since output sizes vary."""
        return nnUNetTrainer.get_training_transforms(
            patch_size, rotation_for_DA, None, *args, **kwargs
        )

    @staticmethod
    def get_validation_transforms(deep_supervision_scales: Any, *args: Any, **kwargs: Any) -> Any:
        """Return nnU-Net's transforms; targets stay at full size, since output sizes vary."""
        return nnUNetTrainer.get_validation_transforms(None, *args, **kwargs)

    def scale_of_step(self, phase: Literal["train", "val"]) -> float:
        """Return the scale factor of the next step of training, or of the epoch's validation."""
        if phase == "val":
            return self.scales.of_validation(self._validated)
        iteration = self.current_epoch * self._whole_epoch + self.iterations_done
        return self.scales.of_iteration(self.batch_seed or 0, iteration)

    def train_step(self, batch: dict) -> dict:
        """Train one step at the scale factor of its iteration."""
        return super().train_step(self._at_scale(batch, "train"))

    def on_validation_epoch_start(self) -> None:
        """Begin an epoch's validation with its first scale factor."""
        super().on_validation_epoch_start()
        self._validated = 0

    def validation_step(self, batch: dict) -> dict:
        """Validate a batch; scale factors take turns, so the pseudo Dice covers all of them."""
        batch = self._at_scale(batch, "val")
        self._validated += 1
        return super().validation_step(batch)

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        """End an epoch's validation as nnU-Net does; also keep pseudo Dice by scale factor."""
        super().on_validation_epoch_end(val_outputs)
        outputs = defaultdict(list)
        for iteration, output in enumerate(val_outputs):
            outputs[self.scales.of_validation(iteration)].append(output)
        self.pseudo_dice_by_scale = {
            scale: pseudo_dice(of_scale) for scale, of_scale in sorted(outputs.items())
        }

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Validate as nnU-Net does, with the weights of the final scale factor, generated once."""
        with self.scale_space.frozen(self.scales.final):
            super().perform_actual_validation(save_probabilities)

    def _at_scale(self, batch: dict, phase: Literal["train", "val"]) -> dict:
        """Set network and loss to the step's scale factor; return one target per output."""
        self.scale_space.scale_factor = self.scale_of_step(phase)
        sizes = self.scale_space.primary.head_sizes(batch["data"].shape[2:])
        self.loss.weight_factors = head_weights(sizes, 1e-6 if self.is_ddp else 0.0)
        target = batch["target"].to(self.device, non_blocking=True)
        return {**batch, "target": [resize_target(target, size) for size in sizes]}


def pseudo_dice(outputs: Sequence[dict]) -> float:
    """Return nnU-Net's mean foreground Dice of validation steps, NaN if all classes are absent.

    The voxels of a class are summed over all batches, as in nnU-Net's `on_validation_epoch_end`.
    """
    tp, fp, fn = (
        np.sum([output[name] for output in outputs], axis=0)
        for name in ("tp_hard", "fp_hard", "fn_hard")
    )
    voxels = 2 * tp + fp + fn
    present = voxels > 0
    return float(np.mean(2 * tp[present] / voxels[present])) if present.any() else math.nan


def head_weights(sizes: list[tuple[int, ...]], unused: float) -> tuple[float, ...]:
    """Return the weights of the outputs of deep supervision in the loss; they add up to 1.

    As in nnU-Net, each has half the weight of the one above, and the lowest has none. An output
    with fewer than `SMALLEST_SUPERVISED` voxels on a shrunk axis has none either.

    Args:
        sizes: sizes of the outputs, full size first.
        unused: weight of outputs that do not contribute; above 0 for several GPUs, which need a
            gradient of every parameter.
    """
    lowest = len(sizes) - 1
    weights = [
        1 / 2**number if number == 0 or (number < lowest and _is_supervised(sizes, number)) else 0.0
        for number in range(len(sizes))
    ]
    return tuple(weight / sum(weights) if weight else unused for weight in weights)


def _is_supervised(sizes: list[tuple[int, ...]], number: int) -> bool:
    return all(
        n >= SMALLEST_SUPERVISED or n == full
        for n, full in zip(sizes[number], sizes[0], strict=True)
    )


def resize_target(target: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    """Return a batch of segmentations at the size of an output, resized as in nnU-Net."""
    if tuple(target.shape[2:]) == size:
        return target
    return interpolate(target.float(), size, mode="nearest-exact").to(target.dtype)
