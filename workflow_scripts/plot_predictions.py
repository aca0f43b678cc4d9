"""Figure: example slices of reference and predictions: the reference arm's worst, median, best."""

from collections.abc import Iterable
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from log import UserError
from plotting import Style, below, grid, load_style, read_tables, save

MARGIN = 0.3
"""Of the reference's extent, shown around it on each side."""
NARROWEST, WIDEST = 1.15, 1.8
"""Inches of a panel: with many arms the figure is wider than a page, with one arm narrower."""


def pick_cases(cases: pd.DataFrame, arm: str) -> dict[str, str]:
    """Worst, median and best case of one task by the arm's Dice (nanmean over labels).

    Cases without any defined Dice are left out; with fewer than three cases one stands for several
    and is listed once, as the median first.
    """
    dice = cases[cases["arm"] == arm].groupby("case")["dice"].mean().dropna().sort_values()
    if dice.empty:
        return {}
    picked: dict[str, str] = {}
    for name, place in {"median": (len(dice) - 1) // 2, "worst": 0, "best": len(dice) - 1}.items():
        if dice.index[place] not in picked.values():
            picked[name] = dice.index[place]
    return {name: picked[name] for name in ("worst", "median", "best") if name in picked}


def load(path: Path) -> tuple[np.ndarray, tuple[float, ...]]:
    """Voxels and spacing (mm) of a NIfTI file, axes turned to right-anterior-superior.

    `UserError` if the file is missing.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing; the example slices need it: train this fold again")
    image = nib.as_closest_canonical(nib.load(path))
    return np.asarray(image.dataobj), tuple(float(size) for size in image.header.get_zooms()[:3])


def window(reference: np.ndarray) -> tuple[slice, slice, int]:
    """Rows, columns and index of the axial slice with the most foreground, cut out around it."""
    index = int((reference > 0).sum(axis=(0, 1)).argmax())
    places = np.nonzero(reference[:, :, index])
    cut = []
    for axis in (0, 1):
        size = reference.shape[axis]
        low, high = (places[axis].min(), places[axis].max()) if len(places[0]) else (0, size - 1)
        room = int(MARGIN * (high - low + 1)) + 4
        cut.append(slice(max(0, low - room), min(size, high + room + 1)))
    return cut[0], cut[1], index


def draw(axis: Axes, image: np.ndarray, labels: np.ndarray, aspect: float, style: Style) -> None:
    """Show a slice with the outline of each label."""
    low, high = np.percentile(image, (1, 99.5))
    axis.imshow(image.T, cmap="gray", vmin=low, vmax=high, origin="lower", aspect=aspect)
    # Values of 0 around the cut let an outline close at its border.
    padded = np.pad(labels.T, 1)
    x, y = np.arange(-1, labels.shape[0] + 1), np.arange(-1, labels.shape[1] + 1)
    for label in np.unique(labels[labels > 0]):
        color = style.labels[(int(label) - 1) % len(style.labels)]
        axis.contour(x, y, padded == label, levels=[0.5], colors=[color], linewidths=1.0)
    axis.set_xlim(-0.5, labels.shape[0] - 0.5)
    axis.set_ylim(-0.5, labels.shape[1] - 0.5)


def plot_predictions(
    runs: pd.DataFrame,
    cases: pd.DataFrame,
    style: Style,
    raw: Path,
    reference_arm: str,
    outputs: Iterable[Path],
) -> None:
    """Draw up to three cases a task: a row a case; image, reference, then each arm's prediction.

    Images and references are read from `raw`/{dataset} in nnU-Net's layout (first channel),
    predictions from each run's results_folder.
    """
    arms = style.order(runs["arm"])
    shown = [
        (task, name, case)
        for task in runs["task"].unique()
        for name, case in pick_cases(cases[cases["task"] == task], reference_arm).items()
    ]
    if not shown:
        raise UserError("no case has a defined Dice, so there is no example to show")
    count = len(arms) + 2
    width = min(max(style.figure["width"] / count, NARROWEST), WIDEST)
    height = 1.12 * width / style.figure["panel_height"]
    figure, axes = grid(style, len(shown), count, height=height)
    figure.set_figwidth(width * count + 0.4)
    for row, (task, name, case) in zip(axes, shown, strict=True):
        dice = cases[(cases["task"] == task) & (cases["case"] == case)]
        chosen = runs[(runs["task"] == task) & (runs["fold"] == dice["fold"].iloc[0])]
        folder = raw / chosen["dataset"].iloc[0]
        image, spacing = load(folder / "imagesTr" / f"{case}_0000.nii.gz")
        reference, _ = load(folder / "labelsTr" / f"{case}.nii.gz")
        rows, columns, index = window(reference)
        volumes = {"image": np.zeros_like(reference), "reference": reference}
        for arm in arms:
            results = Path(chosen.loc[chosen["arm"] == arm, "results_folder"].iloc[0])
            volumes[arm], _ = load(results / "validation" / f"{case}.nii.gz")
        for axis, (column, labels) in zip(row, volumes.items(), strict=True):
            cut = (rows, columns, index)
            draw(axis, image[cut], labels[cut], spacing[1] / spacing[0], style)
            axis.set(xticks=[], yticks=[])
            axis.grid(visible=False)
            for spine in axis.spines.values():
                spine.set_visible(False)
            if (task, name, case) == shown[0]:
                axis.set_title(style.arm(column)["label"] if column in arms else column)
            if column in arms:
                value = dice.loc[dice["arm"] == column, "dice"].mean()
                axis.set_xlabel(f"Dice {value:.3f}" if pd.notna(value) else "Dice undefined")
        size = style.figure["font_size"] - 1
        row[0].set_ylabel(f"{style.task(task)}\n{name}\n{case}", fontsize=size)
    names = cases.drop_duplicates(["task", "label"]).sort_values("label", key=lambda s: s.map(int))
    handles = []
    for label, same in names.groupby("label", sort=False):
        color = style.labels[(int(label) - 1) % len(style.labels)]
        text = same["label_name"].iloc[0] if runs["task"].nunique() == 1 else f"label {label}"
        handles.append(Line2D([], [], color=color, label=text))
    arm = style.arm(reference_arm)["label"]
    figure.suptitle(f"Cases by the Dice of {arm}; axial slice with the most foreground")
    below(figure, handles)
    save(figure, style, outputs)


if __name__ == "__main__":
    from log import redirect

    redirect(snakemake.log[0])
    runs_table, cases_table = read_tables(Path(snakemake.input.runs), Path(snakemake.input.cases))
    plot_predictions(
        runs=runs_table,
        cases=cases_table,
        style=load_style(Path(snakemake.input.style)),
        raw=Path(snakemake.params.raw),
        reference_arm=snakemake.params.reference_arm,
        outputs=[Path(path) for path in snakemake.output],
    )
