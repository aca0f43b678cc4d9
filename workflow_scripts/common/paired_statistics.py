"""Paired comparison of two arms on the same cases: difference, interval, test, effect sizes."""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import bootstrap, rankdata, t, wilcoxon

LEVEL = 0.05
"""Significance level of the corrected p-values; intervals have confidence level 1 - LEVEL."""
FEWEST = 6
"""Minimum number of pairs; with five, the smallest two-sided signed-rank p-value is 0.0625."""
FEWEST_SEEDS = 3
"""Minimum number of seeds for a statement about a new seed."""
RESAMPLES = 4999


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


@lru_cache(maxsize=4)
def _resamples(
    cases: int, seeds: int, folds: int, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return how often each resample draws each case, and each seed of each fold.

    Cached, because all comparisons of a task use the same draws, which take most of the time.
    """
    rng = np.random.default_rng(seed)
    of_cases = rng.multinomial(cases, np.full(cases, 1 / cases), size=RESAMPLES)
    of_seeds = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=(folds, RESAMPLES))
    return of_cases.astype(float), of_seeds.astype(float)


def interval_over_seeds(
    differences: NDArray[np.float64], folds: NDArray[np.int64], seed: int
) -> tuple[float, float]:
    """Return the 95 % confidence interval of the mean difference: hierarchical bootstrap.

    Each resample draws cases with replacement and, independently in each fold, seeds with
    replacement, because each fold has its own trainings. With n seeds this underestimates the
    variance due to seeds by the factor (n - 1) / n (Davison and Hinkley, 1997, section 3.8), so
    with three seeds the interval is somewhat too narrow.

    Args:
        differences: one row per case, one column per seed; NaN are ignored.
        folds: fold number of each case.
        seed: seed of the bootstrap; the same seed gives the same interval.

    Returns:
        Both ends, as percentiles; NaN for fewer than `FEWEST` cases.
    """
    cases, seeds = differences.shape
    if cases < FEWEST:
        return math.nan, math.nan
    known = ~np.isnan(differences)
    values = np.where(known, differences, 0.0)
    numbers = np.unique(folds)
    times_of_case, times_of_seed = _resamples(cases, seeds, len(numbers), seed)
    total, weight = np.zeros(RESAMPLES), np.zeros(RESAMPLES)
    for fold, times in zip(numbers, times_of_seed, strict=True):
        drawn = times_of_case[:, folds == fold]
        total += ((drawn @ values[folds == fold]) * times).sum(axis=1)
        weight += ((drawn @ known[folds == fold].astype(float)) * times).sum(axis=1)
    means = total[weight > 0] / weight[weight > 0]
    low, high = np.quantile(means, [LEVEL / 2, 1 - LEVEL / 2])
    return float(low), float(high)


def agreement_of_new_seed(differences: NDArray[np.float64]) -> float:
    """Estimate the probability that a training with a new seed differs in the mean's direction.

    It follows from the predictive distribution of a normal sample: Student's t with n - 1 degrees
    of freedom at |mean| / (std · √(1 + 1/n)) of the seeds' mean differences. It is NaN for fewer
    than three seeds, if a seed has no value, or if the mean is 0. With five seeds, it is too high
    by 0.06 on average if the true mean is half the standard deviation between seeds (a test
    simulates this).

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
    folds: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Return statistics of paired values: one per case, or one row per case with its seeds.

    A case's difference is the mean over the seeds for which both arms have a value. Cases without
    any are left out and counted. With one seed, the interval is a bootstrap over cases
    (`interval`). With several, it is a hierarchical one (`interval_over_seeds`), which needs the
    cases' `folds`.

    `tests` is the number of tests for which p-values will be corrected. The Wilcoxon signed-rank
    test leaves out pairs without a difference (`zeros` counts them); scipy chooses between its
    exact and asymptotic distributions. If even the most extreme outcome could not be below `LEVEL`
    after the correction, there is a note instead of a p-value.
    """
    tables = [_by_seed(table) for table in (arm, reference)]
    both = ~np.isnan(tables[0] - tables[1])
    whole = both.any(axis=1)
    of_seeds = (tables[0] - tables[1])[whole]
    values, base = (np.nanmean(np.where(both, table, math.nan)[whole], axis=1) for table in tables)
    differences = np.nanmean(of_seeds, axis=1)
    pairs, differing = len(differences), differences[differences != 0]
    if of_seeds.shape[1] > 1:
        low, high = interval_over_seeds(of_seeds, np.asarray(folds)[whole], seed)
    else:
        low, high = interval(differences, seed)
    row: dict[str, Any] = {
        "pairs": pairs,
        "left_out": int((~whole).sum()),
        "zeros": pairs - len(differing),
        "mean": float(values.mean()) if pairs else math.nan,
        "mean_reference": float(base.mean()) if pairs else math.nan,
        "difference": float(differences.mean()) if pairs else math.nan,
        "ci_low": low,
        "ci_high": high,
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
