"""Provenance of a training, and whether it may be resumed."""

import ast
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from workflow_scripts.common.errors import UserError
from workflow_scripts.common.files import read_json, write_json
from workflow_scripts.common.hashing import json_hash
from workflow_scripts.common.nnunet_setup import TRAINERS
from workflow_scripts.trainers.curricula.schedules.schedule import Schedule

DISTRIBUTIONS = ("torch", "nnunetv2", "batchgeneratorsv2", "codecarbon")


VERSIONS = {"trainer_code", "nnunet_code", "python", *DISTRIBUTIONS}
"""Fields of an identity that describe the software of a training, not the training itself."""


def trainer_code_hash() -> str:
    """Return a hash of the trainers' code, without comments, docstrings and formatting.

    `standalone`, the use without the workflow, is left out: no training of a study runs it.
    """
    folder = TRAINERS / "curricula"
    trees = [
        ast.dump(_WithoutTexts().visit(ast.parse(path.read_text())))
        for path in sorted(folder.rglob("*.py"))
        if "standalone" not in path.relative_to(folder).parts
    ]
    return json_hash(trees)


class _WithoutTexts(ast.NodeTransformer):
    """Remove docstrings and the descriptions of constants."""

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if text else node


def check_identity(identity: dict[str, Any], path: Path, started: bool, finished: bool) -> None:
    """Refuse to continue a different training; record the identity of a new one.

    The identity is everything that determines the weights. The versions of a finished training may
    differ from the current ones: it is not trained further, and `run.json` records its versions.

    Raises UserError naming the fields that differ.
    """
    if not started:
        write_json(identity, path)
        return
    if not path.exists():
        raise UserError(
            f"{path.parent} contains a checkpoint but no {path.name}, so it was not trained by "
            "this workflow; move the folder elsewhere"
        )
    found = read_json(path, f"delete {path.parent} to train from scratch")
    compare_identity(identity, found, path, VERSIONS if finished else set())


def compare_identity(
    identity: dict[str, Any], found: dict[str, Any], path: Path, skipped: set[str]
) -> None:
    """Raise UserError naming the fields in which two identities differ, except `skipped` ones.

    A data hash that either lacks is skipped too: earlier versions did not record it.
    """
    if "data_hash" not in found.keys() & identity.keys():
        skipped = skipped | {"data_hash"}
    differing = [
        f"{key} was {found.get(key)!r} and is now {identity.get(key)!r}"
        for key in sorted({*found, *identity} - skipped)
        if found.get(key) != identity.get(key)
    ]
    if differing:
        raise UserError(
            f"cannot continue the training in {path}: {'; '.join(differing)}. Undo the "
            f"change, or choose another `study` name, or delete {path.parent} to train from scratch"
            f"{_for_the_demo(path)}"
        )


def check_schedule(epochs: pd.DataFrame, schedule: Schedule, folder: Path) -> None:
    """Refuse a finished training whose stages differ from the arm's current ones.

    A default of the schedule may have changed, which the arm's parameters do not show.

    Args:
        epochs: `records.run_tables.epochs_table`; epochs whose batches differ (patch size `random`)
            are not compared.
        schedule: the current one.
        folder: folder of the fold, for the message.

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
                f"{folder} was trained with a different schedule than its arm has now: epoch "
                f"{row.epoch} had batches of {row.batch_size} patches of {row.patch_size}, and "
                f"would now have {stage.batch_size} of {stage.label}. Set the arm's parameters to "
                f"match (the changelog lists changed defaults), or choose another `study` name, or "
                f"delete {folder} to train from scratch{_for_the_demo(folder)}"
            )


def _for_the_demo(path: Path) -> str:
    """Return how to delete an old demo, if the path is in one: its settings may have changed."""
    return ". `make clean` deletes the whole demo" if "results/demo/" in path.as_posix() else ""


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
