"""Output of a script: everything goes to the rule's log, and one clear message to the user."""

import logging
import os
import sys
import traceback
from pathlib import Path
from types import TracebackType

from workflow_scripts.common.errors import UserError

TERMINAL: int | None = None
"""File descriptor of the real standard error once `redirect` has run, else None."""


def redirect(path: str) -> None:
    """Redirect standard output and error of this process and its children to `path`.

    An uncaught exception is written to the log and to the real standard error: a `UserError` as its
    message alone, others with their traceback. The process then exits with status 1.
    """
    global TERMINAL
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    TERMINAL = os.dup(2)
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    logging.captureWarnings(True)
    sys.excepthook = _report


def announce(message: str) -> None:
    """Print one line on the terminal even if standard output is redirected."""
    if TERMINAL is None:
        print(message, file=sys.stderr, flush=True)
    else:
        os.write(TERMINAL, (message + "\n").encode())


def _report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, UserError):
        text = f"Error: {error}"
    else:
        text = "".join(traceback.format_exception(kind, error, trace)).rstrip()
    print(text, file=sys.stderr, flush=True)
    if TERMINAL is not None:
        announce(text)
