"""Stop a study before its first training when the forecast exceeds the configured budget."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from workflow_scripts.common.console import redirect
from workflow_scripts.common.errors import UserError
from workflow_scripts.common.files import write_json
from workflow_scripts.common.formatting import number

LIMITS = {"gpu_hours": ("hours", "hours"), "kg_co2eq": ("kg_co2eq", "kg CO2eq")}
"""Key of `budget` in the configuration -> column of forecast.csv, and its unit as text."""


def check_budget(
    forecast: pd.DataFrame, budget: Mapping[str, float | None], study: str, page: str
) -> dict[str, Any]:
    """Return the forecast and the limit of each quantity that has a limit.

    Args:
        forecast: content of forecast.csv.
        budget: limits of `gpu_hours` and `kg_co2eq`; None means no limit.
        study: name of the study, for the message.
        page: path of the forecast page, for the message.

    Raises UserError if a limit is exceeded (with the arithmetic) or a task cannot be forecast.
    """
    within, problems = {}, []
    for key, (column, words) in LIMITS.items():
        limit = budget[key]
        if limit is None:
            continue
        unknown = forecast.loc[forecast[column].isna(), "task"].unique()
        if len(unknown):
            raise UserError(
                f"budget.{key}: {', '.join(unknown)} cannot be forecast; do what {page} says, or "
                "set the limit to null"
            )
        total = float(forecast[column].sum())
        within[key] = {"forecast": total, "limit": limit}
        if total > limit and not math.isclose(total, limit):
            arms = forecast.groupby("arm", sort=False)[column].sum()
            terms = " + ".join(f"{arm} {number(value)}" for arm, value in arms.items())
            problems.append(
                f"budget.{key} is {limit:g}, but the forecast is {terms} = {number(total)} "
                f"{words}: {number(total - limit)} too many"
            )
    if problems:
        raise UserError(
            f"the study {study} exceeds its budget, so nothing is trained. {'; '.join(problems)}. "
            f"Use fewer tasks, folds, arms or epochs, or raise the budget ({page})"
        )
    return within


if __name__ == "__main__":
    redirect(snakemake.log[0])

    write_json(
        check_budget(
            forecast=pd.read_csv(snakemake.input.forecast),
            budget=snakemake.params.budget,
            study=snakemake.params.study,
            page=snakemake.input.page,
        ),
        Path(snakemake.output.within),
    )
