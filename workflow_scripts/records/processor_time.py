"""Processor time of a training and of its machine, from the kernel's counters."""

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psutil

MOUNTS = Path("/proc/self/mountinfo")
TRIES = 5
"""Times to list the processes again if one ended meanwhile: its time passes to its parent."""


@dataclass(frozen=True)
class ProcessorTime:
    """Seconds of processor time, summed over all cores; differences of two of them are of use.

    Attributes:
        own: of this process and its children, such as data loaders, including those that have ended
            and were waited for.
        machine: of everything that runs on the machine; a hyperthread counts as a core.
    """

    own: float = 0.0
    machine: float = 0.0

    @classmethod
    def now(cls) -> Self:
        """Read both since the start of the process and of the machine."""
        return cls(_own_seconds(), _machine_seconds())

    def since(self, earlier: "ProcessorTime") -> "ProcessorTime":
        """Return the processor time between two moments; never negative."""
        own = max(self.own - earlier.own, 0.0)
        return ProcessorTime(own, max(self.machine - earlier.machine, own))


def _own_seconds() -> float:
    process = psutil.Process()
    for _ in range(TRIES):
        with contextlib.suppress(psutil.NoSuchProcess):
            return sum(map(_seconds, [process, *process.children(recursive=True)]))
    return _seconds(process)


def _seconds(process: psutil.Process) -> float:
    """Return the time of a process and of its former children; raise NoSuchProcess if it ended."""
    times = process.cpu_times()
    seconds: float = times.user + times.system
    return seconds + getattr(times, "children_user", 0.0) + getattr(times, "children_system", 0.0)


def _machine_seconds() -> float:
    """Return busy time without idle, waiting and stolen time; guests are part of `user`."""
    times = psutil.cpu_times()
    return sum(getattr(times, name, 0.0) for name in ("user", "nice", "system", "irq", "softirq"))


def sees_whole_machine() -> bool:
    """Return whether the kernel's counters are the machine's, not those of a container (lxcfs)."""
    try:
        mounts = MOUNTS.read_text(encoding="utf-8").splitlines()
    except OSError:  # no Linux
        return True
    return not any("lxcfs" in line and " /proc/stat " in line for line in mounts)
