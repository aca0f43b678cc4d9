"""Scale factor of every step of a scale-space training: pure Python, no torch.

Both the trainers and the forecast use it, so the two cannot disagree.
"""

import math
import random
from dataclasses import dataclass
from typing import Annotated, Literal

from .settings import FIDELITY, Keywords, ScaleFactor, TrainerSettings

STEPS_OF_ONE = 100
"""Scale factors are drawn in hundredths. This is as good as continuous for a network that is smooth
in the scale factor (most neighbours give the same sizes). Sizes recur, so that costs are counted
and convolution algorithms chosen only once for each."""

DRAWS = 500
"""Number of quantiles that represent a non-uniform prior."""


@dataclass(frozen=True)
class Scales:
    """Scale factors of a training.

    Attributes:
        trained: factors from which each iteration draws, all equally likely.
        validated: factors that the validation patches after an epoch use in turn.
        final: factor of the final validation.
    """

    trained: tuple[float, ...]
    validated: tuple[float, ...]
    final: float

    def of_iteration(self, seed: int, iteration: int) -> float:
        """Return the scale factor of a global iteration, a function of the two arguments alone."""
        if len(self.trained) == 1:
            return self.trained[0]
        return random.Random(f"scale/{seed}/{iteration}").choice(self.trained)

    def of_validation(self, iteration: int) -> float:
        """Return the scale factor of an iteration of the validation after an epoch."""
        return self.validated[iteration % len(self.validated)]


@dataclass(frozen=True)
class ScaleSpaceSettings(TrainerSettings):
    """Trainer attributes that determine its scale factors and the size of its hypernetwork.

    Raises:
        ValueError: factors outside (0, 1], bounds in the wrong order, or an invalid
            hypernetwork.
    """

    scale_factor: ScaleFactor | None = None
    """Size of each stage of the network over that of the one above (`nnUNetTrainerScaleSpace`), in
    training and validation; `null` draws one for each iteration."""
    smallest_scale: ScaleFactor = 0.25
    """Smallest scale factor that is drawn."""
    largest_scale: ScaleFactor = 0.5
    """Largest scale factor that is drawn; the final validation uses it. 0.5 gives the planned
    sizes."""
    rank: Annotated[int, Keywords(minimum=0)] = 8
    """Dimensions in which the hypernetwork's weights can follow the scale factor; it adds that many
    times the network's parameters. 0 is no hypernetwork; 1 can follow nothing with `unit_norm`."""
    unit_norm: Annotated[bool, FIDELITY] = True
    """Whether the hypernetwork's coordinates have the length 1, so that every scale factor trains
    at the same rate; `false` is the authors' plain form, with an initial length between 0 and
    1.8."""
    scale_encoding: Annotated[Literal["linear", "circular"], FIDELITY] = "linear"
    """How the hypernetwork sees the scale factor, mapped to 0 to 1 between the bounds: `linear`
    (x, 1 - x), the authors', or `circular` (cos, sin)."""
    scale_prior: Annotated[Literal["uniform", "sqrt"], FIDELITY] = "uniform"
    """How scale factors are drawn: `uniform`, or `sqrt`, so that the area of the rescaled image is
    uniform (the authors' supplement)."""
    film: bool = False
    """`true` with `rank: 0`: the weights are shared, and the scale factor scales and shifts the
    features of every norm (FiLM; Perez et al., 2018), a control of the authors."""

    def __post_init__(self) -> None:
        """Check the scale factors and the hypernetwork."""
        super().__post_init__()
        drawn = ("smallest_scale", "largest_scale")
        for name in drawn if self.scale_factor is None else ("scale_factor",):
            if not 0 < (value := getattr(self, name)) <= 1:
                raise ValueError(f"{name} {value} is not above 0 and at most 1")
        low, high = self._bounds
        if self.scale_factor is None and not 0 < low < high:
            raise ValueError(
                f"smallest_scale {self.smallest_scale} must be at least {1 / STEPS_OF_ONE} below "
                f"largest_scale {self.largest_scale}"
            )
        if self.film and self.rank:
            raise ValueError(f"film requires rank 0, not {self.rank}: it shares the weights")
        if self.rank < 0:
            raise ValueError(f"a rank of {self.rank} is negative")
        if self.rank == 1 and self.unit_norm:
            raise ValueError(
                "rank 1 with unit_norm has one coordinate of length 1, which cannot follow the "
                "scale factor: take a rank of 2 or more, or unit_norm: false"
            )

    @property
    def scales(self) -> Scales:
        """The scale factors of the training."""
        if self.scale_factor is not None:
            return Scales((self.scale_factor,), (self.scale_factor,), self.scale_factor)
        low, high = self._bounds
        steps = range(low, high + 1)
        drawn = tuple(step / STEPS_OF_ONE for step in steps)
        validated = (drawn[-1], drawn[len(drawn) // 2], drawn[0])
        if self.scale_prior == "sqrt":
            # Quantiles of the prior: squares evenly spaced between the bounds, to the hundredth.
            areas = (low**2 + (n + 0.5) / DRAWS * (high**2 - low**2) for n in range(DRAWS))
            drawn = tuple(round(math.sqrt(area)) / STEPS_OF_ONE for area in areas)
        return Scales(drawn, validated, validated[0])

    @property
    def _bounds(self) -> tuple[int, int]:
        """Bounds of the draws, in steps."""
        bounds = self.smallest_scale, self.largest_scale
        low, high = (round(bound * STEPS_OF_ONE) for bound in bounds)
        return low, high
