"""Time to target: the cost for each arm to become as good as the fully trained reference arm."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

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
    repeats,
    titled_table,
)
from workflow_scripts.evaluation.time_to_target import COSTS, cost_until, progress
from workflow_scripts.records.energy_conditions import measured_as, source_notes
from workflow_scripts.records.run_reader import KEYS

LEVELS = (0.90, 0.95, 0.99, 1.00)
"""Shares of the reference arm's final pseudo Dice."""
COLUMNS = [
    "task",
    "arm",
    "reference_arm",
    "level",
    "folds",
    "seeds",
    "reached",
    "target",
    *(column for cost in COSTS for column in (cost, f"{cost}_relative")),
]
PRINTED: Mapping[str, tuple[str, Choices]] = {
    "seconds": ("Time", TIME),
    "kwh": ("Energy", ENERGY),
    "gflop": ("Computation", COMPUTATION),
}


def measure_targets(
    epochs: pd.DataFrame,
    runs: pd.DataFrame,
    reference_arm: str,
    tasks: list[str],
    arms: list[str],
) -> pd.DataFrame:
    """Return one row per task, arm and level with the columns `COLUMNS`.

    Each training is compared with the reference arm's training of the same fold and seed. Costs
    and their ratios to the reference's are medians over these trainings. `reached` counts the
    trainings that reach the target and stay there. If at most half of them do, the costs are
    infinite ("never").
    Raises UserError if the reference arm has no run.
    """
    if reference_arm not in set(runs["arm"]):
        raise UserError(f"reference_arm is {reference_arm}, which has no run in this study")
    table = progress(epochs, runs)
    ways = dict(zip(runs[KEYS].itertuples(index=False, name=None), measured_as(runs), strict=True))
    trainings = dict(iter(table.groupby(KEYS)))
    rows = []
    for (task, arm, fold, seed), training in trainings.items():
        reference = trainings[task, reference_arm, fold, seed]
        for level in LEVELS:
            target = level * reference["dice"].iloc[-1]
            cost, base = cost_until(training, target), cost_until(reference, target)
            if ways[task, arm, fold, seed] != ways[task, reference_arm, fold, seed]:
                base["kwh"] = np.nan  # energies that cannot be compared
            row: dict[str, Any] = {"task": task, "arm": arm, "fold": fold, "seed": seed}
            row |= {"level": level, "target": target, "reached": np.isfinite(cost["steps"])}
            rows.append(row | cost | {f"{name}_relative": cost[name] / base[name] for name in cost})
    found = pd.DataFrame(rows)
    costs = [column for cost in COSTS for column in (cost, f"{cost}_relative")]
    result = found.groupby(["task", "arm", "level"], as_index=False).agg(
        folds=("fold", "nunique"),
        seeds=("seed", "nunique"),
        reached=("reached", "sum"),
        target=("target", "mean"),
        **{column: (column, lambda values: values.median(skipna=False)) for column in costs},
    )
    never = result["reached"] <= result["folds"] * result["seeds"] / 2
    result.loc[never, costs] = np.inf
    result["reference_arm"] = reference_arm
    for column, names in {"task": tasks, "arm": arms}.items():
        result[column] = pd.Categorical(result[column], names)
    result = result.sort_values(["task", "arm", "level"], ignore_index=True)[COLUMNS]
    return result.astype({"task": str, "arm": str})


def cost_text(row: pd.Series, cost: str, choices: Choices) -> str:
    """Return a cost with its ratio to the reference arm's; `never` if it is infinite."""
    if np.isinf(row[cost]):
        return "never"
    if pd.isna(row[cost]):
        return "–"
    number, name = in_unit(row[cost], choices).split(" ", 1)
    relative = row[f"{cost}_relative"]
    return f"{number} {name}" + ("" if pd.isna(relative) else f" ({relative:.2f})")


def to_markdown(table: pd.DataFrame, runs: pd.DataFrame | None = None) -> str:
    """Return targets.csv as Markdown: one table per task and cost, arms by levels.

    `runs` is runs.csv, for a note on how energy was measured.
    """
    reference = table["reference_arm"].iloc[0]
    parts = []
    for task, of_task in table.groupby("task", sort=False):
        for cost, (title, choices) in PRINTED.items():
            texts = of_task.assign(
                text=of_task.apply(cost_text, axis=1, cost=cost, choices=choices),
                level=of_task["level"].map("{:.0%}".format),
            )
            wide = texts.pivot(index="arm", columns="level", values="text")
            wide = wide.reindex(texts["arm"].unique())[texts["level"].unique()].reset_index()
            parts.append(titled_table(f"{title} to target: {task}", wide))
    trained = repeats(table["folds"].max(), table["seeds"].max())
    medians = f"Costs and ratios are medians over {trained}: ratios need not match the costs."
    notes = [
        f"Targets: shares of the smoothed pseudo Dice with which the arm {reference} ends on the "
        "same fold and seed. A target is reached when the training no longer falls below it.",
        *([medians] if trained else []),
        f"In brackets: relative to the arm {reference}. `never`: the training ends below the "
        "target" + (f", as do at least half of the {trained}." if trained else "."),
        "Pseudo Dice comes from validation patches and is noisier than the final Dice. An arm that "
        "is equally good here may be better or worse in the final validation.",
        *([] if runs is None else source_notes(runs)),
    ]
    return "\n\n".join([*parts, bullets(notes)]) + "\n"


if __name__ == "__main__":
    redirect(snakemake.log[0])
    trained_runs = read_csv(snakemake.input.runs)
    measured = measure_targets(
        epochs=read_csv(snakemake.input.epochs),
        runs=trained_runs,
        reference_arm=snakemake.params.reference_arm,
        tasks=list(snakemake.params.tasks),
        arms=list(snakemake.params.arms),
    )
    measured.to_csv(snakemake.output.csv, index=False)
    Path(snakemake.output.md).write_text(to_markdown(measured, trained_runs), encoding="utf-8")
