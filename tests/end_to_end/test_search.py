"""A tiny search for a schedule of frequencies, interrupted after its first trial, by Snakemake."""

import re

import pandas as pd
import pytest
import yaml

from helpers.quick_study import quick_snakemake
from helpers.tiny_study import CONFIG, TASK
from helpers.tree import write_config

pytestmark = pytest.mark.ci

CHANGES = {
    "study": "searched",
    "arms": {"constant": {"trainer": "nnUNetTrainerConstantPatch"}},
    "search": {"candidates": ["1/2"], "parts": 3, "stages": 3, "epochs": 3},
}
TRIAL = "search_1of2_1_1"


def trained(run):
    return re.findall(rf"Training {TASK}, (search\w+), fold 0", run.stdout + run.stderr)


@pytest.fixture(scope="module")
def search(tmp_path_factory):
    folder = tmp_path_factory.mktemp("search")
    config = write_config(folder, "searched", {**CONFIG, **CHANGES})
    arguments = ["--cores", "2", "--configfile", config]
    one = f"results/searched/runs/{TASK}/{TRIAL}/fold_0/run.json"
    first = quick_snakemake(folder, one, *arguments)
    assert first.returncode == 0, first.stdout + first.stderr
    assert trained(first) == [TRIAL]
    run = quick_snakemake(folder, "search_curriculum", *arguments)
    assert run.returncode == 0, run.stdout + run.stderr
    return folder, arguments, run


def test_what_was_trained_before_an_interruption_is_not_trained_again(search):
    folder, arguments, run = search
    done = trained(run)
    assert TRIAL not in done
    assert "search_1_1_1" in done
    assert len(done) == len(set(done)) in (1, 2), "one more if the low-pass was better"
    again = quick_snakemake(folder, "search_curriculum", "-n", *arguments)
    assert "Nothing to be done" in again.stdout + again.stderr


def test_it_forecasts_tabulates_and_finds(search):
    results = search[0] / "results/searched/search"
    forecast = pd.read_csv(results / "forecast.csv")
    table = pd.read_csv(results / "search.csv")
    assert set(table["trial"]) <= set(forecast["arm"]), "every trial was forecast"
    assert table.groupby("part")["chosen"].sum().tolist() == [1, 1]
    best = table.loc[table.groupby("part")["dice"].idxmax(), "dice"]
    assert sorted(best) == sorted(table.loc[table["chosen"], "dice"])
    # Equal computation up to whole iterations: that of 4 iterations of the planned patch per epoch.
    assert table["training_gflop"].max() < 1.1 * table["training_gflop"].min()
    fewer = table.loc[table["trial"] == TRIAL, "iterations"].iloc[0]
    assert fewer > table.loc[table["trial"] == "search_1_1_1", "iterations"].iloc[0] == 12
    arm = yaml.safe_load((results / "arms.yaml").read_text())[TASK]
    last = table[table["chosen"]].iloc[-1]["trial"]
    kept = [part.replace("of", "/") for part in last.split("_")[1:]]
    assert arm["parameters"]["frequency_fractions"] == kept
    assert f"Found: **{', '.join(kept)}**" in (results / "search.md").read_text()


def test_trials_are_no_runs_of_the_study(search):
    folder, arguments, _ = search
    run = quick_snakemake(folder, "-n", *arguments)
    assert run.returncode == 0, run.stderr
    assert not trained(run)
    assert "collect_results" in run.stdout + run.stderr
