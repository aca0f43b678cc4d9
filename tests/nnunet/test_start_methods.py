"""Loading under every way in which Python starts processes: fork, forkserver and spawn.

Spawned workers (macOS; Linux from Python 3.14) get the loader by pickling and inherit nothing.
"""

import contextlib
import multiprocessing
import os
import pickle
import re
import signal
import sys
import time
from itertools import islice
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import psutil
import pytest
import torch
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

from helpers.processes import PATIENCE, Forked
from helpers.tree import shipped_config
from workflow_scripts.common import nnunet_setup
from workflow_scripts.trainers.curricula.batches.loading import ScheduledDataLoader, start_loading

ROOT = Path(__file__).parents[2]
ARMS = {
    name: (arm["trainer"], arm.get("parameters", {}))
    for study in ("paper", "scale_space")
    for name, arm in shipped_config(study)["arms"].items()
    if (study, name) == ("scale_space", "scale_space") or study == "paper"
}
MORE = {
    "mixed replay": ("nnUNetTrainerLowFrequency", {"replay": "mixed"}),
    "augmented on the device": (
        "nnUNetTrainerProgressivePerformancePatch",
        {"augment_on_device": True},
    ),
    "nnU-Net's augmentation": (
        "nnUNetTrainerProgressivePatch",
        {"batched_augmentation": False, "faithful_augmentation_per_stage": True},
    ),
}
LARGE = "nnUNetTrainerProgressivePerformancePatch"
FEW = 4


def loader_of(batches):
    """Return nnU-Net's loader within what a trainer iterates over."""
    while not hasattr(batches, "generate_train_batch"):
        batches = getattr(batches, "_loader", None) or batches.data_loader
    return batches


def copied(loader):
    """Return the copy of a loader that a spawned worker gets."""
    return pickle.loads(bytes(ForkingPickler.dumps(loader)))


def tensors_of(value):
    if torch.is_tensor(value):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_of(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_of(item)
    elif hasattr(value, "wide_images"):
        yield from tensors_of(vars(value))


def equal_batches(one, other):
    pairs = list(zip(tensors_of(one), tensors_of(other), strict=True))
    assert len(pairs) > 1
    return list(one["keys"]) == list(other["keys"]) and all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", [*ARMS, *MORE])
def test_a_worker_s_copy_of_a_loader_yields_the_same_batches(tiny, name):
    trainer, parameters = (ARMS | MORE)[name]
    loaders = tiny.trainer(trainer, epochs=6, iterations=1, **parameters).get_dataloaders()
    for loader in map(loader_of, loaders):
        batches = islice(copied(loader), FEW)
        assert all(map(equal_batches, islice(loader, FEW), batches))


def test_these_are_the_ten_arms_of_the_reference():
    page = (ROOT / "docs/reference/arms.md").read_text()
    listed = re.findall(r"^\| `(\w+)` \|", page, re.M)
    assert sorted(ARMS) == sorted(listed)
    assert len(ARMS) == 10


def test_a_trainer_that_nnunet_found_by_itself_can_be_copied(tiny, monkeypatch):
    """nnU-Net removes it from `sys.path` and `sys.modules` as soon as it has found it."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "modules", sys.modules)
    before = set(sys.modules)
    folder = str(nnunet_setup.TRAINERS)
    found = recursive_find_python_class(
        folder, LARGE, None, folder, cleanup_imports_from_base_folder=True
    )
    assert found.__module__ == "curricula.arms"
    assert folder not in sys.path
    monkeypatch.setattr(nnunet_setup, "find_trainer", lambda name: found)
    trainer = tiny.trainer(LARGE, epochs=6, iterations=1, augment_on_device=True)
    try:
        loader = loader_of(trainer.get_dataloaders()[0])
        (batch,) = islice(copied(loader), 1)
        assert type(batch["crops"]).__module__ == "curricula.batches.loading"
        assert folder in sys.path
    finally:
        for name in set(sys.modules) - before:
            del sys.modules[name]


# --- real workers


class Reporting(ScheduledDataLoader):
    """A loader whose batches tell how torch is set up in the worker."""

    def generate_train_batch(self):
        torch_is = {
            "threads": torch.get_num_threads(),
            "deterministic": torch.are_deterministic_algorithms_enabled(),
        }
        return super().generate_train_batch() | {"torch": torch_is, "process": os.getpid()}


@contextlib.contextmanager
def start_method(name):
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method(name, force=True)
    try:
        yield
    finally:
        multiprocessing.set_start_method(before, force=True)


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_two_workers_yield_the_batches_of_one_process(tiny, method):
    alone = tiny.trainer(LARGE, epochs=6, iterations=1)
    expected = list(islice(loader_of(alone.get_dataloaders()[0]), 6))
    trainer = tiny.trainer(LARGE, epochs=6, iterations=1)
    torch.use_deterministic_algorithms(True)
    try:
        loader = loader_of(trainer.get_dataloaders()[0])
        loader.__class__, loader._stride = Reporting, 2
        with start_method(method):
            batches = start_loading(loader, 2, False)
    finally:
        torch.use_deterministic_algorithms(False)
    try:
        found = list(islice(batches, 6))
    finally:
        batches._finish()
    assert {(batch["torch"]["threads"], batch["torch"]["deterministic"]) for batch in found} == {
        (1, True)
    }
    assert len({batch["process"] for batch in found}) == 2
    for batch, other in zip(expected, found, strict=True):
        assert equal_batches(batch, {key: other[key] for key in batch})


class Endless(ScheduledDataLoader):
    """Stands for a loader, without data."""

    def __init__(self):
        self._deterministic = self._warn_only = False

    def __next__(self):
        return 0


def load_forever(method, path):
    multiprocessing.set_start_method(method, force=True)
    batches = start_loading(Endless(), 2, False)
    assert [next(batches) for _ in range(4)] == [0] * 4
    path.write_text(" ".join(str(process.pid) for process in batches._processes))
    time.sleep(600)


def runs(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_workers_end_with_a_training_that_is_killed(tmp_path, method):
    path = tmp_path / "workers"
    training = Forked(load_forever, method, path, output=tmp_path / "log")
    deadline = time.monotonic() + PATIENCE
    while not path.exists() or not path.read_text():
        assert training.poll() is None, (tmp_path / "log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    workers = list(map(int, path.read_text().split()))
    assert all(map(runs, workers))
    os.kill(training.pid, signal.SIGKILL)
    training.wait()
    try:
        while any(map(runs, workers)):
            assert time.monotonic() < deadline, "a worker outlived its training"
            time.sleep(0.1)
    finally:
        for pid in filter(runs, workers):
            os.kill(pid, signal.SIGKILL)
