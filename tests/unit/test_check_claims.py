"""Verdicts on published claims: never by a demo or a short training, and right by a full study.

The full studies here are MADE UP; no number in them was measured.
"""

import copy
from pathlib import Path

import pandas as pd
import pytest
import yaml

from check_claims import check_claims, reference_sentence, to_markdown
from claims import CONTRADICTED, SUPPORTED, UNDECIDED, read_claims
from collect_results import collect_results
from fake_study import FakeStudy
from log import UserError

CONFIG = Path(__file__).parents[2] / "config"
CLAIMS, SCHEMA = CONFIG / "published/claims.yaml", CONFIG / "schemas/claims.schema.yaml"
CONTENT = read_claims(CLAIMS, SCHEMA)
PUBLISHED = pd.read_csv(CONFIG / "published/nnunet_runs.tsv", sep="\t")
MSD = tuple(PUBLISHED["task"].unique())
ARMS = ("constant", "progressive", "progressive_efficiency", "progressive_performance")
FULL = {"tasks": MSD, "arms": ARMS, "folds": (0, 1, 2, 3, 4), "epochs": 1, "cases": 1}
FULL |= {"iterations": 250_000, "plans": "nnUNetPlans"}


def runs_of(study):
    collect_results(study.write().folders(), {"runs": study.root / "runs.csv"})
    return pd.read_csv(study.root / "runs.csv")


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """runs.csv of a made-up full study in which every claim comes out as published."""
    runs = runs_of(FakeStudy(tmp_path_factory.mktemp("full"), **FULL))
    dice = {"constant": 0.8, "progressive": 0.81, "progressive_efficiency": 0.799}
    seconds = {"constant": 1000, "progressive": 500, "progressive_efficiency": 440}
    runs["dice_foreground_mean"] = runs["arm"].map(dice | {"progressive_performance": 0.8105})
    runs["training_seconds"] = runs["arm"].map(seconds | {"progressive_performance": 890})
    worse = (runs["arm"] == "progressive") & runs["task"].isin(MSD[:3])
    runs.loc[worse, "dice_foreground_mean"] = 0.79
    return runs


def checked(runs):
    return check_claims(runs, PUBLISHED, CONTENT)[0].set_index("claim")


def test_full_study_that_fulfils_the_claims_supports_them(full):
    table = checked(full)
    assert table.loc["miccai-dice", "verdict"] == SUPPORTED
    assert table.loc["miccai-dice", "measured"] == "better Dice on 7 of 10"
    assert table.loc["miccai-dice", "published"] == "better Dice on ≥ 7 of 10"
    assert table.loc["miccai-dice", "missing"] == ""
    assert table.loc["miccai-time", "verdict"] == SUPPORTED
    assert table.loc["miccai-time", "measured"] == "time 0.50 ×"


def test_claims_about_fifteen_data_sets_say_what_msd_covers(full):
    table = checked(full)
    for claim in ("journal-efficiency", "journal-performance", "journal-every-task"):
        assert table.loc[claim, "verdict"] == UNDECIDED
        assert table.loc[claim, "missing"] == "5 data sets (MSD covers 10 of its 15 data sets)"
    assert table.loc["journal-efficiency", "measured"] == "mean Dice 0.999 ×; time 0.44 ×"
    assert table.loc["journal-every-task", "measured"] == "better Dice on 10 of 10"


def test_full_study_that_fails_contradicts(full):
    runs = full.copy()
    of_arm = runs["arm"] == "progressive"
    runs.loc[of_arm & (runs["task"] == MSD[4]), "dice_foreground_mean"] = 0.79
    runs.loc[of_arm, "training_seconds"] = 560
    table = checked(runs)
    assert table.loc["miccai-dice", "verdict"] == CONTRADICTED
    assert table.loc["miccai-dice", "measured"] == "better Dice on 6 of 10"
    assert table.loc["miccai-time", "verdict"] == CONTRADICTED


def test_one_task_that_is_not_better_contradicts_all_of_fifteen(full):
    runs = full.copy()
    of_arm = runs["arm"] == "progressive_performance"
    runs.loc[of_arm & (runs["task"] == MSD[9]), "dice_foreground_mean"] = 0.8
    table = checked(runs)
    assert table.loc["journal-every-task", "verdict"] == CONTRADICTED
    assert table.loc["journal-performance", "verdict"] == UNDECIDED


SHORT = {
    "fewer iterations": ("epochs", 2, "250,000 iterations a run (here 500,000)"),
    "other plans": ("plans", "nnUNetPlans_01234567", "the plans nnUNetPlans (here nnUNetPlans_01"),
    "other configuration": ("configuration", "3d_lowres", "3d_fullres (here 3d_lowres)"),
    "own parameters": ("parameters", '{"pacing": "volume"}', "1 of its 10 tasks: Task03_Liver"),
    "no time": ("training_seconds", None, "a Dice or a time of every run"),
    "other hardware": ("cpu_model", "another", "both arms on the same hardware"),
}


@pytest.mark.parametrize(("column", "value", "words"), SHORT.values(), ids=SHORT)
def test_runs_under_other_conditions_decide_nothing(full, column, value, words):
    runs = full.copy()
    runs.loc[(runs["arm"] == "progressive") & (runs["task"] == "Task03_Liver"), column] = value
    table = checked(runs)
    assert table.loc["miccai-time", "verdict"] == UNDECIDED
    assert words in table.loc["miccai-time", "missing"]
    assert table.loc["journal-efficiency", "missing"].startswith("5 data sets")


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ("task != 'Task10_Colon'", "1 of its 10 tasks: Task10_Colon"),
        ("not (task == 'Task10_Colon' and fold == 3 and arm == 'constant')", "(here 4)"),
        ("arm != 'progressive'", "the arm progressive; 10 of its 10 tasks"),
        ("arm != 'constant'", "the arm constant; 10 of its 10 tasks"),
    ],
)
@pytest.mark.parametrize("fulfilled", [True, False])
def test_an_incomplete_study_decides_nothing(full, chosen, words, fulfilled):
    runs = full.query(chosen).copy()
    if not fulfilled:
        runs.loc[runs["arm"] == "progressive", "dice_foreground_mean"] = 0.1
    table = checked(runs)
    assert table.loc["miccai-dice", "verdict"] == UNDECIDED
    assert words in table.loc["miccai-dice", "missing"]


@pytest.mark.parametrize("gain", [-0.3, 0.1])
def test_a_demo_decides_nothing_and_shows_what_it_measured(tmp_path, gain):
    study = FakeStudy(tmp_path, tasks=("Task99_BrainTissue",), arms=ARMS, folds=(0, 1))
    runs = runs_of(study)
    runs["dice_foreground_mean"] = 0.8
    runs.loc[runs["arm"] != "constant", "dice_foreground_mean"] += gain
    table = checked(runs)
    assert set(table["verdict"]) == {UNDECIDED}
    assert table.loc["miccai-dice", "measured"] == f"better Dice on {int(gain > 0)} of 1"
    assert set(table["tasks"]) == {"Task99_BrainTissue"}
    beside = check_claims(runs, PUBLISHED, CONTENT)[1]
    text = to_markdown(table.reset_index(), reference_sentence(beside))
    assert "250,000 iterations a run (here 12)" in " ".join(text.split())
    assert SUPPORTED not in text
    assert CONTRADICTED not in text
    assert "No run of the arm constant has a published counterpart" in " ".join(text.split())


def test_an_arm_counts_by_its_trainer_not_by_its_name(full):
    runs = full.replace({"arm": {"progressive": "mine", "random": "progressive"}})
    assert checked(runs).loc["miccai-dice", "verdict"] == SUPPORTED
    runs["trainer"] = runs["trainer"].replace("nnUNetTrainerProgressivePatch", "Another")
    assert checked(runs).loc["miccai-dice", "verdict"] == UNDECIDED


def test_a_shorter_training_of_a_class_is_no_party_to_a_claim(full):
    """`constant_short` is of the reference's class, as worse as it is shorter."""
    short = full[full["arm"] == "constant"].assign(
        arm="constant_short", iterations_per_epoch=166_750, dice_foreground_mean=0.1
    )
    runs = pd.concat([short, full, short.assign(arm="shorter")], ignore_index=True)
    pd.testing.assert_frame_equal(checked(runs), checked(full))
    assert len(check_claims(runs, PUBLISHED, CONTENT)[1]) == 50


def test_reference_runs_are_compared_by_task_and_fold(full):
    table = check_claims(full, PUBLISHED, CONTENT)[1]
    assert len(table) == 50
    assert set(table["comparable"]) == {"yes"}
    liver = table[(table["task"] == "Task03_Liver") & (table["fold"] == 1)].iloc[0]
    assert liver["dice_published"] == 0.7716
    assert liver["difference"] == pytest.approx(0.8 - 0.7716)
    assert "over 50 folds" in reference_sentence(table)


def test_reference_runs_of_another_length_have_no_difference(full):
    table = check_claims(full.assign(epochs=3, plans="nnUNetPlans_x"), PUBLISHED, CONTENT)[1]
    assert table["difference"].isna().all()
    assert set(table["comparable"]) == {"no"}
    assert "250,000 iterations a run (here 750,000); the plans" in table["note"].iloc[0]
    assert "none was trained under the same conditions" in reference_sentence(table)


def test_markdown_tells_evidence_and_what_is_missing(full):
    claims, beside = check_claims(full, PUBLISHED, CONTENT)
    text = to_markdown(claims, reference_sentence(beside))
    assert text.count("| supported ") == 2
    assert "10 tasks, 5 folds, 50 cases, 250,000 iterations a run" in " ".join(text.split())
    for claim in CONTENT["claims"]:
        assert f"**{claim['id']}**" in text


MISTAKES = {
    "unknown key": (lambda content: content["claims"][0].update(note="x"), "note"),
    "unknown quantity": (
        lambda content: content["claims"][0]["quantities"][0].update(quantity="dice"),
        "'dice' is not one of",
    ),
    "no source": (lambda content: content["claims"][0].pop("source"), "source"),
    "unknown arm": (lambda content: content["claims"][0].update(arm="other"), "arm other"),
    "too few data sets": (lambda content: content["claims"][0].update(data_sets=3), "data_sets"),
}


@pytest.mark.parametrize(("mistake", "words"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_in_the_claims_are_named(tmp_path, mistake, words):
    content = copy.deepcopy(CONTENT)
    mistake(content)
    path = tmp_path / "claims.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=words):
        read_claims(path, SCHEMA)


def test_schema_is_closed_and_described():
    def walk(schema, path):
        assert schema.get("description"), path
        if schema.get("type") == "object":
            assert "additionalProperties" in schema, path
            if schema["additionalProperties"]:
                walk(schema["additionalProperties"], f"{path}.*")
            for key, value in schema.get("properties", {}).items():
                walk(value, f"{path}.{key}")
        if "items" in schema:
            walk(schema["items"], f"{path}[]")

    schema = yaml.safe_load(SCHEMA.read_text())
    for key, value in schema["properties"].items():
        walk(value, key)


def test_claims_are_about_shipped_arms_and_tasks():
    paper = yaml.safe_load((CONFIG / "config.yaml").read_text())
    for arm, trainer in CONTENT["arms"].items():
        assert paper["arms"][arm] == {"trainer": trainer}
    for claim in CONTENT["claims"]:
        assert claim["tasks"] == paper["tasks"]
        assert "https://" in claim["source"]
    iterations = paper["training"]["epochs"] * paper["training"]["iterations_per_epoch"]
    assert CONTENT["conditions"]["iterations"] == iterations
    assert CONTENT["conditions"]["folds"] == len(paper["folds"])
