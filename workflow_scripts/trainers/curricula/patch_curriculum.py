"""The trainer shared by all patch-size arms: nnU-Net's own, with a different training loader."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from nnunetv2.training.data_augmentation.compute_initial_patch_size import get_patch_size
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.primus.primus_trainers import AbstractPrimus
from nnunetv2.training.nnUNetTrainer.variants.optimizer.nnUNetTrainerAdam import nnUNetTrainerAdam
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from .batches.batched_augmentation import BatchedAugmentation
from .batches.loading import (
    DeviceBatches,
    LoadingPlan,
    ScheduledDataLoader,
    crop_few_volumes,
    force_last,
    samples_of_rank,
    start_loading,
)
from .batches.thin_blur import blur_thin
from .networks.instance_norm import allow_one_voxel
from .networks.primus import build_primus, is_primus
from .resumable import ResumableTrainer
from .schedules.patch_plan import PatchPlan
from .schedules.planner import plan_schedule
from .schedules.scale_factors import ScaleSpaceSettings
from .schedules.schedule import Schedule, Stage
from .schedules.settings import (
    BatchSettings,
    CurriculumSettings,
    GrowthSettings,
    OptimizerSettings,
    TrainingLength,
    attributes_of,
)

SCALING_OF_SPATIAL_AUGMENTATION = (0.85, 1.25)
"""Range for which nnU-Net 2.8.1 sizes its initial patch (its augmentation uses 0.7 to 1.4)."""

OPTIMIZERS = {"sgd": (nnUNetTrainer, 1e-2), "adamw": (nnUNetTrainerAdam, 1e-3)}
"""nnU-Net's trainer that makes each optimiser (its AdamW uses `amsgrad`), and the initial learning
rate if an arm sets no `initial_lr`: nnU-Net's, and that of `nnUNetTrainerAdam1en3`."""


LARGEST_BATCHED_PLAN = 2**14
"""Maximum voxels of a planned patch that is augmented as a batch (`batched_planned_patch`): larger
ones are faster one by one (docs/results/performance.md)."""

PRIMUS_LEARNING_RATE, PRIMUS_WEIGHT_DECAY, PRIMUS_WARM_UP = 3e-4, 5e-2, 50
"""Those of nnU-Net's Primus trainers; the warm-up is in epochs."""


@attributes_of(GrowthSettings, BatchSettings, OptimizerSettings)
class nnUNetTrainerPatchCurriculum(ResumableTrainer):
    """nnU-Net's training with a schedule of patch sizes; subclasses name the curriculum.

    Loss, optimiser, learning rate over the whole run, augmentation, network, validation on patches
    of the planned size and inference are nnU-Net's own. The plan is never edited; only the training
    loader follows the schedule (methods of Fischer et al., MICCAI 2024).

    The fields of `GrowthSettings`, `BatchSettings` and `OptimizerSettings` are attributes as well;
    an arm sets them as its parameters. Until `initialize`, an `initial_lr` of None means that of
    `OPTIMIZERS`.

    Attributes:
        batch_seed: seed of every batch's content; None (constant patches only) uses nnU-Net's own
            unseeded loading.
        few_volumes: read no more volumes for a batch than the plan's batch has samples, with
            several crops of each; foreground is forced in every second volume's crops, regardless
            of the share.
        pseudo_dice_by_scale: nnU-Net's pseudo Dice in the last epoch's validation, by scale factor,
            if the network has several.
    """

    batch_seed: int | None = 12345
    few_volumes = False
    pseudo_dice_by_scale: Mapping[float, float] = MappingProxyType({})

    configuration_manager: ConfigurationManager

    def __init__(
        self, plans: dict, configuration: str, fold: int, dataset_json: dict, device: torch.device
    ) -> None:
        """Begin as nnU-Net does, but with the class's own settings of the optimiser."""
        super().__init__(plans, configuration, fold, dataset_json, device)
        own = OptimizerSettings.of(type(self))
        self.initial_lr: float | None = own.initial_lr
        self.weight_decay = own.weight_decay
        self._primus = is_primus(self.configuration_manager)
        if self._primus:
            self.enable_deep_supervision = False
            self.weight_decay = PRIMUS_WEIGHT_DECAY
            self.training_stage: str | None = None
            self.warmup_duration_whole_net = PRIMUS_WARM_UP

    def initialize(self) -> None:
        """Prepare as nnU-Net does, with the initial learning rate of this arm's optimiser."""
        if self.initial_lr is None:
            self.initial_lr = self._optimizer[1]
        super().initialize()

    def configure_optimizers(self) -> tuple[Any, Any]:
        """Return nnU-Net's own optimiser with the given name, and its learning rate schedule."""
        return self._optimizer[0].configure_optimizers(self)

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> Any:
        """Return the plan's network, as nnU-Net does; Primus takes patches of several sizes."""
        if is_primus(configuration_manager):
            return build_primus(configuration_manager, num_input_channels, num_output_channels)
        return nnUNetTrainer.build_network_architecture(
            plans_manager,
            configuration_manager,
            num_input_channels,
            num_output_channels,
            enable_deep_supervision,
        )

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """Switch deep supervision as nnU-Net does; Primus has none."""
        if not self._primus:
            super().set_deep_supervision_enabled(enabled)

    @property
    def _optimizer(self) -> tuple[Any, float]:
        if self._primus:
            return AbstractPrimus, PRIMUS_LEARNING_RATE
        return OPTIMIZERS[OptimizerSettings.of(self).optimizer_name]

    @property
    def _batches(self) -> BatchSettings:
        return BatchSettings.of(self)

    @cached_property
    def _plan(self) -> PatchPlan:
        return PatchPlan.of(self.configuration_manager)

    @cached_property
    def stages(self) -> list[Stage]:
        """The training sizes in the order of training."""
        return list(self.schedule().stages)

    def schedule(self) -> Schedule:
        """Return the schedule of the whole training with the trainer's current length."""
        length = TrainingLength(self.num_epochs, self.num_iterations_per_epoch, self.batch_seed)
        return plan_schedule(self._plan, length, CurriculumSettings.of(self))

    @classmethod
    def network_settings(cls, parameters: Mapping[str, Any]) -> ScaleSpaceSettings | None:
        """Return the settings of the network's scale factors with an arm's parameters, if any."""
        return None

    def scale_of_step(self, phase: Literal["train", "val"]) -> float | None:
        """Return the scale factor of the next step; None if the network has only one size."""
        return None

    def iterations_of_epoch(self, epoch: int) -> int:
        """Return the scheduled training iterations of an epoch."""
        return self.schedule().iterations_of_epoch(epoch)

    @property
    def iterations_before(self) -> int:
        """Global number of the first training iteration that remains to be done."""
        return self.schedule().iterations_before(self.current_epoch) + self.iterations_resumed

    @property
    def batches_before(self) -> int:
        """Number of the first training batch that remains to be loaded."""
        return self.schedule().batches_before(self.iterations_before)

    def on_train_start(self) -> None:
        """Prepare as nnU-Net does; a compiled network is compiled once per patch size."""
        if self._do_i_compile():
            outputs = len(self._get_deep_supervision_scales() or [1])
            compile_every_size(len(self.stages), outputs)
        super().on_train_start()

    def on_train_epoch_start(self) -> None:
        """Begin an epoch; Primus changes from warm-up to decay as in nnU-Net."""
        if self._primus:
            warm = self.current_epoch < self.warmup_duration_whole_net
            self.optimizer, self.lr_scheduler = AbstractPrimus.configure_optimizers(
                self, "warmup_all" if warm else "train"
            )
        super().on_train_epoch_start()

    def _update(self, batch: dict) -> dict:
        """Update the weights as nnU-Net does; Primus has its own clipping, and drops paths."""
        if not self._primus:
            return super()._update(batch)
        if self.batch_seed is not None:
            # Paths are drawn for each iteration, so a resumed training drops the same ones.
            iteration = self.schedule().iterations_before(self.current_epoch) + self.iterations_done
            words = np.random.SeedSequence((self.batch_seed, 2, self.local_rank, iteration))
            torch.manual_seed(int(words.generate_state(1)[0]))
        return AbstractPrimus.train_step(self, batch)

    def train_step(self, batch: dict) -> dict:
        """Train one step; let a bottleneck of one voxel pass InstanceNorm's check."""
        if prod(batch["data"].shape[2:]) > prod(self._plan.units):
            return super().train_step(batch)
        with allow_one_voxel():
            return super().train_step(batch)

    def get_dataloaders(self) -> tuple[Any, Any]:
        """Return the scheduled training loader and a validation loader at the planned patch.

        Batch numbers follow from `current_epoch`, so a resumed training sees the same batches
        as an uninterrupted one. Without `batch_seed` and with one stage, this is nnU-Net's loading.
        """
        if self.batch_seed is None:
            if len(self.stages) > 1:
                raise ValueError(f"{type(self).__name__} needs a batch_seed")
            return super().get_dataloaders()
        keep_importable()
        plans, validation = self._loading_plans()
        datasets = self.get_tr_and_val_datasets()
        validating = Schedule(
            (validation.stage,), self.num_epochs, self.num_val_iterations_per_epoch
        )
        workers = get_allowed_n_proc_DA()
        validated = self.current_epoch * self.num_val_iterations_per_epoch
        training: Any = self._start_loader(
            0, datasets[0], plans, self.schedule(), self.batches_before, workers
        )
        if any(plan.deferred for plan in plans):
            training = DeviceBatches(training, plans, self.device)
        return training, self._start_loader(
            1, datasets[1], [validation], validating, validated, (workers + 1) // 2
        )

    def on_train_end(self) -> None:
        """End the training as nnU-Net does, and end `DeviceBatches`, unknown to nnU-Net."""
        super().on_train_end()
        if isinstance(self.dataloader_train, DeviceBatches):
            self.dataloader_train._finish()

    def _loading_plans(self) -> tuple[list[LoadingPlan], LoadingPlan]:
        """Return how training batches of every stage and validation batches are made."""
        kind = self._kind_of_augmentation()
        kinds = [kind] * len(self.stages)
        if self._batches.faithful_augmentation_per_stage:
            kinds = []
            for stage in self.stages:
                with self._planned_at(stage.loaded_size):
                    kinds.append(self._kind_of_augmentation())
        labels, scales = self.label_manager, self._get_deep_supervision_scales()
        shared = {
            "is_cascaded": self.is_cascaded,
            "foreground_labels": labels.foreground_labels,
            "regions": labels.foreground_regions if labels.has_regions else None,
            "ignore_label": labels.ignore_label,
        }
        configuration = self.configuration_manager
        plans = [
            self._plan_loading(
                stage,
                **kind,
                deep_supervision_scales=scales,
                use_mask_for_norm=configuration.use_mask_for_norm,
                **shared,
            )
            for stage, kind in zip(self.stages, kinds, strict=True)
        ]
        planned = Stage(tuple(configuration.patch_size), configuration.batch_size)
        if self._batches.batched_augmentation:
            planned_too = (
                self._batches.batched_planned_patch
                and prod(planned.patch_size) <= LARGEST_BATCHED_PLAN
            )
            plans = [
                plan
                if plan.stage.patch_size == planned.patch_size and not planned_too
                else replace(
                    plan,
                    batched=BatchedAugmentation(plan.transforms),
                    deferred=self._batches.augment_on_device,
                )
                for plan in plans
            ]
        return plans, LoadingPlan(
            **self._share_of_rank(planned, validating=True),
            initial_patch_size=planned.patch_size,
            transforms=self.get_validation_transforms(scales, **shared),
        )

    def _kind_of_augmentation(self) -> dict[str, Any]:
        """Return nnU-Net's choice for the current patch size, as arguments of its transforms."""
        rotation, dummy_2d, _, axes = (
            self.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        )
        return {"rotation_for_DA": rotation, "do_dummy_2d_data_aug": dummy_2d, "mirror_axes": axes}

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple[Any, ...]:  # noqa: N802
        """Configure augmentation and mirrored prediction as nnU-Net does; see `mirror_axes`."""
        rotation, dummy_2d, size, axes = (
            super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        )
        if self._batches.mirror_axes == "none":
            axes = self.inference_allowed_mirroring_axes = None
        return rotation, dummy_2d, size, axes

    @contextmanager
    def _planned_at(self, patch_size: Sequence[int]) -> Iterator[None]:
        """Make nnU-Net treat a patch size (voxels per axis) as the planned one."""
        planned = self.configuration_manager
        self.configuration_manager = ConfigurationManager(
            {**planned.configuration, "patch_size": list(patch_size)}
        )
        try:
            yield
        finally:
            self.configuration_manager = planned

    def _plan_loading(self, stage: Stage, **options: Any) -> LoadingPlan:
        """Return how training batches of a stage are made; `options` go to nnU-Net's transforms."""
        size = stage.loaded_size
        rotation, dummy_2d = options["rotation_for_DA"], options["do_dummy_2d_data_aug"]
        return LoadingPlan(
            **self._share_of_rank(stage),
            initial_patch_size=initial_patch_size(size, rotation, dummy_2d),
            transforms=blur_thin(self.get_training_transforms(size, **options), size),
        )

    def _share_of_rank(self, stage: Stage, validating: bool = False) -> dict:
        """Return this process's share of a batch: number and kind of samples (all without DDP).

        nnU-Net distributes the planned batch when it starts; this does so for every stage's batch.
        """
        rank, ranks = (dist.get_rank(), dist.get_world_size()) if self.is_ddp else (0, 1)
        try:
            samples = samples_of_rank(stage.batch_size, rank, ranks)
        except ValueError as error:
            raise ValueError(f"patch size {stage.label}: {error}") from None
        if stage.batch_size % ranks and self.configuration_manager.batch_dice:
            raise ValueError(
                f"patch size {stage.label}: a batch of {stage.batch_size} is not a multiple of "
                f"{ranks} processes, which nnU-Net's Dice over the batch needs: train on one GPU, "
                "or with a stage_list of such batches"
            )
        here = slice(samples.start, samples.stop)
        share: dict[str, Any] = {
            "stage": Stage(stage.loaded_size, len(samples)),
            "forced": None,
            "volumes": None,
        }
        if self.few_volumes and not validating:
            volumes = crop_few_volumes(stage.batch_size, self.configuration_manager.batch_size)
            share["forced"] = tuple(volume % 2 == 1 for volume in volumes[here])
            share["volumes"] = tuple(volumes[here])
        elif not self.probabilistic_oversampling:
            percent = self._oversampling(validating)
            share["forced"] = tuple(force_last(stage.batch_size, percent)[here])
        return share

    def _oversampling(self, validating: bool) -> float:
        forced = (
            self._batches.validation_oversample_foreground_percent
            if validating
            else self._batches.training_oversample_foreground_percent
        )
        return self._planned_oversampling if forced is None else forced

    def _set_batch_size_and_oversample(self) -> None:
        """Do as nnU-Net, which in DDP replaces the whole batch's oversampling by this rank's."""
        self._planned_oversampling = self.oversample_foreground_percent
        super()._set_batch_size_and_oversample()

    def _start_loader(
        self,
        number: int,
        dataset: nnUNetBaseDataset,
        plans: list[LoadingPlan],
        schedule: Schedule,
        first_batch: int,
        workers: int,
    ) -> Any:
        """Start a loader with the seed (batch_seed, number, rank)."""
        loader = ScheduledDataLoader(
            dataset,
            self.label_manager,
            plans,
            schedule,
            seed=(self.batch_seed or 0, number, self.local_rank),
            first_batch=first_batch,
            workers=workers,
            oversample_foreground_percent=self._oversampling(validating=number == 1),
            probabilistic_oversampling=self.probabilistic_oversampling,
        )
        return start_loading(loader, workers, self.device.type == "cuda")


MODULES = {
    name: module for name, module in sys.modules.items() if f"{name}.".startswith(f"{__package__}.")
}
"""The modules of this package, which nnU-Net forgets."""


def keep_importable() -> None:
    """Let loading workers that are spawned import this package by its name.

    If nnU-Net found it in `nnUNet_extTrainer`, it has removed the folder from `sys.path` and the
    modules from `sys.modules` again (`recursive_find_python_class`), so nothing could be pickled.
    """
    sys.modules.update(MODULES)
    root = str(Path(__file__).parents[__package__.count(".") + 1])
    if root not in sys.path:
        sys.path.append(root)


def compile_every_size(sizes: int, outputs: int) -> None:
    """Let torch.compile make a static graph of each of `sizes` training sizes.

    By default it makes one dynamic graph after the second size, and silently falls back to eager
    after 8 compilations. The authors of arXiv 2510.23241 also compile with `dynamic=False`. If the
    limit is still reached, torch now raises an error.

    The network is compiled once for each training size, and for the planned size in validation.
    nnU-Net also compiles its Dice loss, once for each of the `outputs` of deep supervision.
    """
    config = torch._dynamo.config
    limit = 2 * sizes * outputs + 16
    config.automatic_dynamic_shapes = False
    config.recompile_limit = max(config.recompile_limit, limit)
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, limit)
    config.fail_on_recompile_limit_hit = True


def initial_patch_size(
    patch_size: tuple[int, ...], rotation: tuple[float, float], dummy_2d: bool
) -> np.ndarray:
    """Return the voxels per axis to crop so that rotation and scaling of a patch stay inside.

    Computed as in nnU-Net's `configure_rotation_dummyDA_mirroring_and_inital_patch_size`, but the
    `rotation` range (radians) and `dummy_2d` need not be those of this patch size.
    """
    size = get_patch_size(patch_size, rotation, rotation, rotation, SCALING_OF_SPATIAL_AUGMENTATION)
    if dummy_2d:
        size[0] = patch_size[0]
    return size
