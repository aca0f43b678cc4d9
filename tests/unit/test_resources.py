"""What jobs ask a scheduler for, and how long it lets a process run."""

import json
import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

import time_limit
from resources import NEEDS, Images, Requests, forecast_hours, image_sizes, killed_attempts

ROOT = Path(__file__).resolve().parents[2]
LIVER, FAKE = "Task03_Liver", "Task98_Fake"
RUN = {"study": "s", "arm": "a", "dataset": "d", "trainer": "t", "plans": "p", "fold": 1}


@pytest.fixture
def requests(tmp_path, monkeypatch):
    """Make the answers for a study in an empty folder; keyword arguments change `cluster`."""
    monkeypatch.chdir(tmp_path)

    def make(calibration="published", device="auto", tasks=(LIVER, FAKE), **cluster):
        defaults = {"max_runtime_minutes": 1440, "forecast_margin": 1.5, "max_memory_mb": None}
        config = {
            "tasks": list(tasks),
            "cluster": {**defaults, **cluster},
            "forecast": {"calibration": calibration},
            "training": {"device": device},
        }
        datasets = {LIVER: "Dataset003_Liver", FAKE: "Dataset098_Fake"}
        run = {**RUN, "configuration": "3d_fullres"}
        table = ROOT / "config/published/nnunet_plans.tsv"
        return Requests(config, table, datasets, lambda wildcards: run)

    return make


def job(**wildcards):
    return SimpleNamespace(**wildcards)


def write_forecast(hours=20.0):
    path = Path("results/s/forecast/forecast.csv")
    path.parent.mkdir(parents=True)
    path.write_text(f"task,arm,folds,hours\n{LIVER},a,5,{hours}\n{FAKE},a,5,\n")


def rules():
    """Yield name and text of every rule."""
    for path in ROOT.glob("rules/*.smk"):
        parts = re.split(r"^(?:rule|checkpoint) (\w+):\n", path.read_text(), flags=re.MULTILINE)
        yield from zip(parts[1::2], parts[2::2], strict=True)


def test_every_rule_asks_for_memory_and_time_or_runs_where_snakemake_does():
    assert {name for name, body in rules() if "mem_mb=" in body and "runtime=" in body} == set(
        NEEDS
    )
    for name, body in rules():
        assert ("    localrule: True\n" in body) == (name not in NEEDS), name


def test_sizes_come_from_the_fingerprint_if_there_is_one(tmp_path):
    fingerprint = tmp_path / "dataset_fingerprint.json"
    published = {"median_shape": "[100, 100, 50]", "n_input_channels": "2", "n_training_cases": "3"}
    assert image_sizes(fingerprint, published) == Images(largest=3.0, total=3.0)
    assert image_sizes(fingerprint, None).largest == 100
    content = {
        "shapes_after_crop": [[100, 100, 100], [200, 100, 100]],
        "foreground_intensity_properties_per_channel": {"0": {}, "1": {}},
    }
    fingerprint.write_text('{"shapes_after')
    assert image_sizes(fingerprint, published).largest == 3
    fingerprint.write_text(json.dumps(content))
    assert image_sizes(fingerprint, published) == Images(largest=4.0, total=6.0)


def test_memory_grows_with_processes_images_and_attempts(requests):
    liver = job(dataset="Dataset003_Liver")
    ask = requests(max_memory_mb=500_000).memory_mb
    one, eight = (ask(liver, threads, 1, "preprocess_task") for threads in (1, 8))
    assert eight > 3 * one > 3 * 2000
    assert ask(job(dataset="Dataset098_Fake"), 8, 1, "preprocess_task") < eight
    grown = [ask(liver, 1, attempt, "preprocess_task") / one for attempt in (2, 3, 9)]
    assert grown == pytest.approx([1.5, 2.25, 3.0], rel=1e-3)
    assert requests(max_memory_mb=9000).memory_mb(liver, 8, 1, "preprocess_task") == 9000


def test_a_rule_of_all_tasks_has_room_for_the_largest(requests):
    ask = requests().memory_mb
    assert ask(job(study="s"), 1, 1, "plot_predictions") == ask(
        job(task=LIVER), 1, 1, "plot_predictions"
    )


def test_time_of_other_jobs_follows_the_images_and_is_bounded(requests):
    liver = job(dataset="Dataset003_Liver")
    ask = requests(max_runtime_minutes=None).minutes
    four, sixteen = (ask(liver, threads, 1, "preprocess_task") for threads in (4, 16))
    fixed = NEEDS["preprocess_task"].minutes
    assert (four - fixed) / (sixteen - fixed) == pytest.approx(4, rel=0.05)
    assert ask(liver, 8, 2, "preprocess_task") == pytest.approx(
        2 * ask(liver, 8, 1, "preprocess_task"), abs=2
    )
    assert requests(max_runtime_minutes=60).minutes(liver, 1, 3, "preprocess_task") == 60


def test_time_of_a_training_is_the_forecast_with_a_margin(requests):
    training = job(study="s", task=LIVER, arm="a")
    ask = requests().training_minutes
    assert ask(training, 1) == 1440, "nothing is forecast yet"
    write_forecast()  # of five folds
    assert forecast_hours(Path("results/s/forecast/forecast.csv"), LIVER, "a") == 4
    assert [ask(training, attempt) for attempt in (1, 2, 9)] == [380, 740, 1440]
    assert requests(forecast_margin=3.0).training_minutes(training, 1) == 740
    assert requests(max_runtime_minutes=240).training_minutes(training, 1) == 240
    assert ask(job(study="s", task=FAKE, arm="a"), 1) == 1440, "not planned"


@pytest.mark.parametrize(
    ("chosen", "decides"),
    [
        ({}, True),
        ({"max_runtime_minutes": None}, False),
        ({"device": "cpu"}, False),
        ({"device": "cpu", "calibration": "measured"}, True),
    ],
)
def test_the_calibration_of_a_gpu_times_no_training_on_the_cpu(requests, chosen, decides):
    asked = requests(**chosen)
    assert asked.forecast_decides is decides
    write_forecast()
    limit = chosen.get("max_runtime_minutes", 1440)
    minutes = asked.training_minutes(job(study="s", task=LIVER, arm="a"), 1)
    assert minutes == (380 if decides else limit)


def test_memory_of_a_training_grows_with_kills_and_not_with_slices(requests):
    training = job(study="s", task=LIVER, arm="a", fold="1")
    ask = requests().training_memory_mb
    first = ask(training, 8)
    ledger = Path("results/s/nnunet/a/d/t__p__3d_fullres/fold_1/ledger.jsonl")
    ledger.parent.mkdir(parents=True)

    def after(*ends):
        lines = []
        for attempt, how in enumerate(ends, start=1):
            lines.append({"entry": "attempt", "attempt": attempt})
            lines.append({"entry": "work", "attempt": attempt, "phase": "training", "epoch": 1})
            lines += [{"entry": "end", "attempt": attempt, "how": how}] if how else []
        ledger.write_text(
            "".join(json.dumps(line) + "\n" for line in lines) + '{"entry": "end", "at'
        )
        return killed_attempts(ledger), ask(training, 8)

    assert after("time limit", "SIGTERM", "time limit") == (0, first)
    assert after("time limit", None) == (1, pytest.approx(1.5 * first, abs=1))
    assert after("without a message", "time limit", None)[0] == 2
    assert killed_attempts(Path("nowhere")) == 0


def test_disk_follows_the_archive(requests):
    before = requests().disk_mb(job(task=LIVER), "extract_task")
    archive = Path("resources/archives/Task03_Liver.tar")
    archive.parent.mkdir(parents=True)
    with archive.open("wb") as file:
        os.truncate(file.fileno(), 4_000_000_000)
    assert requests().disk_mb(job(task=LIVER), "extract_task") == before + 10_000


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("1-02:03:30\n", 1563.5),
        ("2:03:30", 123.5),
        ("5:30", 5.5),
        ("0:00", 0),
        ("UNLIMITED", None),
        ("INVALID", None),
    ],
)
def test_durations_of_slurm(text, minutes):
    assert time_limit.read_duration(text) == minutes


@pytest.mark.parametrize(
    ("job_id", "script", "minutes"),
    [
        ("", "echo 5:30", None),
        ("7", 'test "$*" = "--noheader --format=%L --job 7" && echo 5:30', 5.5),
        ("7", "echo UNLIMITED", None),
        ("7", "echo no contact >&2; exit 1", 60),
        ("7", None, 60),
    ],
)
def test_slurm_is_asked_how_much_time_is_left(tmp_path, monkeypatch, job_id, script, minutes):
    if script:
        (tmp_path / "squeue").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}")
    monkeypatch.setenv("SLURM_JOB_ID", job_id)
    assert time_limit.minutes_left(asked=60) == minutes
