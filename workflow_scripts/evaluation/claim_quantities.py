"""Quantities of published claims: what a study measured, with a confidence interval.

What a new sample would draw again depends on the quantity:

- Dice of these tasks (`dice_ratio`, `tasks_better`): new seeds and new cases. The tasks are those
  of the claim. A seed is one draw for all folds and tasks; folds stand for their cases.
- Costs (`COST_RATIOS`): trainings on the same machine. The tasks are those of the claim.
- Everything else (`TARGET_RATIOS`, `variance_ratio`, `subset_gain`, `gain_p`): tasks of this kind.
  Seeds and cases are part of what varies between tasks, and are assumed to do so independently.
"""

import math
from collections.abc import Collection
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import binom, wilcoxon

from workflow_scripts.common.paired_statistics import (
    LEVEL,
    Component,
    half_width,
    holm,
    p_value,
    variance_of_mean,
)
from workflow_scripts.records.run_reader import mean_of_all

FEWEST_TASKS = 6
"""With fewer pairs, Wilcoxon's signed-rank test cannot give a p-value below 0.05."""
COST_RATIOS = {
    "time_ratio": "training_seconds",
    "co2_ratio": "training_kg_co2eq",
    "flop_ratio": "training_gflop",
}
"""Quantities that compare the cost of whole trainings, with their columns of runs.csv."""
TARGET_RATIOS = {"time_to_target": "seconds", "energy_to_target": "kwh"}
"""Quantities that compare the cost to reach a target, with the columns of `progress`."""
OVER_SEEDS = {"dice_ratio", "tasks_better", "variance_ratio"}
"""Quantities whose uncertainty several seeds alone can show."""
SIDES = ("arm", "reference")


class Estimate(NamedTuple):
    """A measured value and both ends of its interval; NaN if unknown."""

    value: float
    low: float = math.nan
    high: float = math.nan


UNKNOWN = Estimate(math.nan)


def estimate(
    quantity: str, pairs: pd.DataFrame, subset: Collection[str] = (), level: float = LEVEL
) -> Estimate:
    """Return a quantity of the schema from paired runs, with its confidence interval (1 - `level`).

    The value is NaN without runs or if one is missing; the interval is also NaN if the study cannot
    tell (`OVER_SEEDS` with one seed, too few tasks, folds with different seeds).

    Args:
        quantity: its name in the schema.
        pairs: paired runs, as from `claims.pair_runs`.
        subset: the tasks that `subset_gain` compares with the others.
        level: error rate of the interval.
    """
    if quantity in TARGET_RATIOS:
        return _target_ratio(pairs, TARGET_RATIOS[quantity], level)
    column = COST_RATIOS.get(quantity, "dice_foreground_mean")
    tasks = pd.DataFrame(
        {side: pairs.groupby("task")[f"{column}_{side}"].agg(mean_of_all) for side in SIDES}
    )
    if tasks.empty or tasks.isna().any(axis=None):
        return UNKNOWN
    if quantity == "gain_p":
        return _gain_p(tasks)
    if quantity == "subset_gain":
        return _subset_gain(tasks, subset, level)
    arm, reference = (_trainings(pairs, f"{column}_{side}") for side in SIDES)
    if quantity == "variance_ratio":
        return _variance_ratio(arm, reference, level)
    if quantity in COST_RATIOS:
        return _mean_of_ratios(tasks, arm, reference, level)
    if quantity == "dice_ratio":
        return _ratio_of_means(tasks, arm, reference, level)
    if quantity == "tasks_better":
        return _tasks_better(tasks, arm - reference, level)
    raise ValueError(f"no estimate of the quantity {quantity}")


def _trainings(pairs: pd.DataFrame, column: str) -> pd.DataFrame:
    """Return a column with a row per task and fold, and a column per seed."""
    return pairs.groupby(["task", "fold", "seed"])[column].mean().unstack("seed")


def _of_task(table: pd.DataFrame) -> list[NDArray[np.float64]]:
    """Return the folds × seeds of each task."""
    tasks = table.index.get_level_values("task")
    first = np.flatnonzero(tasks[1:] != tasks[:-1]) + 1
    return np.split(table.to_numpy(float), first)


def _components(parts: pd.DataFrame) -> list[Component]:
    """Return the components of the variance of the sum over tasks of each task's mean in `parts`.

    The folds of different tasks are independent, so their variances add up, with Satterthwaite's
    degrees of freedom. A seed is one draw for all tasks. With one seed, there is only the former.
    """
    of_task = _of_task(parts)
    of_folds = [variance_of_mean(values)[0] for values in of_task]
    if not all(component.freedom for component in of_folds):  # a task with a single fold
        return [Component(math.nan, 0)]
    total = sum(component.variance for component in of_folds)
    weights = sum(c.variance**2 / c.freedom for c in of_folds if c.variance)
    components = [Component(total, total**2 / weights if weights else len(of_folds))]
    if parts.shape[1] > 1:
        sums = np.sum([values.mean(axis=0) for values in of_task], axis=0)
        components.append(Component(float(sums.var(ddof=1)) / len(sums), len(sums) - 1))
    return components


def _around(value: float, half: float) -> Estimate:
    return Estimate(value, value - half, value + half)


def _ratio_of_means(
    tasks: pd.DataFrame, arm: pd.DataFrame, reference: pd.DataFrame, level: float
) -> Estimate:
    """Return the ratio of the means over tasks; its variance is that of its linear part."""
    ratio = float(tasks["arm"].mean() / tasks["reference"].mean())
    parts = (arm - ratio * reference) / (tasks["reference"].mean() * len(tasks))
    if parts.shape[1] < 2 or parts.isna().any(axis=None):
        return Estimate(ratio)
    return _around(ratio, half_width(_components(parts), level))


def _mean_of_ratios(
    tasks: pd.DataFrame, arm: pd.DataFrame, reference: pd.DataFrame, level: float
) -> Estimate:
    """Return the mean over tasks of the ratios of means, and an interval as `_ratio_of_means`."""
    ratios = tasks["arm"] / tasks["reference"]
    parts = arm.sub(reference.mul(ratios, axis=0, level="task"))
    parts = parts.div(tasks["reference"] * len(tasks), axis=0, level="task")
    if parts.isna().any(axis=None):
        return Estimate(float(ratios.mean()))
    return _around(float(ratios.mean()), half_width(_components(parts), level))


def _tasks_better(tasks: pd.DataFrame, gains: pd.DataFrame, level: float) -> Estimate:
    """Return how many tasks are better, at least and at most.

    At least those that are better, and at most those that are not worse, after Holm's correction
    over the tasks of one-sided tests (`level` / 2 for each side).
    """
    count = len(tasks)
    value = float((tasks["arm"] > tasks["reference"]).sum())
    if gains.shape[1] < 2 or gains.isna().any(axis=None):
        return Estimate(value)
    means = (tasks["arm"] - tasks["reference"]).to_numpy()
    both = [
        p_value(mean, variance_of_mean(values)) / 2
        for mean, values in zip(means, _of_task(gains), strict=True)
    ]
    if np.isnan(both).any():
        return Estimate(value)
    better = np.where(means > 0, both, 1 - np.array(both))
    surely = [
        sum(p <= level / 2 for p in holm(side, count)) for side in (list(better), list(1 - better))
    ]
    return Estimate(value, float(surely[0]), float(count - surely[1]))


def _variance_ratio(arm: pd.DataFrame, reference: pd.DataFrame, level: float) -> Estimate:
    """Return the geometric mean over tasks of the ratio of variances over the seeds of a fold.

    The interval is that of Student's t for the mean logarithm over tasks. It is exact to the degree
    that the logarithms are normal; without an effect they are symmetric around 0.
    """
    means = [side.var(axis=1, ddof=1).groupby(level="task").mean() for side in (arm, reference)]
    if any((mean.isna() | (mean <= 0)).any() for mean in means):
        return UNKNOWN
    logs = np.log(means[0] / means[1]).to_numpy()
    half = half_width(variance_of_mean(logs[:, np.newaxis]), level)
    return Estimate(*np.exp([logs.mean(), logs.mean() - half, logs.mean() + half]).tolist())


def _subset_gain(tasks: pd.DataFrame, subset: Collection[str], level: float) -> Estimate:
    """Return the ratio of means of the subset divided by that of the other tasks.

    The interval is that of the difference of two logarithms, with tasks as units.
    """
    inside = tasks.index.isin(list(subset))
    logs, components = [], []
    for group in (tasks[inside], tasks[~inside]):
        if group.empty:
            return UNKNOWN
        ratio = group["arm"].mean() / group["reference"].mean()
        parts = (group["arm"] - ratio * group["reference"]) / (ratio * group["reference"].mean())
        logs.append(math.log(ratio))
        components += variance_of_mean(parts.to_numpy()[:, np.newaxis])
    gain, half = logs[0] - logs[1], half_width(components, level)
    return Estimate(*np.exp([gain, gain - half, gain + half]).tolist())


def _gain_p(tasks: pd.DataFrame) -> Estimate:
    """Return the p-value of a gain: twice that of the one-sided Wilcoxon test over tasks.

    It is that of the two-sided test if the arm is ahead. No significant gain is not evidence
    against one: both ends are the value if a gain or a loss is significant, else 0 and 1.
    """
    gains = tasks["arm"] - tasks["reference"]
    if len(gains) < FEWEST_TASKS or not gains.any():
        return UNKNOWN
    gain, loss = (
        min(1.0, 2 * float(wilcoxon(gains, alternative=side).pvalue))
        for side in ("greater", "less")
    )
    return Estimate(gain, gain, gain) if min(gain, loss) <= LEVEL else Estimate(gain, 0.0, 1.0)


def _target_ratio(pairs: pd.DataFrame, cost: str, level: float) -> Estimate:
    """Return the ratio of a cost to reach the target: median over trainings, then over tasks.

    The interval is that of a median: the most extreme order statistics that a binomial
    distribution allows. It needs no finite values.
    """
    if f"{cost}_to_target_arm" not in pairs:
        return UNKNOWN
    ratios = pairs[f"{cost}_to_target_arm"] / pairs[f"{cost}_to_target_reference"]
    if ratios.empty or ratios.isna().any():
        return UNKNOWN
    tasks = np.sort(ratios.groupby(pairs["task"]).median().to_numpy())
    value = float(np.median(tasks))
    outside = int(binom.ppf(level / 2, len(tasks), 0.5))
    if binom.cdf(outside, len(tasks), 0.5) > level / 2:
        outside -= 1
    if outside < 0:
        return Estimate(value)
    return Estimate(value, float(tasks[outside]), float(tasks[-1 - outside]))
