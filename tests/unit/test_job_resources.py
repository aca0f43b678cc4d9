"""Resources that jobs request from a scheduler, and how long it lets a process run."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from helpers.environments import rules
from helpers.ledger_lines import end, start, work
from workflow_scripts.study.job_resources import (
    Images,
    JobResources,
    forecast_hours,
    image_sizes,
    read_needs,
)
from workflow_scripts.study.specification import Study
from workflow_scripts.training import preemption

ROOT = Path(__file__).resolve().parents[2]
LIVER, FAKE = "Task03_Liver", "Task98_Fake"
NEEDS_TABLE = ROOT / "config/tables/job_resources.tsv"
NEEDS = read_needs(NEEDS_TABLE)


@pytest.fixture
def requests(tmp_path, monkeypatch):
    """Return a factory of `JobResources` in an empty folder; its arguments change `cluster`."""
    monkeypatch.chdir(tmp_path)

    def make(calibration="published", device="auto", tasks=(LIVER, FAKE), **cluster):
        defaults = {"max_runtime_minutes": 1440, "forecast_margin": 1.5, "max_memory_mb": None}
        config = {
            "study": "s",
            "tasks": list(tasks),
            "arms": {"a": {"trainer": "t"}},
            "own_tasks": {FAKE: {}},
            "planning": {
                "planner": "ExperimentPlanner",
                "network": None,
                "gpu_memory_target_gb": None,
                "configuration": "3d_fullres",
                "overrides": {},
            },
            "cluster": {**defaults, **cluster},
            "forecast": {"calibration": calibration},
            "training": {"device": device},
            "energy": {"tracking_mode": "machine"},
        }
        published = ROOT / "config/published/nnunet_plans.tsv"
        return JobResources(Study(config, {LIVER: {}}), NEEDS_TABLE, published)

    return make


def job(**wildcards):
    return SimpleNamespace(seed_suffix="", **wildcards)


def write_forecast(hours=20.0, seeds=1):
    path = Path("results/s/forecast/forecast.csv")
    path.parent.mkdir(parents=True)
    path.write_text(f"task,arm,folds,seeds,hours\n{LIVER},a,5,{seeds},{hours}\n{FAKE},a,5,1,\n")


def test_every_rule_asks_for_memory_and_time_or_runs_where_snakemake_does():
    for name, rule in rules().items():
        assert rule.is_local == (name not in NEEDS), name
        assert ("mem_mb" in rule.resources) == ("runtime" in rule.resources) == (name in NEEDS)
    assert set(NEEDS) <= set(rules())


def test_devices_are_asked_for_by_the_table(requests):
    asked = requests(device="cpu").of("train_fold")
    assert (asked["gpu"], asked["power_meter"]) == (0, 1)
    assert requests().of("evaluate_scale")["gpu"] == 1
    assert requests().of("bench_trainers")["power_meter"] == 1
    assert not {"gpu", "power_meter"} & set(requests().of("preprocess_task"))


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
    one, eight = (ask("preprocess_task", liver, threads, 1) for threads in (1, 8))
    assert eight > 3 * one > 3 * 2000
    assert ask("preprocess_task", job(dataset="Dataset098_Fake"), 8, 1) < eight
    grown = [ask("preprocess_task", liver, 1, attempt) / one for attempt in (2, 3, 9)]
    assert grown == pytest.approx([1.5, 2.25, 3.0], rel=1e-3)
    assert requests(max_memory_mb=9000).memory_mb("preprocess_task", liver, 8, 1) == 9000


def test_a_rule_of_all_tasks_has_room_for_the_largest(requests):
    ask = requests().memory_mb
    assert ask("plot_predictions", job(), 1, 1) == ask("plot_predictions", job(task=LIVER), 1, 1)


def test_time_of_other_jobs_follows_the_images_and_is_bounded(requests):
    liver = job(dataset="Dataset003_Liver")
    ask = requests(max_runtime_minutes=None).minutes
    four, sixteen = (ask("preprocess_task", liver, threads, 1) for threads in (4, 16))
    fixed = NEEDS["preprocess_task"].minutes
    assert (four - fixed) / (sixteen - fixed) == pytest.approx(4, rel=0.05)
    assert ask("preprocess_task", liver, 8, 2) == pytest.approx(
        2 * ask("preprocess_task", liver, 8, 1), abs=2
    )
    assert requests(max_runtime_minutes=60).minutes("preprocess_task", liver, 1, 3) == 60


def test_a_forecast_of_several_seeds_is_shared_by_their_trainings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_forecast(hours=60.0, seeds=3)
    assert forecast_hours(Path("results/s/forecast/forecast.csv"), LIVER, "a") == 4


def test_time_of_a_training_is_the_forecast_with_a_margin(requests):
    training = job(task=LIVER, arm="a")
    ask = requests().minutes
    assert ask("train_fold", training, 8, 1) == 1440, "nothing is forecast yet"
    write_forecast()  # of five folds
    assert forecast_hours(Path("results/s/forecast/forecast.csv"), LIVER, "a") == 4
    assert [ask("train_fold", training, 8, attempt) for attempt in (1, 2, 9)] == [380, 740, 1440]
    assert requests(forecast_margin=3.0).minutes("train_fold", training, 8, 1) == 740
    assert requests(max_runtime_minutes=240).minutes("train_fold", training, 8, 1) == 240
    assert ask("train_fold", job(task=FAKE, arm="a"), 8, 1) == 1440, "not planned"


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
    minutes = asked.minutes("train_fold", job(task=LIVER, arm="a"), 8, 1)
    assert minutes == (380 if decides else limit)


def test_memory_of_a_training_grows_with_kills_and_not_with_slices(requests):
    training = job(task=LIVER, arm="a", fold="1")
    ask = requests().memory_mb
    first = ask("train_fold", training, 8, 1)
    model = "t__nnUNetPlans__3d_fullres"
    ledger = Path(f"results/s/nnunet/a/Dataset003_Liver/{model}/fold_1/ledger.jsonl")
    ledger.parent.mkdir(parents=True)

    def after(*ends):
        lines = []
        for attempt, how in enumerate(ends, start=1):
            lines += [start(attempt), work(attempt, "training")]
            lines += [end(attempt, how)] if how else []
        ledger.write_text(
            "".join(json.dumps(line) + "\n" for line in lines) + '{"entry": "end", "at'
        )
        return ask("train_fold", training, 8, 1)

    assert after("time limit", "SIGTERM", "time limit") == first
    assert after("time limit", None) == pytest.approx(1.5 * first, abs=1)
    assert after("without a message", "time limit", None) == pytest.approx(2.25 * first, abs=1)


def test_disk_follows_the_archive(requests):
    before = requests().disk_mb("extract_task", job(task=LIVER))
    archive = Path("resources/archives/Task03_Liver.tar")
    archive.parent.mkdir(parents=True)
    with archive.open("wb") as file:
        os.truncate(file.fileno(), 4_000_000_000)
    assert requests().disk_mb("extract_task", job(task=LIVER)) == before + 10_000


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
    assert preemption.read_duration(text) == minutes


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
    assert preemption.minutes_left(asked=60) == minutes
