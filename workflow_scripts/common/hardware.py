"""Device, precision, memory and determinism of a training."""

import ctypes
import os
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from dynamic_network_architectures.architectures.abstract_arch import (
    AbstractDynamicNetworkArchitectures,
)

from workflow_scripts.common.errors import UserError
from workflow_scripts.common.gpus import Gpu, take_gpu, take_unlisted


@dataclass(frozen=True)
class Hardware:
    """Hardware and precision that a job uses.

    Attributes:
        device: `cuda` or `cpu`.
        precision: `amp`, `bf16` or `fp32`.
        threads: number of cores.
        gpu: GPU that this job computes on, if it is NVIDIA's.
        memory_format: requested memory format (`set_memory_format`).
    """

    device: str
    precision: str
    threads: int
    gpu: Gpu | None = None
    memory_format: str = "auto"

    @property
    def processes(self) -> int:
        """Number of processes with which nnU-Net reads and writes images."""
        return max(1, self.threads // 2)

    @property
    def augmentation_workers(self) -> int:
        """Number of processes that augment.

        With a GPU, all cores augment. On a CPU, the network needs the cores; one worker per four
        cores keeps up with it.
        """
        return self.threads if self.device == "cuda" else max(1, self.threads // 4)


def find_device(wanted: str) -> str:
    """Return `cuda` or `cpu`; `auto` takes a GPU if there is one.

    Raises UserError if `cuda` is wanted and torch sees no GPU.
    """
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise UserError(
            "training.device is cuda, but torch sees no GPU: check the driver and "
            "CUDA_VISIBLE_DEVICES, or set training.device to auto or cpu"
        )
    return "cuda" if available and wanted != "cpu" else "cpu"


def find_precision(wanted: str, device: str) -> str:
    """Return `amp` (nnU-Net's mixed precision on CUDA), `bf16` or `fp32`.

    `auto` selects bf16 autocast on a CPU with native support (AMX or AVX512-BF16). On other CPUs it
    would be emulated and slow. On CUDA, raises UserError for any choice except `auto`.
    """
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

    Every step frees and allocates the same large blocks. Returning each of them costs page faults
    (measured on Task04 at batch 2: 0.79 s per step, 0.68 s without). Does nothing if the C library
    has no `mallopt`.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    trim_threshold, top_pad, mmap_max = -1, -2, -4
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(top_pad, 2**26)


def autocast_network(network: Any) -> None:
    """Make a network compute in bf16 autocast on the CPU, in training, validation and inference.

    Its outputs are fp32, so that the loss is computed as in stock nnU-Net on a CPU. Convolutions
    with an output of two voxels or fewer on an axis stay in fp32, which costs nothing at that size.
    On AVX512-BF16 processors, oneDNN's bf16 weight gradient reads uninitialised memory if the
    output has a depth of two (torch 2.14.1; measured errors of 100 % and more, sometimes NaN).
    """

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


SLIM = 16
"""Number of features in the first stage below which channels-last is faster on a CPU in 3D.

oneDNN computes convolutions in blocks of 16 channels (8 without AVX-512), which a slim network
leaves half empty. Measured in docs/results/performance.md. In 2D, channels-last took 0.96 to 1.19
times as long (networks of 8 to 32 features, one core with AVX2).
"""


def set_memory_format(network: Any, wanted: str, device: str) -> str:
    """Set and return the memory format of a network's weights; the images follow it.

    Args:
        network: for nnU-Net's U-Nets in 3D, `auto` depends on the first convolution. For
            hypernetworks, it leaves the weights unchanged, because they are made for each step.
        wanted: `contiguous`, `channels_last`, or `auto`, which selects the faster one on a CPU.
        device: `cuda` or `cpu`.
    """
    kinds = torch.nn.Conv2d | torch.nn.Conv3d
    first = next(module for module in network.modules() if isinstance(module, kinds))
    in_3d = isinstance(first, torch.nn.Conv3d)
    if wanted == "auto":
        slim = (
            device == "cpu"
            and isinstance(network, AbstractDynamicNetworkArchitectures)
            and in_3d
            and first.out_channels < SLIM
        )
        wanted = "channels_last" if slim else "contiguous"
    if wanted == "channels_last":
        network.to(memory_format=torch.channels_last_3d if in_3d else torch.channels_last)
    return wanted


def prepare_network(network: Any, hardware: Hardware) -> str:
    """Give a network the precision and memory format of a job; return the memory format.

    Args:
        network: an uncompiled network; one on a CPU computes in bf16 from now on if that is chosen.
        hardware: as returned by `prepare`.
    """
    memory_format = set_memory_format(network, hardware.memory_format, hardware.device)
    if hardware.precision == "bf16":
        autocast_network(network)
    return memory_format


def make_deterministic(device: str) -> None:
    """Make torch bitwise reproducible on one machine with one number of threads.

    On CUDA, torch only warns about kernels without a deterministic version (the forward pass of the
    cross entropy, whose value is logged; its gradient is deterministic). A compiled network then
    uses no kernel that inductor would choose by a measurement, which may choose differently when a
    training resumes.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if device == "cuda":
        import torch._inductor.config as inductor

        inductor.deterministic = True
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True, warn_only=device == "cuda")


class Request(Protocol):
    """Keys of the config's section `training` that concern the hardware, on any settings."""

    @property
    def device(self) -> str:
        """`auto`, `cpu` or `cuda`."""

    @property
    def precision(self) -> str:
        """`auto`, `fp32` or `bf16`."""

    @property
    def deterministic(self) -> bool:
        """Whether repeated computations must be bitwise identical."""

    @property
    def memory_format(self) -> str:
        """`auto`, `contiguous` or `channels_last`."""


def prepare(wanted: Request, threads: int) -> Hardware:
    """Set up torch for a job with this number of cores; return the hardware in use.

    Unless `cpu` is wanted, a visible GPU (if any) is taken for this process before CUDA is used.

    Raises UserError for a device or precision that this machine does not support.
    """
    gpu = None if wanted.device == "cpu" else take_gpu()
    device = find_device(wanted.device)
    if device == "cuda" and gpu is None:
        take_unlisted(torch.cuda.get_device_name())
    precision = find_precision(wanted.precision, device)
    torch.set_num_threads(1 if device == "cuda" else threads)
    torch.backends.cudnn.benchmark = device == "cuda"
    if device == "cpu":
        keep_freed_memory()
    if wanted.deterministic:
        make_deterministic(device)
    return Hardware(
        device=device,
        precision=precision,
        threads=threads,
        gpu=gpu if device == "cuda" else None,
        memory_format=wanted.memory_format,
    )
