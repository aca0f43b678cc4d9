"""Augmentation of whole batches, compared with nnU-Net's own, which takes single samples."""

import multiprocessing
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd
from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.intensity.contrast import ContrastTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import (
    SpatialTransform,
    _convert_my_grid_to_grid_sample_grid,
    _create_centered_identity_grid2,
    create_affine_matrix_2d,
    create_affine_matrix_3d,
)
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from scipy.stats import binomtest, ks_2samp

from workflow_scripts.trainers.curricula import patch_curriculum
from workflow_scripts.trainers.curricula.batches.augmentation_strength import weaken
from workflow_scripts.trainers.curricula.batches.batch import Batch, Draws
from workflow_scripts.trainers.curricula.batches.batched_augmentation import (
    BatchedAugmentation,
    _batched,
)
from workflow_scripts.trainers.curricula.batches.label_votes import resample_labels
from workflow_scripts.trainers.curricula.batches.loading import (
    DeviceBatches,
    copy_crop,
    read_whole,
)
from workflow_scripts.trainers.curricula.batches.spatial_transform import (
    affine_matrices,
    resample_images,
    sampling_grid,
)
from workflow_scripts.trainers.curricula.batches.thin_blur import blur_thin
from workflow_scripts.trainers.curricula.patch_curriculum import initial_patch_size

CONSTANT, BATCHED = "nnUNetTrainerConstantPatch", "nnUNetTrainerBatchedAugmentation"
EFFICIENCY = "nnUNetTrainerProgressiveEfficiencyPatch"
SMALL = (np.deg2rad(-30), np.deg2rad(30))
ANY = (-np.pi, np.pi)
SAMPLES = 2500
# No p-value of some 100 comparisons with fixed seeds may be below this.
UNLIKELY = 1e-4


def pipeline(patch=(8, 8, 8), dummy_2d=False, mirror=(0, 1, 2), masked=False, **options):
    """Return nnU-Net's training transforms, and the size of their input."""
    rotation = ANY if dummy_2d else SMALL
    options = {"deep_supervision_scales": None, "use_mask_for_norm": [masked]} | options
    transforms = nnUNetTrainer.get_training_transforms(
        patch, rotation, mirror_axes=mirror, do_dummy_2d_data_aug=dummy_2d, **options
    )
    initial = initial_patch_size(patch, rotation, dummy_2d)
    return blur_thin(transforms, patch), tuple(map(int, initial))


def blocks(samples, size, labels, edge=4, seed=1):
    """Return labels (samples, 1, *size) in blocks of `edge` voxels; `labels` is (least, most)."""
    rng = np.random.default_rng(seed)
    shape = [-(-n // edge) for n in size]
    drawn = rng.integers(labels[0], labels[1] + 1, (samples, 1, *shape))
    whole = np.kron(drawn, np.ones((edge,) * len(size), int))
    inside = (slice(None), slice(None), *(slice(n) for n in size))
    return torch.from_numpy(np.ascontiguousarray(whole[inside], np.int16))


def augment(augmentation, images, labels, patch, seed=3):
    """Augment images and labels of the initial patch as the loader does."""
    draws = Draws.of((seed,))
    placement = augmentation.place(len(images), draws)
    centre = tuple(
        slice(n // 2 - k // 2, n // 2 - k // 2 + k)
        for n, k in zip(images.shape[2:], patch, strict=True)
    )
    inside = (slice(None), slice(None), *centre)
    moved = placement.moved
    return augmentation.augment(
        images[inside].clone(),
        labels[inside].clone(),
        images[moved].clone(),
        labels[moved].clone(),
        placement,
        draws,
    )


def one_by_one(transforms, images, labels, seed=3):
    """Augment each sample with nnU-Net's own pipeline."""
    np.random.seed(seed)
    torch.manual_seed(seed)
    found = [
        transforms(image=image.clone(), segmentation=label.clone())
        for image, label in zip(images, labels, strict=True)
    ]
    return [torch.stack([one[key] for one in found]) for key in ("image", "segmentation")]


# --- places and labels


@pytest.mark.parametrize("axes", [2, 3])
def test_affine_matrices_are_nnunet_s(axes):
    rng = np.random.default_rng(0)
    angles, scales = rng.uniform(-3, 3, (20, axes)), rng.uniform(0.7, 1.4, (20, axes))
    found = affine_matrices(angles, scales)
    for one, angle, scale in zip(found, angles, scales, strict=True):
        expected = (
            create_affine_matrix_3d(angle, scale)
            if axes == 3
            else create_affine_matrix_2d(angle[-1], scale)
        )
        np.testing.assert_allclose(one, expected, atol=1e-12)
    assert affine_matrices(np.empty((0, axes)), np.empty((0, axes))).shape == (0, axes, axes)


@pytest.mark.parametrize(
    ("patch", "labels"),
    [
        *[((8, 8, 8), (-1, 1)), ((16, 8, 12), (0, 1)), ((12, 16, 8), (-1, 5))],
        *[((16, 16), (-1, 3)), ((28, 32, 28), (0, 2))],
    ],
)
def test_rotated_and_scaled_samples_are_nnunet_s_voxel_by_voxel(patch, labels):
    axes = len(patch)
    initial = [2 * n for n in patch]
    rng = np.random.default_rng(2)
    affines = affine_matrices(rng.uniform(-3, 3, (60, axes)), rng.uniform(0.7, 1.4, (60, axes)))
    images = torch.randn(60, 2, *initial, generator=torch.Generator().manual_seed(1))
    segmentation = blocks(60, initial, labels)
    segmentation[:5] = 1  # one label
    segmentation[5:9].clamp_(0, 1)
    grid = sampling_grid(affines, patch, initial)
    moved = resample_images(images, grid)
    voted = resample_labels(segmentation, grid, -1)
    stock = SpatialTransform(
        patch, 0, random_crop=False, border_mode_seg="constant", padding_value_seg=-1
    )
    base = _create_centered_identity_grid2(patch).float()
    for number in range(60):
        turned = torch.matmul(base, torch.from_numpy(affines[number].T).float())
        params = {"grid": _convert_my_grid_to_grid_sample_grid(turned, initial)}
        expected = stock._apply_to_image(images[number], **params)
        torch.testing.assert_close(moved[number], expected, atol=1e-4, rtol=0)
        assert torch.equal(
            voted[number], stock._apply_to_segmentation(segmentation[number], **params)
        )


@pytest.mark.parametrize("dummy_2d", [False, True])
def test_targets_move_with_images(dummy_2d):
    """If an image equals its labels, each voxel's label is its value, rounded."""
    patch = (6, 16, 12)
    transforms, initial = pipeline(patch, dummy_2d)
    spatial = [t for t in transforms.transforms if not isinstance(t, RandomTransform)]
    labels = blocks(400, initial, (0, 1))
    augmentation = BatchedAugmentation(ComposeTransforms(spatial))
    whole = torch.cat([labels.float(), torch.ones(labels.shape)], 1)
    images, targets = augment(augmentation, whole, labels, patch)
    assert images.shape == (400, 2, *patch)
    assert targets.shape == (400, 1, *patch)
    values, inside = images[:, :1], images[:, 1:]
    clear = ((values - 0.5).abs() > 1e-3) & (inside > 0.9999)
    assert clear.float().mean() > 0.9
    assert torch.equal((values > 0.5)[clear], (targets > 0)[clear])
    assert ((values > 0.01) & (values < 0.99)).any(), "some samples are interpolated"


# --- intensities, with fixed parameters


FIXED = {
    "brightness": MultiplicativeBrightnessTransform((1.2, 1.2), False),
    "contrast": ContrastTransform((1.25, 1.25), True, False),
    "contrast without clipping": ContrastTransform((0.8, 0.8), False, False),
    "gamma": GammaTransform((1.5, 1.5), 0, False, 1, 1),
    "inverted gamma": GammaTransform((0.7, 0.7), 1, False, 1, 1),
    "gamma alone": GammaTransform((1.5, 1.5), 0, False, 1, 0),
    "blur of 3": GaussianBlurTransform((0.55, 0.55), False, False, 1),
    "blur of 7": GaussianBlurTransform((1.0, 1.0), False, True, 1),
    "low resolution": SimulateLowResolutionTransform((0.6, 0.6), False, True, None, None, 1),
    "low resolution in slices": SimulateLowResolutionTransform(
        (0.6, 0.6), False, True, (0,), None, 1
    ),
}


@pytest.mark.parametrize("name", FIXED)
def test_an_intensity_transform_changes_images_as_nnunet_s(name):
    images = torch.randn(7, 3, 8, 11, 9, generator=torch.Generator().manual_seed(4)) * 2 + 1
    images[2, 1] = 0.5  # a constant channel, as in an empty patch
    batch = Batch(images.clone(), torch.zeros(7, 1, 8, 11, 9, dtype=torch.int16))
    _batched(FIXED[name])(batch, Draws.of((1,)))
    expected = torch.stack([FIXED[name](image=image.clone())["image"] for image in images])
    assert not torch.equal(batch.images, images)
    torch.testing.assert_close(batch.images, expected, atol=1e-5, rtol=1e-5)


def test_noise_has_the_drawn_deviation():
    noise = GaussianNoiseTransform((0.1, 0.1), 1, True)
    batch = Batch(torch.zeros(40, 2, 16, 16, 16), torch.zeros(40, 1, 16, 16, 16))
    _batched(noise)(batch, Draws.of((1,)))
    deviations = batch.images.flatten(2).std(2)
    assert ((deviations - 0.1).abs() < 0.01).all()
    assert len(torch.unique(batch.images[:, :, 0, 0, 0])) == 80, "each channel has its own noise"


def test_channels_and_axes_are_changed_together_where_nnunet_does():
    images = torch.ones(50, 3, 4, 4, 4)
    batch = Batch(images, torch.zeros(50, 1, 4, 4, 4))
    _batched(MultiplicativeBrightnessTransform((0.5, 2), True))(batch, Draws.of((1,)))
    factors = batch.images[:, :, 0, 0, 0]
    assert torch.equal(factors[:, 0], factors[:, 2])
    assert len(torch.unique(factors[:, 0])) == 50


# --- frequency and strength: two sets of 2,500 samples, nnU-Net's and ours


def changed(before, after):
    return (before != after).flatten(2).any(2)


RANDOM = {
    "noise": (3, 0.1, 1.0),
    "blur": (2, 0.2, 0.5),
    "brightness": (1, 0.15, 1.0),
    "contrast": (1, 0.15, 1.0),
    "low resolution": (2, 0.25, 0.5),
    "inverted gamma": (1, 0.1, 1.0),
    "gamma": (1, 0.3, 1.0),
}


@pytest.mark.parametrize(("number", "name"), [*enumerate(RANDOM)])
def test_an_intensity_transform_draws_as_nnunet_s(number, name):
    channels, probability, per_channel = RANDOM[name]
    transforms, _ = pipeline()
    transform = [t for t in transforms.transforms if isinstance(t, RandomTransform)][number]
    images = torch.randn(1, channels, 8, 8, 8, generator=torch.Generator().manual_seed(4))
    images = images.repeat(SAMPLES, 1, 1, 1, 1) + 1
    labels = torch.zeros(SAMPLES, 1, 8, 8, 8, dtype=torch.int16)
    batch = Batch(images.clone(), labels)
    _batched(transform)(batch, Draws.of((5,)))
    stock, _ = one_by_one(transform, images, labels)
    found = changed(images, batch.images)
    samples = int(found.any(1).sum())
    share = probability * (1 - (1 - per_channel) ** channels)
    assert binomtest(samples, SAMPLES, share).pvalue > UNLIKELY
    assert binomtest(int(found.sum()), SAMPLES * channels, probability * per_channel).pvalue > (
        1e-12
    ), "a rough check: a sample's channels are not independent"
    for statistic in (
        lambda x: x.mean((2, 3, 4)),
        lambda x: x.std((2, 3, 4)),
        lambda x: x.amin((2, 3, 4)),
        lambda x: x.amax((2, 3, 4)),
        lambda x: (x[..., 1:] - x[..., :-1]).abs().mean((2, 3, 4)),
        lambda x: x[:, :, 3, 5, 2],
    ):
        ours = statistic(batch.images)[found].numpy()
        theirs = statistic(stock)[changed(images, stock)].numpy()
        assert ks_2samp(ours, theirs).pvalue > UNLIKELY


def test_mirroring_flips_each_axis_half_of_the_time():
    images = torch.arange(64.0).view(1, 1, 4, 4, 4).repeat(SAMPLES, 1, 1, 1, 1)
    batch = Batch(images.clone(), images.clone())
    _batched(MirrorTransform((0, 2)))(batch, Draws.of((1,)))
    assert torch.equal(batch.images, batch.target)
    corners, counts = torch.unique(batch.images[:, 0, 0, 0, 0], return_counts=True)
    assert corners.tolist() == [0, 3, 48, 51]
    assert all(binomtest(int(count), SAMPLES, 0.25).pvalue > UNLIKELY for count in counts)


@pytest.mark.parametrize("dummy_2d", [False, True])
def test_the_whole_pipeline_is_distributed_as_nnunet_s(dummy_2d):
    patch = (4, 12, 12) if dummy_2d else (8, 8, 8)
    transforms, initial = pipeline(patch, dummy_2d, masked=True)
    labels = blocks(SAMPLES, initial, (-1, 2))
    noise = torch.randn(labels.shape, generator=torch.Generator().manual_seed(2))
    images = labels.float() + noise / 2
    images[labels < 0] = 0
    ours = augment(BatchedAugmentation(transforms), images, labels, patch)
    theirs = one_by_one(transforms, images, labels)
    assert ours[0].shape == theirs[0].shape
    assert ours[1].dtype == theirs[1].dtype
    assert int(ours[1].min()) == 0
    for one, other in ((ours[0], theirs[0]), (ours[1].float(), theirs[1].float())):
        for statistic in (
            lambda x: x.mean((1, 2, 3, 4)),
            lambda x: x.std((1, 2, 3, 4)),
            lambda x: x.amin((1, 2, 3, 4)),
            lambda x: x.amax((1, 2, 3, 4)),
            lambda x: (x[..., 1:] - x[..., :-1]).abs().mean((1, 2, 3, 4)),
            lambda x: (x[..., 1:, :, :] - x[..., :-1, :, :]).abs().mean((1, 2, 3, 4)),
            lambda x: x[:, 0, 0, 0, 0],
            lambda x: x[:, 0, 2, 4, 4],
        ):
            assert ks_2samp(statistic(one), statistic(other)).pvalue > UNLIKELY


@pytest.mark.parametrize("dummy_2d", [False, True])
def test_places_are_drawn_as_nnunet_draws_them(dummy_2d):
    transforms, initial = pipeline((8, 8, 8), dummy_2d)
    placement = BatchedAugmentation(transforms).place(SAMPLES, Draws.of((7,)))
    axes = 2 if dummy_2d else 3
    spatial = next(t for t in transforms.transforms if isinstance(t, SpatialTransform))
    np.random.seed(3)
    image = torch.zeros(1, *initial[-axes:])
    drawn = [spatial.get_parameters(image=image)["affine"] for _ in range(SAMPLES)]
    theirs = np.array([matrix for matrix in drawn if matrix is not None])
    assert binomtest(len(placement.moved), SAMPLES, 0.36).pvalue > UNLIKELY
    assert (np.diff(placement.moved) > 0).all()
    for row in range(axes):
        for column in range(axes):
            found = placement.affines[:, row, column], theirs[:, row, column]
            assert ks_2samp(*found).pvalue > UNLIKELY
    size = [np.abs(np.linalg.det(found)).round(9) for found in (placement.affines, theirs)]
    assert ks_2samp(*size).pvalue > UNLIKELY


# --- strength, options and targets


def test_at_strength_0_a_batch_is_only_cropped():
    patch = (8, 12, 8)
    transforms, initial = pipeline(patch, mirror=None)
    labels = blocks(20, initial, (0, 3))
    images = torch.randn(20, 1, *initial)
    cropped, targets = augment(BatchedAugmentation(weaken(transforms, 0)), images, labels, patch)
    expected = one_by_one(transforms, images, labels)
    assert torch.equal(cropped, expected[0])
    assert torch.equal(targets, expected[1])


def test_weaker_augmentation_changes_less():
    images, labels = torch.randn(400, 1, 16, 16, 16), torch.zeros(400, 1, 16, 16, 16).short()
    distances = []
    for strength in (0.0, 0.5, 1.0):
        transforms, _ = pipeline(mirror=None)
        batch = augment(BatchedAugmentation(weaken(transforms, strength)), images, labels, (8,) * 3)
        distances.append(float((batch[0] - images[:, :, 4:12, 4:12, 4:12]).abs().mean()))
    assert distances[0] == 0
    assert distances[1] < 0.8 * distances[2]


def test_masks_regions_ignore_label_and_deep_supervision_are_nnunet_s():
    """Without randomness, every later transform has the same effect on a batch as on a sample."""
    patch = (8, 8, 8)
    transforms, initial = pipeline(
        patch,
        mirror=None,
        masked=True,
        deep_supervision_scales=[[1, 1, 1], [0.5, 0.5, 0.5]],
        regions=[(1, 2), (2,)],
        ignore_label=3,
    )
    transforms = weaken(transforms, 0)
    labels = blocks(12, initial, (-1, 3), edge=2)
    images = torch.randn(12, 1, *initial)
    found, targets = augment(BatchedAugmentation(transforms), images, labels, patch)
    for number in range(12):
        expected = transforms(image=images[number].clone(), segmentation=labels[number].clone())
        assert torch.equal(found[number], expected["image"])
        assert [one.dtype for one in targets] == [one.dtype for one in expected["segmentation"]]
        for one, other in zip(targets, expected["segmentation"], strict=True):
            assert torch.equal(one[number], other)


@pytest.mark.parametrize("scales", [None, [[1, 1, 1], [0.5, 0.5, 0.5]]])
def test_large_batches_are_augmented_in_parts(monkeypatch, scales):
    """Each sample keeps its own crop and its own place; the last part is smaller."""
    patch = (8, 8, 8)
    transforms, initial = pipeline(patch, mirror=None, deep_supervision_scales=scales)
    spatial = [t for t in transforms.transforms if not isinstance(t, RandomTransform)]
    augmentation = BatchedAugmentation(ComposeTransforms(spatial))
    labels = blocks(50, initial, (0, 4), edge=2)
    whole = augment(augmentation, labels.float(), labels, patch)
    monkeypatch.setattr(
        "workflow_scripts.trainers.curricula.batches.batched_augmentation.CHUNK", 7 * 8**3
    )
    parts = augment(augmentation, labels.float(), labels, patch)
    assert torch.equal(whole[0], parts[0])
    for one, other in zip(
        *(found[1] if scales else [found[1]] for found in (whole, parts)), strict=True
    ):
        assert torch.equal(one, other)


def test_what_has_no_batched_form_is_named():
    transforms, _ = pipeline(is_cascaded=True, foreground_labels=[1, 2])
    with pytest.raises(NotImplementedError, match="MoveSegAsOneHot"):
        BatchedAugmentation(transforms)
    transforms, _ = pipeline()
    transforms.transforms[0].p_elastic_deform = 0.2
    with pytest.raises(NotImplementedError, match=r"p_elastic_deform = 0\.2"):
        BatchedAugmentation(transforms)


# --- the loader


def test_crops_are_nnunet_s_also_beyond_the_borders():
    rng = np.random.default_rng(1)
    data = rng.normal(size=(2, 9, 12, 7)).astype(np.float32)
    seg = rng.integers(0, 4, (1, 9, 12, 7)).astype(np.int8)
    for _ in range(300):
        lower = rng.integers(-6, 6, 3)
        size = rng.integers(3, 16, 3)
        if (lower + size <= 0).any():
            continue  # nnU-Net draws no such crop
        image = np.zeros((2, *size), np.float32)
        label = np.full((1, *size), -1, np.int16)
        copy_crop(data, seg, lower, image, label)
        box = np.stack([lower, lower + size], 1).tolist()
        np.testing.assert_array_equal(image, crop_and_pad_nd(data, box, 0))
        np.testing.assert_array_equal(label, crop_and_pad_nd(seg, box, -1))


@pytest.mark.parametrize(
    ("crops", "whole"),
    [
        ([(8, 8, 8)], False),  # 2 × 2 × 2 blocks of 64
        ([(8, 8, 8)] * 7, False),
        ([(8, 8, 8)] * 9, True),
        ([(100, 100, 100)] * 2, False),  # 3 × 3 × 3 blocks
        ([(100, 100, 100)] * 3, True),
    ],
)
def test_a_volume_is_read_once_where_its_crops_touch_more_than_all_of_it(crops, whole):
    shape, blocks = (1, 256, 256, 256), (1, 64, 64, 64)
    assert read_whole(shape, blocks, crops) == whole
    assert not read_whole(shape, None, crops), "not compressed"
    assert not read_whole((20, *shape[1:]), blocks, crops * 10), "too large"


def test_only_patches_of_other_sizes_are_augmented_together(tiny):
    trainer = tiny.trainer(EFFICIENCY, epochs=6)
    plans, validation = trainer._loading_plans()
    assert [plan.batched is not None for plan in plans] == [True] * 5 + [False]
    assert validation.batched is None
    trainer = tiny.trainer(EFFICIENCY, epochs=6, batched_augmentation=False)
    assert {plan.batched for plan in trainer._loading_plans()[0]} == {None}


def test_batches_hold_the_drawn_cases_and_forced_foreground(tiny):
    trainer = tiny.trainer(EFFICIENCY, epochs=6, iterations=20, mirror_axes="none")
    trainer.get_training_transforms = lambda *args, **options: weaken(
        nnUNetTrainer.get_training_transforms(*args, **options), 0
    )
    loader = trainer.get_dataloaders()[0].data_loader
    dataset = trainer.get_tr_and_val_datasets()[0]
    for _ in range(100):
        batch = next(loader)
        plan = loader._plan
        assert plan.batched is not None
        for sample, key in enumerate(batch["keys"]):
            target = batch["target"][0][sample]
            assert (target > 0).any() or not plan.forced[sample]
            whole = dataset.load_case(key)[0][:]
            crop = batch["data"][sample].numpy()
            inside = crop[crop != 0]
            assert np.isin(inside, whole).all(), "a crop of its case"


def test_a_batch_is_a_function_of_its_seed_alone(tiny):
    def batches(first_batch=0, **attributes):
        trainer = tiny.trainer(EFFICIENCY, epochs=6, iterations=1, **attributes)
        loader = trainer.get_dataloaders()[0].data_loader
        loader._first_batch = first_batch
        return [next(loader)["data"] for _ in range(5 - first_batch)]

    first, again, other = batches(), batches(), batches(batch_seed=7)
    assert all(map(torch.equal, first, again))
    assert all(map(torch.equal, first[3:], batches(first_batch=3)))
    assert not any(map(torch.equal, first, other))


def test_batches_of_the_planned_patch_are_nnunet_s_unless_asked_for(tiny, monkeypatch):
    constant, batched = (tiny.trainer(name) for name in (CONSTANT, BATCHED))
    (ours,), validation = batched._loading_plans()
    assert ours.stage.patch_size == tuple(batched.configuration_manager.patch_size)
    assert ours.batched is not None
    assert validation.batched is None
    assert constant._loading_plans()[0][0].batched is None
    growing = tiny.trainer(EFFICIENCY, epochs=6, batched_planned_patch=True)
    assert all(plan.batched for plan in growing._loading_plans()[0])
    monkeypatch.setattr(patch_curriculum, "LARGEST_BATCHED_PLAN", 16 * 8 * 8 - 1)
    assert batched._loading_plans()[0][0].batched is None, "larger patches are faster one by one"


def test_batches_of_the_planned_patch_are_distributed_as_nnunet_s(tiny):
    """From the loader of each trainer: cropped by the same draws, augmented in two ways."""
    found = []
    for name in (CONSTANT, BATCHED):
        loader = tiny.trainer(name).get_dataloaders()[0].data_loader
        batches = [next(loader) for _ in range(150)]
        targets = [
            b["target"][0] if isinstance(b["target"], list) else b["target"] for b in batches
        ]
        found.append((torch.cat([b["data"] for b in batches]), torch.cat(targets).float()))
    for one, other in zip(*found, strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        for statistic in (
            lambda x: x.mean((1, 2, 3, 4)),
            lambda x: x.std((1, 2, 3, 4)),
            lambda x: x.amin((1, 2, 3, 4)),
            lambda x: (x[..., 1:] - x[..., :-1]).abs().mean((1, 2, 3, 4)),
            lambda x: x[:, 0, 0, 0, 0],
        ):
            assert ks_2samp(statistic(one), statistic(other)).pvalue > UNLIKELY


@pytest.mark.parametrize("name", [EFFICIENCY, BATCHED])
@pytest.mark.parametrize("workers", ["0", "2"])
def test_on_the_training_s_device_the_same_batches_are_made(tiny, monkeypatch, workers, name):
    """The device is the CPU here, so the bits are the same; on a GPU, the noise differs."""
    monkeypatch.setenv("nnUNet_n_proc_DA", workers)
    found = []
    for on_device in (False, True):
        trainer = tiny.trainer(name, epochs=6, iterations=2, augment_on_device=on_device)
        training, validation = trainer.get_dataloaders()
        assert isinstance(training, DeviceBatches) == on_device
        found.append([next(training) for _ in range(12)])
        for loader in (training, validation):
            if hasattr(loader, "_finish"):
                loader._finish()
    for one, other in zip(*found, strict=True):
        assert list(one["keys"]) == list(other["keys"])
        assert torch.equal(one["data"], other["data"])
        assert all(map(torch.equal, one["target"], other["target"]))


def test_a_training_that_augments_on_its_device_leaves_no_process(tiny, monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    before = set(multiprocessing.active_children())
    trainer = tiny.trainer(EFFICIENCY, epochs=6, iterations=1, augment_on_device=True)
    trainer.run_training()
    assert set(multiprocessing.active_children()) <= before


def test_every_draw_comes_from_the_batch_s_own_generators(tiny, monkeypatch):
    """Other random draws in the same process may not change a batch."""
    transforms, initial = pipeline()
    augmentation = BatchedAugmentation(transforms)
    images, labels = torch.randn(50, 1, *initial), torch.zeros(50, 1, *initial).short()
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)
        found.append(augment(augmentation, images, labels, (8, 8, 8))[0])
    assert torch.equal(*found)


def test_thin_patches_can_be_blurred():
    batch = Batch(torch.randn(30, 1, 2, 8, 8), SimpleNamespace())
    _batched(GaussianBlurTransform((1.0, 1.0), False, False, 1))(batch, Draws.of((1,)))
    assert torch.isfinite(batch.images).all()
