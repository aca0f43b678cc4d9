"""Figure: reference and predictions of the reference arm's worst, median and best case."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from workflow_scripts.common.console import redirect
from workflow_scripts.common.figure_style import (
    Style,
    below,
    grid,
    legend_text,
    load_style,
    read_tables,
    save,
)
from workflow_scripts.common.files import read_json
from workflow_scripts.common.images import Image, load_image, load_label, reader_of
from workflow_scripts.records.run_reader import KEYS, label_values

MARGIN = 0.3
"""Margin on each side of the reference, as a share of its extent."""
NARROWEST, WIDEST = 1.15, 1.8
"""Limits of a panel's width in inches.

With many arms, the figure is wider than a page; with one arm, it is narrower.
"""


def pick_cases(cases: pd.DataFrame, arm: str) -> dict[str, str]:
    """Return the worst, median and best case of one task by the arm's Dice (nanmean over labels).

    Cases without any defined Dice are left out. With fewer than three cases, each case is listed
    once, preferably as the median. If no Dice is defined, the first case is returned.
    """
    by_case = cases[cases["arm"] == arm].groupby("case")["dice"].mean()
    dice = by_case.dropna().sort_values()
    if dice.empty:
        return {"first": min(by_case.index)}
    picked: dict[str, str] = {}
    for name, place in {"median": (len(dice) - 1) // 2, "worst": 0, "best": len(dice) - 1}.items():
        if dice.index[place] not in picked.values():
            picked[name] = dice.index[place]
    return {name: picked[name] for name in ("worst", "median", "best") if name in picked}


def to_patient_axes(image: Image) -> tuple[np.ndarray, tuple[float, ...]]:
    """Return the first channel and its spacing (mm), both as (x, y, z) in RAS orientation.

    Images without orientation (TIFF, PNG) are shown as stored, with the first row on top.
    """
    affine = np.diag([1.0, -1.0, 1.0, 1.0]) if image.affine is None else image.affine
    turned = nibabel.io_orientation(affine)
    axes = np.argsort(turned[:, 0])
    volume = nibabel.apply_orientation(image.values[0].transpose(2, 1, 0), turned)
    return volume, tuple(image.spacing[::-1][axis] for axis in axes)


def window(foreground: np.ndarray) -> tuple[slice, slice, int]:
    """Return rows, columns and index of the axial slice with the most foreground, cropped."""
    index = int(foreground.sum(axis=(0, 1)).argmax())
    places = np.nonzero(foreground[:, :, index])
    cut = []
    for axis in (0, 1):
        size = foreground.shape[axis]
        low, high = (places[axis].min(), places[axis].max()) if len(places[0]) else (0, size - 1)
        room = int(MARGIN * (high - low + 1)) + 4
        cut.append(slice(max(0, low - room), min(size, high + room + 1)))
    return cut[0], cut[1], index


def draw(
    axis: Axes,
    image: np.ndarray,
    labels: np.ndarray | None,
    outlined: Mapping[tuple[int, ...], Mapping[str, Any]],
    aspect: float,
) -> None:
    """Draw a slice with outlines of labels or regions.

    Args:
        axis: axes to draw on.
        image, labels: slices (x, y); without labels, nothing is outlined.
        outlined: values of a label or region -> colour and line style.
        aspect: height of a pixel divided by its width.
    """
    low, high = np.percentile(image, (1, 99.5))
    axis.imshow(image.T, cmap="gray", vmin=low, vmax=high, origin="lower", aspect=aspect)
    if labels is not None:
        # Padding with 0 closes the outlines at the border.
        padded = np.pad(labels.T, 1)
        x, y = np.arange(-1, labels.shape[0] + 1), np.arange(-1, labels.shape[1] + 1)
        for values, looks in outlined.items():
            mask = np.isin(padded, values)
            if mask.any():
                axis.contour(
                    *(x, y, mask),
                    levels=[0.5],
                    colors=[looks["color"]],
                    linestyles=[looks["linestyle"]],
                    linewidths=1.0,
                )
    axis.set_xlim(-0.5, image.shape[0] - 0.5)
    axis.set_ylim(-0.5, image.shape[1] - 0.5)


def plot_predictions(
    runs: pd.DataFrame,
    cases: pd.DataFrame,
    style: Style,
    raw: Path,
    reference_arm: str,
    outputs: Iterable[Path],
) -> None:
    """Draw up to three cases per task, one row each: image, reference, then each arm's prediction.

    Images and references are read from `raw`/{dataset} in nnU-Net's layout (first channel),
    predictions from the results_folder of each run with the study's first seed.
    """
    arms = style.order(runs["arm"])
    shown = [
        (task, name, case)
        for task in runs["task"].unique()
        for name, case in pick_cases(cases[cases["task"] == task], reference_arm).items()
    ]
    count = len(arms) + 2
    width = min(max(style.figure["width"] / count, NARROWEST), WIDEST)
    height = 1.12 * width / style.figure["panel_height"]
    figure, axes = grid(style, len(shown), count, height=height)
    figure.set_figwidth(width * count + 0.4)
    named = cases.assign(numbers=cases["label"].map(label_values)).drop_duplicates("numbers")
    named = named.sort_values("numbers").reset_index(drop=True)
    looks = {row.numbers: style.outline(number) for number, row in enumerate(named.itertuples(), 1)}
    volumes = False
    for row, (task, name, case) in zip(axes, shown, strict=True):
        dice = cases[(cases["task"] == task) & (cases["case"] == case)]
        dice = dice[dice["seed"] == dice["seed"].iloc[0]]
        chosen = runs.merge(dice[KEYS].drop_duplicates(), on=KEYS)
        folder = raw / chosen["dataset"].iloc[0]
        ending = read_json(folder / "dataset.json")["file_ending"]
        reader = reader_of(folder)
        outlined = {n: looks[n] for n in sorted(set(map(label_values, dice["label"])))}
        image, spacing = to_patient_axes(
            load_image(reader, folder / "imagesTr" / f"{case}_0000{ending}")
        )
        reference, _ = to_patient_axes(load_label(reader, folder / "labelsTr" / f"{case}{ending}"))
        volumes |= reference.shape[2] > 1
        cut = window(np.isin(reference, np.hstack(list(outlined))))
        slices = {"image": None, "reference": reference[cut]}
        for arm in arms:
            results = Path(chosen.loc[chosen["arm"] == arm, "results_folder"].iloc[0])
            file = results / "validation" / f"{case}{ending}"
            # Copied, so that the whole volume can be freed.
            slices[arm] = to_patient_axes(load_label(reader, file))[0][cut].copy()
        for axis, (column, labels) in zip(row, slices.items(), strict=True):
            draw(axis, image[cut], labels, outlined, spacing[1] / spacing[0])
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
    handles = []
    for row in named.itertuples():
        text = f"label {' + '.join(map(str, row.numbers))}"
        if runs["task"].nunique() == 1:
            text = legend_text(str(row.label_name))
        handles.append(Line2D([], [], **looks[row.numbers], label=text))
    arm = style.arm(reference_arm)["label"]
    chosen_slice = "; axial slice with the most foreground" * volumes
    figure.suptitle(f"Cases by the Dice of {arm}{chosen_slice}")
    below(figure, handles)
    save(figure, style, outputs)


if __name__ == "__main__":
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
