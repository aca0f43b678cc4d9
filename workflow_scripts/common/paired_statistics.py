"""Paired comparison of two arms on the same cases: difference, interval, test, effect sizes."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap, rankdata, wilcoxon

LEVEL = 0.05
"""Of the corrected p-values; the intervals hold 1 - LEVEL."""
FEWEST = 6
"""Pairs: with five, the smallest two-sided p-value of a signed-rank test is 0.0625."""
RESAMPLES = 4999


def interval(differences: NDArray[np.float64], seed: int) -> tuple[float, float]:
    """95 % confidence interval of the mean difference: bootstrap over the pairs, BCa.

    The same seed gives the same interval. NaN for fewer than `FEWEST` pairs; where all differences
    are equal it is that value twice.
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


def smallest_p(pairs: int) -> float:
    """Two-sided p-value of the exact signed-rank test when all pairs differ the same way."""
    return min(1.0, 2.0 ** (1 - pairs))


def rank_biserial(differences: NDArray[np.float64]) -> float:
    """Matched-pairs rank-biserial correlation: 1 if every pair is better, -1 if every one is worse.

    The sum of the ranks of the positive differences minus that of the negative ones, over the sum
    of all ranks; zeros are left out, ties share their mean rank (Kerby, 2014).
    """
    differing = differences[differences != 0]
    if not len(differing):
        return math.nan
    ranks = rankdata(np.abs(differing))
    return float((ranks * np.sign(differing)).sum() / ranks.sum())


def compare_pairs(
    arm: Sequence[float], reference: Sequence[float], tests: int, seed: int
) -> dict[str, Any]:
    """Statistics of paired values, in the same order; a pair with a NaN is left out and counted.

    `tests` is the number of tests that p-values will be corrected for. Pairs without a difference
    take no part in the Wilcoxon signed-rank test (`zeros` counts them); scipy chooses between its
    exact and its asymptotic distribution. There is no p-value, but a note, where even the most
    extreme outcome could not stay below `LEVEL` after the correction.
    """
    values, base = np.asarray(arm, dtype=float), np.asarray(reference, dtype=float)
    whole = ~(np.isnan(values) | np.isnan(base))
    differences = values[whole] - base[whole]
    pairs, differing = len(differences), differences[differences != 0]
    low, high = interval(differences, seed)
    row: dict[str, Any] = {
        "pairs": pairs,
        "left_out": int((~whole).sum()),
        "zeros": pairs - len(differing),
        "mean": float(values[whole].mean()) if pairs else math.nan,
        "mean_reference": float(base[whole].mean()) if pairs else math.nan,
        "difference": float(differences.mean()) if pairs else math.nan,
        "ci_low": low,
        "ci_high": high,
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
    """P-values corrected by Holm's step-down method for `tests` tests; NaN stays NaN.

    A test that was planned and could not be made counts as one with the largest p-value.
    """
    corrected = np.full(len(p_values), math.nan)
    highest = 0.0
    for step, place in enumerate(np.argsort(p_values)):  # NaN come last
        if not math.isnan(p_values[place]):
            highest = max(highest, min(1.0, (tests - step) * p_values[place]))
            corrected[place] = highest
    return corrected.tolist()
