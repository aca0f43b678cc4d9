"""What may end a training early, and how it then ends: with all its work kept."""

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
from workflow_scripts.common.trainer_protocol import CurriculumTrainer, as_curriculum_trainer
from workflow_scripts.training.lease import Lease

GRACE_SECONDS, GRACE_SHARE = 300.0, 0.1
"""How long before a time limit a training ends, at most; and the share of a short limit."""

LAST_SECONDS = 20.0
"""How long a validation case may still take after a signal."""
TIME_LIMIT = "time limit"
"""Reason for ending that is no signal's name."""


class Deadline:
    """When this process should end by itself, before a scheduler kills it.

    Attributes:
        grace: seconds of the time limit that are kept for the end.
    """

    def __init__(self, minutes: float | None) -> None:
        """Give the time limit in minutes from the start of this process; None is no limit.

        Five minutes of it, or a tenth if that is less, are kept for the last step, the checkpoint
        and for what runs before and after the process.
        """
        limit = math.inf if minutes is None else 60 * minutes
        self._began = time.monotonic() - (time.time() - psutil.Process().create_time())
        self.grace = min(GRACE_SECONDS, GRACE_SHARE * limit)
        self._end = self._began + limit - self.grace

    @property
    def seconds_left(self) -> float:
        """Seconds until the process should end; infinite without a limit."""
        return self._end - time.monotonic()

    @property
    def minutes_run(self) -> float:
        """Minutes since the process began."""
        return (time.monotonic() - self._began) / 60


class Interruption:
    """Lets a training end between two steps, or between two cases of its final validation.

    That is on SIGTERM (a scheduler's), on SIGINT (Ctrl-C), at the deadline, or where another
    process has taken the lease.

    Attributes:
        reason: why it ends early, once it has been asked to.
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
        """Look before each step of a training; no checkpoint is written without the lease.

        A trainer that can write a checkpoint within an epoch does so when it is asked to end, and
        raises `TrainingStopped`; one that cannot, and any at a second signal, ends at once.
        """
        self._curriculum = as_curriculum_trainer(trainer)
        for name, before in (
            ("train_step", self._before_step),
            ("validation_step", self._before_step),
            ("save_checkpoint", self._lease.check),
        ):
            setattr(trainer, name, _preceded(getattr(trainer, name), before))
        with _handled(self._on_signal, signal.SIGTERM, signal.SIGINT):
            yield

    @contextlib.contextmanager
    def watch_validation(self) -> Iterator[None]:
        """Let a signal end the final validation after the present case, or soon.

        A scheduler kills half a minute after it has sent SIGTERM, so that a long case is given up.
        It is also given up in the midst of the time that is kept before the time limit.

        Raises TrainingStopped for one that is given up.
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
        """Go on to the next case, or end if that was asked for or the next one may take too long.

        Args:
            finish: waits for what is still to be written of the cases before.

        Raises:
            TrainingStopped: the validation ends here.
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
        """Whether the deadline is why it ends early."""
        return self.reason == TIME_LIMIT

    def explain(self, progress: str) -> UserError:
        """Return the one message of a training that its deadline has ended."""
        return UserError(
            f"{self._title} stopped after {self._deadline.minutes_run:.0f} min, before its time "
            f"limit: {progress}; run again to continue"
        )

    def _before_step(self) -> None:
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


def _preceded(method: Callable, before: Callable[[], None]) -> Callable:
    def watched(*args: Any, **kwargs: Any) -> Any:
        before()
        return method(*args, **kwargs)

    return watched


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
