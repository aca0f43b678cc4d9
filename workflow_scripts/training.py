"""What one training needs around nnU-Net: device, precision, trainer, identity, progress."""

import contextlib
import importlib
import json
import platform
import random
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from log import UserError, tell
from nnunet import json_hash, write_json

TRAINERS = Path(__file__).parent / "trainers"
DISTRIBUTIONS = ("torch", "nnunetv2", "batchgeneratorsv2", "codecarbon")


def augmentation_workers(device: str, threads: int) -> int:
    """Return how many processes augment.

    On a GPU all cores do; on a CPU they belong to the network, and one in four keeps up with it.
    """
    return threads if device == "cuda" else max(1, threads // 4)


def find_device(wanted: str) -> str:
    """Return `cuda` or `cpu`; `auto` takes a GPU if there is one.

    Raises UserError when `cuda` is wanted and torch sees no GPU.
    """
    import torch

    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise UserError(
            "training.device is cuda, but torch sees no GPU: check the driver and "
            "CUDA_VISIBLE_DEVICES, or set training.device to auto or cpu"
        )
    return "cuda" if available and wanted != "cpu" else "cpu"


def find_precision(wanted: str, device: str) -> str:
    """Return `amp` (nnU-Net's own on CUDA), `bf16` or `fp32`.

    `auto` takes bf16 autocast on a CPU whose instructions compute it (AMX or AVX512-BF16); anywhere
    else it would be emulated and slow. Raises UserError for a choice that a GPU run cannot take.
    """
    import torch

    if device == "cuda":
        if wanted != "auto":
            raise UserError(
                f"training.precision is {wanted}, but nnU-Net trains on CUDA in its own mixed "
                "precision: set it to auto"
            )
        return "amp"
    if wanted != "auto":
        return wanted
    capabilities = torch.cpu.get_capabilities()
    native = capabilities.get("amx_bf16") or capabilities.get("avx512_bf16")
    return "bf16" if native else "fp32"


def keep_freed_memory() -> None:
    """Let glibc keep what torch frees on the CPU instead of returning it to the system.

    Every step frees and asks for the same large blocks; giving each of them back costs page faults
    (measured on Task04 at batch 2: 0.79 s a step, 0.68 s without). Does nothing where the C library
    has no `mallopt`.
    """
    import ctypes

    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    trim_threshold, top_pad, mmap_max = -1, -2, -4
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(top_pad, 2**26)


def autocast_network(network: Any) -> None:
    """Let a network compute in bf16 autocast on the CPU, in training, validation and inference.

    Its outputs are fp32, so that the loss is computed as in stock nnU-Net on a CPU. Convolutions
    whose output is two voxels or fewer on an axis stay in fp32, which costs nothing at that size:
    on AVX512-BF16 processors oneDNN's bf16 weight gradient reads uninitialised memory where the
    output has a depth of two (torch 2.14.1; measured errors of 100 % and more, NaN at times).
    """
    import torch

    def full_precision_if_thin(convolution: Any) -> None:
        forward, stride = convolution.forward, convolution.stride

        def guarded(x: torch.Tensor) -> torch.Tensor:
            if any(size <= 2 * s for size, s in zip(x.shape[2:], stride, strict=True)):
                with torch.autocast("cpu", enabled=False):
                    return forward(x.float())
            return forward(x)

        convolution.forward = guarded

    def to_float(output: Any) -> Any:
        if isinstance(output, (list, tuple)):
            return type(output)(map(to_float, output))
        return output.float()

    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Conv3d):
            full_precision_if_thin(module)
    forward = network.forward

    def autocast_forward(x: torch.Tensor) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = forward(x)
        return to_float(output)

    network.forward = autocast_forward


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch (the network's initial weights)."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def find_trainer(name: str) -> type:
    """Return a trainer class of this project, or any that nnU-Net finds by itself.

    Raises UserError for an unknown name.
    """
    trainer = getattr(importlib.import_module("trainers.curricula.arms"), name, None)
    if trainer is not None:
        return trainer
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    try:
        return recursive_find_trainer_class_by_name(name)
    except RuntimeError as error:
        raise UserError(
            f"trainer {name} is neither in workflow_scripts/trainers/curricula/arms.py, nor in "
            "nnU-Net, nor in a folder that nnUNet_extTrainer names"
        ) from error


def trainer_code_hash() -> str:
    """Return a hash of the trainers' code; comments and formatting do not count."""
    import ast

    trees = [
        ast.dump(ast.parse(path.read_text()))
        for path in sorted((TRAINERS / "curricula").glob("*.py"))
    ]
    return json_hash(trees)


def check_identity(identity: dict[str, Any], path: Path, started: bool, finished: bool) -> None:
    """Refuse to go on with a training of another kind; note the identity of a new one.

    The identity is all that decides the weights. Of a finished training the versions may differ
    from today's: nothing is trained any more, and `run.json` tells with which it was made.

    Raises UserError naming the fields that differ.
    """
    if not started:
        write_json(identity, path)
        return
    if not path.exists():
        raise UserError(
            f"{path.parent} holds a checkpoint but no {path.name}: it was not trained by this "
            "workflow; move the folder away"
        )
    found = json.loads(path.read_text())
    skipped = {"trainer_code", *versions()} if finished else set()
    differing = [
        f"{key} was {found.get(key)!r} and is now {identity.get(key)!r}"
        for key in sorted({*found, *identity} - skipped)
        if found.get(key) != identity.get(key)
    ]
    if differing:
        raise UserError(
            f"cannot go on with the training in {path.parent}: {'; '.join(differing)}. Set it "
            "back, or name another `study`, or delete that folder to train anew"
        )


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide the numbers."""
    found = {"python": platform.python_version()}
    return found | {name: version(name) for name in DISTRIBUTIONS}


def git_commit() -> str | None:
    """Return the workflow's commit, marked where files differ from it; None outside of git."""
    command = ["git", "-C", str(TRAINERS), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def now() -> str:
    """Return the present time, ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class Progress:
    """Lines on the terminal: which training, epoch k of n, time left."""

    def __init__(self, title: str, every_seconds: float = 10.0) -> None:
        """`title` names the training; a line at most each `every_seconds`."""
        import time

        self._title, self._every, self._clock = title, every_seconds, time.monotonic
        self._began = self._last = self._clock()

    def start(self, done: int, total: int, what: str) -> None:
        """Begin counting `total` pieces of `what`, of which `done` were there before."""
        self._done_before, self._total, self._what = done, total, what
        self._began, self._last = self._clock(), 0.0

    def show(self, done: int, note: str = "") -> None:
        """Show that `done` of the pieces are there."""
        now = self._clock()
        if now - self._last < self._every and done < self._total:
            return
        self._last = now
        each = (now - self._began) / max(1, done - self._done_before)
        left = _duration(each * (self._total - done))
        tell(f"{self._title}: {self._what} {done}/{self._total}, {left} left{note}")


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"


@contextlib.contextmanager
def counted_predictions(trainer: Any, show: Callable[[int], None]):
    """Call `show(n)` as the trainer's final validation predicts its n-th case."""
    original, seen = trainer.print_to_log_file, [0]

    def watch(*args: Any, **kwargs: Any) -> None:
        if args and str(args[0]).startswith("predicting "):
            seen[0] += 1
            show(seen[0])
        original(*args, **kwargs)

    trainer.print_to_log_file = watch
    try:
        yield
    finally:
        trainer.print_to_log_file = original
