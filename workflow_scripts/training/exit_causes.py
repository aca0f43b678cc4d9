"""How the attempts at a training ended, including those that were killed.

Every attempt ends with an entry `end` in the ledger. Its `how` is `finished`, a signal's name,
`time limit`, or the error. If an attempt was killed, the next one writes the entry for it:
`without a message`.
"""

import contextlib
from collections.abc import Iterable
from pathlib import Path

from workflow_scripts.records.ledger import (
    KILLED,
    CaseWork,
    End,
    Entry,
    EpochWork,
    MemoryKills,
    Start,
    starts,
)

CGROUPS, OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def infer_killed_attempt(entries: Iterable[Entry], kills: MemoryKills | None) -> End | None:
    """Return the end that the last attempt could not write; None if it did.

    The cause is certain if the kernel has since killed a process of the same control group for lack
    of memory.

    Args:
        entries: the ledger's entries before the next attempt.
        kills: the current result of `memory_kills`.
    """
    last: Start | None = None
    reached = ""
    for entry in entries:
        if isinstance(entry, Start):
            last, reached = entry, f"epoch {entry.resumed_at}"
        elif isinstance(entry, End):
            last = None
        elif isinstance(entry, EpochWork):
            reached = f"epoch {entry.steps.epoch + (entry.result is not None)}"
        elif isinstance(entry, CaseWork) or entry.phase == "end of training":
            reached = "the final validation"
    if last is None or last.host is None:  # ledgers of earlier versions have no ends
        return None
    cause = "killed, out of memory, or the machine failed"
    if oom_killed_since(last.memory_kills, kills):
        cause = "out of memory (the kernel killed a process)"
    return End(attempt=last.attempt, how=KILLED, reached=reached, cause=cause)


def describe_killed_attempt(end: End, entries: Iterable[Entry], going_on_from: str) -> str:
    """Return a line for the terminal about an attempt that ended without a message."""
    (start,) = (start for start in starts(entries) if start.attempt == end.attempt)
    job = f"job {start.job}, " if start.job else ""
    return (
        f"the last attempt ({job}on {start.host}, started {start.started}) ended "
        f"{KILLED} in {end.reached}: {end.cause}; continuing from {going_on_from}"
    )


def oom_killed_since(before: MemoryKills | None, now: MemoryKills | None) -> bool:
    """Return whether the kernel killed a process between two calls of `memory_kills`."""
    if before is None or now is None or before.group != now.group:
        return False
    return before.count < now.count


def memory_kills() -> MemoryKills | None:
    """Return this process's control group and its number of out-of-memory kills.

    Return None if the kernel does not report it.
    """
    with contextlib.suppress(OSError, ValueError, KeyError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        for line in OWN_CGROUPS.read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            group = path.lstrip("/")
            if "memory" in controllers.split(","):
                file = CGROUPS / "memory" / group / "memory.oom_control"
            elif not controllers:
                file = CGROUPS / group / "memory.events"
            else:
                continue
            if file.exists():
                counts = dict(row.split() for row in file.read_text().splitlines())
                return MemoryKills(f"{boot} {path}", int(counts["oom_kill"]))
    return None
