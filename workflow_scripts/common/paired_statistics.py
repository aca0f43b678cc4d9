"""Paired comparison of two arms on the same cases: difference, interval, test, effect sizes."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.stats import bootstrap, rankdata, t, wilcoxon

LEVEL = 0.05
"""Significance level of the corrected p-values; intervals have confidence level 1 - LEVEL."""
FEWEST = 6
"""Minimum number of pairs; with five, the smallest two-sided signed-rank p-value is 0.0625."""
FEWEST_SEEDS = 3
"""Minimum number of seeds for a statement about a new seed."""
RESAMPLES = 4999
SMALLEST = 1e-100
"""Smallest p-value that is computed from several components; smaller ones are raised to it."""
CASES, SEEDS_AND_CASES = "cases", "seeds and cases"
"""What a new sample would draw again, to which intervals and p-values refer. `CASES`: the trainings
are given, so other seeds may give another result."""


def interval(differences: NDArray[np.float64], seed: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of the mean difference: BCa bootstrap over the pairs.

    The same seed gives the same interval. Both ends are NaN for fewer than `FEWEST` pairs. If all
    differences are equal, both ends are that value.
    """
    if len(differences) < FEWEST:
        return math.nan, math.nan
    if np.ptp(differences) == 0:
        return float(differences[0]), float(differences[0])
    found = bootstrap(
        (differences,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=500,
        confidence_level=1 - LEVEL,
        method="BCa",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)


class Component(NamedTuple):
    """Part of the variance of a mean, estimated with so many degrees of freedom."""

    variance: float
    freedom: float


def variance_of_mean(values: NDArray[np.float64]) -> list[Component]:
    """Return the parts of the variance of a mean over cases and seeds: cases, seeds.

    A seed is one draw for all folds: it sets the initial weights of each of them, so its effect may
    be the same on all, and folds do not replace seeds. The seeds' part is therefore the variance of
    their means over all cases; it contains what a seed does to all folds, to one, and to one case.
    The cases' part is what the cases vary by beyond that. (Two-way random-effects model without
    repetition: value = mean + case + seed + rest, estimated with the method of moments as in
    `separate_variance`; a negative estimate is set to 0.) The training sets of the folds are given.

    Args:
        values: one row per case (or per fold, as the mean of its cases), one column per seed. NaN
            are ignored, but each row needs a value. With one column, only the cases' part is
            returned.
    """
    values = values[:, ~np.isnan(values).all(axis=0)]
    cases, seeds = values.shape
    if cases < 2:
        return [Component(math.nan, 0)]
    of_cases = np.nanmean(values, axis=1)
    if seeds < 2:
        return [Component(float(of_cases.var(ddof=1)) / cases, cases - 1)]
    centred = values - of_cases[:, np.newaxis]
    of_seeds = np.nanmean(centred, axis=0)
    free = np.isfinite(values).sum() - cases - seeds + 1
    rest = np.nansum((centred - of_seeds) ** 2) / free if free > 0 else 0.0
    return [
        Component(max(0.0, float(of_cases.var(ddof=1) - rest / seeds)) / cases, cases - 1),
        Component(float(of_seeds.var(ddof=1)) / seeds, seeds - 1),
    ]


def half_width(components: Sequence[Component], level: float = LEVEL) -> float:
    """Return the half-width of the confidence interval (1 - `level`) of a mean.

    It is the standard error times the mean of the components' t quantiles, weighted by their
    variances (Cochran, Biometrics 20, 1964, 191-195). That of Satterthwaite, with one number of
    degrees of freedom, is too narrow if three seeds happen to agree.
    """
    total = sum(component.variance for component in components)
    if not total > 0:
        return total
    weighted = sum(c.variance * t.isf(level / 2, c.freedom) for c in components if c.variance)
    return float(weighted / math.sqrt(total))


def p_value(mean: float, components: Sequence[Component]) -> float:
    """Return the two-sided p-value of a mean: the level whose interval just reaches 0."""
    total = sum(component.variance for component in components)
    if math.isnan(total) or math.isnan(mean):
        return math.nan
    if not total or not mean:
        return float(not mean)
    statistic = abs(mean) / math.sqrt(total)
    # The weighted quantile lies between those of its components, and so does the level.
    ends = [2 * t.sf(statistic, c.freedom) for c in components if c.variance]
    low, high = (math.log10(max(end, SMALLEST)) for end in (min(ends), max(ends)))

    def excess(exponent: float) -> float:
        return half_width(components, 10**exponent) - abs(mean)

    if excess(low) <= 0 or excess(high) >= 0:  # equal but for rounding
        return float(10**high)
    return float(10 ** brentq(excess, low, high, xtol=1e-9))


def interval_over_seeds(differences: NDArray[np.float64]) -> tuple[float, float]:
    """Return the 95 % confidence interval of the mean difference: new cases and new seeds.

    See `variance_of_mean` and `half_width`. With n seeds, a bootstrap over them would underestimate
    their variance by the factor (n - 1) / n, and would not know that it is uncertain itself: with
    three seeds and nothing else that varies, its 95 % interval holds the mean in 75 % of studies.

    Args:
        differences: one row per case, one column per seed; NaN are ignored.

    Returns:
        Both ends; NaN for fewer than `FEWEST` cases.
    """
    if len(differences) < FEWEST:
        return math.nan, math.nan
    mean = float(np.nanmean(differences, axis=1).mean())
    half = half_width(variance_of_mean(differences))
    return mean - half, mean + half


def agreement_of_new_seed(differences: NDArray[np.float64]) -> float:
    """Estimate the probability that a new seed gives a mean difference of the same sign.

    The seed is new for all folds at once. The estimate follows from the predictive distribution of
    a normal sample: Student's t with n - 1 degrees of freedom at |mean| / (std · √(1 + 1/n)) of
    the seeds' mean differences. It is NaN for fewer than three seeds, if a seed has no value, or if
    the mean is 0. With five seeds, it is too high by 0.06 on average if the true mean is half the
    standard deviation between seeds (a test simulates this).

    Args:
        differences: one row per case, one column per seed.
    """
    number = differences.shape[1]
    if number < FEWEST_SEEDS or np.isnan(differences).all(axis=0).any():
        return math.nan
    by_seed = np.nanmean(differences, axis=0)
    if by_seed.mean() == 0:
        return math.nan
    deviation = by_seed.std(ddof=1) * math.sqrt(1 + 1 / number)
    return 1.0 if deviation == 0 else float(t.cdf(abs(by_seed.mean()) / deviation, number - 1))


def smallest_p(pairs: int) -> float:
    """Return the two-sided p-value of the exact signed-rank test if all pairs agree in sign."""
    return min(1.0, 2.0 ** (1 - pairs))


def rank_biserial(differences: NDArray[np.float64]) -> float:
    """Return the matched-pairs rank-biserial correlation: 1 if all are better, -1 if all are worse.

    It is the sum of the ranks of the positive differences minus that of the negative ones, divided
    by the sum of all ranks. Zeros are left out; ties share their mean rank (Kerby, 2014).
    """
    differing = differences[differences != 0]
    if not len(differing):
        return math.nan
    ranks = rankdata(np.abs(differing))
    return float((ranks * np.sign(differing)).sum() / ranks.sum())


def _by_seed(values: ArrayLike) -> NDArray[np.float64]:
    table = np.asarray(values, dtype=float)
    return table[:, np.newaxis] if table.ndim == 1 else table


def compare_pairs(
    arm: ArrayLike,
    reference: ArrayLike,
    tests: int,
    seed: int,
) -> dict[str, Any]:
    """Return statistics of paired values: one per case, or one row per case with its seeds.

    A case's difference is the mean over the seeds for which both arms have a value. Cases without
    any are left out and counted. With one seed, the interval is a bootstrap over cases (`interval`)
    and the test is Wilcoxon's signed-rank test over cases; both refer to these trainings
    (`covers`: `CASES`). With several, `interval_over_seeds` and `p_value` refer to new seeds and
    cases.

    `tests` is the number of tests for which p-values will be corrected. The signed-rank test leaves
    out pairs without a difference (`zeros` counts them); scipy chooses between its exact and
    asymptotic distributions. If even the most extreme outcome could not be below `LEVEL` after the
    correction, there is a note instead of a p-value.
    """
    tables = [_by_seed(table) for table in (arm, reference)]
    both = ~np.isnan(tables[0] - tables[1])
    whole = both.any(axis=1)
    of_seeds = (tables[0] - tables[1])[whole]
    values, base = (np.nanmean(np.where(both, table, math.nan)[whole], axis=1) for table in tables)
    differences = np.nanmean(of_seeds, axis=1)
    pairs, differing = len(differences), differences[differences != 0]
    several = bool((~np.isnan(of_seeds)).any(axis=0).sum() > 1)
    low, high = interval_over_seeds(of_seeds) if several else interval(differences, seed)
    row: dict[str, Any] = {
        "pairs": pairs,
        "left_out": int((~whole).sum()),
        "zeros": pairs - len(differing),
        "mean": float(values.mean()) if pairs else math.nan,
        "mean_reference": float(base.mean()) if pairs else math.nan,
        "difference": float(differences.mean()) if pairs else math.nan,
        "ci_low": low,
        "ci_high": high,
        "covers": SEEDS_AND_CASES if several else CASES,
        "new_seed_agrees": agreement_of_new_seed(of_seeds),
        "rank_biserial": rank_biserial(differences),
        "cohen_dz": math.nan,
        "p": math.nan,
        "note": "",
    }
    if pairs > 1 and np.ptp(differences) > 0:
        row["cohen_dz"] = float(differences.mean() / differences.std(ddof=1))
    if not pairs:
        row["note"] = "no pairs"
    elif not len(differing) and pairs >= FEWEST:
        row["note"] = "no pair differs"
    elif several and pairs >= FEWEST:
        row["p"] = p_value(row["difference"], variance_of_mean(of_seeds))
    elif len(differing) < FEWEST or smallest_p(len(differing)) * tests >= LEVEL:
        row["note"] = "too few cases for a test"
    else:
        row["p"] = float(wilcoxon(differing).pvalue)
    return row


def holm(p_values: Sequence[float], tests: int) -> list[float]:
    """Return p-values corrected by Holm's step-down method for `tests` tests; NaN stays NaN.

    A planned test that was not possible counts as having the largest p-value.
    """
    corrected = np.full(len(p_values), math.nan)
    highest = 0.0
    for step, place in enumerate(np.argsort(p_values)):  # NaN are last
        if not math.isnan(p_values[place]):
            highest = max(highest, min(1.0, (tests - step) * p_values[place]))
            corrected[place] = highest
    return corrected.tolist()
