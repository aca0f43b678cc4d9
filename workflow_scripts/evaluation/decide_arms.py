"""Decide for each arm whether it keeps the reference arm's Dice, at which cost, and how surely."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from workflow_scripts.common.console import redirect
from workflow_scripts.common.files import read_csv
from workflow_scripts.common.paired_statistics import FEWEST_SEEDS
from workflow_scripts.evaluation.learning_checks import check_learning
from workflow_scripts.evaluation.rank_stability import rank_arms
from workflow_scripts.evaluation.sample_size import Design, find_designs
from workflow_scripts.evaluation.verdict_texts import ranks_markdown, to_markdown
from workflow_scripts.evaluation.verdicts import ONE_SEED, UNDECIDED, decide
from workflow_scripts.records.run_reader import OVERALL

COSTS = {"time": "training_seconds", "energy": "training_kwh", "flop": "training_gflop"}
"""Columns of verdicts.csv with costs relative to the reference arm's, and where they come from."""
NEEDED = ("by", "seeds", "folds", "cases", "trainings", "seconds", "kwh")


def with_costs(table: pd.DataFrame, comparison: pd.DataFrame) -> pd.DataFrame:
    """Return verdicts with the costs relative to the reference arm: over tasks, means of ratios.

    Args:
        table: verdicts.
        comparison: comparison.csv.
    """
    columns = {f"{column}_relative": name for name, column in COSTS.items()}
    of_tasks = comparison[comparison["label"].isna() & (comparison["task"] != OVERALL)]
    ratios = of_tasks[["task", "arm", *columns]].rename(columns=columns)
    means = ratios.groupby("arm")[list(COSTS)].agg(lambda values: values.mean(skipna=False))
    means = means.reset_index().assign(task=OVERALL)
    return table.merge(pd.concat([ratios, means]), on=["task", "arm"], how="left")


def needed(row: pd.Series, runs: pd.DataFrame) -> dict[str, Any]:
    """Return the cheapest further trainings that would probably settle an undecided verdict.

    They are trainings of the arm and of the reference arm, at the mean measured cost of those that
    the study has (training and final validation). With one seed, the spread between seeds is
    unknown, so the first step is `FEWEST_SEEDS` seeds.

    Args:
        row: of verdicts.csv.
        runs: runs.csv.
    """
    empty = dict.fromkeys((f"needed_{name}" for name in NEEDED), np.nan) | {"needed_by": ""}
    if row["verdict"] != UNDECIDED or row["reason"] not in ("", ONE_SEED):
        return empty
    now = Design(int(row["seeds"]), int(row["folds"]), int(row["cases"]))
    if row["reason"] == ONE_SEED:
        by, design = "seeds", now._replace(seeds=FEWEST_SEEDS)
    else:
        designs = find_designs(
            row["difference"], row["margin"], row["variance_cases"], row["variance_seeds"], now
        )
        if not designs:
            return empty
        by, design = min(designs.items(), key=lambda item: item[1].seeds * item[1].folds)
    both = runs[runs["arm"].isin([row["arm"], row["reference_arm"]])]
    if row["task"] != OVERALL:
        both = both[both["task"] == row["task"]]
    further = design.seeds * design.folds - now.seeds * now.folds
    costs = {
        unit: (both[f"training_{unit}"] + both[f"validation_{unit}"])
        .groupby([both["task"], both["arm"]])
        .mean()
        for unit in ("seconds", "kwh")
    }
    return {
        "needed_by": by,
        "needed_seeds": design.seeds,
        "needed_folds": design.folds,
        "needed_cases": design.cases,
        "needed_trainings": further * len(costs["seconds"]),
        "needed_seconds": further * costs["seconds"].sum(skipna=False),
        "needed_kwh": further * costs["kwh"].sum(skipna=False),
    }


def decide_arms(
    tables: Mapping[str, pd.DataFrame],
    reference_arm: str,
    tasks: Sequence[str],
    arms: Sequence[str],
    comparison: Mapping[str, Any],
    seed: int,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return verdicts.csv and ranks.csv.

    Args:
        tables: runs, cases, epochs and comparison, by name.
        reference_arm: the arm that the others are compared with.
        tasks, arms: in the order of the tables.
        comparison: the config's section `comparison`.
        seed: of the bootstrap.
    """
    warnings = check_learning(tables["runs"], tables["epochs"], reference_arm)
    margins = dict.fromkeys(tasks, comparison["margin"]) | dict(comparison["task_margins"])
    table = decide(tables["cases"], reference_arm, tasks, arms, margins, seed, warnings)
    table = with_costs(table, tables["comparison"])
    further = [needed(row, tables["runs"]) for _, row in table.iterrows()]
    columns = [f"needed_{name}" for name in NEEDED]
    table = table.join(pd.DataFrame(further, columns=columns, index=table.index))
    ranks = rank_arms(tables["cases"], tasks, arms, seed, warnings)
    return table, ranks


if __name__ == "__main__":
    redirect(snakemake.log[0])
    chosen = snakemake.params.comparison
    read = {name: read_csv(snakemake.input[name]) for name in ("runs", "cases", "epochs")}
    read["comparison"] = read_csv(snakemake.input.comparison)
    verdicts, stability = decide_arms(
        read,
        reference_arm=snakemake.params.reference_arm,
        tasks=list(snakemake.params.tasks),
        arms=list(snakemake.params.arms),
        comparison=chosen,
        seed=snakemake.params.seed,
    )
    verdicts.to_csv(snakemake.output.csv, index=False)
    stability.to_csv(snakemake.output.ranks, index=False)
    text = to_markdown(verdicts, read["runs"], snakemake.params.reference_arm, chosen["cost"])
    Path(snakemake.output.md).write_text(text, encoding="utf-8")
    Path(snakemake.output.ranks_md).write_text(ranks_markdown(stability), encoding="utf-8")
