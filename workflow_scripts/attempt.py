"""One attempt at a training: from the last checkpoint to the end, and through the validation."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import hardware
import training
from endings import describe_silent_end, find_silent_end, have_grown, memory_kills
from energy import EnergyMeter
from final_validation import digest, is_whole, validate
from flops import FlopTable
from interruption import Deadline, Interruption
from lease import Lease, LeaseLostError, describe_process
from log import UserError, tell
from run_record import kept_validation
from trainers.curricula.resuming import TrainingStopped
from training_record import Ledger, Recorder


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
        validation = kept_validation(self.ledger.read())
        if not (self.final.exists() and self.summary.exists() and validation):
            return False
        end = validation[-1]
        same = "checkpoint" not in end or end["checkpoint"] == digest(self.final)
        return same and end["mirroring"] == self.mirroring


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
    progress = training.Progress(f"{run['task']} {run['arm']} fold {run['fold']}")
    entries, kills = ledger.read(), memory_kills()
    if silent := find_silent_end(entries, kills):
        ledger.append(silent)
        place = "the final validation" if fold.final.exists() else f"epoch {done}"
        tell(f"{progress.title}: {describe_silent_end(silent, entries, place)}")
    attempt = 1 + sum(entry["entry"] == "attempt" for entry in entries)
    started = {"entry": "attempt", "attempt": attempt, "resumed_at": done}
    started["resumed_within"] = getattr(trainer, "iterations_resumed", 0)
    started |= {"threads": fold.threads, "device": fold.device, "precision": fold.precision}
    started |= {"meter": meter.describe(), "memory_kills": kills}
    ledger.append(started | _describe_circumstances(fold.device, identity["trainer_code"]))

    def after_epoch(entries: list[dict]) -> None:
        write_tables(entries)
        last = entries[-1]
        note = f", patch {last['patch_size']}, pseudo Dice {last['pseudo_dice']:.3f}"
        progress.show(last["epoch"] + 1, note)

    recorder = Recorder(ledger, meter, flops, attempt, began, after_epoch)
    interruption = Interruption(progress.title, deadline, held)

    def end(how: str | None) -> None:
        ledger.append({"entry": "end", "attempt": attempt, "how": how, "ended": training.now()})

    try:
        if not fold.final.exists():
            recorder.attach(trainer)
            progress.start(done, settings["epochs"], "epoch")
            with interruption.watch(trainer):
                trainer.run_training()
        recorder.finish("setup" if done == settings["epochs"] else "end of training")
        _validate(fold, trainer, recorder, interruption, progress)
        end("finished")
    except LeaseLostError:
        raise
    except TrainingStopped:
        if fold.final.exists() or not hasattr(trainer, "stop_requested"):
            recorder.finish("interrupted")
        end(interruption.reason)
        write_tables(ledger.read())
        if interruption.deadline_passed:
            raise interruption.explain(_describe_progress(fold, trainer)) from None
        raise
    except BaseException as error:
        recorder.finish("interrupted")
        end(interruption.reason or f"{type(error).__name__}: {error}")
        if have_grown(kills, memory_kills()):
            raise UserError(
                f"{progress.title}: a process of it was killed for lack of memory. Give it more "
                "(`mem_mb`) or fewer threads; run again to go on"
            ) from error
        raise


def _validate(
    fold: Fold,
    trainer: Any,
    recorder: Recorder,
    interruption: Interruption,
    progress: training.Progress,
) -> None:
    if not fold.mirroring:
        trainer.inference_allowed_mirroring_axes = None
    made_with = {"checkpoint": digest(fold.final), "mirroring": fold.mirroring}
    begun = False

    def before_case(number: int, finish: Callable[[], None]) -> None:
        nonlocal begun
        if not begun:
            progress.start(number, fold.cases, "validation case")
        begun = True
        interruption.between_cases(finish)

    def after_case(case: str, number: int) -> None:
        recorder.finish("validation", partial=True, case=case)
        progress.show(number)

    with interruption.watch_validation():
        validate(trainer, fold.folder, made_with, before_case, after_case)
    recorder.finish("validation", **made_with, ended=training.now())


def _describe_progress(fold: Fold, trainer: Any) -> str:
    """Return in words how far a training is."""
    epochs = fold.settings["epochs"]
    if not fold.final.exists():
        done = trainer.current_epoch
        if not hasattr(trainer, "stop_requested"):  # it resumes at its last checkpoint
            done -= done % trainer.save_every
        return f"{done} of {epochs} epochs done"
    ending = trainer.dataset_json["file_ending"]
    cases = sum(map(is_whole, fold.summary.parent.glob(f"*{ending}")))
    return f"all {epochs} epochs done, {cases} of {fold.cases} validation cases predicted"


def _describe_circumstances(device: str, trainer_code: str) -> dict[str, Any]:
    """Return what an attempt runs with and on, and when it began, for the ledger."""
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
