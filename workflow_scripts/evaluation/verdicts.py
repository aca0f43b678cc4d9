"""Is Dice kept? A verdict for each arm and task, and over tasks, from the interval of its change.

The interval (`paired_statistics.interval_over_seeds`) refers to new seeds and new cases. Student's
t over the seeds' means stands beside it: it needs no model, but refers to these cases only.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import t

from workflow_scripts.common.paired_statistics import (
    FEWEST,
    LEVEL,
    Component,
    half_width,
    interval,
    variance_of_mean,
)
from workflow_scripts.records.run_reader import KEYS, OVERALL

BETTER, KEPT, WORSE, LOST, UNDECIDED = "better", "kept", "worse", "lost", "undecided"
NO_VERDICT = "none"
"""A network has not learned, so its Dice says nothing about the arm; `warning` says which."""
ONE_SEED = "one seed"
FEW_CASES = f"fewer than {FEWEST} cases"
COLUMNS = [
    *("task", "arm", "reference_arm", "margin", "verdict", "reason", "warning"),
    *("difference", "ci_low", "ci_high", "covers_seeds", "t_low", "t_high", "joint", "given_seeds"),
    *("folds", "seeds", "cases", "variance_cases", "variance_seeds"),
]


def verdict(low: float, high: float, margin: float) -> str:
    """Return the verdict on an arm from the interval of its change in Dice.

    *better*: the whole interval is above 0. *kept*: above -`margin`, so the arm is not inferior
    (Piaggio et al., JAMA 308, 2012, 2594-2604). *lost*: below -`margin`. *worse*: below 0, but on
    both sides of -`margin`. Otherwise, or without an interval: *undecided*.
    """
    if math.isnan(low) or math.isnan(high):
        return UNDECIDED
    if low > 0:
        return BETTER
    if low > -margin:
        return KEPT
    if high < -margin:
        return LOST
    return WORSE if high < 0 else UNDECIDED


class Change(NamedTuple):
    """An arm's Dice minus the reference arm's.

    Attributes:
        mean: over seeds, then cases.
        components: parts of its variance; the cases' part alone with one seed.
        of_seeds: its mean over cases by seed.
        cases: cases of one seed.
        low, high: its 95 % interval, NaN for fewer than `FEWEST` cases.
    """

    mean: float
    components: Sequence[Component]
    of_seeds: NDArray[np.float64]
    cases: int
    low: float
    high: float

    @property
    def seeds(self) -> int:
        """Number of seeds."""
        return len(self.of_seeds)

    def interval(self, level: float) -> tuple[float, float]:
        """Return the interval of confidence 1 - `level` (over cases alone with one seed)."""
        half = half_width(self.components, level)
        return self.mean - half, self.mean + half

    def students(self) -> tuple[float, float]:
        """Return the 95 % interval of Student's t over the seeds' means; NaN with one seed."""
        if self.seeds < 2:
            return math.nan, math.nan
        error = self.of_seeds.std(ddof=1) / math.sqrt(self.seeds)
        half = float(t.isf(LEVEL / 2, self.seeds - 1) * error)
        return self.mean - half, self.mean + half


def change(differences: NDArray[np.float64], seed: int) -> Change:
    """Return the change on one task.

    Args:
        differences: one row per case, one column per seed; NaN are ignored.
        seed: of the bootstrap over cases, with which one seed must do.
    """
    rows = differences[~np.isnan(differences).all(axis=1)]
    rows = rows[:, ~np.isnan(rows).all(axis=0)]
    if not rows.size:
        return Change(math.nan, [], np.empty(0), 0, math.nan, math.nan)
    mean = float(np.nanmean(rows, axis=1).mean())
    components = variance_of_mean(rows)
    low = high = math.nan
    if len(rows) >= FEWEST:
        half = half_width(components)
        several = rows.shape[1] > 1
        low, high = (mean - half, mean + half) if several else interval(rows[:, 0], seed)
    return Change(mean, components, np.nanmean(rows, axis=0), len(rows), low, high)


def mean_change(changes: Sequence[Change]) -> Change:
    """Return the change of the mean over tasks.

    The cases of different tasks are independent, so their variances add up, with Satterthwaite's
    degrees of freedom. A seed is one draw for all tasks, as in the claims about Dice. Tasks with
    different seeds have no interval.
    """
    count = len(changes)
    mean = float(np.mean([one.mean for one in changes]))
    cases = sum(one.cases for one in changes)
    seeds = {one.seeds for one in changes}
    unknown = Change(mean, [Component(math.nan, 0)], np.empty(0), cases, math.nan, math.nan)
    if len(seeds) != 1 or any(math.isnan(one.low) for one in changes):
        return unknown._replace(of_seeds=np.full(max(seeds, default=0), math.nan))
    of_cases = [one.components[0] for one in changes]
    total = sum(part.variance for part in of_cases) / count**2
    weights = sum((part.variance / count**2) ** 2 / part.freedom for part in of_cases)
    components = [Component(total, total**2 / weights if weights else count)]
    of_seeds = np.mean([one.of_seeds for one in changes], axis=0)
    if len(of_seeds) > 1:
        variance = float(of_seeds.var(ddof=1)) / len(of_seeds)
        components.append(Component(variance, len(of_seeds) - 1))
    half = half_width(components)
    return Change(mean, components, of_seeds, cases, mean - half, mean + half)


def decide(
    cases: pd.DataFrame,
    reference_arm: str,
    tasks: Sequence[str],
    arms: Sequence[str],
    margins: Mapping[str, float],
    seed: int,
    warnings: Mapping[tuple[str, str], str] | None = None,
) -> pd.DataFrame:
    """Return one row per task (and `overall`, with several tasks) and arm (columns `COLUMNS`).

    Each verdict follows from its own 95 % interval. `joint` is the one that follows from the
    intervals of all arms of the task jointly (Bonferroni): a reader who picks the best of many arms
    needs it. With one seed, the spread between seeds is unknown, so the verdict is *undecided*;
    `given_seeds` is what the interval over cases would say about these trainings.

    Args:
        cases: cases.csv.
        reference_arm: the arm that the others are compared with.
        tasks: all tasks, in the order of the table.
        arms: all arms, in the order of the table.
        margins: accepted loss of Dice of each task.
        seed: of the bootstrap.
        warnings: (task, arm) -> why there is no verdict; an arm of all its task's is the reference.
    """
    warnings = warnings or {}
    dice = cases.groupby([*KEYS, "case"])["dice"].mean().unstack("arm")
    others = [arm for arm in arms if arm != reference_arm]
    rows: list[dict[str, Any]] = []
    for arm in others:
        changes = {}
        for task in tasks:
            of_task = dice.loc[task]
            table = (of_task[arm] - of_task[reference_arm]).unstack("seed")
            changes[task] = change(table.to_numpy(float), seed)
            folds = table.index.unique("fold").size
            texts = (warnings.get((task, name), "") for name in (reference_arm, arm))
            warning = "; ".join(filter(None, texts))
            about = {"task": task, "arm": arm, "margin": margins[task], "folds": folds}
            rows.append(about | _row(changes[task], margins[task], warning, len(others)))
        if len(tasks) > 1:
            warned = [row for row in rows if row["arm"] == arm and row["warning"]]
            warning = ", ".join(f"on {row['task']} {row['warning']}" for row in warned[:1])
            if len(warned) > 1:
                warning += f", and likewise on {len(warned) - 1} of the other tasks"
            margin = float(np.mean([margins[task] for task in tasks]))
            most = max(row["folds"] for row in rows)
            about = {"task": OVERALL, "arm": arm, "margin": margin, "folds": most}
            whole = mean_change(list(changes.values()))
            rows.append(about | _row(whole, margin, warning, len(others)))
    table = pd.DataFrame(rows, columns=COLUMNS).assign(reference_arm=reference_arm)
    order = {task: place for place, task in enumerate([*tasks, OVERALL])}
    return table.sort_values("task", key=lambda names: names.map(order), kind="stable").reset_index(
        drop=True
    )


def _row(found: Change, margin: float, warning: str, comparisons: int) -> dict[str, Any]:
    given = verdict(found.low, found.high, margin)
    joint = verdict(*found.interval(LEVEL / comparisons), margin) if found.seeds > 1 else UNDECIDED
    reason = ""
    if math.isnan(found.low):
        reason = FEW_CASES
    elif found.seeds < 2:
        reason = ONE_SEED
    if reason:
        joint = UNDECIDED
    result = NO_VERDICT if warning else UNDECIDED if reason else given
    t_low, t_high = found.students()
    variances = [part.variance for part in found.components]
    return {
        "verdict": result,
        "reason": "" if warning else reason,
        "warning": warning,
        "difference": found.mean,
        "ci_low": found.low,
        "ci_high": found.high,
        "covers_seeds": found.seeds > 1,
        "t_low": t_low,
        "t_high": t_high,
        "joint": NO_VERDICT if warning else joint,
        "given_seeds": given,
        "seeds": found.seeds,
        "cases": found.cases,
        "variance_cases": variances[0] if variances else math.nan,
        "variance_seeds": variances[1] if len(variances) > 1 else math.nan,
    }
