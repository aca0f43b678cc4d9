"""A sweep of training lengths as a page: its statistics in words and tables."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from workflow_scripts.common.formatting import (
    bullets,
    in_unit,
    markdown_text,
    repeats,
    titled_table,
)
from workflow_scripts.common.paired_statistics import LEVEL
from workflow_scripts.evaluation.budget_statistics import ARM, COSTS
from workflow_scripts.records.energy_conditions import source_notes
from workflow_scripts.records.run_reader import without_length


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
