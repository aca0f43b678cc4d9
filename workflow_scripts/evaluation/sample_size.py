"""How many further seeds, folds or cases an undecided comparison needs.

The prediction takes the measured difference and variances as the true ones. With three seeds both
are uncertain, so the numbers are orders of magnitude, not plans.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2, norm, t

from workflow_scripts.common.paired_statistics import LEVEL

POWER = 0.8
"""Probability of a verdict that a design must have."""
MOST_SEEDS = 200
MOST_CASES = 1_000_000
ALL_FOLDS = 5
"""nnU-Net's folds; together they validate every case once."""
QUANTILES = 64
"""Values of the estimated variance between seeds over which probabilities are averaged."""


class Design(NamedTuple):
    """A study that would probably give a verdict; all numbers are totals, not additions."""

    seeds: int
    folds: int
    cases: int


def probability_of_verdict(
    difference: float,
    margin: float,
    variance_cases: float,
    freedom_cases: float,
    variance_seed: float,
    seeds: NDArray[np.int64] | int,
) -> NDArray[np.float64]:
    """Return the probability that a study with so many seeds is not *undecided*.

    It is undecided if its interval holds both 0 and -`margin`. The mean is normal. The estimated
    variance between seeds is chi-squared and independent of it; over it the probability is
    averaged. That between cases is taken as known, except in the t quantile: it has many degrees
    of freedom.

    Args:
        difference: the true difference.
        margin: accepted loss.
        variance_cases: the cases' part of the variance of the mean.
        freedom_cases: its degrees of freedom.
        variance_seed: variance of the mean over cases between single seeds.
        seeds: numbers of seeds, at least 2.
    """
    number = np.atleast_1d(seeds)[:, np.newaxis].astype(float)
    shares = (np.arange(QUANTILES) + 0.5) / QUANTILES
    true = variance_seed / number
    estimated = true * chi2.ppf(shares, number - 1) / (number - 1)
    weighted = variance_cases * t.isf(LEVEL / 2, freedom_cases)
    weighted = weighted + estimated * t.isf(LEVEL / 2, number - 1)
    total = variance_cases + estimated
    half = np.divide(weighted, np.sqrt(total), out=np.zeros_like(total), where=total > 0)
    deviation = np.sqrt(variance_cases + true)
    with np.errstate(divide="ignore", invalid="ignore"):
        undecided = norm.cdf((half - margin - difference) / deviation) - norm.cdf(
            (-half - difference) / deviation
        )
    undecided = np.where(deviation > 0, undecided, 0.0)
    decided: NDArray[np.float64] = 1 - np.maximum(0.0, undecided).mean(axis=1)
    return decided


def find_designs(
    difference: float,
    margin: float,
    variance_cases: float,
    variance_seeds: float,
    now: Design,
) -> dict[str, Design]:
    """Return the smallest designs that probably give a verdict: `seeds`, `folds`, `cases`.

    `seeds` keeps folds and cases, `folds` trains all of nnU-Net's five, and `cases` has twice as
    many seeds as now and more cases. What does not suffice with at most `MOST_SEEDS` seeds or
    `MOST_CASES` cases is missing, and `cases` is only given if the other two are. Folds only reduce
    the cases' part of the variance: what a seed does may be the same in all folds.

    Args:
        difference: the measured difference.
        margin: accepted loss.
        variance_cases, variance_seeds: parts of the variance of its mean, measured with `now`.
        now: the present design, with at least two seeds.
    """
    if any(map(math.isnan, (difference, variance_cases, variance_seeds))):
        return {}
    of_one = variance_seeds * now.seeds

    def smallest(folds: int, cases: int, fewest: int) -> Design | None:
        numbers = np.arange(fewest, MOST_SEEDS + 1)
        share = variance_cases * now.cases / cases
        enough = probability_of_verdict(difference, margin, share, cases - 1, of_one, numbers)
        places = np.flatnonzero(enough >= POWER)
        return Design(int(numbers[places[0]]), folds, cases) if len(places) else None

    found = {"seeds": smallest(now.folds, now.cases, now.seeds + 1)}
    if now.folds < ALL_FOLDS:
        cases = round(now.cases * ALL_FOLDS / now.folds)
        found["folds"] = smallest(ALL_FOLDS, cases, now.seeds)
    designs = {name: design for name, design in found.items() if design}
    if designs:
        return designs
    numbers = (now.cases * 1.25 ** np.arange(1, 60)).round().astype(int)
    for cases in numbers[numbers <= MOST_CASES]:
        share = variance_cases * now.cases / cases
        seeds = 2 * now.seeds
        if probability_of_verdict(difference, margin, share, cases - 1, of_one, seeds) >= POWER:
            return {"cases": Design(seeds, now.folds, int(cases))}
    return {}
