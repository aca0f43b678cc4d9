"""The GPUs of this machine, and one of them for each job that computes on a GPU.

Only Snakemake's own packages are needed: the Snakefile counts the GPUs, too.
"""

import contextlib
import math
import os
import re
import subprocess
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
"""A line of `nvidia-smi -L`: a GPU, or below it an instance that it is divided into (MIG)."""

POLL, REMINDER = 2.0, 300.0
"""Seconds between two looks for a free GPU, and between two messages of a job that waits."""


@dataclass(frozen=True)
class Gpu:
    """A GPU, or an instance of one that is divided (MIG), which CUDA treats as a GPU.

    Attributes:
        index: of the card, in nvidia-smi's order.
        uuid: the name by which `CUDA_VISIBLE_DEVICES` selects it.
        name: of the model.
        card: UUID of the card; that of the GPU itself where it is not divided.
    """

    index: int
    uuid: str
    name: str
    card: str

    def __str__(self) -> str:
        """Name it for people: index, model, UUID."""
        return f"GPU {self.index} ({self.name}, {self.uuid})"


def installed_gpus() -> list[Gpu]:
    """Return the GPUs that nvidia-smi lists; none where there is no driver of NVIDIA.

    Of a divided card the instances are returned, since CUDA sees nothing else of it.
    """
    try:
        listed = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return []
    gpus: list[Gpu] = []
    card: Gpu | None = None
    for line in listed.splitlines():
        found = LISTED.match(line)
        if found is None:
            continue
        uuid = found[4]
        if found["index"] is not None:
            card = Gpu(int(found["index"]), uuid, found["name"], uuid)
            gpus.append(card)
        elif card is not None:
            if card in gpus:
                gpus.remove(card)
            gpus.append(Gpu(card.index, uuid, f"{card.name} MIG {found['part']}", card.uuid))
    return gpus


def visible_gpus(environment: Mapping[str, str] = os.environ) -> list[Gpu]:
    """Return the installed GPUs that `CUDA_VISIBLE_DEVICES` names, or all if it is not set.

    It holds indices in nvidia-smi's order or the first characters of UUIDs.

    Raises UserError if it names none that is installed.
    """
    installed = installed_gpus()
    if VISIBLE not in environment:
        return installed
    names = [name.strip() for name in environment[VISIBLE].split(",")]
    if not installed or names[0] in NO_GPU:
        return []
    found = [
        gpu
        for name in names
        for gpu in installed
        if (str(gpu.index) == name if name.isdigit() else name and gpu.uuid.startswith(name))
    ]
    if not found:
        listed = ", ".join(map(str, installed))
        raise UserError(
            f"{VISIBLE} is {environment[VISIBLE]!r}, but nvidia-smi lists {listed}: name one of "
            "these, by index or UUID, or unset the variable"
        )
    return list(dict.fromkeys(found))


def count_gpus() -> int:
    """Return how many trainings can have a GPU each; 0 on a machine without any.

    1 where the GPUs cannot be listed: the first job that needs one reports it.
    """
    try:
        return len(visible_gpus())
    except UserError:
        return 1


class GpuLease:
    """The right to a GPU, among the processes of this user on this machine.

    A lock of the kernel, which ends with the process however that ends.
    """

    def __init__(self, folder: Path, gpu: Gpu) -> None:
        """Describe the lease of a GPU whose lock is a file in `folder`."""
        self.gpu = gpu
        self._path = folder / f"{re.sub(r'[^A-Za-z0-9-]', '_', gpu.uuid)}.lock"
        self._file: int | None = None

    def take(self) -> bool:
        """Take it if it is free; tell whether it is taken."""
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
        """Let another process have it."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.close(self._file)
            self._file = None


def lease_folder() -> Path:
    """Return the folder of this user's locks, which is made if need be.

    The same for all processes, whatever their TMPDIR. Raises UserError if it cannot be made.
    """
    folder = Path(f"/tmp/patch-curricula-gpus-{os.getuid()}")
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} for the locks of the GPUs cannot be made: {error}") from None
    return folder


def wait_for_gpu(list_gpus: Callable[[], Sequence[Gpu]], folder: Path) -> GpuLease | None:
    """Return the lease of a free GPU, as soon as there is one; None where there is no GPU at all.

    GPUs are listed again at every look, since one may vanish.
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
    """Take a GPU for this process, for as long as it lives; None where there is none.

    Call it before CUDA is used, which only then reads `CUDA_VISIBLE_DEVICES` (set here). The one
    GPU that a Slurm job was given is taken as it is; of several, one.

    Raises UserError if `CUDA_VISIBLE_DEVICES` names no installed GPU.
    """
    if _held:
        return _held[0].gpu
    gpus = visible_gpus()
    if "SLURM_JOB_ID" in os.environ and len(gpus) == 1:
        return gpus[0]  # perhaps a share of it, which is no business of ours
    if not gpus:
        return None
    lease = wait_for_gpu(visible_gpus, lease_folder())
    if lease is None:
        raise UserError(f"no GPU is left: nvidia-smi listed {', '.join(map(str, gpus))} before")
    _held.append(lease)
    os.environ[VISIBLE] = lease.gpu.uuid
    announce(f"computing on {lease.gpu}")
    return lease.gpu
