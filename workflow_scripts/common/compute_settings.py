"""Settings of the configuration for the hardware of a job."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ComputeSettings:
    """Requested device, precision and cores of a job; `hardware.prepare` resolves them.

    Attributes:
        device: `auto`, `cpu` or `cuda`.
        precision: `auto`, `fp32` or `bf16`.
        deterministic: whether repeated computations must be bitwise identical.
        threads: number of cores to use.
        memory_format: `auto`, `contiguous` or `channels_last`.
    """

    device: str
    precision: str
    deterministic: bool
    threads: int
    memory_format: str = "auto"
