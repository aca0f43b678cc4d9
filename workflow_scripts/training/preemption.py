"""Stopping a training early without losing work."""

import contextlib
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil

from workflow_scripts.common.console import announce
from workflow_scripts.common.errors import UserError
from workflow_scripts.common.observers import observe
from workflow_scripts.common.trainer_protocol import CurriculumTrainer, as_curriculum_trainer
from workflow_scripts.training.lease import Lease

GRACE_SECONDS, GRACE_SHARE = 300.0, 0.1
"""Maximum time before a time limit at which a training ends, and the share of a short limit."""

LAST_SECONDS = 20.0
"""Maximum time of a validation case after a signal."""
TIME_LIMIT = "time limit"
"""Reason for stopping that is not a signal."""


class Deadline:
    """When this process should stop by itself, before a scheduler kills it.

    Attributes:
        grace: seconds of the time limit that are reserved for stopping.
    """

    def __init__(self, minutes: float | None) -> None:
        """Set the time limit in minutes from the start of this process; None means no limit.

        Five minutes of it, or a tenth if that is less, are reserved for the last step, the
        checkpoint, and what runs before and after the process.
        """
        limit = math.inf if minutes is None else 60 * minutes
        self._began = time.monotonic() - (time.time() - psutil.Process().create_time())
        self.grace = min(GRACE_SECONDS, GRACE_SHARE * limit)
        self._end = self._began + limit - self.grace

    @property
    def seconds_left(self) -> float:
        """Seconds until the process should stop; infinite without a limit."""
        return self._end - time.monotonic()

    @property
    def minutes_run(self) -> float:
        """Minutes since the process started."""
        return (time.monotonic() - self._began) / 60


class Interruption:
    """Lets a training stop between two steps, or between two cases of its final validation.

    It stops on SIGTERM (from a scheduler), on SIGINT (Ctrl-C), at the deadline, or if another
    process has taken the lease.

    Attributes:
        reason: reason for stopping early; None until then.
    """

    def __init__(self, title: str, deadline: Deadline, lease: Lease) -> None:
        """`title` names the training in messages."""
        self.reason: str | None = None
        self._title, self._deadline, self._lease = title, deadline, lease
        self._curriculum: CurriculumTrainer | None = None
        self._case_began: float | None = None
        self._longest = 0.0

    @contextlib.contextmanager
    def watch(self, trainer: Any) -> Iterator[None]:
        """Check before each step of a training; no checkpoint is written without the lease.

        A trainer that can write a checkpoint within an epoch does so when asked to stop, and raises
        `TrainingStopped`. One that cannot, and any trainer at a second signal, stops at once.
        """
        self._curriculum = as_curriculum_trainer(trainer)
        for step in ("train_step", "validation_step"):
            observe(trainer, step, before=self._before_step)
        observe(trainer, "save_checkpoint", before=lambda *_: self._lease.check())
        with _handled(self._on_signal, signal.SIGTERM, signal.SIGINT):
            yield

    @contextlib.contextmanager
    def watch_validation(self) -> Iterator[None]:
        """Let a signal stop the final validation after the current case, or soon.

        A scheduler kills the process half a minute after SIGTERM, so a long case is abandoned. It
        is also abandoned halfway through the time reserved before the time limit.

        Raises TrainingStopped for an abandoned case.
        """
        with (
            _handled(self._on_signal_between_cases, signal.SIGTERM, signal.SIGINT),
            _handled(self._on_alarm, signal.SIGALRM),
        ):
            latest = self._deadline.seconds_left + self._deadline.grace / 2
            if math.isfinite(latest):
                signal.setitimer(signal.ITIMER_REAL, max(latest, 0.001))
            try:
                yield
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)

    def between_cases(self, finish: Callable[[], None]) -> None:
        """Continue with the next case, or stop if requested or if it may take too long.

        Args:
            finish: waits until the previous cases are written.

        Raises:
            TrainingStopped: the validation stops here.
            LeaseLostError: another process has taken the lease.
        """
        self._lease.check()
        now = time.monotonic()
        if self._case_began is not None:
            self._longest = max(self._longest, now - self._case_began)
        self._case_began = now
        if self.reason is None and self._deadline.seconds_left <= self._longest:
            self.reason = TIME_LIMIT
        if self.reason is not None:
            finish()
            raise _training_stopped()

    @property
    def deadline_passed(self) -> bool:
        """Whether the deadline is the reason for stopping early."""
        return self.reason == TIME_LIMIT

    def explain(self, progress: str) -> UserError:
        """Return the message of a training that was stopped by its deadline."""
        return UserError(
            f"{self._title} stopped after {self._deadline.minutes_run:.0f} min, before its time "
            f"limit: {progress}; run again to continue"
        )

    def _before_step(self, batch: object) -> None:
        if self._lease.lost:
            self._lease.check()
        if self.reason is None and self._deadline.seconds_left <= 0:
            self.reason = TIME_LIMIT
            if self._curriculum is None:
                raise _training_stopped()
            self._curriculum.stop_requested = True

    def _on_signal(self, number: int, frame: object) -> None:
        if self.reason is not None:
            sys.exit(128 + number)
        self.reason = signal.Signals(number).name
        if self._curriculum is None:
            sys.exit(128 + number)
        self._curriculum.stop_requested = True
        announce(f"{self._title}: {self.reason}, writing a checkpoint after this step")

    def _on_signal_between_cases(self, number: int, frame: object) -> None:
        if self.reason is not None:
            sys.exit(128 + number)
        self.reason = signal.Signals(number).name
        signal.setitimer(signal.ITIMER_REAL, LAST_SECONDS)
        announce(f"{self._title}: {self.reason}, ending after this case or in {LAST_SECONDS:.0f} s")

    def _on_alarm(self, number: int, frame: object) -> None:
        self.reason = self.reason or TIME_LIMIT
        raise _training_stopped()


@contextlib.contextmanager
def _handled(handler: Callable[[int, Any], None], *numbers: signal.Signals) -> Iterator[None]:
    former = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, before in former.items():
            signal.signal(number, before)


def _training_stopped() -> SystemExit:
    from workflow_scripts.trainers.curricula.resumable import TrainingStopped

    return TrainingStopped(143)


QUERY = ("squeue", "--noheader", "--format=%L", "--job")


def minutes_left(asked: float | None) -> float | None:
    """Return the minutes until Slurm ends this job; None outside a job or without a limit.

    Slurm is queried, because a job's limit may differ from the one that it `asked` for, and part of
    it has passed when a rule's script starts. If Slurm does not answer, the request counts.
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
