"""The recorder of a training, which writes its ledger."""

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

from workflow_scripts.common.errors import UserError
from workflow_scripts.common.trainer_protocol import Phase, as_curriculum_trainer
from workflow_scripts.records.energy_meter import EnergyMeter
from workflow_scripts.records.flop_counter import FlopTable
from workflow_scripts.records.ledger import Entry, Ledger
from workflow_scripts.trainers.curricula.schedules.schedule import Stage

Step = tuple[int, tuple[int, ...], float | None]
"""Batch size, patch size and scale factor."""


class Recorder:
    """Observes a trainer from outside: the same code measures nnU-Net's trainer and every arm.

    Args:
        ledger: where to write.
        meter: energy meter.
        flops: computation of each step.
        attempt: number of this attempt, 1 for the first.
        began: `time.monotonic()` when the meter started.
        after_epoch: called with the ledger's entries after every epoch.
    """

    def __init__(
        self,
        ledger: Ledger,
        meter: EnergyMeter,
        flops: FlopTable,
        attempt: int,
        began: float,
        after_epoch: Callable[[list[Entry]], None],
    ) -> None:
        self._ledger, self._meter, self._flops = ledger, meter, flops
        self._attempt, self._after_epoch = attempt, after_epoch
        self._batches: dict[Phase, Counter[Step]] = {"train": Counter(), "val": Counter()}
        self._seconds: dict[Phase, float] = {"train": 0.0, "val": 0.0}
        self._last = began

    def attach(self, trainer: Any) -> None:
        """Observe the trainer's steps; its results are passed through unchanged."""
        self._trainer, self._curriculum = trainer, as_curriculum_trainer(trainer)
        self._wrap("on_train_start", after=lambda: self.finish("setup"))
        self._wrap("on_epoch_end", before=self._end_epoch)
        if self._curriculum:
            self._wrap("save_checkpoint_within_epoch", after=self._end_part)
        watched: tuple[tuple[Phase, str, str, str], ...] = (
            ("train", "train_step", "on_train_epoch_start", "on_train_epoch_end"),
            ("val", "validation_step", "on_validation_epoch_start", "on_validation_epoch_end"),
        )
        for phase, step, begin, end in watched:
            self._wrap(begin, before=partial(self._clock, phase, -1))
            self._wrap(end, after=partial(self._clock, phase, 1))
            self._count(step, phase)

    def finish(self, phase: str, **fields: object) -> Entry:
        """Close the current piece of work as one ledger entry and start the next."""
        now = time.monotonic()
        entry = {"entry": "work", "attempt": self._attempt, "phase": phase, **fields}
        entry |= {"seconds": now - self._last, **asdict(self._meter.read())}
        self._last = now
        self._ledger.append(entry)
        return entry

    def _end_part(self) -> None:
        """Close the part of an epoch up to a checkpoint, as an entry marked `partial`."""
        running = [name for name, seconds in self._seconds.items() if seconds < 0]
        for name in running:
            self._clock(name, 1)
        self.finish("training", partial=True, **self._describe_steps())
        self._reset()
        for name in running:
            self._clock(name, -1)

    def _end_epoch(self) -> None:
        trainer, log = self._trainer, self._trainer.logger
        epoch = trainer.current_epoch
        loss = float(log.get_value("train_losses", step=-1))
        if not math.isfinite(loss):
            raise UserError(
                f"the training loss of epoch {epoch} is {loss}: training diverged and cannot "
                f"recover; its last good checkpoint is in {self._ledger.path.parent}"
            )
        self.finish(
            "training",
            **self._describe_steps(),
            lr=float(trainer.optimizer.param_groups[0]["lr"]),
            train_loss=loss,
            val_loss=float(log.get_value("val_losses", step=-1)),
            pseudo_dice=float(log.get_value("mean_fg_dice", step=-1)),
            **self._describe_scales(),
        )
        self._reset()
        self._after_epoch(self._ledger.read())

    def _reset(self) -> None:
        for steps in self._batches.values():
            steps.clear()
        self._seconds = {"train": 0.0, "val": 0.0}

    def _describe_steps(self) -> dict[str, Any]:
        """Return this attempt's work in the current epoch; sizes are None if it trained nothing."""
        epoch = self._trainer.current_epoch
        train, val = self._batches["train"], self._batches["val"]
        iterations = sum(train.values())
        voxels = sum(batch * math.prod(size) * n for (batch, size, _), n in train.items())
        train_gflop = _gflop(train, self._flops.training_step)
        sizes = {size for _, size, _ in train}
        batches = {batch for batch, _, _ in train}
        size = Stage(next(iter(sizes)), 1).label if len(sizes) == 1 else "random"
        number, stage = self._stage_of(epoch)
        loaded = Stage(stage.field_of_view, 1).label if stage and stage.field_of_view else size
        return {
            "epoch": epoch,
            "stage": number,
            "patch_size": size if sizes else None,
            "field_of_view": loaded if sizes else None,
            "augmentation": stage.augmentation if stage else 1.0,
            "batch_size": next(iter(batches)) if len(batches) == 1 else None,
            "gflop": train_gflop + _gflop(val, self._flops.validation_step),
            "train_seconds": self._seconds["train"],
            "val_seconds": self._seconds["val"],
            "train_gflop": train_gflop,
            "voxels_per_iteration": voxels / iterations if iterations else None,
            "iterations": iterations,
        }

    def _stage_of(self, epoch: int) -> tuple[int | None, Stage | None]:
        """Return the epoch's stage number and stage; None if batches differ or none is planned."""
        if self._curriculum is None:
            return 0, None
        schedule = self._curriculum.schedule()
        number = schedule.stage_of_epoch(epoch)
        return number, None if number is None else schedule.stages[number]

    def _describe_scales(self) -> dict[str, dict[str, float]]:
        """Return the pseudo Dice of each scale factor (as text), if the trainer has several."""
        found = self._curriculum.pseudo_dice_by_scale if self._curriculum else {}
        named = {f"{scale:g}": dice for scale, dice in found.items()}
        return {"pseudo_dice_by_scale": named} if named else {}

    def _clock(self, phase: Phase, sign: int) -> None:
        self._seconds[phase] += sign * time.monotonic()

    def _count(self, name: str, phase: Phase) -> None:
        """Count steps by batch size, patch size and, if the network has one, scale factor."""
        step = getattr(self._trainer, name)

        def counted(batch: dict[str, Any]) -> object:
            batch_size, _, *size = batch["data"].shape
            scale = self._curriculum.scale_of_step(phase) if self._curriculum else None
            self._batches[phase][batch_size, tuple(size), scale] += 1
            return step(batch)

        setattr(self._trainer, name, counted)

    def _wrap(
        self,
        name: str,
        before: Callable[[], object] | None = None,
        after: Callable[[], object] | None = None,
    ) -> None:
        method = getattr(self._trainer, name)

        def observed(*args: object, **kwargs: object) -> object:
            if before:
                before()
            result = method(*args, **kwargs)
            if after:
                after()
            return result

        setattr(self._trainer, name, observed)


def _gflop(steps: Mapping[Step, int], count: Callable[..., int]) -> float:
    return sum(times * count(*step) for step, times in steps.items()) / 1e9
