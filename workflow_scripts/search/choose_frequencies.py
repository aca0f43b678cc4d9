"""Choose the frequencies for a part of the schedule, and list the trials of the next part."""

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import pandas as pd

from workflow_scripts.common.console import redirect
from workflow_scripts.common.errors import UserError
from workflow_scripts.common.files import read_json, write_json
from workflow_scripts.study.curriculum_search import next_trials, trial_arm, trial_parts
from workflow_scripts.trainers.curricula.schedules.frequency_stages import plan_bands
from workflow_scripts.trainers.curricula.schedules.patch_plan import PatchPlan
from workflow_scripts.trainers.curricula.schedules.settings import CurriculumSettings


def distinct_trials(trials: Sequence[str], config: Mapping[str, Any], plan: PatchPlan) -> list[str]:
    """Drop trials with the same patch sizes as one that keeps more frequencies.

    Sizes are rounded to those that the network can pool, so similar candidates may coincide.
    """
    found: dict[tuple, str] = {}
    for trial in trials:
        settings = CurriculumSettings(**trial_arm(trial, config)["parameters"])
        sizes = tuple(stage.patch_size for stage in plan_bands(plan, settings, replay=False))
        found.pop(sizes, None)
        found[sizes] = trial
    return list(found.values())


def read_trial(record_file: Path, part: int) -> dict[str, Any]:
    """Return a trial's row of the table from the files of its run.

    `seconds`, `kwh` and `kg_co2eq` are those of the whole run. Raises UserError if Dice is unknown.
    """
    record = read_json(record_file, "train this trial again")
    dice = record["dice_foreground_mean"]
    if dice is None or math.isnan(dice):
        raise UserError(f"{record_file} has no Dice: no validation case has foreground")
    epochs = pd.read_csv(record_file.with_name("epochs.csv"))
    return {
        "part": part,
        "trial": record["arm"],
        "parts": [str(fraction) for fraction in trial_parts(record["arm"])],
        "dice": dice,
        "iterations": int(epochs["iterations"].sum()),
        "training_gflop": record["training_gflop"],
        "seconds": record["total_seconds"],
        "kwh": record["total_kwh"],
        "kg_co2eq": record["total_kg_co2eq"],
    }


def choose(rows: Sequence[Mapping[str, Any]], part: int) -> tuple[str, Fraction]:
    """Return the trial with the best Dice, and its fraction of frequencies in this part (from 1).

    On a tie, the trial with more frequencies wins, because it has fewer steps.
    """
    best = max(rows, key=lambda row: (row["dice"], Fraction(row["parts"][part - 1])))
    return best["trial"], Fraction(best["parts"][part - 1])


def choose_frequencies(
    config: Mapping[str, Any], plan: PatchPlan, previous: Path | None, records: Sequence[Path]
) -> dict[str, Any]:
    """Return the frequencies decided so far, all trials so far, and the trials of the next part.

    Args:
        config: config of the study; `search` and `training.epochs` are used.
        plan: patch plan of the task.
        previous: this function's result for the previous part; None for the first call.
        records: `run.json` of each trial of the part to decide.
    """
    if previous is None:
        decided: list[Fraction] = []
        rows: list[dict[str, Any]] = []
    else:
        before = read_json(previous, f"delete {previous.parent} to search again")
        part = len(before["decided"]) + 1
        tried = [read_trial(path, part) for path in records]
        trial, fraction = choose(tried, part)
        rows = before["trials"] + [row | {"chosen": row["trial"] == trial} for row in tried]
        decided = [*map(Fraction, before["decided"]), fraction]
    following = distinct_trials(next_trials(config["search"], decided), config, plan)
    return {
        "decided": [str(fraction) for fraction in decided],
        "trials": rows,
        "next": following,
    }


if __name__ == "__main__":
    redirect(snakemake.log[0])

    chosen = read_json(Path(snakemake.input.plans))["configurations"]
    chosen = chosen[snakemake.params.configuration]
    strides = chosen["architecture"]["arch_kwargs"]["strides"]
    previous = snakemake.input.get("previous")
    write_json(
        choose_frequencies(
            snakemake.params.config,
            PatchPlan.from_strides(chosen["patch_size"], strides, chosen["batch_size"]),
            Path(previous) if previous else None,
            [Path(path) for path in snakemake.input.get("runs", [])],
        ),
        Path(snakemake.output.part),
    )
