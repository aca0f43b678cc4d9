"""Tables and figure of accuracy against the cost of inference; all numbers here are made up."""

import math
from pathlib import Path

import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from log import UserError
from plot_scales import plot_scales
from plotting import load_style
from scale_study import baked_plans, evaluations, role_of, scales_of, wanted_models
from scale_tables import (
    SUM_OF_FIXED,
    choose_scales,
    non_dominated,
    read_choice,
    scales_table,
    training_costs,
)
from tabulate_scales import to_markdown

ROOT = Path(__file__).resolve().parents[2]
TRAINER = "nnUNetTrainerScaleSpace"
ARMS = {
    "constant": {"trainer": "nnUNetTrainerConstantPatch", "parameters": {}},
    "ours": {"trainer": TRAINER, "parameters": {"rank": 4}},
    "shared": {"trainer": TRAINER, "parameters": {"rank": 0}},
    "small": {"trainer": TRAINER, "parameters": {"rank": 0, "scale_factor": 0.25}},
    "large": {"trainer": TRAINER, "parameters": {"rank": 0, "scale_factor": 0.5}},
    "hyper": {"trainer": TRAINER, "parameters": {"scale_factor": 0.25}},
}
DICE = {
    ("constant", None): 0.9,
    ("ours", 0.25): 0.85,
    ("ours", 0.35): 0.878,
    ("ours", 0.5): 0.88,
    ("shared", 0.25): 0.6,
    ("shared", 0.5): 0.7,
    ("small", 0.25): 0.84,
    ("large", 0.5): 0.885,
    ("hyper", 0.25): 0.86,
}
GMAC = {None: 21.0, 0.25: 11.0, 0.35: 12.0, 0.5: 19.0}


def evaluation(arm, scale, fold=0, **changes):
    distance = {"ours": abs(0.5 - scale)}.get(arm, 0.0) if scale else None
    return {
        **{"task": "Task98_Fake", "arm": arm, "fold": fold, "scale": scale, "cases": 4},
        **{"dice": DICE[arm, scale] + 0.01 * fold, "gmac_per_patch": GMAC[scale]},
        **{"gmac_per_case": 8 * GMAC[scale], "seconds_per_case": GMAC[scale] / 10},
        **{"kwh_per_case": 1e-5 * GMAC[scale], "kg_co2eq_per_case": 4e-6 * GMAC[scale]},
        **{"peak_memory_mb": 500.0, "relative_distance": distance},
        **changes,
    }


def record(arm, seconds, fold=0):
    return {
        **{"task": "Task98_Fake", "arm": arm, "fold": fold, "training_seconds": seconds},
        **{"training_kwh": seconds / 1e5, "training_gflop": seconds * 200},
    }


@pytest.fixture
def table():
    return scales_table([evaluation(*key) for key in DICE], ARMS)


@pytest.fixture
def costs():
    seconds = {"constant": 100, "ours": 90, "shared": 80, "small": 60, "large": 100, "hyper": 70}
    return training_costs([record(arm, n) for arm, n in seconds.items()], ARMS)


def test_roles():
    roles = {arm: role_of(chosen) for arm, chosen in ARMS.items()}
    assert roles == {
        **{"constant": "stock", "ours": "hypernetwork", "shared": "stochastic"},
        **{"small": "fixed", "large": "fixed", "hyper": "fixed_hyper"},
    }
    config = yaml.safe_load((ROOT / "config/scale_space.yaml").read_text())
    shipped = [role_of({"parameters": {}, **arm}) for arm in config["arms"].values()]
    fixed = ["fixed_hyper", "fixed", "fixed", "fixed"]
    assert shipped == ["stock", "hypernetwork", "stochastic", *fixed]


def test_scales_of_the_arms():
    config = {
        **{"arms": ARMS, "reference_arm": "constant", "scale_space": {"scales": [0.25, 0.5]}},
        **{"tasks": ["Task98_Fake"], "folds": [0, 3], "study": "s", "scale_factor": None},
    }
    assert scales_of(config, "constant") == ["planned"]
    assert scales_of(config, "ours") == ["0.25", "0.5"]
    assert scales_of(config, "hyper") == ["0.25"]
    assert scales_of({**config, "reference_arm": "ours"}, "constant") == []
    assert len(evaluations(config)) == 2 * (1 + 2 + 2 + 1 + 1 + 1)
    pattern = "{study}/{arm}/{scale}/{dataset}/{plans}"
    assert wanted_models(pattern, config, "D", "P") == ["s/ours/chosen/D/P/plans.json"]
    chosen = {**config, "scale_factor": 0.35}
    assert wanted_models(pattern, chosen, "D", "P") == ["s/ours/0.35/D/P/plans.json"]
    assert baked_plans(pattern, "D", "P", "planned", study="s", arm="constant") == []
    with pytest.raises(ValueError, match="no arm of this study is a scale-space hypernetwork"):
        wanted_models(pattern, {**config, "arms": {"small": ARMS["small"]}}, "D", "P")


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_no_point_beats_a_non_dominated_one(points):
    kept = non_dominated(*zip(*points, strict=True))
    assert any(kept)
    for (cost, value), is_kept in zip(points, kept, strict=True):
        better = [(c, v) for c, v in points if c <= cost and v >= value and (c < cost or v > value)]
        assert is_kept == (not better)


def test_the_table(table):
    assert len(table) == len(DICE)
    front = table[table["non_dominated_gmac_per_case"]]
    points = set(zip(front["arm"], front["scale"].fillna(0), strict=True))
    assert points == {("hyper", 0.25), ("ours", 0.35), ("large", 0.5), ("constant", 0)}
    assert math.isnan(table.loc[table["arm"] == "constant", "scale"].iloc[0])


def test_folds_are_averaged_and_an_unknown_energy_stays_unknown():
    rows = [evaluation("ours", 0.5, fold) for fold in (0, 1)]
    rows[1]["kwh_per_case"] = None
    (row,) = scales_table(rows, ARMS).to_dict("records")
    assert (row["folds"], row["cases"]) == (2, 8)
    assert row["dice"] == pytest.approx(0.885)
    assert row["dice_sd"] == pytest.approx(0.01 / 2**0.5)
    assert math.isnan(row["kwh_per_case"])


def test_the_cheapest_within_the_tolerance_is_chosen(table, tmp_path):
    (chosen,) = choose_scales(table, 0.005).to_dict("records")
    assert (chosen["arm"], chosen["scale"], chosen["best_scale"]) == ("ours", 0.35, 0.5)
    assert chosen["relative_gmac"] == pytest.approx(12 / 19)
    assert choose_scales(table, 0.0)["scale"].tolist() == [0.5]
    assert choose_scales(table, 0.1)["scale"].tolist() == [0.25]
    path = tmp_path / "choice.csv"
    choose_scales(table, 0.005).to_csv(path, index=False)
    assert read_choice(path, "Task98_Fake", "ours") == 0.35
    with pytest.raises(UserError, match="no choice for Task98_Fake, arm shared"):
        read_choice(path, "Task98_Fake", "shared")


def test_training_costs_have_the_sum_of_the_fixed_networks(costs):
    (total,) = costs[costs["arm"] == SUM_OF_FIXED].to_dict("records")
    assert (total["networks"], total["training_seconds"]) == (2, 160)
    without = training_costs([record("ours", 90)], {"ours": ARMS["ours"]})
    assert without["arm"].tolist() == ["ours"]


def test_the_page_says_what_a_reader_must_know(table, costs):
    page = to_markdown(table, choose_scales(table, 0.005), costs, mirroring=False)
    text = " ".join(page.split())
    assert "| ours | 0.35 | 0.878 |" in " ".join(text.replace("|", " | ").split())
    for said in (
        "within 0.5 Dice points of the best (0.5, Dice 0.880) is 0.35",
        "the same validation cases, so its Dice is optimistic",
        "the weights at 0.25 are 0.25 of their length away",
        "takes 0.58 of the GMAC of the most expensive one. It cannot fall much further",
        "training ours took 0.56 of the time of the 2 fixed networks together, 1.12 of their mean",
        "saves at inference",
        "without mirroring",
    ):
        assert said in text, said


def test_a_collapsed_hypernetwork_is_called_one(costs):
    rows = [evaluation("ours", scale, relative_distance=1e-5) for scale in (0.25, 0.5)]
    table = scales_table(rows, ARMS)
    page = to_markdown(table, choose_scales(table, 0.005), costs, mirroring=True)
    assert "the hypernetwork has collapsed" in " ".join(page.split())


def test_the_figure(table, tmp_path):
    style = load_style(ROOT / "config/plotting.yaml")
    paths = [tmp_path / f"scales.{kind}" for kind in ("svg", "png")]
    plot_scales(table, style, paths)
    first = [path.read_bytes() for path in paths]
    assert first[0].startswith(b"<?xml")
    assert b"0.35" in first[0] or len(first[0]) > 10_000
    plot_scales(pd.concat([table, table.assign(task="Task97_Other")]), style, paths)
    assert [path.read_bytes() for path in paths] != first
