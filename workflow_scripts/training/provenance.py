"""What a training was made with, and whether it may be resumed."""

import ast
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from workflow_scripts.common.errors import UserError
from workflow_scripts.common.files import json_hash, read_json, write_json
from workflow_scripts.common.nnunet_setup import TRAINERS
from workflow_scripts.trainers.curricula.schedules.schedule import Schedule

DISTRIBUTIONS = ("torch", "nnunetv2", "batchgeneratorsv2", "codecarbon")


VERSIONS = {"trainer_code", "python", *DISTRIBUTIONS}
"""Fields of an identity that tell with what a training was made, not what it is."""


def trainer_code_hash() -> str:
    """Return a hash of the trainers' code; comments and formatting do not count."""
    trees = [
        ast.dump(ast.parse(path.read_text()))
        for path in sorted((TRAINERS / "curricula").rglob("*.py"))
    ]
    return json_hash(trees)


def check_identity(identity: dict[str, Any], path: Path, started: bool, finished: bool) -> None:
    """Refuse to continue a different training; record the identity of a new one.

    The identity is everything that determines the weights. The versions of a finished training may
    differ from today's: nothing is trained any more, and `run.json` records those that trained it.

    Raises UserError naming the fields that differ.
    """
    if not started:
        write_json(identity, path)
        return
    if not path.exists():
        raise UserError(
            f"{path.parent} holds a checkpoint but no {path.name}: it was not trained by this "
            "workflow; move the folder away"
        )
    found = read_json(path, f"delete {path.parent} to train from scratch")
    compare_identity(identity, found, path, VERSIONS if finished else set())


def compare_identity(
    identity: dict[str, Any], found: dict[str, Any], path: Path, skipped: set[str]
) -> None:
    """Raise UserError naming the fields in which two identities differ, except `skipped` ones."""
    differing = [
        f"{key} was {found.get(key)!r} and is now {identity.get(key)!r}"
        for key in sorted({*found, *identity} - skipped)
        if found.get(key) != identity.get(key)
    ]
    if differing:
        raise UserError(
            f"cannot continue the training in {path}: {'; '.join(differing)}. Set it back, or "
            f"name another `study`, or delete {path.parent} to train from scratch"
        )


def check_schedule(epochs: pd.DataFrame, schedule: Schedule, folder: Path) -> None:
    """Refuse a finished training whose stages differ from the arm's current ones.

    A default of the schedule may have changed, which the arm's parameters do not show.

    Args:
        epochs: `records.run_tables.epochs_table`; epochs whose batches differ (patch size `random`)
            are not compared.
        schedule: the current one.
        folder: of the fold, for the message.

    Raises:
        UserError: naming the first epoch that differs.
    """
    for row in epochs.itertuples():
        number = schedule.stage_of_epoch(row.epoch)
        if number is None or row.patch_size == "random" or pd.isna(row.batch_size):
            continue
        stage = schedule.stages[number]
        if (row.patch_size, row.batch_size) != (stage.label, stage.batch_size):
            raise UserError(
                f"{folder} was trained by another schedule than its arm has now: epoch {row.epoch} "
                f"had batches of {row.batch_size} patches of {row.patch_size}, and would have "
                f"{stage.batch_size} of {stage.label}. Set the arm's parameters so that they are "
                f"equal (the changelog lists changed defaults), or name another `study`, or "
                f"delete {folder} to train from scratch"
            )


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that affect the numbers."""
    found = {"python": platform.python_version()}
    return found | {name: version(name) for name in DISTRIBUTIONS}


def git_commit() -> str | None:
    """Return the workflow's commit, marked if files differ from it; None outside of git."""
    command = ["git", "-C", str(TRAINERS), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def now() -> str:
    """Return the current time, ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")
