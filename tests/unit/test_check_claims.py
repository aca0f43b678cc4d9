"""Verdicts on published claims: none from a demo or short training, correct from a full study.

The full studies here are MADE UP; no number in them was measured.
"""

import re
from pathlib import Path

import pandas as pd
import pytest
import yaml

from helpers.fake_study import FakeStudy
from workflow_scripts.common.errors import UserError
from workflow_scripts.evaluation.check_claims import check_claims, reference_sentence, to_markdown
from workflow_scripts.evaluation.claims import (
    CONTRADICTED,
    INSUFFICIENT,
    SUPPORTED,
    UNDECIDED,
    find,
    read_claims,
)
from workflow_scripts.evaluation.collect_results import collect_results

CONFIG = Path(__file__).parents[2] / "config"
CLAIMS, SCHEMA = CONFIG / "published/claims.yaml", CONFIG / "schemas/claims.schema.yaml"
CONTENT = read_claims(CLAIMS, SCHEMA)
PUBLISHED = pd.read_csv(CONFIG / "published/nnunet_runs.tsv", sep="\t")
MSD = tuple(PUBLISHED["task"].unique())
ARMS = ("constant", "progressive", "progressive_efficiency", "progressive_performance")
ARMS += ("progressive_plus", "low_frequency")
OTHERS = ("BTCV", "AMOS22", "KiTS23", "TotalSegmentatorV2", "ToothFairy2")
FULL = {"tasks": MSD, "arms": ARMS, "folds": (0, 1, 2, 3, 4), "epochs": 1, "cases": 1}
FULL |= {"iterations": 250_000, "plans": "nnUNetPlans"}


def runs_of(study):
    collect_results(study.write().folders(), {"runs": study.root / "runs.csv"})
    return pd.read_csv(study.root / "runs.csv")


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """runs.csv of a made-up full study in which every claim comes out as published.

    It has two seeds and no noise, so its intervals are points.
    """
    runs = runs_of(FakeStudy(tmp_path_factory.mktemp("full"), **FULL))
    dice = {"constant": 0.8, "progressive": 0.81, "progressive_efficiency": 0.799}
    dice |= {"progressive_plus": 0.79, "progressive_performance": 0.8105, "low_frequency": 0.8}
    seconds = {"constant": 1000, "progressive": 500, "progressive_efficiency": 440}
    seconds |= {"progressive_plus": 500, "progressive_performance": 890, "low_frequency": 670}
    runs["dice_foreground_mean"] = runs["arm"].map(dice)
    runs["training_seconds"] = runs["arm"].map(seconds)
    runs["trainer"] = runs["arm"].map(CONTENT.arms)
    runs.loc[runs["arm"] == "low_frequency", "iterations_per_epoch"] = 166_750
    worse = (runs["arm"] == "progressive") & runs["task"].isin(MSD[:3])
    runs.loc[worse, "dice_foreground_mean"] = 0.79
    return pd.concat([runs.assign(seed=seed) for seed in (1, 2)], ignore_index=True)


def checked(runs, own=None):
    """Return claims.csv by claim; for the MICCAI claims, the row of PGPS."""
    table = check_claims(runs, PUBLISHED, CONTENT, own)[0]
    assert not table["measured"].str.contains("nan").any()
    return table[table["arm"] != "progressive_plus"].set_index("claim")


def without_intervals(text):
    return re.sub(r" \([^)]* to [^)]*\)", "", text)


def fifteen(full):
    """Return the runs of a study that has all fifteen data sets, and its own tasks by name."""
    own = {name: f"Task5{number:02d}_{name}" for number, name in enumerate(OTHERS)}
    more = [full[full["task"] == MSD[0]].assign(task=task) for task in own.values()]
    return pd.concat([full, *more], ignore_index=True), own


def test_full_study_that_fulfils_the_claims_supports_them(full):
    table = checked(full)
    assert table.loc["miccai-dice", "verdict"] == SUPPORTED
    assert table.loc["miccai-dice", "measured"] == "better Dice on 7 of 10 (7 to 7)"
    assert table.loc["miccai-dice", "published"] == "better Dice on ≥ 7 of 10"
    assert table.loc["miccai-dice", "missing"] == ""
    assert table.loc["miccai-time", "verdict"] == SUPPORTED
    assert table.loc["miccai-time", "measured"] == "time 0.50 × (0.50 to 0.50)"


def curves(runs):
    """Return four epochs: PGPS reaches the target in the first, PGPS+ never, others in the last."""
    dice = {"progressive": (0.9, 0.9, 0.9, 0.9), "progressive_plus": (0.1, 0.2, 0.3, 0.4)}
    rows = [
        {"task": run.task, "arm": run.arm, "fold": run.fold, "seed": run.seed, "epoch": epoch}
        | {"pseudo_dice": dice.get(run.arm, (0.2, 0.4, 0.6, 0.8))[epoch]}
        | {"seconds": 10.0, "kwh": 0.02 if run.arm == "progressive" else 0.01, "gflop": 1.0}
        for run in runs.itertuples()
        for epoch in range(4)
    ]
    return pd.DataFrame(rows)


def test_convergence_is_what_a_training_needs_to_end_up_as_good_as_the_reference(full):
    table = check_claims(full, PUBLISHED, CONTENT, epochs=curves(full))[0]
    table = table.set_index(["claim", "arm"]).loc["miccai-convergence"]
    measured = "time to target 0.25 × (0.25 to 0.25); energy to target 0.50 × (0.50 to 0.50)"
    assert table.loc["progressive", "measured"] == measured
    assert table.loc["progressive", "verdict"] == SUPPORTED
    never = "never reached (never to never)"
    measured = f"time to target {never}; energy to target {never}"
    assert table.loc["progressive_plus", "measured"] == measured
    assert table.loc["progressive_plus", "verdict"] == CONTRADICTED
    without = checked(full)
    assert without.loc["miccai-convergence", "verdict"] == INSUFFICIENT
    assert "the Dice and cost of every run" in without.loc["miccai-convergence", "missing"]


@pytest.mark.parametrize(("column", "word"), [("kg_co2eq", "CO2eq"), ("gflop", "FLOP")])
def test_runtime_computation_and_emissions_must_all_be_lower(full, column, word):
    of_arm = full["arm"] == "progressive"
    costs = pd.DataFrame(
        {f"training_{name}": of_arm.map({True: 0.6, False: 1.0}) for name in ("kg_co2eq", "gflop")}
    )
    runs = full.assign(**costs)
    assert checked(runs).loc["miccai-costs", "verdict"] == SUPPORTED
    runs.loc[of_arm, f"training_{column}"] = 1.2
    table = checked(runs)
    assert table.loc["miccai-costs", "verdict"] == CONTRADICTED
    assert f"{word} 1.20 ×" in table.loc["miccai-costs", "measured"]
    runs.loc[of_arm, f"training_{column}"] = float("nan")
    assert checked(runs).loc["miccai-costs", "verdict"] == INSUFFICIENT


def test_claims_about_fifteen_data_sets_say_what_msd_covers(full):
    table = checked(full)
    for claim in ("journal-efficiency", "journal-performance", "journal-every-task"):
        assert table.loc[claim, "verdict"] == INSUFFICIENT
        assert table.loc[claim, "missing"] == f"5 of its 15 data sets: {', '.join(OTHERS)}"
    measured = table["measured"].map(without_intervals)
    assert measured["journal-efficiency"] == "mean Dice 0.999 ×; time 0.44 ×"
    assert measured["journal-every-task"] == "better Dice on 10 of 10"


def test_each_arm_that_a_claim_may_mean_has_its_own_verdict(full):
    table = check_claims(full, PUBLISHED, CONTENT)[0].set_index(["claim", "arm"])["verdict"]
    assert table["miccai-dice", "progressive"] == SUPPORTED
    assert table["miccai-dice", "progressive_plus"] == CONTRADICTED
    assert table["miccai-time", "progressive_plus"] == SUPPORTED


def test_a_study_of_all_fifteen_data_sets_decides_the_claims_about_them(full):
    runs, own = fifteen(full)
    table = checked(runs, own)
    assert table.loc["journal-efficiency", "verdict"] == SUPPORTED
    assert table.loc["journal-performance", "verdict"] == SUPPORTED
    assert table.loc["journal-every-task", "measured"] == "better Dice on 15 of 15 (15 to 15)"
    assert table.loc["journal-significance", "verdict"] == SUPPORTED
    assert "; p 0.00011" in table.loc["journal-significance", "measured"], "all gain the same"
    without = checked(runs, {name: task for name, task in own.items() if name != "KiTS23"})
    assert without.loc["journal-every-task", "verdict"] == INSUFFICIENT
    assert without.loc["journal-every-task", "missing"] == "1 of its 15 data sets: KiTS23"


def test_gains_that_are_chance_do_not_decide_significance(full):
    runs, own = fifteen(full)
    of_arm = runs["arm"] == "progressive_performance"
    better = runs["task"].isin(list(MSD[:8]))
    runs.loc[of_arm & better, "dice_foreground_mean"] = 0.83
    runs.loc[of_arm & ~better, "dice_foreground_mean"] = 0.78
    assert checked(runs, own).loc["journal-significance", "verdict"] == UNDECIDED
    runs.loc[of_arm & ~better, "dice_foreground_mean"] = 0.83
    assert checked(runs, own).loc["journal-significance", "verdict"] == SUPPORTED
    runs.loc[of_arm, "dice_foreground_mean"] = 0.79
    assert checked(runs, own).loc["journal-significance", "verdict"] == CONTRADICTED


def test_less_variance_needs_several_seeds(full):
    runs, own = fifteen(full[full["seed"] == 1])
    table = checked(runs, own)
    assert table.loc["journal-variance", "verdict"] == INSUFFICIENT
    assert table.loc["journal-variance", "missing"] == "several seeds of each fold (here 1)"
    several = []
    for number, seed in enumerate((1, 2, 3)):
        spread = runs["arm"].map({"constant": 0.01, "progressive_performance": 0.005}).fillna(0)
        dice = runs["dice_foreground_mean"] + (number - 1) * spread
        several.append(runs.assign(seed=seed, dice_foreground_mean=dice))
    table = checked(pd.concat(several, ignore_index=True), own)
    assert table.loc["journal-variance", "verdict"] == SUPPORTED
    assert table.loc["journal-variance", "measured"] == "variance of Dice 0.25 × (0.25 to 0.25)"


@pytest.mark.parametrize(("gain", "verdict"), [(0.02, SUPPORTED), (0.001, CONTRADICTED)])
def test_the_gain_on_imbalanced_tasks_is_set_against_that_on_the_others(full, gain, verdict):
    runs, own = fifteen(full)
    lesions = ["Task01_BrainTumour", "Task03_Liver", "Task06_Lung", "Task07_Pancreas"]
    lesions += ["Task08_HepaticVessel", "Task10_Colon", own["KiTS23"]]
    of_arm = runs["arm"] == "progressive_performance"
    runs.loc[of_arm & runs["task"].isin(lesions), "dice_foreground_mean"] = 0.8 + gain
    table = checked(runs, own)
    assert table.loc["journal-imbalance", "verdict"] == verdict
    ratio = (0.8 + gain) / 0.8105
    assert f"gain on the subset {ratio:.3f} ×" in table.loc["journal-imbalance", "measured"]


def test_efficienttrain_is_judged_at_its_own_length(full):
    table = checked(full)
    assert table.loc["efficienttrain-time", "verdict"] == SUPPORTED
    longer = full.copy()
    longer.loc[longer["arm"] == "low_frequency", "iterations_per_epoch"] = 250_000
    table = checked(longer)
    assert table.loc["efficienttrain-time", "verdict"] == INSUFFICIENT
    assert (
        "166,750 iterations per run (here 250,000)" in table.loc["efficienttrain-time", "missing"]
    )


def test_what_the_tables_cannot_tell_stays_undecided(full):
    runs = pd.concat(
        [full, full[full["arm"] == "constant"].assign(trainer="nnUNetTrainerScaleSpace")]
    )
    table = checked(runs)
    assert table.loc["sshn-trade-off", "verdict"] == INSUFFICIENT
    assert "scale_comparisons.csv" in table.loc["sshn-trade-off", "missing"]


def test_means_are_defined_as_the_schema_says(full):
    """Dice: the ratio of the means. Time: the mean of the ratios."""
    runs = full.copy()
    of_arm = runs["arm"] == "progressive_efficiency"
    hard = runs["task"] == MSD[0]
    runs.loc[hard & (runs["arm"] == "constant"), ["dice_foreground_mean", "training_seconds"]] = [
        0.4,
        9000,
    ]
    runs.loc[of_arm, "dice_foreground_mean"] = 0.8
    runs.loc[hard & of_arm, ["dice_foreground_mean", "training_seconds"]] = [0.5, 900]
    measured = checked(runs).loc["journal-efficiency", "measured"]
    assert (
        without_intervals(measured)
        == f"mean Dice {(9 * 0.8 + 0.5) / (9 * 0.8 + 0.4):.3f} ×; time 0.41 ×"
    )


def test_full_study_that_fails_contradicts(full):
    runs = full.copy()
    of_arm = runs["arm"] == "progressive"
    runs.loc[of_arm & (runs["task"] == MSD[4]), "dice_foreground_mean"] = 0.79
    runs.loc[of_arm, "training_seconds"] = 560
    table = checked(runs)
    assert table.loc["miccai-dice", "verdict"] == CONTRADICTED
    assert table.loc["miccai-dice", "measured"] == "better Dice on 6 of 10 (6 to 6)"
    assert table.loc["miccai-time", "verdict"] == CONTRADICTED


def test_one_task_that_is_worse_contradicts_all_of_fifteen(full):
    runs = full.copy()
    of_arm = runs["arm"] == "progressive_performance"
    runs.loc[of_arm & (runs["task"] == MSD[9]), "dice_foreground_mean"] = 0.79
    table = checked(runs)
    assert table.loc["journal-every-task", "verdict"] == CONTRADICTED
    assert table.loc["journal-performance", "verdict"] == INSUFFICIENT


SHORT = {
    "fewer iterations": ("epochs", 2, "250,000 iterations per run (here 500,000)"),
    "other plans": ("plans", "nnUNetPlans_01234567", "the plans nnUNetPlans (here nnUNetPlans_01"),
    "other configuration": ("configuration", "3d_lowres", "3d_fullres (here 3d_lowres)"),
    "own parameters": ("parameters", '{"pacing": "volume"}', "1 of its 10 tasks: Task03_Liver"),
    "no time": ("training_seconds", None, "the Dice and cost of every run"),
    "other hardware": ("cpu_model", "another", "both arms on the same hardware"),
}


@pytest.mark.parametrize(("column", "value", "words"), SHORT.values(), ids=SHORT)
def test_runs_under_other_conditions_decide_nothing(full, column, value, words):
    runs = full.copy()
    runs.loc[(runs["arm"] == "progressive") & (runs["task"] == "Task03_Liver"), column] = value
    table = checked(runs)
    assert table.loc["miccai-time", "verdict"] == INSUFFICIENT
    assert words in table.loc["miccai-time", "missing"]
    assert table.loc["journal-efficiency", "missing"].startswith("5 of its 15 data sets")


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
    assert table.loc["miccai-dice", "verdict"] == INSUFFICIENT
    assert words in table.loc["miccai-dice", "missing"]


@pytest.mark.parametrize("gain", [-0.3, 0.1])
def test_a_demo_decides_nothing_and_shows_what_it_measured(tmp_path, gain):
    study = FakeStudy(tmp_path, tasks=("Task99_BrainTissue",), arms=ARMS, folds=(0, 1))
    runs = runs_of(study)
    runs["dice_foreground_mean"] = 0.8
    runs.loc[runs["arm"] != "constant", "dice_foreground_mean"] += gain
    table = checked(runs)
    assert set(table["verdict"]) == {INSUFFICIENT}
    assert table.loc["miccai-dice", "measured"] == f"better Dice on {int(gain > 0)} of 1"
    assert "several seeds of each fold (here 1)" in table.loc["miccai-dice", "missing"]
    assert set(table["tasks"]) == {"Task99_BrainTissue", ""}, "no run of scale_space"
    beside = check_claims(runs, PUBLISHED, CONTENT)[1]
    text = to_markdown(table.reset_index(), reference_sentence(beside))
    assert "250,000 iterations per run (here 12)" in " ".join(text.split())
    assert "Verdicts: – not enough evidence." in text
    assert text.count(" – ") >= 3 and "✓" not in text and "✗" not in text
    absent = table.index[table["tasks"] == ""]
    assert f"{len(absent)} further claims about arms that this" in " ".join(text.split())
    assert all(f"**{claim}**" not in text for claim in absent)
    assert "No run of the arm constant with its default parameters has a published" in " ".join(
        text.split()
    )


def test_an_arm_with_its_own_parameters_is_not_called_missing(full):
    """As in the demo, whose arms use AdamW."""
    runs = full.copy()
    runs.loc[runs["arm"] == "constant", "parameters"] = '{"optimizer_name": "AdamW"}'
    missing = checked(runs).loc["miccai-dice", "missing"].split("; ")
    assert missing[0].startswith("the arm constant with its default parameters")
    assert "optimizer_name" in missing[0]
    assert not any("the arm progressive" in gap for gap in missing)


def test_a_claim_is_not_rewritten_for_a_study(full):
    """Also if the study's own tasks stand for some of its data sets."""
    runs, own = fifteen(full)
    for claim in CONTENT.claims:
        found = find(runs, claim, CONTENT, own)
        assert found.claim is claim
        assert set(found.tasks) >= set(own.values()) or not claim.own or not found.tasks


def test_a_study_without_a_claimed_arm_only_names_the_claims(tmp_path):
    runs = runs_of(FakeStudy(tmp_path, arms=("constant",), folds=(0,)))
    claims, beside = check_claims(runs, PUBLISHED, CONTENT)
    text = to_markdown(claims, reference_sentence(beside))
    assert f"{len(CONTENT.claims)} further claims about arms" in text
    assert "|" not in text


def test_cases_are_counted_once_whatever_the_number_of_seeds(tmp_path):
    study = {"tasks": ("Task04_Hippocampus",), "arms": ARMS, "folds": (0, 1), "cases": 4}
    for seeds in ((1,), (1, 2, 3)):
        runs = runs_of(FakeStudy(tmp_path / str(len(seeds)), **study, seeds=seeds))
        row = checked(runs).loc["miccai-dice"]
        assert (row["cases"], row["folds"]) == (8, "0 1")
        assert row["seeds"] == " ".join(map(str, seeds))


def test_an_arm_counts_by_its_trainer_not_by_its_name(full):
    runs = full.replace({"arm": {"progressive": "mine", "random": "progressive"}})
    assert checked(runs).loc["miccai-dice", "verdict"] == SUPPORTED
    runs["trainer"] = runs["trainer"].replace("nnUNetTrainerProgressivePatch", "Another")
    assert checked(runs).loc["miccai-dice", "verdict"] == INSUFFICIENT


def test_a_shorter_training_of_a_class_is_no_party_to_a_claim(full):
    """`constant_short` has the class of the reference, but is shorter and therefore worse."""
    short = full[full["arm"] == "constant"].assign(
        arm="constant_short", iterations_per_epoch=166_750, dice_foreground_mean=0.1
    )
    runs = pd.concat([short, full, short.assign(arm="shorter")], ignore_index=True)
    pd.testing.assert_frame_equal(checked(runs), checked(full))
    assert len(check_claims(runs, PUBLISHED, CONTENT)[1]) == 100


def test_reference_runs_are_compared_by_task_and_fold(full):
    table = check_claims(full, PUBLISHED, CONTENT)[1]
    assert len(table) == 100
    assert set(table["comparable"]) == {"yes"}
    liver = table[(table["task"] == "Task03_Liver") & (table["fold"] == 1)].iloc[0]
    assert liver["dice_published"] == 0.7716
    assert liver["difference"] == pytest.approx(0.8 - 0.7716)
    assert "over 100 trainings" in reference_sentence(table)


def test_reference_runs_of_another_length_have_no_difference(full):
    table = check_claims(full.assign(epochs=3, plans="nnUNetPlans_x"), PUBLISHED, CONTENT)[1]
    assert table["difference"].isna().all()
    assert set(table["comparable"]) == {"no"}
    assert "250,000 iterations per run (here 750,000); the plans" in table["note"].iloc[0]
    assert "none was trained under the same conditions" in reference_sentence(table)


def test_markdown_tells_evidence_and_what_is_missing(full):
    claims, beside = check_claims(full, PUBLISHED, CONTENT)
    text = to_markdown(claims, reference_sentence(beside))
    assert text.count("| ✓ ") == 6, "PGPS (3), time and costs of PGPS+, EfficientTrain++"
    assert text.count("| ✗ ") == 1, "PGPS+ is better on no task"
    assert "Verdicts: ✓ supported, ✗ contradicted" in text
    assert "10 tasks, 5 folds, 2 seeds, 50 cases, 250,000 iterations per run" in " ".join(
        text.split()
    )
    for claim in claims.itertuples():
        assert (f"**{claim.claim}**" in text) == bool(claim.tasks)


MISTAKES = {
    "unknown subset": (lambda content: content["claims"][0].update(subset=["Liver"]), "Liver"),
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
    content = yaml.safe_load(CLAIMS.read_text())
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
    paper = yaml.safe_load((CONFIG / "studies/paper.yaml").read_text())
    for arm, trainer in CONTENT.arms.items():
        if arm != "scale_space":  # which has its own study
            assert paper["arms"][arm]["trainer"] == trainer
    shorter = {c.arm: c.iterations_of_arm for c in CONTENT.claims if c.iterations_of_arm}
    each = paper["training"]["iterations_per_epoch"]
    assert shorter == {arm: each * paper["arms"][arm]["epochs"] for arm in shorter}
    register = yaml.safe_load((CONFIG / "published/journal_datasets.yaml").read_text())
    assert tuple(register) == OTHERS
    for claim in CONTENT.claims:
        assert list(claim.tasks) == paper["tasks"]
        assert claim.own in ((), OTHERS)
        assert "https://" in claim.source
    iterations = paper["training"]["epochs"] * paper["training"]["iterations_per_epoch"]
    assert CONTENT.conditions.iterations == iterations
    assert CONTENT.conditions.folds == len(paper["folds"])
