"""One attempt at a training: from the last checkpoint to the end of the final validation."""

import time
from collections.abc import Callable

import pandas as pd
import torch

from workflow_scripts.common.console import announce
from workflow_scripts.common.errors import UserError
from workflow_scripts.common.files import digest
from workflow_scripts.common.hardware import prepare_network
from workflow_scripts.common.nnunet_setup import pools_on
from workflow_scripts.common.progress import Progress
from workflow_scripts.common.trainer_protocol import as_curriculum_trainer
from workflow_scripts.common.version import workflow_version
from workflow_scripts.common.worker_pools import watched_pools
from workflow_scripts.records.energy_meter import EnergyMeter
from workflow_scripts.records.flop_counter import FlopTable
from workflow_scripts.records.ledger import End, Ledger, Start, starts
from workflow_scripts.records.recorder import Recorder
from workflow_scripts.trainers.curricula.resumable import TrainingStopped
from workflow_scripts.training.exit_causes import (
    describe_killed_attempt,
    infer_killed_attempt,
    memory_kills,
    oom_killed_since,
)
from workflow_scripts.training.final_validation import is_whole, validate
from workflow_scripts.training.fold import Fold
from workflow_scripts.training.lease import Lease, LeaseLostError, describe_process
from workflow_scripts.training.packages import imported_from, inherited_settings
from workflow_scripts.training.preemption import Deadline, Interruption
from workflow_scripts.training.provenance import git_commit, now, versions
from workflow_scripts.training.trainer_factory import load_checkpoint, make_trainer


class Attempt:
    """An attempt at a training, in four steps: begin, train, validate, end.

    Args:
        fold: what to train.
        lease: the lease on its folder.
        deadline: when to stop early.
    """

    def __init__(self, fold: Fold, lease: Lease, deadline: Deadline) -> None:
        run = fold.run
        self._fold = fold
        self._ledger = Ledger(fold.ledger.path, before_append=lease.check)
        self._progress = Progress(f"{run.task} {run.arm} fold {run.fold}")
        self._interruption = Interruption(self._progress.title, deadline, lease)
        self._kills = memory_kills()

    def run(self) -> None:
        """Finish the training and its final validation.

        Raises:
            TrainingStopped: a signal ended it.
            UserError: the deadline has passed, the lease was lost, or the training was refused.
        """
        self.begin()
        try:
            self.train()
            self.validate()
            self.end("finished")
        except LeaseLostError:  # the ledger belongs to another process
            raise
        except TrainingStopped:
            self._stop()
            if self._interruption.deadline_passed:
                raise self._interruption.explain(self._describe_progress()) from None
            raise
        except BaseException as error:
            self._fail(error)
            raise

    def begin(self) -> None:
        """Make the trainer, load its checkpoint, and write the start of the attempt.

        Raises UserError if the folder contains a different training, or a damaged checkpoint.
        """
        fold, hardware = self._fold, self._fold.hardware
        meter, began = EnergyMeter(fold.settings.energy, hardware.gpu), time.monotonic()
        fold.claim()
        self._trainer = trainer = make_trainer(
            fold.run,
            fold.settings.training,
            fold.plans_file,
            hardware.device,
            resume=fold.latest.exists(),
        )
        network = getattr(trainer.network, "_orig_mod", trainer.network)
        flops = FlopTable(network, trainer.num_input_channels)
        trainer.my_init_kwargs["identity"] = fold.identity
        if fold.checkpoint:
            load_checkpoint(trainer, fold.checkpoint, fold.identity)
        memory_format = prepare_network(network, hardware)
        epochs = fold.settings.training.epochs
        self._resumed_at: int = epochs if fold.final.exists() else trainer.current_epoch
        self._end_killed_attempt()
        start = self._describe_start(meter, memory_format)
        self._number = start.attempt
        self._ledger.append(start)
        self._recorder = Recorder(
            self._ledger, meter, flops, self._number, began, after_epoch=self._after_epoch
        )

    def train(self) -> None:
        """Train the epochs that are left, if any."""
        fold, epochs = self._fold, self._fold.settings.training.epochs
        if not fold.final.exists():
            self._recorder.attach(self._trainer)
            self._progress.start(self._resumed_at, epochs, "epoch", then="final validation")
            with self._interruption.watch(self._trainer):
                self._trainer.run_training()
        self._recorder.finish("setup" if self._resumed_at == epochs else "end of training")

    def validate(self) -> None:
        """Predict the validation cases that are left, and evaluate all."""
        fold, trainer = self._fold, self._trainer
        if not fold.mirroring:
            trainer.inference_allowed_mirroring_axes = None
        checkpoint = digest(fold.final)
        made_with = {"checkpoint": checkpoint, "mirroring": fold.mirroring}
        self._validating = False
        with (
            self._interruption.watch_validation(),
            pools_on(fold.hardware.threads),
            watched_pools("writes or evaluates predictions"),
        ):
            validate(trainer, fold.folder, made_with, self._before_case, self._after_case)
        self._recorder.finish_validation(checkpoint, fold.mirroring, ended=now())

    def end(self, how: str | None) -> None:
        """Write how the attempt ended: `finished`, a signal, the time limit, or an error."""
        self._ledger.append(End(attempt=self._number, how=how, ended=now()))

    def _stop(self) -> None:
        """End an attempt that stopped early as it was asked to."""
        if self._fold.final.exists() or as_curriculum_trainer(self._trainer) is None:
            self._recorder.finish("interrupted")  # else its checkpoint has closed the work
        self.end(self._interruption.reason)
        self._fold.write_tables()

    def _fail(self, error: BaseException) -> None:
        """End an attempt that an error or a second signal ended.

        Raises UserError if the kernel has killed one of its processes for lack of memory.
        """
        self._recorder.finish("interrupted")
        self.end(self._interruption.reason or f"{type(error).__name__}: {error}")
        if oom_killed_since(self._kills, memory_kills()):
            raise UserError(
                f"{self._progress.title}: one of its processes was killed for lack of memory. Give "
                "it more (`mem_mb`) or fewer threads; run again to continue"
            ) from error

    def _end_killed_attempt(self) -> None:
        """Write the end of the last attempt, if it was killed and could not."""
        entries = self._ledger.read()
        if killed := infer_killed_attempt(entries, self._kills):
            self._ledger.append(killed)
            trained = self._fold.final.exists()
            place = "the final validation" if trained else f"epoch {self._resumed_at}"
            told = describe_killed_attempt(killed, entries, place)
            announce(f"{self._progress.title}: {told}")

    def _describe_start(self, meter: EnergyMeter, memory_format: str) -> Start:
        hardware, identity = self._fold.hardware, self._fold.identity
        curriculum, process = as_curriculum_trainer(self._trainer), describe_process()
        on_gpu = hardware.device == "cuda"
        return Start(
            attempt=1 + len(starts(self._ledger.read())),
            resumed_at=self._resumed_at,
            resumed_within=curriculum.iterations_resumed if curriculum else 0,
            threads=hardware.threads,
            device=hardware.device,
            precision=hardware.precision,
            memory_format=memory_format,
            gpu=str(hardware.gpu) if hardware.gpu else None,
            meter=meter.describe(),
            memory_kills=self._kills,
            started=now(),
            host=process["host"],
            job=process["job"],
            git_commit=git_commit(),
            trainer_code=identity["trainer_code"],
            nnunet_code=identity["nnunet_code"],
            imported_from=imported_from(),
            environment=inherited_settings(),
            versions={"workflow": workflow_version(), **versions()},
            gpu_model=torch.cuda.get_device_name() if on_gpu else None,
        )

    def _after_epoch(self) -> None:
        epochs = self._fold.write_tables()
        self._progress.show(int(epochs["epoch"].iloc[-1]) + 1, note_of_last(epochs))

    def _before_case(self, number: int, finish: Callable[[], None]) -> None:
        if not self._validating:
            self._progress.start(number, self._fold.cases, "validation case")
        self._validating = True
        self._interruption.between_cases(finish)

    def _after_case(self, case: str, number: int) -> None:
        self._recorder.finish_case(case)
        self._progress.show(number)

    def _describe_progress(self) -> str:
        fold, trainer = self._fold, self._trainer
        epochs = fold.settings.training.epochs
        if not fold.final.exists():
            done = trainer.current_epoch
            if as_curriculum_trainer(trainer) is None:  # it resumes at its last checkpoint
                done -= done % trainer.save_every
            return f"{done} of {epochs} epochs done"
        ending = trainer.dataset_json["file_ending"]
        cases = sum(map(is_whole, fold.summary.parent.glob(f"*{ending}")))
        return f"all {epochs} epochs done, {cases} of {fold.cases} validation cases predicted"


def note_of_last(epochs: pd.DataFrame) -> str:
    """Return the terminal's note on the last epoch, with all its parts.

    The last part has no patch size if a checkpoint was written after the last iteration.
    """
    last = epochs.iloc[-1]
    return f", patch {last['patch_size']}, pseudo Dice {last['pseudo_dice']:.3f}"
