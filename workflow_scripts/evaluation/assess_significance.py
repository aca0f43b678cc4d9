"""Significance of the differences between arms in Dice and NSD: paired statistics over cases."""

from pathlib import Path
from typing import Any

import pandas as pd

from workflow_scripts.common.console import redirect
from workflow_scripts.common.errors import UserError
from workflow_scripts.common.files import read_csv
from workflow_scripts.common.paired_statistics import LEVEL, compare_pairs, holm
from workflow_scripts.records.run_reader import KEYS, label_values

MEASURES = ("dice", "nsd")
FOREGROUND = ""
"""Label of the mean over a case's foreground labels, as in comparison.csv."""
COLUMNS = [
    "measure",
    "task",
    "arm",
    "reference_arm",
    "label",
    "label_name",
    "folds",
    "seeds",
    "pairs",
    "left_out",
    "zeros",
    "mean",
    "mean_reference",
    "difference",
    "ci_low",
    "ci_high",
    "covers",
    "new_seed_agrees",
    "p",
    "tests",
    "p_holm",
    "significant",
    "rank_biserial",
    "cohen_dz",
    "note",
]


def with_foreground(cases: pd.DataFrame) -> pd.DataFrame:
    """Return `cases` with one more row per case: the nanmean over its labels (label `FOREGROUND`).

    A label that is in neither image has no value. A label that is only in the prediction counts
    with Dice 0, as in nnU-Net's own summary.
    """
    keys = [*KEYS, "case"]
    mean = cases.groupby(keys, as_index=False, sort=False)[list(MEASURES)].mean()
    mean = mean.assign(label=FOREGROUND, label_name="foreground")
    return pd.concat([mean, cases[[*keys, "label", "label_name", *MEASURES]]], ignore_index=True)


def assess(
    cases: pd.DataFrame, reference_arm: str, tasks: list[str], arms: list[str], seed: int
) -> pd.DataFrame:
    """Return one row per measure, task, label and arm except the reference (columns `COLUMNS`).

    Pairs are the cases of all folds, with every seed (`compare_pairs`). P-values are corrected with
    Holm's method over arms and tasks, separately for each measure, and separately for foreground
    means and labels. Comparisons without any value are not counted (a task without a tolerance has
    no NSD).
    Raises UserError if the reference arm has no case.
    """
    if reference_arm not in set(cases["arm"]):
        raise UserError(f"reference_arm is {reference_arm}, which has no case in this study")
    table = with_foreground(cases)
    others = [arm for arm in arms if arm != reference_arm]
    names = table.drop_duplicates(["task", "label"])[["task", "label", "label_name"]]
    names["task"] = pd.Categorical(names["task"], tasks)
    names["value"] = names["label"].map(label_values)
    names = names.sort_values(["task", "value"]).drop(columns="value")
    rows: list[dict[str, Any]] = []
    for measure in MEASURES:
        wide = table.pivot(
            index=["task", "label", "fold", "seed", "case"], columns="arm", values=measure
        )
        for of_labels in (False, True):
            chosen = names[(names["label"] != FOREGROUND) == of_labels]
            groups = [(name, wide.loc[name[:2]]) for name in chosen.itertuples(index=False)]
            tests = sum(values.notna().any(axis=None) for _, values in groups) * len(others)
            family = [
                {"measure": measure, "task": task, "arm": arm, "reference_arm": reference_arm}
                | {"label": label, "label_name": label_name, "tests": tests}
                | {"folds": values.index.unique("fold").size}
                | {"seeds": values.index.unique("seed").size}
                | _compare(values[arm], values[reference_arm], tests, seed)
                for (task, label, label_name), values in groups
                for arm in others
            ]
            for row, p in zip(family, holm([row["p"] for row in family], tests), strict=True):
                row["p_holm"] = p
                row["significant"] = "" if pd.isna(p) else ("yes" if p < LEVEL else "no")
            rows += family
    return pd.DataFrame(rows, columns=COLUMNS)


def _compare(arm: pd.Series, reference: pd.Series, tests: int, seed: int) -> dict[str, Any]:
    """Compare two arms by values with the index levels fold, seed and case."""
    tables = [values.unstack("seed") for values in (arm, reference)]
    return compare_pairs(tables[0], tables[1], tests, seed)


if __name__ == "__main__":
    redirect(snakemake.log[0])
    assess(
        cases=read_csv(snakemake.input.cases),
        reference_arm=snakemake.params.reference_arm,
        tasks=list(snakemake.params.tasks),
        arms=list(snakemake.params.arms),
        seed=snakemake.params.seed,
    ).to_csv(Path(snakemake.output.table), index=False)
