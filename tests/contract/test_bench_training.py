"""One measured training as `make bench` starts it."""

import pytest

from bench_trainers import (
    by_stage,
    epoch_overhead,
    loads_an_iteration,
    reducing_share,
    run_variant,
    stage_switch,
)
from log import UserError


def spec(tiny, trainer, **settings):
    return {
        "run": {
            "task": "Task98_Tiny",
            "arm": "x",
            "trainer": trainer,
            "fold": 0,
            "configuration": tiny.configuration,
        },
        "parameters": {},
        "settings": {
            "epochs": 5,
            "iterations_per_epoch": 3,
            "validation_iterations_per_epoch": 1,
            "seed": 1,
            "device": "cpu",
            "precision": "fp32",
            "deterministic": True,
            "checkpoint_minutes": 0,
            **settings,
        },
        "energy": {"country": "DEU", "tracking_mode": "process", "pue": 1.0},
        "plans_file": str(tiny.folder / f"{tiny.plans_name}.json"),
        "threads": 1,
    }


def test_a_training_is_measured_in_a_process_of_its_own(tiny, tmp_path, monkeypatch):
    (tmp_path / "resources").mkdir()
    (tmp_path / "resources/nnUNet_preprocessed").symlink_to(tiny.preprocessed)
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "bench"
    folder.mkdir()
    measured = run_variant(spec(tiny, "nnUNetTrainerProgressivePatch"), folder)
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


def test_the_reducing_of_a_low_frequency_training_is_measured(tiny, tmp_path, monkeypatch):
    (tmp_path / "resources").mkdir()
    (tmp_path / "resources/nnUNet_preprocessed").symlink_to(tiny.preprocessed)
    monkeypatch.chdir(tmp_path)
    measured = run_variant(
        spec(tiny, "nnUNetTrainerLowFrequency", epochs=10, iterations_per_epoch=2), tmp_path
    )
    loads = loads_an_iteration({"low_frequency": measured})
    assert (
        0 < measured["reduced"] < loads * len(measured["iterations"]) <= len(measured["iterations"])
    )
    assert 0 < reducing_share({"low_frequency": measured}) < 1


def test_a_training_that_fails_says_why(tiny, tmp_path):
    with pytest.raises(UserError, match=r"noSuchTrainer failed:(.|\n)*neither in"):
        run_variant(spec(tiny, "noSuchTrainer"), tmp_path)
