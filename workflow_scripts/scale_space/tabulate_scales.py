"""Accuracy against cost by scale factor: the tables, and what a reader must know of them."""

import math
from pathlib import Path
from typing import Any

import pandas as pd

from workflow_scripts.common.console import redirect
from workflow_scripts.common.files import read_json, write_csv
from workflow_scripts.common.formatting import (
    COMPUTATION,
    ENERGY,
    TIME,
    bullets,
    number,
    pipe_table,
    unit,
)
from workflow_scripts.scale_space.scale_tables import (
    COSTS,
    SUM_OF_FIXED,
    check_weights,
    choose_scales,
    scales_table,
    training_costs,
)


def to_markdown(
    table: pd.DataFrame,
    choice: pd.DataFrame,
    checks: pd.DataFrame,
    costs: pd.DataFrame,
    mirroring: bool,
) -> str:
    """Return the tables and what a reader must know of them."""
    parts = []
    for task in table["task"].unique():
        parts.append(f"**{task}: accuracy and cost of inference**")
        parts.append(pipe_table(_inference_rows(table[table["task"] == task])))
        parts.append(f"**{task}: cost of training**")
        parts.append(pipe_table(_training_rows(costs[costs["task"] == task])))
    notes = [*_choice_notes(choice), *_check_notes(checks), *_limits(table, costs, mirroring)]
    parts.append(bullets(notes))
    return "\n\n".join(parts) + "\n"


def _inference_rows(rows: pd.DataFrame) -> pd.DataFrame:
    energy, scale = unit(rows["kwh_per_case"], ENERGY)
    spread = rows["folds"].max() > 1
    return pd.DataFrame(
        {
            "arm": rows["arm"],
            "scale": ["planned" if math.isnan(s) else f"{s:g}" for s in rows["scale"]],
            "Dice": [
                f"{dice:.3f} ± {sd:.3f}" if spread else f"{dice:.3f}"
                for dice, sd in zip(rows["dice"], rows["dice_sd"], strict=True)
            ],
            "GMAC/patch": rows["gmac_per_patch"].map(number),
            "GMAC/case": rows["gmac_per_case"].map(number),
            "s/case": rows["seconds_per_case"].map(number),
            f"{energy}/case": (rows["kwh_per_case"] * scale).map(number),
            "peak MB": rows["peak_memory_mb"].map(number),
            "non-dominated": [
                ", ".join(["GMAC"] * by_gmac + ["seconds"] * by_seconds) or "–"
                for by_gmac, by_seconds in zip(
                    *(rows[f"non_dominated_{cost}"] for cost in COSTS), strict=True
                )
            ],
        }
    )


def _training_rows(rows: pd.DataFrame) -> pd.DataFrame:
    named = {"training_seconds": TIME, "training_kwh": ENERGY, "training_gflop": COMPUTATION}
    columns: dict[str, Any] = {"arm": rows["arm"], "networks": rows["networks"].astype(str)}
    for column, choices in named.items():
        name, scale = unit(rows[column], choices)
        columns[name] = (rows[column] * scale).map(number)
    return pd.DataFrame(columns)


def _choice_notes(choice: pd.DataFrame) -> list[str]:
    return [
        f"{row.task}, {row.arm}: the cheapest scale factor within {100 * row.tolerance:g} Dice "
        f"points of the best ({row.best_scale:g}, Dice {row.best_dice:.3f}) is {row.scale:g} "
        f"(Dice {row.dice:.3f}, {row.relative_gmac:.2f} of its GMAC). It is chosen and measured on "
        "the same validation cases, so its Dice is optimistic."
        for row in choice.itertuples()
    ]


def _check_notes(checks: pd.DataFrame) -> list[str]:
    """Tell of each hypernetwork whether training made its weights follow the scale factor."""
    return [
        f"{row.task}, {row.arm}: what training did to the weights differs between {row.scale:g} "
        f"and the largest scale factor by {row.value:.2g} of its size, "
        + (
            "so it depends on the scale factor. Whether that is of any use, the transfer matrix "
            "and the comparison with shared weights (rank: 0) tell."
            if row.passed
            else f"not more than {row.limit:g}: the hypernetwork has collapsed, and is no more "
            "than one network for all scale factors."
        )
        for row in checks.itertuples()
    ]


def _spread_notes(rescaled: pd.DataFrame) -> list[str]:
    """Tell how far apart the seconds of networks are that differ in nothing but their weights."""
    notes = []
    for task, same in rescaled.groupby("task", sort=False):
        seconds = same.groupby("scale")["seconds_per_case"].agg(["min", "max", "count"])
        spread = (seconds["max"] / seconds["min"] - 1)[seconds["count"] > 1]
        if len(spread):
            notes.append(
                f"{task}: networks of one scale factor compute the same, yet their seconds are up "
                f"to {100 * spread.max():.0f} % apart here (at {spread.idxmax():g}). Smaller "
                "differences of seconds are the machine's."
            )
    return notes


def _limits(table: pd.DataFrame, costs: pd.DataFrame, mirroring: bool) -> list[str]:
    """What the curve cannot do, and what it costs."""
    notes = []
    rescaled = table[table["role"] != "stock"]
    for task, same in rescaled.groupby("task", sort=False):
        share = same["gmac_per_patch"].min() / same["gmac_per_patch"].max()
        notes.append(
            f"{task}: the cheapest of these networks takes {share:.2f} of the GMAC of the most "
            "expensive one. It cannot fall much further: the stage of full resolution, about half "
            "of the cost at 0.5, is not rescaled."
        )
    notes += _spread_notes(rescaled)
    for task, same in costs.groupby("task", sort=False):
        fixed = same[same["arm"] == SUM_OF_FIXED]
        for row in same[same["role"] == "hypernetwork"].itertuples():
            if len(fixed):
                total, networks = fixed[["training_seconds", "networks"]].iloc[0]
                notes.append(
                    f"{task}: training {row.arm} took {row.training_seconds / total:.2f} of the "
                    f"time of the {networks:.0f} fixed networks together, "
                    f"{networks * row.training_seconds / total:.2f} of their mean."
                )
    passes = "with mirroring" if mirroring else "without mirroring"
    notes += [
        "A scale-space network saves at inference, and in training only against the set of fixed "
        "networks that it replaces.",
        f"Dice and costs of inference: sliding window over the fold's validation cases, {passes}. "
        "Seconds are the network's; energy also has reading and export of the cases. Peak memory "
        "is that of tensors on a GPU, of the whole process without one. Every arm was trained once "
        "per fold, with one seed.",
        "Non-dominated: no other model of the table is as good and as cheap, and better in one.",
    ]
    return notes


if __name__ == "__main__":
    redirect(snakemake.log[0])

    arms = snakemake.params.arms
    evaluated = [read_json(Path(path)) for path in snakemake.input.evaluations]
    found = scales_table(evaluated, arms)
    choices = choose_scales(found, snakemake.params.tolerance)
    checked = check_weights(found)
    trained = training_costs(
        [read_json(Path(path), "train this fold again") for path in snakemake.input.runs], arms
    )
    write_csv(found, Path(snakemake.output.csv))
    write_csv(choices, Path(snakemake.output.choice))
    write_csv(checked, Path(snakemake.output.checks))
    write_csv(trained, Path(snakemake.output.costs))
    Path(snakemake.output.md).write_text(
        to_markdown(found, choices, checked, trained, snakemake.params.mirroring),
        encoding="utf-8",
    )
