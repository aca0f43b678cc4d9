"""The search for a schedule of frequencies: its trials, its choices and its table."""

import json
from fractions import Fraction

import pandas as pd
import pytest
import yaml

from workflow_scripts.common.errors import UserError
from workflow_scripts.search.choose_frequencies import choose_frequencies, distinct_trials
from workflow_scripts.search.tabulate_search import (
    COLUMNS,
    found_arms,
    search_table,
    to_markdown,
)
from workflow_scripts.study.curriculum_search import (
    candidates,
    most_trials,
    next_trials,
    trial_arm,
    trial_name,
    trial_parts,
)
from workflow_scripts.trainers.curricula.schedules.patch_plan import PatchPlan

SEARCH = {
    "trainer": "nnUNetTrainerLowFrequency",
    "parameters": {"lowpass": "dct"},
    "candidates": ["3/7", 0.75],
    "parts": 3,
    "stages": 6,
    "epochs": None,
    "fold": 1,
}
CONFIG = {"search": SEARCH, "training": {"epochs": 1000}}
PLAN = PatchPlan((128, 128, 128), (5, 5, 5), 2)
LOW, MIDDLE, ALL = Fraction(3, 7), Fraction(3, 4), Fraction(1)


def test_names_of_trials_hold_what_their_parts_keep():
    assert trial_name([LOW, MIDDLE, ALL]) == "search_3of7_3of4_1"
    assert trial_parts("search_3of7_3of4_1") == [LOW, MIDDLE, ALL]


def test_a_trial_is_an_arm_of_equal_stages():
    arm = trial_arm("search_3of7_3of4_1", CONFIG)
    listed = ["3/7", "3/7", "3/4", "3/4", "1", "1"]
    assert arm["parameters"] == {"lowpass": "dct", "frequency_fractions": listed}
    assert arm["trainer"] == "nnUNetTrainerLowFrequency"
    assert arm["epochs"] == 100, "a tenth of the study's"
    assert trial_arm("search_1_1_1", CONFIG | {"training": {"epochs": 20}})["epochs"] == 6
    assert trial_arm("search_1_1_1", {**CONFIG, "search": SEARCH | {"epochs": 9}})["epochs"] == 9


def test_all_frequencies_are_always_a_candidate():
    assert candidates(SEARCH) == [LOW, MIDDLE, ALL]
    assert candidates(SEARCH | {"candidates": [1, "6/14"]}) == [LOW, ALL]


def test_trials_of_a_part_differ_in_that_part_alone_and_never_keep_fewer():
    assert next_trials(SEARCH, []) == ["search_3of7_1_1", "search_3of4_1_1", "search_1_1_1"]
    assert next_trials(SEARCH, [MIDDLE]) == ["search_3of4_3of4_1", "search_3of4_1_1"]
    assert next_trials(SEARCH, [ALL]) == ["search_1_1_1"]
    assert next_trials(SEARCH, [LOW, MIDDLE]) == [], "the last part keeps all frequencies"


def test_the_longest_search_is_no_shorter_than_any():
    most = most_trials(SEARCH)
    assert most[:3] == next_trials(SEARCH, [])
    assert most[3:] == ["search_3of7_3of7_1", "search_3of7_3of4_1"], "one is there already"
    for first in candidates(SEARCH):
        trials = {*next_trials(SEARCH, []), *next_trials(SEARCH, [first])}
        assert len(trials) <= len(most)


def test_candidates_of_the_same_sizes_are_tried_once():
    """With 128 voxels in units of 32, both 2/3 and 3/4 are three units."""
    search = SEARCH | {"candidates": ["2/3", "3/4"]}
    trials = next_trials(search, [])
    assert len(trials) == 3
    assert distinct_trials(trials, CONFIG | {"search": search}, PLAN) == [
        "search_3of4_1_1",
        "search_1_1_1",
    ]


def write_runs(folder, dices):
    """Write the outputs of `train_fold` for each trial; return the paths of `run.json`."""
    paths = []
    for trial, dice in dices.items():
        path = folder / trial / "run.json"
        path.parent.mkdir(exist_ok=True)
        record = {
            "arm": trial,
            "dice_foreground_mean": dice,
            "training_gflop": 1000.0,
            "total_seconds": 60.0,
            "total_kwh": 0.001,
            "total_kg_co2eq": 0.0004,
        }
        path.write_text(json.dumps(record))
        pd.DataFrame({"iterations": [30, 12]}).to_csv(path.with_name("epochs.csv"), index=False)
        paths.append(path)
    return paths


@pytest.fixture
def search(tmp_path):
    """Run a search that chooses 3/4 for its first part and all frequencies for its second."""
    found = [choose_frequencies(CONFIG, PLAN, None, [])]
    for dices in (
        {"search_3of7_1_1": 0.80, "search_3of4_1_1": 0.85, "search_1_1_1": 0.82},
        {"search_3of4_3of4_1": 0.84, "search_3of4_1_1": 0.85},
    ):
        assert found[-1]["next"] == list(dices)
        before = tmp_path / f"part_{len(found) - 1}.json"
        before.write_text(json.dumps(found[-1]))
        records = write_runs(tmp_path, dices)
        found.append(choose_frequencies(CONFIG, PLAN, before, records))
    return found


def test_the_best_dice_of_each_part_is_kept(search):
    assert [part["decided"] for part in search] == [[], ["3/4"], ["3/4", "1"]]
    assert search[-1]["next"] == []
    rows = search[-1]["trials"]
    assert [(row["part"], row["trial"]) for row in rows if row["chosen"]] == [
        (1, "search_3of4_1_1"),
        (2, "search_3of4_1_1"),
    ]


def test_of_equal_trials_the_one_with_more_frequencies_is_kept(tmp_path):
    before = tmp_path / "part_0.json"
    before.write_text(json.dumps(choose_frequencies(CONFIG, PLAN, None, [])))
    records = write_runs(tmp_path, {"search_3of7_1_1": 0.8, "search_1_1_1": 0.8})
    assert choose_frequencies(CONFIG, PLAN, before, records)["decided"] == ["1"]


@pytest.mark.parametrize("dice", [None, float("nan")])
def test_a_trial_without_a_dice_is_named(tmp_path, dice):
    before = tmp_path / "part_0.json"
    before.write_text(json.dumps(choose_frequencies(CONFIG, PLAN, None, [])))
    records = write_runs(tmp_path, {"search_3of7_1_1": dice})
    with pytest.raises(UserError, match=r"search_3of7_1_1/run\.json has no Dice"):
        choose_frequencies(CONFIG, PLAN, before, records)


def test_table_and_page_tell_each_trial_and_count_each_training_once(search):
    found = {"Task04_Hippocampus": search[-1]}
    table = search_table(found)
    assert list(table.columns) == COLUMNS
    assert table["trial"].tolist().count("search_3of4_1_1") == 2
    assert table["iterations"].unique().tolist() == [42]
    page = to_markdown(table, found, fold=1)
    assert "Found: **3/4, 1, 1** of the frequencies." in page
    assert "The search took 4 trainings, 240 s and 4.00 Wh." in page
    assert "3/7, 1, 1" in page
    assert page.count("| yes") == 2
    assert "validation cases of fold 1" in page


def test_the_arm_that_was_found_can_be_trained(search):
    arms = found_arms({"Task04_Hippocampus": search[-1]}, CONFIG)
    arm = yaml.safe_load(yaml.safe_dump(arms))["Task04_Hippocampus"]
    assert arm["parameters"]["frequency_fractions"] == ["3/4", "3/4", "1", "1", "1", "1"]
    assert set(arm) == {"trainer", "parameters"}, "its length is the study's"
