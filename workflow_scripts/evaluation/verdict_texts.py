"""Say verdicts in words: one line for each arm, what they rest on, and what would settle them."""

import math
from collections import Counter
from collections.abc import Sequence

import pandas as pd

from workflow_scripts.common.formatting import (
    ENERGY,
    bullets,
    counted,
    in_unit,
    markdown_text,
    number,
    pipe_table,
)
from workflow_scripts.evaluation.verdicts import (
    BETTER,
    FEW_CASES,
    KEPT,
    LOST,
    NO_VERDICT,
    ONE_SEED,
    UNDECIDED,
    WORSE,
    verdict,
)
from workflow_scripts.records.run_reader import OVERALL

MARKS = {BETTER: "▲", KEPT: "✓", UNDECIDED: "?", WORSE: "▽", LOST: "✗", NO_VERDICT: "!"}
MEANINGS = {
    BETTER: "the interval is above 0",
    KEPT: "above −margin",
    UNDECIDED: "it holds 0 and −margin, or there are too few seeds or cases",
    WORSE: "below 0, on both sides of −margin",
    LOST: "below −margin",
    NO_VERDICT: "no verdict: a network has not learned",
}
GOOD = (BETTER, KEPT)
WORDS = {"time": "the time", "energy": "the energy", "flop": "the FLOP"}
DURATIONS = ((120.0, "s", 1.0), (7200.0, "min", 60.0), (math.inf, "h", 3600.0))
"""Seconds below which a unit is used, its name, and its seconds."""


def signed(value: float) -> str:
    """Return a difference of Dice with its sign: `+0.012`, `−0.003`."""
    return f"{value:+.3f}".replace("-", "−") if round(value, 3) else "0.000"


def duration(seconds: float) -> str:
    """Return seconds in a suitable unit: `90.0 s`, `30.0 min`, `4.00 h`."""
    _, name, length = next(each for each in DURATIONS if seconds < each[0])
    return f"{number(seconds / length)} {name}"


def decisive(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that answer for the study: those of the mean over tasks, or of its task."""
    overall = table[table["task"] == OVERALL]
    return table if overall.empty else overall


def by_usefulness(table: pd.DataFrame, cost: str) -> pd.DataFrame:
    """Return the decisive rows: first the arms that keep Dice, the cheapest first, then the others.

    Of arms with the same rounded cost, a better one comes first, then that with more Dice.
    """
    rows = decisive(table)
    places = rows["verdict"].map({name: place for place, name in enumerate(MARKS)})
    keys = pd.DataFrame(
        {
            "group": places.mask(rows["verdict"].isin(GOOD), 0),
            "cost": rows[cost].round(2),
            "verdict": places,
            "loss": -rows["difference"],
        }
    )
    return rows.loc[keys.sort_values(list(keys), kind="stable").index]


def headline(table: pd.DataFrame, cost: str) -> str:
    """Return the answer in one sentence: which arm to use, or that none is shown to be as good.

    It is the cheapest arm that keeps Dice and saves something, or else one that is better. Arms
    whose verdict holds jointly for all arms come first, because the best of many arms looks better
    than it is.
    """
    rows = by_usefulness(table, cost)
    reference, margin = rows["reference_arm"].iloc[0], rows["margin"].iloc[0]
    good = rows[rows["verdict"].isin(GOOD)]
    useful = good[(good[cost].round(2) < 1) | (good["verdict"] == BETTER)]
    if not useful.empty:
        sure = useful[useful["joint"].isin(GOOD)]
        row = (useful if sure.empty else sure).iloc[0]
        several = " (taken by itself; not sure as the best of several arms)"
        doubt = several if sure.empty and len(rows) > 1 else ""
        return f"**Use {row['arm']}**: {_result(row)}{_at(row, [cost])}{doubt}."
    if (rows["verdict"] == NO_VERDICT).all():
        return f"**No verdict**: {rows['warning'].iloc[0]}."
    if not good.empty:
        return (
            f"**Stay with {reference}**: no arm that keeps its Dice within {margin:g} saves any of "
            f"{WORDS[cost]}."
        )
    found = Counter(rows["verdict"])
    counts = ", ".join(f"{found[name]} {_name(name)}" for name in MARKS if found[name])
    return (
        f"**No arm is shown to keep the Dice of {reference}** within {margin:g}: of "
        f"{counted(len(rows), 'arm')}, {counts}."
    )


def _name(verdict: str) -> str:
    return "without a verdict" if verdict == NO_VERDICT else verdict


def _interval(row: pd.Series) -> str:
    if pd.isna(row["ci_low"]):
        return signed(row["difference"])
    ends = f"{signed(row['ci_low'])} to {signed(row['ci_high'])}"
    return f"{signed(row['difference'])}, 95 % interval {ends}"


def _result(row: pd.Series) -> str:
    margin = f"{row['margin']:g}"
    return {
        BETTER: "Dice better",
        KEPT: f"Dice kept within {margin}",
        WORSE: "Dice worse",
        LOST: f"Dice lost, by more than {margin}",
        UNDECIDED: "undecided",
    }[row["verdict"]]


def _at(row: pd.Series, costs: Sequence[str]) -> str:
    known = [f"{row[cost]:.2f} of {WORDS[cost]}" for cost in costs if pd.notna(row[cost])]
    return f", at {', '.join(known)}" if known else ""


def arm_line(row: pd.Series, per_task: pd.DataFrame, cost: str) -> str:
    """Return the line of one arm, with its mark.

    Args:
        row: its decisive row of verdicts.csv.
        per_task: its rows by task.
        cost: the cost that comes first.
    """
    costs = [cost, *(name for name in WORDS if name != cost)]
    start = f"{MARKS[row['verdict']]} **{row['arm']}**: "
    if row["verdict"] == NO_VERDICT:
        return f"{start}no verdict, {row['warning']}{_at(row, costs)}."
    text = f"{start}{_result(row)} ({_interval(row)}){_at(row, costs)}."
    if len(per_task) > 1:
        found = Counter(per_task["verdict"])
        counts = ", ".join(f"{found[name]} {_name(name)}" for name in MARKS if found[name])
        text += f" By task: {counts}."
    if row["verdict"] != UNDECIDED:
        return text
    if row["reason"] == ONE_SEED:
        given = {UNDECIDED: "undecided, too"}.get(row["given_seeds"], row["given_seeds"])
        text += f" One seed does not show how much another would change; with it alone: {given}."
    elif row["reason"] == FEW_CASES:
        text += f" There are {FEW_CASES}."
    return f"{text} {settling(row)}"


def settling(row: pd.Series) -> str:
    """Return what would settle an undecided row, with its cost."""
    if row["reason"] == FEW_CASES:
        return "More cases or folds are needed."
    if pd.isna(row["needed_seeds"]):
        return "Nothing within 200 seeds would settle it; a larger margin may."
    seeds, folds = int(row["needed_seeds"]), int(row["needed_folds"])
    parts = []
    if seeds > row["seeds"]:
        parts.append(counted(seeds - row["seeds"], "further seed"))
    if folds > row["folds"]:
        parts.append(counted(folds - row["folds"], "further fold"))
    if row["needed_by"] == "cases":
        parts.append(f"{row['needed_cases'] - row['cases']:,.0f} further cases")
    what = " and ".join(parts)
    if row["reason"] == ONE_SEED:
        start = f"Train {what} to learn it"
    else:
        start = f"With {what}, a verdict has a probability of 80 %"
    kwh = "" if pd.isna(row["needed_kwh"]) else f", {in_unit(row['needed_kwh'], ENERGY)}"
    time = duration(row["needed_seconds"])
    return f"{start}: {counted(row['needed_trainings'], 'training')}, {time}{kwh}."


def basis(table: pd.DataFrame, runs: pd.DataFrame) -> str:
    """Return what the verdicts rest on, and the cost of one training of the reference arm."""
    reference = table["reference_arm"].iloc[0]
    rows = decisive(table)
    own = runs[runs["arm"] == reference]
    steps = runs["training_steps"]
    span = " to ".join(f"{count:,.0f}" for count in sorted({steps.min(), steps.max()}))
    kwh = own["training_kwh"].mean()
    time = duration(own["training_seconds"].mean())
    energy = "" if pd.isna(kwh) else f" and {in_unit(kwh, ENERGY)}"
    trained = (
        f"{counted(runs['fold'].nunique(), 'fold')} × {counted(runs['seed'].nunique(), 'seed')}"
    )
    return (
        f"This rests on {counted(runs['task'].nunique(), 'task')}, {trained} and "
        f"{counted(rows['cases'].max(), 'validation case')}; a training takes {span} optimiser "
        f"steps, and one of {reference} {time}{energy}."
    )


def notes(table: pd.DataFrame) -> list[str]:
    """Return how far the verdicts can be trusted."""
    rows = decisive(table)
    decided = rows[~rows["verdict"].isin([UNDECIDED, NO_VERDICT])]
    found = []
    if rows["covers_seeds"].any():
        found.append(
            "Each verdict follows from a 95 % interval for new seeds and new cases, so it is wrong "
            "in at most one study of twenty."
        )
    if len(rows) > 1 and not decided.empty:
        lasting = decided.loc[decided["joint"] == decided["verdict"], "arm"]
        found.append(
            f"Also jointly for all {len(rows)} arms, as the best of many needs: "
            f"{', '.join(lasting) if len(lasting) else 'none'}."
        )
    other = decided[
        [
            verdict(low, high, margin) != name
            for low, high, margin, name in zip(
                decided["t_low"],
                decided["t_high"],
                decided["margin"],
                decided["verdict"],
                strict=True,
            )
        ]
    ]
    if not other.empty:
        found.append(
            "Student's t over the seeds, which takes these cases as given, has another verdict for "
            f"{', '.join(other['arm'])}."
        )
    return found


def marks_table(table: pd.DataFrame) -> str:
    """Return the marks of tasks by arms as Markdown, with one legend."""
    marks = table.assign(mark=table["verdict"].map(MARKS), task=table["task"].astype(str))
    order = {"index": marks["task"].unique(), "columns": marks["arm"].unique()}
    wide = marks.pivot(index="task", columns="arm", values="mark").reindex(**order)
    wide = wide.rename(index={OVERALL: "mean"}).rename_axis("task").reset_index()
    return pipe_table(wide.rename(columns=markdown_text))


def legend(table: pd.DataFrame) -> str:
    """Return the meaning of the marks in the table."""
    present = [name for name in MARKS if name in set(table["verdict"])]
    return "; ".join(
        f"{MARKS[name]} {MEANINGS[name]}"
        if name == NO_VERDICT
        else f"{MARKS[name]} {name}: {MEANINGS[name]}"
        for name in present
    )


def to_markdown(table: pd.DataFrame, runs: pd.DataFrame, reference_arm: str, cost: str) -> str:
    """Return the answer as Markdown that is also readable as plain text.

    Args:
        table: verdicts.csv.
        runs: runs.csv.
        reference_arm: its name, also if there is no other arm.
        cost: the cost by which arms are ordered.
    """
    if table.empty:
        return f"Only the reference arm, {reference_arm}, was trained: nothing to compare yet.\n"
    per_task = table[table["task"] != OVERALL]
    rows = by_usefulness(table, cost)
    lines = [
        arm_line(row, per_task[per_task["arm"] == row["arm"]], cost) for _, row in rows.iterrows()
    ]
    parts = [f"{headline(table, cost)} {basis(table, runs)}", bullets(lines)]
    if len(table) > len(rows):
        parts.append(marks_table(table))
    parts.append(f"{legend(table)}. {' '.join(notes(table))}".strip())
    return "\n\n".join(parts) + "\n"


def ranks_markdown(ranks: pd.DataFrame) -> str:
    """Return for each task how stable its ranks are, and whether it tells arms apart."""
    rows = []
    for task, of_task in ranks.groupby("task", sort=False):
        if len(of_task) < 2:
            continue
        best = of_task.sort_values("rank").iloc[0]
        ratio = "–" if pd.isna(best["ratio"]) else f"{best['ratio']:.1f}"
        rows.append(
            {
                "task": task,
                "first": f"{best['arm']} ({100 * best['first']:.0f} %)",
                "its rank": f"{best['rank_low']:.0f} to {best['rank_high']:.0f} of {len(of_task)}",
                "between arms": f"{best['between_arms']:.4f}",
                "between seeds": "–"
                if pd.isna(best["between_seeds"])
                else f"{best['between_seeds']:.4f}",
                "ratio": ratio,
                "tells arms apart": best["tells_apart"] or "unknown: one seed",
            }
        )
    if not rows:
        return "There are no arms to rank.\n"
    return f"{pipe_table(pd.DataFrame(rows))}\n"
