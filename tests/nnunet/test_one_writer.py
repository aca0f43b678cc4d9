"""Two processes that compete for a training, and a training that must end before its limit."""

import os
import re
import signal
import time
from pathlib import Path

import pytest

from helpers.folds import EPOCHS, Folds, kill_group

# The process stops itself before a step, as a scheduler that suspends jobs would do.
SLEEP = """
import os, signal
from workflow_scripts.trainers.curricula.resumable import ResumableTrainer

step = ResumableTrainer.train_step


def train_step(trainer, batch):
    if (trainer.current_epoch, trainer.iterations_done) == (3, 2):
        os.kill(os.getpid(), signal.SIGSTOP)
    return step(trainer, batch)


ResumableTrainer.train_step = train_step
"""


@pytest.fixture(scope="module")
def folds(prepared, tmp_path_factory):
    return Folds(prepared, tmp_path_factory.mktemp("folds"))


def is_stopped(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def said(path):
    return [line.strip()[1:-1] for line in path.read_text().splitlines()]


def files_of(folder):
    kept = ("checkpoint_final.pth", "ledger.jsonl", "identity.json", "validation/summary.json")
    return {name: (folder / name).read_bytes() for name in kept}


@pytest.mark.slow
def test_of_two_jobs_one_trains_and_the_other_finds_it_done(folds):
    first, first_said = folds.start(folds.call("twice"))
    second, second_said = folds.start(folds.call("twice", outputs="second"))
    try:
        assert (first.wait(400), second.wait(400)) == (0, 0)
    finally:
        kill_group(first)
        kill_group(second)
    assert said(first_said) == said(second_said) == ["ok"]
    entries = folds.ledger("twice")
    assert sum(entry["entry"] == "attempt" for entry in entries) == 1
    epochs = [entry["epoch"] for entry in entries if entry.get("phase") == "training"]
    assert epochs == list(range(EPOCHS))
    assert folds.read("twice", "run") == folds.read("second", "run")
    logs = [path.with_suffix(".log").read_text() for path in (first_said, second_said)]
    assert sum(": waiting for process" in log for log in logs) == 1
    assert not list(folds.fold("twice").glob("*lease*"))


@pytest.mark.slow
def test_a_job_that_slept_writes_nothing_when_it_wakes(folds):
    call = folds.call("slept", lease_minutes=3 / 60)
    sleeper, sleeper_said = folds.start(call, before=SLEEP)
    try:
        deadline = time.monotonic() + 400
        while not is_stopped(sleeper.pid):
            assert sleeper.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert folds.run({**call, "outputs": folds.call("x", outputs="taken")["outputs"]}) == ["ok"]
        before = files_of(folds.fold("slept"))
        os.kill(sleeper.pid, signal.SIGCONT)
        assert sleeper.wait(100) == 0, "the driver reports the error"
    finally:
        kill_group(sleeper)
    assert re.match(
        r"UserError: .*fold_0 was taken over by another process because", *said(sleeper_said)
    )
    assert files_of(folds.fold("slept")) == before
    attempts = [e for e in folds.ledger("slept") if e["entry"] == "attempt"]
    assert [attempt["resumed_at"] for attempt in attempts] == [0, 3]
    assert folds.read("taken", "epochs")["epoch"].tolist() == list(range(EPOCHS))


@pytest.mark.slow
def test_a_training_ends_before_its_time_limit(folds):
    call = folds.call("limited")
    stopped, again = folds.run({**call, "stop_after_minutes": 0}, call)
    assert re.fullmatch(
        r"UserError: Task98_Tiny progressive fold 0 stopped after \d+ min, before its time limit: "
        rf"0 of {EPOCHS} epochs done; run again to continue",
        stopped,
    )
    assert again == "ok"
    entries = folds.ledger("limited")
    attempts = [entry for entry in entries if entry["entry"] == "attempt"]
    assert [(a["resumed_at"], a["resumed_within"]) for a in attempts] == [(0, 0), (0, 1)]
    epochs = folds.read("limited", "epochs")
    assert epochs["epoch"].tolist() == list(range(EPOCHS))
    energy = folds.read("limited", "energy")
    assert set(energy["attempt"]) == {1, 2}
    assert (energy["kwh"] > 0).all()
