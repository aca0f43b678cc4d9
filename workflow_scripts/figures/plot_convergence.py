"""Figure: pseudo Dice against epochs, training time and energy."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from workflow_scripts.common.console import redirect
from workflow_scripts.common.figure_style import (
    Style,
    add_legend,
    grid,
    load_style,
    read_tables,
    save,
)
from workflow_scripts.common.formatting import ENERGY, TIME, repeats, unit
from workflow_scripts.records.run_reader import KEYS, running_totals

POINTS = 150
"""A line has at most about this many points: longer trainings are averaged in blocks of epochs."""


def blocks(epochs: pd.DataFrame) -> pd.DataFrame:
    """epochs.csv with the costs summed up from each run's start, averaged in blocks of epochs."""
    table = running_totals(epochs, ["seconds", "kwh"])
    table["epoch"] += 1
    size = max(1, int(np.ceil(table["epoch"].max() / POINTS)))
    table["block"] = (table["epoch"] - 1) // size
    columns = {name: (name, "last") for name in ("epoch", "seconds", "kwh")}
    return table.groupby([*KEYS, "block"], as_index=False).agg(
        **columns, pseudo_dice=("pseudo_dice", "mean")
    )


def plot_convergence(epochs: pd.DataFrame, style: Style, outputs: Iterable[Path]) -> None:
    """Draw epochs.csv: a row of panels per task; line = mean, band = range of the trainings."""
    table = blocks(epochs)
    tasks, arms = list(epochs["task"].unique()), style.order(epochs["arm"])
    figure, axes = grid(style, len(tasks), 3, height=1.0 if len(tasks) == 1 else 0.7, sharey="row")
    for row, task in zip(axes, tasks, strict=True):
        chosen = table[table["task"] == task]
        ends = chosen.groupby(KEYS)[["seconds", "kwh"]].max()
        time = unit(ends["seconds"], TIME)
        energy = unit(ends["kwh"], ENERGY)
        panels = [("epoch", "epochs", 1.0), ("seconds", f"training time, {time[0]}", time[1])]
        panels.append(("kwh", f"energy, {energy[0]}", energy[1]))
        for axis, (column, label, scale) in zip(row, panels, strict=True):
            for arm in arms:
                lines = chosen[chosen["arm"] == arm].groupby("block")
                x = lines[column].mean() * scale
                dice = lines["pseudo_dice"]
                color = style.arm(arm)["color"]
                axis.fill_between(x, dice.min(), dice.max(), color=color, alpha=0.15, linewidth=0)
                axis.plot(x, dice.mean(), **style.line(arm))
            axis.set_xlim(left=0)
            axis.set_xlabel(label)
        row[0].set_ylabel("pseudo Dice" if len(tasks) == 1 else f"{style.task(task)}\npseudo Dice")
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
