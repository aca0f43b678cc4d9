"""Tabulate accuracy against cost by scale factor, with notes for the reader."""

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
    """Return the tables and notes for the reader."""
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
    """Return a note per hypernetwork: does the effect of training depend on the scale factor?"""
    return [
        f"{row.task}, {row.arm}: the change of the weights in training differs between "
        f"{row.scale:g} and the largest scale factor by {row.value:.2g} of its size, "
        + (
            "so it depends on the scale factor. The transfer matrix and the comparison with shared "
            "weights (rank: 0) show whether that is useful."
            if row.passed
            else f"not more than {row.limit:g}: the hypernetwork has collapsed, and is no more "
            "than one network for all scale factors."
        )
        for row in checks.itertuples()
    ]


def _spread_notes(rescaled: pd.DataFrame) -> list[str]:
    """Return notes on how much seconds differ between networks that differ only in weights."""
    notes = []
    for task, same in rescaled.groupby("task", sort=False):
        seconds = same.groupby("scale")["seconds_per_case"].agg(["min", "max", "count"])
        spread = (seconds["max"] / seconds["min"] - 1)[seconds["count"] > 1]
        if len(spread):
            notes.append(
                f"{task}: networks of the same scale factor do the same computation, yet their "
                f"seconds differ by up to {100 * spread.max():.0f} % (at {spread.idxmax():g}). "
                "Smaller differences in seconds are due to the machine."
            )
    return notes


def _limits(table: pd.DataFrame, costs: pd.DataFrame, mirroring: bool) -> list[str]:
    """Return notes on the limits of the curve, and on its cost."""
    notes = []
    rescaled = table[table["role"] != "stock"]
    for task, same in rescaled.groupby("task", sort=False):
        share = same["gmac_per_patch"].min() / same["gmac_per_patch"].max()
        notes.append(
            f"{task}: the cheapest of these networks takes {share:.2f} of the GMAC of the most "
            "expensive one. The cost cannot fall much further: the stage of full resolution, "
            "about half of the cost at 0.5, is not rescaled."
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
        "A scale-space network saves computation at inference. In training it saves only relative "
        "to the set of fixed networks that it replaces.",
        f"Dice and costs of inference: sliding window over the fold's validation cases, {passes}. "
        "Seconds cover only the network; energy also covers reading and export of the cases. Peak "
        "memory is that of tensors on a GPU, or of the whole process without one. Every arm was "
        "trained once per fold, with one seed.",
        "Non-dominated: no other model here is as good and as cheap, and better in one of both.",
    ]
    return notes


if __name__ == "__main__":
    redirect(snakemake.log[0])

    arms = snakemake.params.arms
    evaluated = [read_json(Path(path)) for path in snakemake.input.evaluations]
    table = scales_table(evaluated, arms)
    choices = choose_scales(table, snakemake.params.tolerance)
    checked = check_weights(table)
    trained = training_costs(
        [read_json(Path(path), "train this fold again") for path in snakemake.input.runs], arms
    )
    write_csv(table, Path(snakemake.output.csv))
    write_csv(choices, Path(snakemake.output.choice))
    write_csv(checked, Path(snakemake.output.checks))
    write_csv(trained, Path(snakemake.output.costs))
    Path(snakemake.output.md).write_text(
        to_markdown(table, choices, checked, trained, snakemake.params.mirroring),
        encoding="utf-8",
    )
