"""Figure: performance profiles of the time to target (Dolan and Moré, 2002)."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.ticker import NullFormatter, PercentFormatter, ScalarFormatter

from workflow_scripts.common.console import redirect
from workflow_scripts.common.figure_style import (
    Style,
    add_legend,
    grid,
    load_style,
    read_tables,
    save,
)
from workflow_scripts.common.formatting import counted

FURTHEST = 4.0
"""End of the axis, as in AlgoPerf (arXiv 2306.07179, section 4.3)."""
COSTS = {"seconds": "time", "kwh": "energy", "gflop": "computation"}


def profile(targets: pd.DataFrame, cost: str) -> pd.DataFrame:
    """Return the cost by task and arm, relative to the cheapest arm of the task.

    It is infinite if the arm never reaches the target, even if no arm does, and NaN if the cost is
    unknown.

    Args:
        targets: rows of targets.csv of one level.
        cost: one of its columns.
    """
    wide = targets.pivot(index="task", columns="arm", values=cost)
    relative = wide.div(wide.replace(np.inf, np.nan).min(axis=1), axis=0)
    return relative.mask(np.isinf(wide), np.inf)


def plot_profiles(targets: pd.DataFrame, style: Style, outputs: Iterable[Path]) -> None:
    """Draw targets.csv: one row of panels per level, one column per cost.

    A line shows the share of tasks on which an arm reaches the target at no more than τ times the
    cost of the best arm.
    """
    arms, levels = style.order(targets["arm"]), sorted(targets["level"].unique())
    figure, axes = grid(style, len(levels), len(COSTS), height=0.6, sharex=True, sharey=True)
    for row, level in zip(axes, levels, strict=True):
        chosen = targets[targets["level"] == level]
        for axis, (cost, name) in zip(row, COSTS.items(), strict=True):
            relative = profile(chosen, cost)
            for arm in arms:
                ratios = np.sort(relative[arm].to_numpy())
                ratios = ratios[ratios <= FURTHEST]  # drops NaN and infinite ratios
                steps = np.arange(1, len(ratios) + 1) / len(relative)
                x = [1.0, *ratios, FURTHEST]
                axis.plot(
                    x,
                    [0.0, *steps, steps[-1] if len(steps) else 0.0],
                    drawstyle="steps-post",
                    clip_on=False,
                    **style.line(arm),
                )
            axis.set_xscale("log", base=2)
            axis.set_xlim(1, FURTHEST)
            axis.xaxis.set_major_formatter(ScalarFormatter())
            axis.xaxis.set_minor_formatter(NullFormatter())
            axis.set_ylim(0, 1)
            axis.yaxis.set_major_formatter(PercentFormatter(1))
            if level == levels[0]:
                axis.set_title(name)
            if level == levels[-1]:
                axis.set_xlabel("τ, relative to the best arm")
        row[0].set_ylabel(f"target {level:.0%}")
    tasks = counted(targets["task"].nunique(), "task")
    figure.suptitle(f"Share of {tasks} on which an arm reaches the target within τ × the best")
    add_legend(figure, style, arms)
    save(figure, style, outputs)


if __name__ == "__main__":
    redirect(snakemake.log[0])
    (table,) = read_tables(Path(snakemake.input.targets))
    plot_profiles(
        targets=table,
        style=load_style(Path(snakemake.input.style)),
        outputs=[Path(path) for path in snakemake.output],
    )
