"""Figure: foreground Dice by task and arm; trainings as points, mean and standard deviation."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from workflow_scripts.common.console import redirect
from workflow_scripts.common.figure_style import (
    Style,
    add_legend,
    load_style,
    read_tables,
    save,
    wrapped_grid,
)
from workflow_scripts.common.formatting import repeats

COLUMNS = 5


def plot_dice(runs: pd.DataFrame, style: Style, outputs: Iterable[Path]) -> None:
    """Draw dice_foreground_mean of runs.csv: one panel and axis per task, arms side by side."""
    tasks, arms = list(runs["task"].unique()), style.order(runs["arm"])
    figure, axes = wrapped_grid(style, len(tasks), COLUMNS)
    for number, (axis, task) in enumerate(zip(axes, tasks, strict=True)):
        for place, arm in enumerate(arms):
            looks = style.arm(arm)
            chosen = runs[(runs["task"] == task) & (runs["arm"] == arm)].sort_values(
                ["fold", "seed"]
            )
            dice = chosen["dice_foreground_mean"].dropna()
            if dice.empty:
                continue
            spread = np.linspace(-0.28, 0.0, len(dice)) if len(dice) > 1 else np.zeros(1)
            point: dict[str, Any] = {
                "linestyle": "none",
                "color": looks["color"],
                "marker": looks["marker"],
            }
            axis.plot(
                place + spread, dice, markersize=5, alpha=0.75, markeredgecolor="white", **point
            )
            if len(dice) > 1:
                mean, std = dice.mean(), dice.std()
                axis.errorbar(
                    place + 0.25, mean, std, markersize=6.5, elinewidth=1.4, capsize=2.5, **point
                )
        axis.set_xlim(-0.6, len(arms) - 0.25)
        axis.margins(y=0.12)
        axis.set_xticks([])
        axis.set_title(style.task(task))
        if number % COLUMNS == 0:
            axis.set_ylabel("foreground Dice")
    add_legend(figure, style, arms, markers=True)
    if trained := repeats(runs["fold"].nunique(), runs["seed"].nunique()):
        figure.suptitle(f"Dice of {trained}; larger: mean ± standard deviation over them")
    else:
        figure.suptitle(f"Dice of fold {runs['fold'].iloc[0]}, mean over cases and labels")
    save(figure, style, outputs)


if __name__ == "__main__":
    redirect(snakemake.log[0])
    (table,) = read_tables(Path(snakemake.input.runs))
    plot_dice(
        runs=table,
        style=load_style(Path(snakemake.input.style)),
        outputs=[Path(path) for path in snakemake.output],
    )
