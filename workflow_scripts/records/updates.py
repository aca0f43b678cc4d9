"""Count the updates of a training's weights."""

from typing import Any


class UpdateCounter:
    """Counts the updates by an optimiser.

    In mixed precision, a gradient scaler leaves out the update of a step whose gradients are not
    finite, and lowers its scale (`torch.amp.GradScaler.step`). Such a step is skipped.

    Attributes:
        count: updates so far.
    """

    def __init__(self, optimizer: Any) -> None:
        """Count from now on."""
        self.count = 0
        optimizer.register_step_post_hook(self._note)

    def _note(self, optimizer: Any, *arguments: object) -> None:
        # Fused optimisers are always called, and skip by themselves if this is set.
        self.count += not bool(getattr(optimizer, "found_inf", False))
