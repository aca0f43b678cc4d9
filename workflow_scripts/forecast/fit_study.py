"""Shorten the trainings of a study so that they fit into hours, energy or emissions."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from workflow_scripts.common import nnunet_setup
from workflow_scripts.common.console import announce, redirect
from workflow_scripts.common.errors import UserError
from workflow_scripts.common.files import write_csv
from workflow_scripts.common.formatting import bullets, number, pipe_table
from workflow_scripts.forecast.calibration import HOW_TO_MEASURE
from workflow_scripts.forecast.forecaster import Forecaster
from workflow_scripts.forecast.planned_study import ForecastStudy
from workflow_scripts.study.specification import Arm

LIMITS = {"hours": "h", "kwh": "kWh", "kg_co2eq": "kg CO2eq"}
"""Limits of the section `fit`, which are columns of the forecast, and their units."""
PAPERS = 250_000
"""Training iterations of the papers: 1000 epochs of 250."""
SHORT = 0.1
"""Share of the papers' iterations below which a comparison is one of short trainings."""
VERY_SHORT = 0.01
"""Share below which nnU-Net's SGD may not have trained the network (docs/results)."""


@dataclass(frozen=True)
class Limits:
    """What must fit.

    Attributes:
        limits: limit by quantity, in the units of `LIMITS`.
        gpus: devices on which trainings run side by side.
        per: `study` or `training`.
    """

    limits: Mapping[str, float]
    gpus: int
    per: str

    @classmethod
    def of(cls, section: Mapping[str, Any]) -> "Limits":
        """Return the limits of the section `fit`; raise UserError if it has none."""
        limits = {name: section[name] for name in LIMITS if section[name] is not None}
        if not limits:
            raise UserError(
                "config: fit: set `hours`, `kwh` or `kg_co2eq`, for example `--config "
                "'fit={hours: 48}'`"
            )
        return cls(limits, section["gpus"], section["per"])

    def used(self, rows: pd.DataFrame) -> dict[str, float]:
        """Return what the trainings of a forecast use of each limited quantity.

        The hours of a study are those of its trainings, evenly spread over the devices, but not
        less than those of the longest training. A quantity per training is the largest one.
        """
        used = {}
        trainings = (rows["folds"] * rows["seeds"]).astype(float)
        for name in self.limits:
            largest = float((rows[name] / trainings).max())
            total = float(rows[name].sum(skipna=False))
            if self.per == "training":
                used[name] = largest
            else:
                used[name] = max(total / self.gpus, largest) if name == "hours" else total
        return used

    def exceeded(self, used: Mapping[str, float]) -> list[str]:
        """Return the quantities of which the trainings use too much."""
        return [name for name, value in used.items() if value > self.limits[name]]


def largest(fits: Callable[[int], bool], upper: int) -> int:
    """Return the largest number from 1 to `upper` that fits, by bisection; 0 if none does."""
    low, high = 0, upper
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def fit_together(
    rows: Callable[[Mapping[str, Arm]], pd.DataFrame],
    arms: Mapping[str, Arm],
    full: Mapping[str, int],
    limits: Limits,
) -> dict[str, int]:
    """Return the epochs of arms that are shortened by the same factor.

    Args:
        rows: forecasts arms, as `Forecaster.rows`.
        arms: these arms.
        full: their epochs in the configuration, which they get at most.
        limits: what must fit.

    Raises UserError if not even one epoch fits.
    """
    most = max(full[name] for name in arms)

    def epochs(count: int) -> dict[str, int]:
        return {name: max(1, round(full[name] * count / most)) for name in arms}

    def used(count: int) -> dict[str, float]:
        lengths = epochs(count)
        return limits.used(
            rows({name: replace(arm, epochs=lengths[name]) for name, arm in arms.items()})
        )

    count = largest(lambda count: not limits.exceeded(used(count)), most)
    if count:
        return epochs(count)
    least = used(1)
    over = limits.exceeded(least)[0]
    raise UserError(
        f"fit.{over} is {limits.limits[over]:g}, but even one epoch of {', '.join(arms)} with the "
        f"final validation takes {number(least[over])} {LIMITS[over]}. Use fewer tasks, folds, "
        "seeds or arms, or a shorter epoch (`iterations_per_epoch`)"
    )


def fit_arms(
    rows: Callable[[Mapping[str, Arm]], pd.DataFrame],
    arms: Mapping[str, Arm],
    full: Mapping[str, int],
    limits: Limits,
) -> dict[str, int]:
    """Return the epochs of each arm with which the trainings fit, as `fit_together`.

    Epochs are rounded down to a multiple of the arm's stages where there are enough, so that every
    stage keeps its share.

    Raises UserError if costs are unknown, or not even one epoch fits.
    """
    whole = rows(arms)
    unknown = whole.loc[whole[list(limits.limits)].isna().any(axis=1), "task"].unique()
    if len(unknown):
        raise UserError(
            f"fit: the costs of {', '.join(unknown)} are unknown. Plan first (`snakemake plans`). "
            f"If no run was measured on such a device: {HOW_TO_MEASURE}"
        )
    alone = [{name: arm} for name, arm in arms.items()]
    epochs: dict[str, int] = {}
    for group in alone if limits.per == "training" else [arms]:
        epochs |= fit_together(rows, group, full, limits)
    stages = whole.groupby("arm")["stages"].agg(["min", "max"])
    for name, count in epochs.items():
        fewest, most = stages.loc[name]
        if fewest == most <= count < full[name]:
            epochs[name] = count - count % int(most)
    return epochs


def fit_table(
    rows: pd.DataFrame, epochs: Mapping[str, int], full: Mapping[str, int]
) -> pd.DataFrame:
    """Return one row per arm: epochs, iterations of a training, and costs of all its trainings.

    Args:
        rows: forecast of the shortened arms.
        epochs, full: epochs by arm, shortened and configured.
    """
    trainings = (rows["folds"] * rows["seeds"]).astype(float)
    table = rows.assign(each=rows["iterations"].astype(float) / trainings, trainings=trainings)
    table = table.groupby("arm", sort=False).agg(
        trainings=("trainings", "sum"),
        iterations=("each", "mean"),
        **{name: (name, "sum") for name in LIMITS},
    )
    table.insert(0, "epochs", pd.Series(epochs))
    table.insert(1, "configured_epochs", pd.Series(full))
    table["share_of_papers"] = table["iterations"] / PAPERS
    return table.reset_index()


def to_markdown(table: pd.DataFrame, limits: Limits, used: Mapping[str, float], study: str) -> str:
    """Return the table, what is used of each limit, and what such a length means."""
    printed = pd.DataFrame(
        {
            "arm": table["arm"],
            "epochs": [
                f"{row.epochs} of {row.configured_epochs}" for row in table.itertuples(index=False)
            ],
            "iterations": [f"{value:,.0f}" for value in table["iterations"]],
            "of the papers' 250,000": [f"{100 * v:.2g} %" for v in table["share_of_papers"]],
            **{unit: table[name].map(number) for name, unit in LIMITS.items()},
        }
    )
    notes = [
        f"{limits.per.capitalize()}: {number(value)} of {limits.limits[name]:g} {LIMITS[name]}"
        + (f" on {limits.gpus} devices" if name == "hours" and limits.gpus > 1 else "")
        + "."
        for name, value in used.items()
    ]
    notes.append(
        "Hours, kWh and kg CO2eq of the table are those of all trainings of an arm. They are a "
        "forecast, which does not include preprocessing and set-up: leave some room."
    )
    notes.append(
        "The learning rate decays to 0 at the end of the shortened training. Stopping a longer "
        "one early would not do that."
    )
    share = table["share_of_papers"].min()
    if share < SHORT:
        notes.append(
            f"The shortest training has {100 * share:.2g} % of the papers' iterations: it can say "
            "which arm is better at this length, not whether the papers' claims hold."
        )
    if share < VERY_SHORT:
        notes.append(
            "At such a length nnU-Net's SGD may not have trained the network, and AdamW had: set "
            "`optimizer_name: adamw, initial_lr: 0.003` in the parameters of every arm "
            "(docs/results/task04.md)."
        )
    return f"**The study {study}, shortened to fit**\n\n{pipe_table(printed)}\n\n{bullets(notes)}\n"


def overlay(epochs: Mapping[str, int]) -> str:
    """Return a configuration with the epochs of each arm, to add to that of the study."""
    content = {"arms": {name: {"epochs": count} for name, count in epochs.items()}}
    return yaml.safe_dump(content, sort_keys=False)


if __name__ == "__main__":
    redirect(snakemake.log[0])

    nnunet_setup.configure(processes=1)

    params = dict(snakemake.params.items())
    chosen = Limits.of(params.pop("fit"))
    planned = ForecastStudy(**params)
    listed = {name: Path(snakemake.input[name]) for name in ("plans", "runs", "loading")}
    forecaster = Forecaster.of(planned, **listed)
    study_arms = planned.trained_arms()
    configured = {n: arm.epochs or planned.training["epochs"] for n, arm in study_arms.items()}
    found = fit_arms(forecaster.rows, study_arms, configured, chosen)
    fitted = forecaster.rows({n: replace(arm, epochs=found[n]) for n, arm in study_arms.items()})
    result = fit_table(fitted, found, configured)
    write_csv(result, Path(snakemake.output.csv))
    page = to_markdown(result, chosen, chosen.used(fitted), planned.study)
    Path(snakemake.output.md).write_text(page, encoding="utf-8")
    Path(snakemake.output.yaml).write_text(overlay(found), encoding="utf-8")
    announce(page)
    announce(f"next: snakemake ... --configfile STUDY.yaml {snakemake.output.yaml}")
