"""Verdicts on simulated studies: rarely wrong without an effect, and right with a clear one."""

import math

import numpy as np
import pandas as pd
import pytest
import yaml

from helpers.tree import ROOT
from workflow_scripts.evaluation.check_claims import TEXTS, measured_text
from workflow_scripts.evaluation.claim_quantities import (
    COST_RATIOS,
    TARGET_RATIOS,
    Estimate,
    estimate,
)
from workflow_scripts.evaluation.claims import (
    MEASURED_COSTS,
    UNDECIDED,
    Quantity,
    holds,
    reach_verdict,
)

TASKS, FOLDS = 10, 5
SUBSET = [f"t{number}" for number in range(4)]
NAN = math.nan
CLAIMED = {
    "tasks_better": Quantity("tasks_better", 7, "at_least", 0),
    "dice_ratio": Quantity("dice_ratio", 1, "at_least", 0),
    "variance_ratio": Quantity("variance_ratio", 1, "at_most", 0),
    "subset_gain": Quantity("subset_gain", 1, "at_least", 0),
    "gain_p": Quantity("gain_p", 0.05, "at_most", 0),
    "time_ratio": Quantity("time_ratio", 1, "at_most", 0),
    "time_to_target": Quantity("time_to_target", 1, "at_most", 0),
}


def test_every_quantity_can_be_printed_and_costs_need_the_same_machine():
    """What a new quantity needs besides its estimate, or every study's claims would fail."""
    schema = yaml.safe_load((ROOT / "config/schemas/claims.schema.yaml").read_text())
    known = find_enum(schema, "time_ratio")
    assert set(TEXTS) == set(known)
    assert {*COST_RATIOS, *TARGET_RATIOS} - MEASURED_COSTS == {"flop_ratio"}
    with pytest.raises(ValueError, match="no estimate of the quantity kwh"):
        estimate("kwh", study(np.random.default_rng(1)))


def find_enum(node, member):
    """Return the list of allowed values in a schema that contains `member`."""
    if isinstance(node, dict):
        if member in node.get("enum", ()):
            return node["enum"]
        node = list(node.values())
    if isinstance(node, list):
        return next(filter(None, (find_enum(child, member) for child in node)), None)
    return None


def study(rng, seeds=3, gain=0.0, of_subset=0.0, noise=0.004, spread=1.0, cost=1.0):
    """Return paired runs of a made-up study.

    A seed shifts the Dice of all folds of a task, and each fold by as much. `spread` multiplies
    these of the arm, `cost` its time. A seed of the arm is another draw than one of the reference.
    """
    size = (TASKS, FOLDS, seeds)
    index = pd.MultiIndex.from_product(map(range, size), names=["task", "fold", "seed"])
    pairs = index.to_frame(index=False)
    pairs["task"] = "t" + pairs["task"].astype(str)
    base = rng.uniform(0.6, 0.9, (TASKS, 1, 1)) + rng.normal(0, 0.02, (TASKS, FOLDS, 1))
    length = rng.uniform(500, 5000, (TASKS, 1, 1))
    for side in ("arm", "reference"):
        of_arm = side == "arm"
        shift = rng.normal(0, noise, (TASKS, 1, seeds)) + rng.normal(0, noise, size)
        dice = base + shift * (spread if of_arm else 1) + of_arm * gain
        pairs[f"dice_foreground_mean_{side}"] = dice.ravel()
        seconds = length * rng.normal(1, 0.03, size) * (cost if of_arm else 1)
        pairs[f"training_seconds_{side}"] = seconds.ravel()
        to_target = length * rng.lognormal(0, 0.3, size) * (cost if of_arm else 1)
        pairs[f"seconds_to_target_{side}"] = to_target.ravel()
    inside = pairs["task"].isin(SUBSET)
    pairs.loc[inside, "dice_foreground_mean_arm"] += of_subset
    return pairs


def outcomes(name, number, **effect):
    rng = np.random.default_rng(11)
    return [
        holds(CLAIMED[name], estimate(name, study(rng, **effect), SUBSET), 0) for _ in range(number)
    ]


@pytest.mark.parametrize("name", CLAIMED)
def test_without_an_effect_a_study_rarely_decides_anything(name):
    """By the point estimates, every one of these studies is decided one way or the other."""
    found = outcomes(name, 10 if name == "tasks_better" else 40)
    assert sum(outcome is not None for outcome in found) <= 0.1 * len(found)


EFFECTS = {
    "tasks_better": ({"gain": 0.03, "seeds": 5}, {"gain": -0.03, "seeds": 5}),
    "dice_ratio": ({"gain": 0.02}, {"gain": -0.02}),
    "variance_ratio": ({"spread": 0.3}, {"spread": 3.0}),
    "subset_gain": ({"of_subset": 0.03}, {"of_subset": -0.03}),
    "gain_p": ({"gain": 0.02}, {"gain": -0.02}),
    "time_ratio": ({"cost": 0.9}, {"cost": 1.1}),
    "time_to_target": ({"cost": 0.6}, {"cost": 1.6}),
}


@pytest.mark.parametrize("name", EFFECTS)
@pytest.mark.parametrize("published", [True, False])
def test_a_clear_effect_is_decided(name, published):
    found = outcomes(name, 6, **EFFECTS[name][not published])
    assert sum(outcome is published for outcome in found) >= 5


def test_intervals_hold_what_was_put_in():
    rng = np.random.default_rng(4)
    studies = [study(rng, gain=0.01, cost=0.5) for _ in range(40)]
    times = [estimate("time_ratio", each) for each in studies]
    assert np.mean([low <= 0.5 <= high for _, low, high in times]) >= 0.85
    targets = [estimate("time_to_target", each) for each in studies]
    assert np.mean([low <= 0.5 <= high for _, low, high in targets]) >= 0.85


def test_one_seed_says_nothing_about_the_dice_of_these_tasks():
    pairs = study(np.random.default_rng(0), seeds=1, gain=0.1)
    for name in ("dice_ratio", "tasks_better"):
        value, low, high = estimate(name, pairs)
        assert value > 1
        assert np.isnan([low, high]).all()
        assert holds(CLAIMED[name], Estimate(value, low, high), 0) is None
    assert math.isnan(estimate("variance_ratio", pairs).value)
    assert not math.isnan(estimate("time_ratio", pairs).low), "every training takes its own time"


def test_folds_with_different_seeds_have_no_interval():
    pairs = study(np.random.default_rng(0), gain=0.1)
    ragged = pairs[~((pairs["fold"] == 3) & (pairs["seed"] == 2))]
    for name in ("dice_ratio", "tasks_better", "time_ratio"):
        assert math.isnan(estimate(name, ragged).low)
        assert not math.isnan(estimate(name, ragged).value)


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("name", CLAIMED)
def test_a_single_fold_or_task_has_a_value_and_no_interval(name, seeds):
    pairs = study(np.random.default_rng(0), seeds=seeds, gain=0.1)
    for few in (pairs[pairs["fold"] == 0], pairs[pairs["task"] == "t0"].query("fold == 0")):
        value, low, high = estimate(name, few, SUBSET)
        if name in ("dice_ratio", "tasks_better", "time_ratio"):
            assert not math.isnan(value)
            assert np.isnan([low, high]).all()
    assert math.isnan(estimate(name, pairs[:0], SUBSET).value)


def test_the_median_needs_six_tasks_and_no_finite_costs():
    pairs = study(np.random.default_rng(0))
    place = pairs["task"].str[1:].astype(int)
    pairs["seconds_to_target_reference"] = 1.0
    pairs["seconds_to_target_arm"] = np.where(place == 9, math.inf, place + 1.0)
    # Of ten tasks, the second and the ninth: P(at most one below the median) = 11 / 1024.
    assert estimate("time_to_target", pairs) == (5.5, 2.0, 9.0)
    assert estimate("time_to_target", pairs[place < 6]) == (3.5, 1.0, 6.0)
    assert np.isnan(estimate("time_to_target", pairs[place < 5])[1:]).all()


@pytest.mark.parametrize(
    ("quantity", "interval", "outside", "outcome"),
    [
        ("dice_ratio", (1.0, 1.1), 0, True),
        ("dice_ratio", (0.9, 0.99), 0, False),
        ("dice_ratio", (0.99, 1.01), 0, None),
        ("dice_ratio", (NAN, NAN), 0, None),
        ("dice_ratio", (1.0, 1.1), 1, None),
        ("time_ratio", (0.8, 0.9), 0, True),
        ("time_ratio", (0.9, 1.1), 0, None),
        ("time_ratio", (1.1, 1.2), 0, False),
        ("tasks_better", (7, 10), 0, True),
        ("tasks_better", (6, 10), 0, None),
        ("tasks_better", (2, 6), 0, False),
        ("tasks_better", (2, 6), 1, None),
        ("tasks_better", (7, 9), 5, True),
    ],
)
def test_an_interval_decides_if_it_lies_on_one_side(quantity, interval, outside, outcome):
    assert holds(CLAIMED[quantity], Estimate(1.0, *interval), outside) is outcome


def test_a_claim_is_not_decided_if_one_quantity_is_not():
    assert reach_verdict([True, None]) == UNDECIDED
    assert reach_verdict([None, None]) == UNDECIDED
    assert reach_verdict([True, True]) == "supported"
    assert reach_verdict([None, False, True]) == "contradicted"


def test_what_is_measured_is_printed_with_its_interval():
    assert measured_text("dice_ratio", Estimate(1.01, 0.99, 1.03), 10) == (
        "mean Dice 1.010 × (0.990 to 1.030)"
    )
    assert measured_text("tasks_better", Estimate(6.0), 10) == "better Dice on 6 of 10"
    assert measured_text("gain_p", Estimate(0.3, 0.0, 1.0), 10) == "p 0.3"
    assert measured_text("time_to_target", Estimate(math.inf, 0.9, math.inf), 10) == (
        "time to target never reached (0.90 to never)"
    )
