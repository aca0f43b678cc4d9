"""A sweep of training lengths: Dice at equal cost, where the curves cross, cost of a final Dice.

An arm of a sweep is named after what it trains and its number of epochs: `constant_42`. Between
the lengths that were trained, Dice is interpolated linearly over the logarithm of the cost; nothing
is extrapolated.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import t

from workflow_scripts.common.console import redirect
from workflow_scripts.common.errors import UserError
from workflow_scripts.common.files import read_csv
from workflow_scripts.common.formatting import (
    COMPUTATION,
    ENERGY,
    TIME,
    Choices,
    bullets,
    in_unit,
    markdown_text,
    pipe_table,
    repeats,
)
from workflow_scripts.common.paired_statistics import LEVEL

STEPS: Choices = (("steps", 1.0),)
COSTS: Mapping[str, tuple[str, Choices]] = {
    "training_steps": ("steps", STEPS),
    "training_seconds": ("time", TIME),
    "training_kwh": ("energy", ENERGY),
    "training_gflop": ("FLOP", COMPUTATION),
}
"""Columns of runs.csv: what the tables call them, and units to choose from."""
LEVELS = (0.95, 0.99, 1.00)
"""Shares of the Dice with which the reference arm's longest trainings end."""
DIFFERENCES = [
    *("task", "arm", "reference_arm", "epochs", "cost", "amount", "relative", "trainings"),
    *("dice", "dice_reference", "difference", "ci_low", "ci_high"),
]
TARGETS = [
    *("task", "arm", "reference_arm", "level", "target", "cost", "trainings", "reached"),
    *("amount", "relative"),
]
Curve = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Costs in increasing order, and the Dice of the training that took each."""


def family(arm: str) -> str:
    """Return the name of an arm without its number of epochs."""
    return re.sub(r"_\d+$", "", arm)


def dice_at(curve: Curve, cost: float) -> float:
    """Return the Dice that a curve has at a cost; NaN outside of what was trained."""
    costs, dice = curve
    if not costs[0] * (1 - 1e-9) <= cost <= costs[-1] * (1 + 1e-9):
        return math.nan
    return float(np.interp(math.log(cost), np.log(costs), dice))


def cost_of(curve: Curve, target: float) -> float:
    """Return the lowest cost from which a curve stays at a Dice; infinite if it ends below.

    A curve that begins above the target has the cost of its shortest training.
    """
    costs, dice = curve
    below = np.flatnonzero(dice < target - 1e-12)
    if not len(below):
        return float(costs[0])
    last = int(below[-1])
    if last == len(costs) - 1:
        return math.inf
    share = (target - dice[last]) / (dice[last + 1] - dice[last])
    return float(np.exp(np.interp(share, [0, 1], np.log(costs[last : last + 2]))))


def interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """95 % confidence interval of a mean over trainings (Student's t); NaN for a single one."""
    if len(values) < 2:
        return math.nan, math.nan
    half = t.ppf(1 - LEVEL / 2, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    return float(values.mean() - half), float(values.mean() + half)


def curves(runs: pd.DataFrame, cost: str) -> dict[tuple[str, str, int, int], Curve]:
    """Return the curve of each task, family, fold and seed; none where a cost is unknown."""
    table = runs.assign(family=runs["arm"].map(family)).sort_values(cost)
    table = table.dropna(subset=["dice_foreground_mean"])
    return {
        key: (rows[cost].to_numpy(float), rows["dice_foreground_mean"].to_numpy(float))
        for key, rows in table.groupby(["task", "family", "fold", "seed"])
        if (rows[cost] > 0).all()
    }


def measure_differences(runs: pd.DataFrame, reference_arm: str) -> pd.DataFrame:
    """Return the Dice of every length of every arm beside the reference's at equal cost.

    One row per task, arm, epochs and cost, with the columns `DIFFERENCES`: means over the folds and
    seeds whose cost lies within what the reference was trained for, and the 95 % interval of the
    difference (`interval`). `relative` is the cost over that of the reference's longest training.
    `UserError` if the reference arm has no run.
    """
    base = family(_known(runs, reference_arm))
    rows: list[dict[str, Any]] = []
    for cost in COSTS:
        found = curves(runs, cost)
        lengths = runs.assign(family=runs["arm"].map(family))
        for (task, arm, epochs), group in lengths.groupby(["task", "family", "epochs"], sort=False):
            if arm == base:
                continue
            values = []
            for run in group.itertuples():
                curve = found.get((task, base, run.fold, run.seed))
                amount = getattr(run, cost)
                if curve is None or not amount > 0:
                    continue
                values.append(
                    (
                        amount,
                        amount / curve[0][-1],
                        run.dice_foreground_mean,
                        dice_at(curve, amount),
                    )
                )
            table = np.array(values).reshape(-1, 4)
            table = table[~np.isnan(table).any(axis=1)]
            row: dict[str, Any] = {"task": task, "arm": arm, "reference_arm": base, "cost": cost}
            row |= {"epochs": epochs, "trainings": len(table)}
            if len(table):
                means = table.mean(axis=0)
                row |= dict(
                    zip(("amount", "relative", "dice", "dice_reference"), means, strict=True)
                )
                row["difference"] = row["dice"] - row["dice_reference"]
                row["ci_low"], row["ci_high"] = interval(table[:, 2] - table[:, 3])
            rows.append(row)
    return pd.DataFrame(rows, columns=DIFFERENCES)


def measure_targets(runs: pd.DataFrame, reference_arm: str) -> pd.DataFrame:
    """Return what each arm's lengths cost until they reach a share of the reference's final Dice.

    One row per task, arm, level and cost, with the columns `TARGETS`. The target is that of the
    same fold and seed; amounts and their ratios to the reference's are medians over these, infinite
    where half of them or more end below the target.
    `UserError` if the reference arm has no run.
    """
    base = family(_known(runs, reference_arm))
    rows: list[dict[str, Any]] = []
    for cost in COSTS:
        found = curves(runs, cost)
        for level in LEVELS:
            for (task, arm, fold, seed), curve in found.items():
                reference = found.get((task, base, fold, seed))
                if reference is None:
                    continue
                target = level * reference[1][-1]
                amount = cost_of(curve, target)
                rows.append(
                    {"task": task, "arm": arm, "level": level, "cost": cost, "target": target}
                    | {"amount": amount, "relative": amount / cost_of(reference, target)}
                )
    groups = pd.DataFrame(rows).groupby(
        ["task", "arm", "level", "cost"], as_index=False, sort=False
    )
    table = groups.agg(
        target=("target", "mean"),
        trainings=("amount", "size"),
        reached=("amount", lambda amounts: int(np.isfinite(amounts).sum())),
        amount=("amount", "median"),
        relative=("relative", "median"),
    )
    table.loc[table["reached"] <= table["trainings"] / 2, ["amount", "relative"]] = math.inf
    return table.assign(reference_arm=base)[TARGETS]


def _known(runs: pd.DataFrame, reference_arm: str) -> str:
    if family(reference_arm) not in set(runs["arm"].map(family)):
        raise UserError(f"reference_arm is {reference_arm}, which has no run in this study")
    return reference_arm


def crossing(rows: pd.DataFrame) -> str:
    """Say where one arm's Dice at equal cost rises above the reference's, in words."""
    known = rows.dropna(subset=["difference"]).sort_values("amount")
    choices = COSTS[rows["cost"].iloc[0]][1]
    if known.empty:
        return "no common cost"
    costs, differences = known["amount"].to_numpy(), known["difference"].to_numpy()
    behind = np.flatnonzero(differences < 0)
    if not len(behind):
        return f"ahead from {in_unit(costs[0], choices)} on"
    last = int(behind[-1])
    if last == len(costs) - 1:
        return f"behind up to {in_unit(costs[-1], choices)}"
    share = differences[last] / (differences[last] - differences[last + 1])
    logs = np.log(costs[last : last + 2])
    return f"ahead from {in_unit(float(np.exp(logs[0] + share * (logs[1] - logs[0]))), choices)} on"


def difference_text(row: pd.Series) -> str:
    """Return the difference at equal cost with its interval; a dash where there is none."""
    if pd.isna(row["difference"]):
        return "–"
    if pd.isna(row["ci_low"]):
        return f"{row['difference']:+.3f}"
    return f"{row['difference']:+.3f} [{row['ci_low']:+.3f}, {row['ci_high']:+.3f}]"


def target_text(row: pd.Series) -> str:
    """Return the ratio of a cost to the reference's until the target; `never` if infinite."""
    return "never" if math.isinf(row["relative"]) else f"{row['relative']:.2f}"


def to_markdown(differences: pd.DataFrame, targets: pd.DataFrame, runs: pd.DataFrame) -> str:
    """Return the sweep as Markdown: Dice by length, differences at equal cost, cost to target."""
    reference = differences["reference_arm"].iloc[0] if len(differences) else ""
    lengths = runs.assign(family=runs["arm"].map(family))
    parts = []
    for task, of_task in lengths.groupby("task", sort=False):
        rows = [
            {"arm": arm, "epochs": str(epochs), "Dice": _spread(group["dice_foreground_mean"])}
            | {
                name: in_unit(group[cost].mean(), choices)
                for cost, (name, choices) in COSTS.items()
            }
            for (arm, epochs), group in of_task.groupby(["family", "epochs"], sort=False)
        ]
        parts.append(_section(f"Dice and costs: {task}", pd.DataFrame(rows)))
        here = differences[differences["task"] == task]
        rows = [
            {"arm": arm, "epochs": str(epochs)}
            | {COSTS[row["cost"]][0]: difference_text(row) for row in group.to_dict("records")}
            for (arm, epochs), group in here.groupby(["arm", "epochs"], sort=False)
        ]
        parts.append(
            _section(f"Dice over that of {reference} at equal …: {task}", pd.DataFrame(rows))
        )
        rows = [
            {"arm": arm}
            | {
                COSTS[cost][0]: crossing(group)
                for cost, group in of_arm.groupby("cost", sort=False)
            }
            for arm, of_arm in here.groupby("arm", sort=False)
        ]
        parts.append(_section(f"Ahead of {reference} at equal …: {task}", pd.DataFrame(rows)))
        here = targets[(targets["task"] == task) & (targets["arm"] != reference)]
        rows = [
            {"arm": arm, "of its Dice": f"{level:.0%}"}
            | {COSTS[row["cost"]][0]: target_text(row) for row in group.to_dict("records")}
            for (arm, level), group in here.groupby(["arm", "level"], sort=False)
        ]
        parts.append(
            _section(
                f"Cost until as good as {reference} ends up, relative to it: {task}",
                pd.DataFrame(rows),
            )
        )
    trained = repeats(runs["fold"].nunique(), runs["seed"].nunique())
    notes = [
        f"Mean ± standard deviation over {trained}." if trained else "One training each.",
        f"At equal cost: the Dice of a training minus that of {reference}, interpolated over the "
        "logarithm of the cost between its lengths"
        + (f", with the 95 % interval of the mean over {trained} (Student's t)" if trained else "")
        + f". A dash: {reference} was not trained for so little or so much.",
        f"The last table: medians over the trainings; shares of the Dice with which the longest "
        f"training of {reference} ends. `never`: the longest training of the arm ends below it.",
    ]
    return "\n\n".join([*parts, bullets(notes)]) + "\n"


def _spread(dice: pd.Series) -> str:
    return f"{dice.mean():.3f}" + (f" ± {dice.std():.3f}" if len(dice) > 1 else "")


def _section(heading: str, rows: pd.DataFrame) -> str:
    rows = rows.assign(arm=rows["arm"].map(markdown_text))
    return f"**{markdown_text(heading)}**\n\n{pipe_table(rows)}"


if __name__ == "__main__":
    redirect(snakemake.log[0])
    trained = read_csv(snakemake.input.runs)
    compared_with = snakemake.params.reference_arm
    equal_cost, to_target = (
        measure(trained, compared_with) for measure in (measure_differences, measure_targets)
    )
    equal_cost.to_csv(snakemake.output.differences, index=False)
    to_target.to_csv(snakemake.output.targets, index=False)
    Path(snakemake.output.md).write_text(
        to_markdown(equal_cost, to_target, trained), encoding="utf-8"
    )
