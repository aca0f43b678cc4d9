"""Compare a study with published claims, and its reference arm with published nnU-Net runs."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from workflow_scripts.common.console import redirect
from workflow_scripts.common.files import read_csv
from workflow_scripts.common.formatting import bullets, counted, pipe_table
from workflow_scripts.evaluation.claims import Finding, departures, find, read_claims, runs_of
from workflow_scripts.evaluation.time_to_target import progress
from workflow_scripts.records.run_reader import KEYS

COLUMNS = [
    *("claim", "statement", "source", "arm", "reference_arm", "published", "measured", "verdict"),
    *("missing", "tasks", "folds", "seeds", "cases", "iterations"),
]
RUN_COLUMNS = [
    *("task", "arm", "fold", "seed", "cases", "iterations", "plans", "dice", "dice_published"),
    *("difference", "comparable", "note"),
]


def quantity_text(quantity: dict[str, Any], value: float, of: int, limit: bool) -> str:
    """Return a quantity and its value as text; `of` is the number of data sets or tasks."""
    sign = {"at_least": "≥ ", "at_most": "≤ "}[quantity["direction"]] if limit else ""
    if math.isnan(value):
        return "–"
    if quantity["quantity"] == "tasks_better":
        return f"better Dice on {sign}{value:.0f} of {of}"
    reached = "never reached" if math.isinf(value) else f"{sign}{value:.2f} ×"
    text = {
        "dice_ratio": f"mean Dice {sign}{value:.3f} ×",
        "time_ratio": f"time {sign}{value:.2f} ×",
        "co2_ratio": f"CO2eq {sign}{value:.2f} ×",
        "flop_ratio": f"FLOP {sign}{value:.2f} ×",
        "time_to_target": f"time to target {reached}",
        "energy_to_target": f"energy to target {reached}",
        "gain_p": f"p {sign}{value:.2g}",
        "variance_ratio": f"variance of Dice {sign}{value:.2f} ×",
        "subset_gain": f"gain on the subset {sign}{value:.3f} × that on the others",
    }
    return text[quantity["quantity"]]


def row(finding: Finding) -> dict[str, Any]:
    """Return a finding as a row of claims.csv."""
    claim, quantities = finding.claim, finding.claim["quantities"]
    published = [
        quantity_text(q, q["published"], claim["data_sets"], limit=True) for q in quantities
    ]
    measured = [
        quantity_text(quantity, value, len(finding.tasks), limit=False)
        for quantity, value in zip(quantities, finding.values, strict=True)
        if finding.tasks
    ]
    return {
        "claim": claim["id"],
        "statement": claim["statement"],
        "source": claim["source"],
        "arm": claim["arm"],
        "reference_arm": claim["reference"],
        "published": "; ".join(published),
        "measured": "; ".join(measured),
        "verdict": finding.verdict,
        "missing": "; ".join(finding.missing),
        "tasks": " ".join(finding.tasks),
        "folds": " ".join(map(str, finding.folds)),
        "seeds": " ".join(map(str, finding.seeds)),
        "cases": finding.cases,
        "iterations": " ".join(map(str, finding.iterations)),
    }


def reference_runs(
    runs: pd.DataFrame, published: pd.DataFrame, content: dict[str, Any]
) -> pd.DataFrame:
    """Return runs of stock training with the published run of the same task and fold.

    The columns are `RUN_COLUMNS`. The difference is given only if the run was trained like the
    published one; otherwise, a note lists what differs.
    """
    table = runs_of(runs, content["arms"]["constant"]).merge(
        published[["task", "fold", "dice_foreground_mean"]],
        on=["task", "fold"],
        suffixes=("", "_published"),
    )
    table = table.rename(columns=lambda name: name.replace("dice_foreground_mean", "dice"))
    notes = [
        "; ".join(departures(table.iloc[[number]], content["conditions"]))
        for number in range(len(table))
    ]
    table["note"] = [f"published: {note}" if note else "" for note in notes]
    table["comparable"] = ["no" if note else "yes" for note in notes]
    difference = table["dice"] - table["dice_published"]
    table["difference"] = difference.where(table["comparable"] == "yes")
    return table[RUN_COLUMNS]


def reference_sentence(table: pd.DataFrame) -> str:
    """Summarise reference_runs.csv in one sentence."""
    comparable = table[table["comparable"] == "yes"]
    if table.empty:
        return "No run of the arm constant has a published counterpart (same MSD task and fold)."
    if comparable.empty:
        return (
            f"Published nnU-Net runs exist for {counted(len(table), 'training')} of the arm "
            "constant, but none was trained under the same conditions (reference_runs.csv lists "
            "the differences)."
        )
    mean, most = comparable["difference"].mean(), comparable["difference"].abs().max()
    return (
        f"The arm constant against published nnU-Net runs: mean difference of Dice {mean:+.4f}, at "
        f"most {most:.4f}, over {counted(len(comparable), 'training')} under the same conditions."
    )


def to_markdown(table: pd.DataFrame, sentence: str) -> str:
    """Return claims.csv as a table of verdicts, followed by the evidence and its gaps."""
    short = table[["claim", "arm", "published", "measured", "verdict"]].replace("", "–")
    short = short.rename(columns={"measured": "measured here"})
    notes = []
    for claim in table.to_dict("records"):
        tasks, folds, seeds = (claim[key].split() for key in ("tasks", "folds", "seeds"))
        lengths = " or ".join(f"{int(count):,}" for count in claim["iterations"].split())
        names = f" ({', '.join(tasks)})" if len(tasks) < 4 else ""
        evidence = (
            f"{counted(len(tasks), 'task')}{names}, {counted(len(folds), 'fold')}, "
            f"{counted(len(seeds), 'seed')}, {counted(claim['cases'], 'case')}, "
            f"{lengths} iterations per run"
            if tasks
            else "none"
        )
        missing = f" Missing: {claim['missing']}." if claim["missing"] else ""
        notes.append(
            f"**{claim['claim']}** (arm {claim['arm']} against {claim['reference_arm']}): "
            f"{claim['statement']} {claim['source']}. Evidence: {evidence}.{missing}"
        )
    notes += [
        "Numbers with × are relative to the other arm. A verdict requires everything that a claim "
        "covers, under its conditions, and allows the margins of config/published/claims.yaml. It "
        "is about mean values, as the claims are: significance.csv has the uncertainty of each "
        "difference.",
        sentence,
    ]
    return f"{pipe_table(short)}\n\n{bullets(notes)}\n"


def check_claims(
    runs: pd.DataFrame,
    published: pd.DataFrame,
    content: dict[str, Any],
    own: Mapping[str, str] | None = None,
    epochs: pd.DataFrame | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return claims.csv and reference_runs.csv of a study.

    `own` is as in `claims.find`. `epochs` is epochs.csv; without it, time and energy to target are
    unknown.
    """
    trainings = (
        None if epochs is None else dict(iter(progress(epochs, runs).groupby(KEYS, sort=False)))
    )
    rows = [row(find(runs, claim, content, own, trainings)) for claim in content["claims"]]
    return pd.DataFrame(rows, columns=COLUMNS), reference_runs(runs, published, content)


if __name__ == "__main__":
    redirect(snakemake.log[0])
    checked, beside = check_claims(
        runs=read_csv(snakemake.input.runs),
        published=pd.read_csv(snakemake.input.nnunet_runs, sep="\t"),
        content=read_claims(Path(snakemake.input.claims), Path(snakemake.input.schema)),
        own=snakemake.params.own,
        epochs=read_csv(snakemake.input.epochs),
    )
    checked.to_csv(snakemake.output.csv, index=False)
    beside.to_csv(snakemake.output.reference_runs, index=False)
    Path(snakemake.output.md).write_text(
        to_markdown(checked, reference_sentence(beside)), encoding="utf-8"
    )
