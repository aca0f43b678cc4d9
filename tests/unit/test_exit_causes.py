"""How an attempt ended, if it could not record that itself."""

import pytest

from helpers.ledger_lines import end, entries_of, start, work
from workflow_scripts.records.ledger import KILLED, MemoryKills, content_of
from workflow_scripts.training import exit_causes
from workflow_scripts.training.exit_causes import (
    describe_killed_attempt,
    infer_killed_attempt,
    memory_kills,
)


def attempt(number, resumed_at=0, job=None, kills=None):
    started = "2026-01-02T03:04:05+00:00"
    return start(number, resumed_at, host="node7", job=job, started=started, memory_kills=kills)


def infer(lines, kills=None):
    return infer_killed_attempt(entries_of(lines), kills)


@pytest.mark.parametrize(
    ("pieces", "reached"),
    [
        ([], "epoch 3"),
        ([work(2, "setup")], "epoch 3"),
        ([work(2, "training", epoch=3), work(2, "training", epoch=4)], "epoch 5"),
        ([work(2, "training", epoch=3), work(2, "training", epoch=4, partial=True)], "epoch 4"),
        ([work(2, "training", epoch=7), work(2, "end of training")], "the final validation"),
        ([work(2, "setup"), work(2, "validation", case="a", partial=True)], "the final validation"),
    ],
)
def test_where_it_ended(pieces, reached):
    entries = [attempt(1), end(1, "SIGTERM"), attempt(2, resumed_at=3), *pieces]
    found = infer(entries)
    assert (found.attempt, found.how, found.reached) == (2, KILLED, reached)
    assert infer([*entries, content_of(found)]) is None, "recorded once"


def test_an_attempt_that_told_its_end_is_not_silent():
    assert infer([]) is None
    assert infer([attempt(1), work(1, "interrupted"), end(1, "ValueError: x")]) is None
    assert infer([start(1), work(1, "setup")]) is None, "not recorded before"


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
    kills = before and {"group": before[0], "count": before[1]}
    lines = [attempt(1, job="12", kills=kills), work(1, "training", epoch=0)]
    found = infer(lines, now and MemoryKills(*now))
    causes = {
        True: "out of memory (the kernel killed a process)",
        False: "killed, out of memory, or the machine failed",
    }
    assert describe_killed_attempt(found, entries_of(lines), "epoch 0") == (
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
    assert found.count == 3
    assert found.group.endswith(line.rpartition(":")[2])
    path.write_text("oom 7\n")
    assert memory_kills() is None, "an old kernel"
