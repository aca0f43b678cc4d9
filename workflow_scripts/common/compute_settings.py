"""What the configuration lets a job compute with."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ComputeSettings:
    """Device, precision and cores of a job, as they are wanted; `hardware.prepare` finds them.

    Attributes:
        device: `auto`, `cpu` or `cuda`.
        precision: `auto`, `fp32` or `bf16`.
        deterministic: compute the same bits each time.
        threads: cores to use.
        memory_format: `auto`, `contiguous` or `channels_last`.
    """

    device: str
    precision: str
    deterministic: bool
    threads: int
    memory_format: str = "auto"
