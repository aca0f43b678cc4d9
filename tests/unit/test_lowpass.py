"""The low-pass against its definition by an FFT, analytic waves and the boundaries of a patch."""

from itertools import product
from math import ceil, prod

import numpy as np
import pytest
import torch
from scipy.fft import dctn, idctn

from workflow_scripts.trainers.curricula.batches.lowpass import (
    LOWPASSES,
    lowpass_matrix,
    reduce_image,
    reduce_labels,
)

SIZES = [
    ((16, 12, 10), (8, 8, 4)),
    ((16, 12, 10), (16, 6, 5)),
    ((15, 12, 9), (7, 12, 4)),
    ((40, 56, 40), (16, 24, 16)),
    ((40, 56, 40), (32, 40, 32)),
]
EVERY = pytest.mark.parametrize("method", LOWPASSES)
SHIFT = pytest.mark.parametrize("shift", [True, False])


def noise(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def reduce(data, size, method="fft", half_voxel_shift=True):
    """Reduce in float64, to test the operator itself and not its rounding."""
    for axis, kept in enumerate(size, start=data.ndim - 3):
        matrix = lowpass_matrix(data.shape[axis], kept, method, half_voxel_shift)
        data = np.moveaxis(np.tensordot(data, matrix, ([axis], [1])), -1, axis)
    return data


def crop_spectrum(data, size, half_voxel_shift, keep_nyquist=False):
    """Apply the definition: transform, keep |k| < B/2, shift the phase, transform back; complex."""
    spectrum = np.fft.fftn(data, axes=(-3, -2, -1))
    for axis, kept in zip((-3, -2, -1), size, strict=True):
        planned = data.shape[axis]
        if kept == planned:
            continue
        frequencies = np.rint(np.fft.fftfreq(planned, 1 / planned)).astype(int)
        low = np.abs(frequencies) < kept / 2
        if keep_nyquist:
            low |= frequencies == -kept // 2
        delta = (planned / kept - 1) / 2 if half_voxel_shift else 0
        phase = np.exp(2j * np.pi * frequencies[low] * delta / planned)
        taken = np.moveaxis(np.compress(low, spectrum, axis=axis), axis, -1) * phase
        cropped = np.zeros((*taken.shape[:-1], kept), complex)
        cropped[..., frequencies[low] % kept] = taken * kept / planned
        spectrum = np.moveaxis(cropped, -1, axis)
    return np.fft.ifftn(spectrum, axes=(-3, -2, -1))


@SHIFT
@pytest.mark.parametrize(("planned", "size"), SIZES)
def test_it_is_the_cropped_spectrum(planned, size, shift):
    data = noise((2, 3, *planned))
    expected = crop_spectrum(data, size, shift)
    assert np.abs(expected.imag).max() < 1e-12, "real, as the lone Nyquist bin is dropped"
    assert np.abs(reduce(data, size, "fft", shift) - expected.real).max() < 1e-12
    found = reduce_image(torch.from_numpy(data).float(), size, "fft", shift)
    assert found.shape == (2, 3, *size)
    assert np.abs(found.numpy() - expected.real).max() < 4e-6


def test_with_the_nyquist_bin_the_crop_does_not_commute_with_flips():
    """This is why it is dropped: the authors' crop keeps the bin -B/2 without its partner."""
    data = noise((16, 12, 10))
    size = (8, 6, 4)
    flipped = crop_spectrum(data[::-1], size, half_voxel_shift=True, keep_nyquist=True)
    kept = crop_spectrum(data, size, half_voxel_shift=True, keep_nyquist=True)
    assert np.abs(flipped - kept[::-1]).max() > 1e-3


@pytest.mark.parametrize(("planned", "size"), SIZES)
def test_dct_keeps_the_first_coefficients(planned, size):
    data = noise((2, *planned))
    axes = (1, 2, 3)
    spectrum = dctn(data, axes=axes, norm="ortho")[:, : size[0], : size[1], : size[2]]
    expected = idctn(spectrum, axes=axes, norm="ortho") * np.sqrt(prod(size) / prod(planned))
    assert np.abs(reduce(data, size, "dct") - expected).max() < 1e-12


def test_resize_is_antialiased_lanczos():
    """It matches Pillow's, which EfficientTrain++ uses."""
    from PIL import Image

    data = noise((1, 1, 1, 40)).astype(np.float32)
    image = Image.fromarray(data[0, 0]).resize((16, 1), Image.Resampling.LANCZOS)
    found = reduce(data.astype(float), (1, 1, 16), "resize")
    assert np.abs(found[0, 0] - np.asarray(image)).max() < 1e-5


@EVERY
@SHIFT
def test_nothing_is_done_where_the_size_stays(method, shift):
    data = torch.from_numpy(noise((1, 2, 6, 8, 5))).float()
    assert reduce_image(data, (6, 8, 5), method, shift) is data
    assert np.array_equal(lowpass_matrix(8, 8, method, shift), np.eye(8))


@EVERY
@SHIFT
@pytest.mark.parametrize(("planned", "size"), SIZES)
def test_constants_are_preserved_for_every_sample_and_channel(planned, size, method, shift):
    values = torch.tensor([[3.5, -1000.0], [0.25, 0.0]])
    data = values[:, :, None, None, None].expand(2, 2, *planned)
    found = reduce_image(data, size, method, shift)
    expected = values[:, :, None, None, None].expand(2, 2, *size)
    assert torch.allclose(found, expected, rtol=4e-6, atol=0)
    exact = reduce(data.numpy().astype(float), size, method, shift)
    assert np.allclose(exact, expected.numpy(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("method", ["fft", "dct"])
@pytest.mark.parametrize(("planned", "size"), SIZES)
def test_means_are_preserved_for_every_sample_and_channel(planned, size, method):
    data = noise((2, 2, *planned))
    found = reduce(data, size, method)
    assert np.abs(found.mean((2, 3, 4)) - data.mean((2, 3, 4))).max() < 1e-12


@EVERY
def test_it_is_linear_and_keeps_samples_and_channels_apart(method):
    size = (8, 8, 4)
    one, other = (torch.from_numpy(noise((2, 2, 16, 12, 10), seed)).float() for seed in (1, 2))
    both = reduce_image(2 * one - other, size, method)
    apart = 2 * reduce_image(one, size, method) - reduce_image(other, size, method)
    assert torch.allclose(both, apart, atol=2e-6)
    alone = reduce_image(one[1:, :1], size, method)
    assert torch.allclose(reduce_image(one, size, method)[1:, :1], alone, atol=1e-6)


@EVERY
@pytest.mark.parametrize(("planned", "size"), SIZES)
def test_it_commutes_with_flips(planned, size, method):
    data = torch.from_numpy(noise((1, 1, *planned))).float()
    found = reduce_image(data, size, method)
    for count in product([False, True], repeat=3):
        axes = [axis for axis, flipped in enumerate(count, start=2) if flipped]
        again = reduce_image(data.flip(axes), size, method).flip(axes)
        assert torch.allclose(again, found, atol=1e-6)


@pytest.mark.parametrize(("planned", "kept"), [(40, 16), (56, 24), (128, 64), (40, 15), (15, 7)])
def test_waves_are_kept_where_the_labels_voxels_are_or_gone(planned, kept):
    matrix = lowpass_matrix(planned, kept, "fft", half_voxel_shift=True)
    centres = (np.arange(kept) + 0.5) * planned / kept - 0.5
    for k in range(planned // 2 + 1):
        for phase in (0.0, 0.7):
            wave = np.cos(2 * np.pi * k * np.arange(planned) / planned + phase)
            expected = np.cos(2 * np.pi * k * centres / planned + phase) * (k < kept / 2)
            assert np.abs(matrix @ wave - expected).max() < 1e-12, k


@pytest.mark.parametrize(("planned", "size"), SIZES)
def test_variance_of_white_noise(planned, size):
    """On a reduced axis, the squares of each row sum to (2 ceil(B/2) - 1) / P."""
    ratio = prod(
        (2 * ceil(kept / 2) - 1) / full
        for full, kept in zip(planned, size, strict=True)
        if kept < full
    )
    found = reduce(noise((60, *planned)), size)
    assert found.var() == pytest.approx(ratio, rel=0.05)


def test_a_low_passed_ball_fits_its_label_best_with_the_half_voxel():
    """Compare the thresholded image with the nearest voxels' label by Dice, at three reductions."""
    grid = np.stack(np.meshgrid(*[np.arange(64) - 31.5] * 3, indexing="ij"))
    ball = torch.from_numpy((np.sqrt((grid**2).sum(0)) < 9)[None, None]).float()

    def dice(kept, shift):
        label = reduce_labels(ball, (kept,) * 3) > 0.5
        image = reduce_image(ball, (kept,) * 3, "fft", shift) > 0.5
        return float(2 * (label & image).sum() / (label.sum() + image.sum()))

    for kept, gain in ((28, 0.05), (32, 0.04), (48, 0.008)):
        assert dice(kept, True) > dice(kept, False) + gain, kept


def test_autocast_does_not_touch_it():
    data = torch.from_numpy(noise((1, 1, 16, 12, 10))).float()
    expected = reduce_image(data, (8, 8, 4))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = reduce_image(data, (8, 8, 4))
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
    assert reduce_image(data.half(), (8, 8, 4)).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.int16, torch.uint8, torch.bool, torch.float32])
def test_labels_of_any_type_take_the_nearest_voxel(dtype):
    label = torch.from_numpy(noise((2, 3, 16, 12, 10)) > 0).to(dtype)
    found = reduce_labels(label, (8, 9, 5))
    assert found.dtype == dtype
    centres = [
        np.floor((np.arange(kept) + 0.5) * full / kept).astype(int)
        for full, kept in zip((16, 12, 10), (8, 9, 5), strict=True)
    ]
    expected = label[:, :, centres[0]][:, :, :, centres[1]][:, :, :, :, centres[2]]
    assert torch.equal(found, expected)
    assert reduce_labels(label, (16, 12, 10)) is label


@pytest.mark.parametrize(
    ("planned", "kept", "method", "message"),
    [
        (8, 4, "wavelet", "unknown lowpass 'wavelet'; known are fft, dct, resize"),
        (8, 9, "fft", "cannot reduce 8 voxels to 9"),
        (8, 0, "fft", "cannot reduce 8 voxels to 0"),
    ],
)
def test_what_it_cannot_do_is_refused(planned, kept, method, message):
    with pytest.raises(ValueError, match=message):
        lowpass_matrix(planned, kept, method, half_voxel_shift=True)
