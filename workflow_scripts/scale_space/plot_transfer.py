"""Plot Dice of weights for one scale factor in the network of another, as a matrix."""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import seaborn as sns
from matplotlib.patches import Rectangle

from workflow_scripts.common.console import redirect
from workflow_scripts.common.figure_style import Style, load_style, save, wrapped_grid


def plot_transfer(table: pd.DataFrame, style: Style, outputs: Iterable[Path]) -> None:
    """Draw scale_transfer.csv: one annotated matrix per task and hypernetwork.

    Dark cells have a high Dice. The best weights in each network (one or more per column) are
    framed.
    """
    found = list(table.groupby(["task", "arm"], sort=False))
    figure, axes = wrapped_grid(style, len(found), 2)
    for axis, ((task, arm), same) in zip(axes, found, strict=True):
        keys = {"index": "weights_scale", "columns": "network_scale"}
        matrix = same.pivot(**keys, values="dice")
        # Equal numbers would give an empty colour range, and frames need light colours.
        high = matrix.max().max()
        low = min(matrix.min().min(), high - 0.01)
        sns.heatmap(
            matrix,
            annot=True,
            fmt=".3f",
            cmap="Greens",
            cbar=False,
            linewidths=1,
            vmin=low,
            vmax=2 * high - low,
            ax=axis,
        )
        best = same.pivot(**keys, values="below_best") == 0
        for row, column in zip(*best.to_numpy().nonzero(), strict=True):
            corner = (column + 0.03, row + 0.03)
            axis.add_patch(
                Rectangle(corner, 0.94, 0.94, fill=False, edgecolor="#333333", linewidth=1.5)
            )
        axis.set_title(f"{style.task(task)}, {style.arm(arm)['label']}")
        axis.set_xlabel("scale factor of the network")
        axis.set_ylabel("scale factor of the weights")
        axis.tick_params(length=0)
        axis.grid(visible=False)
    cases = "–".join(f"{n:.0f}" for n in sorted({table["cases"].min(), table["cases"].max()}))
    figure.suptitle(
        f"Dice of weights in other networks\nvalidation cases: {cases}; frame: best in the network"
    )
    save(figure, style, outputs)


if __name__ == "__main__":
    redirect(snakemake.log[0])
    plot_transfer(
        table=pd.read_csv(snakemake.input.transfer),
        style=load_style(Path(snakemake.input.style)),
        outputs=[Path(path) for path in snakemake.output],
    )
