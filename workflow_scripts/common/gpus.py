"""List the GPUs of this machine and assign one to each job that computes on a GPU.

The module imports only packages that Snakemake installs, because the Snakefile counts the GPUs too.
"""

import contextlib
import ctypes
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from workflow_scripts.common.console import announce
from workflow_scripts.common.errors import UserError

VISIBLE = "CUDA_VISIBLE_DEVICES"
NO_GPU = ("", "-1", "NoDevFiles")
"""Values of `CUDA_VISIBLE_DEVICES` that hide all GPUs; the last is Slurm's."""

LISTED = re.compile(r"(?:GPU (?P<index>\d+): (?P<name>.+?)|\s+MIG (?P<part>\S+).*?) \(UUID: (.+)\)")
"""A line of `nvidia-smi -L`: a GPU, or below it one of its instances (MIG)."""

POLL, REMINDER = 2.0, 300.0
"""Seconds between two checks for a free GPU, and between two messages of a waiting job."""


@dataclass(frozen=True)
class Gpu:
    """A GPU, or an instance of a divided GPU (MIG), which CUDA treats as a GPU.

    Attributes:
        index: index of the card in nvidia-smi's order.
        uuid: UUID by which `CUDA_VISIBLE_DEVICES` selects it.
        name: name of the model.
        card: UUID of the card; equal to `uuid` if the card is not divided.
    """

    index: int
    uuid: str
    name: str
    card: str

    def __str__(self) -> str:
        """Return index, model and UUID for readers."""
        return f"GPU {self.index} ({self.name}, {self.uuid})"


LIST_GPUS = Path(__file__).with_name("list_gpus.py")
"""Lists GPUs in the format of `nvidia-smi -L`, with the driver's libraries."""


def installed_gpus() -> list[Gpu]:
    """Return the GPUs that the NVIDIA driver lists; empty if there is no driver.

    If nvidia-smi is missing or fails, as in a container without the driver's `utility` capability,
    the driver's libraries are asked. For a divided card the instances are returned, because CUDA
    sees only those; of several instances, the library of CUDA lists one.
    """
    listed = _output_of(["nvidia-smi", "-L"])
    if listed is None and _has_driver():
        hidden = (VISIBLE, "CUDA_DEVICE_ORDER")
        environment = {name: value for name, value in os.environ.items() if name not in hidden}
        environment["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
        listed = _output_of([sys.executable, "-I", str(LIST_GPUS)], environment)
    return _parse(listed or "")


def _output_of(command: list[str], environment: Mapping[str, str] | None = None) -> str | None:
    """Return the standard output of a command; None if it is missing, fails or hangs."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=60, check=False, env=environment
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    # nvidia-smi also fails if one of several GPUs does.
    return done.stdout if done.returncode == 0 or LISTED.search(done.stdout) else None


def _has_driver() -> bool:
    """Return whether one of the driver's libraries can be loaded."""
    for library in ("libnvidia-ml.so.1", "libcuda.so.1"):
        with contextlib.suppress(OSError):
            ctypes.CDLL(library)
            return True
    return False


def _parse(listed: str) -> list[Gpu]:
    """Return the GPUs in the output of `nvidia-smi -L`."""
    gpus: list[Gpu] = []
    card: Gpu | None = None
    for line in listed.splitlines():
        match = LISTED.match(line)
        if match is None:
            continue
        uuid = match[4]
        if match["index"] is not None:
            card = Gpu(int(match["index"]), uuid, match["name"], uuid)
            gpus.append(card)
        elif card is not None:
            if card in gpus:
                gpus.remove(card)
            gpus.append(Gpu(card.index, uuid, f"{card.name} MIG {match['part']}", card.uuid))
    return gpus


def visible_gpus(environment: Mapping[str, str] = os.environ) -> list[Gpu]:
    """Return the installed GPUs that `CUDA_VISIBLE_DEVICES` names, or all if it is not set.

    The variable contains indices in nvidia-smi's order or the first characters of UUIDs.

    Raises UserError if it names no installed GPU.
    """
    installed = installed_gpus()
    if VISIBLE not in environment:
        return installed
    names = [name.strip() for name in environment[VISIBLE].split(",")]
    if not installed or names[0] in NO_GPU:
        return []
    chosen = [
        gpu
        for name in names
        for gpu in installed
        if (str(gpu.index) == name if name.isdigit() else name and gpu.uuid.startswith(name))
    ]
    if not chosen:
        listed = ", ".join(map(str, installed))
        raise UserError(
            f"{VISIBLE} is {environment[VISIBLE]!r}, but the GPUs are {listed}: name one of "
            "these, by index or UUID, or unset the variable"
        )
    return list(dict.fromkeys(chosen))


def count_gpus() -> int:
    """Return how many trainings can have their own GPU; 0 on a machine without any.

    Return 1 if `visible_gpus` fails; the first job that needs a GPU then reports the error.
    """
    try:
        return len(visible_gpus())
    except UserError:
        return 1


class GpuLease:
    """Exclusive right to a GPU among the processes of this user on this machine.

    It is a kernel lock, which is released when the process ends for any reason.
    """

    def __init__(self, folder: Path, gpu: Gpu) -> None:
        """Prepare the lease of a GPU; its lock is a file in `folder`."""
        self.gpu = gpu
        self._path = folder / f"{re.sub(r'[^A-Za-z0-9-]', '_', gpu.uuid)}.lock"
        self._file: int | None = None

    def take(self) -> bool:
        """Take the GPU if it is free; return whether this succeeded."""
        import fcntl  # not on Windows

        file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            return False
        self._file = file
        # A worker that outlives a killed training must not keep its GPU.
        os.register_at_fork(after_in_child=self.give_up)
        return True

    def give_up(self) -> None:
        """Release the GPU for other processes."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.close(self._file)
            self._file = None


def lease_folder() -> Path:
    """Return the folder of this user's locks; create it if necessary.

    It is the same for all processes, regardless of their TMPDIR. Raises UserError if it cannot be
    created.
    """
    folder = Path(f"/tmp/patch-curricula-gpus-{os.getuid()}")
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise UserError(f"the folder {folder} for GPU locks cannot be created: {error}") from None
    return folder


def wait_for_gpu(list_gpus: Callable[[], Sequence[Gpu]], folder: Path) -> GpuLease | None:
    """Wait for a free GPU and return its lease; return None if there is no GPU at all.

    GPUs are listed again at every check, because one may disappear.
    """
    told = -math.inf
    while gpus := list_gpus():
        for gpu in gpus:
            lease = GpuLease(folder, gpu)
            if lease.take():
                return lease
        if time.monotonic() - told >= REMINDER:
            announce(f"waiting for a free GPU: {', '.join(map(str, gpus))}")
            told = time.monotonic()
        time.sleep(POLL)
    return None


_held: list[GpuLease] = []


def take_gpu() -> Gpu | None:
    """Take a GPU for the lifetime of this process; return None if there is none.

    Call it before CUDA is first used, because CUDA reads `CUDA_VISIBLE_DEVICES` (set here) only
    then. If a Slurm job has a single GPU, it is used without a lease; of several, one is taken.

    Raises UserError if `CUDA_VISIBLE_DEVICES` names no installed GPU.
    """
    if _held:
        return _held[0].gpu
    gpus = visible_gpus()
    if "SLURM_JOB_ID" in os.environ and len(gpus) == 1:
        return gpus[0]  # perhaps only a share of it, which Slurm manages
    if not gpus:
        return None
    lease = wait_for_gpu(visible_gpus, lease_folder())
    if lease is None:
        raise UserError(f"no GPU is left; there were {', '.join(map(str, gpus))}")
    _held.append(lease)
    os.environ[VISIBLE] = lease.gpu.uuid
    announce(f"computing on {lease.gpu}")
    return lease.gpu


def take_unlisted(name: str) -> None:
    """Wait until no other training uses the GPU that torch sees but the driver does not list.

    This happens with AMD's GPUs, for example. Such a training always uses the first one, for the
    lifetime of this process. In a Slurm job nothing is done, because Slurm manages the GPUs.

    Args:
        name: model of the GPU.
    """
    if _held or "SLURM_JOB_ID" in os.environ:
        return
    gpu = Gpu(0, f"unlisted-{os.environ.get(VISIBLE, '')}", name, "unlisted")
    lease = wait_for_gpu(lambda: [gpu], lease_folder())
    assert lease is not None
    _held.append(lease)
    announce(f"computing on {name}, which the NVIDIA driver does not list")
