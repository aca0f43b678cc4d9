"""One attempt at a training: from the last checkpoint to the end, and through the validation."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hardware
import training
from interruption import Deadline, Interruption
from lease import Lease, LeaseLostError, describe_process
from log import tell
from resources import killed_attempts
from training_record import Ledger


@dataclass(frozen=True)
class Fold:
    """What is to be trained, with what, and where.

    Attributes:
        run, parameters, settings, energy, mirroring, plans_file, threads: as `train_fold` has them.
        identity: all that decides the weights.
        cases: number of cases of the final validation.
        folder: nnU-Net's fold folder.
        device, precision: as `hardware.prepare` returned them.
    """

    run: dict[str, Any]
    parameters: dict[str, Any]
    settings: dict[str, Any]
    energy: dict[str, Any]
    mirroring: bool
    plans_file: Path
    identity: dict[str, Any]
    cases: int
    folder: Path
    device: str
    precision: str
    threads: int

    @property
    def final(self) -> Path:
        """nnU-Net's checkpoint of the finished training."""
        return self.folder / "checkpoint_final.pth"

    @property
    def latest(self) -> Path:
        """nnU-Net's checkpoint of an unfinished training."""
        return self.folder / "checkpoint_latest.pth"

    @property
    def summary(self) -> Path:
        """nnU-Net's summary of the final validation."""
        return self.folder / "validation" / "summary.json"

    @property
    def ledger(self) -> Ledger:
        """The ledger, for reading."""
        return Ledger(self.folder / "ledger.jsonl")

    def check_identity(self) -> bool:
        """Tell whether a training is there; raise UserError if it is of another kind."""
        finished = self.final.exists()
        if not (finished or self.latest.exists()):
            return False
        training.check_identity(self.identity, self.folder / "identity.json", True, finished)
        return True

    def is_done(self) -> bool:
        """Tell whether it is trained, and its last final validation done as it is wanted now."""
        entries = self.ledger.read()
        done = [entry["mirroring"] for entry in entries if entry.get("phase") == "validation"]
        files = self.final.exists() and self.summary.exists()
        return files and bool(done) and done[-1] == self.mirroring


def go_on(
    fold: Fold, held: Lease, deadline: Deadline, write_tables: Callable[[list[dict]], None]
) -> None:
    """Train what is left of the training, and validate it.

    Args:
        fold: what to train.
        held: the lease on its folder.
        deadline: when to end early.
        write_tables: called with the ledger's entries after every epoch, and at an early end.

    Raises:
        TrainingStopped: a signal ended it.
        UserError: the deadline came first, the lease was lost, or the training is not to be done.
    """
    from energy import EnergyMeter
    from flops import FlopTable
    from trainers.curricula.resuming import TrainingStopped
    from training_record import Recorder

    run, settings, identity = fold.run, fold.settings, fold.identity
    ledger = Ledger(fold.ledger.path, before_append=held.check)
    meter = EnergyMeter(**fold.energy)
    began = time.monotonic()
    if not fold.check_identity():
        training.check_identity(identity, fold.folder / "identity.json", False, False)
    checkpoint = next((path for path in (fold.final, fold.latest) if path.exists()), None)
    trainer = training.make_trainer(
        run, fold.parameters, settings, fold.plans_file, fold.device, resume=fold.latest.exists()
    )
    network = getattr(trainer.network, "_orig_mod", trainer.network)
    flops = FlopTable(network, trainer.num_input_channels)
    trainer.my_init_kwargs["identity"] = identity
    if checkpoint:
        training.load_checkpoint(trainer, checkpoint, identity)
    if fold.precision == "bf16":
        hardware.autocast_network(network)
    done = settings["epochs"] if fold.final.exists() else trainer.current_epoch
    attempt = 1 + sum(entry["entry"] == "attempt" for entry in ledger.read())
    if attempt - 1 in killed_attempts(ledger.path):
        _tell_of_kill(f"{run['task']} {run['arm']} fold {run['fold']}", attempt - 1)
    started = {"entry": "attempt", "attempt": attempt, "resumed_at": done}
    started["resumed_within"] = getattr(trainer, "iterations_resumed", 0)
    started |= {"threads": fold.threads, "device": fold.device, "precision": fold.precision}
    started["meter"] = meter.describe()
    ledger.append(started | _describe_circumstances(fold.device, identity["trainer_code"]))
    progress = training.Progress(f"{run['task']} {run['arm']} fold {run['fold']}")

    def after_epoch(entries: list[dict]) -> None:
        write_tables(entries)
        last = entries[-1]
        note = f", patch {last['patch_size']}, pseudo Dice {last['pseudo_dice']:.3f}"
        progress.show(last["epoch"] + 1, note)

    recorder = Recorder(ledger, meter, flops, attempt, began, after_epoch)
    interruption = Interruption(progress.title, deadline, held)
    try:
        if not fold.final.exists():
            recorder.attach(trainer)
            progress.start(done, settings["epochs"], "epoch")
            with interruption.watch(trainer):
                trainer.run_training()
        recorder.finish("setup" if done == settings["epochs"] else "end of training")
        progress.start(0, fold.cases, "validation case")
        if not fold.mirroring:
            trainer.inference_allowed_mirroring_axes = None
        with training.counted_predictions(trainer, progress.show):
            trainer.perform_actual_validation(False)
        recorder.finish("validation", mirroring=fold.mirroring, ended=training.now())
    except TrainingStopped:
        write_tables(ledger.read())
        if interruption.deadline_passed:
            epochs = f"{trainer.current_epoch} of {settings['epochs']} epochs done"
            raise interruption.explain(epochs) from None
        raise
    except LeaseLostError:
        raise
    except BaseException:
        recorder.finish("interrupted")
        raise


def _tell_of_kill(title: str, attempt: int) -> None:
    """Say what a killed process could not say itself, on the terminal and in the rule's log."""
    message = (
        f"{title}: attempt {attempt} was killed and could not say why. Most often that is for lack "
        "of memory: a scheduler is now asked for half as much again; on one machine, train fewer "
        "folds at a time or lower training.threads. It goes on from its last checkpoint"
    )
    print(message)
    tell(message)


def _describe_circumstances(device: str, trainer_code: str) -> dict[str, Any]:
    """Return what an attempt runs with and on, and when it began, for the ledger."""
    import torch

    process = describe_process()
    return {
        "started": training.now(),
        "host": process["host"],
        "job": process["job"],
        "git_commit": training.git_commit(),
        "trainer_code": trainer_code,
        "versions": training.versions(),
        "gpu_model": torch.cuda.get_device_name() if device == "cuda" else None,
    }
