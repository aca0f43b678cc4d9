"""How stable the ranks of the arms are, and whether a data set can tell arms apart at all."""

import math
from collections.abc import Collection, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import f, rankdata

from workflow_scripts.common.paired_statistics import LEVEL
from workflow_scripts.records.run_reader import KEYS

RESAMPLES = 1000
COLUMNS = [
    *("task", "arm", "dice", "rank", "rank_low", "rank_high", "first"),
    *("between_arms", "between_seeds", "ratio", "p_arms", "tells_apart"),
]


def resampled_means(
    values: NDArray[np.float64], rng: np.random.Generator, resamples: int = RESAMPLES
) -> NDArray[np.float64]:
    """Return the mean of each arm (columns) in bootstrap samples (rows) of seeds and of cases.

    Seeds and cases are drawn with replacement, the same for all arms, since all arms have the same
    cases (Owen, Annals of Applied Statistics 1, 2007, 386-411: the pigeonhole bootstrap).

    Args:
        values: arms × cases × seeds; NaN are ignored.
        rng: source of the draws.
        resamples: number of samples.
    """
    _, cases, seeds = values.shape
    present = np.isfinite(values)
    weights_of_cases = rng.multinomial(cases, np.full(cases, 1 / cases), resamples)
    weights_of_seeds = rng.multinomial(seeds, np.full(seeds, 1 / seeds), resamples)
    sums = np.einsum("acs,bc,bs->ba", np.nan_to_num(values), weights_of_cases, weights_of_seeds)
    counts = np.einsum("acs,bc,bs->ba", present.astype(float), weights_of_cases, weights_of_seeds)
    with np.errstate(invalid="ignore", divide="ignore"):
        means: NDArray[np.float64] = sums / counts
    return means


def sensitivity(of_seeds: NDArray[np.float64]) -> dict[str, float]:
    """Return the spread between arms over that between seeds, and whether chance explains it.

    `between_arms` is the standard deviation of the arms' means, `between_seeds` the pooled one of
    an arm's seeds, and `ratio` their quotient: below about 1, a data set hardly tells arms apart
    (Isensee et al., nnU-Net Revisited, MICCAI 2024, section 3). `p_arms` is that of the one-way
    analysis of variance with equally many seeds. NaN with one seed or one arm.

    Args:
        of_seeds: mean Dice, arms × seeds.
    """
    arms, seeds = of_seeds.shape
    between = float(of_seeds.mean(axis=1).std(ddof=1)) if arms > 1 else math.nan
    within = math.sqrt(of_seeds.var(axis=1, ddof=1).mean()) if seeds > 1 else math.nan
    ratio = between / within if within > 0 else math.nan
    p = float(f.sf(seeds * ratio**2, arms - 1, arms * (seeds - 1))) if arms > 1 else math.nan
    return {"between_arms": between, "between_seeds": within, "ratio": ratio, "p_arms": p}


def rank_arms(
    cases: pd.DataFrame,
    tasks: Sequence[str],
    arms: Sequence[str],
    seed: int,
    left_out: Collection[tuple[str, str]] = (),
) -> pd.DataFrame:
    """Return one row per task and arm: its rank by mean Dice, with its bootstrap interval.

    `first` is the share of bootstrap samples in which the arm has the highest Dice. The last
    columns (`sensitivity`) belong to the task. With one seed, ranks vary with cases only, so they
    seem more stable than they are.

    Args:
        cases: cases.csv.
        tasks: in the order of the table.
        arms: in the order of the table.
        seed: of the bootstrap.
        left_out: (task, arm) that have not learned.
    """
    dice = cases.groupby([*KEYS, "case"])["dice"].mean()
    rows = []
    for task in tasks:
        ranked = [arm for arm in arms if (task, arm) not in left_out]
        tables = [dice.loc[task, arm].unstack("seed").to_numpy(float) for arm in ranked]
        if len({table.shape for table in tables}) != 1:
            continue
        values = np.stack(tables)
        means = resampled_means(values, np.random.default_rng(seed))
        ranks = rankdata(-means, axis=1, nan_policy="omit")
        spread = sensitivity(np.nanmean(values, axis=1))
        apart = "" if math.isnan(spread["p_arms"]) else "yes" if spread["p_arms"] < LEVEL else "no"
        whole = np.nanmean(values, axis=(1, 2))
        low, high = np.nanquantile(ranks, (LEVEL / 2, 1 - LEVEL / 2), axis=0)
        for place, arm in enumerate(ranked):
            about = {"task": task, "arm": arm, "dice": whole[place], "rank_low": low[place]}
            about |= {"rank": rankdata(-whole)[place], "rank_high": high[place]}
            about |= {"first": float((ranks[:, place] == 1).mean()), "tells_apart": apart}
            rows.append(about | spread)
    return pd.DataFrame(rows, columns=COLUMNS)
