"""Typed settings of a training from the configuration."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from workflow_scripts.records.energy_settings import EnergySettings
from workflow_scripts.trainers.curricula.schedules.settings import CLOSED, Keywords, TrainingLength


@dataclass(frozen=True)
class TrainingSettings:
    """Length and settings of every training; an arm may set another length."""

    __pydantic_config__ = CLOSED

    epochs: Annotated[int, Keywords(minimum=1)] = 1000
    """Epochs of a run."""
    iterations_per_epoch: Annotated[int, Keywords(minimum=1)] = 250
    """Training iterations of an epoch."""
    validation_iterations_per_epoch: Annotated[int, Keywords(minimum=1)] = 50
    """Validation iterations (pseudo Dice) of an epoch, at the full patch size."""
    seed: Annotated[int, Keywords(minimum=0, maximum=2**32 - 1)] = 12345
    """Seed of weights, sampling and augmentation."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` uses CUDA if available, else the CPU."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`auto`: on CUDA nnU-Net's own mixed precision; on a CPU with native bf16 (AMX or
    AVX512-BF16) bf16 autocast; else fp32."""
    memory_format: Literal["auto", "contiguous", "channels_last"] = "auto"
    """Order of the network's weights in memory. It affects speed and rounding only. `auto`:
    `channels_last` on a CPU for 3D networks whose first stage has fewer than 16 features, else
    `contiguous` ([speed](../results/performance.md))."""
    deterministic: bool = False
    """Compute the same bits each time on one machine: two runs, or a run that was killed and
    resumed, end with identical weights. Batches are always the same.
    [Speed](../results/performance.md) has its cost."""
    checkpoint_minutes: Annotated[float, Keywords(minimum=0)] = 10
    """Minutes between checkpoints, from which an interrupted run resumes; 0 writes one after
    each epoch."""
    lease_minutes: Annotated[float, Keywords(minimum=2)] = 5
    """One process at a time trains a fold. If the process that trains it is on another machine
    and gives no sign of life for this many minutes, it counts as dead. On the same machine, and
    for a requeued job, this is known immediately."""
    wait_minutes: Annotated[float, Keywords(minimum=0)] = 30
    """How long to wait, holding the GPU, for another process that is training the same fold."""

    threads: Annotated[int, Keywords(minimum=1)] = 8
    """Cores of one training, including data loading (Snakemake's `threads`)."""

    @property
    def length(self) -> TrainingLength:
        """Settings that determine the schedule."""
        return TrainingLength(self.epochs, self.iterations_per_epoch, self.seed)


@dataclass(frozen=True)
class RunSettings:
    """Settings for training, metering and validating a fold.

    Attributes:
        training: the section `training`, with the threads of the job.
        energy: settings of the energy meter.
        mirroring: whether the final validation uses test-time mirroring.
    """

    training: TrainingSettings
    energy: EnergySettings
    mirroring: bool

    @classmethod
    def of(
        cls, training: Mapping[str, Any], energy: Mapping[str, Any], mirroring: bool, threads: int
    ) -> Self:
        """Return the settings of the config's sections `training` and `energy`.

        `threads` are those of the job, which may be fewer than the section asks for.
        """
        own = TrainingSettings(**training, threads=threads)
        return cls(own, EnergySettings(**energy), mirroring)

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Self:
        """Return the settings that `dataclasses.asdict` made a dictionary of."""
        training, energy = TrainingSettings(**settings["training"]), settings["energy"]
        return cls(training, EnergySettings(**energy), settings["mirroring"])
