"""One measured training, as `make bench` starts it."""

import numpy as np
import pytest

from helpers.processes import run_forked
from workflow_scripts.benchmark.bench_trainers import (
    epoch_overhead,
    loads_an_iteration,
    reducing_share,
    stage_switch,
)
from workflow_scripts.benchmark.compute_rate import KINDS, kind_of
from workflow_scripts.benchmark.variants import by_stage, run_variant
from workflow_scripts.common.errors import UserError
from workflow_scripts.study.settings import RunSettings
from workflow_scripts.study.specification import RunSpec


def call(tiny, trainer, folder, environment=None, options=None, **settings):
    """Call `run_variant` on the tiny task."""
    names = {"study": "bench", "task": "Task98_Tiny", "dataset": tiny.dataset, "arm": "x"}
    names |= {"configuration": tiny.configuration, "plans": tiny.plans_name}
    training = {
        "epochs": 5,
        "iterations_per_epoch": 3,
        "validation_iterations_per_epoch": 1,
        "seed": 1,
        "device": "cpu",
        "precision": "fp32",
        "deterministic": True,
        "checkpoint_minutes": 0,
        **settings,
    }
    energy = {"country": "DEU", "tracking_mode": "process", "pue": 1.0}
    return run_variant(
        RunSpec(**names, trainer=trainer, fold=0),
        RunSettings.of(training, energy, mirroring=False, threads=1),
        tiny.folder / f"{tiny.plans_name}.json",
        folder,
        environment,
        **(options or {}),
    )


def test_a_training_is_measured_in_a_process_of_its_own(tiny, tmp_path, monkeypatch):
    (tmp_path / "resources").mkdir()
    (tmp_path / "resources/nnUNet_preprocessed").symlink_to(tiny.preprocessed)
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "bench"
    folder.mkdir()
    measured = call(tiny, "nnUNetTrainerProgressivePatch", folder, options={"rates": True})
    sizes = by_stage(measured)
    assert list(sizes.index) == [(8, 4, 4), (8, 8, 4), (8, 8, 8), (12, 8, 8), (16, 8, 8)]
    assert sizes["gflop"].is_monotonic_increasing
    assert len(measured["iterations"]) == 15
    assert all(seconds > 0 for _, _, seconds, _ in measured["iterations"])
    assert measured["precision"] == "fp32"
    assert 100 < measured["peak_mb"] < 10_000
    whole = {"progressive": measured}
    assert epoch_overhead(whole) > 0
    assert abs(stage_switch(whole)) < 60
    assert list(folder.iterdir()) == [], "its results are thrown away"
    assert (measured["reduced"], measured["reduce_seconds"]) == (0, 0)
    assert len(measured["losses"]) == len(measured["waits"]) == 15
    assert all(np.isfinite(measured["losses"]))
    assert 0 < sum(measured["waits"]) < measured["whole_seconds"]
    assert measured["load_seconds"] > 0
    rates = measured["rates"]
    assert 0 < rates["network"] < rates["matmul"]
    assert sum(rates["profile"].values()) == pytest.approx(1)
    assert rates["profile"]["convolutions"] > 0.05


@pytest.mark.parametrize(
    ("operator", "kind"),
    [
        ("aten::convolution_backward", "convolutions"),
        ("aten::mkldnn_convolution", "convolutions"),
        ("aten::native_batch_norm_backward", "norms"),
        ("aten::linalg_vector_norm", "optimiser and clipping"),
        ("aten::_foreach_add_", "optimiser and clipping"),
        ("aten::leaky_relu_backward", "activations"),
        ("aten::copy_", "copies"),
        ("aten::empty", "other"),
    ],
)
def test_operators_are_sorted_by_kind(operator, kind):
    assert kind in {*KINDS, "other"}
    assert kind_of(operator) == kind


PEER = """
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class nnUNetTrainerTheirs(nnUNetTrainer):
    def on_train_start(self):
        super().on_train_start()
        print("theirs")
"""


def test_a_trainer_of_others_is_measured_too(tiny, tmp_path, monkeypatch, forked):
    (tmp_path / "resources").mkdir()
    (tmp_path / "resources/nnUNet_preprocessed").symlink_to(tiny.preprocessed)
    (tmp_path / "peer").mkdir()
    (tmp_path / "peer/theirs.py").write_text(PEER)
    monkeypatch.chdir(tmp_path)
    found = {"nnUNet_extTrainer": str(tmp_path / "peer")}
    measured = call(tiny, "nnUNetTrainerTheirs", tmp_path, found, epochs=2)
    assert len(measured["iterations"]) == 6
    assert measured["whole_seconds"] > sum(seconds for *_, seconds, _ in measured["iterations"])


@pytest.fixture
def forked(monkeypatch):
    monkeypatch.setattr(f"{run_variant.__module__}.subprocess.run", run_forked)


def test_the_reducing_of_a_low_frequency_training_is_measured(tiny, tmp_path, monkeypatch, forked):
    (tmp_path / "resources").mkdir()
    (tmp_path / "resources/nnUNet_preprocessed").symlink_to(tiny.preprocessed)
    monkeypatch.chdir(tmp_path)
    measured = call(tiny, "nnUNetTrainerLowFrequency", tmp_path, epochs=10, iterations_per_epoch=2)
    loads = loads_an_iteration({"low_frequency": measured})
    assert (
        0 < measured["reduced"] < loads * len(measured["iterations"]) <= len(measured["iterations"])
    )
    assert 0 < reducing_share({"low_frequency": measured}) < 1


def test_a_training_that_fails_says_why(tiny, tmp_path, forked):
    with pytest.raises(UserError, match=r"noSuchTrainer failed:(.|\n)*neither in"):
        call(tiny, "noSuchTrainer", tmp_path)
