"""`snakemake forecast`: from plans alone, and a budget that stops a study before its training."""

import itertools
import json
import os
import re
import shutil
import time

import pandas as pd
import pytest

from helpers.quick_study import quick_snakemake
from helpers.tree import plan, said, trainings

JOBS = {"forecast_study": 1, "plot_forecast": 1, "forecast": 1}
PAPER = ("--configfile", "config/studies/paper.yaml")
NO_HOURS = "budget={gpu_hours: 0.001}"


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return tmp_path_factory.mktemp("tree")


@pytest.mark.parametrize("name", ["demo", "hippocampus", "paper"])
def test_a_forecast_needs_no_data(tree, name):
    jobs, _ = plan(tree, "forecast", "--configfile", f"config/studies/{name}.yaml")
    assert jobs == JOBS


def test_without_budget_and_time_limit_no_training_knows_of_the_forecast(tree):
    jobs, text = plan(tree, *PAPER, "--config", "cluster={max_runtime_minutes: null}")
    assert not jobs.keys() & {"forecast_study", "check_budget"}
    assert "within_budget" not in text


def test_with_a_budget_every_training_waits_for_the_check(tree):
    jobs, text = plan(tree, *PAPER, "--config", "budget={kg_co2eq: 100}")
    assert jobs["check_budget"] == jobs["forecast_study"] == 1
    assert len(trainings(text)) == 450
    assert text.count("results/paper/forecast/needs.json") >= 451
    assert "results/paper/forecast/within_budget.json" in text


def test_with_a_time_limit_every_training_waits_for_the_forecast(tree):
    jobs, text = plan(tree, *PAPER)
    assert jobs["forecast_study"] == 1
    assert "check_budget" not in jobs
    assert jobs["check_needs"] == 1
    assert text.count("results/paper/forecast/needs.json") >= 451


def test_a_training_on_the_cpu_is_not_timed_by_the_calibration_of_a_gpu(tree):
    jobs, _ = plan(tree, "--config", "cluster={max_runtime_minutes: 60}")
    assert "forecast_study" not in jobs


def test_a_budget_needs_the_plans_that_nobody_published(tree):
    jobs, text = plan(tree, "results/demo/forecast/within_budget.json", "--config", NO_HOURS)
    assert jobs["plan_task"] == 1
    assert trainings(text) == set()


@pytest.mark.parametrize("setting", ["budget={gpu_hours: 5}", "cluster={max_runtime_minutes: 60}"])
def test_what_is_forecast_anew_trains_no_finished_fold_again(tree, setting):
    """Empty files stand for a finished study; each is newer than the one before."""
    study = ("--configfile", "config/studies/hippocampus.yaml", "--config", setting)
    _, text = plan(tree, "results/hippocampus/tables/runs.csv", *study)
    preprocessed = "resources/nnUNet_preprocessed/Dataset004_Hippocampus"
    data = sorted(set(re.findall(rf"{preprocessed}/\w+(?:\.manifest)?\.json", text)))
    runs = sorted(set(re.findall(r"results/hippocampus/runs/\S+/run\.json", text)))
    forecast = [f"results/hippocampus/forecast/forecast.{kind}" for kind in ("csv", "md")]
    check = "results/hippocampus/forecast/within_budget.json"
    needs = "results/hippocampus/forecast/needs.json"
    younger = itertools.count(time.time() - 2, 0.01)

    def touch(*names):
        for name in names:
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).touch()
            moment = next(younger)
            os.utime(tree / name, (moment, moment))

    try:
        touch(*data, *(name for run in runs for name in outputs_of(run)), *forecast, check)
        assert len(runs) == 9 * 3
        assert plan(tree, *runs, *study)[0] == {}, "a finished study needs no check"
        touch(needs)
        assert plan(tree, *runs, *study)[0] == {}
        (tree / forecast[0]).write_text("task,arm,hours,kg_co2eq\nTask04_Hippocampus,a,4,1\n")
        touch(*forecast)
        assert plan(tree, *runs, *study)[0] == {}
        if setting.startswith("budget"):
            run = quick_snakemake(tree, check, "--cores", "1", *study)
            assert run.returncode == 0, run.stdout + run.stderr
            assert json.loads((tree / check).read_text())["gpu_hours"]["forecast"] == 4
        (tree / needs).touch()
        (tree / runs[0]).unlink()
        assert plan(tree, *runs, *study)[0] == {"train_fold": 1}
    finally:
        shutil.rmtree(tree / "resources")
        shutil.rmtree(tree / "results")


def outputs_of(run):
    tables = [run.replace("run.json", f"{name}.csv") for name in ("epochs", "stages", "energy")]
    return [run, *tables, run.replace("run.json", "summary.json")]


@pytest.fixture(scope="module")
def forecast(tree):
    """The folder of the full study's forecast."""
    run = quick_snakemake(tree, "--cores", "1", "forecast", *PAPER)
    assert run.returncode == 0, run.stdout + run.stderr
    return tree / "results/paper/forecast"


@pytest.mark.slow
def test_the_paper_is_forecast(forecast):
    table = pd.read_csv(forecast / "forecast.csv")
    assert len(table) == 90
    assert (table["folds"] == 5).all()
    hours = table.pivot(index="task", columns="arm", values="hours")
    assert 9 < hours.loc["Task04_Hippocampus", "constant"] < 11  # published: 5 folds of 1.9 h
    assert (hours["progressive"] < hours["constant"]).all()
    assert (hours["low_frequency_iterations"] < hours["constant"]).all()
    assert (hours["progressive_performance"] > hours["progressive_efficiency"]).all()
    assert {path.suffix for path in forecast.iterdir()} == {".csv", ".md", ".svg", ".png"}
    assert not (forecast.parents[2] / "resources").exists()


@pytest.mark.slow
def test_a_search_is_forecast_with_the_one_seed_that_it_trains(tree):
    study = ["--configfile", "config/studies/hippocampus.yaml", "--config", "seeds=[1, 7]"]
    both = ["results/hippocampus/forecast/forecast.csv", "results/hippocampus/search/forecast.csv"]
    try:
        run = quick_snakemake(tree, "--cores", "1", *both, *study)
        assert run.returncode == 0, run.stdout + run.stderr
        tables = [pd.read_csv(tree / path) for path in both]
    finally:
        shutil.rmtree(tree / "results/hippocampus", ignore_errors=True)
    assert [table["seeds"].unique().tolist() for table in tables] == [[2], [1]]


@pytest.mark.slow
def test_a_forecast_is_made_once_and_anew_when_a_plan_or_the_study_changes(tree, forecast):
    assert plan(tree, "forecast", *PAPER)[0] == {}
    assert plan(tree, "forecast", *PAPER, "--config", "folds=[0]")[0] == JOBS
    plans = tree / "resources/nnUNet_preprocessed/Dataset004_Hippocampus/nnUNetPlans.json"
    plans.parent.mkdir(parents=True)
    plans.write_text("{}")
    jobs = plan(tree, "forecast", *PAPER)[0]
    plans.unlink()
    assert jobs == JOBS


@pytest.mark.slow
def test_a_budget_stops_the_study_with_its_arithmetic(tree, forecast):
    check = "results/paper/forecast/within_budget.json"
    run = quick_snakemake(tree, check, "--cores", "1", *PAPER, "--config", NO_HOURS)
    assert run.returncode != 0
    lines = [line for line in said(run.stderr) if line.startswith("Error: the study paper")]
    assert len(lines) == 1
    assert "budget.gpu_hours is 0.001" in lines[0]
    assert "constant 335 + progressive 178" in lines[0]
    assert not (tree / check).exists()
    enough = ("--config", "budget={gpu_hours: 5000, kg_co2eq: 500}")
    run = quick_snakemake(tree, check, "--cores", "1", *PAPER, *enough)
    assert run.returncode == 0, run.stderr
    assert json.loads((tree / check).read_text())["gpu_hours"]["limit"] == 5000
