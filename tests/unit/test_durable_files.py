"""What the documentation promises about power cuts: content reaches the disk before its name."""

import errno
import os
from pathlib import Path

import pandas as pd
import pytest
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from workflow_scripts.common.files import write_csv, write_json
from workflow_scripts.records.ledger import End, Ledger
from workflow_scripts.trainers.curricula import durable_files
from workflow_scripts.trainers.curricula.resumable import ResumableTrainer


@pytest.fixture
def disk(monkeypatch, tmp_path):
    """The names of the files that were written out or renamed, in order."""
    calls = []
    fsync, replace = os.fsync, Path.replace

    def recorded_fsync(descriptor):
        number = os.fstat(descriptor).st_ino
        (path,) = [p for p in (tmp_path, *tmp_path.iterdir()) if p.stat().st_ino == number]
        calls.append(("sync", path.name))
        fsync(descriptor)

    def recorded_replace(path, target):
        calls.append(("rename", path.name))
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(Path, "replace", recorded_replace)
    return calls


def save_checkpoint(path):
    trainer = type("Trainer", (ResumableTrainer,), {"__init__": lambda self: None})()
    trainer.local_rank, trainer.disable_checkpointing = 0, False
    trainer.save_checkpoint(str(path))


WRITERS = {
    "identity.json": lambda path: write_json({"seed": 1}, path),
    "epochs.csv": lambda path: write_csv(pd.DataFrame({"epoch": [0]}), path),
    "checkpoint_latest.pth": save_checkpoint,
}


@pytest.mark.parametrize("name", WRITERS)
def test_content_is_on_the_disk_before_its_name(monkeypatch, tmp_path, disk, name):
    monkeypatch.setattr(nnUNetTrainer, "save_checkpoint", lambda _, path: Path(path).touch())
    WRITERS[name](tmp_path / name)
    partial = disk[0][1]
    assert partial != name
    assert disk == [("sync", partial), ("rename", partial), ("sync", tmp_path.name)]


def test_a_new_ledger_has_its_name_on_the_disk(tmp_path, disk):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    for number in (1, 2):
        ledger.append(End(attempt=number, how="finished"))
    assert disk == [("sync", "ledger.jsonl"), ("sync", tmp_path.name), ("sync", "ledger.jsonl")]


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.EIO])
def test_only_a_disk_that_fails_is_an_error(monkeypatch, tmp_path, code):
    def fail(descriptor):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    if code != errno.EIO:
        durable_files.sync(tmp_path)
        return
    with pytest.raises(OSError, match="Input/output"):
        durable_files.sync(tmp_path)
