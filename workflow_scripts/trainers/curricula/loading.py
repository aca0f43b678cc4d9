"""Data loading for schedules: one pool of workers that knows the training size of every batch."""

import os
import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from batchgenerators.dataloading.multi_threaded_augmenter import MultiThreadedAugmenter
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from .schedules import Schedule, Stage


@dataclass(frozen=True)
class LoadingPlan:
    """How batches of one stage are made.

    `initial_patch_size` is what is cropped from the image (larger than the stage's patch where the
    spatial augmentation needs the margin), `transforms` turns it into the stage's patch.
    """

    stage: Stage
    initial_patch_size: Sequence[int] | np.ndarray
    transforms: BasicTransform


class ScheduledDataLoader(nnUNetDataLoader):
    """nnU-Net's loader, told for every batch which stage it is of and from which seed to draw.

    Batch k has the size that the schedule gives it and is a function of (seed, k) alone, however
    many workers share the work: worker w of n makes the batches w, w + n, w + 2n, ... and
    `MultiThreadedAugmenter` hands them out in that order. So nothing needs rebuilding where a stage
    ends, and no batch of an earlier stage is ever left in a queue.
    """

    def __init__(
        self,
        dataset: nnUNetBaseDataset,
        label_manager: LabelManager,
        plans: Sequence[LoadingPlan],
        schedule: Schedule,
        seed: Sequence[int],
        first_batch: int,
        workers: int,
        **kwargs: object,
    ) -> None:
        """Set the loader to begin with batch `first_batch`.

        `seed` is a sequence of non-negative integers; `workers` is 0 for loading in this process.
        Further arguments go to nnU-Net's loader.
        """
        final = plans[-1]
        super().__init__(
            dataset,
            final.stage.batch_size,
            final.initial_patch_size,
            final.stage.patch_size,
            label_manager,
            transforms=final.transforms,
            **kwargs,
        )
        self._plans = plans
        self._schedule = schedule
        self._seed = tuple(seed)
        self._first_batch = first_batch
        self._stride = max(1, workers)
        self._made = 0

    def set_thread_id(self, thread_id: int) -> None:
        """Take the number of the worker process that this copy of the loader runs in.

        One thread a worker, as in nnU-Net: a forked process that uses OpenMP after its parent did
        waits for ever.
        """
        super().set_thread_id(thread_id)
        torch.set_num_threads(1)
        threading.Thread(target=_leave_with_parent, args=(os.getppid(),), daemon=True).start()

    def generate_train_batch(self) -> dict:
        """Return the next batch of this worker as nnU-Net's loader does: data, target, keys."""
        number = self._first_batch + self.thread_id + self._stride * self._made
        self._made += 1
        plan = self._plans[self._schedule.stage_of_iteration(number)]
        self.batch_size = plan.stage.batch_size
        self.patch_size, self.final_patch_size = plan.initial_patch_size, plan.stage.patch_size
        self.need_to_pad = np.subtract(plan.initial_patch_size, plan.stage.patch_size).astype(int)
        self.transforms = plan.transforms
        word = int(np.random.SeedSequence((*self._seed, number)).generate_state(1)[0])
        random.seed(word)
        np.random.seed(word)
        torch.manual_seed(word)
        return super().generate_train_batch()


def _leave_with_parent(parent: int) -> None:
    """End this worker when the training was killed: nothing else would ever stop it."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def start_loading(
    loader: ScheduledDataLoader, workers: int, pin_memory: bool
) -> SingleThreadedAugmenter | MultiThreadedAugmenter:
    """Start handing out the loader's batches in order, by `workers` processes (0: in this one)."""
    if workers == 0:
        return SingleThreadedAugmenter(loader, None)
    return MultiThreadedAugmenter(
        loader, None, workers, num_cached_per_queue=2, pin_memory=pin_memory, wait_time=0.002
    )
