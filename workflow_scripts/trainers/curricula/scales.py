"""Which scale factor every step of a scale-space training has: pure Python, no torch.

The trainers train by it and the forecast counts by it, so the two cannot disagree.
"""

import random
from dataclasses import dataclass

STEPS_OF_ONE = 100
"""Scale factors are drawn in hundredths: as good as continuous for a network that is smooth in the
scale factor (most neighbours have the very same sizes), and every size comes back, so that costs
are counted and convolution algorithms chosen once for each."""

SCALE_ATTRIBUTES = ("scale_factor", "smallest_scale", "largest_scale")
"""Attributes of a trainer that decide its scale factors: the parameters of `plan_scales`."""

NETWORK_ATTRIBUTES = ("rank", "unit_norm", "scale_encoding")
"""Attributes of a trainer that decide the hypernetwork's size."""

DEFAULT_RANK = 8

ENCODINGS = ("linear", "circular")


@dataclass(frozen=True)
class Scales:
    """Scale factors of a training.

    Attributes:
        trained: those that an iteration is drawn from, each as likely.
        validated: those that the validation patches after an epoch take in turn.
        final: that of the final validation.
    """

    trained: tuple[float, ...]
    validated: tuple[float, ...]
    final: float

    def of_iteration(self, seed: int, iteration: int) -> float:
        """Return the scale factor of a global iteration: a function of these two numbers alone."""
        if len(self.trained) == 1:
            return self.trained[0]
        return random.Random(f"scale/{seed}/{iteration}").choice(self.trained)

    def of_validation(self, iteration: int) -> float:
        """Return the scale factor of an iteration of the validation after an epoch."""
        return self.validated[iteration % len(self.validated)]


def plan_scales(scale_factor: float | None, smallest_scale: float, largest_scale: float) -> Scales:
    """Return the scale factors of a training.

    Args:
        scale_factor: of every step; None draws one for each iteration.
        smallest_scale, largest_scale: bounds of the draws, uniform between them.

    Raises ValueError for factors outside (0, 1] or bounds in the wrong order.
    """
    if scale_factor is not None:
        _check("scale_factor", scale_factor)
        return Scales((scale_factor,), (scale_factor,), scale_factor)
    _check("smallest_scale", smallest_scale)
    _check("largest_scale", largest_scale)
    low, high = round(smallest_scale * STEPS_OF_ONE), round(largest_scale * STEPS_OF_ONE)
    if not 0 < low < high:
        raise ValueError(
            f"smallest_scale {smallest_scale} is not smaller than largest_scale {largest_scale} "
            f"by at least {1 / STEPS_OF_ONE}"
        )
    drawn = tuple(step / STEPS_OF_ONE for step in range(low, high + 1))
    return Scales(drawn, (drawn[-1], drawn[len(drawn) // 2], drawn[0]), drawn[-1])


def check_hypernetwork(rank: int, unit_norm: bool, scale_encoding: str) -> None:
    """Raise ValueError for a hypernetwork that cannot be (see `hypernetwork.ScaleSpaceNetwork`)."""
    if scale_encoding not in ENCODINGS:
        raise ValueError(
            f"unknown scale_encoding {scale_encoding!r}; known are {', '.join(ENCODINGS)}"
        )
    if rank < 0:
        raise ValueError(f"a rank of {rank} is negative")
    if rank == 1 and unit_norm:
        raise ValueError(
            "rank 1 with unit_norm has one coordinate of length 1, which cannot follow the scale "
            "factor: take a rank of 2 or more, or unit_norm: false"
        )


def _check(name: str, value: float) -> None:
    if not 0 < value <= 1:
        raise ValueError(f"{name} {value} is not above 0 and at most 1")
