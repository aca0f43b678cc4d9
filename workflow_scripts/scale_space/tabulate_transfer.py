"""Tabulate Dice of weights for one scale factor in the network of another, with a summary."""

import textwrap
from pathlib import Path

import pandas as pd

from workflow_scripts.common.console import redirect
from workflow_scripts.common.files import read_json, write_csv
from workflow_scripts.common.formatting import counted, pipe_table
from workflow_scripts.scale_space.scale_tables import transfer_table


def to_markdown(table: pd.DataFrame) -> str:
    """Return the matrix of each task and hypernetwork, with a summary."""
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
    """Return a summary: in how many networks no other weights are better than its own."""
    own = rows[rows["weights_scale"] == rows["network_scale"]]
    others = rows[rows["weights_scale"] != rows["network_scale"]]
    cases, folds = rows[["cases", "folds"]].iloc[0]
    text = (
        f"In {(own['below_best'] == 0).sum()} of {len(own)} networks none of the other weights are "
        f"better than its own (Dice on {counted(cases, 'validation case')}"
        f"{f' of {folds:.0f} folds' if folds > 1 else ''})."
    )
    if own["below_best"].max() > 0:
        most = own["below_best"].max()
        text += f" In the remaining ones, other weights are better by up to {most:.3f}."
    if len(others):
        worst = others.loc[others["below_best"].idxmax()]
        text += (
            f" The largest loss is that of weights for {worst['weights_scale']:g} in the network "
            f"at {worst['network_scale']:g}: {worst['below_best']:.3f} below the best there."
        )
    return text


if __name__ == "__main__":
    redirect(snakemake.log[0])

    found = transfer_table([read_json(Path(path)) for path in snakemake.input.evaluations])
    write_csv(found, Path(snakemake.output.csv))
    Path(snakemake.output.md).write_text(to_markdown(found), encoding="utf-8")
