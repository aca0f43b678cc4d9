"""The configuration's settings of a training, with types."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from workflow_scripts.common.compute_settings import ComputeSettings
from workflow_scripts.records.energy_meter import EnergySettings
from workflow_scripts.trainers.curricula.schedules.settings import TrainingLength


@dataclass(frozen=True)
class TrainingSettings:
    """The config's section `training` without `threads`; the schema describes each key.

    The length may differ between arms (`Study.training`). A rule that needs no more than the length
    passes no more; the rest is then as the schema has it by default.
    """

    epochs: int
    iterations_per_epoch: int
    validation_iterations_per_epoch: int
    seed: int
    device: str = "auto"
    precision: str = "auto"
    deterministic: bool = False
    checkpoint_minutes: float = 10
    lease_minutes: float = 5
    wait_minutes: float = 30
    memory_format: str = "auto"

    @property
    def length(self) -> TrainingLength:
        """What the schedule follows from."""
        return TrainingLength(self.epochs, self.iterations_per_epoch, self.seed)


@dataclass(frozen=True)
class RunSettings:
    """How a fold is trained, metered and validated.

    Attributes:
        training: length, seed and circumstances.
        energy: how energy is metered.
        mirroring: test-time mirroring in the final validation.
        threads: cores to use.
    """

    training: TrainingSettings
    energy: EnergySettings
    mirroring: bool
    threads: int

    @classmethod
    def of(
        cls, training: Mapping[str, Any], energy: Mapping[str, Any], mirroring: bool, threads: int
    ) -> Self:
        """Return the settings of the config's sections `training` and `energy`."""
        return cls(TrainingSettings(**training), EnergySettings(**energy), mirroring, threads)

    @property
    def compute(self) -> ComputeSettings:
        """What to compute with."""
        training = self.training
        return ComputeSettings(
            training.device,
            training.precision,
            training.deterministic,
            self.threads,
            training.memory_format,
        )
