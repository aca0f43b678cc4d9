"""Dice of weights for one scale factor in the network of another: the table, and what it says."""

import textwrap
from pathlib import Path

import pandas as pd

from workflow_scripts.common.console import redirect
from workflow_scripts.common.files import read_json, write_csv
from workflow_scripts.common.formatting import counted, pipe_table
from workflow_scripts.scale_space.scale_tables import transfer_table


def to_markdown(table: pd.DataFrame) -> str:
    """Return the matrix of each task and hypernetwork, and where it is largest."""
    parts = []
    for (task, arm), same in table.groupby(["task", "arm"], sort=False):
        matrix = same.pivot(index="weights_scale", columns="network_scale", values="dice")
        cells = matrix.map("{:.3f}".format).rename(columns="network at {:g}".format)
        cells.insert(0, "", [f"weights for {scale:g}" for scale in matrix.index])
        parts.append(f"**{task}, {arm}: Dice of weights in networks of other scale factors**")
        parts.append(pipe_table(cells))
        parts.append(textwrap.fill(_verdict(same), 100))
    return "\n\n".join(parts) + "\n"


def _verdict(rows: pd.DataFrame) -> str:
    """Tell in how many networks no other weights are better than those made for it."""
    own = rows[rows["weights_scale"] == rows["network_scale"]]
    others = rows[rows["weights_scale"] != rows["network_scale"]]
    cases, folds = rows[["cases", "folds"]].iloc[0]
    text = (
        f"In {(own['below_best'] == 0).sum()} of {len(own)} networks no other of these weights are "
        f"better than those made for it (Dice on {counted(cases, 'validation case')}"
        f"{f' of {folds:.0f} folds' if folds > 1 else ''})."
    )
    if own["below_best"].max() > 0:
        text += f" Where others are, it is by up to {own['below_best'].max():.3f}."
    if len(others):
        worst = others.loc[others["below_best"].idxmax()]
        text += (
            f" Most is lost by weights for {worst['weights_scale']:g} in the network at "
            f"{worst['network_scale']:g}: {worst['below_best']:.3f} less than the best there."
        )
    return text


if __name__ == "__main__":
    redirect(snakemake.log[0])

    found = transfer_table([read_json(Path(path)) for path in snakemake.input.evaluations])
    write_csv(found, Path(snakemake.output.csv))
    Path(snakemake.output.md).write_text(to_markdown(found), encoding="utf-8")
