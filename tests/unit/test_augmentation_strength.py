"""The ramp of nnU-Net's augmentation: none at 0, nnU-Net's own at 1, magnitudes in between."""

import random

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.intensity.contrast import BGContrast
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from workflow_scripts.trainers.curricula.batches.augmentation_strength import MAGNITUDES, weaken

ROTATION = (-np.pi / 6, np.pi / 6)
PATCH = (8, 12, 8)
NEUTRAL = {"rotation": 0, "noise_variance": 0, "blur_sigma": 0}
NO_AUGMENTATION = {
    "Convert3DTo2DTransform", "Convert2DTo3DTransform", "MirrorTransform", "MaskImageTransform",
    "RemoveLabelTransform", "MoveSegAsOneHotToDataTransform", "ApplyRandomBinaryOperatorTransform",
    "RemoveRandomConnectedComponentFromOneHotEncodingTransform",
    "ConvertSegmentationToRegionsTransform", "DownsampleSegForDSTransform",
}  # fmt: skip
"""Not changed by the ramp: mirroring, as by its authors, and transforms that do not augment."""


def pipeline(mirror_axes=(0, 1, 2), dummy_2d=False, **options):
    scales = [[1, 1, 1], [0.5, 0.5, 0.5]]
    return nnUNetTrainer.get_training_transforms(
        PATCH, ROTATION, scales, mirror_axes, dummy_2d, **options
    )


def inner(transform):
    return transform.transform if isinstance(transform, RandomTransform) else transform


def ranges(transforms):
    """Return every magnitude of a pipeline: (kind, attribute) -> its ranges in order."""
    found = {}
    for transform in map(inner, transforms.transforms):
        for name in MAGNITUDES.get(type(transform), {}):
            value = getattr(transform, name)
            value = value.contrast_range if isinstance(value, BGContrast) else value
            found.setdefault((type(transform).__name__, name), []).append(tuple(value))
    return found


def draw(transforms, seed, image, label):
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    return transforms(image=image.clone(), segmentation=label.clone())


@pytest.fixture
def sample():
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, 14, 18, 14, generator=generator)
    return image, torch.randint(0, 3, (1, 14, 18, 14), generator=generator).short()


def test_the_pinned_pipeline_has_no_unknown_augmentation():
    """A new nnU-Net may augment in other ways, which would make this ramp incomplete."""
    for options in (
        {},
        {"dummy_2d": True},
        {"is_cascaded": True, "foreground_labels": (1, 2), "use_mask_for_norm": [True]},
        {"regions": [1, (1, 2)]},
    ):
        kinds = {type(inner(transform)) for transform in pipeline(**options).transforms}
        assert {kind.__name__ for kind in kinds - set(MAGNITUDES)} <= NO_AUGMENTATION
    assert set(MAGNITUDES) <= {type(inner(t)) for t in pipeline().transforms}


def test_full_strength_is_nnunet_s_own():
    assert repr(weaken(pipeline(), 1.0)) == repr(pipeline())


def test_magnitudes_by_hand_at_a_third():
    third = 1 / 3
    found = ranges(weaken(pipeline(), third))
    assert found[("SpatialTransform", "rotation")] == [pytest.approx((-np.pi / 18, np.pi / 18))]
    assert found[("SpatialTransform", "scaling")] == [pytest.approx((0.7**third, 1.4**third))]
    assert found[("GaussianNoiseTransform", "noise_variance")] == [pytest.approx((0, 0.1 / 3))]
    assert found[("GaussianBlurTransform", "blur_sigma")] == [pytest.approx((0.5 / 3, 1 / 3))]
    factors = pytest.approx((1 - 0.25 / 3, 1 + 0.25 / 3))
    assert found[("MultiplicativeBrightnessTransform", "multiplier_range")] == [factors]
    assert found[("ContrastTransform", "contrast_range")] == [factors]
    assert found[("SimulateLowResolutionTransform", "scale")] == [pytest.approx((1 - 0.5 / 3, 1))]
    gamma = pytest.approx((0.7**third, 1.5**third))
    assert found[("GammaTransform", "gamma")] == [gamma, gamma], "also of the inverted image"


def test_every_magnitude_grows_with_the_strength():
    neutral = {key: NEUTRAL.get(key[1], 1) for key in ranges(pipeline())}
    before = dict.fromkeys(neutral, 0.0)
    for strength in np.arange(1, 10) / 9:
        for key, values in ranges(weaken(pipeline(), strength)).items():
            reach = max(abs(end - neutral[key]) for ends in values for end in ends)
            assert reach > before[key], (key, strength)
            before[key] = reach
            assert all(low < high for low, high in values)


@pytest.mark.parametrize("strength", [1 / 9, 5 / 9, 8 / 9])
def test_probabilities_stay(strength):
    kept, stock = weaken(pipeline(), strength).transforms, pipeline().transforms
    assert [type(inner(t)) for t in kept] == [type(inner(t)) for t in stock]
    for one, other in zip(kept, stock, strict=True):
        assert getattr(one, "apply_probability", None) == getattr(other, "apply_probability", None)
        names = ("p_rotation", "p_scaling", "p_per_channel", "p_retain_stats", "p_invert_image")
        for name in names:
            assert getattr(inner(one), name, None) == getattr(inner(other), name, None)


def test_nothing_but_mirroring_is_left_at_zero(sample):
    kinds = [type(t).__name__ for t in weaken(pipeline(), 0.0).transforms]
    assert kinds == [
        "SpatialTransform", "MirrorTransform", "RemoveLabelTransform",
        "DownsampleSegForDSTransform",
    ]  # fmt: skip
    image, label = sample
    plain = weaken(pipeline(mirror_axes=()), 0.0)
    for seed in range(20):
        found = draw(plain, seed, image, label)
        assert torch.equal(found["image"], image[:, 3:11, 3:15, 3:11]), "the same voxels"
        assert torch.equal(found["segmentation"][0], label[:, 3:11, 3:15, 3:11])
    mirrored = [draw(weaken(pipeline(), 0.0), seed, image, label)["image"] for seed in range(20)]
    centre = image[:, 3:11, 3:15, 3:11]
    assert any(not torch.equal(one, centre) for one in mirrored)
    assert all(torch.equal(one.flatten().sort()[0], centre.flatten().sort()[0]) for one in mirrored)


@pytest.mark.parametrize("strength", [1 / 9, 1.0])
def test_a_weak_augmentation_runs_and_changes_less(sample, strength):
    """Every transform is applied: the image is close to the crop, less so at full strength."""
    image, label = sample
    transforms = weaken(pipeline(mirror_axes=()), strength)
    for transform in transforms.transforms:
        if isinstance(transform, RandomTransform):
            transform.apply_probability = 1
        if isinstance(transform, SpatialTransform):
            transform.p_rotation = transform.p_scaling = 0
    centre = image[:, 3:11, 3:15, 3:11]
    moved = [
        float((draw(transforms, seed, image, label)["image"] - centre).abs().mean())
        for seed in range(5)
    ]
    assert np.isfinite(moved).all()
    assert (np.mean(moved) < 0.3) == (strength < 1)
