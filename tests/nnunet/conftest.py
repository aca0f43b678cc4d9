"""The tiny task, made once."""

import json
import os
from pathlib import Path

import pytest
from filelock import FileLock

from helpers.processes import forked_pools
from helpers.tiny_task import TinyTask, prepare


@pytest.fixture(scope="session")
def prepared(tmp_path_factory) -> tuple[Path, Path]:
    """Raw and preprocessed folder of the task, made once for all of pytest-xdist's workers."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return prepare(tmp_path_factory.mktemp("tiny"))
    done = tmp_path_factory.getbasetemp().parent / "tiny.json"
    with FileLock(f"{done}.lock"):
        if not done.exists():
            folders = prepare(tmp_path_factory.mktemp("tiny"))
            done.write_text(json.dumps(list(map(str, folders))))
    raw, preprocessed = map(Path, json.loads(done.read_text()))
    return raw, preprocessed


@pytest.fixture
def tiny(prepared, tmp_path, monkeypatch) -> TinyTask:
    """The task with results in `tmp_path`, nnU-Net's environment set, no plots, one thread.

    nnU-Net's pools have one worker, which is forked.
    """
    import torch
    from nnunetv2.training.logging.nnunet_logger import LocalLogger

    task = TinyTask(*prepared, tmp_path / "results")
    for name, value in task.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(LocalLogger, "plot_progress_png", lambda *_: None)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with forked_pools():
        yield task
    torch.set_num_threads(threads)
