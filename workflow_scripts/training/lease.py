"""An exclusive lease on a folder: only one of several processes writes there.

Two jobs may want the same training if Snakemake was killed and restarted while its job kept
running. The lease uses no lock, only operations that are atomic on every file system, including
NFS and Lustre: a directory `lease` in the folder, with one file that is named after a random token
and describes the owner.

- Taking: a directory with that file is renamed to `lease`. Renaming onto a directory that is not
  empty fails, so only one process succeeds, and an incomplete lease is never visible.
- Keeping: the owner updates the time of its file every half minute, its heartbeat. If the file is
  gone, another process has taken the lease, and the owner must not write any more.
- Releasing one's own lease or a dead owner's: the file is removed *by its name*, which can never
  remove another process's file. The empty directory that remains counts as no lease.

An owner counts as dead immediately if its process is gone from this machine, or if it was an
earlier run of the same requeued job. Otherwise it counts as dead when its heartbeat has not changed
for some time by our own clock, because clocks of different machines need not agree. We wait for a
live owner, which may just be writing its last checkpoint; afterwards the training is further along
or finished. We do not wait for ever, because that could keep a GPU idle.

No library does this on a cluster's file systems. filelock's `SoftFileLease` takes over a dead
owner's file by exchanging two names, which NFS and Lustre refuse, so it waits for ever there. Its
`force_break` removes the file even if another process has just created it, so two may succeed.
"""

import contextlib
import errno
import json
import math
import os
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from workflow_scripts.common.console import announce
from workflow_scripts.common.errors import UserError

HEARTBEAT = 30.0
"""Seconds between two heartbeats; less if a lease becomes stale soon."""
REMINDER = 300.0
"""Seconds between two messages of a waiting process."""


class LeaseLostError(UserError):
    """Another process has taken the lease; this one must write nothing more."""


class Lease:
    """A lease on `folder`.

    Attributes:
        lost: whether another process has taken it, as of the last heartbeat.
    """

    def __init__(self, folder: Path, stale_minutes: float) -> None:
        """Describe the lease; another's is stale after `stale_minutes` without a heartbeat."""
        self.folder = folder
        self.lost = False
        self._stale = 60 * stale_minutes
        self._beat = min(HEARTBEAT, self._stale / 10)
        self._token = uuid.uuid4().hex[:16]
        self._directory = folder / "lease"
        self._file = self._directory / f"{self._token}.json"
        self._ended = threading.Event()

    def check(self) -> None:
        """Check the lease in the file system, before every write.

        Raises LeaseLostError if another process has taken the lease.
        """
        try:
            os.utime(self._file)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ESTALE):
                raise
            self.lost = True
        if self.lost:
            found = self._look()
            raise LeaseLostError(
                f"{self.folder} was taken over by another process"
                f"{f' ({describe(found[0])})' if found else ''} because this one gave no "
                "sign of life (was it suspended?). It has written nothing since then and stops now"
            )

    def take(self, wait_minutes: float) -> None:
        """Take the lease as soon as it is free, and keep it alive.

        Raises UserError naming the owner if it is still alive after `wait_minutes`.
        """
        began = seen = time.monotonic()
        told, last, alive = -math.inf, None, False
        while (obstacle := self._put()) is not None:
            found, now = self._look(), time.monotonic()
            holder, beat = found or ({}, 0)
            if (holder, beat) != last:
                alive = alive or (last is not None and bool(holder))
                last, seen = (holder, beat), now
            dead = _is_dead(holder) or now - seen > self._stale
            if dead and holder:
                announce(f"{self.folder}: {describe(holder)} is dead, taking over from it")
                self._remove(holder["token"])
            elif dead:
                raise UserError(f"cannot create {self._directory} ({obstacle}); remove it")
            elif alive and now - began >= 60 * wait_minutes:
                raise UserError(
                    f"{self.folder} is being trained by another process: {describe(holder)}, "
                    f"last heartbeat {now - seen:.0f} s ago. Wait until it has ended, or end it"
                    f"{_how_to_end(holder)}: what it has trained is kept, and the next run "
                    "resumes from there"
                )
            elif holder and now - told >= REMINDER:
                announce(f"{self.folder}: waiting for {describe(holder)}, which is training it")
                told = now
            if not dead:
                time.sleep(min(5.0, self._beat) if holder else 0.1)
        threading.Thread(target=self._keep_alive, name="lease", daemon=True).start()

    def give_up(self) -> None:
        """Release the lease; does nothing if this process does not hold it."""
        self._ended.set()
        with contextlib.suppress(OSError):
            self._remove(self._token)

    def _put(self) -> OSError | None:
        """Create the lease, or return what prevented it."""
        mine, obstacle = self.folder / f".lease.{self._token}", None
        mine.mkdir(parents=True)
        try:
            with (mine / self._file.name).open("w") as file:
                json.dump({"token": self._token, **describe_process()}, file)
                file.flush()
                os.fsync(file.fileno())
            mine.rename(self._directory)
        except OSError as error:
            obstacle = error
        finally:
            shutil.rmtree(mine, ignore_errors=True)
        # By its name: a file server may report a failure after success if a reply was lost.
        return None if self._file.exists() else obstacle or FileNotFoundError(self._file)

    def _look(self) -> tuple[dict[str, Any], int] | None:
        """Return the owner and the time of its last heartbeat; opening the file refreshes NFS."""
        with contextlib.suppress(OSError):  # may be released at this moment
            for name in os.listdir(self._directory):  # noqa: PTH208 (glob may fail half-way)
                if not name.endswith(".json"):
                    continue
                holder = {"token": name.removesuffix(".json")}
                with (self._directory / name).open() as file:
                    beat = os.fstat(file.fileno()).st_mtime_ns
                    with contextlib.suppress(ValueError):
                        holder = json.load(file)
                    return holder, beat
        return None

    def _remove(self, token: str) -> None:
        (self._directory / f"{token}.json").unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # another process may have created a lease by now
            self._directory.rmdir()

    def _keep_alive(self) -> None:
        while not (self.lost or self._ended.wait(self._beat)):
            with contextlib.suppress(LeaseLostError, OSError):
                self.check()


@contextlib.contextmanager
def hold(folder: Path, stale_minutes: float, wait_minutes: float) -> Iterator[Lease]:
    """Hold the lease on a folder in a `with` block; the folder is created if necessary.

    Args:
        folder: the folder.
        stale_minutes: how long another heartbeat must be unchanged before its owner counts as dead.
        wait_minutes: how long to wait for a live owner.

    Raises:
        UserError: a live process holds it.
    """
    lease = Lease(folder, stale_minutes)
    try:
        lease.take(wait_minutes)
        yield lease
    finally:
        lease.give_up()


def describe_process() -> dict[str, Any]:
    """Return what identifies this process among all others, here and on other machines."""
    return {
        "host": socket.gethostname(),
        "machine": _machine(),
        "pid": os.getpid(),
        "process_started": _start_of(os.getpid()),
        "job": os.environ.get("SLURM_JOB_ID"),
        "restarts": int(os.environ.get("SLURM_RESTART_COUNT", 0)),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def describe(holder: dict[str, Any]) -> str:
    """Describe the owner: host, process, job, start."""
    if "host" not in holder:
        return "an unknown process"
    job = f"job {holder['job']}, " if holder["job"] else ""
    return f"{job}process {holder['pid']} on {holder['host']}, since {holder['since']}"


def _how_to_end(holder: dict[str, Any]) -> str:
    if "host" not in holder:
        return ""
    if holder["job"]:
        return f" (scancel {holder['job']})"
    return f" (kill {holder['pid']} on {holder['host']})"


def _is_dead(holder: dict[str, Any]) -> bool:
    """Return whether the owner is certainly dead, regardless of its heartbeat."""
    if "host" not in holder:
        return False
    me = describe_process()
    if holder["job"] and holder["job"] == me["job"] and holder["restarts"] < me["restarts"]:
        return True
    here = (holder["host"], holder["machine"]) == (me["host"], me["machine"])
    return here and not _is_running(holder["pid"], holder["process_started"])


def _machine() -> str:
    """Return the kernel's boot and the namespace in which a process number is valid.

    Empty without /proc.
    """
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    return ""


def _start_of(pid: int) -> str | None:
    """Return when a process started, in kernel ticks; None if it is gone or unknown."""
    with contextlib.suppress(OSError):
        state, *fields = (
            Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        )
        return None if state in "ZX" else fields[18]
    return None


def _is_running(pid: int, started: str | None) -> bool:
    if started is not None:
        return _start_of(pid) == started
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
