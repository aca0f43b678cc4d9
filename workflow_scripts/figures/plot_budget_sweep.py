"""Figure: Dice against training cost, one line per arm, one point per training length."""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from workflow_scripts.common.console import redirect
from workflow_scripts.common.figure_style import (
    Style,
    add_legend,
    grid,
    load_style,
    read_tables,
    save,
)
from workflow_scripts.common.formatting import COMPUTATION, ENERGY, TIME, repeats, unit
from workflow_scripts.records.run_reader import mean_of_all, without_length

COSTS = {
    "training_kwh": ("energy of training, {}", ENERGY),
    "training_gflop": ("computation, {}", COMPUTATION),
    "training_seconds": ("time of training, {}", TIME),
}


def budgets(runs: pd.DataFrame) -> pd.DataFrame:
    """Return one row per task, arm (without its length) and number of training steps.

    Columns: mean Dice (`dice`), lowest and highest Dice (`low`, `high`), and the mean of each of
    `COSTS` (kWh, GFLOP, seconds), which is NaN if the cost of one training is unknown.
    """
    table = runs.assign(arm=runs["arm"].map(without_length))
    groups = table.groupby(["task", "arm", "training_steps"], as_index=False)
    return groups.agg(
        dice=("dice_foreground_mean", "mean"),
        low=("dice_foreground_mean", "min"),
        high=("dice_foreground_mean", "max"),
        **{cost: (cost, mean_of_all) for cost in COSTS},
    )


def plot_budget_sweep(runs: pd.DataFrame, style: Style, outputs: Iterable[Path]) -> None:
    """Draw runs.csv of a sweep: one row per task, one panel per cost; the band is the range."""
    table = budgets(runs)
    tasks, arms = list(runs["task"].unique()), style.order(table["arm"])
    figure, axes = grid(style, len(tasks), len(COSTS), height=1.2, sharey="row")
    for row, task in zip(axes, tasks, strict=True):
        of_task = table[table["task"] == task]
        for axis, (cost, (label, choices)) in zip(row, COSTS.items(), strict=True):
            name, scale = unit(of_task[cost], choices)
            for arm in arms:
                line = of_task[of_task["arm"] == arm].sort_values("training_steps")
                x, looks = line[cost] * scale, style.arm(arm)
                axis.fill_between(
                    x, line["low"], line["high"], color=looks["color"], alpha=0.15, linewidth=0
                )
                axis.vlines(x, line["low"], line["high"], color=looks["color"], linewidth=0.8)
                axis.plot(x, line["dice"], marker=looks["marker"], markersize=4, **style.line(arm))
            if (of_task.dropna(subset=["dice"])[cost] > 0).any():
                axis.set_xscale("log")
                axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axis.xaxis.set_major_formatter(ScalarFormatter())
                axis.xaxis.set_minor_formatter(NullFormatter())
            axis.set_xlabel(label.format(name))
        text = "foreground Dice"
        row[0].set_ylabel(text if len(tasks) == 1 else f"{style.task(task)}\n{text}")
    trained = repeats(runs["fold"].nunique(), runs["seed"].nunique())
    names = f"{style.task(tasks[0])}, " if len(tasks) == 1 else ""
    figure.suptitle(
        f"{names}a point for each training length: "
        + (f"mean and range of {trained}" if trained else "one training")
    )
    add_legend(figure, style, arms)
    save(figure, style, outputs)


if __name__ == "__main__":
    redirect(snakemake.log[0])
    (table,) = read_tables(Path(snakemake.input.runs))
    plot_budget_sweep(
        runs=table,
        style=load_style(Path(snakemake.input.style)),
        outputs=[Path(path) for path in snakemake.output],
    )
