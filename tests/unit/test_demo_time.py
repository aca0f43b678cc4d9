"""What keeps the demo short, and what it says if its settings have changed."""

import multiprocessing
import os
from multiprocessing.pool import ThreadPool

import numpy as np
import pytest

from workflow_scripts.common.errors import UserError
from workflow_scripts.common.nnunet_setup import pools_on
from workflow_scripts.evaluation.measure_class_balance import label_shares
from workflow_scripts.training.provenance import check_identity


def test_on_one_core_nnunets_pools_work_in_this_process():
    """nnU-Net watches the workers of a pool, so a thread must be alive as a process is."""
    with pools_on(1), multiprocessing.get_context("spawn").Pool(1) as pool:
        (worker,) = pool._pool
        assert worker.is_alive()
        assert pool.starmap_async(os.getpid, [()]).get() == [os.getpid()]
        assert multiprocessing.get_context("fork").get_start_method() == "fork"


@pytest.mark.parametrize("cores", [1, 2])
def test_other_pools_are_nnunets_own(cores):
    with pytest.raises(KeyError), pools_on(cores):
        inside = multiprocessing.get_context("spawn").Pool
        raise KeyError
    assert (inside is ThreadPool) == (cores == 1)
    assert multiprocessing.get_context("spawn").Pool is not ThreadPool


@pytest.mark.parametrize("kind", [np.int16, np.int8, np.float32])
@pytest.mark.parametrize("labels", [[1, 2], [(1, 2, 3), (2, 3), 7]])
def test_counted_shares_are_those_of_comparing_every_voxel(kind, labels):
    patches = np.random.default_rng(0).integers(-1, 5, (3, 4, 5, 6)).astype(kind)
    columns = [np.unique(np.hstack(labels)), *labels]
    compared = [np.isin(patches, values).mean(axis=(1, 2, 3)) for values in columns]
    assert (label_shares(patches, labels) == np.stack(compared, axis=1)).all()


@pytest.mark.parametrize(("study", "told"), [("demo", True), ("demo_long", False)])
def test_a_demo_with_earlier_settings_says_how_to_begin_anew(tmp_path, study, told):
    folder = tmp_path / "results" / study / "nnunet/constant/fold_0"
    folder.mkdir(parents=True)
    path = folder / "identity.json"
    check_identity({"epochs": 13}, path, started=False, finished=True)
    with pytest.raises(UserError, match="epochs was 13 and is now 12") as caught:
        check_identity({"epochs": 12}, path, started=True, finished=True)
    assert ("make clean" in str(caught.value)) == told
