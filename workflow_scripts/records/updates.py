"""Count the updates of a training's weights."""

from typing import Any


class UpdateCounter:
    """Counts the updates by a trainer's optimiser.

    In mixed precision, a gradient scaler leaves out the update of a step whose gradients are not
    finite, and lowers its scale (`torch.amp.GradScaler.step`). Such a step is skipped.

    Attributes:
        count: updates so far.
    """

    def __init__(self, trainer: Any) -> None:
        """Count from now on, if `follow` is called before each step."""
        self.count = 0
        self._trainer = trainer
        self._followed: Any = None

    def follow(self) -> None:
        """Count the updates by the current optimiser.

        Some trainers of nnU-Net replace theirs, such as `nnUNetTrainer_warmup` after its warm-up.
        """
        if self._trainer.optimizer is not self._followed:
            self._followed = self._trainer.optimizer
            self._followed.register_step_post_hook(self._note)

    def _note(self, optimizer: Any, *arguments: object) -> None:
        # Fused optimisers are always called, and skip by themselves if this is set.
        self.count += not bool(getattr(optimizer, "found_inf", False))
