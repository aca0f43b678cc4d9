"""How much of the spread of Dice do seeds and folds make? Variance components by task and arm."""

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
    *("task", "arm", "reference_arm", "quantity", "folds", "seeds", "mean"),
    *("std_fold", "std_seed", "std_residual", "std_retraining"),
]


def components(values: NDArray[np.float64]) -> dict[str, float]:
    """Return the components of a table's variance, as standard deviations.

    A two-way random-effects model without repetition, `value = mean + fold + seed + residual`, by
    the method of moments (Searle, Casella and McCulloch, Variance Components, 1992, chapter 4):
    with the mean squares MS of an analysis of variance, the residual has MS_r, the folds
    (MS_f - MS_r) / seeds, the seeds (MS_s - MS_r) / folds; a negative estimate is 0.
    The first weights follow from the seed alone, so that a seed may act alike on all folds; what it
    does on one fold alone is in the residual.

    Args:
        values: a row for each fold, a column for each seed.

    Returns:
        `std_fold`, `std_seed`, `std_residual`, and `std_retraining`, √(seed² + residual²): that of
        one fold trained with another seed. NaN where it cannot be estimated: the folds' from one
        fold, all others from one seed, and seed and residual separately from one fold.
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

    Quantities: the foreground Dice of a training, and its difference from the reference arm's on
    the same fold with the same seed. A missing Dice leaves the row without numbers. With one seed
    `std_fold` holds what seeds do too.
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
