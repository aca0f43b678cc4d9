"""One thin trainer per arm: nnU-Net names its result folder after the class."""

from .base import nnUNetTrainerPatchCurriculum


class nnUNetTrainerConstantPatch(nnUNetTrainerPatchCurriculum):
    """Constant patch size: nnU-Net's own training (the reference of every comparison)."""


class nnUNetTrainerProgressivePatch(nnUNetTrainerPatchCurriculum):
    """Progressive growing of the patch size (PGPS; Fischer et al., MICCAI 2024, section 2)."""

    curriculum = "progressive"
    training_oversample_foreground_percent = 0.5


class nnUNetTrainerRandomPatch(nnUNetTrainerPatchCurriculum):
    """Random sampling among the sizes of PGPS, one draw an iteration (RPSS; same paper)."""

    curriculum = "random"
    training_oversample_foreground_percent = 0.5
