"""Figure: main result of a study, the difference of Dice from the reference arm by arm and task."""

import math
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from workflow_scripts.common.console import redirect
from workflow_scripts.common.figure_style import Style, grid, load_style, read_tables, save
from workflow_scripts.common.formatting import counted
from workflow_scripts.records.run_reader import OVERALL

COLUMNS = 4
TEXT = "mean of the tasks"
FAR = 3
"""Intervals that reach this many times as far from 0 as the median one are cut off."""


def differences(significance: pd.DataFrame) -> pd.DataFrame:
    """Return arm, task, difference, low and high of the foreground Dice, the mean of tasks last.

    The interval of the mean refers to these tasks only. The intervals of the tasks are assumed to
    be independent and normal, so its half-width is the square root of the sum of their squared
    half-widths, divided by the number of tasks. It is NaN if a task has no interval. With one task,
    there is no mean.
    """
    chosen = significance[(significance["measure"] == "dice") & significance["label"].isna()]
    table = chosen[["arm", "task", "difference", "ci_low", "ci_high"]]
    table = table.rename(columns={"ci_low": "low", "ci_high": "high"})
    if table["task"].nunique() < 2:
        return table.reset_index(drop=True)
    rows = []
    for arm, of_arm in table.groupby("arm", sort=False):
        half = (of_arm["high"] - of_arm["low"]).to_numpy() / 2
        mean, width = of_arm["difference"].mean(), math.sqrt((half**2).sum()) / len(half)
        rows.append((arm, OVERALL, mean, mean - width, mean + width))
    return pd.concat([table, pd.DataFrame(rows, columns=table.columns)], ignore_index=True)


def axis_limit(table: pd.DataFrame) -> float:
    """Return how far the axis reaches on both sides of 0; NaN if there is nothing to draw.

    A single arm that fails must not hide the differences between all others.
    """
    reach = table[["low", "high", "difference"]].abs().max(axis=1)
    reach = reach[reach > 0]
    return 1.08 * min(reach.max(), FAR * reach.median())


def plot_differences(significance: pd.DataFrame, style: Style, outputs: Iterable[Path]) -> None:
    """Draw significance.csv as a forest plot: one panel per arm, one line per task, mean below.

    Arrows mark intervals that reach beyond the axis. Differences beyond it are written there.
    """
    table = differences(significance)
    limit = axis_limit(table)
    arms, tasks = style.order(table["arm"]), list(table["task"].unique())
    columns = min(COLUMNS, max(1, len(arms)))
    rows = max(1, math.ceil(len(arms) / columns))
    height = 0.3 + 0.11 * len(tasks)
    figure, axes = grid(style, rows, columns, height=height, sharex=True, sharey=True)
    for axis in axes.flat[len(arms) :]:
        axis.set_visible(False)
    places = {task: place + 0.4 * (task == OVERALL) for place, task in enumerate(tasks)}
    for number, (axis, arm) in enumerate(zip(axes.flat, arms, strict=False)):
        looks = style.arm(arm)
        for row in table[table["arm"] == arm].itertuples():
            overall = row.task == OVERALL
            axis.plot(
                [row.low, row.high],
                [places[row.task]] * 2,
                color=looks["color"],
                linewidth=2.6 if overall else 1.3,
                solid_capstyle="butt",
            )
            axis.plot(
                row.difference,
                places[row.task],
                marker="D" if overall else "o",
                markersize=5,
                color=looks["color"],
                markeredgecolor="white",
                markeredgewidth=0.6,
            )
            _mark_what_is_cut_off(axis, row, places[row.task], limit, looks["color"])
        axis.axvline(0, color="#444444", linewidth=0.8, linestyle="dotted")
        axis.set_title(looks["label"])
        axis.grid(axis="y", visible=False)
        if number + columns >= len(arms):
            axis.set_xlabel("difference of Dice")
            axis.tick_params(labelbottom=True)
    names = [TEXT if task == OVERALL else style.task(task) for task in tasks]
    axes[0, 0].set_yticks(list(places.values()), names)
    axes[0, 0].set_ylim(max(places.values(), default=0) + 0.6, -0.6)
    if limit > 0:
        axes[0, 0].set_xlim(-limit, limit)
    if significance.empty:
        figure.suptitle("Only the reference arm was trained: nothing to compare")
    else:
        reference = style.arm(significance["reference_arm"].iloc[0])["label"]
        folds = counted(significance["folds"].max(), "fold")
        seeds = counted(significance["seeds"].max(), "seed")
        figure.suptitle(
            f"Dice compared with {reference} (right of 0: better), 95 % interval; {folds}, {seeds}"
        )
    save(figure, style, outputs)


def _mark_what_is_cut_off(axis, row, place: float, limit: float, color: str) -> None:
    for side, end, arrow in ((-1, row.low, "<"), (1, row.high, ">")):
        if side * end > limit:
            axis.plot(side * limit, place, marker=arrow, markersize=6, color=color, clip_on=False)
    if abs(row.difference) > limit:
        axis.annotate(
            f"{row.difference:+.3f}",
            (math.copysign(limit, row.difference), place),
            textcoords="offset points",
            xytext=(math.copysign(8, -row.difference), 5),
            ha="left" if row.difference < 0 else "right",
            fontsize="small",
            color=color,
        )


if __name__ == "__main__":
    redirect(snakemake.log[0])
    (table,) = read_tables(Path(snakemake.input.significance))
    plot_differences(
        significance=table,
        style=load_style(Path(snakemake.input.style)),
        outputs=[Path(path) for path in snakemake.output],
    )
