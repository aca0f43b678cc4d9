"""Reasons for a training to end early: its time limit, a signal, a lost lease."""

import math
import os
import signal
import time
from types import SimpleNamespace

import psutil
import pytest

from workflow_scripts.trainers.curricula.resumable import TrainingStopped
from workflow_scripts.training import preemption as module
from workflow_scripts.training.lease import LeaseLostError
from workflow_scripts.training.preemption import Deadline, Interruption


@pytest.mark.parametrize(("limit", "kept"), [(240, 5), (51, 5), (30, 3), (1, 0.1)])
def test_the_deadline_counts_from_the_start_of_the_process(limit, kept):
    deadline = Deadline(limit)
    age = time.time() - psutil.Process(os.getpid()).create_time()
    assert age > 0.5, "pytest itself takes longer to start"
    assert deadline.seconds_left == pytest.approx(60 * (limit - kept) - age, abs=2)
    assert deadline.minutes_run == pytest.approx(age / 60, abs=0.05)


def test_no_limit():
    assert Deadline(None).seconds_left == math.inf


class Trainer:
    """Records its steps and checkpoints; otherwise like nnU-Net's own."""

    def __init__(self):
        self.done = []

    def train_step(self, batch):
        self.done.append(batch)
        return batch

    def validation_step(self, batch):
        return self.train_step(batch)

    def save_checkpoint(self, filename):
        self.done.append(filename)


class StoppableTrainer(Trainer):
    """Has the interface of a curriculum trainer that the workflow needs, without its functions."""

    stop_requested = False
    iterations_resumed = 0
    pseudo_dice_by_scale = ()

    def schedule(self):
        raise NotImplementedError

    network_settings = scale_of_step = save_checkpoint_within_epoch = schedule


@pytest.fixture
def lease():
    def check():
        if lease.lost:
            raise LeaseLostError("gone")

    lease = SimpleNamespace(lost=False, check=check)
    return lease


def test_nothing_happens_before_the_deadline(lease):
    trainer, interruption = StoppableTrainer(), Interruption("it", Deadline(None), lease)
    with interruption.watch(trainer):
        assert trainer.train_step(1) == 1
        assert trainer.validation_step(2) == 2
        trainer.save_checkpoint("file")
    assert trainer.done == [1, 2, "file"]
    assert not trainer.stop_requested
    assert not interruption.deadline_passed


@pytest.mark.parametrize("step", ["train_step", "validation_step"])
def test_after_the_deadline_one_more_step_is_done(lease, step):
    trainer, interruption = StoppableTrainer(), Interruption("Task04 fold 0", Deadline(0), lease)
    with interruption.watch(trainer):
        getattr(trainer, step)(1)
    assert trainer.done == [1]
    assert trainer.stop_requested
    assert interruption.deadline_passed
    assert str(interruption.explain("3 of 9 epochs done")).endswith(
        " min, before its time limit: 3 of 9 epochs done; run again to continue"
    )


def test_nnunet_s_own_trainer_cannot_be_asked(lease):
    trainer, interruption = Trainer(), Interruption("it", Deadline(0), lease)
    with pytest.raises(TrainingStopped), interruption.watch(trainer):
        trainer.train_step(1)
    assert trainer.done == []
    assert interruption.deadline_passed


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_asks_and_a_second_one_ends(lease, number, capsys):
    before = signal.getsignal(number)
    trainer, interruption = StoppableTrainer(), Interruption("it", Deadline(None), lease)
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
    trainer, interruption = StoppableTrainer(), Interruption("it", Deadline(None), lease)
    with interruption.watch(trainer):
        lease.lost = True
        for call in (trainer.train_step, trainer.validation_step, trainer.save_checkpoint):
            with pytest.raises(LeaseLostError):
                call(1)
    assert trainer.done == []


# --- between the cases of the final validation


def test_a_signal_ends_the_validation_after_the_case(lease, capsys):
    interruption, finished = Interruption("it", Deadline(None), lease), []
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGALRM)]
    with pytest.raises(TrainingStopped), interruption.watch_validation():
        interruption.between_cases(lambda: finished.append(1))
        signal.raise_signal(signal.SIGTERM)
        assert not finished
        interruption.between_cases(lambda: finished.append(2))
    assert finished == [2], "the exports are waited for"
    assert not interruption.deadline_passed
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGALRM)] == before
    assert capsys.readouterr().err == "it: SIGTERM, ending after this case or in 20 s\n"


def test_a_case_that_takes_too_long_is_given_up(lease, monkeypatch):
    monkeypatch.setattr(module, "LAST_SECONDS", 0.1)
    interruption = Interruption("it", Deadline(None), lease)
    began = time.monotonic()
    with pytest.raises(TrainingStopped), interruption.watch_validation():
        signal.raise_signal(signal.SIGTERM)
        time.sleep(60)
    assert time.monotonic() - began < 30


def test_a_second_signal_ends_the_validation_at_once(lease):
    interruption = Interruption("it", Deadline(None), lease)
    with pytest.raises(SystemExit) as caught, interruption.watch_validation():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
    assert caught.value.code == 143


@pytest.fixture
def limited(monkeypatch, lease):
    """An interruption with a deadline, and the clock of both."""
    deadline = Deadline(100)
    now = [time.monotonic()]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    now[0] += deadline.seconds_left - 100
    return Interruption("it", deadline, lease), now


def test_no_case_is_begun_that_may_not_be_done_in_time(limited):
    interruption, now = limited
    for seconds in (20, 30, 10):
        interruption.between_cases(lambda: None)
        now[0] += seconds
    interruption.between_cases(lambda: None)  # 40 s left, the longest took 30 s
    now[0] += 10
    with pytest.raises(TrainingStopped):
        interruption.between_cases(lambda: None)
    assert interruption.deadline_passed


def test_a_case_beyond_the_deadline_is_given_up(limited):
    interruption, now = limited
    now[0] += 100 + 150 - 0.1  # half of the grace of five minutes ends in a moment
    with pytest.raises(TrainingStopped), interruption.watch_validation():
        time.sleep(60)
    assert interruption.deadline_passed


def test_who_lost_the_lease_begins_no_case(lease):
    interruption = Interruption("it", Deadline(None), lease)
    lease.lost = True
    with pytest.raises(LeaseLostError):
        interruption.between_cases(lambda: None)
