"""A worker that fails ends its job with an error; nothing waits for it forever."""

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time

import pytest

from helpers.tree import ROOT
from workflow_scripts.common.errors import UserError
from workflow_scripts.common.nnunet_setup import check_sockets
from workflow_scripts.common.worker_pools import watched_pools
from workflow_scripts.trainers.curricula.batches.loading import ScheduledDataLoader

PATIENCE = 120  # s; ends a test that hangs


@pytest.fixture(autouse=True)
def no_hang():
    """Fail instead of hanging, which is what each fault did before."""

    def hang(number, frame):
        raise AssertionError("it hangs")

    former = signal.signal(signal.SIGALRM, hang)
    signal.alarm(PATIENCE)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, former)


class Unpicklable:
    def __reduce__(self):
        raise OSError("unable to write to file </torch_1_2_0>: No space left on device (28)")


class Unopenable:
    def __reduce__(self):
        return _raise, ()


def _raise():
    raise OSError("AF_UNIX path too long")


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


def raising():
    raise ValueError("no such block")


FAULTS = {
    "killed": killed,
    "raises": raising,
    "shared memory is full": Unpicklable,
    "batch cannot be opened": Unopenable,
}


@pytest.mark.parametrize("at", ["first", "later"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_loading_process_that_fails_ends_the_training(tiny, monkeypatch, fault, at):
    make = ScheduledDataLoader.generate_train_batch

    def failing(loader):
        if loader._made >= (0 if at == "first" else 2):
            return FAULTS[fault]()
        return make(loader)

    monkeypatch.setattr(ScheduledDataLoader, "generate_train_batch", failing)
    monkeypatch.setenv("nnUNet_n_proc_DA", "2")
    trainer = tiny.trainer("nnUNetTrainerProgressivePatch", epochs=1, iterations=20)
    with pytest.raises(RuntimeError, match="background workers are no longer alive"):
        trainer.run_training()
    assert not multiprocessing.active_children()


def work(kind):
    if kind == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "raises":
        raise ValueError("no space left")
    time.sleep(0.01)
    return kind


@pytest.mark.parametrize(
    ("kind", "error"),
    [("killed", (UserError, r"writes predictions was killed \(SIGKILL\)")),
     ("raises", (ValueError, "no space left"))],
)  # fmt: skip
def test_a_pool_whose_worker_fails_ends_the_job(kind, error):
    """nnU-Net collects the results of all cases at the end."""
    with (
        pytest.raises(error[0], match=error[1]),
        watched_pools("writes predictions"),
        multiprocessing.get_context("fork").Pool(2) as pool,
    ):
        results = [pool.starmap_async(work, [(name,)]) for name in ("fine", kind, "fine")]
        results[0].get()
        threading.Event().wait()  # as a prediction that takes long


def test_pools_that_end_are_no_failure():
    submit = multiprocessing.pool.Pool.starmap_async
    with watched_pools("reads"), multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.starmap(work, [("a",), ("b",)]) == ["a", "b"]
        pool.terminate()
        time.sleep(1.5)
    assert multiprocessing.pool.Pool.starmap_async is submit


IDLE = """
import multiprocessing, os, signal, time
from workflow_scripts.common import worker_pools

worker_pools.UNWIND_SECONDS = 1.0
with worker_pools.watched_pools("reads"), multiprocessing.get_context("fork").Pool(1) as pool:
    pool.starmap(max, [(1, 2)])
    time.sleep(0.5)
    os.kill(pool._pool[0].pid, signal.SIGKILL)
    pool.starmap(max, [(1, 2)])
"""


def test_a_worker_that_died_with_a_lock_does_not_stop_the_end():
    """The pool's own end waits for the lock with which an idle worker was killed."""
    done = subprocess.run(
        [sys.executable, "-c", IDLE], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 1
    assert "Error: a process that reads was killed (SIGKILL)" in done.stderr


def test_a_temporary_folder_without_sockets_is_named(monkeypatch, tmp_path):
    long = tmp_path / ("x" * 170)
    long.mkdir()
    check_sockets()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    monkeypatch.setitem(multiprocessing.process.current_process()._config, "tempdir", str(long))
    with pytest.raises(UserError, match=rf"TMPDIR is {long}.*AF_UNIX path too long"):
        check_sockets()
