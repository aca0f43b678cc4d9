"""Batches of low frequencies: loaded or repeated, and reduced to the size of their stage."""

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

from ..schedules.schedule import Schedule, Stage
from .lowpass import reduce_image, reduce_labels
from .targets import downsample_targets


class LowFrequencyBatches:
    """Yields the batches of a schedule: loaded or repeated, and reduced to the stage's size.

    In a stage with replay, every r-th iteration loads a batch. The last `replay_batches` loaded
    batches are kept, already reduced. How the r iterations use a batch depends on the replay mode:

    - `whole`: the first iteration gets the new batch; the others draw one of the kept batches.
    - `mixed`: each iteration gets the next 1/r of the new samples and draws the rest of its batch
      from the samples of the last `replay_batches` batches (lines 42-89 of `engine_buffer.py` in
      the authors' repository; their sub-batches are single samples here).

    Draws are uniform, with replacement, and depend only on (seed, iteration). A resumed training
    first reloads the batches from which it may draw, so it sees the same batches as an
    uninterrupted one.
    """

    def __init__(
        self,
        loader: SingleThreadedAugmenter | MultiThreadedAugmenter,
        schedule: Schedule,
        first_iteration: int,
        replay_batches: int,
        mixed: bool,
        seed: int,
        device: torch.device,
        deep_supervision_scales: list | None,
        **lowpass: Any,
    ) -> None:
        """Begin with an iteration of the training.

        Args:
            loader: loads batches at the stages' `loaded_size`, starting with the first one that
                this iteration needs (`missing_batches` before its own).
            schedule: schedule of the training.
            first_iteration: number of the iteration whose batch is requested first.
            replay_batches: number of batches that are kept.
            mixed: whether replay mixes new and earlier samples in every batch.
            seed: seed of the draws.
            device: where batches are reduced and kept.
            deep_supervision_scales: nnU-Net's, for the targets of each output; None means one
                target.
            lowpass: options of `lowpass.reduce_image`.
        """
        self._loader, self._schedule, self._device = loader, schedule, device
        self._seed, self._lowpass = seed, lowpass
        self._replay_batches, self._mixed = replay_batches, mixed
        self._iteration = first_iteration
        self._stage: int | None = None
        self._kept: deque[dict] = deque(maxlen=batches_to_keep(replay_batches, mixed))
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
        loaded = self._load(stage) if schedule.loads(iteration) else None
        draws = random.Random(f"{self._seed}/{iteration}")
        if self._mixed and stage.replay > 1:
            return self._mix(stage.replay, schedule.iteration_of_stage(iteration), draws)
        if loaded is not None:
            return loaded
        return self._unpack(self._kept[draws.randrange(len(self._kept))])

    def _mix(self, replay: int, iteration: int, draws: random.Random) -> dict:
        """Return the batch of an iteration of the stage: new samples, then drawn ones."""
        size = len(self._kept[-1]["keys"])
        before = (len(self._kept) - 1) * size
        turn = iteration % replay
        begin, end = (before - (-number * size // replay) for number in (turn, turn + 1))
        oldest = max(0, end - self._replay_batches * size)
        chosen = [*range(begin, end)]
        chosen += [draws.randrange(oldest, end) for _ in range(size - len(chosen))]
        samples = [(self._kept[number // size], number % size) for number in chosen]

        def gather(tensors: list[torch.Tensor]) -> torch.Tensor:
            rows = zip(tensors, samples, strict=True)
            return torch.stack([tensor[sample] for tensor, (_, sample) in rows])

        targets = [batch["target"] for batch, _ in samples]
        return {
            "data": gather([batch["data"] for batch, _ in samples]).float(),
            "target": gather(targets)
            if torch.is_tensor(targets[0])
            else [gather(list(of_output)) for of_output in zip(*targets, strict=True)],
            "keys": [batch["keys"][sample] for batch, sample in samples],
        }

    def _load(self, stage: Stage) -> dict:
        """Take the loader's next batch and reduce it; keep it if the stage replays."""
        batch = next(self._loader)
        if stage.field_of_view is not None:
            batch = self._reduce(batch, stage.patch_size)
        if stage.replay > 1:
            self._kept.append(self._pack(batch))
        return batch

    def _reduce(self, batch: dict, size: tuple[int, ...]) -> dict:
        """Return a loaded batch reduced to `size`, on the device."""
        data = batch["data"].to(self._device, non_blocking=True)
        target = batch["target"].to(self._device, non_blocking=True)
        return {
            "data": reduce_image(data, size, **self._lowpass),
            "target": self._split(reduce_labels(target, size)),
            "keys": batch["keys"],
        }

    def _split(self, target: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """Return the target of every output."""
        return target if self._targets is None else downsample_targets(self._targets, target)

    def _pack(self, batch: dict) -> dict:
        """Use half precision on a GPU, where nnU-Net's first convolution uses no more."""
        return {**batch, "data": batch["data"].half()} if batch["data"].is_cuda else batch

    def _unpack(self, batch: dict) -> dict:
        return {**batch, "data": batch["data"].float()}

    def _finish(self) -> None:
        """End the loader's workers, if it has any."""
        if isinstance(self._loader, MultiThreadedAugmenter):
            self._loader._finish()


def batches_to_keep(replay_batches: int, mixed: bool) -> int:
    """Return how many batches to keep: those that may be drawn, and the new one if mixed."""
    return replay_batches + mixed


def missing_batches(schedule: Schedule, iteration: int, kept: int) -> int:
    """Return how many of the `kept` batches an iteration expects to be already loaded."""
    return min(schedule.replayable_before(iteration), kept)
