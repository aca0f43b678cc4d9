"""Compare published claims with the results of a study, and reach a verdict if possible."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from jsonschema import Draft202012Validator
from scipy.stats import wilcoxon

from workflow_scripts.common.errors import UserError
from workflow_scripts.evaluation.time_to_target import cost_until
from workflow_scripts.records.run_reader import RunKey, mean_of_all

SUPPORTED, CONTRADICTED, UNDECIDED = "supported", "contradicted", "not enough evidence"
FEWEST_TASKS = 6
"""With fewer pairs, Wilcoxon's signed-rank test cannot give a p-value below 0.05."""
COST_RATIOS = {
    "time_ratio": "training_seconds",
    "co2_ratio": "training_kg_co2eq",
    "flop_ratio": "training_gflop",
}
"""Quantities that compare the cost of whole trainings, with their columns of runs.csv."""
TARGET_RATIOS = {"time_to_target": "seconds", "energy_to_target": "kwh"}
"""Quantities that compare the cost to reach `TARGET_LEVEL`, with the columns of `progress`."""
TARGET_LEVEL = 0.99
"""Share of the reference's final pseudo Dice. At 100 %, noise in its last epochs would decide."""
MEASURED_COSTS = {"time_ratio", "co2_ratio", *TARGET_RATIOS}
"""Quantities that can only be compared on the same machine."""
HARDWARE = ["device", "precision", "threads", "cpu_model", "gpu_model"]
Trainings = Mapping[RunKey, pd.DataFrame]
"""`time_to_target.progress` of each run."""


@dataclass(frozen=True)
class Finding:
    """A claim with its results; `values` contains a number (or NaN) for each of its quantities."""

    claim: dict[str, Any]
    values: list[float]
    tasks: list[str]
    folds: list[int]
    seeds: list[int]
    cases: int
    iterations: list[int]
    missing: list[str]
    verdict: str


def read_claims(path: Path, schema_path: Path) -> dict[str, Any]:
    """Read claims.yaml and split claims about several arms into one claim per arm.

    Raises UserError with the first key that violates the closed schema.
    """
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    schema = yaml.safe_load(schema_path.read_text(encoding="utf-8"))
    for error in Draft202012Validator(schema).iter_errors(content):
        raise UserError(f"{path}: {error.json_path}: {error.message}")
    content["claims"] = [
        {**claim, "arm": arm}
        for claim in content["claims"]
        for arm in (claim["arm"] if isinstance(claim["arm"], list) else [claim["arm"]])
    ]
    for claim in content["claims"]:
        for role in ("arm", "reference"):
            if claim[role] not in content["arms"]:
                raise UserError(
                    f"{path}: {claim['id']}: {role} {claim[role]} is not among the arms"
                )
        named = [*claim["tasks"], *claim.get("own", [])]
        if unknown := set(claim.get("subset", [])) - set(named):
            raise UserError(
                f"{path}: {claim['id']}: unknown tasks in subset: {', '.join(sorted(unknown))}"
            )
        if claim["data_sets"] < len(named):
            raise UserError(f"{path}: {claim['id']}: fewer data_sets than tasks")
    return content


def runs_of(runs: pd.DataFrame, trainer: str) -> pd.DataFrame:
    """Return the rows of runs.csv of an unmodified trainer class, with the number of iterations.

    If several arms use this class, only the longest training of each task and fold is returned.
    The shorter ones are references for arms with less computation.
    """
    chosen = runs[(runs["trainer"] == trainer) & (runs["parameters"] == "{}")]
    chosen = chosen.assign(iterations=chosen["epochs"] * chosen["iterations_per_epoch"])
    longest = chosen.groupby(["task", "fold"])["iterations"].transform("max")
    return chosen[chosen["iterations"] == longest]


def departures(rows: pd.DataFrame, conditions: dict[str, Any]) -> list[str]:
    """Return how runs differ from the published training; empty if they do not."""
    keys = ("iterations", "plans", "configuration")
    wanted = {key: conditions[key] for key in keys if key in rows}
    words = {
        "iterations": "{:,} iterations per run",
        "plans": "the plans {}",
        "configuration": "{}",
    }
    found = []
    for key, value in wanted.items():
        others = sorted(set(rows[key]) - {value})
        if others:
            here = ", ".join(f"{other:,}" if key == "iterations" else other for other in others)
            found.append(f"{words[key].format(value)} (here {here})")
    return found


def pair_runs(runs: pd.DataFrame, claim: dict[str, Any], arms: dict[str, str]) -> pd.DataFrame:
    """Return pairs of runs of both arms on the same task and fold.

    Columns are `*_arm` and `*_reference`. Only the claim's tasks are included, or all tasks if the
    study has none of them, so that there is something to show.
    """
    keys = ["task", "fold", "seed"]
    pairs = runs_of(runs, arms[claim["arm"]]).merge(
        runs_of(runs, arms[claim["reference"]]), on=keys, suffixes=("_arm", "_reference")
    )
    claimed = pairs[pairs["task"].isin(claim["tasks"])]
    return pairs if claimed.empty else claimed


def measure(quantity: str, pairs: pd.DataFrame, subset: Collection[str] = ()) -> float:
    """Return a quantity of the schema from paired runs; NaN without runs or if a value is missing.

    `subset` lists the tasks that `subset_gain` compares with the others.
    """
    if quantity == "variance_ratio":
        return _variance_ratio(pairs)
    if quantity in TARGET_RATIOS:
        return _target_ratio(pairs, TARGET_RATIOS[quantity])
    if quantity in COST_RATIOS:
        sides = [f"{COST_RATIOS[quantity]}_{side}" for side in ("arm", "reference")]
        means = pairs.groupby("task")[sides].agg(mean_of_all)
        return mean_of_all(means[sides[0]] / means[sides[1]])
    if quantity == "subset_gain":
        inside = pairs["task"].isin(subset)
        return measure("dice_ratio", pairs[inside]) / measure("dice_ratio", pairs[~inside])
    sides = [f"dice_foreground_mean_{side}" for side in ("arm", "reference")]
    dice = pairs.groupby("task")[sides].agg(mean_of_all)
    dice.columns = pd.Index(["dice", "dice_reference"])
    if dice.empty or dice.isna().any(axis=None):
        return math.nan
    if quantity == "dice_ratio":
        return float(dice["dice"].mean() / dice["dice_reference"].mean())
    if quantity == "gain_p":
        if len(dice) < FEWEST_TASKS or (dice["dice"] == dice["dice_reference"]).all():
            return math.nan
        return float(wilcoxon(dice["dice"], dice["dice_reference"]).pvalue)
    return float((dice["dice"] > dice["dice_reference"]).sum())


def _variance_ratio(pairs: pd.DataFrame) -> float:
    """Return the ratio of the variances of Dice over the seeds of a fold; NaN with one seed."""
    variances = [
        pairs.groupby(["task", "fold"])[f"dice_foreground_mean_{side}"].var().mean()
        for side in ("arm", "reference")
    ]
    return float(variances[0] / variances[1]) if variances[1] else math.nan


def _target_ratio(pairs: pd.DataFrame, cost: str) -> float:
    """Return the ratio of a cost to reach the target; NaN if unknown.

    It is the median over pairs, then over tasks.
    """
    if f"{cost}_to_target_arm" not in pairs:
        return math.nan
    ratios = pairs[f"{cost}_to_target_arm"] / pairs[f"{cost}_to_target_reference"]
    by_task = ratios.groupby(pairs["task"]).median()
    return math.nan if ratios.isna().any() else float(by_task.median())


def add_targets(pairs: pd.DataFrame, trainings: Trainings) -> pd.DataFrame:
    """Return `pairs` with the cost of each run to reach `TARGET_LEVEL` and stay there.

    Adds `*_to_target_arm` and `*_to_target_reference` for each cost of `TARGET_RATIOS` (seconds,
    kWh). A run that ends below the target has an infinite cost.
    """
    rows = []
    for pair in pairs.itertuples():
        both = {
            side: trainings[pair.task, arm, pair.fold, pair.seed]
            for side, arm in (("arm", pair.arm_arm), ("reference", pair.arm_reference))
        }
        target = TARGET_LEVEL * both["reference"]["dice"].iloc[-1]
        costs = {side: cost_until(training, target) for side, training in both.items()}
        rows.append(
            {
                f"{cost}_to_target_{side}": costs[side][cost]
                for cost in TARGET_RATIOS.values()
                for side in both
            }
        )
    return pairs.join(pd.DataFrame(rows, index=pairs.index))


def shortcomings(
    runs: pd.DataFrame, pairs: pd.DataFrame, claim: dict[str, Any], content: dict[str, Any]
) -> list[str]:
    """Return a description of what the study lacks to decide a claim; empty if nothing."""
    arms, conditions = content["arms"], content["conditions"]
    missing = [
        f"the arm {claim[role]}"
        for role in ("reference", "arm")
        if runs_of(runs, arms[claim[role]]).empty
    ]
    absent = [task for task in claim["tasks"] if task not in set(pairs["task"])]
    if absent:
        names = f": {', '.join(absent)}" if len(absent) < 4 else ""
        missing.append(f"{len(absent)} of its {len(claim['tasks'])} tasks{names}")
    if pairs.empty:
        return missing
    fewest = pairs.groupby("task")["fold"].nunique().min()
    if fewest < conditions["folds"]:
        missing.append(f"{conditions['folds']} folds per task (here {fewest})")
    sides = [
        pairs.rename(columns=lambda name, side=side: name.removesuffix(side))
        for side in ("_arm", "_reference")
    ]
    keys = ["iterations", "plans", "configuration"]
    own = {**conditions, "iterations": claim.get("iterations_of_arm", conditions["iterations"])}
    for side, wanted in zip(sides, (own, conditions), strict=True):
        missing += departures(side[keys], wanted)
    missing = list(dict.fromkeys(missing))
    quantities = {quantity["quantity"] for quantity in claim["quantities"]}
    machines = [side[HARDWARE].astype(object).fillna("") for side in sides]  # NaN: no GPU
    if quantities & MEASURED_COSTS and not machines[0].equals(machines[1]):
        missing.append("both arms on the same hardware")
    unknown = {q for q in quantities if math.isnan(measure(q, pairs, claim.get("subset", ())))}
    if "variance_ratio" in unknown and pairs.groupby(["task", "fold"])["seed"].nunique().max() < 2:
        missing.append("several seeds of each fold (here 1)")
        unknown.remove("variance_ratio")
    if "gain_p" in unknown and pairs["task"].nunique() < FEWEST_TASKS:
        missing.append(f"{FEWEST_TASKS} tasks for a test")
        unknown.remove("gain_p")
    if unknown:
        missing.append("the Dice and cost of every run")
    return [*missing, *claim.get("needs", [])]


def holds(quantity: dict[str, Any], value: float, outside: int) -> bool | None:
    """Return whether a quantity is as published; None if `outside` other data sets decide it."""
    if outside and quantity["quantity"] != "tasks_better":
        return None
    lowest, highest = value, value + outside
    if quantity["direction"] == "at_least":
        bound = quantity["published"] - quantity["margin"]
        possible = (lowest >= bound, highest >= bound)
    else:
        bound = quantity["published"] + quantity["margin"]
        possible = (lowest <= bound, highest <= bound)
    return possible[0] if possible[0] == possible[1] else None


def find(
    runs: pd.DataFrame,
    claim: dict[str, Any],
    content: dict[str, Any],
    own: Mapping[str, str] | None = None,
    trainings: Trainings | None = None,
) -> Finding:
    """Return the finding about a claim in runs.csv.

    `own` maps data sets outside MSD to the study's own tasks. Without `trainings`, quantities of
    `TARGET_RATIOS` are unknown.
    """
    elsewhere = {name: (own or {}).get(name) for name in claim.get("own", [])}
    absent = [name for name, task in elsewhere.items() if task not in set(runs["task"])]
    names = {name: task for name, task in elsewhere.items() if name not in absent}
    claim = {
        **claim,
        "tasks": [*claim["tasks"], *names.values()],
        "subset": [names.get(name, name) for name in claim.get("subset", [])],
    }
    pairs = pair_runs(runs, claim, content["arms"])
    if trainings and {quantity["quantity"] for quantity in claim["quantities"]} & set(
        TARGET_RATIOS
    ):
        pairs = add_targets(pairs, trainings)
    values = [
        measure(quantity["quantity"], pairs, claim["subset"]) for quantity in claim["quantities"]
    ]
    missing = shortcomings(runs, pairs, claim, content)
    outside = claim["data_sets"] - len(claim["tasks"])
    outcomes = [
        holds(quantity, value, outside)
        for quantity, value in zip(claim["quantities"], values, strict=True)
    ]
    verdict = UNDECIDED
    if not missing and False in outcomes:
        verdict = CONTRADICTED
    elif not missing and all(outcomes):
        verdict = SUPPORTED
    elif outside:
        missing = [
            *missing,
            f"{outside} of its {claim['data_sets']} data sets: {', '.join(absent)}",
        ]
    return Finding(
        claim=claim,
        values=values,
        tasks=list(pairs["task"].unique()),
        folds=sorted(pairs["fold"].unique().tolist()),
        seeds=sorted(pairs["seed"].unique().tolist()),
        cases=int(pairs.drop_duplicates(["task", "fold"])["cases_arm"].sum()),
        iterations=sorted({*pairs["iterations_arm"], *pairs["iterations_reference"]}),
        missing=missing,
        verdict=verdict,
    )
