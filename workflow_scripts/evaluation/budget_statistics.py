"""A sweep of training lengths: Dice at equal cost, and the cost to reach a Dice.

The name of an arm ends with its length in iterations: `constant_660`. Between trained lengths, Dice
is interpolated linearly over the logarithm of the cost; nothing is extrapolated. A saturating curve
lies above its chords, so interpolation underestimates Dice. Differences are therefore given where
the arm was trained (interpolating the reference, which favours the arm) and where the reference was
trained (interpolating the arm, which favours the reference).
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from workflow_scripts.common.errors import UserError
from workflow_scripts.common.formatting import COMPUTATION, ENERGY, TIME, Choices
from workflow_scripts.common.paired_statistics import (
    half_width,
    holm,
    p_value,
    variance_of_mean,
)
from workflow_scripts.records.run_reader import without_length

STEPS: Choices = (("steps", 1.0),)
COSTS: Mapping[str, tuple[str, Choices]] = {
    "training_steps": ("steps", STEPS),
    "training_seconds": ("time", TIME),
    "training_kwh": ("energy", ENERGY),
    "training_gflop": ("FLOP", COMPUTATION),
}
"""Columns of runs.csv, with their names in the tables and units to choose from."""
LEVELS = (0.95, 0.99, 1.00)
"""Shares of the Dice of the reference arm's longest training."""
ARM, REFERENCE = "arm", "reference"
DIFFERENCES = [
    "task",
    "arm",
    "reference_arm",
    "cost",
    "trained",
    "steps",
    "trainings",
    "amount",
    "relative",
    "dice",
    "dice_reference",
    "difference",
    "ci_low",
    "ci_high",
    "p",
    "tests",
    "p_holm",
]
"""Columns of `measure_differences`."""
TARGETS = [
    "task",
    "arm",
    "reference_arm",
    "level",
    "target",
    "cost",
    "trainings",
    "reached",
    "amount",
    "relative",
    "at_most",
]
"""Columns of `measure_final_targets`."""


@dataclass(frozen=True)
class Curve:
    """All lengths of one arm, fold and seed: costs in increasing order, their Dice and steps."""

    costs: NDArray[np.float64]
    dice: NDArray[np.float64]
    steps: NDArray[np.int64]

    def dice_at(self, cost: float) -> float:
        """Return the Dice at a cost; NaN outside the range of trained costs."""
        if not self.costs[0] * (1 - 1e-9) <= cost <= self.costs[-1] * (1 + 1e-9):
            return math.nan
        return float(np.interp(math.log(cost), np.log(self.costs), self.dice))

    def cost_of(self, target: float) -> tuple[float, bool]:
        """Return the lowest cost from which the curve stays above a Dice, and if it is a bound.

        The cost is infinite if the curve ends below the target. If the curve starts above it, the
        cost of the shortest training is an upper bound.
        """
        below = np.flatnonzero(self.dice < target - 1e-12)
        if not len(below):
            return float(self.costs[0]), True
        last = int(below[-1])
        if last == len(self.costs) - 1:
            return math.inf, False
        share = (target - self.dice[last]) / (self.dice[last + 1] - self.dice[last])
        low, high = np.log(self.costs[last : last + 2])
        return float(np.exp(low + share * (high - low))), False


Curves = dict[tuple[str, str, int, int], Curve]
"""Key: task, arm without its length, fold, seed."""


def curves(runs: pd.DataFrame, cost: str) -> Curves:
    """Return all curves for which every cost is known and positive."""
    table = runs.assign(family=runs["arm"].map(without_length)).sort_values(cost)
    table = table.dropna(subset=["dice_foreground_mean"])
    return {
        key: Curve(
            rows[cost].to_numpy(float),
            rows["dice_foreground_mean"].to_numpy(float),
            rows["training_steps"].to_numpy(int),
        )
        for key, rows in table.groupby(["task", "family", "fold", "seed"], sort=False)
        if (rows[cost] > 0).all()
    }


def paired(runs: pd.DataFrame, cost: str, base: str) -> Iterator[tuple[Any, Curve, Curve]]:
    """Yield key and curve of every arm, and the reference curve of the same fold and seed."""
    by_key = curves(runs, cost)
    for key, curve in by_key.items():
        reference = by_key.get((key[0], base, *key[2:]))
        if reference is not None:
            yield key, curve, reference


def interval(rows: pd.DataFrame) -> tuple[float, float, float]:
    """Return the 95 % confidence interval of the mean `difference`, and its p-value (Student's t).

    The sample consists of seeds, each averaged over its folds. If there is one seed, it consists of
    folds, and the result holds for this seed. All are NaN for a single value.
    """
    unit = "seed" if rows["seed"].nunique() > 1 else "fold"
    values = rows.groupby(unit)["difference"].mean().to_numpy()
    if len(values) < 2:
        return math.nan, math.nan, math.nan
    (component,) = variance_of_mean(values[:, np.newaxis])
    mean, half = float(values.mean()), half_width([component])
    return mean - half, mean + half, p_value(mean, [component])


def _at_equal_cost(
    arm: Curve, reference: Curve, trained: str
) -> Iterator[tuple[int, float, float, float]]:
    """Yield steps, cost, Dice of the arm and of the reference at each length of `trained`."""
    own, other = (arm, reference) if trained == ARM else (reference, arm)
    for steps, cost, dice in zip(own.steps, own.costs, own.dice, strict=True):
        both = (dice, other.dice_at(cost))
        yield (steps, cost, *(both if trained == ARM else both[::-1]))


def measure_differences(runs: pd.DataFrame, reference_arm: str) -> pd.DataFrame:
    """Return the Dice of every arm and of the reference at equal cost.

    One row per task, arm, cost, and training length of the arm or of the reference. `trained` is
    the one with this length; the other one is interpolated. Columns `DIFFERENCES`: means over all
    folds and seeds in which both curves cover that cost, the 95 % interval of the difference and
    its p-value (`interval`). `p_holm` is corrected by Holm's method for all comparisons of the task
    that have an interval (`tests`): arms, lengths and costs.
    `amount` is in the unit of runs.csv, `relative` its ratio to the reference's longest training.
    Raises UserError if the reference arm has no run.
    """
    base = _base(runs, reference_arm)
    rows = [
        {"task": task, "arm": arm, "fold": fold, "seed": seed, "cost": cost, "trained": trained}
        | {"steps": steps, "amount": amount, "relative": amount / reference.costs[-1]}
        | {"dice": dice, "dice_reference": other, "difference": dice - other}
        for cost in COSTS
        for (task, arm, fold, seed), curve, reference in paired(runs, cost, base)
        if arm != base
        for trained in (ARM, REFERENCE)
        for steps, amount, dice, other in _at_equal_cost(curve, reference, trained)
    ]
    keys = ["task", "arm", "cost", "trained", "steps"]
    columns = [*keys, "fold", "seed", "amount", "relative", "dice", "dice_reference", "difference"]
    pairs = pd.DataFrame(rows, columns=columns)
    result = []
    for key, every in pairs.groupby(keys, sort=False):
        group = every.dropna(subset=["difference"])
        row: dict[str, Any] = dict(zip(keys, key, strict=True))
        row |= group[columns[-5:]].mean().to_dict() | {"trainings": len(group)}
        row["ci_low"], row["ci_high"], row["p"] = interval(group)
        result.append(row | {"reference_arm": base})
    table = pd.DataFrame(result, columns=DIFFERENCES)
    table["tests"] = table.groupby("task")["p"].transform("count").astype("Int64")
    table["p_holm"] = table.groupby("task")["p"].transform(
        lambda values: holm(values.tolist(), int(values.notna().sum()))
    )
    return table


def measure_final_targets(runs: pd.DataFrame, reference_arm: str) -> pd.DataFrame:
    """Return the cost of each arm to reach a share of the reference's final Dice.

    One row per task, arm, level and cost, with the columns `TARGETS`. Targets are those of the same
    fold and seed. `amount` (unit of runs.csv) and `relative` (ratio to the reference) are medians
    over folds and seeds, and infinite if at least half of the curves end below the target. They are
    upper bounds (`at_most`) if an arm's shortest training is already above the target; `relative`
    is NaN if the reference's is.
    Raises UserError if the reference arm has no run.
    """
    base = _base(runs, reference_arm)
    rows = []
    for cost in COSTS:
        for (task, arm, _, _), curve, reference in paired(runs, cost, base):
            for level in LEVELS:
                target = level * reference.dice[-1]
                amount, bound = curve.cost_of(target)
                needed, unknown = reference.cost_of(target)
                relative = math.nan if unknown else amount / needed
                row = {"task": task, "arm": arm, "level": level, "cost": cost, "target": target}
                rows.append(row | {"amount": amount, "relative": relative, "at_most": bound})
    keys = ["task", "arm", "level", "cost"]
    reached = pd.DataFrame(rows, columns=[*keys, "target", "amount", "relative", "at_most"])
    table = reached.groupby(keys, as_index=False, sort=False).agg(
        target=("target", "mean"),
        trainings=("amount", "size"),
        reached=("amount", lambda amounts: int(np.isfinite(amounts).sum())),
        amount=("amount", "median"),
        relative=("relative", lambda ratios: ratios.median(skipna=False)),
        at_most=("at_most", "any"),
    )
    table.loc[table["reached"] <= table["trainings"] / 2, ["amount", "relative"]] = math.inf
    return table.assign(reference_arm=base)[TARGETS]


def _base(runs: pd.DataFrame, reference_arm: str) -> str:
    """Return the reference arm without its length."""
    base = without_length(reference_arm)
    if base not in set(runs["arm"].map(without_length)):
        raise UserError(f"reference_arm is {reference_arm}, which has no run in this study")
    return base
