"""The rescaled U-Net, its hypernetwork, InstanceNorm of one pixel and the low-pass in 2D."""

import numpy as np
import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import nn

from workflow_scripts.records.flop_counter import FlopTable
from workflow_scripts.trainers.curricula.batches.lowpass import (
    LOWPASSES,
    reduce_image,
    reduce_labels,
)
from workflow_scripts.trainers.curricula.networks.hypernetwork import ScaleSpaceNetwork
from workflow_scripts.trainers.curricula.networks.instance_norm import allow_one_voxel
from workflow_scripts.trainers.curricula.networks.rescaled_unet import (
    RescaledUNet,
    resize,
    stage_sizes,
)
from workflow_scripts.trainers.curricula.scale_space import head_weights, resize_target
from workflow_scripts.trainers.curricula.schedules.scale_factors import ScaleSpaceSettings

STRIDES = [[1, 1], [2, 2], [1, 2]]
COMMON = {
    "n_stages": 3,
    "features_per_stage": [4, 6, 8],
    "conv_op": nn.Conv2d,
    "kernel_sizes": [[3, 3]] * 3,
    "conv_bias": True,
    "norm_op": nn.InstanceNorm2d,
    "norm_op_kwargs": {"eps": 1e-5, "affine": True},
    "dropout_op": None,
    "dropout_op_kwargs": None,
    "nonlin": nn.LeakyReLU,
    "nonlin_kwargs": {"inplace": True},
}
PLAIN = {"n_conv_per_stage": [2, 2, 2], "n_conv_per_stage_decoder": [2, 2]}
RESIDUAL = {"n_blocks_per_stage": [1, 2, 2], "n_conv_per_stage_decoder": [1, 1]}
KINDS = pytest.mark.parametrize("kind", [PLAIN, RESIDUAL], ids=["plain", "residual"])


def network(scale=0.5, kind=PLAIN, deep=True):
    torch.manual_seed(0)
    return RescaledUNet(3, 2, STRIDES, scale, deep, **COMMON, **kind)


# --- the rescaled network


def test_sizes_by_hand():
    strides = [[1, 1]] + [[2, 2]] * 3
    assert stage_sizes((512, 384), strides, 0.5) == [(512, 384), (256, 192), (128, 96), (64, 48)]
    assert stage_sizes((512, 384), strides, 0.3) == [(512, 384), (154, 116), (47, 35), (15, 11)]
    assert stage_sizes((10, 40), STRIDES, 0.25) == [(10, 40), (3, 10), (3, 3)]


@KINDS
@pytest.mark.parametrize("scale", [0.25, 0.5])
def test_any_size_is_taken_and_returned(kind, scale):
    net = network(scale, kind)
    for size in ((17, 30), (8, 24)):
        outputs = net(torch.randn(2, 3, *size))
        heads = [(2, 2, *head) for head in net.head_sizes(size)]
        assert [tuple(output.shape) for output in outputs] == heads
        assert heads[0] == (2, 2, *size)


def test_resizing_is_bilinear():
    x = torch.randn(2, 3, 8, 6)
    assert torch.allclose(resize(x, (4, 3)), nn.functional.avg_pool2d(x, 2), atol=1e-6)
    expected = nn.functional.interpolate(x, (11, 5), mode="bilinear", align_corners=False)
    assert torch.equal(resize(x, (11, 5)), expected)


@KINDS
def test_it_is_the_stock_network_but_for_the_rescaling(kind):
    stock_class = ResidualEncoderUNet if kind is RESIDUAL else PlainConvUNet
    stock = stock_class(3, strides=STRIDES, num_classes=2, deep_supervision=True, **COMMON, **kind)
    stock_up = [up.weight.numel() for up in stock.decoder.transpconvs]
    ours = network(kind=kind)
    # Kernels of 1×2 (from stage 2) and 2×2 pixels become kernels of one pixel.
    saved = stock_up[0] // 2 + stock_up[1] * 3 // 4
    count = [sum(p.numel() for p in net.parameters()) for net in (stock, ours)]
    assert count[0] - count[1] == saved
    assert [tuple(one.shape) for one in stock(torch.randn(1, 3, 16, 24))] == [
        tuple(one.shape) for one in ours(torch.randn(1, 3, 16, 24))
    ]


@pytest.mark.parametrize("rank", [0, 3])
def test_the_hypernetwork_is_what_it_bakes(rank):
    hyper = ScaleSpaceNetwork(network(), ScaleSpaceSettings(rank=rank))
    x = torch.randn(2, 3, 16, 24)
    for scale in (0.3, 0.5):
        hyper.scale_factor = scale
        baked = network(scale)
        baked.load_state_dict(hyper.baked_state(scale))
        for one, other in zip(hyper(x), baked(x), strict=True):
            assert torch.allclose(one, other, atol=1e-5)


def test_every_parameter_of_the_hypernetwork_is_trained():
    hyper = ScaleSpaceNetwork(network(), ScaleSpaceSettings(rank=3))
    hyper.scale_factor = 0.4
    sum(output.square().mean() for output in hyper(torch.randn(2, 3, 16, 24))).backward()
    untrained = [name for name, p in hyper.named_parameters() if not p.grad.abs().sum()]
    # The affine parameters' part of the modulation starts at 0, but has a gradient.
    assert untrained == []


def test_operations_of_a_smaller_scale_are_fewer():
    table = FlopTable(network(), 3)
    counts = [table.training_step(2, (64, 48), scale) for scale in (0.25, 0.35, 0.5)]
    assert counts == sorted(set(counts))


def test_targets_and_weights_of_the_heads():
    target = torch.arange(64, dtype=torch.int16).view(1, 1, 8, 8)
    assert torch.equal(resize_target(target, (4, 4)), target[..., 1::2, 1::2])
    assert head_weights([(32, 32), (8, 8), (2, 2)], 0.0) == pytest.approx((2 / 3, 1 / 3, 0))
    assert head_weights([(32, 32), (3, 8), (2, 2)], 0.0) == (1, 0, 0)


# --- one pixel


def test_one_pixel_is_normalised_to_the_bias_within_the_block():
    norm = nn.InstanceNorm2d(3, affine=True)
    nn.init.constant_(norm.bias, 0.7)
    x = torch.randn(4, 3, 1, 1, requires_grad=True)
    with allow_one_voxel():
        found = norm(x)
    assert torch.allclose(found, torch.full_like(found, 0.7), atol=1e-3)
    found.sum().backward()
    assert x.grad.abs().max() < 1e-3
    with pytest.raises(ValueError, match="more than 1 spatial element"):
        norm(x)


# --- the low-pass


@pytest.mark.parametrize("method", LOWPASSES)
def test_constants_keep_their_value(method):
    data = torch.tensor([[[[2.0]], [[-3.0]]]]).expand(1, 2, 40, 56)
    found = reduce_image(data, (16, 24), method)
    assert torch.allclose(found, data[..., :16, :24], atol=1e-5)


def test_the_spectrum_of_the_slice_is_cropped():
    """The central frequencies of the 2D Fourier transform, without a shift of half a pixel."""
    data = np.random.default_rng(0).normal(size=(2, 3, 40, 56))
    spectrum = np.fft.fft2(data)
    kept = np.zeros((2, 3, 16, 24), complex)
    for y in range(-7, 8):
        for x in range(-11, 12):
            kept[..., y, x] = spectrum[..., y, x]
    expected = np.fft.ifft2(kept).real * (16 * 24) / (40 * 56)
    found = reduce_image(torch.from_numpy(data), (16, 24), half_voxel_shift=False)
    assert np.allclose(found.numpy(), expected, atol=1e-5)


def test_labels_take_the_nearest_pixel():
    label = torch.arange(80, dtype=torch.int16).view(1, 1, 8, 10)
    assert torch.equal(reduce_labels(label, (4, 5)), label[..., 1::2, 1::2])
