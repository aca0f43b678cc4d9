"""Train one fold, from the start or the last checkpoint, and write the files of its run.

nnU-Net's fold folder keeps everything that must survive an interruption: checkpoints, the ledger
and the identity of the training. The files of the run are derived from it.
"""

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from workflow_scripts.common import hardware, nnunet_setup
from workflow_scripts.common.console import announce
from workflow_scripts.common.files import read_json, write_json
from workflow_scripts.common.hashing import json_hash
from workflow_scripts.records.energy_conditions import changed_settings
from workflow_scripts.records.energy_settings import EnergySettings
from workflow_scripts.records.ledger import Entry, starts
from workflow_scripts.study.data_changes import RECORD, digests_of_cases
from workflow_scripts.study.settings import RunSettings, TrainingSettings
from workflow_scripts.study.specification import RunSpec
from workflow_scripts.training import lease
from workflow_scripts.training.packages import check_origins, code_hash
from workflow_scripts.training.preemption import Deadline
from workflow_scripts.training.provenance import trainer_code_hash, versions


@dataclass(frozen=True)
class Files:
    """Where the files of a fold are.

    Attributes:
        results: nnU-Net's results folder of the arm.
        plans: nnU-Net's plans of the dataset.
        splits: nnU-Net's splits of the dataset.
        outputs: output paths of run, epochs, stages, energy and summary.
    """

    results: Path
    plans: Path
    splits: Path
    outputs: Mapping[str, Path]


def train_fold(
    run: RunSpec, settings: RunSettings, files: Files, stop_after_minutes: float | None = None
) -> None:
    """Finish the training and write the files of the run.

    Args:
        run: which training.
        settings: how it is trained and validated.
        files: its inputs and outputs.
        stop_after_minutes: time limit of this process from its start; it stops by itself before.

    Raises:
        UserError: the folder contains a different training, another process is training it, the
            device cannot be used, or the time limit is reached (the next run resumes).
    """
    deadline = Deadline(stop_after_minutes)
    check_origins()
    found = hardware.prepare(settings.training, settings.training.threads)
    nnunet_setup.configure(found.processes, found.augmentation_workers, files.results)
    from workflow_scripts.records.run_tables import describe_run
    from workflow_scripts.training.attempt import Attempt
    from workflow_scripts.training.fold import Fold

    plans, outputs = read_json(files.plans), files.outputs
    split = read_json(files.splits, kind=list)[run.fold]
    data = _data_of(files.plans.parent, [*split["train"], *split["val"]])
    identity = _identify(run, settings.training, plans, split, found)
    if data:
        identity["data_hash"] = json_hash(data)
    folder = run.fold_folder(files.results)
    fold = Fold(
        run=run,
        settings=settings,
        plans_file=files.plans,
        identity=identity,
        data=data,
        cases=len(split["val"]),
        folder=folder,
        hardware=found,
        outputs=outputs,
    )
    fold.check_identity()
    if fold.is_done():
        _announce_changes(fold.ledger.read(), settings.energy, run)
    else:
        training = settings.training
        wait_minutes = min(training.wait_minutes, deadline.seconds_left / 60)
        with lease.hold(folder, training.lease_minutes, wait_minutes) as held:
            if not fold.is_done():  # by the process that held the lease
                Attempt(fold, held, deadline).run()
    fold.write_tables()
    shutil.copyfile(fold.summary, outputs["summary"])
    dataset = read_json(files.plans.parent / "dataset.json")
    plan = plans["configurations"][run.configuration]
    scores = read_json(fold.summary)
    record = describe_run(
        {**asdict(run), **identity}, plan, dataset, fold.ledger.read(), scores, folder
    )
    write_json(record, outputs["run"])


def _announce_changes(entries: list[Entry], energy: EnergySettings, run: RunSpec) -> None:
    """Say that changed settings of the meter do not change what a finished training has used."""
    meter = starts(entries)[-1].meter
    if changed := changed_settings(asdict(meter), asdict(energy)):
        announce(
            f"{run.task} {run.arm} fold {run.fold} is finished: its energy stays as it was metered "
            f"({changed}). To measure it again, choose another `study` name"
        )


def _identify(
    run: RunSpec,
    training: TrainingSettings,
    plans: dict[str, Any],
    split: dict[str, list[str]],
    found: hardware.Hardware,
) -> dict[str, Any]:
    """Return everything that determines the weights; a training resumes only if it is equal."""
    length = ("epochs", "iterations_per_epoch", "validation_iterations_per_epoch")
    identity = {
        **{key: getattr(run, key) for key in ("task", "trainer", "fold", "configuration")},
        "parameters": run.parameters,
        "plans_hash": json_hash(plans),
        "splits_hash": json_hash(split),
        **{key: getattr(training, key) for key in (*length, "seed")},
        "precision": found.precision,
        "trainer_code": trainer_code_hash(),
        "nnunet_code": code_hash(nnunet_setup.find_trainer(run.trainer)),
        **versions(),
    }
    del identity["codecarbon"]
    if training.deterministic:
        identity |= {"deterministic": True, "threads": found.threads}
        identity["device"] = _device_name(found.device)
    return identity


def _data_of(preprocessed: Path, cases: list[str]) -> dict[str, str]:
    """Return the digest of each case; nothing if they were preprocessed by an earlier version."""
    if not (preprocessed / RECORD).is_file():
        return {}
    ending = read_json(preprocessed / "dataset.json")["file_ending"]
    digests = digests_of_cases(read_json(preprocessed / RECORD), ending)
    return {case: digests[case] for case in sorted(cases) if case in digests}


def _device_name(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    return str(torch.cpu.get_capabilities().get("cpu_name", device))
