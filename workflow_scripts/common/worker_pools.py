"""End a job whose pool of worker processes cannot finish.

`multiprocessing.Pool` replaces a worker that was killed and waits for its result forever. nnU-Net
looks at its workers only while it has work left to hand out, and at their errors only at the end.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Iterator
from multiprocessing.pool import Pool
from multiprocessing.process import BaseProcess
from typing import Any

from workflow_scripts.common.console import announce
from workflow_scripts.common.errors import UserError

CHECK_SECONDS = 0.5
UNWIND_SECONDS = 30.0
"""Time for the job to end by itself; a worker that died with a lock prevents that."""
RUNNING = "RUN"


@contextlib.contextmanager
def watched_pools(what: str) -> Iterator[None]:
    """Raise an error in this block soon after a worker of one of its pools has failed.

    For the main thread. If the block has not ended half a minute later, the process exits.

    Args:
        what: what the workers do, for the message.

    Raises:
        UserError: a worker died.
        Exception: the error that a worker reported.
    """
    pools: list[tuple[Pool, list[BaseProcess]]] = []
    errors: list[BaseException] = []
    over = threading.Event()
    start, submit = Pool.__init__, Pool.starmap_async

    def started(pool: Pool, *args: Any, **kwargs: Any) -> None:
        start(pool, *args, **kwargs)
        pools.append((pool, list(pool._pool)))  # type: ignore[attr-defined]

    def submitted(pool: Pool, *args: Any, **kwargs: Any) -> Any:
        return submit(pool, *args, **{"error_callback": errors.append, **kwargs})

    def fail(number: int, frame: object) -> None:
        if not over.is_set():
            raise errors[0]

    def watch(main: int | None) -> None:
        while not over.wait(CHECK_SECONDS):
            if not errors:
                errors.extend(_explain(code, what) for code in _deaths(pools))
            if errors and main is not None:
                signal.pthread_kill(main, signal.SIGUSR2)
                if not over.wait(UNWIND_SECONDS):
                    _leave(errors[0])
                return

    Pool.__init__, Pool.starmap_async = started, submitted  # type: ignore[method-assign,assignment]
    former = signal.signal(signal.SIGUSR2, fail)
    watcher = threading.Thread(target=watch, args=(threading.main_thread().ident,), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
        Pool.__init__, Pool.starmap_async = start, submit  # type: ignore[method-assign]
        signal.signal(signal.SIGUSR2, former)


def _deaths(pools: list[tuple[Pool, list[BaseProcess]]]) -> list[int]:
    """Return the exit codes of the workers that have left a running pool."""
    return [
        worker.exitcode
        for pool, workers in pools
        for worker in workers
        if worker.exitcode is not None and pool._state == RUNNING  # type: ignore[attr-defined]
    ]


def _explain(code: int, what: str) -> UserError:
    how = f"was killed ({signal.Signals(-code).name})" if code < 0 else f"exited with status {code}"
    return UserError(
        f"a process that {what} {how}, nearly always for lack of memory. Give the job more memory "
        "(`mem_mb`) or fewer threads; run again to continue"
    )


def _leave(error: BaseException) -> None:
    """Exit at once: waiting for a lock that a dead worker holds would never end."""
    traceback.print_exception(error)
    announce(f"Error: {error}")
    for worker in multiprocessing.active_children():  # those that replace dead ones, too
        worker.kill()
    os._exit(1)
