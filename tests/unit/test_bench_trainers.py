"""The arithmetic of `make bench` on measurements made by hand."""

import json
from dataclasses import replace

import pytest

from workflow_scripts.benchmark import bench_trainers
from workflow_scripts.benchmark.bench_trainers import (
    BF16,
    FIGURES,
    by_stage,
    over_flops,
    steady,
    summarise,
    to_markdown,
    variants,
)
from workflow_scripts.records.energy_meter import EnergySettings
from workflow_scripts.study.settings import RunSettings, TrainingSettings
from workflow_scripts.study.specification import RunSpec

SMALL, LARGE = [8, 8, 8], [16, 16, 16]


def measured(iterations, epochs=((9.0, 5.0, 3.0), (4.5, 2.0, 2.0)), peak=1000.0):
    return {
        "iterations": iterations,
        "epochs": [list(epoch) for epoch in epochs],
        "peak_mb": peak,
        "precision": "bf16",
        "amx": True,
    }


def flat(seconds, peak=1000.0, first=60.0):
    """Three epochs at the planned size, the first one slow."""
    rows = [[0, LARGE, first, 8.0], [1, LARGE, seconds, 8.0], [2, LARGE, seconds, 8.0]]
    return measured(rows, peak=peak)


@pytest.fixture
def repeat():
    grown = [[0, SMALL, 5.0, 1.0], [0, SMALL, 0.5, 1.0], [0, SMALL, 0.7, 1.0]]
    grown += [[1, LARGE, 2.4, 8.0], [1, LARGE, 2.0, 8.0], [1, LARGE, 2.2, 8.0]]
    low = [[0, SMALL, 3.0, 1.0], *[[0, SMALL, 0.4, 1.0]] * 3, [1, LARGE, 9.0, 8.0]]
    low += [[1, LARGE, 2.4, 8.0]] * 2
    return {
        "stock": flat(2.0),
        "constant": flat(2.0),
        "progressive": measured(grown),
        "random": measured(grown, peak=1150.0),
        "low_frequency": {**measured(low), "reduced": 2, "reduce_seconds": 0.21},
        "deterministic": flat(3.0),
        "fp32": flat(5.0),
    }


def test_the_first_epoch_is_no_steady_state(repeat):
    assert steady(repeat["constant"]) == 2.0


def test_a_size_s_time_leaves_its_first_iteration_out(repeat):
    sizes = by_stage(repeat["progressive"])
    assert sizes["seconds"].tolist() == pytest.approx([0.6, 2.1])
    assert sizes["first"].tolist() == [5.0, 2.4]


def test_time_over_flops(repeat):
    assert over_flops(repeat, "progressive") == pytest.approx((1.35 / 2.0) / (4.5 / 8.0))


def test_figures(repeat):
    found = {name: compute(repeat) for name, (_, compute) in FIGURES.items()}
    low_frequency = [(3 * 0.4 + 2 * 2.4) / (3 * 1.0 + 2 * 8.0) / (2.0 / 8.0), 0.21 / 4.2, 5 / 7]
    assert list(found.values()) == pytest.approx(
        [1.0, 1.2, 1.2, *low_frequency, 0.4, 0.3, 1.15, 1.5, 0.5]
    )


def test_what_was_not_measured_has_no_row(repeat):
    del repeat["fp32"]
    table = summarise("Task", [repeat])
    assert len(table) == len(FIGURES) - 1
    assert not table["figure"].str.contains("bf16").any()


def test_medians_goals_and_page(repeat):
    slower = {**repeat, "constant": flat(4.0)}
    table = summarise("Task", [repeat, repeat, slower]).set_index("figure")
    row = table.loc[BF16]
    assert (row["median"], row["min"], row["max"], row["met"]) == (0.4, 0.4, 0.8, True)
    row = table.loc["progressive / constant: training time over FLOPs"]
    assert (row["goal"], row["met"]) == (1.10, False)
    page = to_markdown(table.reset_index(), "A machine.")
    machine, _, *lines = page.splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert machine == "A machine."
    assert len({len(line) for line in lines}) == 1  # aligned
    assert ["Task", BF16, "0.400 (0.400 to 0.800)", "≤ 0.5 met"] in cells
    assert cells[3][:2] == ["Task", "progressive / constant: training time over FLOPs"]
    assert cells[3][2].startswith("1.200 (")
    assert page.count("NOT met") == 4
    assert ["1.500 (0.750 to 1.500)", "-"] in [line[2:] for line in cells]


def test_every_stage_has_an_epoch_of_its_own():
    chosen = variants(stages=14, iterations=4)
    assert chosen["progressive"][1]["epochs"] == 14
    assert chosen["low_frequency"][1] == {**chosen["progressive"][1], "epochs": 10}
    assert chosen["random"][1]["epochs"] * chosen["random"][1]["iterations_per_epoch"] == 56


def test_the_goal_of_bf16_is_that_of_a_processor_with_amx(repeat):
    repeat["constant"]["amx"] = False
    row = summarise("Task", [repeat]).set_index("figure").loc[BF16]
    assert row["median"] == 0.4
    assert row["goal"] is None or row["goal"] != row["goal"]
    assert row["met"] is None


def test_every_variant_is_the_run_with_its_own_trainer_and_length(repeat, tmp_path, monkeypatch):
    architecture = {"arch_kwargs": {"strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]]}}
    plan = {"patch_size": [16, 8, 8], "batch_size": 2, "architecture": architecture}
    path = tmp_path / "plans.json"
    path.write_text(json.dumps({"configurations": {"3d_fullres": plan}}))
    seen = []

    def run_variant(run, settings, plans_file, folder):
        seen.append((run, settings.training))
        return repeat[run.arm]

    monkeypatch.setattr(bench_trainers, "run_variant", run_variant)
    run = RunSpec("bench", "Task98_Tiny", "Dataset998_Tiny", "", "", 0, "3d_fullres", "plans")
    training = TrainingSettings(9, 9, 9, seed=3, device="cpu", precision="bf16")
    settings = RunSettings(training, EnergySettings("DEU"), mirroring=False, threads=1)
    table, last = bench_trainers.bench_task(run, settings, path, tmp_path, repeats=2, iterations=4)
    assert set(table["repeats"]) == {2}
    assert list(last) == list(variants(5, 4))[::-1], "every second repeat goes backwards"
    for found, length in seen:
        trainer, changes = variants(5, 4)[found.arm]
        parameters = {"plot_seconds": 0.0} if found.arm == "progressive" else {}
        assert found == replace(run, arm=found.arm, trainer=trainer, parameters=parameters)
        assert length == replace(training, validation_iterations_per_epoch=2, **changes)
