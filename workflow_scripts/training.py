"""What one training needs around nnU-Net: trainer, identity, interruption, progress."""

import importlib
import json
import platform
import random
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from log import UserError, tell
from nnunet import json_hash, write_json

TRAINERS = Path(__file__).parent / "trainers"
DISTRIBUTIONS = ("torch", "nnunetv2", "batchgeneratorsv2", "codecarbon")
VERSIONS = {"trainer_code", "python", *DISTRIBUTIONS}
"""Fields of an identity that tell with what a training was made, not what it is."""


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch (the network's initial weights)."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def find_trainer(name: str) -> type:
    """Return a trainer class of this project, or any that nnU-Net finds by itself.

    Raises UserError for an unknown name.
    """
    trainer = getattr(importlib.import_module("trainers.curricula.arms"), name, None)
    if trainer is not None:
        return trainer
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    try:
        return recursive_find_trainer_class_by_name(name)
    except RuntimeError as error:
        raise UserError(
            f"trainer {name} is neither in workflow_scripts/trainers/curricula/arms.py, nor in "
            "nnU-Net, nor in a folder that nnUNet_extTrainer names"
        ) from error


def make_trainer(
    run: dict[str, Any],
    parameters: dict[str, Any],
    settings: dict[str, Any],
    plans_file: Path,
    device: str,
    resume: bool,
) -> Any:
    """Return an initialised trainer of nnU-Net, its weights drawn from the seed.

    Args:
        run: names of the training: task, arm, trainer, fold, configuration.
        parameters: attributes that the arm sets on its trainer.
        settings: the config's `training` section.
        plans_file: nnU-Net's plans; its `dataset.json` is beside it.
        device: `cuda` or `cpu`.
        resume: whether a checkpoint is going to be loaded.

    Raises UserError for an unknown trainer or parameter, or a schedule that the plan does not fit.
    """
    import torch

    seed_everything(settings["seed"])
    trainer = find_trainer(run["trainer"])(
        plans={**json.loads(plans_file.read_text()), "continue_training": resume},
        configuration=run["configuration"],
        fold=run["fold"],
        dataset_json=json.loads((plans_file.parent / "dataset.json").read_text()),
        device=torch.device(device),
    )
    trainer.num_epochs = settings["epochs"]
    trainer.num_iterations_per_epoch = settings["iterations_per_epoch"]
    trainer.num_val_iterations_per_epoch = settings["validation_iterations_per_epoch"]
    trainer.batch_seed = settings["seed"]
    trainer.checkpoint_seconds = 60 * settings["checkpoint_minutes"]
    for name, value in parameters.items():
        if not hasattr(trainer, name):
            raise UserError(f"arms.{run['arm']}.parameters: {run['trainer']} has no {name}")
        setattr(trainer, name, value)
    try:
        getattr(trainer, "schedule", lambda: None)()
    except ValueError as error:
        raise UserError(f"arms.{run['arm']}, {run['task']}: {error}") from error
    trainer.initialize()
    return trainer


def trainer_code_hash() -> str:
    """Return a hash of the trainers' code; comments and formatting do not count."""
    import ast

    trees = [
        ast.dump(ast.parse(path.read_text()))
        for path in sorted((TRAINERS / "curricula").glob("*.py"))
    ]
    return json_hash(trees)


def check_identity(identity: dict[str, Any], path: Path, started: bool, finished: bool) -> None:
    """Refuse to go on with a training of another kind; note the identity of a new one.

    The identity is all that decides the weights. Of a finished training the versions may differ
    from today's: nothing is trained any more, and `run.json` tells with which it was made.

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
    found = json.loads(path.read_text())
    compare_identity(identity, found, path, VERSIONS if finished else set())


def compare_identity(
    identity: dict[str, Any], found: dict[str, Any], path: Path, skipped: set[str]
) -> None:
    """Raise UserError where two identities differ, naming the fields; `skipped` ones may."""
    differing = [
        f"{key} was {found.get(key)!r} and is now {identity.get(key)!r}"
        for key in sorted({*found, *identity} - skipped)
        if found.get(key) != identity.get(key)
    ]
    if differing:
        raise UserError(
            f"cannot go on with the training in {path}: {'; '.join(differing)}. Set it back, or "
            f"name another `study`, or delete {path.parent} to train anew"
        )


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide the numbers."""
    found = {"python": platform.python_version()}
    return found | {name: version(name) for name in DISTRIBUTIONS}


def git_commit() -> str | None:
    """Return the workflow's commit, marked where files differ from it; None outside of git."""
    command = ["git", "-C", str(TRAINERS), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def now() -> str:
    """Return the present time, ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class Progress:
    """Lines on the terminal: which training, epoch k of n, time left."""

    def __init__(self, title: str, every_seconds: float = 10.0) -> None:
        """`title` names the training; a line at most each `every_seconds`."""
        import time

        self.title, self._every, self._clock = title, every_seconds, time.monotonic
        self._began = self._last = self._clock()

    def start(self, done: int, total: int, what: str) -> None:
        """Begin counting `total` pieces of `what`, of which `done` were there before."""
        self._done_before, self._total, self._what = done, total, what
        self._began, self._last = self._clock(), 0.0

    def show(self, done: int, note: str = "") -> None:
        """Show that `done` of the pieces are there."""
        now = self._clock()
        if now - self._last < self._every and done < self._total:
            return
        self._last = now
        each = (now - self._began) / max(1, done - self._done_before)
        left = _duration(each * (self._total - done))
        tell(f"{self.title}: {self._what} {done}/{self._total}, {left} left{note}")


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"


def load_checkpoint(trainer: Any, path: Path, identity: dict[str, Any]) -> None:
    """Load a checkpoint of this very training; the identity goes into those that it will write.

    Raises UserError for a file that cannot be read, or that another training has written.
    """
    try:
        trainer.load_checkpoint(str(path))
    except Exception as error:  # torch and pickle raise many kinds for a damaged file
        raise UserError(
            f"the checkpoint {path} cannot be read ({type(error).__name__}: {error}). Put back a "
            f"whole one, or delete {path.parent} to train anew"
        ) from error
    found = trainer.my_init_kwargs.get("identity")
    if found is not None:
        compare_identity(identity, found, path, VERSIONS)
    trainer.my_init_kwargs["identity"] = identity
