"""Tabulate trials, result and cost of a search, and write the arm that uses the result."""

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from workflow_scripts.common.console import redirect
from workflow_scripts.common.files import read_json, write_csv
from workflow_scripts.common.formatting import (
    COMPUTATION,
    ENERGY,
    TIME,
    bullets,
    in_unit,
    number,
    pipe_table,
    unit,
)
from workflow_scripts.study.curriculum_search import trial_arm, trial_name

COLUMNS = [
    "task",
    "part",
    "trial",
    "chosen",
    "dice",
    "iterations",
    "training_gflop",
    "seconds",
    "kwh",
    "kg_co2eq",
]


def search_table(searches: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Return one row per part and trial, with the columns `COLUMNS`.

    A part's trial that keeps all frequencies is the previous part's winner, so a run may appear
    twice.
    """
    rows = [
        {"task": task, **row} for task, content in searches.items() for row in content["trials"]
    ]
    return pd.DataFrame(rows)[COLUMNS]


def found_arms(
    searches: Mapping[str, Mapping[str, Any]], config: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Return, by task, the arm that trains with the schedule that the search found."""
    arms = {}
    for task, content in searches.items():
        trial = trial_name([*map(Fraction, content["decided"]), Fraction(1)])
        arm = trial_arm(trial, config)
        arms[task] = {"trainer": arm["trainer"], "parameters": arm["parameters"]}
    return arms


def to_markdown(table: pd.DataFrame, searches: Mapping[str, Mapping[str, Any]], fold: int) -> str:
    """Return a page with the trials, result and cost of the search for each task."""
    blocks = ["# Search for a schedule of frequencies"]
    for task, rows in table.groupby("task", sort=False):
        runs = rows.drop_duplicates("trial")
        printed = pd.DataFrame(
            {
                "part": rows["part"].astype(str),
                "kept, part by part": rows["trial"].map(_readable),
                "Dice": rows["dice"].map("{:.3f}".format),
                "steps": rows["iterations"].astype(str),
                **_in_unit("training", rows["training_gflop"], COMPUTATION),
                **_in_unit("time", rows["seconds"], TIME),
                **_in_unit("energy", rows["kwh"], ENERGY),
                "chosen": rows["chosen"].map({True: "yes", False: ""}),
            }
        )
        kept = ", ".join([*searches[str(task)]["decided"], "1"])
        costs = {"seconds": TIME, "kwh": ENERGY}
        total = " and ".join(
            in_unit(runs[name].sum(skipna=False), choices) for name, choices in costs.items()
        )
        blocks += [
            f"## {task}",
            f"Found: **{kept}** of the frequencies.",
            pipe_table(printed),
            f"The search took {len(runs)} trainings, {total}.",
        ]
    notes = [
        "All trials take the same computation; those with fewer frequencies take more steps.",
        f"The validation cases of fold {fold} decided the schedule: evaluate it on other folds.",
        "Each trial was trained once, with one seed. If Dice values are close, another seed may "
        "give another schedule.",
    ]
    return "\n\n".join([*blocks, bullets(notes)]) + "\n"


def _readable(trial: str) -> str:
    return ", ".join(trial.split("_")[1:]).replace("of", "/")


def _in_unit(what: str, values: pd.Series, choices: Any) -> dict[str, list[str]]:
    name, factor = unit(values, choices)
    return {f"{what} ({name})": [number(value * factor) for value in values]}


if __name__ == "__main__":
    redirect(snakemake.log[0])

    tasks, config = snakemake.params.tasks, snakemake.params.config
    searches = {
        task: read_json(Path(path)) for task, path in zip(tasks, snakemake.input.parts, strict=True)
    }
    table = search_table(searches)
    write_csv(table, Path(snakemake.output.csv))
    page = to_markdown(table, searches, config["search"]["fold"])
    Path(snakemake.output.md).write_text(page, encoding="utf-8")
    arms = yaml.safe_dump(found_arms(searches, config), sort_keys=False)
    Path(snakemake.output.arms).write_text(arms, encoding="utf-8")
