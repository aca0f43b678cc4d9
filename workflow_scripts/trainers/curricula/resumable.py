"""Interruptible training: complete and frequent checkpoints, also within an epoch."""

import time
from pathlib import Path

import numpy as np
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from .durable_files import replace_durably

LOSSES = "losses_within_epoch"
"""Key in a checkpoint's `init_args`, the part that nnU-Net leaves to the trainer."""


class TrainingStopped(SystemExit):
    """The training stopped on request, with a checkpoint to resume from."""


class ResumableTrainer(nnUNetTrainer):
    """nnU-Net's trainer, which can be stopped between any two steps without losing work.

    Attributes:
        checkpoint_seconds: after this time a checkpoint is written at the next end of an epoch, or
            within an epoch that lasts longer, in addition to nnU-Net's every 50 epochs (0: at the
            end of every epoch).
        plot_seconds: minimum time between two progress plots.
        stop_requested: if set (such as by a signal handler), the trainer writes a checkpoint after
            the current step and raises `TrainingStopped`. Not for several GPUs (DDP), whose
            processes would have to agree on a step.
    """

    checkpoint_seconds = 600.0
    plot_seconds = 60.0
    stop_requested = False

    save_every: int
    num_iterations_per_epoch: int
    _last_checkpoint = 0.0
    _epoch_start = 0.0
    _outputs: tuple[dict, ...] = ()
    _resumed_outputs: tuple[dict, ...] = ()

    @property
    def iterations_done(self) -> int:
        """Number of finished training iterations of the current epoch."""
        return len(self._outputs)

    @property
    def iterations_resumed(self) -> int:
        """Training iterations of its first epoch that a resumed training skips."""
        return len(self._resumed_outputs)

    def iterations_of_epoch(self, epoch: int) -> int:
        """Return the training iterations of an epoch."""
        return self.num_iterations_per_epoch

    def run_training(self) -> None:
        """Train as nnU-Net does; leave no worker behind if interrupted."""
        try:
            super().run_training()
        except BaseException:
            for loader in (self.dataloader_train, self.dataloader_val):
                if hasattr(loader, "_finish"):
                    loader._finish()
            raise

    def on_train_start(self) -> None:
        """Prepare as nnU-Net does."""
        self._last_checkpoint = time.monotonic()
        self._limit_plots()
        super().on_train_start()

    def on_train_epoch_start(self) -> None:
        """Begin an epoch, or the rest of an interrupted one."""
        super().on_train_epoch_start()
        self._outputs, self._resumed_outputs = self._resumed_outputs, ()
        self._epoch_start = time.monotonic()
        self._whole_epoch = self.num_iterations_per_epoch
        self.num_iterations_per_epoch = self.iterations_of_epoch(self.current_epoch)
        self.num_iterations_per_epoch -= len(self._outputs)

    def train_step(self, batch: dict) -> dict:
        """Train one step as nnU-Net does; stop after it if requested."""
        result = self._update(batch)
        self._outputs += (result,)
        self._between_steps()
        return result

    def _update(self, batch: dict) -> dict:
        """Update the weights as nnU-Net's trainer does."""
        return super().train_step(batch)

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        """End the training part of an epoch with the outputs of all its iterations."""
        self.num_iterations_per_epoch = self._whole_epoch
        super().on_train_epoch_end(list(self._outputs))

    def validation_step(self, batch: dict) -> dict:
        """Validate one batch as nnU-Net does; stop after it if requested."""
        result = super().validation_step(batch)
        self._between_steps()
        return result

    def on_epoch_end(self) -> None:
        """End the epoch as nnU-Net does; also checkpoint if `checkpoint_seconds` have passed."""
        self._outputs = ()
        stock: int = self.save_every
        if time.monotonic() - self._last_checkpoint >= self.checkpoint_seconds:
            self.save_every = 1
        super().on_epoch_end()
        self.save_every = stock

    def save_checkpoint(self, filename: str) -> None:
        """Write nnU-Net's checkpoint: a kill or power cut leaves the previous one intact."""
        if self.local_rank != 0 or self.disable_checkpointing:
            super().save_checkpoint(filename)
            return
        partial = Path(f"{filename}.partial")
        super().save_checkpoint(str(partial))
        replace_durably(partial, Path(filename))
        if Path(filename).name == "checkpoint_latest.pth":
            self._last_checkpoint = time.monotonic()

    def load_checkpoint(self, filename_or_checkpoint: str) -> None:
        """Load nnU-Net's checkpoint, including one written within an epoch."""
        super().load_checkpoint(filename_or_checkpoint)
        losses = self.my_init_kwargs.pop(LOSSES, [])
        self._resumed_outputs = tuple({"loss": np.array(loss, np.float32)} for loss in losses)

    def save_checkpoint_within_epoch(self) -> None:
        """Write a checkpoint from which a training resumes at its next iteration."""
        self.my_init_kwargs[LOSSES] = [float(output["loss"]) for output in self._outputs]
        self.current_epoch -= 1  # nnU-Net writes the next epoch's number; this one is not done
        try:
            self.save_checkpoint(str(Path(self.output_folder) / "checkpoint_latest.pth"))
        finally:
            self.current_epoch += 1
            del self.my_init_kwargs[LOSSES]

    def _between_steps(self) -> None:
        if self.is_ddp:
            return
        since = time.monotonic() - max(self._last_checkpoint, self._epoch_start)
        if self.stop_requested or 0 < self.checkpoint_seconds <= since:
            self.save_checkpoint_within_epoch()
        if self.stop_requested:
            self.num_iterations_per_epoch = self._whole_epoch
            raise TrainingStopped(143)

    def _limit_plots(self) -> None:
        plot, last = self.logger.plot_progress_png, [-np.inf]

        def plot_when_due(folder: str) -> None:
            now = time.monotonic()
            if now - last[0] >= self.plot_seconds or self.current_epoch == self.num_epochs - 1:
                plot(folder)
                last[0] = time.monotonic()

        self.logger.plot_progress_png = plot_when_due
