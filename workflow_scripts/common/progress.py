"""Show progress of long work on the terminal, even if a script's output goes to its log."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from workflow_scripts.common import console
from workflow_scripts.common.console import announce


class Progress:
    """Lines on the terminal: name of the training, epoch k of n, time left."""

    def __init__(self, title: str, every_seconds: float = 10.0) -> None:
        """Prepare lines that begin with `title`, with at least `every_seconds` between two."""
        self.title, self._every, self._clock = title, every_seconds, time.monotonic
        self._began = self._last = self._clock()

    def start(self, done: int, total: int, what: str, then: str = "") -> None:
        """Begin counting `total` pieces of `what`, of which `done` already exist.

        `then` names the work that follows, whose time is not known yet.
        """
        self._done_before, self._total, self._what, self._then = done, total, what, then
        self._began, self._last = self._clock(), 0.0

    def show(self, done: int, note: str = "") -> None:
        """Show that `done` of the pieces are finished."""
        now = self._clock()
        if now - self._last < self._every and done < self._total:
            return
        self._last = now
        each = (now - self._began) / max(1, done - self._done_before)
        if done < self._total:
            state = f"{_duration(each * (self._total - done))} left"
            state += f" before the {self._then}" if self._then else ""
        else:
            state = f"now the {self._then}" if self._then else "done"
        announce(f"{self.title}: {self._what} {done}/{self._total}, {state}{note}")


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"


@contextmanager
def progress_bar(total: int, unit: str, text: str) -> Iterator[Any]:
    """Yield a progress bar on the terminal, even if a script's output goes to its log."""
    terminal = os.dup(2 if console.TERMINAL is None else console.TERMINAL)
    interactive = os.isatty(terminal)
    with (
        os.fdopen(terminal, "w") as file,
        tqdm(
            total=total,
            desc=text,
            unit=unit,
            unit_scale=unit == "B",
            file=file,
            mininterval=0.5 if interactive else 15,
            delay=1,
            ascii=not interactive,
        ) as bar,
    ):
        yield bar
