"""Text of the notebook `scale_space`: which scale factor each arm needs."""

import pandas as pd

FOLLOWS = "Its weights follow the scale factor."
IGNORES = "**Its weights do not follow the scale factor**: the same network serves all."


def describe_choices(choices: pd.DataFrame, checks: pd.DataFrame, study: str) -> str:
    """Return a list with the chosen scale factor of each arm and task.

    Args:
        choices: scale_choice.csv.
        checks: scale_checks.csv.
        study: name of the study.
    """
    checked = choices.merge(checks, on=["task", "arm"], suffixes=("", "_checked"))
    lines = [f"Study **{study}**."]
    lines += [
        f"- **{row.arm}**, {row.task}: scale factor {row.scale:g} has a Dice of {row.dice:.3f} "
        f"with {row.relative_gmac:.2f} of the computation of the best one ({row.best_scale:g}, "
        f"Dice {row.best_dice:.3f}). {FOLLOWS if row.passed else IGNORES}"
        for row in checked.itertuples()
    ]
    if checked.empty:
        lines.append("No arm of this study is a scale-space hypernetwork.")
    return "\n".join(lines)
