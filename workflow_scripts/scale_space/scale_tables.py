"""Tables of accuracy against cost by scale factor: non-dominated models, and which to choose."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from workflow_scripts.common.errors import UserError
from workflow_scripts.study.scale_grid import role_of

MEASURES = [
    "dice",
    "gmac_per_patch",
    "gmac_per_case",
    "seconds_per_case",
    "kwh_per_case",
    "kg_co2eq_per_case",
    "peak_memory_mb",
    "change_by_scale",
]
COSTS = ("gmac_per_case", "seconds_per_case")
COLUMNS = [
    "task",
    "arm",
    "role",
    "scale",
    "folds",
    "cases",
    *MEASURES,
    "dice_sd",
    *(f"non_dominated_{cost}" for cost in COSTS),
]
CHOICE_COLUMNS = [
    "task",
    "arm",
    "scale",
    "dice",
    "best_scale",
    "best_dice",
    "tolerance",
    "relative_gmac",
]
CHECK_COLUMNS = ["task", "arm", "check", "scale", "value", "limit", "passed"]
COLLAPSED = 0.01
"""`change_by_scale` up to which training counts as the same at every scale factor. The control, a
network in which only W0 was trained, has rounding errors only: below 1e-4."""
TRANSFER_KEYS = ["task", "arm", "network_scale", "weights_scale"]
TRAINED = ["training_seconds", "training_kwh", "training_gflop"]
SUM_OF_FIXED = "sum of the fixed networks"


def scales_table(evaluations: Sequence[Mapping[str, Any]], arms: Mapping[str, Any]) -> pd.DataFrame:
    """Return one row per task, arm and scale factor (columns `COLUMNS`), means over the folds.

    `scale` is empty for nnU-Net's own network. `non_dominated_*` is True if no other model of the
    task has at least the same Dice at no higher cost and is better in one of the two.

    Args:
        evaluations: contents of the output files of `evaluate_scale`.
        arms: the config's section `arms`.
    """
    table = pd.DataFrame(evaluations).astype(dict.fromkeys(["scale", *MEASURES], float))
    keys = ["task", "arm", "scale"]
    groups = table.groupby(keys, sort=False, dropna=False, as_index=False)
    rows = groups[MEASURES].agg(lambda values: values.mean(skipna=False))
    rows["folds"] = groups["fold"].nunique()["fold"]
    rows["cases"] = groups["cases"].sum()["cases"]
    rows["dice_sd"] = groups["dice"].std()["dice"]
    rows["role"] = [role_of(arms[arm]) for arm in rows["arm"]]
    for cost in COSTS:
        rows[f"non_dominated_{cost}"] = False
        for _, same in rows.groupby("task"):
            kept = non_dominated(same[cost].tolist(), same["dice"].tolist())
            rows.loc[same.index, f"non_dominated_{cost}"] = kept
    return rows[COLUMNS]


def non_dominated(costs: Sequence[float], values: Sequence[float]) -> list[bool]:
    """Return for each point whether none is as cheap and as good, and better in one of the two."""
    points = list(zip(costs, values, strict=True))
    return [
        not any(c <= cost and v >= value and (c, v) != (cost, value) for c, v in points)
        for cost, value in points
    ]


def choose_scales(table: pd.DataFrame, tolerance: float) -> pd.DataFrame:
    """Return the cheapest scale factor that is good enough, for each task and hypernetwork.

    It is the cheapest by GMAC whose Dice is at most `tolerance` below the arm's best. The columns
    are `CHOICE_COLUMNS`; `relative_gmac` is relative to the best one.
    """
    rows = []
    for (task, arm), same in table[table["role"] == "hypernetwork"].groupby(
        ["task", "arm"], sort=False
    ):
        best = same.loc[same["dice"].idxmax()]
        good = same[same["dice"] >= best["dice"] - tolerance]
        chosen = good.loc[good["gmac_per_case"].idxmin()]
        rows.append(
            {
                "task": task,
                "arm": arm,
                "scale": chosen["scale"],
                "dice": chosen["dice"],
                "best_scale": best["scale"],
                "best_dice": best["dice"],
                "tolerance": tolerance,
                "relative_gmac": chosen["gmac_per_case"] / best["gmac_per_case"],
            }
        )
    return pd.DataFrame(rows, columns=CHOICE_COLUMNS)


def read_choice(path: Path, task: str, arm: str) -> float:
    """Return the scale factor that `choose_scales` found; raise UserError if there is none."""
    table = pd.read_csv(path)
    chosen = table.loc[(table["task"] == task) & (table["arm"] == arm), "scale"]
    if len(chosen) != 1:
        raise UserError(f"{path} has no choice for {task}, arm {arm}; set scale_factor yourself")
    return float(chosen.iloc[0])


def check_weights(table: pd.DataFrame) -> pd.DataFrame:
    """Return whether the effect of training depends on the scale factor (columns `CHECK_COLUMNS`).

    `value` is the largest `baking.change_by_scale`, found at `scale`. If it is not above `limit`,
    training did the same at every scale factor: the hypernetwork has collapsed.
    """
    rows = []
    hyper = table[(table["role"] == "hypernetwork") & table["change_by_scale"].notna()]
    for (task, arm), same in hyper.groupby(["task", "arm"], sort=False):
        farthest = same.loc[same["change_by_scale"].idxmax()]
        value = farthest["change_by_scale"]
        check = [task, arm, "training depends on the scale factor", farthest["scale"], value]
        rows.append([*check, COLLAPSED, value > COLLAPSED])
    return pd.DataFrame(rows, columns=CHECK_COLUMNS)


def transfer_table(evaluations: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return one row per scale factor of the network and of its weights, means over the folds.

    Columns: `TRANSFER_KEYS`, folds, cases, dice, dice_sd, below_best (how much lower the Dice is
    than that of the best weights in the same network).

    Args:
        evaluations: contents of the output files of `evaluate_transfer`.
    """
    groups = pd.DataFrame(evaluations).groupby(TRANSFER_KEYS, as_index=False)
    rows = groups.agg(
        folds=("fold", "nunique"),
        cases=("cases", "sum"),
        dice=("dice", lambda values: values.mean(skipna=False)),
        dice_sd=("dice", "std"),
    )
    rows["below_best"] = rows.groupby(TRANSFER_KEYS[:3])["dice"].transform("max") - rows["dice"]
    return rows


def training_costs(records: Sequence[Mapping[str, Any]], arms: Mapping[str, Any]) -> pd.DataFrame:
    """Return training costs: one row per task and arm, and one for all fixed networks.

    Columns: task, arm, role, networks, `TRAINED` (means over the folds).
    """
    table = pd.DataFrame(records)[["task", "arm", "fold", *TRAINED]]
    table = table.astype(dict.fromkeys(TRAINED, float))
    rows = table.groupby(["task", "arm"], sort=False, as_index=False)[TRAINED].mean()
    rows.insert(2, "role", [role_of(arms[arm]) for arm in rows["arm"]])
    rows.insert(3, "networks", 1)
    sums = []
    for task, fixed in rows[rows["role"] == "fixed"].groupby("task", sort=False):
        total = fixed[TRAINED].sum(skipna=False).to_dict()
        sums.append({"task": task, "arm": SUM_OF_FIXED, "role": "fixed", **total})
        sums[-1]["networks"] = len(fixed)
    return pd.concat([rows, pd.DataFrame(sums)], ignore_index=True) if sums else rows
