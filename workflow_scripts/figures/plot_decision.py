"""Figure: the answer of a study, the change in Dice against the cost relative to the reference."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from workflow_scripts.common.console import redirect
from workflow_scripts.common.figure_style import (
    Style,
    below,
    grid,
    load_style,
    read_tables,
    save,
)
from workflow_scripts.records.run_reader import OVERALL

NAMES = {"time": "training time", "energy": "training energy", "flop": "training FLOP"}
COLUMNS = 4
FAR = 3
"""A change that is this many times as far from 0 as the median one is drawn at the edge."""
GAP = 0.03
"""Distance of marks of equal cost, as a share of the axis."""
BAND = "#DDEFE6"
SOLID, HOLLOW = "new seeds and cases", "new cases only (one seed)"


def reach(table: pd.DataFrame) -> float:
    """Return how far the axis of the change reaches on both sides of 0.

    The margins fit. A single arm that fails must not hide the differences between all others.
    """
    ends = table[["ci_low", "ci_high", "difference"]].abs().max(axis=1).dropna()
    ends = ends[ends > 0]
    least = 1.6 * table["margin"].max()
    return max(least, 1.1 * min(ends.max(), FAR * ends.median())) if len(ends) else least


def apart(costs: np.ndarray, gap: float) -> np.ndarray:
    """Return where to draw marks: those of about equal cost are moved apart by `gap`.

    Neighbours that are closer than half of it form a group, which is spread around its mean.
    """
    places = costs.copy()
    order = [place for place in np.argsort(costs) if not np.isnan(costs[place])]
    groups: list[list[int]] = []
    for place in order:
        if groups and costs[place] - costs[groups[-1][-1]] < gap / 2:
            groups[-1].append(place)
        else:
            groups.append([place])
    for group in groups:
        if len(group) > 1:
            offsets = gap * (np.arange(len(group)) - (len(group) - 1) / 2)
            places[group] = costs[group].mean() + offsets
    return places


def panels(table: pd.DataFrame) -> list[str]:
    """Return the tasks of the panels: the mean first, as the answer."""
    tasks = list(table["task"].unique())
    return [OVERALL, *(task for task in tasks if task != OVERALL)] if OVERALL in tasks else tasks


def plot_decision(
    verdicts: pd.DataFrame, style: Style, outputs: Iterable[Path], cost: str, reference_arm: str
) -> None:
    """Draw verdicts.csv: a panel for the mean and for each task, one mark for each arm.

    The green band is what counts as kept: above minus the margin. Right of the dotted line, an arm
    costs more than the reference. Arms without a verdict are crosses in grey. Changes beyond the
    axis are at its edge, with their value.
    """
    shown = panels(verdicts) or [""]
    columns = min(COLUMNS, len(shown))
    rows = math.ceil(len(shown) / columns)
    wide = len(shown) == 1
    figure, axes = grid(
        style, rows, columns, height=1.3 if wide else 0.95, sharex=True, sharey=True
    )
    for axis in axes.flat[len(shown) :]:
        axis.set_visible(False)
    limit = reach(verdicts) if len(verdicts) else 0.02
    costs = verdicts[cost].dropna() if len(verdicts) else pd.Series(dtype=float)
    low, high = min([1.0, *costs]), max([1.0, *costs])
    room = 0.12 * max(high - low, 0.2)
    for place, (axis, task) in enumerate(zip(axes.flat, shown, strict=False)):
        rows_of_task = verdicts[verdicts["task"] == task]
        margin = rows_of_task["margin"].max() if len(rows_of_task) else 0.0
        axis.axhspan(-margin, limit, color=BAND, zorder=0, linewidth=0)
        axis.axhline(0, color="#444444", linewidth=0.8)
        axis.axvline(1, color="#444444", linewidth=0.8, linestyle="dotted")
        places = apart(rows_of_task[cost].to_numpy(float), GAP * (high - low + 2 * room))
        for row, x in zip(rows_of_task.itertuples(), places, strict=True):
            _draw_arm(axis, row, x, limit, style)
        looks = style.arm(reference_arm)
        axis.plot(1, 0, linestyle="none", marker=looks["marker"], markersize=5, color="#000000")
        if task == OVERALL:
            axis.set_title(f"mean of {len(shown) - 1} tasks", fontweight="bold")
        else:
            axis.set_title(style.task(task))
        if place + columns >= len(shown):
            axis.set_xlabel(f"relative {NAMES[cost].removeprefix('training ')}")
            axis.tick_params(labelbottom=True)
    axes[0, 0].set_xlim(low - room, high + room)
    axes[0, 0].set_ylim(-limit, limit)
    for line in axes:
        line[0].set_ylabel("change in Dice")
    reference = style.arm(reference_arm)["label"]
    figure.suptitle(f"Change in Dice against {NAMES[cost]}, both relative to {reference}")
    below(figure, _handles(verdicts, style, reference_arm))
    save(figure, style, outputs)


def _draw_arm(axis: Axes, row, x: float, limit: float, style: Style) -> None:
    """Draw one arm: its mark, its interval (dashed if it covers cases only), arrows at the edge."""
    if pd.isna(x) or pd.isna(row.difference):
        return
    looks = style.arm(row.arm)
    none = row.verdict == "none"
    color = "#999999" if none else looks["color"]
    y = float(np.clip(row.difference, -0.92 * limit, 0.92 * limit))
    if not pd.isna(row.ci_low) and not none:
        ends = np.clip([row.ci_low, row.ci_high], -limit, limit)
        dash: Any = "solid" if row.covers_seeds else (0, (2, 1.5))
        axis.plot([x, x], ends, color=color, linewidth=1.3, linestyle=dash, zorder=2)
    face = color if row.verdict in ("better", "kept", "worse", "lost") else "white"
    axis.plot(
        *(x, y),
        linestyle="none",
        marker="x" if none else looks["marker"],
        markersize=6,
        color=color,
        markerfacecolor=face,
        markeredgecolor=color,
        zorder=3,
    )
    if abs(row.difference) > limit:
        axis.annotate(
            f"{row.difference:+.2f}".replace("-", "−"),
            (x, y),
            textcoords="offset points",
            xytext=(6, 0),
            va="center",
            fontsize=style.figure["font_size"] - 2,
            color=color,
        )


def _handles(verdicts: pd.DataFrame, style: Style, reference_arm: str) -> list[Any]:
    handles: list[Any] = []
    for arm in style.order([reference_arm, *verdicts["arm"]]):
        looks = style.arm(arm)
        handles.append(
            Line2D(
                *([], []),
                linestyle="none",
                marker=looks["marker"],
                color=looks["color"],
                label=looks["label"],
            )
        )
    found = set(verdicts["verdict"])
    grey: dict[str, Any] = {"linestyle": "none", "color": "#555555"}
    handles.append(Patch(color=BAND, label="kept: above −margin"))
    if "undecided" in found:
        handles.append(Line2D([], [], marker="o", markerfacecolor="white", **grey))
        handles[-1].set_label("hollow: undecided")
    if "none" in found:
        handles.append(Line2D([], [], marker="x", label="no verdict", **grey))
    dashes: tuple[tuple[bool, Any, str], ...] = ((True, "solid", SOLID), (False, "dashed", HOLLOW))
    for covers, dash, text in dashes:
        if (verdicts["covers_seeds"] == covers).any():
            handles.append(Line2D([], [], color="#555555", linestyle=dash, label=f"95 %: {text}"))
    return handles


if __name__ == "__main__":
    redirect(snakemake.log[0])
    (table,) = read_tables(Path(snakemake.input.verdicts))
    plot_decision(
        verdicts=table,
        style=load_style(Path(snakemake.input.style)),
        outputs=[Path(path) for path in snakemake.output],
        cost=snakemake.params.cost,
        reference_arm=snakemake.params.reference_arm,
    )
