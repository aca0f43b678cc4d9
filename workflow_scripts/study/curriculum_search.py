"""The trials of a search for a frequency schedule, as named arms: pure functions for the rules.

EfficientTrain++ (Wang et al., arXiv 2405.08768) finds its schedule with a sequential search in
which all candidates cost the same. The trials here are trainings of `low_frequency`, in which every
epoch takes the same amount of computation, regardless of the frequencies it keeps.
"""

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

PREFIX = "search"
TRIAL = rf"{PREFIX}(?:_[0-9]+(?:of[0-9]+)?)+"
"""Regular expression of a trial's name: the frequencies kept per part, as in `search_3of7_1_1`."""


def candidates(search: Mapping[str, Any]) -> list[Fraction]:
    """Return the fractions of frequencies that a part may keep, smallest first, including 1.

    Args:
        search: the config's section `search`, as in all functions here.
    """
    return sorted({Fraction(1), *(Fraction(str(value)) for value in search["candidates"])})


def trial_name(parts: Sequence[Fraction]) -> str:
    """Return the name of the trial that keeps these fractions of frequencies, part by part."""
    return "_".join([PREFIX, *(str(fraction).replace("/", "of") for fraction in parts)])


def trial_parts(name: str) -> list[Fraction]:
    """Return the fractions of frequencies that a trial keeps, part by part."""
    return [Fraction(text.replace("of", "/")) for text in name.split("_")[1:]]


def trial_arm(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a trial as an arm of the study, like those of the config's section `arms`.

    Without `search.epochs` it has a tenth of the study's epochs, but at least one per stage.
    """
    search = config["search"]
    each = search["stages"] // search["parts"]
    listed = [str(fraction) for fraction in trial_parts(name) for _ in range(each)]
    short = max(search["stages"], math.ceil(config["training"]["epochs"] / 10))
    return {
        "trainer": search["trainer"],
        "epochs": search["epochs"] or short,
        "parameters": {**search["parameters"], "frequency_fractions": listed},
    }


def next_trials(search: Mapping[str, Any], decided: Sequence[Fraction]) -> list[str]:
    """Return the trials of the next part, smallest candidate first; empty if all are decided.

    Later parts keep all frequencies; the last part always does. No part keeps fewer frequencies
    than the previous one.
    """
    left = search["parts"] - len(decided) - 1
    if left < 1:
        return []
    least = decided[-1] if decided else 0
    return [
        trial_name([*decided, candidate, *[Fraction(1)] * left])
        for candidate in candidates(search)
        if candidate >= least
    ]


def most_trials(search: Mapping[str, Any]) -> list[str]:
    """Return the trials of the longest search: each part keeps the fewest frequencies.

    No other search has more trials, or more steps.
    """
    decided: list[Fraction] = []
    found: dict[str, None] = {}
    while trials := next_trials(search, decided):
        found |= dict.fromkeys(trials)
        decided.append(candidates(search)[0])
    return list(found)
