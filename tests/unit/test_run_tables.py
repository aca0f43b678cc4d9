"""The files of a run that are derived from its ledger, against hand-computed numbers."""

import json
import math

import pandas as pd
import pytest

from helpers.ledger_lines import METER, entries_of, start, work
from workflow_scripts.common.files import write_csv
from workflow_scripts.records import run_tables
from workflow_scripts.records.energy_conditions import CONDITIONS
from workflow_scripts.records.run_columns import ENERGY, EPOCHS, STAGES
from workflow_scripts.records.run_reader import COUNTED_LATER, FLAT, NESTED, NUMBERS, OTHER
from workflow_scripts.records.run_tables import describe_run, stages_table
from workflow_scripts.training.attempt import note_of_last


def epochs_table(lines):
    return run_tables.epochs_table(entries_of(lines))


def energy_table(lines):
    return run_tables.energy_table(entries_of(lines))


def kept_work(lines):
    return run_tables.kept_work(entries_of(lines))


def kept_validation(lines):
    """Return the energy of each piece of the validation."""
    found = run_tables.kept_validation(entries_of(lines))
    return [work.reading.kwh for work in found.work] if found else []


def epoch(number, n, kwh, stage=0, **fields):
    return work(
        number,
        "training",
        kwh,
        seconds=10.0 + n,
        epoch=n,
        stage=stage,
        patch_size=("8x4x4", "16x8x8")[stage or 0],
        train_loss=-0.1 * n,
        pseudo_dice=0.1 * n,
        **{"voxels_per_iteration": 100.0 * (n + 1), **fields},
    )


def three_attempts():
    """Return a ledger of 4 epochs in 2 stages: two attempts were killed, the third finished.

    Attempt 1 was killed in epoch 3, with a checkpoint after epoch 1; attempt 2 was killed with a
    checkpoint after epoch 2. Kept: epochs 0 and 1 of attempt 1, epoch 2 of attempt 2, epoch 3 of
    attempt 3.
    """
    return [
        start(1),
        work(1, "setup", 1.0),
        epoch(1, 0, 2.0),
        epoch(1, 1, 4.0),
        epoch(1, 2, 8.0, stage=1),
        start(2, resumed_at=2),
        work(2, "setup", 16.0),
        epoch(2, 2, 32.0, stage=1),
        epoch(2, 3, 64.0, stage=1),
        start(3, resumed_at=3),
        work(3, "setup", 128.0),
        epoch(3, 3, 256.0, stage=1),
        work(3, "end of training", 512.0),
        work(3, "validation", 1024.0, seconds=30.0),
    ]


def failed(entry):
    nothing = dict.fromkeys(("kwh", "cpu_kwh", "gpu_kwh", "ram_kwh", "kg_co2eq"), math.nan)
    return {**entry, **nothing, "error": "OSError: no sensor"}


def row_of(table, **keys):
    for name, value in keys.items():
        table = table[table[name].isna() if value is None else table[name] == value]
    assert len(table) == 1
    return table.iloc[0]


# --- a final validation in parts


def part(number, case, kwh):
    nothing = {"mirroring": None, "ended": None}
    return work(number, "validation", kwh, seconds=2.0, partial=True, case=case, **nothing)


def validated_in_parts():
    """Interrupted after case a; killed while exporting b; then b and c predicted and measured."""
    *before, end = three_attempts()
    return [
        *before,
        part(3, "a", 1.0),
        work(3, "interrupted", 2.0),
        start(4, resumed_at=4),
        work(4, "setup", 4.0),
        part(4, "b", 8.0),
        start(5, resumed_at=4),
        part(5, "b", 16.0),
        part(5, "c", 32.0),
        {**end, "attempt": 5},
        {"entry": "end", "attempt": 5, "how": "finished"},
    ]


def test_each_case_of_the_validation_counts_once():
    entries = validated_in_parts()
    assert kept_validation(entries) == [1.0, 16.0, 32.0, 1024.0]
    assert kept_validation(entries[:-2]) == [], "not done yet"
    whole = three_attempts()
    assert kept_validation(whole) == [1024.0], "in one piece, as written by earlier versions"
    again = [*entries, start(6, resumed_at=4), part(6, "a", 64.0)]
    assert kept_validation(again) == kept_validation(entries), "the next one is not done yet"
    again += [part(6, "b", 128.0), part(6, "c", 256.0), work(6, "validation", 512.0)]
    assert kept_validation(again) == [64.0, 128.0, 256.0, 512.0]
    measured = [*entries, start(6, resumed_at=4), work(6, "validation", 2.5)]
    assert kept_validation(measured) == [1.0, 16.0, 32.0, 2.5]


def test_the_energy_of_a_validation_in_parts():
    entries = validated_in_parts()
    table = energy_table(entries)
    assert table["kwh"].sum() == sum(entry.get("kwh", 0) for entry in entries)
    rows = table[table["phase"] == "validation"].set_index("attempt")
    assert rows["kwh"].to_dict() == {3: 1.0, 4: 8.0, 5: 16.0 + 32 + 1024}
    assert rows["kwh_kept"].to_dict() == {3: 1.0, 4: 0.0, 5: 16.0 + 32 + 1024}
    assert len(epochs_table(entries)) == 4


# --- kept epochs


def test_kept_work_over_three_attempts():
    kept = kept_work(three_attempts())
    attempts = {n: [entry.attempt for entry in parts] for n, parts in kept.items()}
    assert attempts == {0: [1], 1: [1], 2: [2], 3: [3]}


def test_lost_epochs_are_gone_before_they_are_trained_again():
    entries = three_attempts()[:7]
    assert list(kept_work(entries)) == [0, 1], "epoch 2 of attempt 1 is not in the checkpoint"


def test_an_attempt_from_the_start_throws_all_away():
    assert kept_work([start(1), epoch(1, 0, 1.0), start(2, resumed_at=0)]) == {}


def test_an_attempt_that_only_validates_keeps_all():
    entries = [*three_attempts(), start(4, resumed_at=4), work(4, "validation", 1.0)]
    assert list(kept_work(entries)) == [0, 1, 2, 3]


# --- epochs and stages


def test_epochs_table():
    table = epochs_table(three_attempts())
    assert list(table.columns) == EPOCHS
    assert table["epoch"].tolist() == [0, 1, 2, 3]
    assert table["attempt"].tolist() == [1, 1, 2, 3]
    assert table["kwh"].tolist() == [2.0, 4.0, 32.0, 256.0]
    assert table["kg_co2eq"].tolist() == pytest.approx([0.8, 1.6, 12.8, 102.4])
    assert table["seconds"].tolist() == [10.0, 11.0, 12.0, 13.0]


def test_an_epoch_that_ends_right_after_a_checkpoint_is_shown_whole():
    """Its last part has trained no batch and has no size."""
    parts = [
        epoch(1, 3, 1.0, iterations=4, partial=True),
        epoch(1, 3, 0.1, iterations=0, voxels_per_iteration=None) | {"patch_size": None},
    ]
    table = epochs_table([start(1), *parts])
    assert note_of_last(table) == ", patch 8x4x4, pseudo Dice 0.300"
    assert table["iterations"].tolist() == [4]


def test_epochs_table_before_the_first_epoch():
    assert epochs_table([start(1)]).empty


def test_stages_table():
    table = stages_table(epochs_table(three_attempts()))
    assert list(table.columns) == STAGES
    assert table.shape[0] == 2
    first, second = table.iloc[0], table.iloc[1]
    assert (first["stage"], first["patch_size"], first["epochs"]) == (0, "8x4x4", 2)
    assert (second["stage"], second["patch_size"], second["epochs"]) == (1, "16x8x8", 2)
    assert (first["first_epoch"], second["first_epoch"]) == (0, 2)
    assert (first["kwh"], second["kwh"]) == (6.0, 288.0)
    assert (first["seconds"], second["seconds"]) == (21.0, 25.0)
    assert (first["gflop"], first["train_gflop"]) == (10.0, 8.0)
    assert (first["train_seconds"], first["val_seconds"]) == (16.0, 4.0)
    assert first["voxels_per_iteration"] == 150.0, "the mean of 100 and 200"
    assert second["train_loss"] == pytest.approx(-0.3), "of the stage's last epoch"
    assert second["pseudo_dice"] == pytest.approx(0.3)
    assert (first["batch_size"], second["batch_size"]) == (2, 2)


def test_random_epochs_are_one_stage_without_a_number():
    entries = [start(1)] + [
        {**epoch(1, n, 1.0), "stage": None, "patch_size": "random"} for n in range(3)
    ]
    table = stages_table(epochs_table(entries))
    assert len(table) == 1
    assert pd.isna(table["stage"][0])
    assert (table["epochs"][0], table["kwh"][0]) == (3, 3.0)
    energy = energy_table(entries)
    assert len(energy) == 1
    assert pd.isna(energy["stage"][0])
    assert energy["kwh_kept"][0] == 3.0


def test_one_failed_epoch_leaves_its_stage_without_energy():
    entries = three_attempts()
    entries[3] = failed(entries[3])
    table = stages_table(epochs_table(entries))
    assert math.isnan(table["kwh"][0])
    assert table["seconds"][0] == 21.0
    assert table["kwh"][1] == 288.0


# --- energy


def test_energy_table_counts_lost_work_but_does_not_keep_it():
    table = energy_table(three_attempts())
    assert list(table.columns) == ENERGY
    assert table["kwh"].sum() == 1 + 2 + 4 + 8 + 16 + 32 + 64 + 128 + 256 + 512 + 1024
    assert table["kwh_kept"].sum() == 2 + 4 + 32 + 256 + 1024
    lost = row_of(table, attempt=1, phase="training", stage=1)
    assert (lost["kwh"], lost["kwh_kept"], lost["epochs"]) == (8.0, 0.0, 1)
    half = row_of(table, attempt=2, phase="training", stage=1)
    assert (half["kwh"], half["kwh_kept"], half["epochs"]) == (96.0, 32.0, 2)
    assert half["kg_co2eq_kept"] == pytest.approx(12.8)
    assert (half["cpu_kwh"], half["ram_kwh"], half["gpu_kwh"]) == (48.0, 48.0, 0.0)
    assert half["g_co2eq_per_kwh"] == pytest.approx(400.0)


def test_energy_table_has_a_row_for_every_set_up():
    table = energy_table(three_attempts())
    setups = table[table["phase"] == "setup"]
    assert setups["attempt"].tolist() == [1, 2, 3]
    assert setups["kwh"].tolist() == [1.0, 16.0, 128.0]
    assert (setups["kwh_kept"] == 0).all()
    assert setups["stage"].isna().all()
    assert setups["epochs"].isna().all()
    assert table["sensors"].unique().tolist() == [METER["sensors"]]


def test_only_the_last_validation_is_kept():
    entries = [*three_attempts(), start(4, resumed_at=4), work(4, "validation", 2048.0)]
    table = energy_table(entries)
    assert row_of(table, attempt=3, phase="validation")["kwh_kept"] == 0.0
    assert row_of(table, attempt=4, phase="validation")["kwh_kept"] == 2048.0


def test_a_failing_meter_leaves_energies_empty_and_says_why(tmp_path):
    entries = three_attempts()
    entries[2] = failed(entries[2])
    table = energy_table(entries)
    row = row_of(table, attempt=1, phase="training", stage=0)
    names = ["kwh", "kg_co2eq", "kwh_kept", "kg_co2eq_kept", "cpu_kwh", "gpu_kwh", "ram_kwh"]
    assert all(math.isnan(row[name]) for name in [*names, "g_co2eq_per_kwh"])
    assert row["error"] == "OSError: no sensor"
    assert row["seconds"] == 21.0
    assert row_of(table, attempt=2, phase="setup")["error"] == ""
    write_csv(table, tmp_path / "energy.csv")
    again = pd.read_csv(tmp_path / "energy.csv")
    read = row_of(again, attempt=1, phase="training", stage=0)
    assert all(math.isnan(read[name]) for name in names)


def test_write_csv_leaves_nothing_else(tmp_path):
    write_csv(epochs_table(three_attempts()), tmp_path / "run" / "epochs.csv")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["epochs.csv"]
    assert pd.read_csv(tmp_path / "run" / "epochs.csv")["epoch"].tolist() == [0, 1, 2, 3]


# --- run.json

RUN = {
    "study": "s",
    "task": "Task98_Fake",
    "dataset": "Dataset098_Fake",
    "arm": "progressive",
    "trainer": "nnUNetTrainerProgressivePatch",
    "fold": 0,
    "configuration": "3d_fullres",
    "plans": "p",
    "parameters": {},
    "seed": 1,
    "epochs": 4,
    "iterations_per_epoch": 5,
    "validation_iterations_per_epoch": 1,
    "plans_hash": "a",
    "splits_hash": "b",
    "trainer_code": "of today",
}
PLAN = {"patch_size": [16, 8, 8], "batch_size": 2}
DATASET = {"labels": {"background": 0, "outer": 1, "inner": 2}, "file_ending": ".nii.gz"}


def summary():
    def scores(dice):
        return {"Dice": dice, "IoU": dice}

    return {
        "mean": {"1": scores(0.8), "2": scores(math.nan)},
        "foreground_mean": scores(0.8),
        "metric_per_case": [
            {"metrics": {"1": scores(0.7), "2": scores(math.nan)}},
            {"metrics": {"1": scores(0.9), "2": scores(math.nan)}},
        ],
    }


def describe(entries, folder):
    return describe_run(RUN, PLAN, DATASET, entries_of(entries), summary(), folder)


def test_describe_run_adds_up(tmp_path):
    record = describe(three_attempts(), tmp_path)
    assert record["training_kwh"] == 294.0, "kept epochs only: 2 + 4 + 32 + 256"
    assert record["training_seconds"] == 46.0
    assert (record["validation_kwh"], record["validation_seconds"]) == (1024.0, 30.0)
    assert record["total_kwh"] == 2047.0
    assert record["total_kg_co2eq"] == pytest.approx(818.8)
    assert record["total_seconds"] == 10 + 11 + 12 + 12 + 13 + 13 + 3 + 1 + 30
    assert record["training_gflop"] == 16.0
    assert (record["attempts"], record["stages"]) == (3, 2)
    assert (record["patch_size"], record["batch_size"]) == ([16, 8, 8], 2)
    assert record["started"] == "2024-05-01T00:00:00+00:00"
    assert (record["cases"], record["nan_dice"]) == (2, 2)
    assert record["label_names"] == {"1": "outer", "2": "inner"}
    assert record["results_folder"] == str(tmp_path)


def test_describe_run_writes_what_is_read(tmp_path):
    read = {*FLAT, *NESTED, *NUMBERS, *OTHER}
    assert set(describe(three_attempts(), tmp_path)) == read | set(CONDITIONS) | {
        "validation_mirroring",
        "file_ending",
        "gpu",
        *COUNTED_LATER,
        "nnunet_code",
        "imported_from",
        "environment",
    }


def test_compilation_is_no_training_time(tmp_path):
    """Nor in the sums of an epoch in parts; the total, of all work, includes it."""
    counted = {"iterations": 5, "field_of_view": None, "loss_scale": 2.0**15}
    part, end = (
        epoch(1, 0, 1.0, compile_seconds=seconds, skipped_steps=skipped, **counted)
        for seconds, skipped in ((4.0, 1), (0.5, 2))
    )
    alone = epoch(1, 1, 1.0, compile_seconds=3.0, skipped_steps=0, **counted)
    entries = [start(1), {**part, "partial": True}, end, alone, work(1, "validation", 1.0)]
    table = epochs_table(entries)
    assert table["seconds"].tolist() == [20.0 - 4.5, 11.0 - 3]
    assert table["compile_seconds"].tolist() == [4.5, 3.0]
    assert table["skipped_steps"].tolist() == [3, 0]
    assert table["loss_scale"].tolist() == [2.0**15] * 2
    (stage,) = stages_table(table).to_dict("records")
    assert (stage["seconds"], stage["compile_seconds"], stage["skipped_steps"]) == (23.5, 7.5, 3)
    record = describe(entries, tmp_path)
    assert record["training_seconds"] == 23.5
    assert record["total_seconds"] == 31 + 1
    assert (record["compile_seconds"], record["skipped_steps"]) == (7.5, 3)
    json.dumps(record, allow_nan=False)
    assert describe(three_attempts(), tmp_path)["skipped_steps"] is None, "of earlier versions"


def test_waiting_is_summed_and_the_largest_memory_kept(tmp_path):
    used = [(2.0, 900.0, 4000.0), (1.0, 950.0, 4100.0), (0.5, 940.0, 3000.0)]
    names = ("wait_seconds", "process_peak_mb", "device_peak_mb")
    part, end, alone = (
        epoch(1, n, 1.0, iterations=5, train_seconds=7.0, **dict(zip(names, values, strict=True)))
        for n, values in zip((0, 0, 1), used, strict=True)
    )
    entries = [start(1), {**part, "partial": True}, end, alone, work(1, "validation", 1.0)]
    table = epochs_table(entries)
    assert table[list(names)].to_numpy().tolist() == [[3.0, 950.0, 4100.0], [0.5, 940.0, 3000.0]]
    (stage,) = stages_table(table).to_dict("records")
    assert [stage[name] for name in names] == [3.5, 950.0, 4100.0]
    record = describe(entries, tmp_path)
    assert record["wait_share"] == pytest.approx(3.5 / 21)
    assert (record["process_peak_mb"], record["device_peak_mb"]) == (950, 4100)
    for missing in ("wait_share", "process_peak_mb", "device_peak_mb"):
        assert describe(three_attempts(), tmp_path)[missing] is None, "of earlier versions"


def test_a_loss_that_is_not_finite_is_an_empty_cell():
    table = epochs_table([start(1), {**epoch(1, 0, 1.0), "train_loss": None}])
    assert table["train_loss"].isna().all()
    assert table["train_loss"].dtype == float


def test_describe_run_adds_up_a_validation_in_parts(tmp_path):
    record = describe(validated_in_parts(), tmp_path)
    assert record["validation_kwh"] == 1.0 + 16 + 32 + 1024
    assert record["validation_seconds"] == 2.0 + 2 + 2 + 30
    assert (record["attempts"], record["finished"]) == (5, "2026-01-03")
    assert record["validation_mirroring"] is True


def test_describe_run_turns_nan_into_none(tmp_path):
    entries = three_attempts()
    entries[2] = failed(entries[2])
    record = describe(entries, tmp_path)
    assert record["dice_per_label"] == {"1": 0.8, "2": None}
    assert record["training_kwh"] is None
    assert record["total_kwh"] is None
    assert record["validation_kwh"] == 1024.0
    text = json.dumps(record, allow_nan=False)
    assert json.loads(text)["training_kg_co2eq"] is None


def test_versions_are_of_the_attempt_that_trained(tmp_path):
    entries = [
        *three_attempts(),
        start(4, resumed_at=4, device="cuda", gpu_model="Other"),
        work(4, "validation", 1.0),
    ]
    record = describe(entries, tmp_path)
    assert record["attempts"] == 4
    assert record["versions"] == {"torch": "3.0"}
    assert record["git_commit"] == "commit3"
    assert record["trainer_code"] == "code3", "not today's code"
    assert (record["device"], record["gpu_model"]) == ("cpu", None)
    assert record["validation_kwh"] == 1.0


def test_the_voxels_of_an_epoch_in_parts_are_the_mean_over_its_iterations():
    parts = [
        epoch(1, 0, 0.1, iterations=1, voxels_per_iteration=100.0, partial=True),
        epoch(1, 0, 0.1, iterations=3, voxels_per_iteration=200.0),
    ]
    table = epochs_table([start(1), *parts])
    assert table["voxels_per_iteration"].tolist() == [(100 + 3 * 200) / 4]
