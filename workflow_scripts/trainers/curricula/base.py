"""The trainer that all patch-size arms share: nnU-Net's own, with another training loader."""

import time
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from nnunetv2.training.data_augmentation.compute_initial_patch_size import get_patch_size
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA

from .loading import LoadingPlan, ScheduledDataLoader, start_loading
from .schedules import Schedule, Stage, count_poolings, plan_stages

SCALING_OF_SPATIAL_AUGMENTATION = (0.85, 1.25)
"""The range nnU-Net 2.8.1 sizes its initial patch for (its own augmentation uses 0.7 to 1.4)."""


class nnUNetTrainerPatchCurriculum(nnUNetTrainer):
    """nnU-Net's training with a schedule of patch sizes; subclasses name the curriculum.

    Loss, optimiser, learning rate over the whole run, augmentation, network, validation on patches
    of the planned size and inference are nnU-Net's own: the plan is never edited, only the training
    loader follows the schedule (methods of Fischer et al., MICCAI 2024).

    Attributes:
        curriculum: name in `schedules.CURRICULA`.
        batch_seed: seed of every batch's content; None (constant patches only) is nnU-Net's own
            unseeded loading.
        training_oversample_foreground_percent: share of forced-foreground patches in training; None
            is nnU-Net's 0.33. Validation keeps nnU-Net's.
        checkpoint_seconds: least time between two checkpoints besides nnU-Net's every 50 epochs.
        plot_seconds: least time between two progress plots.
    """

    curriculum = "constant"
    batch_seed: int | None = 12345
    training_oversample_foreground_percent: float | None = None
    checkpoint_seconds = 600.0
    plot_seconds = 60.0

    save_every: int
    _last_checkpoint = 0.0

    @cached_property
    def stages(self) -> list[Stage]:
        """The training sizes, smallest first, the plan's last."""
        configuration = self.configuration_manager
        pooling = count_poolings(configuration.pool_op_kernel_sizes)
        return plan_stages(
            configuration.patch_size, pooling, configuration.batch_size, self.curriculum
        )

    def schedule(self) -> Schedule:
        """Return the schedule of the whole training with the trainer's present length."""
        return Schedule(
            tuple(self.stages),
            self.num_epochs,
            self.num_iterations_per_epoch,
            self.batch_seed if self.curriculum == "random" else None,
        )

    def on_train_start(self) -> None:
        """Prepare as nnU-Net does; many patch sizes must not push a compiled network to eager."""
        self._last_checkpoint = time.monotonic()
        self._limit_plots()
        if self._do_i_compile():
            limit = len(self.stages) + 8
            torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, limit)
        super().on_train_start()

    def get_dataloaders(self):
        """Return the training loader of the schedule and a validation loader at the planned patch.

        Batch numbers follow from `current_epoch`, so a resumed training goes on with the batches it
        would have seen. Without `batch_seed` and with one stage this is nnU-Net's own loading.
        """
        if self.batch_seed is None:
            if len(self.stages) > 1:
                raise ValueError(f"{type(self).__name__} needs a batch_seed: batches are numbered")
            return super().get_dataloaders()
        plans, validation = self._loading_plans()
        training_data, validation_data = self.get_tr_and_val_datasets()
        validating = Schedule(
            (validation.stage,), self.num_epochs, self.num_val_iterations_per_epoch
        )
        stock = self.oversample_foreground_percent
        forced = self.training_oversample_foreground_percent
        percent = stock if forced is None else forced
        workers = get_allowed_n_proc_DA()
        return (
            self._start_loader(0, training_data, plans, self.schedule(), percent, workers),
            self._start_loader(
                1, validation_data, [validation], validating, stock, (workers + 1) // 2
            ),
        )

    def _loading_plans(self) -> tuple[list[LoadingPlan], LoadingPlan]:
        """How training batches of every stage are made, and validation batches."""
        rotation, dummy_2d, _, mirror_axes = (
            self.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        )
        labels, scales = self.label_manager, self._get_deep_supervision_scales()
        shared = {
            "is_cascaded": self.is_cascaded,
            "foreground_labels": labels.foreground_labels,
            "regions": labels.foreground_regions if labels.has_regions else None,
            "ignore_label": labels.ignore_label,
        }
        plans = [
            LoadingPlan(
                stage,
                initial_patch_size(stage.patch_size, rotation, dummy_2d),
                self.get_training_transforms(
                    stage.patch_size,
                    rotation,
                    scales,
                    mirror_axes,
                    dummy_2d,
                    use_mask_for_norm=self.configuration_manager.use_mask_for_norm,
                    **shared,
                ),
            )
            for stage in self._stages_of_this_rank()
        ]
        full = plans[-1].stage
        transforms = self.get_validation_transforms(scales, **shared)
        return plans, LoadingPlan(full, full.patch_size, transforms)

    def _start_loader(
        self,
        number: int,
        dataset: nnUNetBaseDataset,
        plans: list[LoadingPlan],
        schedule: Schedule,
        oversample_foreground_percent: float,
        workers: int,
    ):
        """Start the loader that draws from the seed (batch_seed, number, rank)."""
        loader = ScheduledDataLoader(
            dataset,
            self.label_manager,
            plans,
            schedule,
            seed=(self.batch_seed or 0, number, self.local_rank),
            first_batch=self.current_epoch * schedule.iterations_per_epoch,
            workers=workers,
            oversample_foreground_percent=oversample_foreground_percent,
            probabilistic_oversampling=self.probabilistic_oversampling,
        )
        return start_loading(loader, workers, self.device.type == "cuda")

    def _stages_of_this_rank(self) -> list[Stage]:
        """The stages with the share of the batch that falls to this process (all but in DDP)."""
        planned = self.configuration_manager.batch_size
        if any(stage.batch_size != planned for stage in self.stages) and self.is_ddp:
            raise NotImplementedError("stages of different batch size on several GPUs")
        if not self.is_ddp:
            return self.stages
        return [Stage(stage.patch_size, self.batch_size) for stage in self.stages]

    def on_epoch_end(self) -> None:
        """End the epoch as nnU-Net does; checkpoint also when `checkpoint_seconds` have passed."""
        stock: int = self.save_every
        if time.monotonic() - self._last_checkpoint >= self.checkpoint_seconds:
            self.save_every = 1
        super().on_epoch_end()
        self.save_every = stock

    def save_checkpoint(self, filename: str) -> None:
        """Write nnU-Net's checkpoint atomically: a killed job leaves the former one whole."""
        if self.local_rank != 0 or self.disable_checkpointing:
            super().save_checkpoint(filename)
            return
        partial = Path(f"{filename}.partial")
        super().save_checkpoint(str(partial))
        partial.replace(filename)
        if Path(filename).name == "checkpoint_latest.pth":
            self._last_checkpoint = time.monotonic()

    def _limit_plots(self) -> None:
        plot, last = self.logger.plot_progress_png, [-np.inf]

        def plot_when_due(folder: str) -> None:
            now = time.monotonic()
            if now - last[0] >= self.plot_seconds or self.current_epoch == self.num_epochs - 1:
                plot(folder)
                last[0] = time.monotonic()

        self.logger.plot_progress_png = plot_when_due


def initial_patch_size(
    patch_size: tuple[int, ...], rotation: tuple[float, float], dummy_2d: bool
) -> np.ndarray:
    """Return the voxels per axis to crop so that rotation and scaling of a patch stay inside.

    As nnU-Net's `configure_rotation_dummyDA_mirroring_and_inital_patch_size` computes it, except
    that `rotation` (radians) and `dummy_2d` are those of the planned patch at every stage: else the
    kind of augmentation would flip where a small patch happens to be isotropic.
    """
    size = get_patch_size(patch_size, rotation, rotation, rotation, SCALING_OF_SPATIAL_AUGMENTATION)
    if dummy_2d:
        size[0] = patch_size[0]
    return size
