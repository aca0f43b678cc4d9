"""The arithmetic of `make bench` on measurements made by hand."""

import json
from dataclasses import replace

import pytest

from workflow_scripts.benchmark import bench_trainers
from workflow_scripts.benchmark.bench_trainers import (
    BF16,
    FIGURES,
    describe_profile,
    over_flops,
    summarise,
    to_markdown,
    variants,
)
from workflow_scripts.benchmark.variants import by_stage, steady
from workflow_scripts.records.energy_settings import EnergySettings
from workflow_scripts.study.settings import RunSettings, TrainingSettings
from workflow_scripts.study.specification import RunSpec

PROFILE = {"convolutions": 0.75, "norms": 0.2, "other": 0.05}
SMALL, LARGE = [8, 8, 8], [16, 16, 16]


def measured(iterations, epochs=((9.0, 5.0, 3.0), (4.5, 2.0, 2.0)), peak=1000.0):
    return {
        "iterations": iterations,
        "epochs": [list(epoch) for epoch in epochs],
        "peak_mb": peak,
        "precision": "bf16",
        "amx": True,
    }


def planned_size(seconds, peak=1000.0, first=60.0):
    """Return three epochs at the planned size, the first one slow."""
    rows = [[0, LARGE, first, 8.0], [1, LARGE, seconds, 8.0], [2, LARGE, seconds, 8.0]]
    return measured(rows, peak=peak)


@pytest.fixture
def repeat():
    progressive = [[0, SMALL, 5.0, 1.0], [0, SMALL, 0.5, 1.0], [0, SMALL, 0.7, 1.0]]
    progressive += [[1, LARGE, 2.4, 8.0], [1, LARGE, 2.0, 8.0], [1, LARGE, 2.2, 8.0]]
    low = [[0, SMALL, 3.0, 1.0], *[[0, SMALL, 0.4, 1.0]] * 3, [1, LARGE, 9.0, 8.0]]
    low += [[1, LARGE, 2.4, 8.0]] * 2
    return {
        "stock": planned_size(2.0),
        "constant": planned_size(2.0)
        | {"rates": {"network": 5e9, "matmul": 1e10, "profile": PROFILE}},
        "progressive": measured(progressive),
        "random": measured(progressive, peak=1150.0),
        "low_frequency": {**measured(low), "reduced": 2, "reduce_seconds": 0.21},
        "deterministic": planned_size(3.0),
        "fp32": planned_size(5.0)
        | {"precision": "fp32", "rates": {"network": 3e9, "matmul": 5e9, "profile": {}}},
        "peer": {"whole_seconds": 70.0},
        "progressive_whole": {"whole_seconds": 50.0},
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
    found = {name: figure.compute(repeat) for name, figure in FIGURES.items()}
    low_frequency = [(3 * 0.4 + 2 * 2.4) / (3 * 1.0 + 2 * 8.0) / (2.0 / 8.0), 0.21 / 4.2, 5 / 7]
    assert list(found.values()) == pytest.approx(
        [1.0, 1.2, 1.2, *low_frequency, 0.6, 0.5, 0.4, 0.3, 1.15, 1.5, 0.5, 1.4]
    )


def test_what_was_not_measured_has_no_row(repeat):
    for variant in ("fp32", "peer", "progressive_whole"):
        del repeat[variant]
    table = summarise("Task", [repeat])
    missing = set(FIGURES) - set(table["figure"])
    assert len(missing) == 3
    assert {BF16, "network FLOP/s / matrix-product FLOP/s, fp32"} < missing


def test_medians_goals_and_page(repeat):
    slower = {**repeat, "constant": repeat["constant"] | planned_size(4.0)}
    table = summarise("Task", [repeat, repeat, slower]).set_index("figure")
    row = table.loc[BF16]
    assert (row["median"], row["min"], row["max"], row["met"]) == (0.4, 0.4, 0.8, True)
    row = table.loc["progressive / constant: training time over FLOPs"]
    assert (row["goal"], row["met"]) == (1.02, False)
    rates = table.loc[["network FLOP/s / matrix-product FLOP/s, " + x for x in ("fp32", "bf16")]]
    assert rates["met"].tolist() == [False, True], "these must be at least their goal"
    page = to_markdown(table.reset_index(), "A machine.")
    machine, _, *lines = page.splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert machine == "A machine."
    assert len({len(line) for line in lines}) == 1  # aligned
    assert ["Task", BF16, "0.400 (0.400 to 0.800)", "≤ 0.5 met"] in cells
    assert cells[3][:2] == ["Task", "progressive / constant: training time over FLOPs"]
    assert cells[3][2].startswith("1.200 (")
    assert page.count("NOT met") == 5
    assert page.count("≥ ") == 3
    assert ["1.500 (0.750 to 1.500)", "-"] in [line[2:] for line in cells]


def test_the_profile_follows_the_table(repeat):
    line = describe_profile("Task", repeat)
    assert line.endswith("constant: convolutions 75%, norms 20%, other 5%.")
    assert to_markdown(summarise("Task", [repeat]), "A machine.", line).endswith(f"\n\n{line}\n")


def test_a_peer_is_measured_beside_progressive_with_as_few_checkpoints():
    chosen = variants(stages=5, iterations=4, peer="nnUNetTrainerTheirs")
    assert chosen["peer"][0] == "nnUNetTrainerTheirs"
    assert chosen["peer"][1] == chosen["progressive_whole"][1]
    assert chosen["peer"][1] == {**chosen["progressive"][1], "checkpoint_minutes": 10}
    assert "peer" not in variants(stages=5, iterations=4)


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

    def run_variant(run, settings, plans_file, folder, rates):
        assert rates == (run.arm in ("constant", "fp32"))
        seen.append((run, settings.training))
        return repeat[run.arm]

    monkeypatch.setattr(bench_trainers, "run_variant", run_variant)
    run = RunSpec("bench", "Task98_Tiny", "Dataset998_Tiny", "", "", 0, "3d_fullres", "plans")
    training = TrainingSettings(9, 9, 9, seed=3, device="cpu", precision="bf16", threads=1)
    settings = RunSettings(training, EnergySettings("DEU"), mirroring=False)
    table, last = bench_trainers.bench_task(run, settings, path, tmp_path, repeats=2, iterations=4)
    assert set(table["repeats"]) == {2}
    assert list(last) == list(variants(5, 4))[::-1], "every second repeat runs in reverse order"
    for found, length in seen:
        trainer, changes = variants(5, 4)[found.arm]
        parameters = {"plot_seconds": 0.0} if found.arm == "progressive" else {}
        assert found == replace(run, arm=found.arm, trainer=trainer, parameters=parameters)
        assert length == replace(training, validation_iterations_per_epoch=2, **changes)
