"""Typed settings of a training from the configuration."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from workflow_scripts.records.energy_meter import EnergySettings
from workflow_scripts.trainers.curricula.schedules.settings import TrainingLength


@dataclass(frozen=True)
class TrainingSettings:
    """The config's section `training` without `threads`; the schema describes each key.

    The length may differ between arms (`Study.training`). A rule that needs only the length passes
    only the length; the other settings then have the schema's defaults.
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
        """Settings that determine the schedule."""
        return TrainingLength(self.epochs, self.iterations_per_epoch, self.seed)


@dataclass(frozen=True)
class RunSettings:
    """Settings for training, metering and validating a fold.

    Attributes:
        training: the section `training`.
        energy: settings of the energy meter.
        mirroring: whether the final validation uses test-time mirroring.
        threads: number of cores to use.
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
