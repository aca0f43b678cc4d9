"""What may end a training early, and how it then ends: with all its work kept."""

import contextlib
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from lease import Lease
from log import UserError, tell

GRACE_SECONDS, GRACE_SHARE = 300.0, 0.1
"""How long before a time limit a training ends, at most; and the share of a short limit."""

TIME_LIMIT = "time limit"
"""Reason for ending that is no signal's name."""


class Deadline:
    """When this process should end by itself, before a scheduler kills it."""

    def __init__(self, minutes: float | None) -> None:
        """Give the time limit in minutes from the start of this process; None is no limit.

        Five minutes of it, or a tenth if that is less, are kept for the last step, the checkpoint
        and for what runs before and after the process.
        """
        import psutil

        limit = math.inf if minutes is None else 60 * minutes
        self._began = time.monotonic() - (time.time() - psutil.Process().create_time())
        self._end = self._began + limit - min(GRACE_SECONDS, GRACE_SHARE * limit)

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
        self._trainer: Any = None

    @contextlib.contextmanager
    def watch(self, trainer: Any) -> Iterator[None]:
        """Look before each step of a training; no checkpoint is written without the lease.

        A trainer that can write a checkpoint within an epoch does so when it is asked to end, and
        raises `TrainingStopped`; one that cannot, and any at a second signal, ends at once.
        """
        self._trainer = trainer
        for name, before in (
            ("train_step", self._before_step),
            ("validation_step", self._before_step),
            ("save_checkpoint", self._lease.check),
        ):
            setattr(trainer, name, _preceded(getattr(trainer, name), before))
        numbers = (signal.SIGTERM, signal.SIGINT)
        former = {number: signal.signal(number, self._on_signal) for number in numbers}
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    @property
    def deadline_passed(self) -> bool:
        """Whether the deadline is why it ends early."""
        return self.reason == TIME_LIMIT

    def explain(self, progress: str) -> UserError:
        """Return the one message of a training that its deadline has ended."""
        return UserError(
            f"{self._title} stopped after {self._deadline.minutes_run:.0f} min, before its time "
            f"limit: {progress}; run again to go on from the last checkpoint"
        )

    def _before_step(self) -> None:
        if self._lease.lost:
            self._lease.check()
        if self.reason is None and self._deadline.seconds_left <= 0:
            self._stop(TIME_LIMIT, 1)

    def _on_signal(self, number: int, frame: object) -> None:
        if self.reason is not None:
            sys.exit(128 + number)
        self._stop(signal.Signals(number).name, 128 + number)
        tell(f"{self._title}: {self.reason}, writing a checkpoint after this step")

    def _stop(self, reason: str, status: int) -> None:
        self.reason = reason
        if not hasattr(self._trainer, "stop_requested"):
            sys.exit(status)
        self._trainer.stop_requested = True


def _preceded(method: Callable, before: Callable[[], None]) -> Callable:
    def watched(*args: Any, **kwargs: Any) -> Any:
        before()
        return method(*args, **kwargs)

    return watched
