"""How an attempt ended, if it could not record that itself."""

import pytest

from workflow_scripts.training import exit_causes
from workflow_scripts.training.exit_causes import (
    describe_killed_attempt,
    infer_killed_attempt,
    memory_kills,
)


def attempt(number, resumed_at=0, job=None, kills=None):
    return {
        "entry": "attempt",
        "attempt": number,
        "resumed_at": resumed_at,
        "host": "node7",
        "job": job,
        "started": "2026-01-02T03:04:05+00:00",
        "memory_kills": kills,
    }


def work(phase, **fields):
    return {"entry": "work", "phase": phase, **fields}


def end(number, how="finished"):
    return {"entry": "end", "attempt": number, "how": how}


@pytest.mark.parametrize(
    ("pieces", "reached"),
    [
        ([], "epoch 3"),
        ([work("setup")], "epoch 3"),
        ([work("training", epoch=3), work("training", epoch=4)], "epoch 5"),
        ([work("training", epoch=3), work("training", epoch=4, partial=True)], "epoch 4"),
        ([work("training", epoch=7), work("end of training")], "the final validation"),
        ([work("setup"), work("validation", case="a", partial=True)], "the final validation"),
    ],
)
def test_where_it_ended(pieces, reached):
    entries = [attempt(1), end(1, "SIGTERM"), attempt(2, resumed_at=3), *pieces]
    found = infer_killed_attempt(entries, None)
    assert (found["entry"], found["attempt"], found["how"]) == ("end", 2, "without a message")
    assert found["reached"] == reached
    assert infer_killed_attempt([*entries, found], None) is None, "recorded once"


def test_an_attempt_that_told_its_end_is_not_silent():
    assert infer_killed_attempt([], None) is None
    assert (
        infer_killed_attempt([attempt(1), work("interrupted"), end(1, "ValueError: x")], None)
        is None
    )
    old = {key: value for key, value in attempt(1).items() if key != "memory_kills"}
    assert infer_killed_attempt([old, work("setup")], None) is None, "not recorded before"


@pytest.mark.parametrize(
    ("before", "now", "memory"),
    [
        (("a", 1), ("a", 2), True),
        (("a", 2), ("a", 2), False),
        (("a", 1), ("b", 2), False),
        (None, ("a", 2), False),
        (("a", 1), None, False),
    ],
)
def test_its_cause(before, now, memory):
    before, now = (one and {"group": one[0], "count": one[1]} for one in (before, now))
    entries = [attempt(1, job="12", kills=before), work("training", epoch=0)]
    found = infer_killed_attempt(entries, now)
    causes = {
        True: "out of memory (the kernel killed a process)",
        False: "killed, out of memory, or the machine failed",
    }
    assert describe_killed_attempt(found, entries, "epoch 0") == (
        "the last attempt (job 12, on node7, started 2026-01-02T03:04:05+00:00) ended without a "
        f"message in epoch 1: {causes[memory]}; continuing from epoch 0"
    )


@pytest.mark.parametrize(
    ("line", "file"),
    [
        ("0::/slurm/job_5/step_0", "slurm/job_5/step_0/memory.events"),
        ("4:cpuset,memory:/slurm/job_5", "memory/slurm/job_5/memory.oom_control"),
    ],
)
def test_the_kernel_is_asked_about_memory(tmp_path, monkeypatch, line, file):
    system, proc = tmp_path / "sys", tmp_path / "cgroup"
    proc.write_text(f"9:name=systemd:/\n{line}\n")
    monkeypatch.setattr(exit_causes, "CGROUPS", system)
    monkeypatch.setattr(exit_causes, "OWN_CGROUPS", proc)
    assert memory_kills() is None, "no file contains the count"
    path = system / file
    path.parent.mkdir(parents=True)
    path.write_text("oom 7\noom_kill 3\n")
    found = memory_kills()
    assert found["count"] == 3
    assert found["group"].endswith(line.rpartition(":")[2])
    path.write_text("oom 7\n")
    assert memory_kills() is None, "an old kernel"
