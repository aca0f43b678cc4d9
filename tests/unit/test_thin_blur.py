"""nnU-Net's blur on patches thinner than its kernel."""

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform, _build_kernel
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from scipy.ndimage import correlate1d

from workflow_scripts.trainers.curricula.batches.augmentation_strength import weaken
from workflow_scripts.trainers.curricula.batches.thin_blur import (
    ThinBlurTransform,
    blur_thin,
    margin,
)


def pipeline(patch_size):
    rotation = (-0.5, 0.5)
    return nnUNetTrainer.get_training_transforms(
        patch_size, rotation, [[1, 1, 1], [0.5, 0.5, 0.5]], (0, 1, 2), True
    )


def blurs(transforms):
    inner = [getattr(one, "transform", None) for one in transforms.transforms]
    return [one for one in inner if isinstance(one, GaussianBlurTransform)]


@pytest.mark.parametrize("sigma", [0.5, 0.8, 1.0])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 9])
def test_borders_are_reflected_as_often_as_the_kernel_needs(size, sigma):
    image = torch.rand(1, size, 6, 7, generator=torch.Generator().manual_seed(1))
    found = ThinBlurTransform((0.5, 1.0), benchmark=True)._benchmark_wrapper(image, sigma, 0)
    kernel = _build_kernel(sigma, truncate=6).numpy()
    wanted = correlate1d(image.numpy(), kernel, axis=1, mode="mirror")
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_the_margin_is_that_of_the_kernel():
    for sigma in np.linspace(0.1, 2, 50):
        assert margin(sigma) == len(_build_kernel(sigma, truncate=6)) // 2


def test_nnunet_s_own_blur_cannot_do_it():
    """If this fails, batchgeneratorsv2 can do it, and `ThinBlurTransform` is no longer needed."""
    image = torch.rand(1, 2, 8, 8)
    with pytest.raises(RuntimeError, match="Padding size should be less"):
        GaussianBlurTransform(1.0, benchmark=True)._benchmark_wrapper(image, 1.0, 0)


def test_thin_patches_alone_get_another_blur():
    assert [type(one) for one in blurs(blur_thin(pipeline((4, 8, 8)), (4, 8, 8)))] == [
        GaussianBlurTransform
    ]
    thin = blur_thin(pipeline((2, 8, 8)), (2, 8, 8))
    (blur,) = blurs(thin)
    assert type(blur) is ThinBlurTransform
    assert blur.p_per_channel == 0.5
    weaken(thin, 0.5)
    assert blur.blur_sigma == (0.25, 0.5)


def test_a_patch_of_two_slices_goes_through_all_of_nnunet_s_augmentation():
    torch.manual_seed(0)
    np.random.seed(0)
    size = (2, 16, 16)
    transforms = blur_thin(pipeline(size), size)
    for _ in range(60):
        made = transforms(image=torch.rand(2, *size), segmentation=torch.ones(1, *size).short())
        assert made["image"].shape == (2, *size)
        assert torch.isfinite(made["image"]).all()
