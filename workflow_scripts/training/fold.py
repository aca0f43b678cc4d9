"""A training of one arm on one fold: its files, and what exists of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from workflow_scripts.common.arm_schedule import has_schedule, plan_arm
from workflow_scripts.common.files import digest, read_json, write_csv, write_json
from workflow_scripts.common.hardware import Hardware
from workflow_scripts.common.nnunet_setup import find_trainer
from workflow_scripts.common.trainer_protocol import mirrors
from workflow_scripts.records.ledger import Ledger
from workflow_scripts.records.run_tables import (
    energy_table,
    epochs_table,
    kept_validation,
    stages_table,
)
from workflow_scripts.study.data_changes import TRAINED_ON
from workflow_scripts.study.settings import RunSettings
from workflow_scripts.study.specification import RunSpec
from workflow_scripts.trainers.curricula.schedules.schedule import Schedule
from workflow_scripts.training.provenance import check_identity, check_schedule


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
        outputs: output paths of epochs, stages and energy, among others.
    """

    run: RunSpec
    settings: RunSettings
    plans_file: Path
    identity: dict[str, Any]
    data: dict[str, str]
    cases: int
    folder: Path
    hardware: Hardware
    outputs: Mapping[str, Path]

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

    @property
    def checkpoint(self) -> Path | None:
        """The checkpoint to continue from; None if there is no training yet."""
        return next((path for path in (self.final, self.latest) if path.exists()), None)

    def check_identity(self) -> None:
        """Raise UserError if a different training exists."""
        if not self.checkpoint:
            return
        finished = self.final.exists()
        check_identity(self.identity, self.folder / "identity.json", True, finished)
        schedule = self._schedule() if finished else None
        if schedule:
            check_schedule(epochs_table(self.ledger.read()), schedule, self.folder)

    def claim(self) -> None:
        """Record the identity of a new training; raise UserError if a different one exists."""
        self.check_identity()
        if not self.checkpoint:
            check_identity(self.identity, self.folder / "identity.json", False, False)
            if self.data:
                write_json(self.data, self.folder / TRAINED_ON)

    def write_tables(self) -> pd.DataFrame:
        """Write the tables of the run from the ledger as it is; return its `epochs_table`."""
        entries = self.ledger.read()
        epochs = epochs_table(entries)
        write_csv(epochs, self.outputs["epochs"])
        write_csv(stages_table(epochs), self.outputs["stages"])
        write_csv(energy_table(entries), self.outputs["energy"])
        return epochs

    @property
    def mirroring(self) -> bool:
        """Whether the final validation mirrors: the study wants it, and the arm trains with it."""
        trained = mirrors(find_trainer(self.run.trainer), self.run.parameters)
        return self.settings.mirroring and trained

    def _schedule(self) -> Schedule | None:
        """Return the schedule of a new training; None for nnU-Net's own trainers."""
        trainer = find_trainer(self.run.trainer)
        if not has_schedule(trainer):
            return None
        return plan_arm(
            read_json(self.plans_file),
            self.run.configuration,
            trainer,
            self.run.parameters,
            self.settings.training.length,
        )

    def is_done(self) -> bool:
        """Return whether it is trained and validated with the current settings."""
        validation = kept_validation(self.ledger.read())
        if not (self.final.exists() and self.summary.exists() and validation):
            return False
        end = validation.end
        same = end.checkpoint is None or end.checkpoint == digest(self.final)
        return same and end.mirroring == self.mirroring
