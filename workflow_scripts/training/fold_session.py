"""One attempt at a training: from the last checkpoint to the end of the final validation."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from workflow_scripts.common.console import announce
from workflow_scripts.common.errors import UserError
from workflow_scripts.common.files import digest, read_json, write_json
from workflow_scripts.common.hardware import Hardware, autocast_network, set_memory_format
from workflow_scripts.common.nnunet_setup import find_trainer, pools_on
from workflow_scripts.common.progress import Progress
from workflow_scripts.common.trainer_protocol import (
    CurriculumTrainer,
    as_curriculum_trainer,
    mirrors,
)
from workflow_scripts.common.version import workflow_version
from workflow_scripts.common.worker_pools import watched_pools
from workflow_scripts.records.energy_meter import EnergyMeter
from workflow_scripts.records.flop_counter import FlopTable
from workflow_scripts.records.ledger import Ledger
from workflow_scripts.records.recorder import Recorder
from workflow_scripts.records.run_tables import epochs_table, kept_validation
from workflow_scripts.study.data_changes import TRAINED_ON
from workflow_scripts.study.settings import RunSettings
from workflow_scripts.study.specification import RunSpec
from workflow_scripts.trainers.curricula.resumable import TrainingStopped
from workflow_scripts.trainers.curricula.schedules.patch_plan import PatchPlan
from workflow_scripts.trainers.curricula.schedules.planner import plan_schedule
from workflow_scripts.trainers.curricula.schedules.schedule import Schedule
from workflow_scripts.trainers.curricula.schedules.settings import CurriculumSettings
from workflow_scripts.training.exit_causes import (
    describe_killed_attempt,
    infer_killed_attempt,
    memory_kills,
    oom_killed_since,
)
from workflow_scripts.training.final_validation import is_whole, validate
from workflow_scripts.training.lease import Lease, LeaseLostError, describe_process
from workflow_scripts.training.packages import imported_from, inherited_settings
from workflow_scripts.training.preemption import Deadline, Interruption
from workflow_scripts.training.provenance import (
    check_identity,
    check_schedule,
    git_commit,
    now,
    versions,
)
from workflow_scripts.training.trainer_factory import load_checkpoint, make_trainer


@dataclass(frozen=True)
class Fold:
    """A training: what, with which settings, and where.

    Attributes:
        run: which training.
        settings: how it is trained and validated.
        plans_file: nnU-Net's plans.
        identity: everything that determines the weights.
        data: digest of the data of each case, if known.
        cases: number of cases of the final validation.
        folder: nnU-Net's fold folder.
        hardware: device, precision and threads.
    """

    run: RunSpec
    settings: RunSettings
    plans_file: Path
    identity: dict[str, Any]
    data: dict[str, str]
    cases: int
    folder: Path
    hardware: Hardware

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
        """Return whether a training exists; raise UserError if it is a different one."""
        finished = self.final.exists()
        if not (finished or self.latest.exists()):
            return False
        check_identity(self.identity, self.folder / "identity.json", True, finished)
        schedule = self._schedule() if finished else None
        if schedule:
            check_schedule(epochs_table(self.ledger.read()), schedule, self.folder)
        return True

    @property
    def mirroring(self) -> bool:
        """Whether the final validation mirrors: the study wants it, and the arm trains with it."""
        trained = mirrors(find_trainer(self.run.trainer), self.run.parameters)
        return self.settings.mirroring and trained

    def _schedule(self) -> Schedule | None:
        """Return the schedule of a new training; None for nnU-Net's own trainers."""
        trainer = find_trainer(self.run.trainer)
        if not isinstance(trainer, CurriculumTrainer):  # the class already has the attributes
            return None
        plans = PlansManager(read_json(self.plans_file))
        plan = PatchPlan.of(plans.get_configuration(self.run.configuration))
        settings = CurriculumSettings.of(trainer, self.run.parameters)
        return plan_schedule(plan, self.settings.training.length, settings)

    def is_done(self) -> bool:
        """Return whether it is trained and validated with the current settings."""
        validation = kept_validation(self.ledger.read())
        if not (self.final.exists() and self.summary.exists() and validation):
            return False
        end = validation[-1]
        same = "checkpoint" not in end or end["checkpoint"] == digest(self.final)
        return same and end["mirroring"] == self.mirroring


def resume(
    fold: Fold, held: Lease, deadline: Deadline, write_tables: Callable[[list[dict]], pd.DataFrame]
) -> None:
    """Finish the training and its final validation.

    Args:
        fold: what to train.
        held: the lease on its folder.
        deadline: when to stop early.
        write_tables: called with the ledger's entries after every epoch and when stopping early;
            returns their `epochs_table`.

    Raises:
        TrainingStopped: a signal ended it.
        UserError: the deadline has passed, the lease was lost, or the training was refused.
    """
    run, training, hardware = fold.run, fold.settings.training, fold.hardware
    identity = fold.identity
    ledger = Ledger(fold.ledger.path, before_append=held.check)
    meter = EnergyMeter(fold.settings.energy, hardware.gpu)
    began = time.monotonic()
    if not fold.check_identity():
        check_identity(identity, fold.folder / "identity.json", False, False)
        if fold.data:
            write_json(fold.data, fold.folder / TRAINED_ON)
    checkpoint = next((path for path in (fold.final, fold.latest) if path.exists()), None)
    trainer = make_trainer(
        run, training, fold.plans_file, hardware.device, resume=fold.latest.exists()
    )
    curriculum = as_curriculum_trainer(trainer)
    network = getattr(trainer.network, "_orig_mod", trainer.network)
    flops = FlopTable(network, trainer.num_input_channels)
    trainer.my_init_kwargs["identity"] = identity
    if checkpoint:
        load_checkpoint(trainer, checkpoint, identity)
    memory_format = set_memory_format(network, hardware.memory_format, hardware.device)
    if hardware.precision == "bf16":
        autocast_network(network)
    done = training.epochs if fold.final.exists() else trainer.current_epoch
    progress = Progress(f"{run.task} {run.arm} fold {run.fold}")
    entries, kills = ledger.read(), memory_kills()
    if silent := infer_killed_attempt(entries, kills):
        ledger.append(silent)
        place = "the final validation" if fold.final.exists() else f"epoch {done}"
        announce(f"{progress.title}: {describe_killed_attempt(silent, entries, place)}")
    attempt = 1 + sum(entry["entry"] == "attempt" for entry in entries)
    started = {"entry": "attempt", "attempt": attempt, "resumed_at": done}
    started["resumed_within"] = curriculum.iterations_resumed if curriculum else 0
    started |= {"threads": hardware.threads, "device": hardware.device}
    started |= {"precision": hardware.precision, "memory_format": memory_format}
    started["gpu"] = hardware.gpu and str(hardware.gpu)
    started |= {"meter": meter.describe(), "memory_kills": kills}
    ledger.append(
        started
        | _describe_circumstances(
            hardware.device, identity["trainer_code"], identity["nnunet_code"]
        )
    )

    def after_epoch(entries: list[dict]) -> None:
        epochs = write_tables(entries)
        progress.show(entries[-1]["epoch"] + 1, note_of_last(epochs))

    recorder = Recorder(ledger, meter, flops, attempt, began, after_epoch)
    interruption = Interruption(progress.title, deadline, held)

    def end(how: str | None) -> None:
        ledger.append({"entry": "end", "attempt": attempt, "how": how, "ended": now()})

    try:
        if not fold.final.exists():
            recorder.attach(trainer)
            progress.start(done, training.epochs, "epoch", then="final validation")
            with interruption.watch(trainer):
                trainer.run_training()
        recorder.finish("setup" if done == training.epochs else "end of training")
        _validate(fold, trainer, recorder, interruption, progress)
        end("finished")
    except LeaseLostError:
        raise
    except TrainingStopped:
        if fold.final.exists() or curriculum is None:
            recorder.finish("interrupted")
        end(interruption.reason)
        write_tables(ledger.read())
        if interruption.deadline_passed:
            raise interruption.explain(_describe_progress(fold, trainer)) from None
        raise
    except BaseException as error:
        recorder.finish("interrupted")
        end(interruption.reason or f"{type(error).__name__}: {error}")
        if oom_killed_since(kills, memory_kills()):
            raise UserError(
                f"{progress.title}: one of its processes was killed for lack of memory. Give it "
                "more (`mem_mb`) or fewer threads; run again to continue"
            ) from error
        raise


def note_of_last(epochs: pd.DataFrame) -> str:
    """Return the terminal's note on the last epoch, with all its parts.

    The last part has no patch size if a checkpoint was written after the last iteration.
    """
    last = epochs.iloc[-1]
    return f", patch {last['patch_size']}, pseudo Dice {last['pseudo_dice']:.3f}"


def _validate(
    fold: Fold,
    trainer: Any,
    recorder: Recorder,
    interruption: Interruption,
    progress: Progress,
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

    watched = watched_pools("writes or evaluates predictions")
    with interruption.watch_validation(), pools_on(fold.hardware.threads), watched:
        validate(trainer, fold.folder, made_with, before_case, after_case)
    recorder.finish("validation", **made_with, ended=now())


def _describe_progress(fold: Fold, trainer: Any) -> str:
    """Describe the progress of a training."""
    epochs = fold.settings.training.epochs
    if not fold.final.exists():
        done = trainer.current_epoch
        if as_curriculum_trainer(trainer) is None:  # it resumes at its last checkpoint
            done -= done % trainer.save_every
        return f"{done} of {epochs} epochs done"
    ending = trainer.dataset_json["file_ending"]
    cases = sum(map(is_whole, fold.summary.parent.glob(f"*{ending}")))
    return f"all {epochs} epochs done, {cases} of {fold.cases} validation cases predicted"


def _describe_circumstances(device: str, trainer_code: str, nnunet_code: str) -> dict[str, Any]:
    """Return software, machine and start of an attempt for the ledger."""
    process = describe_process()
    return {
        "started": now(),
        "host": process["host"],
        "job": process["job"],
        "git_commit": git_commit(),
        "trainer_code": trainer_code,
        "nnunet_code": nnunet_code,
        "imported_from": imported_from(),
        "environment": inherited_settings(),
        "versions": {"workflow": workflow_version(), **versions()},
        "gpu_model": torch.cuda.get_device_name() if device == "cuda" else None,
    }
