"""Texts and tables of the notebook `curricula`: stages of the arms, and foreground in patches."""

from math import prod

import pandas as pd

from workflow_scripts.common.formatting import markdown_text


def read_shares(path: str) -> pd.DataFrame:
    """Read class_balance.csv; a label may be called NA."""
    return pd.read_csv(path, keep_default_na=False, na_values=[""], dtype={"label": str})


def stage_tables(stages: pd.DataFrame, runs: pd.DataFrame) -> str:
    """Return a table of each task with the stages of every arm's first fold.

    Voxels are those of an iteration relative to the planned patch and batch.
    """
    parts = []
    for task in runs["task"].unique():
        table = stages[stages["task"] == task]
        table = table[table["fold"] == table.groupby("arm")["fold"].transform("min")]
        run = runs[runs["task"] == task].iloc[0]
        planned = run["batch_size"] * prod(map(int, run["patch_size"].split("x")))
        time = table["seconds"] / table.groupby("arm")["seconds"].transform("sum")
        shown = pd.DataFrame(
            {
                "arm": table["arm"],
                "stage": (table["stage"] + 1).map("{:.0f}".format).replace("nan", "–"),
                "patch": table["patch_size"].replace("random", "drawn each time"),
                "batch": table["batch_size"],
                "epochs": table["epochs"],
                "voxels": (table["voxels_per_iteration"] / planned).map("{:.3f}".format),
                "seconds": table["seconds"].map("{:.1f}".format),
                "share of time": time.map("{:.0%}".format),
                "kWh": table["kwh"].map("{:.3g}".format),
                "pseudo Dice": table["pseudo_dice"].map("{:.3f}".format),
            }
        )
        parts.append(f"### {task}\n\n{shown.to_markdown(index=False, disable_numparse=True)}")
    return "\n\n".join(parts)


def describe_foreground(shares: pd.DataFrame, tasks: list[str]) -> str:
    """Return a sentence for each task: foreground in the smallest and the largest patches.

    Foreground is forced, and the field of view is the patch itself.
    """
    lines = []
    whole = shares[shares["forced"] & (shares["field_of_view"] == shares["patch_size"])]
    for task in tasks:
        any_label = whole[(whole["task"] == task) & (whole["label"] == "0")]
        ordered = any_label.sort_values("patch_voxels")
        small, large = ordered.iloc[0], ordered.iloc[-1]
        ratio = small["foreground_share"] / large["foreground_share"]
        lines.append(
            f"- **{task}**: with forced foreground, patches of {small['patch_size']} contain "
            f"{small['foreground_share']:.2%} ± {small['foreground_share_sem']:.2%} foreground "
            f"(mean ± standard error), those of {large['patch_size']} contain "
            f"{large['foreground_share']:.2%} ± {large['foreground_share_sem']:.2%}: "
            f"a ratio of {ratio:.2f}."
        )
    return "\n".join(lines)


def lost_labels(shares: pd.DataFrame) -> str:
    """Return a table of what a reduced resolution takes from each label."""
    forced = shares[shares["forced"]]
    is_reduced = forced["field_of_view"] != forced["patch_size"]
    keys = ["task", "label", "label_name"]
    both = forced[is_reduced].merge(
        forced.loc[~is_reduced, [*keys, "patch_size", "foreground_share", "patches_with_label"]],
        left_on=[*keys, "field_of_view"],
        right_on=[*keys, "patch_size"],
        suffixes=("", "_planned"),
    )
    lost = both["patches_with_label_planned"] - both["patches_with_label"]
    table = pd.DataFrame(
        {
            "task": both["task"],
            "reduced to": both["patch_size"],
            "label": both["label_name"].map(markdown_text, na_action="ignore"),
            "share of voxels": both["foreground_share"].map("{:.3%}".format),
            "at the planned size": both["foreground_share_planned"].map("{:.3%}".format),
            "patches that lose it": lost.map("{:.1%}".format),
        }
    )
    return str(table.to_markdown(index=False, disable_numparse=True))
