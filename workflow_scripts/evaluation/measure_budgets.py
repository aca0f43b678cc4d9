"""A sweep of training lengths: Dice at equal cost, where the curves cross, cost of a final Dice.

An arm of a sweep is named after what it trains and its number of epochs: `constant_42`. Between
the lengths that were trained, Dice is interpolated linearly over the logarithm of the cost; nothing
is extrapolated. A curve that saturates lies above its chords, so interpolation makes an arm look
worse than it is. Differences are therefore given both where the arm was trained (the reference is
interpolated, too favourable for the arm) and where the reference was (the arm is interpolated).
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
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
from workflow_scripts.records.run_reader import without_length

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
ARM, REFERENCE = "arm", "reference"
DIFFERENCES = [
    *("task", "arm", "reference_arm", "cost", "trained", "epochs", "trainings"),
    *("amount", "relative", "dice", "dice_reference", "difference", "ci_low", "ci_high"),
]
TARGETS = [
    *("task", "arm", "reference_arm", "level", "target", "cost", "trainings", "reached"),
    *("amount", "relative", "at_most"),
]


@dataclass(frozen=True)
class Curve:
    """Lengths of one arm, fold and seed: costs in increasing order, Dice and epochs of each."""

    costs: NDArray[np.float64]
    dice: NDArray[np.float64]
    epochs: NDArray[np.int64]

    def dice_at(self, cost: float) -> float:
        """Return the Dice at a cost; NaN outside of what was trained."""
        if not self.costs[0] * (1 - 1e-9) <= cost <= self.costs[-1] * (1 + 1e-9):
            return math.nan
        return float(np.interp(math.log(cost), np.log(self.costs), self.dice))

    def cost_of(self, target: float) -> tuple[float, bool]:
        """Return the lowest cost from which the curve stays at a Dice, and whether it is a bound.

        Infinite if the curve ends below the target. If it begins above it, less would have been
        enough: the cost of the shortest training is an upper bound.
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
"""By task, arm without its length, fold and seed."""


def curves(runs: pd.DataFrame, cost: str) -> Curves:
    """Return all curves; none where a cost is unknown or zero."""
    table = runs.assign(family=runs["arm"].map(without_length)).sort_values(cost)
    table = table.dropna(subset=["dice_foreground_mean"])
    return {
        key: Curve(
            rows[cost].to_numpy(float),
            rows["dice_foreground_mean"].to_numpy(float),
            rows["epochs"].to_numpy(int),
        )
        for key, rows in table.groupby(["task", "family", "fold", "seed"], sort=False)
        if (rows[cost] > 0).all()
    }


def paired(runs: pd.DataFrame, cost: str, base: str) -> Iterator[tuple[Any, Curve, Curve]]:
    """Yield the key and the curve of every arm with the reference's of the same fold and seed."""
    found = curves(runs, cost)
    for key, curve in found.items():
        reference = found.get((key[0], base, *key[2:]))
        if reference is not None:
            yield key, curve, reference


def interval(rows: pd.DataFrame) -> tuple[float, float]:
    """95 % confidence interval of the mean `difference` (Student's t); NaN for a single value.

    The unit is the seed, whose folds are averaged; with one seed it is the fold.
    """
    unit = "seed" if rows["seed"].nunique() > 1 else "fold"
    values = rows.groupby(unit)["difference"].mean()
    if len(values) < 2:
        return math.nan, math.nan
    half = t.ppf(1 - LEVEL / 2, len(values) - 1) * values.std() / math.sqrt(len(values))
    return float(values.mean() - half), float(values.mean() + half)


def _at_equal_cost(
    arm: Curve, reference: Curve, trained: str
) -> Iterator[tuple[int, float, float, float]]:
    """Yield epochs, cost and both Dice for each length that `trained` has."""
    own, other = (arm, reference) if trained == ARM else (reference, arm)
    for epochs, cost, dice in zip(own.epochs, own.costs, own.dice, strict=True):
        both = (dice, other.dice_at(cost))
        yield (epochs, cost, *(both if trained == ARM else both[::-1]))


def measure_differences(runs: pd.DataFrame, reference_arm: str) -> pd.DataFrame:
    """Return the Dice of every arm beside the reference's at equal cost.

    One row per task, arm, cost, and length of the arm or of the reference (`trained` says whose;
    the other is interpolated), with the columns `DIFFERENCES`: means over the folds and seeds for
    which both have that cost, and the 95 % interval of the difference (`interval`). `relative` is
    the cost over that of the reference's longest training.
    `UserError` if the reference arm has no run.
    """
    base = _base(runs, reference_arm)
    rows = [
        {"task": task, "arm": arm, "fold": fold, "seed": seed, "cost": cost, "trained": trained}
        | {"epochs": epochs, "amount": amount, "relative": amount / reference.costs[-1]}
        | {"dice": dice, "dice_reference": other, "difference": dice - other}
        for cost in COSTS
        for (task, arm, fold, seed), curve, reference in paired(runs, cost, base)
        if arm != base
        for trained in (ARM, REFERENCE)
        for epochs, amount, dice, other in _at_equal_cost(curve, reference, trained)
    ]
    keys = ["task", "arm", "cost", "trained", "epochs"]
    columns = [*keys, "fold", "seed", "amount", "relative", "dice", "dice_reference", "difference"]
    found = pd.DataFrame(rows, columns=columns)
    result = []
    for key, every in found.groupby(keys, sort=False):
        group = every.dropna(subset=["difference"])
        row: dict[str, Any] = dict(zip(keys, key, strict=True))
        row |= group[columns[-5:]].mean().to_dict() | {"trainings": len(group)}
        row["ci_low"], row["ci_high"] = interval(group)
        result.append(row | {"reference_arm": base})
    return pd.DataFrame(result, columns=DIFFERENCES)


def measure_targets(runs: pd.DataFrame, reference_arm: str) -> pd.DataFrame:
    """Return what each arm's lengths cost until they reach a share of the reference's final Dice.

    One row per task, arm, level and cost, with the columns `TARGETS`. The target is that of the
    same fold and seed; amounts and their ratios to the reference's are medians over these, infinite
    where half of them or more end below the target. They are upper bounds (`at_most`) where a
    shortest training of the arm is above the target already, and unknown where the reference's is.
    `UserError` if the reference arm has no run.
    """
    base = _base(runs, reference_arm)
    rows = []
    for cost in COSTS:
        for (task, arm, _, _), curve, reference in paired(runs, cost, base):
            for level in LEVELS:
                target = level * reference.dice[-1]
                (amount, bound), (needed, unknown) = (
                    curve.cost_of(target),
                    reference.cost_of(target),
                )
                relative = math.nan if unknown else amount / needed
                row = {"task": task, "arm": arm, "level": level, "cost": cost, "target": target}
                rows.append(row | {"amount": amount, "relative": relative, "at_most": bound})
    keys = ["task", "arm", "level", "cost"]
    found = pd.DataFrame(rows, columns=[*keys, "target", "amount", "relative", "at_most"])
    table = found.groupby(keys, as_index=False, sort=False).agg(
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


def crossing(rows: pd.DataFrame) -> str:
    """Say for one arm and cost where it is ahead of the reference, and where behind, in words.

    A difference counts if its interval excludes 0, or, without an interval, by its sign; and only
    where interpolation cannot have made it. So an arm is behind at a length of its own, and ahead
    from a length of the reference on, if it is ahead in all rows from there.
    """
    known = rows.dropna(subset=["difference"]).sort_values("amount")
    choices = COSTS[rows["cost"].iloc[0]][1]
    if known.empty:
        return "no common cost"
    amounts = [in_unit(amount, choices) for amount in known["amount"]]
    of_arm = (known["trained"] == ARM).to_numpy()
    behind = (known["ci_high"].fillna(known["difference"]) < 0).to_numpy() & of_arm
    ahead = (known["ci_low"].fillna(known["difference"]) > 0).to_numpy()
    from_here_on = np.logical_and.accumulate(ahead[::-1])[::-1] & ~of_arm
    last_behind = amounts[np.flatnonzero(behind)[-1]] if behind.any() else None
    parts = [f"behind up to {last_behind}"] if last_behind else []
    if from_here_on.any():
        parts.append(f"ahead from {amounts[np.flatnonzero(from_here_on)[0]]}")
    elif last_behind != amounts[-1]:
        parts.append(f"undecided up to {amounts[-1]}")
    return ", ".join(parts)


def difference_text(row: Mapping[str, Any], trained: int) -> str:
    """Return the difference at equal cost with its interval; a dash where there is none.

    Fewer trainings than `trained` are counted behind it.
    """
    if pd.isna(row["difference"]):
        return "–"
    text = f"{row['difference']:+.3f}"
    if not pd.isna(row["ci_low"]):
        text += f" [{row['ci_low']:+.3f}, {row['ci_high']:+.3f}]"
    return text if row["trainings"] == trained else f"{text} (n = {row['trainings']})"


def target_text(row: Mapping[str, Any]) -> str:
    """Return the ratio of a cost to the reference's until the target; `never` if infinite."""
    if pd.isna(row["relative"]):
        return "–"
    if math.isinf(row["relative"]):
        return "never"
    return f"{'≤ ' if row['at_most'] else ''}{row['relative']:.2f}"


def to_markdown(differences: pd.DataFrame, targets: pd.DataFrame, runs: pd.DataFrame) -> str:
    """Return the sweep as Markdown: Dice by length, differences at equal cost, cost to target."""
    reference = targets["reference_arm"].iloc[0] if len(targets) else "the reference"
    lengths = runs.assign(family=runs["arm"].map(without_length))
    folds, seeds = runs["fold"].nunique(), runs["seed"].nunique()
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
        parts.append(_section(f"Dice and costs: {task}", rows))
        here = differences[differences["task"] == task]
        rows = [
            {"arm": arm, "trained": f"{trained}, {epochs} epochs"}
            | {
                COSTS[row["cost"]][0]: difference_text(row, folds * seeds)
                for row in group.to_dict("records")
            }
            for (arm, trained, epochs), group in here.groupby(
                ["arm", "trained", "epochs"], sort=False
            )
        ]
        parts.append(_section(f"Dice minus that of {reference} at equal …: {task}", rows))
        rows = [
            {"arm": arm}
            | {
                COSTS[cost][0]: crossing(of_cost)
                for cost, of_cost in group.groupby("cost", sort=False)
            }
            for arm, group in here.groupby("arm", sort=False)
        ]
        parts.append(_section(f"Ahead of {reference} or behind at equal …: {task}", rows))
        here = targets[(targets["task"] == task) & (targets["arm"] != reference)]
        rows = [
            {"arm": arm, "of its Dice": f"{level:.0%}"}
            | {COSTS[row["cost"]][0]: target_text(row) for row in group.to_dict("records")}
            for (arm, level), group in here.groupby(["arm", "level"], sort=False)
        ]
        heading = f"Cost until as good as {reference} ends up, relative to it: {task}"
        parts.append(_section(heading, rows))
    trained = repeats(folds, seeds)
    unit = "seeds" if seeds > 1 else "folds"
    notes = [
        f"Mean ± standard deviation over {trained}." if trained else "One training each.",
        f"At equal cost: Dice minus that of {reference}"
        + (f", with the 95 % interval over the {unit} (Student's t)" if trained else "")
        + ". *trained*: whose length it is; the other's Dice is interpolated over the logarithm of "
        f"the cost between its lengths, which puts it too low. So rows of the arm flatter it, and "
        f"rows of {reference} do the opposite. A dash: the other was not trained for so little or "
        "so much.",
        "Ahead or behind: the interval excludes 0, and interpolation cannot be the reason: behind "
        f"at a length of the arm, ahead at a length of {reference} and in all rows above it.",
        "The last table: medians; shares of the Dice with which the longest training of "
        f"{reference} ends. `never`: the longest training of the arm ends below it. `≤`: its "
        f"shortest one is already there. A dash: so is that of {reference}.",
    ]
    return "\n\n".join([*filter(None, parts), bullets(notes)]) + "\n"


def _spread(dice: pd.Series) -> str:
    return f"{dice.mean():.3f}" + (f" ± {dice.std():.3f}" if len(dice) > 1 else "")


def _section(heading: str, rows: list[dict[str, str]]) -> str:
    if not rows:
        return ""
    table = pd.DataFrame(rows)
    table["arm"] = table["arm"].map(markdown_text)
    return f"**{markdown_text(heading)}**\n\n{pipe_table(table)}"


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
