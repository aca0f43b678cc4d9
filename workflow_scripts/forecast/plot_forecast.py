"""Figure: forecast cost of a study by arm, in hours, in carbon, and relative to the reference."""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from workflow_scripts.common.console import redirect
from workflow_scripts.common.figure_style import Style, grid, load_style, read_tables, save
from workflow_scripts.common.formatting import (
    CARBON,
    COMPUTATION,
    TIME,
    counted,
    number,
    repeats,
    unit,
)
from workflow_scripts.forecast.forecast_columns import UNPLANNED, WORK

PANELS = {
    "hours": ("time of all trainings", tuple((name, 3600 * scale) for name, scale in TIME)),
    "kg_co2eq": ("carbon", CARBON),
}
"""Column of forecast.csv -> title, and units with their factors."""
WITHOUT_TIME = {
    "work": ("computation", tuple((name, 1000 * scale) for name, scale in COMPUTATION)),
}
"""The same for a device that was never measured."""


def plot_forecast(
    forecast: pd.DataFrame, reference_arm: str, style: Style, outputs: Iterable[Path]
) -> None:
    """Draw forecast.csv: one bar per arm, the sum of its trainings whose plan is known."""
    known = forecast[forecast["plan"] != UNPLANNED]
    known = known.assign(work=known[WORK].sum(axis=1))
    panels = WITHOUT_TIME if len(known) and known["hours"].isna().all() else PANELS
    totals = known.groupby("arm")[list(panels)].sum(min_count=1)
    arms = style.order(totals.index)
    height = 0.35 + 0.11 * max(1, len(arms))
    figure, axes = grid(style, 1, len(panels), height=height, sharey=True)
    for axis, (column, (title, choices)) in zip(axes.flat, panels.items(), strict=True):
        name, scale = unit(totals[column], choices)
        totals[column] *= scale
        for place, arm in enumerate(arms):
            value = totals.loc[arm, column]
            axis.barh(place, value, color=style.arm(arm)["color"], height=0.6, alpha=0.85)
            ratio = value / totals.loc[reference_arm, column]
            text = f"{number(value)} {name}" + ("" if pd.isna(ratio) else f"  ({ratio:.2f})")
            axis.annotate(
                text,
                (0 if pd.isna(value) else value, place),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
                fontsize=style.figure["font_size"] - 1,
            )
        largest = totals[column].max()
        axis.set_xlim(0, 1.6 * largest if largest > 0 else 1)
        axis.set_yticks(range(len(arms)), [style.arm(arm)["label"] for arm in arms])
        axis.set_xlabel(name)
        axis.set_title(title)
        axis.grid(axis="y", visible=False)
    axes[0, 0].invert_yaxis()
    left_out = forecast.loc[forecast["plan"] == UNPLANNED, "task"].nunique()
    missing = f", {left_out} left out: not planned yet" if left_out else ""
    trained = repeats(forecast["folds"].max(), forecast["seeds"].max()) or "one fold"
    figure.suptitle(
        f"Forecast: {counted(known['task'].nunique(), 'task')}{missing}, {trained}; in brackets: "
        f"relative to {style.arm(reference_arm)['label']}"
    )
    save(figure, style, outputs)


if __name__ == "__main__":
    redirect(snakemake.log[0])
    (table,) = read_tables(Path(snakemake.input.forecast))
    plot_forecast(
        forecast=table,
        reference_arm=snakemake.params.reference_arm,
        style=load_style(Path(snakemake.input.style)),
        outputs=[Path(path) for path in snakemake.output],
    )
