"""A batch on its way through the transforms of augmentation, and its random numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.helpers.scalar_type import RandomScalar
from batchgeneratorsv2.transforms.intensity.contrast import BGContrast


@dataclass(frozen=True)
class Draws:
    """Random numbers of one batch, a function of its seed alone.

    Attributes:
        numbers: generator of the parameters, on the CPU.
        noise: generator of the Gaussian noise, on the device of the images.
    """

    numbers: np.random.Generator
    noise: torch.Generator

    @classmethod
    def of(cls, seed: Sequence[int], device: torch.device | str = "cpu") -> "Draws":
        """Return the draws for a seed (non-negative integers)."""
        numbers = np.random.default_rng(seed)
        noise = torch.Generator(device).manual_seed(int(numbers.integers(2**62)))
        return cls(numbers, noise)

    def happens(self, probability: float, *shape: int) -> np.ndarray:
        """Return, for each element, whether an event with this probability happens."""
        return self.numbers.random(shape) < probability

    def scalars(self, kind: RandomScalar, count: int) -> np.ndarray:
        """Return `count` independent draws, each distributed like one of `sample_scalar`."""
        if isinstance(kind, BGContrast):
            low, high = kind.contrast_range
            below = self.happens(0.5, count) & (low < 1)
            return np.where(
                below,
                self.numbers.uniform(min(low, 1), 1, count),
                self.numbers.uniform(max(low, 1), high, count),
            )
        if isinstance(kind, int | float):
            return np.full(count, float(kind))
        low, high = kind
        return self.numbers.uniform(low, high, count)


class Batch:
    """Images (batch, channel, *spatial) and labels on their way through the transforms.

    `target` is the input of the loss: the labels, or a list of them for deep supervision.
    """

    def __init__(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        """Start from cropped images and labels."""
        self.images = images
        self.target: Any = labels

    @property
    def planes(self) -> torch.Tensor:
        """View of the images as (batch · channel, *spatial); intensities change per channel."""
        return self.images.view(-1, *self.images.shape[2:])
