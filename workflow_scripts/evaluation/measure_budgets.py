"""A sweep of training lengths: Dice at equal cost, crossing points, and the cost to reach a Dice.

The name of an arm ends with its length in iterations: `constant_660`. Between trained lengths, Dice
is interpolated linearly over the logarithm of the cost; nothing is extrapolated. A saturating curve
lies above its chords, so interpolation underestimates Dice. Differences are therefore given where
the arm was trained (interpolating the reference, which favours the arm) and where the reference was
trained (interpolating the arm, which favours the reference).
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

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
    repeats,
    titled_table,
)
from workflow_scripts.common.paired_statistics import (
    LEVEL,
    half_width,
    holm,
    p_value,
    variance_of_mean,
)
from workflow_scripts.records.energy_conditions import source_notes
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
    *("task", "arm", "reference_arm", "cost", "trained", "steps", "trainings"),
    *("amount", "relative", "dice", "dice_reference", "difference", "ci_low", "ci_high"),
    *("p", "tests", "p_holm"),
]
TARGETS = [
    *("task", "arm", "reference_arm", "level", "target", "cost", "trainings", "reached"),
    *("amount", "relative", "at_most"),
]


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
    found = curves(runs, cost)
    for key, curve in found.items():
        reference = found.get((key[0], base, *key[2:]))
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
    found = pd.DataFrame(rows, columns=columns)
    result = []
    for key, every in found.groupby(keys, sort=False):
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


def crossing(rows: pd.DataFrame, trained: int) -> str:
    """Describe where one arm is ahead of the reference, and where it is behind, for one cost.

    A difference counts if it is significant after correction (`p_holm`), and if interpolation
    cannot explain it. If the study has one training per arm and length (`trained` is 1), its sign
    counts, which describes these trainings and decides nothing about others. Interpolation favours
    whichever arm was trained at that cost. So an arm is behind at one of its own lengths, and ahead
    from one of the reference's lengths if it is ahead in all rows from there on. Costs that only
    some of the trainings cover decide nothing.
    """
    known = rows.dropna(subset=["difference"]).sort_values("amount")
    known = known[known["trainings"] == known["trainings"].max()]
    choices = COSTS[rows["cost"].iloc[0]][1]
    if known.empty:
        return "no common cost"
    amounts = [in_unit(amount, choices) for amount in known["amount"]]
    of_arm = (known["trained"] == ARM).to_numpy()
    counts = ((known["p_holm"] < LEVEL) | (trained == 1)).to_numpy()
    behind = (known["difference"] < 0).to_numpy() & counts & of_arm
    ahead = (known["difference"] > 0).to_numpy() & counts
    from_here_on = np.logical_and.accumulate(ahead[::-1])[::-1] & ~of_arm
    last_behind = amounts[np.flatnonzero(behind)[-1]] if behind.any() else None
    parts = [f"behind up to {last_behind}"] if last_behind else []
    if from_here_on.any():
        parts.append(f"ahead from {amounts[np.flatnonzero(from_here_on)[0]]}")
    elif last_behind != amounts[-1]:
        parts.append(f"undecided up to {amounts[-1]}")
    return ", ".join(parts)


def difference_text(row: Mapping[str, Any], trained: int) -> str:
    """Return the difference at equal cost with its interval, or a dash if there is none.

    The number of trainings is added if it is not `trained`.
    """
    if pd.isna(row["difference"]):
        return "–"
    text = f"{row['difference']:+.3f}"
    if not pd.isna(row["ci_low"]):
        text += f" [{row['ci_low']:+.3f}, {row['ci_high']:+.3f}]"
    if row["p_holm"] < LEVEL:
        text += " \\*"
    return text if row["trainings"] == trained else f"{text} (n = {row['trainings']})"


def target_text(row: Mapping[str, Any]) -> str:
    """Return the ratio to the reference's cost to reach the target; `never` if infinite."""
    if pd.isna(row["relative"]):
        return "–"
    if math.isinf(row["relative"]):
        return "never"
    return f"{'≤ ' if row['at_most'] else ''}{row['relative']:.2f}"


def length_rows(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the printed Dice and costs of one task: a row for each arm and length."""
    table = runs.assign(arm=runs["arm"].map(without_length))
    groups = table.groupby(["arm", "training_steps"], sort=False)
    return pd.DataFrame(
        {"arm": arm, "Dice": _spread(group["dice_foreground_mean"])}
        | {name: in_unit(group[cost].mean(), choices) for cost, (name, choices) in COSTS.items()}
        for (arm, _), group in groups
    )


def difference_rows(differences: pd.DataFrame, trained: int) -> pd.DataFrame:
    """Return one task's printed differences: a row for each arm and length, a column per cost."""
    groups = differences.groupby(["arm", "trained", "steps"], sort=False)
    return pd.DataFrame(
        {"arm": arm, "trained": f"{side}, {steps} steps"}
        | {COSTS[row["cost"]][0]: difference_text(row, trained) for row in group.to_dict("records")}
        for (arm, side, steps), group in groups
    )


def crossing_rows(differences: pd.DataFrame, trained: int) -> pd.DataFrame:
    """Return one task's `crossing` of each arm (rows) and cost (columns)."""
    return pd.DataFrame(
        {"arm": arm}
        | {
            COSTS[cost][0]: crossing(rows, trained)
            for cost, rows in group.groupby("cost", sort=False)
        }
        for arm, group in differences.groupby("arm", sort=False)
    )


def target_rows(targets: pd.DataFrame) -> pd.DataFrame:
    """Return one task's printed targets: a row for each arm and level, a column per cost."""
    return pd.DataFrame(
        {"arm": arm, "of its Dice": f"{level:.0%}"}
        | {COSTS[row["cost"]][0]: target_text(row) for row in group.to_dict("records")}
        for (arm, level), group in targets.groupby(["arm", "level"], sort=False)
    )


def to_markdown(differences: pd.DataFrame, targets: pd.DataFrame, runs: pd.DataFrame) -> str:
    """Return the sweep as Markdown: Dice by length, Dice at equal cost, and cost to a Dice."""
    reference = targets["reference_arm"].iloc[0] if len(targets) else "the reference"
    folds, seeds = runs["fold"].nunique(), runs["seed"].nunique()
    trainings = folds * seeds
    others = targets[targets["arm"] != reference]
    parts = []
    for task, of_task in runs.groupby("task", sort=False):
        at_equal_cost = differences[differences["task"] == task]
        tables = {
            f"Dice and costs: {task}": length_rows(of_task),
            f"Dice minus that of {reference} at equal cost: {task}": difference_rows(
                at_equal_cost, trainings
            ),
            f"Where arms are ahead of {reference} or behind: {task}": crossing_rows(
                at_equal_cost, trainings
            ),
            f"Cost to reach a share of {reference}'s final Dice, relative to it: {task}": (
                target_rows(others[others["task"] == task])
            ),
        }
        parts += [titled_table(title, rows) for title, rows in tables.items() if len(rows)]
    trained = repeats(folds, seeds)
    unit = "seeds" if seeds > 1 else "folds"
    covered = "for one comparison" + ("" if seeds > 1 else ", given this seed")
    decided = "the difference is significant (\\*)" if trained else "the Dice differs"
    family = (
        f"A star marks p < {LEVEL} after Holm's correction for all comparisons of a task that have "
        f"an interval ({_counts(differences)})."
        if trained
        else "With one training each, this describes these trainings and decides nothing."
    )
    notes = [
        f"Mean ± standard deviation over {trained}." if trained else "One training each.",
        f"Equal cost: Dice minus that of {reference}"
        + (f", with the 95 % interval over the {unit} (Student's t) {covered}" if trained else "")
        + ". One of the two arms was trained at exactly this cost (column *trained*); the Dice of "
        "the other is interpolated between its training lengths, over the logarithm of the cost. "
        f"Interpolation underestimates Dice, so rows trained by the arm favour the arm, and rows "
        f"trained by {reference} favour {reference}. A dash means that the other arm has no "
        "training this short or this long.",
        f"An arm is *behind* if {decided} at a cost where the arm was trained. It is *ahead* if "
        f"{decided} at a cost where {reference} was trained, and at all higher costs. "
        "Interpolation cannot explain either. Costs that only some of the trainings cover (n) "
        f"decide nothing. {family}",
        f"Final Dice: that of {reference}'s longest training. Values are medians over trainings. "
        "*never*: the arm's longest training stays below. ≤: its shortest training is already "
        f"above. A dash: {reference}'s shortest training is already above.",
        *source_notes(runs),
    ]
    return "\n\n".join([*parts, bullets(notes)]) + "\n"


def _counts(differences: pd.DataFrame) -> str:
    """Return the number of comparisons of each task as text."""
    tests = differences.groupby("task", sort=False)["tests"].first()
    return ", ".join(f"{markdown_text(task)}: {number}" for task, number in tests.items())


def _spread(dice: pd.Series) -> str:
    return f"{dice.mean():.3f}" + (f" ± {dice.std():.3f}" if len(dice) > 1 else "")


if __name__ == "__main__":
    redirect(snakemake.log[0])
    trained = read_csv(snakemake.input.runs)
    compared_with = snakemake.params.reference_arm
    equal_cost, to_target = (
        measure(trained, compared_with) for measure in (measure_differences, measure_final_targets)
    )
    equal_cost.to_csv(snakemake.output.differences, index=False)
    to_target.to_csv(snakemake.output.targets, index=False)
    Path(snakemake.output.md).write_text(
        to_markdown(equal_cost, to_target, trained), encoding="utf-8"
    )
