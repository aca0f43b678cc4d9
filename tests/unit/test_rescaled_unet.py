"""The rescaled U-Net and the hypernetwork that makes its weights."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from workflow_scripts.records.flop_counter import FlopTable
from workflow_scripts.trainers.curricula.networks.hypernetwork import ScaleSpaceNetwork
from workflow_scripts.trainers.curricula.networks.rescaled_unet import (
    RescaledUNet,
    resize,
    stage_sizes,
)
from workflow_scripts.trainers.curricula.scale_space import head_weights, resize_target
from workflow_scripts.trainers.curricula.schedules.scale_factors import ScaleSpaceSettings

CUBIC = [[1, 1, 1], [2, 2, 2], [2, 2, 2]]
FLAT = [[1, 1, 1], [1, 2, 2], [2, 2, 2]]
COMMON = {
    "conv_op": nn.Conv3d,
    "conv_bias": True,
    "norm_op": nn.InstanceNorm3d,
    "norm_op_kwargs": {"eps": 1e-5, "affine": True},
    "dropout_op": None,
    "dropout_op_kwargs": None,
    "nonlin": nn.LeakyReLU,
    "nonlin_kwargs": {"inplace": True},
}
PLAIN = {"n_conv_per_stage": [2, 2, 2], "n_conv_per_stage_decoder": [2, 2]}
RESIDUAL = {"n_blocks_per_stage": [1, 2, 2], "n_conv_per_stage_decoder": [1, 1]}


def network(scale=0.5, strides=CUBIC, kind=PLAIN, features=(4, 6, 8), deep=False, seed=0):
    torch.manual_seed(seed)
    return RescaledUNet(
        1,
        3,
        strides,
        scale,
        deep,
        n_stages=len(strides),
        features_per_stage=list(features),
        kernel_sizes=[[3, 3, 3]] * len(strides),
        **COMMON,
        **kind,
    )


def hyper(rank=3, seed=0, **options):
    torch.manual_seed(seed)
    settings = ScaleSpaceSettings(rank=rank, **options)
    return ScaleSpaceNetwork(network(seed=seed, deep=True), settings)


# --- sizes


def test_sizes_of_real_plans():
    """Computed by hand for 128 cubed with five poolings, and for a brain tumour plan."""
    cubic = [[1, 1, 1]] + [[2, 2, 2]] * 5
    expected = {
        0.5: (128, 64, 32, 16, 8, 4),
        0.4: (128, 52, 21, 9, 4, 2),
        0.3: (128, 39, 12, 4, 2, 2),
        0.25: (128, 32, 8, 2, 2, 2),
    }
    for scale, sizes in expected.items():
        assert stage_sizes((128,) * 3, cubic, scale) == [(n,) * 3 for n in sizes]
    strides = [[1, 1, 1]] + [[2, 2, 2]] * 4 + [[1, 2, 2]]
    assert stage_sizes((80, 192, 160), strides, 0.4) == [
        *((80, 192, 160), (32, 77, 64), (13, 31, 26), (6, 13, 11), (3, 6, 5), (3, 3, 2)),
    ]


strides_and_size = st.tuples(
    st.lists(st.lists(st.sampled_from([1, 2]), min_size=3, max_size=3), max_size=5),
    st.lists(st.integers(1, 300), min_size=3, max_size=3),
)


@given(strides_and_size, st.floats(0.05, 1), st.floats(0.05, 1))
def test_sizes_shrink_with_the_stages_and_grow_with_the_scale(case, one, other):
    strides, size = [[1, 1, 1], *case[0]], case[1]
    small, large = (stage_sizes(size, strides, scale) for scale in sorted((one, other)))
    assert small[0] == large[0] == tuple(size)
    for sizes in (small, large):
        for above, below, stride in zip(sizes[:-1], sizes[1:], strides[1:], strict=True):
            for a, b, step in zip(above, below, stride, strict=True):
                assert (b == a) if step == 1 else (min(a, 2) <= b <= a)
    for sizes in zip(small, large, strict=True):
        assert all(s <= n for s, n in zip(*sizes, strict=True))


@settings(max_examples=15)
@given(
    st.tuples(*[st.integers(4, 13)] * 3),
    st.floats(0.2, 0.7),
    st.sampled_from([CUBIC, FLAT]),
    st.sampled_from([PLAIN, RESIDUAL]),
)
def test_any_size_is_taken_and_returned(size, scale, strides, kind):
    net = network(scale, strides, kind, deep=True)
    outputs = net(torch.randn(1, 1, *size))
    assert [tuple(output.shape) for output in outputs] == [
        (1, 3, *head) for head in net.head_sizes(size)
    ]
    net.decoder.deep_supervision = False
    assert torch.equal(net(torch.ones(1, 1, *size)), net(torch.ones(1, 1, *size)))
    assert net(torch.ones(1, 1, *size)).shape == (1, 3, *size)


def test_at_one_half_resizing_is_average_pooling():
    x = torch.randn(2, 3, 8, 6, 4)
    pooled = nn.functional.avg_pool3d(x, 2)
    assert torch.allclose(resize(x, (4, 3, 2)), pooled, atol=1e-6)
    assert resize(x, (8, 6, 4)) is x


def test_projection_and_resizing_commute():
    """Therefore the decoder projects first, where there are fewer voxels."""
    torch.manual_seed(0)
    x, project = torch.randn(1, 5, 3, 4, 5), nn.Conv3d(5, 2, 1)
    assert torch.allclose(project(resize(x, (7, 9, 8))), resize(project(x), (7, 9, 8)), atol=1e-6)


def test_it_is_the_stock_network_but_for_the_rescaling():
    """As many parameters as stock, except for the transposed convolutions' kernels; no strides."""
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    arguments = {"n_stages": 3, "features_per_stage": [4, 6, 8], "kernel_sizes": [[3] * 3] * 3}
    stock = PlainConvUNet(1, strides=CUBIC, num_classes=3, **arguments, **COMMON, **PLAIN)
    ours = network()
    count = {name: sum(p.numel() for p in net.parameters()) for name, net in
             (("stock", stock), ("ours", ours))}  # fmt: skip
    assert count["stock"] - count["ours"] == 7 * (8 * 6 + 6 * 4)
    assert {m.stride for m in ours.modules() if isinstance(m, nn.Conv3d)} == {(1, 1, 1)}
    assert not any(isinstance(m, nn.ConvTranspose3d) for m in ours.modules())


# --- cost


def closed_form(net, size):
    """Return the multiply-adds of all convolutions from the stage sizes, without a pass."""
    sizes = [math.prod(n) for n in net.sizes(size)]

    def convolutions(module, voxels):
        return sum(m.weight.numel() * voxels for m in module.modules() if isinstance(m, nn.Conv3d))

    total = sum(convolutions(stage, n) for stage, n in zip(net.encoder.stages, sizes, strict=True))
    if hasattr(net.encoder, "stem"):
        total += convolutions(net.encoder.stem, sizes[0])
    decoder = net.decoder
    for project, stage, n, below in zip(
        decoder.transpconvs, decoder.stages, sizes[-2::-1], sizes[:0:-1], strict=True
    ):
        total += convolutions(project, below) + convolutions(stage, n)
    return total + convolutions(decoder.seg_layers[-1], sizes[0])


def hooked(net, size):
    """Return the multiply-adds of all convolutions, counted by hooks in a real pass."""
    counted = []

    def count(module, inputs, output):
        counted.append(module.weight.numel() * math.prod(output.shape[2:]) * output.shape[0])

    handles = [m.register_forward_hook(count) for m in net.modules() if isinstance(m, nn.Conv3d)]
    with torch.no_grad():
        net(torch.zeros(1, 1, *size))
    for handle in handles:
        handle.remove()
    return sum(counted)


@pytest.mark.parametrize("kind", [PLAIN, RESIDUAL], ids=["plain", "residual"])
@pytest.mark.parametrize("strides", [CUBIC, FLAT], ids=["cubic", "flat"])
@pytest.mark.parametrize("scale", [0.25, 0.37, 0.5])
def test_three_counts_of_the_cost_agree(kind, strides, scale):
    net, size = network(scale, strides, kind), (12, 17, 10)
    counts = {
        closed_form(net, size),
        hooked(net, size),
        FlopTable(net, 1).validation_step(1, size) // 2,
    }
    assert len(counts) == 1


def test_cost_grows_with_the_scale_until_sizes_are_floored():
    net = network()
    costs, sizes = [], []
    for percent in range(2, 51):
        net.scale_factor = percent / 100
        costs.append(closed_form(net, (40, 40, 40)))
        sizes.append(net.sizes((40, 40, 40)))
    for number in range(len(costs) - 1):
        grows = costs[number] < costs[number + 1]
        assert grows == (sizes[number] != sizes[number + 1])
    assert len(set(costs)) > 15, "a change of 0.02 to 0.03 changes 40 voxels by one"
    assert sizes[0] == sizes[3] == [(40,) * 3, (2,) * 3, (2,) * 3], "the floor"
    assert costs[0] > 0.4 * costs[-1], "stage 0 is not rescaled"


def test_the_flop_table_follows_the_scale_and_counts_the_weights_making():
    size, net = (8, 8, 8), hyper(rank=3)
    table = FlopTable(net, 1)
    plain = FlopTable(net.primary, 1)
    parameters = sum(p.numel() for p in net.primary.parameters())
    perceptron = 2 * 16 + 16 * 64 + 64 * 3
    for scale in (0.25, 0.5):
        made = table.validation_step(2, size, scale) - plain.validation_step(2, size, scale)
        assert made == 2 * (3 * parameters + perceptron)
    assert table.validation_step(1, size, 0.25) < table.validation_step(1, size, 0.5)


# --- hypernetwork


def test_number_of_parameters():
    net = hyper(rank=3)
    own = sum(p.numel() for p in net.primary.parameters())
    perceptron = (2 * 16 + 16) + (16 * 64 + 64) + (64 * 3 + 3)
    assert sum(p.numel() for p in net.parameters()) == 4 * own + perceptron


def test_rank_zero_has_the_same_weights_at_every_scale():
    net = hyper(rank=0)
    one, other = net.weights(0.25), net.weights(0.5)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert dict(net.named_parameters()).keys() == {f"primary.{name}" for name in one}


def test_the_same_seed_gives_every_rank_the_same_first_weights():
    plain, wide = hyper(rank=0), hyper(rank=5)
    for name, parameter in plain.primary.named_parameters():
        assert torch.equal(parameter, dict(wide.primary.named_parameters())[name])


def test_weights_follow_the_scale_and_modulation_begins_small():
    net = hyper(rank=8)
    base, low, high = dict(net.primary.named_parameters()), net.weights(0.25), net.weights(0.5)
    for name in base:
        if base[name].ndim > 1:
            assert not torch.equal(low[name], high[name]), name
            assert 0 < (low[name] - base[name]).norm() < 0.2 * base[name].norm()
        else:
            assert torch.equal(low[name], base[name]), "biases and norms begin unmodulated"


@pytest.mark.parametrize("encoding", ["linear", "circular"])
def test_coordinates_have_length_one_if_wanted(encoding):
    for seed in range(5):
        net = hyper(rank=4, seed=seed, scale_encoding=encoding)
        for scale in (0.25, 0.31, 0.5, 0.7):
            assert net.coordinates(scale).norm().item() == pytest.approx(1, abs=1e-4)
    plain = hyper(rank=4, unit_norm=False)
    assert plain.coordinates(0.3).norm().item() != pytest.approx(1, abs=1e-3)


def test_every_part_receives_gradients():
    net = hyper(rank=4)
    net.scale_factor = 0.4
    loss = sum(output.square().mean() for output in net(torch.randn(1, 1, 8, 8, 8)))
    loss.backward()
    assert (net.modulation.grad.norm(dim=1) > 0).all()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        # A norm follows each convolution of a block, so the convolutions' biases have no effect.
        if "conv" not in name or not name.endswith("bias"):
            assert parameter.grad.abs().max() > 0, name


def test_its_own_parameters_survive_a_pass():
    """A pass inserts weights for its duration; the trained parameters must stay in place."""
    net = hyper(rank=2)
    before = {name: id(parameter) for name, parameter in net.named_parameters()}
    for _ in range(2):
        sum(output.sum() for output in net(torch.randn(1, 1, 8, 8, 8))).backward()
    assert {name: id(parameter) for name, parameter in net.named_parameters()} == before
    copy.deepcopy(net)


@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("scale", [0.25, 0.33, 0.5, 0.7])
def test_baked_weights_compute_the_same(rank, scale):
    net = hyper(rank=rank)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    baked = network(scale, deep=True, seed=9)
    baked.load_state_dict(net.baked_state(scale))
    net.scale_factor = scale
    x = torch.randn(2, 1, 11, 9, 8)
    with torch.no_grad():
        ours, theirs = net(x), baked(x)
        with net.frozen(scale):
            still = net(x)
    for a, b, c in zip(ours, theirs, still, strict=True):
        assert torch.allclose(a, b, atol=1e-5)
        assert torch.allclose(a, c, atol=1e-5)


def test_frozen_weights_end_with_the_block():
    net = hyper(rank=2)
    net.scale_factor = 0.3
    with net.frozen(0.5):
        assert net.scale_factor == 0.5
    assert net.scale_factor == 0.3
    net(torch.zeros(1, 1, 8, 8, 8))[0].sum().backward()
    assert net.modulation.grad is not None


def test_the_combination_is_never_of_reduced_precision():
    net = hyper(rank=2)
    exact = net.weights(0.3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = net.weights(0.3)
    assert all(torch.equal(exact[name], mixed[name]) for name in exact)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"scale_encoding": "cubic"}, "known are linear, circular"),
        ({"rank": -1}, "negative"),
        ({"rank": 1}, "cannot follow"),
    ],
)
def test_options_that_cannot_be_are_named(options, said):
    with pytest.raises(ValueError, match=said):
        hyper(**{"rank": 2, **options})


# --- deep supervision


def test_at_one_half_targets_are_those_of_nnunet():
    from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import (
        DownsampleSegForDSTransform,
    )

    target = torch.randint(0, 3, (2, 1, 16, 24, 8), dtype=torch.int16)
    scales = [[1, 1, 1], [0.5, 0.5, 0.5], [0.25, 0.25, 0.25]]
    stock = [DownsampleSegForDSTransform(scales)._apply_to_segmentation(one) for one in target]
    sizes = stage_sizes((16, 24, 8), [[1, 1, 1], *[[2, 2, 2]] * 2], 0.5)
    for number, size in enumerate(sizes):
        ours = resize_target(target, size)
        assert ours.dtype == torch.int16
        assert torch.equal(ours, torch.stack([sample[number] for sample in stock]))


def test_weights_of_the_outputs():
    assert head_weights([(40,) * 3, (20,) * 3, (10,) * 3], 0.0) == pytest.approx((2 / 3, 1 / 3, 0))
    cubic = stage_sizes((128,) * 3, [[1] * 3] + [[2] * 3] * 5, 0.5)[:-1]
    stock = [1, 1 / 2, 1 / 4, 1 / 8, 0]
    assert head_weights(cubic, 0.0) == pytest.approx([w / 1.875 for w in stock])
    small = [(16,) * 3, (4,) * 3, (2,) * 3, (2,) * 3]
    assert head_weights(small, 0.0) == pytest.approx((2 / 3, 1 / 3, 0, 0))
    thin = [(3, 16, 16), (3, 8, 8), (3, 4, 4)]
    assert head_weights(thin, 0.0) == pytest.approx((2 / 3, 1 / 3, 0)), "an axis that never shrinks"
    assert head_weights([(2,) * 3, (2,) * 3], 1e-6) == (1.0, 1e-6)


# --- precision and determinism


def test_it_trains_and_predicts_in_bf16():
    """As with `training.precision: bf16`; two voxels on an axis are the critical case."""
    from workflow_scripts.common.hardware import autocast_network

    net, x = hyper(rank=3), torch.randn(1, 1, 8, 12, 9)
    net.scale_factor = 0.25
    with torch.no_grad():
        exact = net(x)
    autocast_network(net)
    outputs = net(x)
    sum(output.square().mean() for output in outputs).backward()
    assert torch.isfinite(net.modulation.grad).all()
    assert all(p.grad.dtype == torch.float32 for p in net.parameters())
    with torch.no_grad(), net.frozen(0.25):
        still = net(x)
    for full, mixed, frozen in zip(exact, outputs, still, strict=True):
        assert mixed.dtype == torch.float32
        assert torch.allclose(mixed, frozen, atol=1e-6)
        assert (mixed - full).norm() < 0.1 * full.norm()


def test_it_computes_the_same_bits_if_wanted():
    x = torch.randn(1, 1, 9, 11, 8)

    def gradients():
        net = hyper(rank=3)
        net.scale_factor = 0.37
        sum(output.square().mean() for output in net(x)).backward()
        return [parameter.grad for parameter in net.parameters()]

    torch.use_deterministic_algorithms(True)
    try:
        one, other = gradients(), gradients()
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
