"""The arms for nnU-Net's own commands: also by length, with parameters from the environment."""

from typing import Any

import torch

from .. import arms
from ..patch_curriculum import nnUNetTrainerPatchCurriculum
from .environment import read_parameters

ARMS: dict[str, type[nnUNetTrainerPatchCurriculum]] = {
    "constant": arms.nnUNetTrainerConstantPatch,
    "batched_augmentation": arms.nnUNetTrainerBatchedAugmentation,
    "progressive": arms.nnUNetTrainerProgressivePatch,
    "progressive_plus": arms.nnUNetTrainerProgressivePlusPatch,
    "random": arms.nnUNetTrainerRandomPatch,
    "progressive_efficiency": arms.nnUNetTrainerProgressiveEfficiencyPatch,
    "progressive_performance": arms.nnUNetTrainerProgressivePerformancePatch,
    "listed": arms.nnUNetTrainerListedPatch,
    "low_frequency": arms.nnUNetTrainerLowFrequency,
    "low_frequency_iterations": arms.nnUNetTrainerLowFrequencyIterations,
    "scale_space": arms.nnUNetTrainerScaleSpace,
}
"""The trainer's class of each arm."""
LENGTHS = {
    f"_{epochs}epoch{'s' if epochs > 1 else ''}": epochs
    for epochs in (1, 5, 10, 20, 50, 100, 250, 500, 750, 2000, 4000, 8000)
}
"""Epochs by the end of a class's name, as nnU-Net names its `nnUNetTrainer_Xepochs`."""
CHOSEN = "parameters_from_environment"
"""Key in a checkpoint's `init_args`, the part that nnU-Net leaves to the trainer."""


class FromEnvironment(nnUNetTrainerPatchCurriculum):
    """An arm whose parameters `nnUNet_curriculum_…` variables of the environment may set.

    Attributes:
        length: number of epochs; None is nnU-Net's.
    """

    length: int | None = None

    def __init__(
        self, plans: dict, configuration: str, fold: int, dataset_json: dict, device: torch.device
    ) -> None:
        """Begin as the arm does, then set length and parameters; raise ValueError if invalid."""
        super().__init__(plans, configuration, fold, dataset_json, device)
        if self.length is not None:
            self.num_epochs = self.length
        chosen = read_parameters(type(self))
        for name, value in chosen.items():
            setattr(self, name, value)
            self.print_to_log_file(f"{name} is {value!r}, by the environment")
        self.my_init_kwargs[CHOSEN] = chosen

    def load_checkpoint(self, filename_or_checkpoint: Any) -> None:
        """Load nnU-Net's checkpoint; raise ValueError if it was trained with other parameters."""
        chosen = self.my_init_kwargs[CHOSEN]
        super().load_checkpoint(filename_or_checkpoint)
        found = self.my_init_kwargs.setdefault(CHOSEN, chosen)
        if found != chosen:
            raise ValueError(
                f"the environment sets the parameters {chosen}, but this training began with "
                f"{found}: set the same nnUNet_curriculum_… variables as then"
            )


CLASSES: dict[str, type[FromEnvironment]] = {
    f"{arm.__name__}{ending}": type(
        f"{arm.__name__}{ending}",
        (FromEnvironment, arm),
        {"__doc__": arm.__doc__, "__module__": __name__, "length": epochs},
    )
    for arm in ARMS.values()
    for ending, epochs in ({"": None} | LENGTHS).items()
}
"""The class of each arm and length, by its name."""
globals().update(CLASSES)
