"""The forecast as a page of one screen: totals, arms, assumptions, error."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from workflow_scripts.common.formatting import (
    CARBON,
    COMPUTATION,
    ENERGY,
    TIME,
    bullets,
    counted,
    in_unit,
    number,
    pipe_table,
    unit,
)
from workflow_scripts.forecast.calibration import errors_text
from workflow_scripts.forecast.forecast_columns import SUMS, UNPLANNED, WORK
from workflow_scripts.study.specification import Arm


def to_markdown(
    table: Any,
    study: str,
    reference_arm: str,
    training: Mapping[str, Any],
    calibration: Any,
    country: str,
    kg_per_kwh: float,
    pue: float,
    workers: int | None = None,
    arms: Iterable[Arm] = (),
) -> str:
    """Return the forecast as Markdown of one screen: totals, arms, assumptions, error.

    `training` is the length in the section `training`, which `arms` may replace. `workers` is the
    number of workers that load batches; None if the measured seconds include loading.
    """
    unplanned = list(dict.fromkeys(table.loc[table["plan"] == UNPLANNED, "task"]))
    known = table[table["plan"] != UNPLANNED]
    counts = [
        counted(n, word)
        for n, word in (
            (table["task"].nunique(), "task"),
            (table["arm"].nunique(), "arm"),
            (int(table["folds"].max()), "fold"),
            (int(table["seeds"].max()), "seed"),
        )
        if word != "seed" or n > 1
    ]
    lines = [
        f"**Forecast of the study {study}: {' × '.join(counts)}, {length_text(training, arms)}**"
    ]
    lines.append(total_line(table, calibration))
    if len(known):
        lines.append(pipe_table(arm_rows(known, reference_arm)))
    notes = []
    if unplanned:
        notes.append(
            f"Left out, because no plan is known yet: {', '.join(unplanned)}. Plan first (needs "
            "the data, but no GPU): `snakemake plans` with the same configuration, then `snakemake "
            "forecast`."
        )
    sources = known.groupby("plan", sort=False)["task"].unique()
    notes += [f"Plans {source}: {', '.join(tasks)}." for source, tasks in sources.items()]
    notes += [
        *(calibration_notes(calibration) if calibration.source else []),
        *calibration.notes,
        *([] if workers is None else [loading_note(known, workers)]),
        "Included: training, the validation after each epoch, the final sliding-window validation "
        "(windows of the median case). Not included: preprocessing, set-up, lost work.",
        *([memory_note(known)] if len(known) else []),
        f"kg CO2eq: {number(1000 * kg_per_kwh)} g/kWh ({country}, codecarbon); power usage "
        f"effectiveness {pue:g}.",
        "Sums over folds and seeds. Relative: "
        + ("hours" if calibration.source else "computation")
        + f" compared with the arm {reference_arm}; in brackets the range over the tasks.",
    ]
    lines.append(bullets(notes))
    return "\n\n".join(lines) + "\n"


def total_line(table: Any, calibration: Any) -> str:
    """Return the cost of the whole study in one sentence, with the device that it refers to."""
    known = table[table["plan"] != UNPLANNED]
    if known.empty:
        return "Total: unknown, because no task is planned yet."
    total = known[[*WORK, "hours", "kwh", "kg_co2eq"]].sum(skipna=False)
    if not calibration.source:
        computed = in_unit(1000 * total[WORK].sum(), COMPUTATION)
        return (
            f"Total: {computed} of computation. Time and energy are unknown: no run on this "
            f"{calibration.device} was measured."
        )
    days = f" ({number(total['hours'] / 24)} days)" if total["hours"] > 48 else ""
    return (
        f"Total: {in_unit(3600 * total['hours'], TIME)}{days} of one {calibration.device}, "
        f"{in_unit(total['kwh'], ENERGY)}, {in_unit(total['kg_co2eq'], CARBON)}."
    )


def calibration_notes(calibration: Any) -> list[str]:
    """Return notes on the fitted model and its errors."""
    slow = 1000 * calibration.seconds_per_iteration
    errors = (f"{what}: {errors_text(found)}" for what, found in calibration.errors.items())
    return [
        f"Calibration: {calibration.source}. An iteration takes {number(slow)} ms + "
        f"{number(1000 * calibration.seconds_per_tflop)} ms per TFLOP, plus "
        f"{number(calibration.seconds_per_epoch)} s per epoch.",
        f"Relative error of the hours: {'; '.join(errors)}.",
    ]


def length_text(training: Mapping[str, Any], arms: Iterable[Arm]) -> str:
    """Return the epochs and iterations per epoch of a study, as ranges if arms differ."""
    lengths = [{**training, **arm.own_length} for arm in arms] or [{**training}]
    words = {"epochs": "epochs", "iterations_per_epoch": "iterations"}
    ranges = {key: sorted({length[key] for length in lengths}) for key in words}
    return " × ".join(
        f"{found[0]}{f'–{found[-1]}' if found[1:] else ''} {words[key]}"
        for key, found in ranges.items()
    )


def loading_note(known: Any, workers: int) -> str:
    """Return a note on the share of loading in the hours, for arms with more than 1 %."""
    sums = known.groupby("arm", sort=False)[["waiting_hours", "hours"]].sum()
    shares = sums["waiting_hours"] / sums["hours"]
    slowed = ", ".join(f"{arm} {share:.0%}" for arm, share in shares.items() if share > 0.01)
    return (
        f"If loading with {counted(workers, 'worker')} is slower than the network, the wait is "
        f"included; its share of the hours: {slowed or 'below 1 % in every arm'}."
    )


def memory_note(known: Any) -> str:
    """Return a note on the GPU memory: the largest need, and what comes on top of the plans."""
    largest = known["gpu_memory_gb"].max()
    if math.isnan(largest):
        return "GPU memory is not estimated: nnU-Net has no estimate for a transformer."
    beyond = known.groupby("arm", sort=False)["beyond_plan_gb"].max()
    more = ", ".join(f"{arm} {number(size)} GB" for arm, size in beyond.items() if size > 0)
    return (
        f"GPU memory, estimated: at most {number(largest)} GB. On top of what "
        f"nnU-Net planned for: {more or 'nothing'}."
    )


def arm_rows(known: Any, reference_arm: str) -> Any:
    """Return the printed table: one row per arm, summed over all trainings, as text.

    Without a calibration, only the computation is known, and compared.
    """
    timed = known["hours"].notna().any()
    totals = known.groupby("arm", sort=False)[SUMS].sum(min_count=1)
    totals["work"] = totals[WORK].sum(axis=1)
    if timed:
        ratios = known["relative_to_reference"]
    else:
        work = known.assign(work=known[WORK].sum(axis=1)).set_index("task")["work"]
        reference = work[known["arm"].eq(reference_arm).to_numpy()]
        ratios = pd.Series(work.to_numpy() / reference[work.index].to_numpy(), known.index)
    ranges = ratios.groupby(known["arm"], sort=False).agg(["min", "max"])
    compared = totals["hours" if timed else "work"]
    relative = compared / compared[reference_arm]
    spread = [
        f" ({low:.2f}–{high:.2f})" if high - low > 0.005 else "" for low, high in ranges.to_numpy()
    ]
    rows = {"arm": list(totals.index)}
    costs = {
        "time": (3600 * totals["hours"], TIME),
        "energy": (totals["kwh"], ENERGY),
        "carbon": (totals["kg_co2eq"], CARBON),
        "work": (1000 * totals["work"], COMPUTATION),
    }
    for what in costs if timed else ("work",):
        values, choices = costs[what]
        name, scale = unit(values, choices)
        rows[name] = [number(value * scale) for value in values]
        if what == ("time" if timed else "work"):
            rows["relative"] = [f"{r:.2f}{s}" for r, s in zip(relative, spread, strict=True)]
    return pd.DataFrame(rows)
