"""Variance components of Dice by task and arm: the spread due to seeds and due to folds."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from workflow_scripts.common.console import redirect
from workflow_scripts.common.files import read_csv

DICE, DIFFERENCE = "dice", "difference"
COLUMNS = [
    "task",
    "arm",
    "reference_arm",
    "quantity",
    "folds",
    "seeds",
    "mean",
    "std_fold",
    "std_seed",
    "std_residual",
    "std_retraining",
]


def components(values: NDArray[np.float64]) -> dict[str, float]:
    """Return the variance components of a table, as standard deviations.

    The model is a two-way random-effects model without repetition,
    `value = mean + fold + seed + residual`, estimated with the method of moments (Searle, Casella
    and McCulloch, Variance Components, 1992, chapter 4). With the mean squares MS of an analysis of
    variance, the variance of the residual is MS_r, that of the folds (MS_f - MS_r) / seeds, and
    that of the seeds (MS_s - MS_r) / folds. A negative estimate is set to 0.
    The initial weights depend only on the seed, so a seed may have the same effect on all folds.
    Its effect on a single fold is part of the residual.

    Args:
        values: one row per fold, one column per seed.

    Returns:
        `std_fold`, `std_seed`, `std_residual`, and `std_retraining` = √(seed² + residual²), that of
        one fold trained with another seed. Components that cannot be estimated are NaN: `std_fold`
        with one fold, all others with one seed, and `std_seed` and `std_residual` with one fold.
    """
    folds, seeds = values.shape
    fold = seed = residual = retraining = math.nan
    if folds > 1 and seeds > 1:
        of_folds = seeds * values.mean(axis=1).var(ddof=1)
        of_seeds = folds * values.mean(axis=0).var(ddof=1)
        rest = values - values.mean(axis=1, keepdims=True) - values.mean(axis=0) + values.mean()
        residual = (rest**2).sum() / ((folds - 1) * (seeds - 1))
        fold = np.maximum(0.0, (of_folds - residual) / seeds)
        seed = np.maximum(0.0, (of_seeds - residual) / folds)
        retraining = seed + residual
    elif seeds > 1:
        retraining = values.var(ddof=1)
    elif folds > 1:
        fold = values.var(ddof=1)
    found = {"fold": fold, "seed": seed, "residual": residual, "retraining": retraining}
    return {f"std_{name}": math.sqrt(variance) for name, variance in found.items()}


def separate_variance(
    runs: pd.DataFrame, reference_arm: str, tasks: list[str], arms: list[str]
) -> pd.DataFrame:
    """Return one row per task, arm and quantity (`COLUMNS`) of runs.csv.

    Quantities are the foreground Dice of a training, and its difference from the reference arm's
    with the same fold and seed. If a Dice is missing, the row has no numbers. With one seed,
    `std_fold` includes the effect of the seed.
    """
    index = ["task", "arm", "fold"]
    dice = runs.pivot(index=index, columns="seed", values="dice_foreground_mean")
    rows = []
    for task in tasks:
        for arm in arms:
            values = dice.loc[task, arm]
            quantities = {DICE: values}
            if arm != reference_arm:
                quantities[DIFFERENCE] = values - dice.loc[task, reference_arm]
            for quantity, table in quantities.items():
                row: dict[str, Any] = {"task": task, "arm": arm, "reference_arm": reference_arm}
                row |= {"quantity": quantity, "folds": len(table), "seeds": table.shape[1]}
                row |= {"mean": table.to_numpy().mean()} | components(table.to_numpy())
                rows.append(row)
    return pd.DataFrame(rows, columns=COLUMNS)


if __name__ == "__main__":
    redirect(snakemake.log[0])
    separate_variance(
        runs=read_csv(snakemake.input.runs),
        reference_arm=snakemake.params.reference_arm,
        tasks=list(snakemake.params.tasks),
        arms=list(snakemake.params.arms),
    ).to_csv(Path(snakemake.output.table), index=False)
