"""The ledger: what is written is read again, also from a file of an earlier version or a kill."""

import json
import math

import pytest

from helpers.ledger_lines import end, entries_of, start, work
from workflow_scripts.common.errors import UserError
from workflow_scripts.records.energy_reading import MeterDescription, Reading
from workflow_scripts.records.ledger import (
    CaseWork,
    End,
    EpochResult,
    EpochWork,
    Ledger,
    MemoryKills,
    Start,
    Steps,
    ValidationWork,
    Work,
    killed_attempts,
)

READING = Reading(2.0, 1.0, 0.0, 1.0, 0.8, "", 3.0, 4.0, "another process used GPU 0")
STEPS = Steps(
    epoch=4,
    stage=None,
    patch_size="random",
    field_of_view="16x8x8",
    augmentation=0.5,
    batch_size=None,
    gflop=5.0,
    train_seconds=8.0,
    val_seconds=2.0,
    train_gflop=4.0,
    voxels_per_iteration=100.0,
    iterations=7,
    skipped_steps=1,
    loss_scale=1024.0,
    wait_seconds=0.5,
    process_peak_mb=900.0,
    device_peak_mb=2000.0,
)
COMMON = {"attempt": 2, "seconds": 9.0, "compile_seconds": 0.5, "reading": READING}
ENTRIES = [
    Start(
        attempt=2,
        resumed_at=4,
        resumed_within=3,
        threads=2,
        device="cuda",
        precision="fp32",
        memory_format="contiguous",
        gpu="GPU 0",
        meter=MeterDescription(
            sensors="GPU: nvml energy",
            cpu_source="estimate",
            gpu_source="counter",
            ram_source="",
            tracking_mode="process",
            country="DEU",
            intensity_year=2023,
            pue=1.2,
        ),
        memory_kills=MemoryKills("boot /slurm", 3),
        started="2026-01-01T00:00:00+00:00",
        host="node7",
        job="12",
        git_commit=None,
        trainer_code="code",
        nnunet_code="other code",
        imported_from={"torch": "/opt"},
        environment={"OMP_NUM_THREADS": "1"},
        versions={"torch": "2.14.1"},
        gpu_model="H100",
    ),
    Work(phase="setup", **COMMON),
    EpochWork(steps=STEPS, **COMMON),
    EpochWork(
        steps=STEPS,
        result=EpochResult(
            lr=0.01,
            train_loss=None,
            val_loss=-0.2,
            pseudo_dice=0.7,
            pseudo_dice_by_scale={"0.5": 0.7},
        ),
        **COMMON,
    ),
    Work(phase="end of training", **COMMON),
    CaseWork(case="a", **COMMON),
    ValidationWork(checkpoint="abc", mirroring=False, ended="2026-01-02", **COMMON),
    End(attempt=2, how="finished", ended="2026-01-02"),
    End(attempt=3, how="without a message", reached="epoch 4", cause="killed"),
]


def test_every_kind_of_entry_is_read_as_it_was_written(tmp_path):
    ledger = Ledger(tmp_path / "new" / "ledger.jsonl")
    assert ledger.read() == []
    for entry in ENTRIES:
        ledger.append(entry)
    assert Ledger(ledger.path).read() == ENTRIES


# In the format of version 0.2.0 at commit 1acd6cf, which knew of no compilation, skipped steps or
# processor time.
OF_1ACD6CF = """
{"entry": "attempt", "attempt": 1, "resumed_at": 0, "resumed_within": 0, "threads": 1, \
"device": "cpu", "precision": "fp32", "memory_format": "channels_last", "gpu": null, "meter": \
{"sensors": "CPU: cpu_load (8 W TDP); RAM: estimate", "tracking_mode": "process", "country": \
"DEU", "intensity_year": 2023, "pue": 1.0, "cpu_model": "AMD EPYC", "gpu_model": "", \
"codecarbon": "3.3.2"}, "memory_kills": {"group": "35df /jobs", "count": 0}, "started": \
"2026-11-30T17:36:33+00:00", "host": "node", "job": null, "git_commit": "1acd6cfe49ac", \
"trainer_code": "c8054808e4ddb9d5", "versions": {"workflow": "0.2.0", "python": "3.11.7", \
"torch": "2.14.1", "nnunetv2": "2.8.1", "batchgeneratorsv2": "0.3.6", "codecarbon": "3.3.2"}, \
"gpu_model": null}
{"entry": "work", "attempt": 1, "phase": "setup", "seconds": 0.39, "kwh": 1.4e-06, "cpu_kwh": \
3.2e-07, "gpu_kwh": 0.0, "ram_kwh": 1.1e-06, "kg_co2eq": 5.4e-07, "error": ""}
{"entry": "work", "attempt": 1, "phase": "training", "partial": true, "epoch": 0, "stage": 0, \
"patch_size": "16x16x16", "field_of_view": "32x40x32", "augmentation": 0.0, "batch_size": 2, \
"gflop": 10.0, "train_seconds": 1.5, "val_seconds": 0.0, "train_gflop": 10.0, \
"voxels_per_iteration": 8192.0, "iterations": 15, "seconds": 2.0, "kwh": 1.0e-05, "cpu_kwh": \
3.0e-06, "gpu_kwh": 0.0, "ram_kwh": 7.0e-06, "kg_co2eq": 4.0e-06, "error": ""}
{"entry": "end", "attempt": 1, "how": "SIGTERM", "ended": "2026-11-30T17:36:40+00:00"}
{"entry": "attempt", "attempt": 2, "resumed_at": 0, "resumed_within": 15, "threads": 1, \
"device": "cpu", "precision": "fp32", "memory_format": "channels_last", "gpu": null, "meter": \
{"sensors": "CPU: cpu_load (8 W TDP); RAM: estimate", "tracking_mode": "process", "country": \
"DEU", "intensity_year": 2023, "pue": 1.0, "cpu_model": "AMD EPYC", "gpu_model": "", \
"codecarbon": "3.3.2"}, "memory_kills": null, "started": "2026-11-30T17:37:00+00:00", "host": \
"node", "job": "7", "git_commit": "1acd6cfe49ac", "trainer_code": "c8054808e4ddb9d5", \
"versions": {"workflow": "0.2.0"}, "gpu_model": null}
{"entry": "work", "attempt": 2, "phase": "training", "epoch": 0, "stage": 0, "patch_size": \
"16x16x16", "field_of_view": "32x40x32", "augmentation": 0.0, "batch_size": 2, "gflop": 12.0, \
"train_seconds": 1.25, "val_seconds": 0.25, "train_gflop": 10.0, "voxels_per_iteration": \
8192.0, "iterations": 15, "lr": 0.003, "train_loss": 0.84, "val_loss": 0.71, "pseudo_dice": \
0.25, "seconds": 3.0, "kwh": 1.2e-05, "cpu_kwh": 3.5e-06, "gpu_kwh": 0.0, "ram_kwh": 9.2e-06, \
"kg_co2eq": 4.8e-06, "error": ""}
{"entry": "work", "attempt": 2, "phase": "end of training", "seconds": 0.1, "kwh": 1.0e-07, \
"cpu_kwh": 5.0e-08, "gpu_kwh": 0.0, "ram_kwh": 5.0e-08, "kg_co2eq": 4.0e-08, "error": ""}
{"entry": "work", "attempt": 2, "phase": "validation", "partial": true, "case": "a", "seconds": \
0.5, "kwh": 2.0e-06, "cpu_kwh": 1.0e-06, "gpu_kwh": 0.0, "ram_kwh": 1.0e-06, "kg_co2eq": \
8.0e-07, "error": ""}
{"entry": "work", "attempt": 2, "phase": "validation", "checkpoint": "d1ce", "mirroring": true, \
"ended": "2026-11-30T17:38:00+00:00", "seconds": 0.25, "kwh": 1.0e-06, "cpu_kwh": 5.0e-07, \
"gpu_kwh": 0.0, "ram_kwh": 5.0e-07, "kg_co2eq": 4.0e-07, "error": ""}
{"entry": "end", "attempt": 2, "how": "finished", "ended": "2026-11-30T17:38:00+00:00"}
""".lstrip()


def test_a_ledger_of_an_earlier_version_is_read(tmp_path):
    from workflow_scripts.records.run_tables import energy_table, epochs_table, kept_validation

    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.path.write_text(OF_1ACD6CF)
    entries = ledger.read()
    kinds = [Start, Work, EpochWork, End, Start, EpochWork, Work, CaseWork, ValidationWork, End]
    assert [type(entry) for entry in entries] == kinds
    assert entries[0].memory_kills == MemoryKills("35df /jobs", 0)
    assert (entries[0].nnunet_code, entries[0].meter.cpu_source) == (None, None)
    (epoch,) = epochs_table(entries).to_dict("records")
    assert (epoch["attempt"], epoch["iterations"], epoch["seconds"]) == (2, 30, 5.0)
    assert (epoch["gflop"], epoch["train_seconds"], epoch["pseudo_dice"]) == (22.0, 2.75, 0.25)
    assert (epoch["patch_size"], epoch["field_of_view"]) == ("16x16x16", "32x40x32")
    assert math.isnan(epoch["compile_seconds"])
    energy = energy_table(entries).set_index(["attempt", "phase"])
    assert energy.loc[(1, "training"), "kwh_kept"] == 1.0e-05
    assert energy.loc[(2, "validation"), "kwh_kept"] == pytest.approx(3.0e-06)
    assert energy["cpu_source"].unique().tolist() == ["estimate"], "from its sensors"
    assert kept_validation(entries).end.checkpoint == "d1ce"
    assert killed_attempts(entries) == 0


@pytest.mark.parametrize("cut", ['{"entry": "end", "att', "{", "\0\0\0"])
def test_a_line_cut_short_is_ignored_and_not_continued(tmp_path, cut):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append(ENTRIES[-2])
    with ledger.path.open("a") as file:
        file.write(cut)
    assert ledger.read() == ENTRIES[-2:-1]
    ledger.append(ENTRIES[-1])
    assert ledger.read() == ENTRIES[-2:]
    assert ledger.path.read_text().endswith("}\n")


def test_a_whole_line_without_its_end_counts(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.path.write_text(json.dumps(end(1)))
    ledger.append(ENTRIES[-1])
    assert ledger.read() == [*entries_of([end(1)]), ENTRIES[-1]]


def test_a_number_that_is_not_known_survives_the_ledger(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append(Work(attempt=1, phase="setup", seconds=1.0, reading=Reading(error="no sensor")))
    (found,) = ledger.read()
    assert math.isnan(found.reading.kwh)
    assert found.reading.error == "no sensor"


@pytest.mark.parametrize("line", ['{"n": 0}', "12", '{"entry": "end", "how": "finished"}'])
def test_a_line_that_is_no_entry_is_named(tmp_path, line):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.path.write_text(json.dumps(end(1)) + f"\n{line}\n")
    with pytest.raises(UserError, match=r"ledger\.jsonl, line 2 is no entry of a ledger"):
        ledger.read()


@pytest.mark.parametrize(
    ("ends", "killed"),
    [
        (["time limit", "SIGTERM", "finished"], 0),
        (["time limit", None], 1),
        (["without a message", "time limit", None], 2),
        ([], 0),
    ],
)
def test_attempts_without_an_end_or_a_message_were_killed(ends, killed):
    lines = []
    for number, how in enumerate(ends, start=1):
        lines += [start(number), work(number, "training")]
        lines += [end(number, how)] if how else []
    assert killed_attempts(entries_of(lines)) == killed


READ = {"cpu_seconds": 3.0, "machine_cpu_seconds": 4.0, "note": "", "compile_seconds": 0.5}
LINES = {
    "epoch": work(
        1,
        "training",
        field_of_view="8x4x4",
        augmentation=1.0,
        iterations=5,
        skipped_steps=0,
        loss_scale=None,
        wait_seconds=0.1,
        process_peak_mb=500.0,
        device_peak_mb=None,
        **READ,
    ),
    "case": work(1, "validation", partial=True, case="a", **READ),
    "end": end(1) | {"ended": "2026-01-01"},
    "killed": end(1, "without a message") | {"reached": "epoch 3", "cause": "killed"},
}
del LINES["case"]["mirroring"], LINES["case"]["ended"]


@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
def test_the_file_has_the_same_keys_as_before(tmp_path, line):
    """Others read it too: it is one flat object a line, and what is unknown is left out."""
    (entry,) = entries_of([line])
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append(entry)
    assert json.loads(ledger.path.read_text()) == line
