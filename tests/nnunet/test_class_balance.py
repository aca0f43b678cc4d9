"""The class balance is sampled by nnU-Net's own loader, with and without forced foreground."""

from types import SimpleNamespace

import numpy as np
import pytest

from workflow_scripts.evaluation.measure_class_balance import sample_shares
from workflow_scripts.trainers.curricula.schedules.schedule import Stage

LABELS = SimpleNamespace(
    has_ignore_label=False, has_regions=False, all_labels=[0, 1], foreground_labels=[1]
)


class OneCase:
    """A volume of 32 voxels per side with a cube of 4 in one corner, as an nnU-Net dataset."""

    identifiers = ("case",)

    def load_case(self, identifier):
        seg = np.zeros((1, 32, 32, 32), dtype=np.int16)
        seg[0, 2:6, 2:6, 2:6] = 1
        places = {1: np.argwhere(seg == 1)}
        return np.zeros(seg.shape, np.float32), seg, None, {"class_locations": places}


def shares(size, oversample, batch=2, samples=60):
    np.random.seed(0)
    stage = Stage((size,) * 3, batch)
    return sample_shares(OneCase(), LABELS, [stage], oversample, samples)[0]


def test_one_patch_of_a_batch_of_two_is_forced():
    result = shares(8, 0.33)[:, 0]
    assert (result[1::2] > 0).all()
    assert (result[0::2] == 0).any()


def test_small_forced_patches_hold_a_larger_share():
    small, large = shares(8, 0.33)[1::2, 0].mean(), shares(32, 0.33)[1::2, 0].mean()
    assert large == pytest.approx(64 / 32**3)
    assert small > 10 * large


def test_whole_batches_are_drawn():
    assert shares(8, 0.0, batch=4, samples=10).shape == (12, 2)


def test_a_reduced_patch_keeps_the_share_of_foreground_but_may_lose_a_thin_label():
    """At half size, the cube of 4 voxels becomes one of 2; at the smallest size, it is lost."""
    whole, half, eighth = (Stage((32 // n,) * 3, 2, field_of_view=(32, 32, 32)) for n in (1, 2, 16))
    np.random.seed(0)
    found = sample_shares(OneCase(), LABELS, (whole, half, eighth), 0.33, 20)
    drawn = [shares[1::2, 0] for shares in found]
    assert drawn[0] == pytest.approx(64 / 32**3)
    assert drawn[1] == pytest.approx(64 / 32**3)
    assert (drawn[2] == 0).all()
