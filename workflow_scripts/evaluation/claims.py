"""Compare published claims with the results of a study, and reach a verdict if possible."""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from jsonschema import Draft202012Validator

from workflow_scripts.common.errors import UserError
from workflow_scripts.common.paired_statistics import LEVEL
from workflow_scripts.evaluation.claim_quantities import (
    COST_RATIOS,
    FEWEST_TASKS,
    OVER_SEEDS,
    TARGET_RATIOS,
    Estimate,
    estimate,
)
from workflow_scripts.evaluation.time_to_target import cost_until
from workflow_scripts.records.run_reader import RunKey

SUPPORTED, CONTRADICTED = "supported", "contradicted"
UNDECIDED = "not decided"
"""The study has all that the claim asks for, but the uncertainty allows both."""
INSUFFICIENT = "not enough evidence"
"""The study lacks conditions of the claim."""
TARGET_LEVEL = 0.99
"""Share of the reference's final pseudo Dice. At 100 %, noise in its last epochs would decide."""
MEASURED_COSTS = {*COST_RATIOS, *TARGET_RATIOS} - {"flop_ratio"}
"""Quantities that can only be compared on the same machine."""
HARDWARE = ["device", "precision", "threads", "cpu_model", "gpu_model"]
Trainings = Mapping[RunKey, pd.DataFrame]
"""`time_to_target.progress` of each run."""


@dataclass(frozen=True)
class Quantity:
    """A published number; see the schema."""

    quantity: str
    published: float
    direction: str
    margin: float


@dataclass(frozen=True)
class Claim:
    """A published claim about one arm; see the schema."""

    id: str
    statement: str
    source: str
    arm: str
    reference: str
    data_sets: int
    tasks: tuple[str, ...]
    quantities: tuple[Quantity, ...]
    own: tuple[str, ...] = ()
    subset: tuple[str, ...] = ()
    iterations_of_arm: int | None = None
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Conditions:
    """How the published results were trained; a verdict requires the same."""

    iterations: int
    plans: str
    configuration: str
    folds: int


@dataclass(frozen=True)
class PublishedClaims:
    """Content of claims.yaml: conditions of a verdict, trainer class of each arm, claims."""

    conditions: Conditions
    arms: dict[str, str]
    claims: tuple[Claim, ...]


@dataclass(frozen=True)
class Evidence:
    """What a study has about a claim.

    Attributes:
        claim: the claim.
        tasks, subset: tasks that the claim names; its data sets outside MSD are the study's own
            tasks with them, as far as it has any.
        absent: the claim's other data sets outside MSD.
        runs: runs.csv.
        pairs: `pair_runs`, with `add_targets` if that is known.
    """

    claim: Claim
    tasks: tuple[str, ...]
    subset: tuple[str, ...]
    absent: tuple[str, ...]
    runs: pd.DataFrame
    pairs: pd.DataFrame

    @property
    def outside(self) -> int:
        """Number of the claim's data sets that the study cannot have."""
        return self.claim.data_sets - len(self.tasks)


@dataclass(frozen=True)
class Finding:
    """A claim with its results: an estimate of each of its quantities, and the verdict."""

    claim: Claim
    estimates: list[Estimate]
    tasks: list[str]
    folds: list[int]
    seeds: list[int]
    cases: int
    iterations: list[int]
    missing: list[str]
    verdict: str


def read_claims(path: Path, schema_path: Path) -> PublishedClaims:
    """Read claims.yaml. A claim about several arms becomes one claim for each.

    Raises UserError with the first key that violates the closed schema.
    """
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    schema = yaml.safe_load(schema_path.read_text(encoding="utf-8"))
    for error in Draft202012Validator(schema).iter_errors(content):
        raise UserError(f"{path}: {error.json_path}: {error.message}")
    arms = content["arms"]
    claims = tuple(
        _claim(fields | {"arm": arm})
        for fields in content["claims"]
        for arm in (fields["arm"] if isinstance(fields["arm"], list) else [fields["arm"]])
    )
    for claim in claims:
        for role, arm in (("arm", claim.arm), ("reference", claim.reference)):
            if arm not in arms:
                raise UserError(f"{path}: {claim.id}: {role} {arm} is not among the arms")
        named = [*claim.tasks, *claim.own]
        if unknown := set(claim.subset) - set(named):
            raise UserError(
                f"{path}: {claim.id}: unknown tasks in subset: {', '.join(sorted(unknown))}"
            )
        if claim.data_sets < len(named):
            raise UserError(f"{path}: {claim.id}: fewer data_sets than tasks")
    return PublishedClaims(Conditions(**content["conditions"]), arms, claims)


def _claim(fields: Mapping[str, Any]) -> Claim:
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()
    }
    return Claim(
        **{**values, "quantities": tuple(Quantity(**each) for each in fields["quantities"])}
    )


def runs_of(runs: pd.DataFrame, trainer: str) -> pd.DataFrame:
    """Return the rows of runs.csv of an unmodified trainer class, with the number of iterations.

    If several arms use this class, only the longest training of each task and fold is returned.
    The shorter ones are references for arms with less computation.
    """
    chosen = runs[(runs["trainer"] == trainer) & (runs["parameters"] == "{}")]
    chosen = chosen.assign(iterations=chosen["epochs"] * chosen["iterations_per_epoch"])
    longest = chosen.groupby(["task", "fold"])["iterations"].transform("max")
    return chosen[chosen["iterations"] == longest]


def departures(rows: pd.DataFrame, conditions: Conditions) -> list[str]:
    """Return how runs differ from the published training; empty if they do not."""
    keys = ("iterations", "plans", "configuration")
    wanted = {key: getattr(conditions, key) for key in keys if key in rows}
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


def pair_runs(
    runs: pd.DataFrame, claim: Claim, arms: Mapping[str, str], tasks: Collection[str]
) -> pd.DataFrame:
    """Return pairs of runs of both arms on the same task and fold.

    Columns are `*_arm` and `*_reference`. Only the claim's `tasks` are included, or all tasks if
    the study has none of them, so that there is something to show.
    """
    keys = ["task", "fold", "seed"]
    pairs = runs_of(runs, arms[claim.arm]).merge(
        runs_of(runs, arms[claim.reference]), on=keys, suffixes=("_arm", "_reference")
    )
    claimed = pairs[pairs["task"].isin(tasks)]
    return pairs if claimed.empty else claimed


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


def gather(
    runs: pd.DataFrame,
    claim: Claim,
    published: PublishedClaims,
    own: Mapping[str, str],
    trainings: Trainings | None,
) -> Evidence:
    """Return what a study has about a claim; the arguments are those of `find`."""
    trained = set(runs["task"])
    names = {name: task for name, task in own.items() if name in claim.own and task in trained}
    tasks = (*claim.tasks, *names.values())
    pairs = pair_runs(runs, claim, published.arms, tasks)
    if trainings and {quantity.quantity for quantity in claim.quantities} & set(TARGET_RATIOS):
        pairs = add_targets(pairs, trainings)
    return Evidence(
        claim=claim,
        tasks=tasks,
        subset=tuple(names.get(name, name) for name in claim.subset),
        absent=tuple(name for name in claim.own if name not in names),
        runs=runs,
        pairs=pairs,
    )


def missing_arm(runs: pd.DataFrame, arm: str, trainer: str) -> str | None:
    """Return what the study lacks of an arm; None if it has been trained unmodified."""
    if not runs_of(runs, trainer).empty:
        return None
    own = runs.loc[runs["trainer"] == trainer, "parameters"]
    if own.empty:
        return f"the arm {arm}"
    names = sorted({name for text in own for name in json.loads(text)})
    return f"the arm {arm} with its default parameters (here with its own {', '.join(names)})"


def shortcomings(
    evidence: Evidence, published: PublishedClaims, estimates: Sequence[Estimate]
) -> list[str]:
    """Return a description of what the study lacks to decide a claim; empty if nothing."""
    claim, pairs, conditions = evidence.claim, evidence.pairs, published.conditions
    arms = [
        missing_arm(evidence.runs, arm, published.arms[arm]) for arm in (claim.reference, claim.arm)
    ]
    missing = [arm for arm in arms if arm]
    absent = [task for task in evidence.tasks if task not in set(pairs["task"])]
    if absent:
        names = f": {', '.join(absent)}" if len(absent) < 4 else ""
        missing.append(f"{len(absent)} of its {len(evidence.tasks)} tasks{names}")
    if pairs.empty:
        return missing
    fewest = pairs.groupby("task")["fold"].nunique().min()
    if fewest < conditions.folds:
        missing.append(f"{conditions.folds} folds per task (here {fewest})")
    sides = [
        pairs.rename(columns=lambda name, side=side: name.removesuffix(side))
        for side in ("_arm", "_reference")
    ]
    keys = ["iterations", "plans", "configuration"]
    own = replace(conditions, iterations=claim.iterations_of_arm or conditions.iterations)
    for side, wanted in zip(sides, (own, conditions), strict=True):
        missing += departures(side[keys], wanted)
    missing = list(dict.fromkeys(missing))
    asked = [quantity.quantity for quantity in claim.quantities]
    machines = [side[HARDWARE].astype(object).fillna("") for side in sides]  # NaN: no GPU
    if set(asked) & MEASURED_COSTS and not machines[0].equals(machines[1]):
        missing.append("both arms on the same hardware")
    unknown = {name for name, each in zip(asked, estimates, strict=True) if math.isnan(each.value)}
    seeds = pairs.groupby(["task", "fold"])["seed"].agg(frozenset)
    if set(asked) & OVER_SEEDS and (few := seeds.map(len).min()) < 2:
        missing.append(f"several seeds of each fold (here {few})")
        unknown.discard("variance_ratio")
    elif seeds.nunique() > 1:
        missing.append("the same seeds of every fold")
    if "gain_p" in unknown and pairs["task"].nunique() < FEWEST_TASKS:
        missing.append(f"{FEWEST_TASKS} tasks for a test")
        unknown.remove("gain_p")
    if unknown:
        missing.append("the Dice and cost of every run")
    return [*missing, *claim.needs]


def holds(quantity: Quantity, estimate: Estimate, outside: int) -> bool | None:
    """Return whether a quantity is as published; None if it is not decided.

    It is decided if its interval lies on one side of the published number and its margin, and if
    the `outside` data sets that the study does not have cannot change that.
    """
    if math.isnan(estimate.low) or (outside and quantity.quantity != "tasks_better"):
        return None
    lowest, highest = estimate.low, estimate.high + outside
    if quantity.direction == "at_least":
        bound = quantity.published - quantity.margin
        possible = (lowest >= bound, highest >= bound)
    else:
        bound = quantity.published + quantity.margin
        possible = (lowest <= bound, highest <= bound)
    return possible[0] if possible[0] == possible[1] else None


def reach_verdict(outcomes: Sequence[bool | None]) -> str:
    """Return the verdict on a claim whose conditions are met from what `holds`."""
    if False in outcomes:
        return CONTRADICTED
    return SUPPORTED if all(outcomes) else UNDECIDED


def find(
    runs: pd.DataFrame,
    claim: Claim,
    published: PublishedClaims,
    own: Mapping[str, str] | None = None,
    trainings: Trainings | None = None,
) -> Finding:
    """Return the finding about a claim in runs.csv.

    The intervals of its quantities have a joint level of 95 % (Bonferroni), so a verdict is wrong
    in at most 5 % of studies. `own` maps data sets outside MSD to the study's own tasks. Without
    `trainings`, quantities of `TARGET_RATIOS` are unknown.
    """
    evidence = gather(runs, claim, published, own or {}, trainings)
    pairs, outside = evidence.pairs, evidence.outside
    level = LEVEL / len(claim.quantities)
    estimates = [
        estimate(quantity.quantity, pairs, evidence.subset, level) for quantity in claim.quantities
    ]
    missing = shortcomings(evidence, published, estimates)
    verdict = reach_verdict(
        [
            holds(quantity, each, outside)
            for quantity, each in zip(claim.quantities, estimates, strict=True)
        ]
    )
    if outside and (missing or verdict == UNDECIDED):
        missing.append(
            f"{outside} of its {claim.data_sets} data sets: {', '.join(evidence.absent)}"
        )
    return Finding(
        claim=claim,
        estimates=estimates,
        tasks=list(pairs["task"].unique()),
        folds=sorted(pairs["fold"].unique().tolist()),
        seeds=sorted(pairs["seed"].unique().tolist()),
        cases=int(pairs.drop_duplicates(["task", "fold"])["cases_arm"].sum()),
        iterations=sorted({*pairs["iterations_arm"], *pairs["iterations_reference"]}),
        missing=missing,
        verdict=INSUFFICIENT if missing else verdict,
    )
