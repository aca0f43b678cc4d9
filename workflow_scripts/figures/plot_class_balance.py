"""Figure: foreground in patches of each curriculum size, as measured on the data."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D

from workflow_scripts.common.console import redirect
from workflow_scripts.common.figure_style import (
    Style,
    below,
    grid,
    legend_text,
    load_style,
    read_tables,
    save,
)
from workflow_scripts.records.run_reader import label_values

FORCED = {False: "dashed", True: "solid"}


def ticks(stages: pd.DataFrame, most: int = 5) -> pd.DataFrame:
    """Return the sizes to label on the axis: the first, the last, and some between."""
    places = np.unique(np.linspace(0, len(stages) - 1, min(most, len(stages))).round().astype(int))
    return stages.iloc[places]


def plot_class_balance(balance: pd.DataFrame, style: Style, outputs: Iterable[Path]) -> None:
    """Draw class_balance.csv: one row per task, shares of voxels (left) and patches (right).

    Only patches at full resolution are drawn. Reduced ones have the foreground of their field of
    view.
    """
    balance = balance[balance["field_of_view"] == balance["patch_size"]]
    tasks = list(balance["task"].unique())
    # Any foreground (label 0) in black, then the colours of the example slices.
    colors = {"0": "#000000"} | {
        label: style.labels[number % len(style.labels)]
        for number, label in enumerate(sorted(set(balance["label"]) - {"0"}, key=label_values))
    }
    figure, axes = grid(style, len(tasks), 2, height=1.25 if len(tasks) == 1 else 0.9)
    titles = {"foreground_share": "share of voxels", "patches_with_label": "share of patches"}
    for row, task in zip(axes, tasks, strict=True):
        chosen = balance[balance["task"] == task]
        stages = chosen.drop_duplicates("patch_size").reset_index(drop=True)
        place = {size: number for number, size in enumerate(stages["patch_size"])}
        named = ticks(stages)
        for axis, (column, title) in zip(row, titles.items(), strict=True):
            for (label, forced), line in chosen.groupby(["label", "forced"]):
                x = line["patch_size"].map(place)
                color, dash = colors[str(label)], FORCED[bool(forced)]
                axis.plot(x, line[column], marker=".", markersize=4, color=color, linestyle=dash)
                if column == "foreground_share":
                    low, high = (
                        line[column] + sign * line["foreground_share_sem"] for sign in (-1, 1)
                    )
                    axis.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
            axis.set_ylim(0, 1.05 if column == "patches_with_label" else None)
            sizes = named["patch_size"].str.replace("x", "×")
            axis.set_xticks(named.index, sizes, rotation=25, ha="right")
            words = "with the label" if column == "patches_with_label" else "by label"
            if task == tasks[0]:
                axis.set_title(f"{title} {words}")
        row[0].set_ylabel(style.task(task))
        names = chosen.drop_duplicates("label").set_index("label")["label_name"]
        lines = [
            Line2D([], [], color=colors[label], label=legend_text(name))
            for label, name in names.items()
        ]
        row[1].legend(
            handles=lines, loc="center left", bbox_to_anchor=(1.0, 0.5), borderaxespad=0.2
        )
    samples = f"{balance['samples'].min()} patches per size; band: standard error"
    figure.suptitle(f"Foreground by patch size, sampled by nnU-Net ({samples})")
    places = {False: "random place", True: "foreground forced as in training"}
    below(figure, [Line2D([], [], color="#444444", ls=FORCED[f], label=places[f]) for f in FORCED])
    save(figure, style, outputs)


if __name__ == "__main__":
    redirect(snakemake.log[0])
    (table,) = read_tables(Path(snakemake.input.class_balance))
    plot_class_balance(
        balance=table,
        style=load_style(Path(snakemake.input.style)),
        outputs=[Path(path) for path in snakemake.output],
    )
