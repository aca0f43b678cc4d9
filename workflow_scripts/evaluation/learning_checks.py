"""Find networks that have not learned, and references that were still learning at their end."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy.stats import linregress

NOT_TRAINED = 0.1
"""Mean foreground Dice below which a network has not trained."""
LAST_PART = 0.2
"""Share of the epochs over which the slope of the pseudo Dice is fitted."""
FEWEST_EPOCHS = 3
STEEP = 0.05
"""Rise of the reference's pseudo Dice over the last fifth of its epochs that is still learning:
then the length of training decides the comparison, not the arm. nnU-Net's full trainings rise by
less than 0.01 there."""


def rise_at_end(pseudo_dice: pd.Series) -> float:
    """Return the rise of a curve over its last fifth: fitted slope times the number of epochs.

    A slope that is less than two standard errors above 0 counts as 0: pseudo Dice is noisy.
    """
    count = max(FEWEST_EPOCHS, round(LAST_PART * len(pseudo_dice)))
    last = pseudo_dice.dropna().tail(count).to_numpy(float)
    if len(last) < FEWEST_EPOCHS:
        return 0.0
    fit = linregress(np.arange(len(last)), last)
    return float(fit.slope * (len(last) - 1)) if fit.slope > 2 * fit.stderr else 0.0


def check_learning(
    runs: pd.DataFrame, epochs: pd.DataFrame, reference_arm: str
) -> Mapping[tuple[str, str], str]:
    """Return (task, arm) -> what is wrong with its trainings, in words.

    Args:
        runs: runs.csv.
        epochs: epochs.csv.
        reference_arm: the arm whose curve must have flattened.
    """
    found = {}
    for (task, arm), trainings in runs.groupby(["task", "arm"], sort=False):
        dice = trainings["dice_foreground_mean"]
        failed = int((dice < NOT_TRAINED).sum())
        if failed:
            found[task, arm] = (
                f"{arm} has not trained (Dice {dice.min():.2f} in {failed} of {len(dice)})"
            )
        elif arm == reference_arm:
            own = epochs[(epochs["task"] == task) & (epochs["arm"] == arm)]
            rise = rise_at_end(own.groupby("epoch")["pseudo_dice"].mean())
            if rise > STEEP:
                found[task, arm] = (
                    f"{arm} was still learning (pseudo Dice +{rise:.2f} in its last fifth)"
                )
    return found
