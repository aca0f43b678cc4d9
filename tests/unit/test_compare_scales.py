"""Hypernetworks against their controls, paired over cases; all numbers here are made up."""

import json
import math

import numpy as np
import pandas as pd
import pytest

from workflow_scripts.scale_space.compare_scales import case_dice, compare_scales, to_markdown

TRAINER = "nnUNetTrainerScaleSpace"
ARMS = {
    "constant": {"trainer": "nnUNetTrainerConstantPatch", "parameters": {}},
    "ours": {"trainer": TRAINER, "parameters": {"rank": 4}},
    "shared": {"trainer": TRAINER, "parameters": {"rank": 0}},
    "small": {"trainer": TRAINER, "parameters": {"rank": 0, "scale_factor": 0.25}},
    "hyper": {"trainer": TRAINER, "parameters": {"scale_factor": 0.25}},
}
LIFT = {
    ("constant", math.nan): 0.10,
    ("ours", 0.25): 0.06,
    ("ours", 0.5): 0.09,
    ("shared", 0.25): 0.01,
    ("shared", 0.5): 0.02,
    ("small", 0.25): 0.05,
    ("hyper", 0.25): 0.07,
}
NUMBER = 24


def model(arm, scale, folds=(0,)):
    rng = np.random.default_rng(list(LIFT).index((arm, scale)))
    rows = [(fold, f"case_{n}") for fold in folds for n in range(NUMBER)]
    dice = 0.7 + LIFT[arm, scale] + rng.normal(0, 0.002, len(rows))
    table = pd.DataFrame(rows, columns=["fold", "case"])
    return table.assign(task="Task98_Fake", arm=arm, scale=scale, dice=dice)


@pytest.fixture
def compared():
    return compare_scales(pd.concat([model(*key) for key in LIFT]), ARMS, seed=1)


def test_every_control_at_the_same_scale_factor_and_the_stock_network_at_all(compared):
    found = set(compared[["scale", "other_arm"]].itertuples(index=False, name=None))
    assert found == {
        *((0.25, arm) for arm in ("constant", "shared", "small", "hyper")),
        *((0.5, arm) for arm in ("constant", "shared")),
    }
    assert len(compared) == len(found)
    assert set(compared["arm"]) == {"ours"}
    assert set(compared["tests"]) == {6}
    assert set(compared["pairs"]) == {NUMBER}


def test_differences_are_those_of_the_pairs(compared):
    rows = compared.set_index(["scale", "other_arm"])
    for (scale, other), row in rows.iterrows():
        planned = math.nan if other == "constant" else scale
        expected = model("ours", scale)["dice"] - model(other, planned)["dice"]
        assert row["difference"] == pytest.approx(expected.mean())
        assert row["ci_low"] < expected.mean() < row["ci_high"]
        assert row["significant"] == "yes", "every difference here is many times its spread"
        assert row["p"] < row["p_holm"] or row["p"] == compared["p"].max()
    assert rows.loc[(0.25, "hyper"), "difference"] < 0 < rows.loc[(0.25, "small"), "difference"]


def test_pairs_are_matched_by_fold_and_case_and_not_by_their_order():
    ours, small = model("ours", 0.25, (0, 1)), model("small", 0.25, (0, 1))
    shuffled = small.sample(frac=1, random_state=1)
    one = compare_scales(pd.concat([ours, small]), ARMS, 1)
    other = compare_scales(pd.concat([ours, shuffled]), ARMS, 1)
    pd.testing.assert_frame_equal(one, other)
    assert one[["folds", "pairs"]].to_numpy().tolist() == [[2, 2 * NUMBER]]


def test_a_case_that_one_model_lacks_is_counted():
    ours, small = model("ours", 0.25), model("small", 0.25)
    (row,) = compare_scales(pd.concat([ours, small[:-2]]), ARMS, 1).to_dict("records")
    assert (row["pairs"], row["left_out"]) == (NUMBER - 2, 2)


def test_nothing_to_compare_gives_no_rows():
    table = compare_scales(model("small", 0.25), ARMS, 1)
    assert table.empty
    assert "other_role" in table
    assert "0 comparisons" in to_markdown(table)


def test_the_page(compared):
    text = " ".join(to_markdown(compared).split())
    for said in (
        "ours against stochastic: is the hypernetwork better than",
        "ours against fixed hyper: what do many scale factors cost",
        "ours against fixed: is it as good as a network trained",
        "ours against stock: how much is lost against nnU-Net's own network?",
        "corrected by Holm over the 6 comparisons",
        "not to another training",
    ):
        assert said in text, said
    few = compare_scales(
        pd.concat([model("ours", 0.25)[:4], model("small", 0.25)[:4]]), ARMS, seed=1
    )
    text = to_markdown(few)
    assert "too few cases for a test" in text
    assert "nan" not in text


def test_the_dice_of_a_case_is_the_mean_over_its_labels(tmp_path):
    counts = dict.fromkeys(("IoU", "TP", "FP", "FN", "n_ref", "n_pred"), 1)
    dice = {"a": (0.5, 0.7), "b": (0.9, math.nan)}
    entries = [
        {
            "reference_file": f"labels/{case}.nii.gz",
            "metrics": {str(n): {**counts, "Dice": d} for n, d in enumerate(values, 1)},
        }
        for case, values in dice.items()
    ]
    path = tmp_path / "scale_0.25.summary.json"
    path.write_text(json.dumps({"metric_per_case": entries}))
    evaluation = {"task": "Task98_Fake", "arm": "ours", "fold": 2, "scale": 0.25}
    found = case_dice(evaluation, path, ["1", "2"]).set_index("case")
    assert found["dice"].to_dict() == pytest.approx({"a": 0.6, "b": 0.9})
    assert set(found["fold"]) == {2}
    planned = case_dice({**evaluation, "scale": None}, path, ["1", "2"])
    assert planned["scale"].isna().all()
