"""How long the scheduler lets this process run."""

import os
import subprocess

QUERY = ("squeue", "--noheader", "--format=%L", "--job")


def minutes_left(asked: float | None) -> float | None:
    """Return the minutes until Slurm ends this job; None in no job, or without a limit.

    Slurm is asked, since what a job was given may differ from what it `asked` for, and part of that
    has gone when a rule's script begins. Where it does not answer, what was asked for holds.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if not job:
        return None
    try:
        answer = subprocess.run([*QUERY, job], capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired):
        answer = ""
    return read_duration(answer) if answer.strip() else asked


def read_duration(text: str) -> float | None:
    """Return Slurm's `[days-][[hours:]minutes:]seconds` in minutes; None for words (UNLIMITED)."""
    days, _, clock = text.strip().rpartition("-")
    parts = [days or "0", *clock.split(":")]
    if not all(part.isdigit() for part in parts):
        return None
    seconds = 0
    for part in parts[1:]:
        seconds = 60 * seconds + int(part)
    return (86400 * int(parts[0]) + seconds) / 60
