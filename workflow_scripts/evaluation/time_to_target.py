"""Time to target: the cost of a training until it reaches a target Dice and stays there.

As in AlgoPerf (Dahl et al., 2023, arXiv 2306.07179, section 4), a reference sets the target, and a
training method is judged by the cost of reaching it. The targets here are values of nnU-Net's
smoothed pseudo Dice, which every training has after each epoch.
"""

import numpy as np
import pandas as pd

from workflow_scripts.records.run_reader import KEYS, running_totals, steps_of_epochs

SMOOTHING = 0.9
"""Weight of the previous value in nnU-Net's moving average (2.8.1, `nnunet_logger.py`)."""
COSTS = ("steps", "seconds", "kwh", "gflop")


def smoothed(pseudo_dice: pd.Series) -> pd.Series:
    """Return nnU-Net's exponential moving average of the pseudo Dice, epoch by epoch."""
    return pseudo_dice.ewm(alpha=1 - SMOOTHING, adjust=False).mean()


def progress(epochs: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """Return epochs.csv with the smoothed pseudo Dice and the costs since the start of training.

    Columns: `KEYS`, epoch, dice and `COSTS`. `gflop` includes the validation after each
    epoch; `steps` counts optimiser steps; `seconds` and `kwh` are summed from epochs.csv.
    """
    table = epochs.merge(runs[[*KEYS, "iterations_per_epoch"]], on=KEYS)
    table["steps"] = steps_of_epochs(table, table["iterations_per_epoch"])
    table = running_totals(table, COSTS)
    table["dice"] = table.groupby(KEYS)["pseudo_dice"].transform(smoothed)
    return table[[*KEYS, "epoch", "dice", *COSTS]]


def cost_until(training: pd.DataFrame, target: float) -> dict[str, float]:
    """Return the costs until a training (`progress`) reaches the target Dice and stays there.

    It stays there if no later epoch falls below the target. Costs are infinite if the training ends
    below it. Differences within rounding error are ignored.
    """
    below = np.flatnonzero(~(training["dice"].to_numpy() >= target * (1 - 1e-12)))
    first = below[-1] + 1 if len(below) else 0
    if first == len(training):
        return dict.fromkeys(COSTS, np.inf)
    return training.iloc[first][list(COSTS)].astype(float).to_dict()
