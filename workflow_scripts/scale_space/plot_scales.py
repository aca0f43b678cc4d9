"""Plot Dice against the cost of inference, by scale factor."""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd
from matplotlib.patheffects import withStroke

from workflow_scripts.common.console import redirect
from workflow_scripts.common.figure_style import Style, add_legend, grid, load_style, save

PANELS = {"gmac_per_case": "GMAC per case", "seconds_per_case": "seconds per case"}
DRAWN_AS_LINES = ("hypernetwork", "stochastic", "film")


def plot_scales(table: pd.DataFrame, style: Style, outputs: Iterable[Path]) -> None:
    """Draw scale_space.csv: one row per task; Dice against GMAC and against seconds.

    Networks for many scale factors are lines with one point per scale factor. Non-dominated models
    have a ring. The numbers are scale factors.
    """
    tasks, arms = list(table["task"].unique()), style.order(table["arm"])
    figure, axes = grid(style, len(tasks), len(PANELS), height=1.5)
    for row, task in zip(axes, tasks, strict=True):
        for axis, (cost, label) in zip(row, PANELS.items(), strict=True):
            chosen = table[table["task"] == task]
            kept = chosen[chosen[f"non_dominated_{cost}"]]
            axis.scatter(
                *(kept[cost], kept["dice"]), s=90, facecolors="none", edgecolors="#555555", zorder=1
            )
            for arm in arms:
                points = chosen[chosen["arm"] == arm].sort_values("scale")
                looks = style.arm(arm)
                if points["role"].isin(DRAWN_AS_LINES).any():
                    axis.plot(points[cost], points["dice"], **style.line(arm))
                axis.scatter(
                    *(points[cost], points["dice"]),
                    color=looks["color"],
                    marker=looks["marker"],
                    s=24,
                    zorder=2,
                )
                if points["role"].isin(["hypernetwork"]).any():
                    _number(axis, points, cost, looks["color"])
            axis.margins(0.12)
            axis.set_title(style.task(task))
            axis.set_xlabel(label)
            axis.set_ylabel("foreground Dice")
    folds = table["folds"].max()
    spread = f"mean of {folds} folds" if folds > 1 else "one fold"
    figure.suptitle(
        f"Dice by cost of inference; numbers are scale factors, rings: non-dominated; {spread}"
    )
    add_legend(figure, style, arms, markers=True)
    save(figure, style, outputs)


def _number(axis, points: pd.DataFrame, cost: str, color: str) -> None:
    for point in points.to_dict("records"):
        axis.annotate(
            f"{point['scale']:g}",
            (point[cost], point["dice"]),
            textcoords="offset points",
            xytext=(4, -11),
            color=color,
            fontsize="small",
            path_effects=[withStroke(linewidth=2, foreground="white")],
        )


if __name__ == "__main__":
    redirect(snakemake.log[0])
    plot_scales(
        table=pd.read_csv(snakemake.input.scales),
        style=load_style(Path(snakemake.input.style)),
        outputs=[Path(path) for path in snakemake.output],
    )
