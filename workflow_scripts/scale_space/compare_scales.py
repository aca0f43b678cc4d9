"""Compare hypernetworks with controls at the same scale factor: paired statistics over cases."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from workflow_scripts.common.console import redirect
from workflow_scripts.common.files import read_json, write_csv
from workflow_scripts.common.formatting import pipe_table
from workflow_scripts.common.paired_statistics import LEVEL, compare_pairs, holm
from workflow_scripts.records.run_reader import ending_of, read_cases
from workflow_scripts.study.scale_grid import role_of

COLUMNS = [
    "task",
    "arm",
    "scale",
    "other_arm",
    "other_role",
    "folds",
    "pairs",
    "left_out",
    "zeros",
    "mean",
    "mean_reference",
    "difference",
    "ci_low",
    "ci_high",
    "p",
    "tests",
    "p_holm",
    "significant",
    "rank_biserial",
    "cohen_dz",
    "note",
]
QUESTIONS = {
    "stochastic": "is the hypernetwork better than only drawing the scale factor?",
    "film": "are separate weights needed, or is it enough to scale and shift features?",
    "fixed_hyper": "what do many scale factors cost, in the same parametrisation?",
    "fixed": "is it as good as a network trained for this scale factor alone?",
    "stock": "how much is lost against nnU-Net's own network?",
}
"""Question that the comparison with each kind of control answers, in the order of the page."""


def case_dice(
    evaluation: Mapping[str, Any], summary: Path, labels: Sequence[str], ending: str = ".nii.gz"
) -> pd.DataFrame:
    """Return task, arm, scale, fold, case and dice; dice is the nanmean over a case's labels.

    Args:
        evaluation: content of an output file of `evaluate_scale`.
        summary: the evaluation's summary file of the cases.
        labels: foreground labels (or regions) as named in the summary.
        ending: file ending of the dataset.
    """
    cases = read_cases(summary, {label: label for label in labels}, ending)
    means = cases.groupby("case", as_index=False, sort=False)["dice"].mean()
    scale = evaluation["scale"]
    return means.assign(
        task=evaluation["task"],
        arm=evaluation["arm"],
        scale=float("nan") if scale is None else float(scale),
        fold=evaluation["fold"],
    )


def compare_scales(cases: pd.DataFrame, arms: Mapping[str, Any], seed: int) -> pd.DataFrame:
    """Compare each hypernetwork at each scale factor with the controls of that scale factor.

    nnU-Net's own network is compared at every scale factor. Pairs are the cases of all folds.
    P-values are corrected with Holm's method over all rows. The columns are `COLUMNS`;
    `mean_reference` is the control's mean.

    Args:
        cases: concatenated tables of `case_dice`.
        arms: the config's section `arms`.
        seed: seed of the bootstrap.
    """
    roles = {name: role_of(arm) for name, arm in arms.items()}
    models = {
        key: model.set_index(["fold", "case"])["dice"]
        for key, model in cases.groupby(["task", "arm", "scale"], sort=False, dropna=False)
    }
    pairs = [
        (one, other)
        for one in models
        for role in QUESTIONS
        for other in models
        if roles[one[1]] == "hypernetwork"
        and one[0] == other[0]
        and role == roles[other[1]]
        and (role == "stock" or one[2] == other[2])
    ]
    rows = []
    for one, other in pairs:
        both = pd.concat([models[one], models[other]], axis=1, join="outer")
        found = compare_pairs(both.iloc[:, 0], both.iloc[:, 1], len(pairs), seed)
        task, arm, scale = one
        rows.append(
            {"task": task, "arm": arm, "scale": scale, "tests": len(pairs)}
            | {"other_arm": other[1], "other_role": roles[other[1]]}
            | {"folds": both.index.unique("fold").size, **found}
        )
    for row, p in zip(rows, holm([row["p"] for row in rows], len(rows)), strict=True):
        row["p_holm"] = p
        row["significant"] = "" if pd.isna(p) else ("yes" if p < LEVEL else "no")
    return pd.DataFrame(rows, columns=COLUMNS)


def to_markdown(table: pd.DataFrame) -> str:
    """Return one table per task, hypernetwork and kind of control, below its question."""
    parts = []
    for (task, arm), same in table.groupby(["task", "arm"], sort=False):
        for role, question in QUESTIONS.items():
            rows = same[same["other_role"] == role]
            if len(rows):
                parts.append(f"**{task}, {arm} against {role.replace('_', ' ')}: {question}**")
                parts.append(pipe_table(_rows(rows)))
    parts.append(
        textwrap.fill(
            "Differences of the mean Dice over the validation cases, with the 95 % interval of a "
            "bootstrap over them; p of Wilcoxon's signed-rank test, corrected by Holm over the "
            f"{len(table)} comparisons. They apply to these cases, not to another training: every "
            "arm was trained once per fold, with one seed.",
            100,
        )
    )
    return "\n\n".join(parts) + "\n"


def _rows(rows: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "scale": rows["scale"].map("{:g}".format),
            "against": rows["other_arm"],
            "cases": rows["pairs"].astype(str),
            "Dice": rows["mean"].map("{:.3f}".format),
            "control's Dice": rows["mean_reference"].map("{:.3f}".format),
            "difference": [
                f"{d:+.3f}" if pd.isna(low) else f"{d:+.3f} ({low:+.3f} to {high:+.3f})"
                for d, low, high in zip(
                    rows["difference"], rows["ci_low"], rows["ci_high"], strict=True
                )
            ],
            "p": [
                note if pd.isna(p) else f"{p:.2g}"
                for p, note in zip(rows["p_holm"], rows["note"], strict=True)
            ],
        }
    )


if __name__ == "__main__":
    redirect(snakemake.log[0])

    records = [read_json(Path(path), "train this fold again") for path in snakemake.input.runs]
    labels = {
        record["task"]: (list(record["label_names"]), ending_of(record)) for record in records
    }
    models = [
        case_dice(evaluation, Path(summary), *labels[evaluation["task"]])
        for path, summary in zip(
            snakemake.input.evaluations, snakemake.input.summaries, strict=True
        )
        for evaluation in [read_json(Path(path))]
    ]
    compared = compare_scales(pd.concat(models), snakemake.params.arms, snakemake.params.seed)
    write_csv(compared, Path(snakemake.output.csv))
    Path(snakemake.output.md).write_text(to_markdown(compared), encoding="utf-8")
