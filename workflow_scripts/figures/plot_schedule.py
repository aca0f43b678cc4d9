"""Figure: the patch-size schedule of each arm, as trained."""

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
from workflow_scripts.records.run_reader import KEYS


def schedule(epochs: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """Return one row per epoch of each arm's first fold and seed.

    Columns: task, arm, epoch (from 1), relative, axis_0, axis_1, axis_2 (not if all plans are 2D),
    bandwidth, augmentation.
    `relative` is voxels per iteration divided by those of the planned patch and batch. The axes are
    NaN if the sizes within an epoch differ ("random"). `bandwidth` is the share of frequencies per
    axis that a low-pass keeps (geometric mean over the axes); it is 1 without a low-pass.
    """
    first = epochs.sort_values("fold", kind="stable").drop_duplicates(["task", "arm"])[KEYS]
    table = epochs.merge(first, on=KEYS)
    planned = runs.assign(
        planned=[
            batch * np.prod([int(size) for size in patch.split("x")])
            for patch, batch in zip(runs["patch_size"], runs["batch_size"], strict=True)
        ]
    )
    table = table.merge(planned[[*KEYS, "planned"]], on=KEYS)
    axes = _axes(table["patch_size"]).rename(columns="axis_{}".format)
    # Tables from before there was a low-pass lack both columns.
    known = table.reindex(columns=[*table.columns.union(["field_of_view", "augmentation"])])
    views = _axes(known["field_of_view"].astype(object).fillna(known["patch_size"]))
    kept = axes.prod(axis=1) / views.prod(axis=1)
    dimensions = axes.notna().sum(axis=1).clip(lower=1)
    result = table[["task", "arm"]].assign(
        epoch=table["epoch"] + 1,
        relative=table["voxels_per_iteration"] / table["planned"],
        bandwidth=kept ** (1 / dimensions),
        augmentation=known["augmentation"].fillna(1.0).astype(float),
    )
    return pd.concat([result, axes], axis=1)


def _axes(sizes: pd.Series) -> pd.DataFrame:
    """Return sizes such as `40x56x40` as columns 0, 1, 2; NaN if they are "random"."""
    axes = sizes.where(sizes != "random").str.split("x", expand=True)
    # In 3D, sizes that are all "random" have no columns.
    return axes.reindex(columns=range(2 if axes.shape[1] == 2 else 3)).astype(float)


def plot_schedule(
    epochs: pd.DataFrame, runs: pd.DataFrame, style: Style, outputs: Iterable[Path]
) -> None:
    """Draw epochs.csv: one row per task; voxels per iteration, then the patch size on each axis.

    If an arm reduces frequencies or augmentation, panels for these follow.
    """
    table = schedule(epochs, runs)
    tasks, arms = list(epochs["task"].unique()), style.order(epochs["arm"])
    panels = {"relative": "voxels per iteration\n/ planned"}
    drawn_axes = [name for name in ("axis_0", "axis_1", "axis_2") if name in table]
    panels |= {name: f"patch size\naxis {name[-1]}" for name in drawn_axes}
    optional = {"bandwidth": "share of\nfrequencies", "augmentation": "strength of\naugmentation"}
    panels |= {name: title for name, title in optional.items() if (table[name] < 1).any()}
    figure, axes = grid(style, len(tasks), len(panels), height=1.0 if len(tasks) == 1 else 0.7)
    for row, task in zip(axes, tasks, strict=True):
        chosen = table[table["task"] == task]
        for axis, (column, title) in zip(row, panels.items(), strict=True):
            for arm in arms:
                line = chosen[chosen["arm"] == arm]
                # The value of an epoch applies from its beginning to its end.
                edges = np.append(line["epoch"] - 1, line["epoch"].max())
                values = np.append(line[column], line[column].tail(1))
                axis.plot(edges, values, drawstyle="steps-post", **style.line(arm))
            axis.set_xlim(left=0)
            axis.set_ylim(0, 1.08 * max(chosen[column].max(), 1.0))
            if task == tasks[0]:
                axis.set_title(title)
            if task == tasks[-1]:
                axis.set_xlabel("epochs")
        if len(tasks) > 1:
            row[0].set_ylabel(style.task(task))
    drawn = "; sizes drawn at random are not shown per axis"
    figure.suptitle("Patch size while training" + drawn * bool(table["axis_0"].isna().any()))
    add_legend(figure, style, arms)
    save(figure, style, outputs)


if __name__ == "__main__":
    redirect(snakemake.log[0])
    epochs_table, runs_table = read_tables(Path(snakemake.input.epochs), Path(snakemake.input.runs))
    plot_schedule(
        epochs=epochs_table,
        runs=runs_table,
        style=load_style(Path(snakemake.input.style)),
        outputs=[Path(path) for path in snakemake.output],
    )
