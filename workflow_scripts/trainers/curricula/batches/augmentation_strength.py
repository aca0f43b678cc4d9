"""Augmentation from weak to strong: nnU-Net's own pipeline with scaled magnitudes."""

from collections.abc import Callable
from typing import Any

from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.intensity.contrast import BGContrast, ContrastTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform

Range = tuple[float, float]


def _times(values: Range, strength: float) -> Range:
    return values[0] * strength, values[1] * strength


def _towards_one(values: Range, strength: float) -> Range:
    return 1 + (values[0] - 1) * strength, 1 + (values[1] - 1) * strength


def _power(values: Range, strength: float) -> Range:
    return values[0] ** strength, values[1] ** strength


MAGNITUDES: dict[type, dict[str, Callable[[Range, float], Range]]] = {
    SpatialTransform: {"rotation": _times, "scaling": _power},
    GaussianNoiseTransform: {"noise_variance": _times},
    GaussianBlurTransform: {"blur_sigma": _times},
    MultiplicativeBrightnessTransform: {"multiplier_range": _towards_one},
    ContrastTransform: {"contrast_range": _towards_one},
    SimulateLowResolutionTransform: {"scale": _towards_one},
    GammaTransform: {"gamma": _power},
}
"""For each type of transform: its range attributes, and how each shrinks to no effect."""


def _ranges(transform: Any) -> dict[str, Callable[[Range, float], Range]]:
    found = (ranges for kind, ranges in MAGNITUDES.items() if isinstance(transform, kind))
    return next(found, {})


def _weaken(transform: Any, strength: float) -> None:
    for name, scale in _ranges(transform).items():
        found = getattr(transform, name)
        if isinstance(found, BGContrast):
            setattr(transform, name, BGContrast(scale(found.contrast_range, strength)))
        else:
            setattr(transform, name, scale(found, strength))


def weaken(pipeline: ComposeTransforms, strength: float) -> ComposeTransforms:
    """Return nnU-Net's training transforms at a strength from 0 (none) to 1 (unchanged).

    Magnitudes shrink; probabilities stay. Rotation, noise and blur shrink in proportion, the
    factors of brightness, contrast and resolution towards 1, scaling and gamma as powers. At 0,
    transforms without effect are left out, and the spatial transform only crops. Mirroring and
    transforms that are not augmentation stay. The pipeline is changed in place.
    """
    if strength == 1:
        return pipeline
    kept: list[BasicTransform] = []
    for transform in pipeline.transforms:
        inner = transform.transform if isinstance(transform, RandomTransform) else transform
        if strength > 0:
            _weaken(inner, strength)
        elif isinstance(inner, SpatialTransform):
            inner.p_rotation = inner.p_scaling = 0
        elif _ranges(inner):
            continue
        kept.append(transform)
    pipeline.transforms = kept
    return pipeline
