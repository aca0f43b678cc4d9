"""Data loading for schedules: one pool of workers that knows the training size of every batch."""

import multiprocessing
import os
import random
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from multiprocessing.queues import Queue
from queue import Empty
from typing import Any

import numpy as np
import torch
from batchgenerators.dataloading.multi_threaded_augmenter import MultiThreadedAugmenter
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from ..schedules.schedule import Schedule, Stage
from .batch import Draws
from .batched_augmentation import BatchedAugmentation
from .spatial_transform import Placement

LARGEST_WHOLE = 2**26
"""Maximum voxels, over all channels, of a volume that is decompressed as a whole (256 MB)."""

CHECK_SECONDS = 1.0
"""Time without a batch after which the workers are looked at."""


@dataclass(frozen=True)
class LoadingPlan:
    """How batches of one stage are made.

    Attributes:
        stage: patch size, and batch size of this process.
        initial_patch_size: size of the crop from the image (larger than the stage's patch if the
            spatial augmentation needs a margin).
        transforms: transforms that turn the crop into the stage's patch.
        forced: for each sample of the batch, whether it must contain foreground; None draws this
            with the loader's probability (nnU-Net's `probabilistic_oversampling`).
        volumes: for each sample, the index in the batch of the volume that it is cropped from;
            None uses a separate volume for each sample.
        batched: the transforms for all samples of a batch at once; None applies `transforms` to
            one sample after the other.
        deferred: yield `Crops`, which `DeviceBatches` augments, if there is a `batched`.
    """

    stage: Stage
    initial_patch_size: Sequence[int] | np.ndarray
    transforms: BasicTransform
    forced: tuple[bool, ...] | None = None
    volumes: tuple[int, ...] | None = None
    batched: BatchedAugmentation | None = None
    deferred: bool = False


@dataclass(frozen=True)
class Crops:
    """A batch that is cropped but not yet augmented.

    Attributes:
        images, labels, wide_images, wide_labels: arguments of `BatchedAugmentation.augment`.
        placement: placement of the batch.
        numbers: generator of the parameters, in the state in which `place` left it.
        noise_seed: seed of the noise.
    """

    images: torch.Tensor
    labels: torch.Tensor
    wide_images: torch.Tensor
    wide_labels: torch.Tensor
    placement: Placement
    numbers: np.random.Generator
    noise_seed: int

    @torch.no_grad()
    def augment(
        self, augmentation: BatchedAugmentation, device: torch.device | str = "cpu"
    ) -> tuple[torch.Tensor, Any]:
        """Return images and targets, made on a device; a function of seed and device."""
        return augmentation.augment(
            self.images.to(device, non_blocking=True),
            self.labels.to(device, non_blocking=True),
            self.wide_images.to(device, non_blocking=True),
            self.wide_labels.to(device, non_blocking=True),
            self.placement,
            Draws(self.numbers, torch.Generator(device).manual_seed(self.noise_seed)),
        )


def samples_of_rank(batch_size: int, rank: int, ranks: int) -> range:
    """Return the samples of a batch that one of `ranks` processes makes, as in nnU-Net.

    Raises ValueError for a batch with fewer samples than processes.
    """
    if batch_size < ranks:
        raise ValueError(f"a batch of {batch_size} cannot be shared by {ranks} processes")
    share, rest = divmod(batch_size, ranks)
    first = rank * share + min(rank, rest)
    return range(first, first + share + (rank < rest))


def force_last(batch_size: int, share: float) -> list[bool]:
    """Force foreground in the last samples of a batch (nnU-Net's `_oversample_last_XX_percent`)."""
    return [number >= round(batch_size * (1 - share)) for number in range(batch_size)]


def crop_few_volumes(batch_size: int, planned: int) -> list[int]:
    """Return each sample's volume, with no more volumes per batch than the planned batch has.

    Every volume yields ceil(batch / planned) crops (arXiv 2510.23241, the authors' loader).
    """
    crops = -(-batch_size // planned)
    return [number // crops for number in range(batch_size)]


def read_whole(
    shape: Sequence[int], blocks: Sequence[int] | None, crops: Iterable[Sequence[int]]
) -> bool:
    """Return whether to decompress a volume as a whole before taking several crops.

    A crop decompresses all blocks that it touches, repeatedly if crops overlap.

    Args:
        shape, blocks: shapes of the volume and of its blocks (channel first); None means that it
            is not compressed.
        crops: sizes of the crops, in voxels per axis.
    """
    if blocks is None or prod(shape) > LARGEST_WHOLE:
        return False
    touched = sum(
        prod(
            min((-(-size // block) + 1) * block, whole)
            for size, block, whole in zip(crop, blocks[1:], shape[1:], strict=True)
        )
        for crop in crops
    )
    return touched > prod(shape[1:])


def copy_crop(
    data: Any, seg: Any, lower: Sequence[int], image: np.ndarray, label: np.ndarray
) -> None:
    """Copy the overlap of a volume and a crop; leave the rest of the crop unchanged.

    Args:
        data, seg: (channel, *spatial), arrays or objects that are sliced like arrays.
        lower: the crop's first voxel in the volume, on each axis; may be outside.
        image, label: the crop, (channel, *spatial), filled with the values for outside.
    """
    source, place = [slice(None)], [slice(None)]
    for start, size, end in zip(lower, image.shape[1:], data.shape[1:], strict=True):
        first, last = int(max(start, 0)), int(min(start + size, end))
        if first >= last:
            return
        source.append(slice(first, last))
        place.append(slice(first - start, last - start))
    where, there = tuple(place), tuple(source)
    image[where] = data[there]
    label[where] = seg[there]


def _samples_by_key(keys: Sequence[str]) -> dict[str, list[int]]:
    samples: dict[str, list[int]] = {}
    for sample, key in enumerate(keys):
        samples.setdefault(key, []).append(sample)
    return samples


def _empty(
    samples: int, channels: tuple[int, int], size: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Return images and labels filled with nnU-Net's padding values."""
    images = np.zeros((samples, channels[0], *size), np.float32)
    return images, np.full((samples, channels[1], *size), -1, np.int16)


class _LastCase:
    """A dataset that keeps the last opened case, for several crops of one volume."""

    def __init__(self, dataset: nnUNetBaseDataset) -> None:
        self.identifiers, self._dataset = dataset.identifiers, dataset
        self._last: tuple[str, tuple] = ("", ())

    def load_case(self, identifier: str) -> tuple:
        if self._last[0] != identifier:
            self._last = (identifier, self._dataset.load_case(identifier))
        return self._last[1]


class ScheduledDataLoader(nnUNetDataLoader):
    """nnU-Net's loader, which knows the stage and the seed of every batch.

    Batch k has its scheduled size and is a function of (seed, k) alone, regardless of the number
    of workers: worker w of n makes the batches w, w + n, w + 2n, ..., and `MultiThreadedAugmenter`
    yields all batches in order. So nothing needs rebuilding when a stage ends, and no batch of an
    earlier stage is ever left in a queue.
    """

    get_do_oversample: Callable[[int], bool]

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
        """Start at batch `first_batch`.

        `seed` is a sequence of non-negative integers; `workers` is 0 for loading in this process.
        Further arguments go to nnU-Net's loader.
        """
        final = plans[-1]
        super().__init__(
            _LastCase(dataset),
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
        self._plan = final
        self._draw_forced = self.get_do_oversample
        self.get_do_oversample = self._is_forced
        self._deterministic = torch.are_deterministic_algorithms_enabled()
        self._warn_only = torch.is_deterministic_algorithms_warn_only_enabled()

    def set_thread_id(self, thread_id: int) -> None:
        """Set the number of the worker process in which this copy of the loader runs.

        Each worker has one thread, as in nnU-Net: a forked process that uses OpenMP after its
        parent did hangs. A worker that is spawned does not inherit torch's settings. After a signal
        to all processes of a job (Ctrl-C, or a scheduler's), the worker stays alive long enough for
        the training to finish its step and its checkpoint.
        """
        super().set_thread_id(thread_id)
        torch.set_num_threads(1)
        torch.use_deterministic_algorithms(self._deterministic, warn_only=self._warn_only)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, _leave_later)
        setattr(Queue, "_on_queue_feeder_error", staticmethod(_leave_with_error))  # noqa: B010
        threading.Thread(target=_leave_with_parent, args=(os.getppid(),), daemon=True).start()

    def generate_train_batch(self) -> dict:
        """Return the next batch of this worker as nnU-Net's loader does: data, target, keys."""
        number = self._first_batch + self.thread_id + self._stride * self._made
        self._made += 1
        stage = self._schedule.stage_of_batch(number)
        plan = self._plan = self._plans[stage]
        self.batch_size = plan.stage.batch_size
        # As nnU-Net does, take a 2D patch from a volume as a box of one slice.
        slices = (1,) * self.patch_size_was_2d
        self.patch_size = (*slices, *plan.initial_patch_size)
        self.final_patch_size = (*slices, *plan.stage.patch_size)
        self.need_to_pad = np.subtract(self.patch_size, self.final_patch_size).astype(int)
        self.transforms = plan.transforms
        word = int(np.random.SeedSequence((*self._seed, number)).generate_state(1)[0])
        random.seed(word)
        np.random.seed(word)
        torch.manual_seed(word)
        if plan.batched is None:
            return super().generate_train_batch()
        keys = self.get_indices()
        crops = self._crop(keys, plan.batched, Draws.of((*self._seed, number)))
        if plan.deferred:
            return {"crops": crops, "keys": keys, "stage": stage}
        data, target = crops.augment(plan.batched)
        return {"data": data, "target": target, "keys": keys}

    def _crop(self, keys: Sequence[str], augmentation: BatchedAugmentation, draws: Draws) -> Crops:
        """Crop all samples of a batch, opening each volume once.

        Samples that are neither rotated nor scaled are cropped without a margin.
        """
        forced = [self.get_do_oversample(sample) for sample in range(len(keys))]
        placement = augmentation.place(len(keys), draws)
        moved = {sample: place for place, sample in enumerate(placement.moved.tolist())}
        initial = [int(size) for size in self.patch_size]
        patch = [int(size) for size in self.final_patch_size]
        inset = [wide // 2 - size // 2 for wide, size in zip(initial, patch, strict=True)]
        first_data, first_seg, *_ = self._data.load_case(keys[0])
        channels = len(first_data), len(first_seg)
        images, labels = _empty(len(keys), channels, patch)
        wide_images, wide_labels = _empty(len(moved), channels, initial)
        for key, samples in _samples_by_key(keys).items():
            data, seg, _, properties = self._data.load_case(key)
            moving = sum(sample in moved for sample in samples)
            crops = [initial] * moving + [patch] * (len(samples) - moving)
            if read_whole(data.shape, getattr(data, "blocks", None), crops):
                data, seg = data[:], seg[:]
            for sample in samples:
                box, _ = self.get_bbox(
                    data.shape[1:], forced[sample], properties["class_locations"]
                )
                if sample in moved:
                    place = moved[sample]
                    copy_crop(data, seg, box, wide_images[place], wide_labels[place])
                else:
                    lower = [start + margin for start, margin in zip(box, inset, strict=True)]
                    copy_crop(data, seg, lower, images[sample], labels[sample])

        def tensor(boxes: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(boxes[:, :, 0] if self.patch_size_was_2d else boxes)

        return Crops(
            tensor(images),
            tensor(labels),
            tensor(wide_images),
            tensor(wide_labels),
            placement,
            draws.numbers,
            draws.noise.initial_seed(),
        )

    def get_indices(self) -> Sequence[str]:
        """Draw the cases of a batch, one for each of its volumes."""
        if self._plan.volumes is None:
            return super().get_indices()
        first = self._plan.volumes[0]
        self.batch_size = self._plan.volumes[-1] - first + 1
        cases = super().get_indices()
        self.batch_size = self._plan.stage.batch_size
        return [cases[volume - first] for volume in self._plan.volumes]

    def _is_forced(self, sample: int) -> bool:
        forced = self._plan.forced
        return self._draw_forced(sample) if forced is None else forced[sample]


def _leave_later(number: int, frame: object) -> None:
    timer = threading.Timer(60, os._exit, (1,))
    timer.daemon = True
    timer.start()


def _leave_with_error(error: Exception, batch: object) -> None:
    """End this worker if a batch cannot be handed over; the queue would drop it without a word.

    Causes are a full `/dev/shm`, too many open files, and a TMPDIR that has no sockets.
    """
    traceback.print_exception(error)
    sys.stderr.flush()
    os._exit(1)


def _leave_with_parent(parent: int) -> None:
    """End this worker if the training was killed; nothing else would stop it.

    The `parent` of a worker from a fork server is the server, which outlives the training.
    """
    training = multiprocessing.parent_process()
    while os.getppid() == parent and (training is None or training.is_alive()):
        time.sleep(1)
    os._exit(1)


class WatchedAugmenter(MultiThreadedAugmenter):
    """batchgenerators' loader, for which a process or thread that fails is always an error.

    Its own thread, which receives the batches, looks at the workers only in between. It ends if it
    cannot open a batch, and waits forever for the rest of one whose worker was killed.
    """

    _processes: list[Any]
    _queues: list[Any]

    def __next__(self) -> dict:
        """Return the next batch; raise RuntimeError if none can come any more."""
        if not self.was_initialized:
            self._start()
        while True:
            try:
                return self.pin_memory_queue.get(timeout=CHECK_SECONDS)
            except Empty:
                pass
            if not all(one.is_alive() for one in (self.pin_memory_thread, *self._processes)):
                codes = [process.exitcode for process in self._processes]
                self._abandon()
                raise RuntimeError(
                    "One or more background workers are no longer alive. Exiting. Their exit codes "
                    f"are {codes}; -9 is nearly always lack of memory, and for others the error "
                    "stands above in the log"
                )

    def _abandon(self) -> None:
        """Kill all workers, without waiting for a lock that a dead one may hold."""
        for process in self._processes:
            process.kill()
            process.join()
        self._processes, self._queues, self.was_initialized = [], [], False


def start_loading(
    loader: ScheduledDataLoader, workers: int, pin_memory: bool
) -> SingleThreadedAugmenter | MultiThreadedAugmenter:
    """Start loading batches in order with `workers` processes (0: in this process).

    The workers start at once, as in nnU-Net, instead of at the first batch. Otherwise those of the
    validation would slow down the epochs in which they fill their queues.
    """
    if workers == 0:
        return SingleThreadedAugmenter(loader, None)
    augmenter = WatchedAugmenter(
        loader, None, workers, num_cached_per_queue=2, pin_memory=pin_memory, wait_time=0.002
    )
    augmenter._start()
    return augmenter


class DeviceBatches:
    """Yields a loader's batches; deferred ones are augmented on the training's device.

    The workers then only read and crop; the training steps wait for the augmentation.
    """

    def __init__(
        self,
        loader: SingleThreadedAugmenter | MultiThreadedAugmenter,
        plans: Sequence[LoadingPlan],
        device: torch.device,
    ) -> None:
        """Take a started loader, and the plans of its stages."""
        self._loader, self._plans, self._device = loader, plans, device

    def __iter__(self) -> Iterator[dict]:
        """Return the iterator itself."""
        return self

    def __next__(self) -> dict:
        """Return the next batch as nnU-Net's loader does: data, target, keys."""
        batch = next(self._loader)
        if "crops" not in batch:
            return batch
        augmentation = self._plans[batch["stage"]].batched
        assert augmentation is not None, "only batched augmentation can be deferred"
        data, target = batch["crops"].augment(augmentation, self._device)
        return {"data": data, "target": target, "keys": batch["keys"]}

    def _finish(self) -> None:
        """End the loader's workers, if it has any."""
        if isinstance(self._loader, MultiThreadedAugmenter):
            self._loader._finish()
