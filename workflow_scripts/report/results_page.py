"""Texts and tables of the notebook `results`: the answer, what it rests on, and how it was made."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from workflow_scripts.common.formatting import counted

PAPER_ITERATIONS = 250_000
"""Training iterations of the papers: 1,000 epochs of 250."""
DEMO_TASK = "Task99_BrainTissue"
"""As in `study.tasks`, which would bring torch into the environment of the notebooks."""
TEXT_COLUMNS = ("seed", "git_commit", "trainer_code", "plans_hash")
"""Columns of runs.csv that look like numbers and are none."""
COSTS_HEADING = "**Costs"
"""Beginning of the second half of overview.md."""
MEASURES = {"dice": "Dice", "nsd": "NSD"}
NOTHING = "Only the reference arm, {}, was trained: nothing to compare yet."


@dataclass(frozen=True)
class Results:
    """Tables of a study: comparison.csv, runs.csv, energy.csv and significance.csv."""

    comparison: pd.DataFrame
    runs: pd.DataFrame
    energy: pd.DataFrame
    significance: pd.DataFrame

    @classmethod
    def read(cls, comparison: str, runs: str, energy: str, significance: str) -> "Results":
        """Read the tables from their paths."""
        return cls(
            pd.read_csv(comparison),
            pd.read_csv(runs, dtype=dict.fromkeys(TEXT_COLUMNS, str)),
            pd.read_csv(energy),
            pd.read_csv(significance, dtype={"label": str}),
        )

    @property
    def reference(self) -> str:
        """Name of the reference arm."""
        return str(self.comparison["reference_arm"].iloc[0])

    @property
    def tasks(self) -> list[str]:
        """Tasks with a training."""
        return list(self.runs["task"].unique())

    @property
    def folds(self) -> list[int]:
        """Folds with a training."""
        return list(self.runs["fold"].unique())

    @property
    def seeds(self) -> list[str]:
        """Seeds with a training."""
        return list(self.runs["seed"].unique())

    @cached_property
    def tests(self) -> pd.DataFrame:
        """Tests of the means over a case's foreground labels."""
        table = self.significance
        return table[table["label"].isna() & (table["pairs"] > 0)]

    @cached_property
    def overall(self) -> pd.DataFrame:
        """The row of each arm over all tasks, with the arms as index.

        Ratios of costs are means over the tasks, not the ratio of sums.
        """
        foreground = self.comparison[self.comparison["label"].isna()]
        of_all = foreground["task"] == "overall"
        overall = foreground[of_all].set_index("arm", drop=False)
        ratios = [name for name in foreground if name.endswith("_relative")]
        ratios.remove("dice_relative")
        of_tasks = foreground[~of_all].groupby("arm")[ratios]
        overall[ratios] = of_tasks.agg(lambda values: values.mean(skipna=False))
        return overall

    @property
    def others(self) -> pd.DataFrame:
        """The rows of `overall` without the reference arm's."""
        return self.overall[self.overall["arm"] != self.reference]


def answer_parts(text: str) -> tuple[str, str]:
    """Return verdicts.md as what stands above the figure, the answer, and what stands below it."""
    answer, _, rest = text.partition("\n\n")
    return answer, rest


def share(value: float) -> str:
    """Return a ratio of costs with two decimals."""
    return "an unknown share" if pd.isna(value) else f"{value:.2f}"


def tested(results: Results, arm: str) -> str:
    """Return on how many tasks an arm's Dice is significantly higher or lower.

    Only tests whose effect has the sign of the mean difference are counted.
    """
    tests = results.tests
    of_dice = tests[(tests["arm"] == arm) & (tests["measure"] == "dice")]
    if of_dice["p"].isna().all():
        return "too few cases, or equal ones, for a test of that"
    agree = of_dice["difference"] * of_dice["rank_biserial"] > 0
    decided = of_dice[(of_dice["significant"] == "yes") & agree]
    return (
        f"significantly higher on {sum(decided['difference'] > 0)}, lower on "
        f"{sum(decided['difference'] < 0)}{' given this seed' if len(results.seeds) == 1 else ''}"
    )


def describe_study(results: Results, study: str) -> str:
    """Return what was trained, with a warning about the demo's data and about a small budget."""
    runs, tasks, folds, seeds = results.runs, results.tasks, results.folds, results.seeds
    lines = [
        f"Study **{study}**: {', '.join(tasks)}; {'folds' if len(folds) > 1 else 'fold'} "
        f"{', '.join(map(str, folds))}; {'seeds' if len(seeds) > 1 else 'seed'} "
        f"{', '.join(seeds)}; arms: {', '.join(runs['arm'].unique())}."
    ]
    if DEMO_TASK in tasks:
        lines.append(
            f"> **{DEMO_TASK} is semi-synthetic**: its cases are deformed, noisy copies of one "
            "brain template, made by this workflow. Its numbers show that the machinery works. "
            "They say nothing about medical performance."
        )
    iterations = (runs["epochs"] * runs["iterations_per_epoch"]).unique()
    if max(iterations) < PAPER_ITERATIONS:
        lines.append(
            f"> **Reduced budget**: {', '.join(f'{number:,}' for number in iterations)} training "
            f"iterations per run. The paper's claims are about {PAPER_ITERATIONS:,}; a short "
            "training may turn out otherwise."
        )
    return "\n\n".join(lines)


def describe_arms(results: Results) -> str:
    """Return a list with a sentence for each arm: its Dice and its costs."""
    sentences = []
    for row in results.others.itertuples():
        if pd.isna(row.dice_difference):
            sentences.append(f"- **{row.arm}**: no Dice to compare.")
            continue
        verdict = "not below" if row.dice_difference >= 0 else "below"
        sentences.append(
            f"- **{row.arm}**: mean Dice {row.dice_mean:.3f}, {verdict} that of "
            f"{results.reference} ({row.dice_difference:+.3f}), and not below it on "
            f"{row.at_least_as_good:.0f} of {counted(row.tasks, 'task')} "
            f"({tested(results, row.arm)}); "
            f"at {share(row.training_seconds_relative)} of its training time, "
            f"{share(row.training_kwh_relative)} of its energy and "
            f"{share(row.training_gflop_relative)} of its computation."
        )
    return "\n".join(sentences or [NOTHING.format(results.reference)])


def overview_parts(results: Results, page: str) -> tuple[str, str]:
    """Return both halves of overview.md: Dice and costs.

    With one task they are empty: the cost table of comparison.md shows the same.
    """
    if len(results.tasks) == 1:
        return "", ""
    dice, heading, costs = page.partition(COSTS_HEADING)
    return dice, heading + costs


def cost_tables(costs: str, comparison: str) -> str:
    """Return the costs of overview.md with comparison.md folded below, or the latter alone."""
    if not costs:
        return comparison
    summary = "<details><summary>Every task by itself</summary>"
    return f"{costs}\n\n{summary}\n\n{comparison}\n\n</details>"


def significance_page(results: Results) -> str:
    """Return the table of all tests, and what they do not cover."""
    tests, seeds = results.tests, len(results.seeds)
    if tests.empty:
        return f"Only the reference arm, {results.reference}, was trained: nothing to test."
    table = pd.DataFrame([_test_row(row, seeds) for row in tests.to_dict("records")])
    parts = [table.to_markdown(index=False, disable_numparse=True)]
    if seeds == 1:
        parts.append(
            "There is only one seed, so these numbers do not cover the randomness of training."
        )
    elif tests["new_seed_agrees"].notna().any():
        parts.append(
            "new seed: estimated probability that training with a new seed gives a difference of "
            "the same sign."
        )
    without = sorted(set(results.tasks) - set(tests.loc[tests["measure"] == "nsd", "task"]))
    if without:
        parts.append(
            f"No NSD for {', '.join(without)}: `config/tables/datasets.tsv` has no tolerance for "
            "the task."
        )
    return "\n\n".join(parts)


def _test_row(row: Mapping[Any, Any], seeds: int) -> dict[str, Any]:
    """Return the printed cells of one test; the agreement of a new seed needs three seeds."""
    interval = "" if pd.isna(row["ci_low"]) else f" [{row['ci_low']:+.3f}, {row['ci_high']:+.3f}]"
    new_seed = "–" if pd.isna(row["new_seed_agrees"]) else f"{row['new_seed_agrees']:.2f}"
    return {
        "measure": MEASURES[row["measure"]],
        "task": row["task"],
        "arm": row["arm"],
        "cases": row["pairs"],
        "difference": f"{row['difference']:+.4f}{interval}",
        "p": row["note"] if pd.isna(row["p_holm"]) else f"{row['p_holm']:.2g}",
        **({} if seeds < 3 else {"new seed": new_seed}),
        "effect": "–" if pd.isna(row["rank_biserial"]) else f"{row['rank_biserial']:+.2f}",
    }


def listed(table: pd.DataFrame, column: str, missing: str = "not known") -> str:
    """Return the distinct values of a column, separated by commas; `missing` if there is none.

    Readings of one quantity may differ in the last bit, so numbers get four digits.
    """
    values = table[column].dropna()
    if pd.api.types.is_float_dtype(values):
        values = values.map("{:.4g}".format)
    return ", ".join(map(str, values.unique())) or missing


def describe_runs(results: Results) -> str:
    """Return a table of what made the runs: versions, code, seed, settings and hardware."""
    runs = results.runs
    of = {column: listed(runs, column) for column in runs}
    versions = {name.removeprefix("version_"): name for name in of if name.startswith("version_")}
    facts = {
        "versions": ", ".join(f"{short} {of[name]}" for short, name in versions.items()),
        "code": f"git commit {of['git_commit']}; trainers {of['trainer_code']}",
        "seed": of["seed"],
        "training": f"{of['epochs']} epochs of {of['iterations_per_epoch']} iterations, "
        f"{of['validation_iterations_per_epoch']} validation iterations",
        "plans": f"{of['plans']}, {of['configuration']}; patch {of['patch_size']}; "
        f"batch {of['batch_size']}; hash {of['plans_hash']}",
        "device": f"{of['device']}, {of['precision']}, {of['threads']} threads",
        "hardware": f"{of['cpu_model']}; GPU: {listed(runs, 'gpu_model', 'none used')}",
        "trained": f"{runs['started'].min()} to {runs['finished'].max()}",
        "attempts": f"{runs['attempts'].sum()} for {len(runs)} runs",
    }
    return _facts(facts, "of the runs")


def describe_energy(results: Results) -> str:
    """Return a table of how energy was measured, and what the whole study took."""
    runs, energy = results.runs, results.energy
    of = {column: listed(energy, column) for column in energy}
    total, kept = runs["total_kwh"].sum(), runs["training_kwh"].sum()
    facts = {
        "sensors": of["sensors"],
        "source": f"processor: {of['cpu_source']}, GPU: {of['gpu_source']}, "
        f"memory: {of['ram_source']}",
        "tracking": f"codecarbon {of['codecarbon']}, mode {of['tracking_mode']}",
        "carbon intensity": f"{of['country']}, {of['g_co2eq_per_kwh']} g CO2eq/kWh",
        "power usage effectiveness": of["pue"],
        "whole study": f"{runs['total_seconds'].sum() / 3600:.3g} h, {total:.3g} kWh, "
        f"{runs['total_kg_co2eq'].sum():.3g} kg CO2eq, with set-up, validation and repeated "
        f"attempts; {kept:.3g} kWh of it is training that was kept",
        "errors of the meter": listed(energy, "error", "none"),
        "other work": listed(energy, "note", "none noted"),
    }
    return _facts(facts, "of the energy")


def _facts(facts: Mapping[str, str], heading: str) -> str:
    return str(pd.Series(facts, name="").rename_axis(heading).to_markdown())


def read_page(path: str) -> str:
    """Return a Markdown page."""
    return Path(path).read_text(encoding="utf-8")
