"""Figure: Dice against the energy of training, a line an arm, a point a length of training."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from workflow_scripts.common.console import redirect
from workflow_scripts.common.figure_style import (
    Style,
    add_legend,
    load_style,
    read_tables,
    save,
    wrapped_grid,
)
from workflow_scripts.common.formatting import ENERGY, repeats, unit

PLACES: tuple[dict[str, Any], ...] = (
    {"xytext": (0, 5), "ha": "center", "va": "bottom"},
    {"xytext": (0, -6), "ha": "center", "va": "top"},
    {"xytext": (6, -1), "ha": "left", "va": "center"},
    {"xytext": (-6, -1), "ha": "right", "va": "center"},
)
"""Where the number stands beside a point, by arm, so that near points keep theirs apart."""


def budgets(runs: pd.DataFrame) -> pd.DataFrame:
    """task, arm (without its number of epochs), epochs, dice, low, high, kwh: of all trainings.

    An arm of a sweep is named after what it trains and its number of epochs: `constant_42`.
    """
    table = runs.assign(arm=runs["arm"].str.replace(r"_\d+$", "", regex=True))
    groups = table.groupby(["task", "arm", "epochs"], as_index=False)
    return groups.agg(
        dice=("dice_foreground_mean", "mean"),
        low=("dice_foreground_mean", "min"),
        high=("dice_foreground_mean", "max"),
        kwh=("training_kwh", lambda kwh: kwh.mean(skipna=False)),
    )


def plot_budget_sweep(runs: pd.DataFrame, style: Style, outputs: Iterable[Path]) -> None:
    """Draw runs.csv of a sweep: a panel a task, each point with its number of epochs."""
    table = budgets(runs)
    tasks, arms = list(runs["task"].unique()), style.order(table["arm"])
    figure, axes = wrapped_grid(style, len(tasks), 2)
    name, scale = unit(table["kwh"], ENERGY)
    for axis, task in zip(axes, tasks, strict=True):
        for place, arm in enumerate(arms):
            line = table[(table["task"] == task) & (table["arm"] == arm)].sort_values("epochs")
            x, looks = line["kwh"] * scale, style.arm(arm)
            axis.vlines(x, line["low"], line["high"], color=looks["color"], linewidth=1)
            axis.plot(x, line["dice"], marker=looks["marker"], markersize=4, **style.line(arm))
            for point in line.itertuples():
                axis.annotate(
                    str(point.epochs),
                    (point.kwh * scale, point.dice),
                    textcoords="offset points",
                    **PLACES[place % len(PLACES)],
                    color=looks["color"],
                    fontsize="small",
                    path_effects=[withStroke(linewidth=2, foreground="white")],
                )
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(ScalarFormatter())
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.margins(x=0.12, y=0.2)
        axis.set_title(style.task(task))
        axis.set_xlabel(f"energy of training, {name}")
        axis.set_ylabel("foreground Dice")
    trained = repeats(runs["fold"].nunique(), runs["seed"].nunique())
    spread = f"mean and range of {trained}" if trained else "one fold"
    figure.suptitle(f"Dice by energy; numbers are epochs; {spread}")
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
