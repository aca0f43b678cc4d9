"""A ledger of a training that survives a kill, and the recorder that writes it.

The ledger (`ledger.jsonl` in nnU-Net's fold folder) gets one line a piece of work as it ends: every
attempt's start, its set-up, each epoch, the final validation. `run_record` derives the files of a
run from it.
"""

import json
import math
import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from energy import EnergyMeter
from flops import FlopTable
from log import UserError
from trainers.curricula.schedules import Stage


class Ledger:
    """Append-only lines of JSON; a line that a kill cut short is ignored."""

    def __init__(self, path: Path, before_append: Callable[[], None] = lambda: None) -> None:
        """Open the ledger at `path`, which need not exist yet.

        `before_append` raises an exception where this process must not write to it.
        """
        self.path, self._before_append = path, before_append

    def read(self) -> list[dict]:
        """Return all whole entries in the order in which they were written."""
        if not self.path.exists():
            return []
        entries = []
        for line in self.path.read_text().splitlines():
            try:
                entries.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return entries

    def append(self, entry: dict) -> None:
        """Write one entry through to the disk."""
        self._before_append()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.write(b"\n")
            file.write(json.dumps(entry).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


class Recorder:
    """Watches a trainer from outside: the same lines meter nnU-Net's stock trainer and every arm.

    Args:
        ledger, meter, flops: where to write, and what to read energy and work from.
        attempt: number of this attempt, 1 for the first.
        began: `time.monotonic()` when the meter began.
        after_epoch: called with the ledger's entries after every epoch.
    """

    def __init__(
        self,
        ledger: Ledger,
        meter: EnergyMeter,
        flops: FlopTable,
        attempt: int,
        began: float,
        after_epoch: Callable[[list[dict]], None],
    ) -> None:
        self._ledger, self._meter, self._flops = ledger, meter, flops
        self._attempt, self._after_epoch = attempt, after_epoch
        self._batches: dict[str, Counter] = {"train": Counter(), "val": Counter()}
        self._seconds = {"train": 0.0, "val": 0.0}
        self._last = began

    def attach(self, trainer) -> None:
        """Observe the trainer's steps; its results are passed through untouched."""
        self._trainer = trainer
        self._wrap("on_train_start", after=lambda: self.finish("setup"))
        self._wrap("on_epoch_end", before=self._end_epoch)
        if hasattr(trainer, "save_checkpoint_within_epoch"):
            self._wrap("save_checkpoint_within_epoch", after=self._end_part)
        for phase, step, begin, end in (
            ("train", "train_step", "on_train_epoch_start", "on_train_epoch_end"),
            ("val", "validation_step", "on_validation_epoch_start", "on_validation_epoch_end"),
        ):
            self._wrap(begin, before=partial(self._clock, phase, -1))
            self._wrap(end, after=partial(self._clock, phase, 1))
            self._count(step, phase)

    def finish(self, phase: str, **fields: object) -> dict:
        """Close the present piece of work as one ledger entry and begin the next."""
        now = time.monotonic()
        entry = {"entry": "work", "attempt": self._attempt, "phase": phase, **fields}
        entry |= {"seconds": now - self._last, **asdict(self._meter.read())}
        self._last = now
        self._ledger.append(entry)
        return entry

    def _end_part(self) -> None:
        """Close what was done of an epoch up to a checkpoint, as an entry marked `partial`."""
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
            **_dice_by_scale(trainer),
        )
        self._reset()
        self._after_epoch(self._ledger.read())

    def _reset(self) -> None:
        for phase in ("train", "val"):
            self._batches[phase].clear()
            self._seconds[phase] = 0.0

    def _describe_steps(self) -> dict[str, Any]:
        """What this attempt did of the present epoch; sizes are None where it trained no batch."""
        epoch = self._trainer.current_epoch
        train, val = (dict(self._batches[phase]) for phase in ("train", "val"))
        iterations = sum(train.values())
        voxels = sum(batch * math.prod(size) * n for (batch, size, _), n in train.items())
        train_gflop = _gflop(train, self._flops.training_step)
        sizes = {size for _, size, _ in train}
        batches = {batch for batch, _, _ in train}
        size = Stage(next(iter(sizes)), 1).label if len(sizes) == 1 else "random"
        number, stage = _stage_of(self._trainer, epoch)
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

    def _clock(self, phase: str, sign: int) -> None:
        self._seconds[phase] += sign * time.monotonic()

    def _count(self, name: str, phase: str) -> None:
        """Count steps by batch size, patch size and, where the network has one, scale factor."""
        step = getattr(self._trainer, name)
        scale_of_step = getattr(self._trainer, "scale_of_step", lambda phase: None)

        def counted(batch: dict) -> dict:
            batch_size, _, *size = batch["data"].shape
            self._batches[phase][batch_size, tuple(size), scale_of_step(phase)] += 1
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


def _dice_by_scale(trainer) -> dict[str, dict[str, float]]:
    """Return the pseudo Dice of each scale factor (as text), of a trainer that has several."""
    found = getattr(trainer, "pseudo_dice_by_scale", {})
    named = {f"{scale:g}": dice for scale, dice in found.items()}
    return {"pseudo_dice_by_scale": named} if named else {}


def _gflop(steps: dict[tuple, int], count: Callable[..., int]) -> float:
    return sum(times * count(*step) for step, times in steps.items()) / 1e9


def _stage_of(trainer, epoch: int) -> tuple[int | None, Stage | None]:
    """Number and content of an epoch's stage; None where its batches differ, or none is planned."""
    if not hasattr(trainer, "schedule"):
        return 0, None
    schedule = trainer.schedule()
    number = schedule.stage_of_epoch(epoch)
    return number, None if number is None else schedule.stages[number]
