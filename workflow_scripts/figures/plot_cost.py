"""Figure: cost of a training by arm, relative to the reference arm and in absolute numbers."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.lines import Line2D

from workflow_scripts.common.console import redirect
from workflow_scripts.common.figure_style import Style, below, grid, load_style, read_tables, save
from workflow_scripts.common.formatting import CARBON, COMPUTATION, ENERGY, TIME, number, unit
from workflow_scripts.records.run_reader import OVERALL

PANELS = {
    "training_seconds": ("training time", TIME),
    "training_kwh": ("energy", ENERGY),
    "training_kg_co2eq": ("carbon", CARBON),
    "training_gflop": ("computation", COMPUTATION),
}
TASK_DOT: dict[str, Any] = {
    "linestyle": "none",
    "marker": "o",
    "markersize": 3.5,
    "color": "white",
    "markeredgecolor": "#444444",
    "markeredgewidth": 0.7,
}


def plot_cost(comparison: pd.DataFrame, style: Style, outputs: Iterable[Path]) -> None:
    """Draw comparison.csv: one panel per cost, one bar per arm (task mean), one dot per task."""
    table = comparison[comparison["label"].isna()].set_index("arm")
    arms = style.order(table.index)
    overall, tasks = table[table["task"] == OVERALL], table[table["task"] != OVERALL]
    several = tasks["task"].nunique() > 1
    figure, axes = grid(style, 2, 2, height=0.35 + 0.11 * len(arms), sharey=True)
    for axis, (column, (title, choices)) in zip(axes.flat, PANELS.items(), strict=True):
        relative = f"{column}_relative"
        name, scale = unit(overall[column], choices)
        widest = table.loc[:, relative].max()
        for place, arm in enumerate(arms):
            value = overall.loc[arm, relative]
            axis.barh(place, value, color=style.arm(arm)["color"], height=0.6, alpha=0.85)
            dots = tasks.loc[[arm], relative] if several else pd.Series(dtype=float)
            axis.plot(dots, [place] * len(dots), **TASK_DOT)
            # To the right of the line, so that it crosses no text.
            end = max([value, *dots, 1.0]) if pd.notna(value) else 1.0
            text = f"{number(overall.loc[arm, column] * scale)} {name}"
            ratio = "" if pd.isna(value) else f"  ({value:.2f})"
            axis.annotate(
                text + ratio,
                (end, place),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
                fontsize=style.figure["font_size"] - 1,
            )
        axis.axvline(1.0, color="#444444", linewidth=0.8, linestyle="dotted")
        axis.set_xlim(0, 1.6 * (widest if pd.notna(widest) else 1.0))
        axis.set_yticks(range(len(arms)), [style.arm(arm)["label"] for arm in arms])
        axis.set_title(title)
        axis.grid(axis="y", visible=False)
    axes[0, 0].invert_yaxis()
    reference = style.arm(comparison["reference_arm"].iloc[0])["label"]
    mean = ", mean of the tasks" if several else ""
    figure.suptitle(f"Cost of training one fold{mean}; in brackets: relative to {reference}")
    if several:
        below(figure, [Line2D([], [], label="one task", **TASK_DOT)])
    save(figure, style, outputs)


if __name__ == "__main__":
    redirect(snakemake.log[0])
    (table,) = read_tables(Path(snakemake.input.comparison))
    plot_cost(
        comparison=table,
        style=load_style(Path(snakemake.input.style)),
        outputs=[Path(path) for path in snakemake.output],
    )
