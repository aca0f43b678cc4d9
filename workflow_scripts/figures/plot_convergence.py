"""Figure: pseudo Dice during training."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from workflow_scripts.common.console import redirect
from workflow_scripts.common.figure_style import (
    Style,
    add_legend,
    grid,
    load_style,
    read_tables,
    save,
    wrapped_grid,
)
from workflow_scripts.common.formatting import ENERGY, TIME, repeats, unit
from workflow_scripts.records.run_reader import KEYS, running_totals

FEW = 3
"""Largest number of tasks with three panels each; with more, the panels would be too small."""
COLUMNS = 4
Unit = tuple[str, float]
POINTS = 150
"""A line has at most about this many points: longer trainings are averaged in blocks of epochs."""


def blocks(epochs: pd.DataFrame) -> pd.DataFrame:
    """Return epochs.csv with cumulative costs of each run, averaged in blocks of epochs."""
    table = running_totals(epochs, ["seconds", "kwh"])
    table["epoch"] += 1
    size = max(1, int(np.ceil(table["epoch"].max() / POINTS)))
    table["block"] = (table["epoch"] - 1) // size
    columns = {name: (name, "last") for name in ("epoch", "seconds", "kwh")}
    return table.groupby([*KEYS, "block"], as_index=False).agg(
        **columns, pseudo_dice=("pseudo_dice", "mean")
    )


def draw(axis: Axes, runs: pd.DataFrame, arms: list[str], style: Style, x: str, unit: Unit) -> None:
    """Draw the pseudo Dice of one task's `blocks` against the column `x`."""
    label, scale = unit
    for arm in arms:
        lines = runs[runs["arm"] == arm].groupby("block")
        places = lines[x].mean() * scale
        dice = lines["pseudo_dice"]
        color = style.arm(arm)["color"]
        axis.fill_between(places, dice.min(), dice.max(), color=color, alpha=0.15, linewidth=0)
        axis.plot(places, dice.mean(), **style.line(arm))
    axis.set_xlim(left=0)
    axis.set_xlabel(label)


def units(runs: pd.DataFrame) -> dict[str, Unit]:
    """Return label and scale of each x axis for one task's `blocks`."""
    ends = runs.groupby(KEYS)[["seconds", "kwh"]].max()
    time, energy = unit(ends["seconds"], TIME), unit(ends["kwh"], ENERGY)
    return {
        "epoch": ("epochs", 1.0),
        "seconds": (f"training time, {time[0]}", time[1]),
        "kwh": (f"energy, {energy[0]}", energy[1]),
    }


def plot_convergence(epochs: pd.DataFrame, style: Style, outputs: Iterable[Path]) -> None:
    """Draw epochs.csv: lines are means over trainings, bands their range.

    Up to `FEW` tasks have three panels each: against epochs, time and energy. With more tasks,
    there is one panel per task, against time.
    """
    table = blocks(epochs)
    tasks, arms = list(epochs["task"].unique()), style.order(epochs["arm"])
    groups = [table[table["task"] == task] for task in tasks]
    if len(tasks) > FEW:
        figure, panels = wrapped_grid(style, len(tasks), COLUMNS)
        for number, (axis, task, runs) in enumerate(zip(panels, tasks, groups, strict=True)):
            draw(axis, runs, arms, style, "seconds", units(runs)["seconds"])
            axis.set_title(style.task(task))
            if number % COLUMNS == 0:
                axis.set_ylabel("pseudo Dice")
    else:
        height = 1.0 if len(tasks) == 1 else 0.7
        figure, rows = grid(style, len(tasks), 3, height=height, sharey="row")
        for row, task, runs in zip(rows, tasks, groups, strict=True):
            for axis, (x, label) in zip(row, units(runs).items(), strict=True):
                draw(axis, runs, arms, style, x, label)
            name = "" if len(tasks) == 1 else f"{style.task(task)}\n"
            row[0].set_ylabel(f"{name}pseudo Dice")
    trained = repeats(epochs["fold"].nunique(), epochs["seed"].nunique())
    spread = f"mean and range of {trained}" if trained else "one fold"
    figure.suptitle(f"Pseudo Dice on validation patches while training; {spread}")
    add_legend(figure, style, arms)
    save(figure, style, outputs)


if __name__ == "__main__":
    redirect(snakemake.log[0])
    (table,) = read_tables(Path(snakemake.input.epochs))
    plot_convergence(
        epochs=table,
        style=load_style(Path(snakemake.input.style)),
        outputs=[Path(path) for path in snakemake.output],
    )
