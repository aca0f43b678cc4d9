"""The ledger of a training, which survives a kill.

The ledger (`ledger.jsonl` in nnU-Net's fold folder) gets one line for each piece of work as it
ends: the start of every attempt, its set-up, each epoch, the final validation. `run_tables`
derives the files of a run from it. This module alone knows how an entry is written.
"""

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from workflow_scripts.common.errors import UserError
from workflow_scripts.records.energy_reading import MeterDescription, Reading
from workflow_scripts.trainers.curricula.durable_files import sync

KILLED = "without a message"
"""`how` of an attempt that was killed and could not write its own end."""


def _optional() -> Any:
    """Return a field that is not written if it is None."""
    return field(default=None, metadata={"optional": True})


@dataclass(frozen=True)
class MemoryKills:
    """Processes of a control group that the kernel killed for lack of memory.

    Attributes:
        group: boot of the machine, and path of the control group.
        count: kills since the group exists.
    """

    group: str
    count: int


@dataclass(frozen=True, kw_only=True)
class Start:
    """Start of an attempt; a training has several if it was interrupted.

    Fields with a default are missing in the ledgers of earlier versions.

    Attributes:
        attempt: number, 1 for the first.
        resumed_at: epoch at which it resumed; all epochs if only the final validation was left.
        resumed_within: iterations of that epoch that were already done.
        threads, device, precision, memory_format: as in `hardware.Hardware`.
        gpu: index and UUID of the GPU; None on a CPU.
        meter: how the energy is measured.
        memory_kills: before the attempt; None if the kernel does not report it.
        started: time, ISO 8601 in UTC.
        host, job: name of the machine, and number of the Slurm job, if any.
        git_commit: the workflow's.
        trainer_code, nnunet_code: hashes of the trainers' code and of nnU-Net's trainer.
        imported_from: folders of the packages that were not imported from the environment.
        environment: variables that affect the numbers.
        versions: of the workflow, Python and packages.
        gpu_model: name of the GPU; None on a CPU.
    """

    attempt: int
    resumed_at: int
    resumed_within: int = 0
    threads: int
    device: str
    precision: str
    memory_format: str | None = None
    gpu: str | None = None
    meter: MeterDescription
    memory_kills: MemoryKills | None = None
    started: str
    host: str | None = None
    job: str | None = None
    git_commit: str | None
    trainer_code: str
    nnunet_code: str | None = None
    imported_from: Mapping[str, str] | None = None
    environment: Mapping[str, str] | None = None
    versions: Mapping[str, str]
    gpu_model: str | None


@dataclass(frozen=True, kw_only=True)
class Work:
    """A piece of work: set-up, an interrupted piece, what follows the last epoch, or a subclass.

    Attributes:
        attempt: number of the attempt.
        phase: `setup`, `training`, `end of training`, `validation` or `interrupted`.
        seconds: its time, with compilation.
        compile_seconds: time of torch.compile; NaN in ledgers of earlier versions.
        reading: its energy.
    """

    attempt: int
    phase: str
    seconds: float
    compile_seconds: float = math.nan
    reading: Reading


@dataclass(frozen=True, kw_only=True)
class Steps:
    """Steps of an attempt in one epoch; sizes are None if it trained nothing.

    Fields with a default are missing in the ledgers of earlier versions.

    Attributes:
        epoch: number, from 0.
        stage: number of the schedule's stage; None if batches differ.
        patch_size, field_of_view: such as `16x8x8`, of what the network sees and of what is loaded;
            `random` if they differ.
        augmentation: strength, from 0 to 1.
        batch_size: None if it differs.
        gflop, train_gflop: operations, with and without the validation.
        train_seconds, val_seconds: time without compilation.
        voxels_per_iteration: mean over the training iterations.
        iterations: number of training iterations.
        skipped_steps: those without an update of the weights.
        loss_scale: scale of the gradient scaler, if there is one.
        wait_seconds: part of `train_seconds` in which a step waited for its batch.
        process_peak_mb: largest memory (MiB) of the process since it began, without the memory of
            loading workers.
        device_peak_mb: largest memory (MiB) that PyTorch reserved on the GPU; None on a CPU.
    """

    epoch: int
    stage: int | None
    patch_size: str | None
    field_of_view: str | None = None
    augmentation: float = math.nan
    batch_size: int | None
    gflop: float
    train_seconds: float
    val_seconds: float
    train_gflop: float
    voxels_per_iteration: float | None
    iterations: float = math.nan
    skipped_steps: float = math.nan
    loss_scale: float | None = None
    wait_seconds: float = math.nan
    process_peak_mb: float = math.nan
    device_peak_mb: float | None = None


@dataclass(frozen=True, kw_only=True)
class EpochResult:
    """Result of an epoch.

    Attributes:
        lr: learning rate.
        train_loss, val_loss: mean losses; None if they are not finite.
        pseudo_dice: mean foreground Dice of the validation batches.
        pseudo_dice_by_scale: the same for each scale factor (as text), if there are several.
    """

    lr: float
    train_loss: float | None
    val_loss: float | None
    pseudo_dice: float
    pseudo_dice_by_scale: Mapping[str, float] | None = _optional()


@dataclass(frozen=True, kw_only=True)
class EpochWork(Work):
    """Training and validation steps of an epoch, or of a part of it up to a checkpoint.

    Attributes:
        steps: of this part.
        result: of the epoch; None if this part does not end it.
    """

    phase: str = "training"
    steps: Steps
    result: EpochResult | None = None


@dataclass(frozen=True, kw_only=True)
class CaseWork(Work):
    """Prediction of one case of the final validation."""

    phase: str = "validation"
    case: str


@dataclass(frozen=True, kw_only=True)
class ValidationWork(Work):
    """What the final validation takes besides its cases. It ends the validation.

    Attributes:
        checkpoint: digest of the checkpoint; None in ledgers of earlier versions.
        mirroring: whether predictions were mirrored.
        ended: time, ISO 8601 in UTC.
    """

    phase: str = "validation"
    checkpoint: str | None = None
    mirroring: bool
    ended: str


@dataclass(frozen=True, kw_only=True)
class End:
    """End of an attempt; the next attempt writes it for one that was killed.

    Attributes:
        attempt: number of the attempt.
        how: `finished`, a signal's name, `time limit`, the error, or `KILLED`.
        ended: time, ISO 8601 in UTC; None if it was killed.
        reached, cause: what a killed attempt had reached, and why it was killed.
    """

    attempt: int
    how: str | None
    ended: str | None = _optional()
    reached: str | None = _optional()
    cause: str | None = _optional()


Entry = Start | Work | End
Part = TypeVar("Part")


class Ledger:
    """Append-only lines of JSON; an incomplete line, left by a kill, is ignored."""

    def __init__(self, path: Path, before_append: Callable[[], None] = lambda: None) -> None:
        """Open the ledger at `path`, which need not exist yet.

        `before_append` raises an exception if this process must not write.
        """
        self.path, self._before_append = path, before_append

    def read(self) -> list[Entry]:
        """Return all complete entries in the order in which they were written.

        Raises UserError for a line of JSON that is no entry.
        """
        if not self.path.exists():
            return []
        entries: list[Entry] = []
        for number, line in enumerate(self.path.read_text(encoding="utf-8").splitlines(), start=1):
            try:
                content = json.loads(line)
            except json.JSONDecodeError:
                continue
            try:
                entries.append(entry_of(content))
            except (KeyError, TypeError) as error:
                raise UserError(
                    f"{self.path}, line {number} is no entry of a ledger "
                    f"({type(error).__name__}: {error}); restore the file, or delete "
                    f"{self.path.parent} to train from scratch"
                ) from error
        return entries

    def append(self, entry: Entry) -> None:
        """Write one entry and flush it to the disk."""
        self._before_append()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = not self.path.exists()
        with self.path.open("ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.write(b"\n")
            file.write(json.dumps(content_of(entry)).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        if new:
            sync(self.path.parent)


def starts(entries: Iterable[Entry]) -> list[Start]:
    """Return the starts of all attempts, in order."""
    return [entry for entry in entries if isinstance(entry, Start)]


def killed_attempts(entries: Iterable[Entry]) -> int:
    """Count the attempts that ended without a message.

    They were ended by SIGKILL, with which a scheduler and the kernel stop a process that uses too
    much memory. Other signals, the time limit and all errors leave a message.
    """
    how: dict[int, str | None] = {}
    for entry in entries:
        if isinstance(entry, Start):
            how[entry.attempt] = KILLED
        elif isinstance(entry, End):
            how[entry.attempt] = entry.how
    return list(how.values()).count(KILLED)


def entry_of(content: Mapping[str, Any]) -> Entry:
    """Return the entry that a line of a ledger contains.

    Raises KeyError or TypeError if it contains none.
    """
    if content["entry"] == "attempt":
        kills = content.get("memory_kills")
        return _part(
            Start,
            content,
            meter=_part(MeterDescription, content["meter"]),
            memory_kills=kills and MemoryKills(**kills),
        )
    if content["entry"] == "end":
        return _part(End, content)
    reading = _part(Reading, content)
    if content["phase"] == EpochWork.phase:
        result = None if content.get("partial") else _part(EpochResult, content)
        return _part(
            EpochWork, content, reading=reading, steps=_part(Steps, content), result=result
        )
    if content["phase"] == ValidationWork.phase:
        return _part(CaseWork if "case" in content else ValidationWork, content, reading=reading)
    return _part(Work, content, reading=reading)


def content_of(entry: Entry) -> dict[str, Any]:
    """Return the content of the line of an entry: flat, but for a meter and kills."""
    if isinstance(entry, Start):
        return {"entry": "attempt", **_written(entry)}
    if isinstance(entry, End):
        return {"entry": "end", **_written(entry)}
    content = {"entry": "work", **_written(entry)}
    if isinstance(entry, CaseWork) or (isinstance(entry, EpochWork) and entry.result is None):
        content["partial"] = True
    for name in ("steps", "result", "reading"):
        content |= content.pop(name, None) or {}
    return content


def _written(entry: Any) -> dict[str, Any]:
    """Return the fields of an entry; those of its parts are dictionaries."""
    return {
        own.name: _written(value) if is_dataclass(value) else value
        for own in fields(entry)
        if (value := getattr(entry, own.name)) is not None or not own.metadata.get("optional")
    }


def _part(kind: type[Part], content: Mapping[str, Any], **made: object) -> Part:
    """Return the dataclass made of those keys of `content` that it has, and of `made`."""
    names = {own.name for own in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: content[name] for name in names & content.keys()} | made)
