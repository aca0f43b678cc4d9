"""Short trainings, each in its own process, and tables of their measurements."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd

from workflow_scripts.common.errors import UserError
from workflow_scripts.study.settings import RunSettings
from workflow_scripts.study.specification import RunSpec

ROOT = Path(__file__).resolve().parents[2]
MODULE = "workflow_scripts.benchmark.timed_training"
Measured = dict[str, dict[str, Any]]
"""Results of `timed_training.measure`, by variant."""


def run_module(
    module: str,
    path: Path,
    environment: Mapping[str, str],
    what: str,
) -> str:
    """Run `python -m module path` and return its standard output.

    Raises UserError with the end of its output if it fails; `what` names it in the message.
    """
    done = subprocess.run(
        [sys.executable, "-m", module, path],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise UserError(f"{what} failed:\n{(done.stdout + done.stderr)[-3000:]}")
    return done.stdout


def run_variant(
    run: RunSpec,
    settings: RunSettings,
    plans_file: Path,
    folder: Path,
    environment: Mapping[str, str] | None = None,
    **options: bool | str | None,
) -> dict[str, Any]:
    """Measure one training in a fresh process.

    Args:
        run, settings, plans_file: as in `training.fold.Fold`.
        folder: where a temporary folder for its results is made.
        environment: environment variables in addition to this process's.
        options: options of `timed_training.measure`.

    Raises UserError with the end of its output if it fails.
    """
    with tempfile.TemporaryDirectory(dir=folder) as name:
        path = Path(name) / "spec.json"
        spec = {"run": asdict(run), "settings": asdict(settings), "folder": name}
        spec |= {"plans_file": str(plans_file.absolute()), "options": options}
        path.write_text(json.dumps(spec))
        said = run_module(MODULE, path, environment or {}, run.trainer)
    return json.loads(said.splitlines()[-1])


def iterations_table(measured: Mapping[str, Any]) -> pd.DataFrame:
    """Return epoch, patch, seconds and gflop of each iteration."""
    columns = ["epoch", "patch", "seconds", "gflop"]
    table = pd.DataFrame(measured["iterations"], columns=columns)
    return table.assign(patch=table["patch"].map(tuple))


def steady(measured: Mapping[str, Any]) -> float:
    """Return median seconds per iteration after the first epoch, in which kernels are chosen."""
    return median(seconds for epoch, _, seconds, _ in measured["iterations"] if epoch > 0)


def by_stage(measured: Mapping[str, Any]) -> pd.DataFrame:
    """Return, by patch size: first iteration's seconds, median of the later ones, and GFLOP."""
    return (
        iterations_table(measured)
        .groupby("patch", sort=False)
        .agg(
            first=("seconds", "first"),
            seconds=("seconds", lambda seconds: seconds.iloc[1:].median()),
            gflop=("gflop", "first"),
        )
    )
