"""What ends a training early: its time limit, a signal, a lost lease."""

import math
import os
import signal
import time
from types import SimpleNamespace

import psutil
import pytest

from interruption import Deadline, Interruption
from lease import LeaseLostError


@pytest.mark.parametrize(("limit", "kept"), [(240, 5), (51, 5), (30, 3), (1, 0.1)])
def test_the_deadline_counts_from_the_start_of_the_process(limit, kept):
    deadline = Deadline(limit)
    age = time.time() - psutil.Process(os.getpid()).create_time()
    assert age > 0.5, "pytest itself takes longer to start"
    assert deadline.seconds_left == pytest.approx(60 * (limit - kept) - age, abs=0.3)
    assert deadline.minutes_run == pytest.approx(age / 60, abs=0.01)


def test_no_limit():
    assert Deadline(None).seconds_left == math.inf


class Trainer:
    """Counts its steps and checkpoints."""

    def __init__(self, stoppable=True):
        self.done = []
        if stoppable:
            self.stop_requested = False

    def train_step(self, batch):
        self.done.append(batch)
        return batch

    def validation_step(self, batch):
        return self.train_step(batch)

    def save_checkpoint(self, filename):
        self.done.append(filename)


@pytest.fixture
def lease():
    def check():
        if lease.lost:
            raise LeaseLostError("gone")

    lease = SimpleNamespace(lost=False, check=check)
    return lease


def test_nothing_happens_before_the_deadline(lease):
    trainer, interruption = Trainer(), Interruption("it", Deadline(None), lease)
    with interruption.watch(trainer):
        assert trainer.train_step(1) == 1
        assert trainer.validation_step(2) == 2
        trainer.save_checkpoint("file")
    assert trainer.done == [1, 2, "file"]
    assert not trainer.stop_requested
    assert not interruption.deadline_passed


@pytest.mark.parametrize("step", ["train_step", "validation_step"])
def test_after_the_deadline_one_more_step_is_done(lease, step):
    trainer, interruption = Trainer(), Interruption("Task04 fold 0", Deadline(0), lease)
    with interruption.watch(trainer):
        getattr(trainer, step)(1)
    assert trainer.done == [1]
    assert trainer.stop_requested
    assert interruption.deadline_passed
    assert str(interruption.explain("3 of 9 epochs done")).endswith(
        " min, before its time limit: 3 of 9 epochs done; run again to go on from the last "
        "checkpoint"
    )


def test_nnunet_s_own_trainer_cannot_be_asked(lease):
    trainer, interruption = Trainer(stoppable=False), Interruption("it", Deadline(0), lease)
    with pytest.raises(SystemExit) as caught, interruption.watch(trainer):
        trainer.train_step(1)
    assert caught.value.code == 1
    assert trainer.done == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_asks_and_a_second_one_ends(lease, number, capsys):
    before = signal.getsignal(number)
    trainer, interruption = Trainer(), Interruption("it", Deadline(None), lease)
    with pytest.raises(SystemExit) as caught, interruption.watch(trainer):
        signal.raise_signal(number)
        assert trainer.stop_requested
        trainer.train_step(1)
        signal.raise_signal(number)
    assert caught.value.code == 128 + number
    assert trainer.done == [1]
    assert signal.getsignal(number) == before
    assert capsys.readouterr().err.startswith(f"it: {number.name}, ")


def test_who_lost_the_lease_neither_trains_nor_writes(lease):
    trainer, interruption = Trainer(), Interruption("it", Deadline(None), lease)
    with interruption.watch(trainer):
        lease.lost = True
        for call in (trainer.train_step, trainer.validation_step, trainer.save_checkpoint):
            with pytest.raises(LeaseLostError):
                call(1)
    assert trainer.done == []
