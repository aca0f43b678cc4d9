"""One thin trainer per arm: nnU-Net names its result folder after the class."""

from .low_frequency import nnUNetTrainerLowFrequencyCurriculum
from .patch_curriculum import nnUNetTrainerPatchCurriculum
from .scale_space import nnUNetTrainerScaleSpace as nnUNetTrainerScaleSpace


class nnUNetTrainerConstantPatch(nnUNetTrainerPatchCurriculum):
    """Constant patch size: nnU-Net's own training (the reference of every comparison)."""


class nnUNetTrainerBatchedAugmentation(nnUNetTrainerPatchCurriculum):
    """nnU-Net's own training, whose batches are augmented at once instead of sample by sample."""

    batched_planned_patch = True


class nnUNetTrainerProgressivePatch(nnUNetTrainerPatchCurriculum):
    """Progressive growing of the patch size (PGPS; Fischer et al., MICCAI 2024, section 2)."""

    curriculum = "progressive"
    training_oversample_foreground_percent = 0.5


class nnUNetTrainerProgressivePlusPatch(nnUNetTrainerPatchCurriculum):
    """PGPS with larger batches of the smaller patches (PGPS+, same paper)."""

    curriculum = "progressive_plus"
    training_oversample_foreground_percent = 0.5


class nnUNetTrainerRandomPatch(nnUNetTrainerPatchCurriculum):
    """Random sampling among the sizes of PGPS, one draw per iteration (RPSS; same paper)."""

    curriculum = "random"
    training_oversample_foreground_percent = 0.5


class nnUNetTrainerProgressiveEfficiencyPatch(nnUNetTrainerPatchCurriculum):
    """PGPS-Efficiency (arXiv 2510.23241): starts one stage smaller, grows the shortest axis."""

    curriculum = "progressive_efficiency"
    few_volumes = True


class nnUNetTrainerProgressivePerformancePatch(nnUNetTrainerPatchCurriculum):
    """PGPS-Performance (arXiv 2510.23241): batches that keep the voxels per step constant."""

    curriculum = "progressive_performance"
    few_volumes = True


class nnUNetTrainerListedPatch(nnUNetTrainerPatchCurriculum):
    """The stages that the user lists in `stage_list`."""

    curriculum = "listed"


class nnUNetTrainerLowFrequency(nnUNetTrainerLowFrequencyCurriculum):
    """Low frequencies first (EfficientTrain++, arXiv 2405.08768); equal computation per epoch."""


class nnUNetTrainerLowFrequencyIterations(nnUNetTrainerLowFrequencyCurriculum):
    """Like `nnUNetTrainerLowFrequency`, but with equal iterations per epoch."""

    curriculum = "low_frequency_iterations"
