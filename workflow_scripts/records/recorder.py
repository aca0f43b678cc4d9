"""The recorder of a training, which writes its ledger."""

import math
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import torch

from workflow_scripts.common.errors import UserError
from workflow_scripts.common.observers import observe
from workflow_scripts.common.trainer_protocol import Phase, as_curriculum_trainer
from workflow_scripts.records.compilation import compilation_clock
from workflow_scripts.records.energy_meter import EnergyMeter
from workflow_scripts.records.flop_counter import FlopTable
from workflow_scripts.records.ledger import (
    CaseWork,
    EpochResult,
    EpochWork,
    Ledger,
    Steps,
    ValidationWork,
    Work,
)
from workflow_scripts.records.updates import UpdateCounter
from workflow_scripts.trainers.curricula.schedules.schedule import Stage

Kind = TypeVar("Kind", bound=Work)
Step = tuple[int, tuple[int, ...], float | None]
"""Batch size, patch size and scale factor."""

STUCK_EPOCHS = 3
"""Epochs in a row without any update of the weights after which a training is stopped.

The gradient scaler halves its scale at each skipped step, so after 165 of them it is 0 in fp32 and
no later step can succeed. While the scale is still at least 1, short epochs may only be the first
steps of a training, whose initial scale is too high.
"""


class Recorder:
    """Observes a trainer from outside: the same code measures nnU-Net's trainer and every arm.

    Args:
        ledger: where to write.
        meter: energy meter.
        flops: computation of each step.
        attempt: number of this attempt, 1 for the first.
        began: `time.monotonic()` when the meter started.
        after_epoch: called after every epoch.
    """

    def __init__(
        self,
        ledger: Ledger,
        meter: EnergyMeter,
        flops: FlopTable,
        attempt: int,
        began: float,
        after_epoch: Callable[[], None] = lambda: None,
    ) -> None:
        self._ledger, self._meter, self._flops = ledger, meter, flops
        self._attempt, self._after_epoch = attempt, after_epoch
        self._batches: dict[Phase, Counter[Step]] = {"train": Counter(), "val": Counter()}
        self._seconds: dict[Phase, float] = {"train": 0.0, "val": 0.0}
        self._waited, self._step_ended = 0.0, math.nan
        self._last = began
        self._compilation = compilation_clock()
        self._compiled_before = self._compilation.seconds
        self._updates_before = self._stuck = 0

    def attach(self, trainer: Any) -> None:
        """Observe the trainer's steps; its results are passed through unchanged."""
        self._trainer, self._curriculum = trainer, as_curriculum_trainer(trainer)
        self._updates = UpdateCounter(trainer)
        observe(trainer, "on_train_start", after=lambda _: self.finish("setup"))
        observe(trainer, "on_epoch_end", before=self._end_epoch)
        if self._curriculum:
            observe(
                trainer,
                "save_checkpoint_within_epoch",
                before=partial(self._check_weights, "before its checkpoint"),
                after=lambda _: self._end_part(),
            )
        watched: tuple[tuple[Phase, str, str, str], ...] = (
            ("train", "train_step", "on_train_epoch_start", "on_train_epoch_end"),
            ("val", "validation_step", "on_validation_epoch_start", "on_validation_epoch_end"),
        )
        for phase, step, begin, end in watched:
            observe(trainer, begin, before=partial(self._clock, phase, -1))
            observe(trainer, end, after=partial(self._clock, phase, 1))
            observe(trainer, step, before=partial(self._count, phase))
        observe(trainer, "on_train_epoch_start", after=self._end_step)
        observe(trainer, "train_step", before=self._end_waiting, after=self._end_step)

    def finish(self, phase: str) -> None:
        """Close the current piece of work as an entry without more details, and start the next."""
        self._close(Work, phase=phase)

    def finish_case(self, case: str) -> None:
        """Close the prediction of a case of the final validation."""
        self._close(CaseWork, case=case)

    def finish_validation(self, checkpoint: str, mirroring: bool, ended: str) -> None:
        """Close the final validation; the arguments are those of `ValidationWork`."""
        self._close(ValidationWork, checkpoint=checkpoint, mirroring=mirroring, ended=ended)

    def _close(self, kind: type[Kind], **own: Any) -> None:
        """Write the current piece of work to the ledger and start the next."""
        now, compiled = time.monotonic(), self._compilation.seconds
        work = kind(
            attempt=self._attempt,
            seconds=now - self._last,
            compile_seconds=compiled - self._compiled_before,
            reading=self._meter.read(),
            **own,
        )
        self._last, self._compiled_before = now, compiled
        self._ledger.append(work)

    def _end_part(self) -> None:
        """Close the part of an epoch up to a checkpoint."""
        running = [name for name, seconds in self._seconds.items() if seconds < 0]
        for name in running:
            self._clock(name, 1)
        self._close(EpochWork, steps=self._describe_steps())
        self._reset()
        for name in running:
            self._clock(name, -1)

    def _end_epoch(self) -> None:
        trainer, log = self._trainer, self._trainer.logger
        self._check_weights(f"at the end of epoch {trainer.current_epoch}")
        steps = self._describe_steps()
        updated = steps.iterations > steps.skipped_steps or not steps.iterations
        self._stuck = 0 if updated else self._stuck + 1
        result = EpochResult(
            lr=float(trainer.optimizer.param_groups[0]["lr"]),
            train_loss=_finite(log.get_value("train_losses", step=-1)),
            val_loss=_finite(log.get_value("val_losses", step=-1)),
            pseudo_dice=float(log.get_value("mean_fg_dice", step=-1)),
            pseudo_dice_by_scale=self._describe_scales(),
        )
        self._close(EpochWork, steps=steps, result=result)
        if self._stuck >= STUCK_EPOCHS and not (steps.loss_scale or 0) >= 1:
            raise UserError(
                f"training is stuck: the gradients of every step of the last {STUCK_EPOCHS} epochs "
                f"were not finite, and the gradient scaler's scale is {steps.loss_scale}. "
                "It cannot recover: choose a lower `initial_lr` and another `study` name"
            )
        self._reset()
        self._after_epoch()

    def _check_weights(self, when: str) -> None:
        """Stop a training whose weights are not finite, before it replaces a good checkpoint."""
        weights = self._trainer.network.parameters()
        if not torch.stack([weight.detach().isfinite().all() for weight in weights]).all():
            raise UserError(
                f"the network's weights are not finite {when}: training diverged and cannot "
                f"recover; its last good checkpoint is in {self._ledger.path.parent}. Run again in "
                "case of a fault of the machine; otherwise choose a lower `initial_lr` and another "
                "`study` name"
            )

    def _reset(self) -> None:
        self._updates_before = self._updates.count
        for steps in self._batches.values():
            steps.clear()
        self._seconds = {"train": 0.0, "val": 0.0}
        self._waited = 0.0

    def _describe_steps(self) -> Steps:
        """Return the steps since the start of the epoch or its last checkpoint."""
        epoch, scaler = self._trainer.current_epoch, self._trainer.grad_scaler
        train, val = self._batches["train"], self._batches["val"]
        iterations = sum(train.values())
        voxels = sum(batch * math.prod(size) * n for (batch, size, _), n in train.items())
        train_gflop = _gflop(train, self._flops.training_step)
        sizes = {size for _, size, _ in train}
        batches = {batch for batch, _, _ in train}
        size = Stage(next(iter(sizes)), 1).label if len(sizes) == 1 else "random"
        number, stage = self._stage_of(epoch)
        loaded = Stage(stage.field_of_view, 1).label if stage and stage.field_of_view else size
        return Steps(
            epoch=epoch,
            stage=number,
            patch_size=size if sizes else None,
            field_of_view=loaded if sizes else None,
            augmentation=stage.augmentation if stage else 1.0,
            batch_size=next(iter(batches)) if len(batches) == 1 else None,
            gflop=train_gflop + _gflop(val, self._flops.validation_step),
            train_seconds=self._seconds["train"],
            val_seconds=self._seconds["val"],
            train_gflop=train_gflop,
            voxels_per_iteration=voxels / iterations if iterations else None,
            iterations=iterations,
            skipped_steps=iterations - (self._updates.count - self._updates_before),
            loss_scale=scaler.get_scale() if scaler else None,
            wait_seconds=self._waited,
            process_peak_mb=_process_peak_mb(),
            device_peak_mb=self._device_peak_mb(),
        )

    def _stage_of(self, epoch: int) -> tuple[int | None, Stage | None]:
        """Return the epoch's stage number and stage; None if batches differ or none is planned."""
        if self._curriculum is None:
            return 0, None
        schedule = self._curriculum.schedule()
        number = schedule.stage_of_epoch(epoch)
        return number, None if number is None else schedule.stages[number]

    def _describe_scales(self) -> dict[str, float] | None:
        """Return the pseudo Dice of each scale factor (as text), if the trainer has several."""
        found = self._curriculum.pseudo_dice_by_scale if self._curriculum else {}
        return {f"{scale:g}": dice for scale, dice in found.items()} or None

    def _clock(self, phase: Phase, sign: int, *_: object) -> None:
        self._seconds[phase] += sign * (time.monotonic() - self._compilation.seconds)

    def _end_waiting(self, *_: object) -> None:
        self._waited += time.monotonic() - self._step_ended

    def _end_step(self, *_: object) -> None:
        self._step_ended = time.monotonic()

    def _device_peak_mb(self) -> float | None:
        device = self._trainer.device
        if device.type != "cuda":
            return None
        return float(torch.cuda.max_memory_reserved(device) / 2**20)

    def _count(self, phase: Phase, batch: dict[str, Any]) -> None:
        """Count a step by batch size, patch size and, if the network has one, scale factor."""
        batch_size, _, *size = batch["data"].shape
        scale = self._curriculum.scale_of_step(phase) if self._curriculum else None
        self._batches[phase][batch_size, tuple(size), scale] += 1
        self._updates.follow()


def _gflop(steps: Mapping[Step, int], count: Callable[..., int]) -> float:
    return sum(times * count(*step) for step, times in steps.items()) / 1e9


def _process_peak_mb() -> float:
    """Return the largest resident memory of this process so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10  # bytes; KiB on Linux


def _finite(value: Any) -> float | None:
    """Return a number, or None if it is NaN or infinite."""
    return float(value) if math.isfinite(value) else None
