"""Training on low frequencies first: EfficientTrain++ (Wang et al., arXiv 2405.08768) in 3D.

Batches are loaded at the planned patch and augmented by nnU-Net's own pipeline, at the strength of
the stage. What the network sees is their low frequencies, taken on the training's device between
loader and training step, with labels of that size. Validation and inference are nnU-Net's.
"""

import random
from collections import deque
from collections.abc import Iterator
from typing import Any

import torch
from batchgenerators.dataloading.multi_threaded_augmenter import MultiThreadedAugmenter
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import (
    DownsampleSegForDSTransform,
)

from .base import nnUNetTrainerPatchCurriculum
from .loading import LoadingPlan
from .lowpass import reduce_image, reduce_labels
from .schedules import Schedule, Stage
from .strength import weaken


class LowFrequencyBatches:
    """Hands out the batches of a schedule: loaded or repeated, and reduced to the stage's size.

    Every r-th iteration of a stage that replays takes a loaded batch and keeps it, reduced, among
    the last `replay_batches`; the others draw one of these, uniformly and from (seed, iteration)
    alone. The first iteration of a resumed training first loads again what it may draw from, so it
    goes on with the very batches of an uninterrupted one.
    """

    def __init__(
        self,
        loader: SingleThreadedAugmenter | MultiThreadedAugmenter,
        schedule: Schedule,
        first_iteration: int,
        replay_batches: int,
        seed: int,
        device: torch.device,
        deep_supervision_scales: list | None,
        **lowpass: Any,
    ) -> None:
        """Begin with an iteration of the training.

        Args:
            loader: of batches at the stages' `loaded_size`, which begins with the first one that
                this iteration needs (`missing_batches` before its own).
            schedule: of the training.
            first_iteration: number of the iteration whose batch is asked for first.
            replay_batches: how many are kept.
            seed: of the draws.
            device: where batches are reduced and kept.
            deep_supervision_scales: nnU-Net's, for the targets of each output; None is one target.
            lowpass: options of `lowpass.reduce_image`.
        """
        self._loader, self._schedule, self._device = loader, schedule, device
        self._seed, self._lowpass = seed, lowpass
        self._iteration = first_iteration
        self._stage: int | None = None
        self._kept: deque[dict] = deque(maxlen=replay_batches)
        self._targets = (
            DownsampleSegForDSTransform(deep_supervision_scales)
            if deep_supervision_scales is not None
            else None
        )

    def __iter__(self) -> Iterator[dict]:
        """Return the iterator itself."""
        return self

    def __next__(self) -> dict:
        """Return the batch of the next iteration."""
        iteration, schedule = self._iteration, self._schedule
        self._iteration += 1
        number = schedule.stage_of_iteration(iteration)
        stage = schedule.stages[number]
        if number != self._stage:
            self._stage = number
            self._kept.clear()
            for _ in range(missing_batches(schedule, iteration, self._kept.maxlen or 0)):
                self._load(stage)
        if schedule.loads(iteration):
            return self._load(stage)
        draw = random.Random(f"{self._seed}/{iteration}").randrange(len(self._kept))
        return self._unpack(self._kept[draw])

    def _load(self, stage: Stage) -> dict:
        """Take the loader's next batch and reduce it; keep it if the stage replays."""
        batch = next(self._loader)
        if stage.field_of_view is not None:
            batch = self._reduce(batch, stage.patch_size)
        if stage.replay > 1:
            self._kept.append(self._pack(batch))
        return batch

    def _reduce(self, batch: dict, size: tuple[int, ...]) -> dict:
        """Return a batch of the loader at `size`, on the device."""
        data = batch["data"].to(self._device, non_blocking=True)
        target = batch["target"].to(self._device, non_blocking=True)
        return {
            "data": reduce_image(data, size, **self._lowpass),
            "target": self._split(reduce_labels(target, size)),
            "keys": batch["keys"],
        }

    def _split(self, target: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """Return the target of every output by nnU-Net's own transform, all samples at once."""
        if self._targets is None:
            return target
        channels = target.shape[:2]
        found = self._targets(segmentation=target.flatten(0, 1))["segmentation"]
        return [one.unflatten(0, channels) for one in found]

    def _pack(self, batch: dict) -> dict:
        """In half precision on a GPU, where nnU-Net's first convolution reads no more of it."""
        return {**batch, "data": batch["data"].half()} if batch["data"].is_cuda else batch

    def _unpack(self, batch: dict) -> dict:
        return {**batch, "data": batch["data"].float()}

    def _finish(self) -> None:
        """End the loader's workers, if it has any."""
        if isinstance(self._loader, MultiThreadedAugmenter):
            self._loader._finish()


def missing_batches(schedule: Schedule, iteration: int, replay_batches: int) -> int:
    """Return how many former batches of its stage an iteration may draw from."""
    return min(schedule.replayable_before(iteration), replay_batches)


class nnUNetTrainerLowFrequencyCurriculum(nnUNetTrainerPatchCurriculum):
    """nnU-Net's training on low frequencies first, with augmentation from weak to strong.

    The field of view stays that of the planned patch; the resolution grows.

    Attributes:
        lowpass: how frequencies are cropped: in the spectrum (`fft`), in that of the cosine
            transform (`dct`, no wrap-around), or by antialiased resampling (`resize`).
        half_voxel_shift: sample where the larger voxels' centres are, as the labels are; False is
            the authors' crop, which is aligned at the corner.
    """

    curriculum = "low_frequency"
    lowpass = "fft"
    half_voxel_shift = True

    def get_dataloaders(self):
        """Return the training loader, which reduces and repeats batches, and nnU-Net's other one.

        Both go on where a checkpoint was written.
        """
        train, validation = super().get_dataloaders()
        return LowFrequencyBatches(
            train,
            self.schedule(),
            self.iterations_before,
            self.replay_batches,
            self.batch_seed or 0,
            self.device,
            self._get_deep_supervision_scales(),
            method=self.lowpass,
            half_voxel_shift=self.half_voxel_shift,
        ), validation

    @property
    def batches_before(self) -> int:
        """Number of the first batch to load: with those of the stage that may be drawn again."""
        schedule, iteration = self.schedule(), self.iterations_before
        again = missing_batches(schedule, iteration, self.replay_batches)
        return schedule.batches_before(iteration) - again

    def _plan_loading(self, stage: Stage, **options: Any) -> LoadingPlan:
        """As every arm's, at the strength of the stage; deep supervision's targets follow later."""
        if stage.field_of_view is not None:
            options["deep_supervision_scales"] = None
        plan = super()._plan_loading(stage, **options)
        weaken(plan.transforms, stage.augmentation)
        return plan

    def on_train_end(self) -> None:
        """End the training as nnU-Net does."""
        super().on_train_end()
        self.dataloader_train._finish()
