"""Compare a study with published claims, and its reference arm with published nnU-Net runs."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from workflow_scripts.common.console import redirect
from workflow_scripts.common.files import read_csv
from workflow_scripts.common.formatting import bullets, counted, pipe_table
from workflow_scripts.evaluation.claim_quantities import Estimate
from workflow_scripts.evaluation.claims import (
    CONTRADICTED,
    INSUFFICIENT,
    SUPPORTED,
    UNDECIDED,
    Finding,
    PublishedClaims,
    Quantity,
    departures,
    find,
    read_claims,
    runs_of,
)
from workflow_scripts.evaluation.time_to_target import progress
from workflow_scripts.records.run_reader import KEYS

COLUMNS = [
    "claim",
    "statement",
    "source",
    "arm",
    "reference_arm",
    "published",
    "measured",
    "verdict",
    "missing",
    "tasks",
    "folds",
    "seeds",
    "cases",
    "iterations",
]
RUN_COLUMNS = [
    "task",
    "arm",
    "fold",
    "seed",
    "cases",
    "iterations",
    "plans",
    "dice",
    "dice_published",
    "difference",
    "comparable",
    "note",
]


TEXTS = {
    "tasks_better": ("better Dice on {}", ".0f"),
    "dice_ratio": ("mean Dice {} ×", ".3f"),
    "time_ratio": ("time {} ×", ".2f"),
    "co2_ratio": ("CO2eq {} ×", ".2f"),
    "flop_ratio": ("FLOP {} ×", ".2f"),
    "time_to_target": ("time to target {} ×", ".2f"),
    "energy_to_target": ("energy to target {} ×", ".2f"),
    "gain_p": ("p {}", ".2g"),
    "variance_ratio": ("variance of Dice {} ×", ".2f"),
    "subset_gain": ("gain on the subset {} × that on the others", ".3f"),
}
"""How a quantity is printed, and the format of its number."""
MARKS = {SUPPORTED: "✓", CONTRADICTED: "✗", UNDECIDED: "?", INSUFFICIENT: "–"}
"""Verdicts in the printed table; the legend below it explains them."""


def published_text(quantity: Quantity, of: int) -> str:
    """Return a published quantity as text; `of` is the number of data sets."""
    text, digits = TEXTS[quantity.quantity]
    sign = {"at_least": "≥", "at_most": "≤"}[quantity.direction]
    number = text.format(f"{sign} {quantity.published:{digits}}")
    return f"{number} of {of}" if quantity.quantity == "tasks_better" else number


def measured_text(quantity: str, estimate: Estimate, of: int) -> str:
    """Return a measured quantity with its interval as text; `of` is the number of tasks."""
    if math.isnan(estimate.value):
        return "–"
    text, digits = TEXTS[quantity]
    if math.isinf(estimate.value):
        measured = text.removesuffix(" ×").format("never reached")
    else:
        measured = text.format(f"{estimate.value:{digits}}")
    if quantity == "tasks_better":
        measured += f" of {of}"
    if math.isnan(estimate.low) or quantity == "gain_p":
        return measured
    ends = ["never" if math.isinf(end) else f"{end:{digits}}" for end in estimate[1:]]
    return f"{measured} ({ends[0]} to {ends[1]})"


def row(finding: Finding) -> dict[str, Any]:
    """Return a finding as a row of claims.csv."""
    claim = finding.claim
    published = [published_text(quantity, claim.data_sets) for quantity in claim.quantities]
    measured = [
        measured_text(quantity.quantity, estimate, len(finding.tasks))
        for quantity, estimate in zip(claim.quantities, finding.estimates, strict=True)
        if finding.tasks
    ]
    return {
        "claim": claim.id,
        "statement": claim.statement,
        "source": claim.source,
        "arm": claim.arm,
        "reference_arm": claim.reference,
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
    runs: pd.DataFrame, published: pd.DataFrame, content: PublishedClaims
) -> pd.DataFrame:
    """Return runs of stock training with the published run of the same task and fold.

    The columns are `RUN_COLUMNS`. The difference is given only if the run was trained like the
    published one; otherwise, a note lists what differs.
    """
    table = runs_of(runs, content.arms["constant"]).merge(
        published[["task", "fold", "dice_foreground_mean"]],
        on=["task", "fold"],
        suffixes=("", "_published"),
    )
    table = table.rename(columns=lambda name: name.replace("dice_foreground_mean", "dice"))
    notes = [
        "; ".join(departures(table.iloc[[number]], content.conditions))
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
        return (
            "No run of the arm constant with its default parameters has a published counterpart "
            "(same MSD task and fold)."
        )
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
    """Return claims.csv as a table of verdicts, followed by the evidence and its gaps.

    Claims about arms that the study does not train with default parameters are only named.
    """
    own = table[table["tasks"] != ""]
    columns = ["claim", "arm", "published", "measured", "verdict"]
    short = own[columns].replace("", "–").replace({"verdict": MARKS})
    short = short.rename(columns={"measured": "measured here", "verdict": ""})
    marks = [mark for verdict, mark in MARKS.items() if verdict in set(own["verdict"])]
    legend = ", ".join(f"{mark} {verdict}" for verdict, mark in MARKS.items() if mark in marks)
    notes = [f"Verdicts: {legend}."] if marks else []
    others = table.loc[table["tasks"] == "", "claim"]
    if len(others):
        notes.append(
            f"{counted(len(others), 'further claim')} about arms that this study does not train "
            f"with their default parameters: {', '.join(others)}."
        )
    for claim in own.to_dict("records"):
        tasks, folds, seeds = (claim[key].split() for key in ("tasks", "folds", "seeds"))
        lengths = " or ".join(f"{int(count):,}" for count in claim["iterations"].split())
        names = f" ({', '.join(tasks)})" if len(tasks) < 4 else ""
        evidence = (
            f"{counted(len(tasks), 'task')}{names}, {counted(len(folds), 'fold')}, "
            f"{counted(len(seeds), 'seed')}, {counted(claim['cases'], 'case')}, "
            f"{lengths} iterations per run"
        )
        missing = f" Missing: {claim['missing']}." if claim["missing"] else ""
        notes.append(
            f"**{claim['claim']}** (arm {claim['arm']} against {claim['reference_arm']}): "
            f"{claim['statement']} {claim['source']}. Evidence: {evidence}.{missing}"
        )
    if own.empty:
        return f"{bullets([*notes, sentence])}\n"
    notes += [
        "Numbers with × are relative to the other arm. In brackets: intervals that hold jointly "
        "for all numbers of a claim in 95 % of studies, for new seeds and cases of these tasks "
        "(Dice), new trainings on this machine (costs), or new tasks of this kind (cost to target, "
        "variance, gain on a subset). A verdict requires everything that a claim covers, under its "
        "conditions, and allows the margins of config/published/claims.yaml. Supported: every "
        "interval lies where the claim says. Contradicted: one lies outside. Not decided: neither.",
        sentence,
    ]
    return f"{pipe_table(short)}\n\n{bullets(notes)}\n"


def check_claims(
    runs: pd.DataFrame,
    published: pd.DataFrame,
    content: PublishedClaims,
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
    rows = [row(find(runs, claim, content, own, trainings)) for claim in content.claims]
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
