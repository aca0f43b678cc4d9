"""Compare a study's arms with the reference arm, per task and overall: CSV, Markdown, LaTeX."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from workflow_scripts.common.console import redirect
from workflow_scripts.common.errors import UserError
from workflow_scripts.common.files import read_csv
from workflow_scripts.common.formatting import (
    CARBON,
    COMPUTATION,
    ENERGY,
    TIME,
    bullets,
    counted,
    number,
    repeats,
    titled_table,
    unit,
)
from workflow_scripts.evaluation.latex import latex_text
from workflow_scripts.records.energy_conditions import (
    CONDITIONS,
    OTHER_WORK,
    changed_settings,
    describe_carbon,
    measured_as,
)
from workflow_scripts.records.run_reader import KEYS, OVERALL, label_values, mean_of_all

COSTS = (
    "training_steps",
    "training_seconds",
    "training_kwh",
    "training_kg_co2eq",
    "training_gflop",
    "validation_seconds",
)
USED = {"wait_share": mean_of_all, "process_peak_mb": "max", "device_peak_mb": "max"}
"""Columns of runs.csv that tell what a training used, and how they are summarised."""
LONG_WAIT = 0.1
"""Share of the training time from which waiting for batches is worth a note."""
COLUMNS = [
    "task",
    "arm",
    "reference_arm",
    "label",
    "label_name",
    "folds",
    "seeds",
    "cases",
    "nan_dice",
    "dice_mean",
    "dice_std",
    "dice_relative",
    "dice_difference",
    *(column for cost in COSTS for column in (cost, f"{cost}_relative")),
    "tasks",
    "at_least_as_good",
    *USED,
    "energy_source",
    "energy_measured",
    "electricity",
    "energy_note",
]
PRINTED = {
    "training_seconds": ("train {}", TIME, True),
    "training_kwh": ("{}", ENERGY, True),
    "training_kg_co2eq": ("{}", CARBON, False),
    "training_gflop": ("{}", COMPUTATION, True),
}
"""Costs in the printed tables: heading, units to choose from, and whether to show the ratio (the
ratio of kg CO2eq is nearly that of kWh)."""
SMALL = [
    {"selector": "footnotesize", "props": ":;"},
    {"selector": "setlength", "props": r":{\tabcolsep}{2.5pt};"},
]
"""LaTeX commands before each table, so that it fits the page width."""


def training_dice(runs: pd.DataFrame, cases: pd.DataFrame) -> pd.DataFrame:
    """Return the Dice of every training: `KEYS`, label, label_name, dice, nan_dice, cases.

    An empty `label` is the foreground mean (nnU-Net's own, from run.json). The Dice of a label is
    the nanmean over the fold's cases.
    """
    whole = runs[[*KEYS, "dice_foreground_mean", "nan_dice", "cases"]]
    whole = whole.rename(columns={"dice_foreground_mean": "dice"})
    by_label = cases.groupby([*KEYS, "label", "label_name"], as_index=False, sort=False).agg(
        dice=("dice", "mean"),
        nan_dice=("dice", lambda dice: int(dice.isna().sum())),
        cases=("case", "nunique"),
    )
    by_label["label"] = by_label["label"].astype(str)
    return pd.concat([whole.assign(label="", label_name="foreground"), by_label], ignore_index=True)


def compare(
    runs: pd.DataFrame,
    cases: pd.DataFrame,
    reference_arm: str,
    tasks: Iterable[str],
    arms: Iterable[str],
    energy: Mapping[str, Any] | None = None,
) -> pd.DataFrame:
    """Return one row per task (or overall), arm and label, with the columns `COLUMNS`.

    Means and std are over the trainings (every fold with every seed); one training has no std.
    Costs, waiting and peaks of memory are in the foreground row (empty label). `overall` is the
    mean over tasks. Its Dice is averaged over tasks for each fold and seed, and its std is that of
    these means. `*_relative` is the value divided by the reference arm's. `cases` counts the cases
    of one seed.
    `at_least_as_good` counts the tasks (out of `tasks`) whose mean Dice is not below the reference
    arm's. Energies that were measured in different ways have no ratio, nor have emissions of
    different electricity.

    Args:
        runs: runs.csv.
        cases: cases.csv.
        reference_arm: the arm that the others are compared with.
        tasks: all tasks, in the order of the table.
        arms: all arms, in the order of the table.
        energy: the config's section `energy`, to note where it differs from that of a run.

    Raises UserError if the reference arm has no run.
    """
    if reference_arm not in set(runs["arm"]):
        raise UserError(f"reference_arm is {reference_arm}, which has no run in this study")
    dice = training_dice(runs, cases)
    foreground = dice[dice["label"] == ""]
    over_tasks = foreground.groupby(
        ["arm", "fold", "seed", "label", "label_name"], as_index=False
    ).agg(dice=("dice", mean_of_all), nan_dice=("nan_dice", "sum"), cases=("cases", "sum"))
    dice = pd.concat([dice, over_tasks.assign(task=OVERALL)], ignore_index=True)
    table = dice.groupby(["task", "arm", "label", "label_name"], as_index=False).agg(
        folds=("fold", "nunique"),
        seeds=("seed", "nunique"),
        cases=("cases", "sum"),
        nan_dice=("nan_dice", "sum"),
        dice_mean=("dice", "mean"),
        dice_std=("dice", "std"),
    )
    table["cases"] //= table["seeds"]
    runs = runs.reindex(columns=runs.columns.union(USED, sort=False))
    summaries = dict.fromkeys(COSTS, mean_of_all) | USED
    costs = runs.groupby(["task", "arm"], as_index=False).agg(summaries)
    totals = costs.groupby("arm", as_index=False).agg(summaries)
    totals["task"] = OVERALL
    costs = pd.concat([costs, totals], ignore_index=True).assign(label="")
    table = table.merge(costs, on=["task", "arm", "label"], how="left")

    values = ["dice_mean", *COSTS]
    reference = table.loc[table["arm"] == reference_arm, ["task", "label", *values]]
    table = table.merge(reference, on=["task", "label"], how="left", suffixes=("", "_reference"))
    for value in values:
        relative = f"{value.removesuffix('_mean')}_relative"
        table[relative] = table[value] / table[f"{value}_reference"]
    table["dice_difference"] = table["dice_mean"] - table["dice_mean_reference"]
    table["reference_arm"] = reference_arm
    table = table.merge(measured(runs, energy), on=["task", "arm"], how="left")
    table = without_unlike(table)

    per_task = table[(table["task"] != OVERALL) & (table["label"] == "")]
    per_task = per_task.dropna(subset=["dice_difference"])
    # Summing trainings in another order changes the last bit, which is no loss of Dice.
    as_good = (per_task["dice_difference"] >= -1e-12).groupby(per_task["arm"])
    is_overall = table["task"] == OVERALL
    table.loc[is_overall, "tasks"] = table["arm"].map(as_good.count())
    table.loc[is_overall, "at_least_as_good"] = table["arm"].map(as_good.sum())
    table[["tasks", "at_least_as_good"]] = table[["tasks", "at_least_as_good"]].astype("Int64")

    order = {"task": [*tasks, OVERALL], "arm": list(arms)}
    for column, names in order.items():
        table[column] = pd.Categorical(table[column], names)
    table["value"] = table["label"].map(label_values)
    return table.sort_values(["task", "arm", "value"])[COLUMNS].reset_index(drop=True)


def measured(runs: pd.DataFrame, energy: Mapping[str, Any] | None) -> pd.DataFrame:
    """Return how the energy of each arm was measured, by task and overall.

    Values that differ between trainings are joined by ` / `.
    """
    known = [*KEYS, "training_kwh", *CONDITIONS]
    table = runs.reindex(columns=known).astype(object).fillna("")
    rows = table.to_dict("records")
    table["energy_measured"] = measured_as(runs)
    table["electricity"] = [describe_carbon(row) if row["country"] else "" for row in rows]
    changed = [changed_settings(row, energy) if energy else "" for row in rows]
    table["changed"] = [f"the configuration now has {text}" if text else "" for text in changed]
    table.loc[table["training_kwh"] == "", "electricity"] = ""
    columns = ["energy_source", "energy_measured", "electricity"]
    both = pd.concat([table, table.assign(task=OVERALL)], ignore_index=True)
    arms = both.groupby(["task", "arm"])
    found = arms[columns].agg(lambda texts: " / ".join(sorted(set(texts) - {""})))
    found["energy_note"] = [_arm_note(rows) for _, rows in arms]
    return found.reset_index()


def _arm_note(runs: pd.DataFrame) -> str:
    """Return the notes of an arm's trainings; work of others as its largest share."""
    notes = {note for text in runs["energy_note"] for note in text.split("; ")}
    shared = runs.loc[runs["energy_note"].str.contains(OTHER_WORK), "other_cpu_share"]
    texts = {note for note in notes if not note.startswith(OTHER_WORK)} | set(runs["changed"])
    if len(shared):
        texts.add(
            f"{OTHER_WORK} up to {100 * max(shared):.0f} % of the processor time beside "
            f"{len(shared)} of {counted(len(runs), 'training')}"
        )
    return "; ".join(sorted(texts - {""}))


def without_unlike(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table without ratios of energies or emissions that cannot be compared."""
    columns = ["energy_measured", "electricity"]
    reference = table[table["arm"] == table["reference_arm"]]
    reference = reference.drop_duplicates("task").set_index("task")[columns]
    theirs = reference.reindex(table["task"]).set_axis(table.index)
    others = table["arm"] != table["reference_arm"]
    unlike = others & (table["energy_measured"] != theirs["energy_measured"])
    table.loc[unlike, "training_kwh_relative"] = float("nan")
    unlike |= others & (table["electricity"] != theirs["electricity"])
    table.loc[unlike, "training_kg_co2eq_relative"] = float("nan")
    return table


def energy_notes(table: pd.DataFrame) -> list[str]:
    """Return how energies were measured, and which arms cannot be compared because of it."""
    rows = table[(table["task"] == OVERALL) & (table["label"] == "")]
    rows = rows[rows["energy_measured"] != ""]
    if rows.empty:
        return []
    notes = []
    for column, title, unlike in (
        ("energy_measured", "Energy", "no ratio to arms that were measured in another way"),
        ("electricity", "CO2eq", "no ratio to arms with other electricity"),
    ):
        texts = rows.groupby(column, sort=False)["arm"].agg(", ".join)
        if len(texts) == 1:
            notes.append(f"{title}: {texts.index[0]}.")
        else:
            listed = "; ".join(f"{arms}: {text}" for text, arms in texts.items())
            notes.append(f"{title} was not measured alike, so there is {unlike}. {listed}.")
    noted = rows[rows["energy_note"] != ""].groupby("energy_note", sort=False)["arm"]
    notes += [f"Energy of {arms}: {text}." for text, arms in noted.agg(", ".join).items()]
    return notes


def usage_notes(table: pd.DataFrame) -> list[str]:
    """Return the largest memory, and which arms waited long for their batches."""
    rows = table[(table["task"] == OVERALL) & (table["label"] == "")].set_index("arm")
    peaks = {"process_peak_mb": "process", "device_peak_mb": "GPU"}
    memory = [
        f"{name} {rows[column].max() / 1024:.1f} GiB ({rows[column].idxmax()})"
        for column, name in peaks.items()
        if rows[column].notna().any()
    ]
    notes = [f"Largest memory of a training: {', '.join(memory)}."] if memory else []
    waits = rows.loc[rows["wait_share"] > LONG_WAIT, "wait_share"]
    if len(waits):
        listed = ", ".join(f"{arm} {100 * share:.0f} %" for arm, share in waits.items())
        notes.append(
            f"Share of the training time spent waiting for batches: {listed}. More `threads`, or "
            "preprocessed data on a faster disk, shorten it."
        )
    return notes


def cost(row: pd.Series, column: str, scale: float) -> str:
    """Return a cost with its ratio to the reference arm's in brackets."""
    text = number(row[column] * scale)
    relative = row[f"{column}_relative"]
    return text if pd.isna(relative) else f"{text} ({relative:.2f})"


def dice_text(row: pd.Series) -> str:
    """Return mean ± std over folds and seeds, or only the mean if there is no std."""
    if pd.isna(row["dice_mean"]):
        return "–"
    spread = "" if pd.isna(row["dice_std"]) else f" ± {row['dice_std']:.3f}"
    return f"{row['dice_mean']:.3f}{spread}"


def summary_rows(table: pd.DataFrame, task: str) -> pd.DataFrame:
    """Return the printed table of one task (or overall): one row per arm, all cells text."""
    rows = table[(table["task"] == task) & (table["label"] == "")]
    columns = {
        "arm": rows["arm"].astype(str),
        "Dice": rows.apply(dice_text, axis=1),
        "steps": rows["training_steps"].map(lambda n: "–" if pd.isna(n) else f"{n:.0f}"),
    }
    for column, (heading, choices, with_ratio) in PRINTED.items():
        name, scale = unit(table[column], choices)
        columns[heading.format(name)] = (
            rows.apply(cost, axis=1, column=column, scale=scale)
            if with_ratio
            else (rows[column] * scale).map(number)
        )
    return pd.DataFrame(columns)


def label_rows(table: pd.DataFrame, task: str) -> pd.DataFrame:
    """Return the Dice by label of one task: one row per arm, one column per label."""
    rows = table[(table["task"] == task) & (table["label"] != "")]
    text = rows.assign(text=rows.apply(dice_text, axis=1), arm=rows["arm"].astype(str))
    names = rows.drop_duplicates("label").set_index("label")["label_name"]
    order = {"index": text["arm"].unique(), "columns": names.index}
    wide = text.pivot(index="arm", columns="label", values="text").reindex(**order).reset_index()
    headings = ["arm (label)" if name == "arm" else name for name in names]
    return wide.set_axis(["arm", *headings], axis="columns")


def sections(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Return the printed tables with headings: overall (if there are several tasks), then tasks."""
    tasks = [task for task in table["task"].astype(str).unique() if task != OVERALL]
    overall = [(f"Mean of {len(tasks)} tasks", OVERALL)] if len(tasks) > 1 else []
    printed = []
    for heading, task in [*overall, *((task, task) for task in tasks)]:
        rows = table[(table["task"] == task) & (table["label"] == "")]
        folds, seeds, cases = rows[["folds", "seeds", "cases"]].max()
        words = f"{counted(folds, 'fold')}, {counted(cases, 'validation case')}"
        words += f", {counted(seeds, 'seed')}" if seeds > 1 else ""
        printed.append((f"{heading}: {words}", summary_rows(table, task)))
        by_label = label_rows(table, task)
        if task != OVERALL and by_label.shape[1] > 2:
            printed.append((f"{heading}: Dice by label", by_label))
    return printed


def notes(table: pd.DataFrame) -> list[str]:
    """Return notes on the tables, and on how many tasks each arm keeps the Dice."""
    reference = table["reference_arm"].iloc[0]
    trained = repeats(table["folds"].max(), table["seeds"].max())
    overall = table[(table["task"] == OVERALL) & (table["label"] == "")]
    kept = [
        f"{row.arm} {row.at_least_as_good} of {row.tasks}"
        for row in overall.itertuples()
        if row.arm != reference and not pd.isna(row.tasks)
    ]
    missing = int(overall["nan_dice"].sum())
    return [
        f"In brackets: relative to the arm {reference}. Costs are those of one training (mean "
        "over folds and seeds), with the validation patches after each epoch, without set-up and "
        "final validation. FLOP are those of the training iterations alone.",
        "Dice: the foreground mean over a fold's cases, "
        + (
            f"mean ± standard deviation over {trained}."
            if trained
            else "of one training: no spread."
        ),
        *([f"Tasks with a mean Dice not below {reference}: {', '.join(kept)}."] if kept else []),
        *(
            [f"Dice values left out, because the label is in neither image: {missing}."]
            if missing
            else []
        ),
        *(
            ["A dash in the column Dice: the label does not occur in any validation case."]
            if overall["dice_mean"].isna().any()
            else []
        ),
        *usage_notes(table),
        *energy_notes(table),
    ]


def to_markdown(table: pd.DataFrame) -> str:
    """Return the comparison as Markdown that is also readable as plain text."""
    parts = [titled_table(heading, rows) for heading, rows in sections(table)]
    return "\n\n".join([*parts, bullets(notes(table))]) + "\n"


def to_latex(table: pd.DataFrame) -> str:
    """Return the comparison as LaTeX floats, which only need the package booktabs."""
    parts = ["% needs \\usepackage{booktabs}"]
    for heading, rows in sections(table):
        note = "" if "Dice by label" in heading else f". {notes(table)[0]}"
        style = rows.style.hide(axis="index").set_table_styles(SMALL)
        parts.append(
            style.format(latex_text)
            .format_index(latex_text, axis=1)
            .to_latex(
                caption=latex_text(heading + note),
                column_format=f"@{{}}l{'r' * (rows.shape[1] - 1)}@{{}}",
                hrules=True,
                position="htbp",
                position_float="centering",
            )
        )
    return "\n".join(parts)


def compare_arms(
    runs_csv: Path,
    cases_csv: Path,
    outputs: dict[str, Path],
    reference_arm: str,
    tasks: list[str],
    arms: list[str],
    energy: Mapping[str, Any] | None = None,
) -> None:
    """Write the comparison to `outputs`: one path each for csv, md and tex."""
    runs, cases = read_csv(runs_csv), read_csv(cases_csv)
    table = compare(runs, cases, reference_arm, tasks, arms, energy)
    table.to_csv(outputs["csv"], index=False)
    outputs["md"].write_text(to_markdown(table), encoding="utf-8")
    outputs["tex"].write_text(to_latex(table), encoding="utf-8")


if __name__ == "__main__":
    redirect(snakemake.log[0])
    compare_arms(
        runs_csv=Path(snakemake.input.runs),
        cases_csv=Path(snakemake.input.cases),
        outputs={name: Path(path) for name, path in snakemake.output.items()},
        reference_arm=snakemake.params.reference_arm,
        tasks=list(snakemake.params.tasks),
        arms=list(snakemake.params.arms),
        energy=snakemake.params.energy,
    )
