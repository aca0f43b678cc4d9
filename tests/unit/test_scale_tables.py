"""Tables and figure of accuracy against the cost of inference; all numbers here are made up."""

import math
from pathlib import Path

import pandas as pd
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from workflow_scripts.common.errors import UserError
from workflow_scripts.common.figure_style import load_style
from workflow_scripts.report.run_notebook import execute, render
from workflow_scripts.scale_space import tabulate_transfer
from workflow_scripts.scale_space.evaluate_transfer import some_cases
from workflow_scripts.scale_space.plot_scales import plot_scales
from workflow_scripts.scale_space.plot_transfer import plot_transfer
from workflow_scripts.scale_space.scale_tables import (
    SUM_OF_FIXED,
    check_weights,
    choose_scales,
    non_dominated,
    read_choice,
    scales_table,
    training_costs,
    transfer_table,
)
from workflow_scripts.scale_space.tabulate_scales import to_markdown
from workflow_scripts.study.scale_grid import (
    baked_plans,
    evaluations,
    role_of,
    scales_of,
    transfers,
    wanted_models,
)

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
        **{"peak_memory_mb": 500.0, "change_by_scale": distance},
        **changes,
    }


def transfer(weights, network, dice, fold=0):
    return {
        **{"task": "Task98_Fake", "arm": "ours", "fold": fold, "cases": 3},
        **{"weights_scale": weights, "network_scale": network, "dice": dice},
    }


MATRIX = {  # by scale factor of the network: Dice of the weights for 0.25, 0.35 and 0.5
    0.25: (0.85, 0.83, 0.7),
    0.35: (0.84, 0.87, 0.86),
    0.5: (0.6, 0.885, 0.88),
}


def page_of(table, costs, mirroring=False, tolerance=0.005):
    choice = choose_scales(table, tolerance)
    return to_markdown(table, choice, check_weights(table), costs, mirroring)


def record(arm, seconds, fold=0):
    return {
        **{"task": "Task98_Fake", "arm": arm, "fold": fold, "training_seconds": seconds},
        **{"training_kwh": seconds / 1e5, "training_gflop": seconds * 200},
    }


@pytest.fixture
def table():
    return scales_table([evaluation(*key) for key in DICE], ARMS)


@pytest.fixture
def matrix():
    return transfer_table(
        [
            transfer(weights, network, dice)
            for network, row in MATRIX.items()
            for weights, dice in zip(MATRIX, row, strict=True)
        ]
    )


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
    config = yaml.safe_load((ROOT / "config/studies/scale_space.yaml").read_text())
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
    pattern = "{arm}/{scale}/{dataset}/{plans}"
    assert wanted_models(pattern, config, "D", "P") == ["ours/chosen/D/P/plans.json"]
    chosen = {**config, "scale_factor": 0.35}
    assert wanted_models(pattern, chosen, "D", "P") == ["ours/0.35/D/P/plans.json"]
    assert baked_plans(pattern, "D", "P", "planned", arm="constant") == []
    with pytest.raises(ValueError, match="no arm of this study is a scale-space hypernetwork"):
        wanted_models(pattern, {**config, "arms": {"small": ARMS["small"]}}, "D", "P")


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
    page = page_of(table, costs)
    text = " ".join(page.split())
    assert "| ours | 0.35 | 0.878 |" in " ".join(text.replace("|", " | ").split())
    for said in (
        "within 0.5 Dice points of the best (0.5, Dice 0.880) is 0.35",
        "the same validation cases, so its Dice is optimistic",
        "differs between 0.25 and the largest scale factor by 0.25 of its size",
        "takes 0.58 of the GMAC of the most expensive one. The cost cannot fall much further",
        "training ours took 0.56 of the time of the 2 fixed networks together, 1.12 of their mean",
        "saves computation at inference",
        "without mirroring",
    ):
        assert said in text, said


def test_seconds_of_equal_networks_tell_how_far_to_trust_seconds(table, costs):
    table.loc[(table["arm"] == "shared") & (table["scale"] == 0.5), "seconds_per_case"] *= 1.3
    text = " ".join(page_of(table, costs).split())
    assert "their seconds differ by up to 30 % (at 0.5)" in text
    alone = table[table["arm"].isin(["constant", "ours"])]
    assert "apart here" not in page_of(alone, costs)


def test_the_check_of_the_weights_is_in_a_table(table):
    (check,) = check_weights(table).to_dict("records")
    assert (check["arm"], check["scale"], check["value"]) == ("ours", 0.25, 0.25)
    assert check["limit"] == 0.01
    assert check["passed"]


def test_a_collapsed_hypernetwork_is_called_one(costs):
    rows = [evaluation("ours", scale, change_by_scale=1e-3) for scale in (0.25, 0.5)]
    table = scales_table(rows, ARMS)
    assert check_weights(table)["passed"].tolist() == [False]
    page = page_of(table, costs, mirroring=True)
    assert "the hypernetwork has collapsed" in " ".join(page.split())


# --- weights in networks of other scale factors


def test_every_pair_of_scales_is_transferred_of_hypernetworks_alone():
    config = {
        **{"arms": ARMS, "tasks": ["Task98_Fake"], "folds": [0, 3]},
        "scale_space": {"transfer": {"scales": [0.25, 0.5]}},
    }
    found = transfers(config)
    assert len(set(found)) == len(found) == 2 * 4
    assert ("Task98_Fake", "ours", 3, "0.25", "0.5") in found
    assert {arm for _, arm, *_ in found} == {"ours"}
    config["scale_space"]["transfer"]["scales"] = []
    assert transfers(config) == []


def test_cases_are_spread_over_the_fold():
    cases = [f"case_{n}" for n in range(7)]
    assert some_cases(cases, 3) == ["case_0", "case_2", "case_4"]
    assert some_cases(cases, None) == some_cases(cases, 7) == some_cases(cases, 20) == cases
    assert [len(set(some_cases(cases, n))) for n in range(1, 8)] == list(range(1, 8))


def test_the_transfer_matrix(matrix):
    assert len(matrix) == 9
    lost = matrix.set_index(["network_scale", "weights_scale"])["below_best"]
    assert lost[0.25, 0.25] == lost[0.35, 0.35] == lost[0.5, 0.35] == 0
    assert lost[0.5, 0.5] == pytest.approx(0.005)
    assert lost[0.25, 0.5] == pytest.approx(0.15)
    two = transfer_table([transfer(0.25, 0.5, dice, fold) for fold, dice in enumerate((0.6, 0.8))])
    assert two[["dice", "folds", "cases"]].to_numpy().tolist() == [[0.7, 2, 6]]


def test_the_page_tells_whether_the_matrix_peaks_on_its_diagonal(matrix):
    page = tabulate_transfer.to_markdown(matrix)
    text = " ".join(page.replace("|", " | ").split())
    assert "| network at 0.25 | network at 0.35 | network at 0.5 |" in text
    assert "| weights for 0.35 | 0.830 | 0.870 | 0.885 |" in text
    assert "In 2 of 3 networks none of the other weights are better than its own" in text
    assert "In the remaining ones, other weights are better by up to 0.005." in text
    assert "(Dice on 3 validation cases)." in text
    assert "weights for 0.25 in the network at 0.5: 0.285 below the best there" in text
    alone = tabulate_transfer.to_markdown(transfer_table([transfer(0.5, 0.5, 0.9)]))
    assert "In 1 of 1 networks" in alone


def test_the_figure_of_the_matrix(matrix, tmp_path):
    style = load_style(ROOT / "config/plotting.yaml")
    paths = [tmp_path / f"transfer.{kind}" for kind in ("svg", "png")]
    drawn = []
    equal = transfer_table([transfer(a, b, 0.9) for a in (0.25, 0.5) for b in (0.25, 0.5)])
    for table in (matrix, equal, pd.concat([matrix, matrix.assign(arm="other", dice=0.5)])):
        plot_transfer(table, style, paths)
        drawn.append(paths[0].read_bytes())
        assert drawn[-1].startswith(b"<?xml")
        assert paths[1].stat().st_size > 5000
    assert len(set(drawn)) == 3
    plot_transfer(matrix, style, paths)
    assert paths[0].read_bytes() == drawn[0]


@pytest.mark.parametrize("with_transfer", [True, False])
def test_the_notebook(table, costs, matrix, tmp_path, with_transfer):
    style = load_style(ROOT / "config/plotting.yaml")
    names = {"choice": "csv", "checks": "csv", "scales_md": "md", "scales_png": "png"}
    names |= {"comparisons_md": "md"}
    names |= {"transfer_md": "md", "transfer_png": "png"} if with_transfer else {}
    paths = {name: tmp_path / f"{name}.{ending}" for name, ending in names.items()}
    choose_scales(table, 0.005).to_csv(paths["choice"], index=False)
    check_weights(table).assign(passed=with_transfer).to_csv(paths["checks"], index=False)
    paths["scales_md"].write_text(page_of(table, costs))
    paths["comparisons_md"].write_text("**The comparisons**\n")
    plot_scales(table, style, [paths["scales_png"]])
    if with_transfer:
        paths["transfer_md"].write_text(tabulate_transfer.to_markdown(matrix))
        plot_transfer(matrix, style, [paths["transfer_png"]])
    parameters = {"study": "fake", **{name: str(path) for name, path in paths.items()}}
    done, page = tmp_path / "done.ipynb", tmp_path / "done.html"
    execute(ROOT / "notebooks/scale_space.ipynb", parameters, done, tmp_path / "failed.ipynb")
    render(done, page, "fake: scale_space")
    text = " ".join(page.read_text().split())
    assert "Traceback" not in text
    assert "with 0.63 of the computation of the best one (0.5, Dice 0.880)" in text
    assert "scale factor 0.35 has a Dice of" in text
    assert ("Its weights follow the scale factor." in text) == with_transfer
    assert ("do not follow the scale factor</strong>: the same network serves all" in text) != (
        with_transfer
    )
    assert "<strong>The comparisons</strong>" in text
    assert "Limits" in text
    assert "The cost cannot fall much further" in text, "the limits with the study's numbers"
    assert text.count("data:image/png;base64") == 1 + with_transfer
    assert ("Not measured:" in text) != with_transfer


def test_the_figure(table, tmp_path):
    style = load_style(ROOT / "config/plotting.yaml")
    paths = [tmp_path / f"scales.{kind}" for kind in ("svg", "png")]
    plot_scales(table, style, paths)
    first = [path.read_bytes() for path in paths]
    assert first[0].startswith(b"<?xml")
    assert b"0.35" in first[0] or len(first[0]) > 10_000
    plot_scales(pd.concat([table, table.assign(task="Task97_Other")]), style, paths)
    assert [path.read_bytes() for path in paths] != first
