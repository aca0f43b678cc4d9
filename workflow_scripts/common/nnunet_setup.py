"""nnU-Net's environment: its folders, numbers of processes, datasets and trainers."""

import importlib
import multiprocessing
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Listener
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from workflow_scripts.common.errors import UserError

RAW = Path("resources/nnUNet_raw")
PREPROCESSED = Path("resources/nnUNet_preprocessed")

FOLDS = 5
"""Cross-validation folds that nnU-Net draws by itself."""
SPLITS = "splits_final.json"
"""File with the cases of `train` and `val` of each fold."""


def configure(processes: int, augmentation_workers: int = 1, results: Path | None = None) -> None:
    """Set nnU-Net's folders and worker counts, which it reads when it is first imported.

    Raises UserError if its workers could not hand over their data.
    """
    check_sockets()
    os.environ["nnUNet_raw"] = str(RAW.absolute())
    os.environ["nnUNet_preprocessed"] = str(PREPROCESSED.absolute())
    os.environ.pop("nnUNet_results", None)
    if results is not None:
        os.environ["nnUNet_results"] = str(results.absolute())
    os.environ["nnUNet_def_n_proc"] = str(processes)
    os.environ["nnUNet_n_proc_DA"] = str(augmentation_workers)
    os.environ["MPLBACKEND"] = "Agg"


@contextmanager
def pools_on(cores: int) -> Iterator[None]:
    """On one core, let nnU-Net's pools be threads of this process instead of spawned processes.

    A spawned worker imports torch and nnU-Net again, for seconds of processor time, and could not
    work in parallel. On more cores, nothing changes.
    """
    if cores > 1:
        yield
        return
    given = multiprocessing.get_context

    def get_context(method: str | None = None) -> Any:
        return SimpleNamespace(Pool=ThreadPool) if method == "spawn" else given(method)

    multiprocessing.get_context = get_context
    try:
        yield
    finally:
        multiprocessing.get_context = given


def check_sockets() -> None:
    """Check that processes can exchange data through sockets in the folder for temporary files.

    Raises UserError if they cannot: torch hands over every batch through such a socket. Its path
    has at most 107 bytes on Linux and 103 on macOS, and some network file systems have no sockets.
    """
    try:
        Listener(None, "AF_UNIX").close()
    except OSError as error:
        raise UserError(
            f"TMPDIR is {tempfile.gettempdir()}, where processes cannot exchange data through "
            f"sockets ({error}). Set TMPDIR to a folder with a short path on a local disk, such as "
            "/tmp"
        ) from error


def dataset_number(dataset: str) -> int:
    """Return nnU-Net's number of a dataset folder: 4 for `Dataset004_Hippocampus`."""
    return int(dataset[len("Dataset") :].split("_")[0])


TRAINERS = Path(__file__).parents[1] / "trainers"
"""Value of `nnUNet_extTrainer` with which nnU-Net finds the curricula without this workflow."""


def find_trainer(name: str) -> type:
    """Return a trainer class of this project, or one that nnU-Net finds by itself.

    Raises UserError for an unknown name.
    """
    trainer = getattr(
        importlib.import_module("workflow_scripts.trainers.curricula.arms"), name, None
    )
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
