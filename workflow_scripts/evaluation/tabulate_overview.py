"""The whole study in two tables, tasks by arms: Dice, and costs relative to the reference arm."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from workflow_scripts.common.console import redirect
from workflow_scripts.common.files import read_csv
from workflow_scripts.common.formatting import bullets, repeats, titled_table
from workflow_scripts.common.paired_statistics import LEVEL
from workflow_scripts.evaluation.latex import latex_text
from workflow_scripts.records.run_reader import OVERALL, mean_of_all

DICE = "dice"
COSTS = {
    "training_seconds": "time",
    "training_kwh": "energy",
    "training_kg_co2eq": "CO2eq",
    "training_gflop": "FLOP",
}
"""Columns of comparison.csv whose ratios are shown, with their names in the tables."""
RANK = "rank"
WIDE = 5
"""Number of columns that fit a page; wider tables are scaled down."""
COLUMNS = [
    "measure",
    "task",
    "arm",
    "reference_arm",
    "seeds",
    "value",
    "std",
    "best",
    "significant",
    "energy_source",
    "energy_measured",
]
METERED = ("energy", "CO2eq")
"""Measures that rest on the energy meter."""
GAIN, LOSS = "gain", "loss"


def overview(comparison: pd.DataFrame, significance: pd.DataFrame) -> pd.DataFrame:
    """Return one row per measure, task and arm with the columns `COLUMNS`.

    Measures are the foreground Dice and, for each of `COSTS`, the ratio to the reference arm.
    With several tasks, there are two more rows: `overall`, their mean (of ratios, for costs), and
    `rank`, the mean of an arm's ranks on the tasks (1 is the highest Dice or the lowest cost; ties
    share their mean rank). `best` marks the best arm of a row. `significant` is `gain` or `loss`
    if significance.csv has a significant difference from the reference arm, and mean and ranks
    differ in the same direction. `energy_source` and `energy_measured` are those of comparison.csv.

    Args:
        comparison: comparison.csv.
        significance: significance.csv.
    """
    foreground = comparison[comparison["label"].isna()]
    tables = [_measure(foreground, "dice_mean", DICE).assign(std=foreground["dice_std"])]
    tables += [_measure(foreground, f"{cost}_relative", name) for cost, name in COSTS.items()]
    table = pd.concat(tables, ignore_index=True)
    per_task = table[table["task"] != OVERALL]
    if per_task["task"].nunique() < 2:
        table = per_task
    else:
        ratios = _over_tasks(per_task[per_task["measure"] != DICE]).assign(task=OVERALL)
        ranks = _over_tasks(per_task.assign(value=_ranks(per_task))).assign(task=RANK)
        dice = table[(table["measure"] == DICE) & (table["task"] == OVERALL)]
        table = pd.concat([per_task, dice, ratios, ranks], ignore_index=True)
    table["best"] = _ranks(table, "min") == 1
    tested = significance[(significance["measure"] == DICE) & significance["label"].isna()]
    decided = tested[tested["significant"] == "yes"]
    decided = decided[decided["difference"] * decided["rank_biserial"] > 0]
    signs = decided["difference"].map(lambda difference: GAIN if difference > 0 else LOSS)
    decided = decided[["measure", "task", "arm"]].assign(significant=signs)
    table = table.merge(decided, on=["measure", "task", "arm"], how="left")
    table["reference_arm"] = comparison["reference_arm"].iloc[0]
    table["seeds"] = comparison["seeds"].max()
    table["significant"] = table["significant"].astype(object).fillna("")
    columns = ["energy_source", "energy_measured"]
    sources = foreground[foreground["task"] == OVERALL].set_index("arm").reindex(columns=columns)
    metered = table["measure"].isin(METERED)
    for column in columns:
        table[column] = table["arm"].map(sources[column]).where(metered, "").fillna("")
    return table[COLUMNS]


def _measure(foreground: pd.DataFrame, column: str, name: str) -> pd.DataFrame:
    return foreground[["task", "arm"]].assign(measure=name, value=foreground[column])


def _over_tasks(table: pd.DataFrame) -> pd.DataFrame:
    """Return the mean over tasks for each measure and arm; NaN if one task has no value."""
    return table.groupby(["measure", "arm"], sort=False)["value"].agg(mean_of_all).reset_index()


def _ranks(table: pd.DataFrame, method: str = "average") -> pd.Series:
    """Return the ranks of the arms by measure and task: 1 is the best; NaN if there is no value."""
    higher_is_better = (table["measure"] == DICE) & (table["task"] != RANK)
    # Rounded, because sums in another order differ in the last bit.
    signed = table["value"].where(~higher_is_better, -table["value"]).round(9)
    return signed.groupby([table["measure"], table["task"]]).rank(method=method)


def _rows(table: pd.DataFrame, cell: Callable[[pd.Series], str]) -> pd.DataFrame:
    """Return the cells of one measure as text, a row for each task and a column for each arm."""
    names = {OVERALL: "mean", RANK: "mean rank"}
    texts = table.assign(text=table.apply(cell, axis=1), task=table["task"].replace(names))
    order = {"index": texts["task"].unique(), "columns": texts["arm"].unique()}
    return (
        texts.pivot(index="task", columns="arm", values="text")
        .reindex(**order)
        .rename_axis(index="Task")
        .reset_index()
    )


def dice_and_costs(
    table: pd.DataFrame, cell: Callable[[pd.Series], str]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the two printed tables: Dice, and all costs with a column `Cost` in front."""
    dice = _rows(table[table["measure"] == DICE], cell)
    parts = []
    for name in COSTS.values():
        rows = _rows(table[table["measure"] == name], cell)
        rows.insert(0, "Cost", [name, *[""] * (len(rows) - 1)])
        parts.append(rows)
    return dice, pd.concat(parts, ignore_index=True)


def _digits(row: pd.Series) -> str:
    if pd.isna(row["value"]):
        return "–"
    decimals = 1 if row["task"] == RANK else 3 if row["measure"] == DICE else 2
    return f"{row['value']:.{decimals}f}"


def markdown_cell(row: pd.Series) -> str:
    """Return a cell of the Markdown tables: `**0.853** ± 0.012 ↑`."""
    text = f"**{_digits(row)}**" if row["best"] else _digits(row)
    spread = "" if pd.isna(row["std"]) else f"\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}{row['std']:.3f}"
    return text + spread + {"": "", GAIN: " ↑", LOSS: " ↓"}[row["significant"]]


def latex_cell(row: pd.Series) -> str:
    r"""Return a cell of the LaTeX tables: `\textbf{0.853}$_{\pm .012}^{\uparrow}$`."""
    text = _digits(row).replace("–", "--")
    if row["best"]:
        text = rf"\textbf{{{text}}}"
    spread = "" if pd.isna(row["std"]) else rf"_{{\pm {row['std']:.3f}}}".replace("0.", ".", 1)
    mark = {"": "", GAIN: r"^{\uparrow}", LOSS: r"^{\downarrow}"}[row["significant"]]
    return f"{text}${spread}{mark}$" if spread or mark else text


def captions(table: pd.DataFrame, trained: str) -> tuple[str, str]:
    """Return the captions of the two tables; `trained` comes from `formatting.repeats`."""
    reference = table["reference_arm"].iloc[0]
    spread = f", mean ± standard deviation over {trained}" if trained else ", one training each"
    test = (
        "t test over seeds and cases"
        if table["seeds"].max() > 1
        else "Wilcoxon signed-rank test over cases, given this seed"
    )
    ranks = "" if table["task"].nunique() < 2 else " Rank 1 is the best arm of a task."
    measured = " / ".join(sorted(set(table["energy_measured"]) - {""}))
    measured = f" Energy and CO2eq: {measured}." if measured else ""
    return (
        f"Foreground Dice of the final validation{spread}. Bold: the best arm. Arrows: "
        f"significantly above (↑) or below (↓) {reference} ({test}, corrected by Holm, "
        f"p < {LEVEL}).{ranks}",
        f"Costs of training relative to {reference}, lower is better. FLOP are those of the "
        f"training iterations.{measured}{ranks}",
    )


def to_markdown(table: pd.DataFrame, trained: str) -> str:
    """Return both tables as Markdown, under the headings **Dice** and **Costs**."""
    parts = []
    headings, texts = ("Dice", "Costs"), captions(table, trained)
    for heading, text, rows in zip(
        headings, texts, dice_and_costs(table, markdown_cell), strict=True
    ):
        parts.append(f"{titled_table(heading, rows)}\n\n{bullets([text])}")
    return "\n\n".join(parts) + "\n"


def to_latex(table: pd.DataFrame, trained: str) -> str:
    """Return both tables as LaTeX floats, no wider than the text.

    They need the packages booktabs and graphicx. Names of arms are broken at underscores.
    """
    parts = ["% needs \\usepackage{booktabs,graphicx}"]
    texts = captions(table, trained)
    for rows, caption in zip(dice_and_costs(table, latex_cell), texts, strict=True):
        names = [name for name in rows.columns if name in ("Cost", "Task")]
        rows[names] = rows[names].map(latex_text)
        arms = [latex_text(arm).replace(r"\_", r"\\") for arm in rows.columns.drop(names)]
        heads = [*names, *(rf"\shortstack[r]{{{arm}}}" for arm in arms)]
        text = (
            rows.set_axis(heads, axis="columns")
            .style.hide(axis="index")
            .to_latex(
                caption=latex_text(caption),
                column_format=f"@{{}}{'l' * len(names)}{'r' * len(arms)}@{{}}",
                hrules=True,
                position="htbp",
                position_float="centering",
            )
        )
        for name in ("mean", *list(COSTS.values())[1:]):  # a rule above the mean, and each cost
            text = text.replace(f"\n{name} &", f"\n\\midrule\n{name} &")
        if rows.shape[1] > WIDE:
            text = text.replace(
                r"\begin{tabular}", "\\resizebox{\\textwidth}{!}{%\n\\begin{tabular}"
            )
            text = text.replace(r"\end{tabular}", "\\end{tabular}%\n}")
        parts.append(text)
    return "\n".join(parts)


if __name__ == "__main__":
    redirect(snakemake.log[0])
    compared = read_csv(snakemake.input.comparison)
    result = overview(compared, read_csv(snakemake.input.significance))
    result.to_csv(snakemake.output.csv, index=False)
    repeated = repeats(compared["folds"].max(), compared["seeds"].max())
    Path(snakemake.output.md).write_text(to_markdown(result, repeated), encoding="utf-8")
    Path(snakemake.output.tex).write_text(to_latex(result, repeated), encoding="utf-8")
