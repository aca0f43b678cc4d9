"""Training on low frequencies first: EfficientTrain++ (Wang et al., arXiv 2405.08768) in 3D.

Batches are loaded at the planned patch and augmented by nnU-Net's own pipeline, at the strength of
the stage. The network sees only their low frequencies, computed on the training's device between
loader and training step, with labels of the same size. Validation and inference are nnU-Net's.
"""

from typing import Any

from .batches.augmentation_strength import weaken
from .batches.loading import LoadingPlan
from .batches.low_frequency_batches import (
    LowFrequencyBatches,
    batches_to_keep,
    missing_batches,
)
from .patch_curriculum import nnUNetTrainerPatchCurriculum
from .schedules.schedule import Stage
from .schedules.settings import FrequencySettings, LowpassSettings, attributes_of


@attributes_of(FrequencySettings, LowpassSettings)
class nnUNetTrainerLowFrequencyCurriculum(nnUNetTrainerPatchCurriculum):
    """nnU-Net's training on low frequencies first, with augmentation from weak to strong.

    The field of view stays that of the planned patch; the resolution grows.

    The fields of `FrequencySettings` and `LowpassSettings` are attributes too.
    """

    curriculum = "low_frequency"

    def get_dataloaders(self) -> tuple[Any, Any]:
        """Return the training loader, which reduces and repeats batches, and the validation loader.

        Both resume at the checkpoint.
        """
        train, validation = super().get_dataloaders()
        settings = FrequencySettings.of(self)
        return LowFrequencyBatches(
            train,
            self.schedule(),
            self.iterations_before,
            settings.replay_batches,
            settings.replay == "mixed",
            self.batch_seed or 0,
            self.device,
            self._get_deep_supervision_scales(),
            method=settings.lowpass,
            half_voxel_shift=LowpassSettings.of(self).half_voxel_shift,
        ), validation

    @property
    def batches_before(self) -> int:
        """Number of the first batch to load, including those of the stage that may be redrawn."""
        schedule, iteration = self.schedule(), self.iterations_before
        settings = FrequencySettings.of(self)
        kept = batches_to_keep(settings.replay_batches, settings.replay == "mixed")
        again = missing_batches(schedule, iteration, kept)
        return schedule.batches_before(iteration) - again

    def _plan_loading(self, stage: Stage, **options: Any) -> LoadingPlan:
        """Plan as for every arm, at the stage's strength; reduced targets are split later."""
        if stage.field_of_view is not None:
            options["deep_supervision_scales"] = None
        plan = super()._plan_loading(stage, **options)
        weaken(plan.transforms, stage.augmentation)
        return plan

    def on_train_end(self) -> None:
        """End the training as nnU-Net does."""
        super().on_train_end()
        self.dataloader_train._finish()
