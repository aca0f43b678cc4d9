"""Compare the trainings that a study already has with its configuration, before any job runs.

Snakemake deletes the outputs of a job before the job starts. A training that refuses a changed
configuration (`training.provenance.check_identity`) would thus lose the records of the earlier one.
The Snakefile asks this module for every training of the DAG. It imports only packages that
Snakemake installs, so software versions and what only the job's machine decides are left to the
job.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from workflow_scripts.common.errors import ConfigError
from workflow_scripts.common.hashing import json_hash
from workflow_scripts.study.specification import LENGTH, RunSpec, Study

NAMES = ("task", "trainer", "fold", "configuration", "plans")
LENGTH_AND_SEED = (*LENGTH, "seed")
CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_latest.pth")
PRECISIONS = {"cuda": ("amp",), "cpu": ("bf16", "fp32"), "auto": ("amp", "bf16", "fp32")}
"""Precisions that `training.precision: auto` can mean, by `training.device`."""
LISTED = 5
"""Trainings that the message names for each difference."""

Run = tuple[str, str, int, int]
"""Task, arm, fold and seed of a training."""


def changes_of(study: Study, run: Run, record: Path) -> list[str]:
    """Return how the configuration differs from what an existing training was trained with.

    Args:
        study: the study as configured now.
        run: which training.
        record: its `run.json`, which exists if it is finished.

    The list is empty for a training that was never begun.
    """
    task, arm, fold, seed = run
    suffix = study.seed_suffix(seed)
    spec = RunSpec(**study.run(task, arm, fold), parameters=study.arm(arm)["parameters"])
    training = study.training(arm, suffix)
    folder = spec.fold_folder(study.results(arm, suffix))
    identity: dict[str, Any] = {}
    if any((folder / name).is_file() for name in CHECKPOINTS):
        identity = _read(folder / "identity.json")
    before = identity | _read(record)
    if not before:
        return []
    now = {name: getattr(spec, name) for name in NAMES} | {
        name: training[name] for name in LENGTH_AND_SEED
    }
    now["parameters"] = json.loads(json.dumps(spec.parameters))
    if before.get("plans", spec.plans) == spec.plans:
        now["plans_hash"] = _hash_of(study.plans(task))
        now["splits_hash"] = _hash_of(study.splits(task), fold)
    if identity:
        now |= _determinism(study, identity, training["deterministic"])
        before["deterministic"] = identity.get("deterministic", False)
    changes = [
        f"{name} was {_short(before[name])} and is now {_short(value)}"
        for name, value in now.items()
        if value is not None and name in before and before[name] != value
    ]
    possible = PRECISIONS[training["device"]]
    if training["precision"] != "auto":
        possible = (training["precision"],)
    if before.get("precision", possible[0]) not in possible:
        changes.append(f"precision was {before['precision']} and is now {' or '.join(possible)}")
    return changes


def _determinism(study: Study, identity: Mapping[str, Any], wanted: bool) -> dict[str, Any]:
    """Return what else determines the weights if a training is or was deterministic.

    A job has at most as many threads as the configuration says, and fewer with few `--cores`. So
    only more than that are a change; the rest is left to the job.
    """
    most = study.config["training"]["threads"]
    both = wanted and identity.get("deterministic", False)
    more = both and identity.get("threads", most) > most
    return {"deterministic": wanted} | ({"threads": most} if more else {})


def check_unchanged(study: Study, run: Run, record_of: Callable[[Run], Path]) -> None:
    """Refuse a configuration that differs from an existing training.

    Args:
        study: the study as configured now.
        run: the training that is asked for.
        record_of: returns the path of a training's `run.json`.

    Raises:
        ConfigError: if this training differs; it names all of the study's that do.
    """
    if not changes_of(study, run, record_of(run)):
        return
    differing: dict[str, list[Run]] = defaultdict(list)
    for other in dict.fromkeys([*study.runs, run]):
        if changes := changes_of(study, other, record_of(other)):
            differing["; ".join(changes)].append(other)
    count = sum(map(len, differing.values()))
    lines = [f"  {change}: {_listed(study, runs)}" for change, runs in differing.items()]
    raise ConfigError(
        f"Error: the study {study.name} has {count} training{'s' if count > 1 else ''} that this "
        "configuration would train differently, so nothing was started or deleted:\n"
        + "\n".join(lines)
        + "\nUndo the change, or choose another `study` name, or delete what was trained "
        "(docs/how-to/resuming.md)"
    )


def _listed(study: Study, runs: Iterable[Run]) -> str:
    names = [
        f"{task} {arm} fold {fold}" + (f" seed {seed}" if len(study.seeds) > 1 else "")
        for task, arm, fold, seed in runs
    ]
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 100 else f"{text[:97]}..."


def _read(path: Path, kind: type = dict) -> Any:
    """Return the content of a JSON file; empty if it is missing or broken, which jobs report."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        return kind()
    return content if isinstance(content, kind) else kind()


def _hash_of(path: str, item: int | None = None) -> str | None:
    """Return the hash of a JSON file or of one item of its list; None if there is none."""
    try:
        return _hash_of_version(path, Path(path).stat().st_mtime_ns, item)
    except OSError:
        return None


@cache
def _hash_of_version(path: str, modified: int, item: int | None) -> str | None:
    if item is None:
        content = _read(Path(path))
        return json_hash(content) if content else None
    listed = _read(Path(path), list)
    return json_hash(listed[item]) if item < len(listed) else None
