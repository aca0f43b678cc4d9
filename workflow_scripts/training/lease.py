"""An exclusive lease on a folder: of several processes that want to write there, one does.

Two jobs want one training where the head process of a workflow was killed while its job lived on,
and was then started again. The lease is made of what every file system does atomically, NFS and
Lustre among them, and of no lock: a directory `lease` in the folder, with one file in it that tells
who the holder is and that a random token names.

- Taken: a directory with that file is renamed to `lease`. Renaming onto a directory that is not
  empty fails, so one of several wins, and nobody ever sees half a lease.
- Kept: the holder sets the time of its file every half minute, its heartbeat. Where the file is
  gone, another process has taken the lease, and the holder must not write any more.
- Given up, one's own or a dead holder's: the file is removed *by its name*, which can never hit
  another's; the empty directory that stays is as good as none.

A holder is dead at once where its process is gone from this machine, or where it was an earlier run
of the same requeued job; elsewhere once its heartbeat has stood still for so long by our own clock
while we looked on: clocks of two machines, and of a file server, need not agree. A living holder is
waited for, since it may only be writing its last checkpoint, and who then gets the lease finds a
training that is further on or even finished. But not for ever: who waits may keep a GPU idle.

No library does this on a cluster's file systems. filelock's `SoftFileLease` takes a dead holder's
file by exchanging two names, which NFS and Lustre refuse, so that it waits for ever there; its
`force_break` removes the file whoever put it there meanwhile, so that two may win.
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
"""Seconds between two heartbeats, or less where a lease is stale soon."""
REMINDER = 300.0
"""Seconds between two messages of one who waits."""


class LeaseLostError(UserError):
    """Another process has taken the lease; this one must write nothing more."""


class Lease:
    """A lease on `folder` that this process may hold.

    Attributes:
        lost: whether another process has taken it, as far as the last heartbeat noticed.
    """

    def __init__(self, folder: Path, stale_minutes: float) -> None:
        """Describe the lease; `stale_minutes` without a heartbeat make another's stale."""
        self.folder = folder
        self.lost = False
        self._stale = 60 * stale_minutes
        self._beat = min(HEARTBEAT, self._stale / 10)
        self._token = uuid.uuid4().hex[:16]
        self._directory = folder / "lease"
        self._file = self._directory / f"{self._token}.json"
        self._ended = threading.Event()

    def check(self) -> None:
        """Ask the file system, before every write.

        Raises LeaseLostError where another process has taken the lease.
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
                f"{f' ({describe(found[0])})' if found else ''} while this one, suspended "
                "perhaps, gave no sign of life. This one has written nothing since and ends here"
            )

    def take(self, wait_minutes: float) -> None:
        """Take the lease when nobody holds it (any more), and keep it alive from then on.

        Raises UserError naming the holder if it is still alive after `wait_minutes`.
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
                raise UserError(f"{self._directory} cannot be made ({obstacle}): remove it")
            elif alive and now - began >= 60 * wait_minutes:
                raise UserError(
                    f"{self.folder} is being trained by another process: {describe(holder)}, "
                    f"last heartbeat {now - seen:.0f} s ago. Wait until it has ended, or end it "
                    f"({_how_to_end(holder)}): what it has trained is kept, and the next run "
                    "resumes from there"
                )
            elif holder and now - told >= REMINDER:
                announce(f"{self.folder}: waiting for {describe(holder)}, which is training it")
                told = now
            if not dead:
                time.sleep(min(5.0, self._beat) if holder else 0.1)
        threading.Thread(target=self._keep_alive, name="lease", daemon=True).start()

    def give_up(self) -> None:
        """Let another process have it; does nothing where this one does not hold it."""
        self._ended.set()
        with contextlib.suppress(OSError):
            self._remove(self._token)

    def _put(self) -> OSError | None:
        """Put the lease there, or return what prevented it."""
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
        # By its name: a file server may call a failure what it has done, where an answer got lost.
        return None if self._file.exists() else obstacle or FileNotFoundError(self._file)

    def _look(self) -> tuple[dict[str, Any], int] | None:
        """Return the holder and the time of its last heartbeat; opening makes NFS look afresh."""
        with contextlib.suppress(OSError):  # given up in this moment
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
        with contextlib.suppress(OSError):  # somebody else may have put a lease there by now
            self._directory.rmdir()

    def _keep_alive(self) -> None:
        while not (self.lost or self._ended.wait(self._beat)):
            with contextlib.suppress(LeaseLostError, OSError):
                self.check()


@contextlib.contextmanager
def hold(folder: Path, stale_minutes: float, wait_minutes: float) -> Iterator[Lease]:
    """Hold the lease on a folder, which is made if need be, in a `with` block.

    Args:
        folder: what is leased.
        stale_minutes: how long another's heartbeat must stand still before it is taken for dead.
        wait_minutes: how long to wait for a living holder.

    Raises:
        UserError: a living process holds it.
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
    """Return the holder in words: host, process, job, since when."""
    if "host" not in holder:
        return "a process that is not known"
    job = f"job {holder['job']}, " if holder["job"] else ""
    return f"{job}process {holder['pid']} on {holder['host']}, since {holder['since']}"


def _how_to_end(holder: dict[str, Any]) -> str:
    if "host" not in holder:
        return "whatever it is"
    if holder["job"]:
        return f"scancel {holder['job']}"
    return f"kill {holder['pid']} on {holder['host']}"


def _is_dead(holder: dict[str, Any]) -> bool:
    """Tell whether the holder is surely dead, which its heartbeat need not tell."""
    if "host" not in holder:
        return False
    me = describe_process()
    if holder["job"] and holder["job"] == me["job"] and holder["restarts"] < me["restarts"]:
        return True
    here = (holder["host"], holder["machine"]) == (me["host"], me["machine"])
    return here and not _is_running(holder["pid"], holder["process_started"])


def _machine() -> str:
    """Return the boot of the kernel and the name space in which a process number means something.

    Empty where there is no /proc.
    """
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    return ""


def _start_of(pid: int) -> str | None:
    """Return when a process began, in the kernel's ticks; None if it is gone or not to be known."""
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
