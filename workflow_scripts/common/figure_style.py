"""The common visual style of all figures, read from config/plotting.yaml."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from workflow_scripts.common.errors import UserError
from workflow_scripts.common.files import read_csv

matplotlib.use("Agg")
from matplotlib import pyplot as plt

UNLISTED = {"color": "#999999", "marker": "o", "dash": "solid"}


@dataclass(frozen=True)
class Style:
    """Content of config/plotting.yaml, which explains each part."""

    arms: dict[str, dict[str, str]]
    tasks: dict[str, str]
    labels: list[str]
    figure: dict[str, Any]

    def order(self, arms: Iterable[str]) -> list[str]:
        """Return the arms in the order of the style; arms it does not list come last."""
        given = list(dict.fromkeys(arms))
        return [arm for arm in self.arms if arm in given] + [a for a in given if a not in self.arms]

    def arm(self, name: str) -> dict[str, str]:
        """Return `label`, `color`, `marker` and `dash` of an arm."""
        return {"label": name, **UNLISTED, **self.arms.get(name, {})}

    def outline(self, label: int) -> dict[str, Any]:
        """Return `color` and `linestyle` for the outline of `label` (1, 2, ...); both repeat."""
        turn, place = divmod(label - 1, len(self.labels))
        return {
            "color": self.labels[place],
            "linestyle": ("solid", "dashed", "dotted")[turn % 3],
        }

    def task(self, name: str) -> str:
        """Return a task's display name."""
        return self.tasks.get(name, name)

    def line(self, arm: str) -> dict[str, Any]:
        """Return the keyword arguments of `Axes.plot` for an arm."""
        looks = self.arm(arm)
        return {"color": looks["color"], "linestyle": looks["dash"], "linewidth": 1.4}


def load_style(path: Path) -> Style:
    """Read config/plotting.yaml and set matplotlib's style; raise `UserError` for wrong keys."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    wanted = {"arms", "tasks", "labels", "figure"}
    if not isinstance(content, dict) or set(content) != wanted:
        raise UserError(f"{path} must have exactly the keys {', '.join(sorted(wanted))}")
    style = Style(**content)
    wanted = {"width", "panel_height", "font", "font_size", "dpi"}
    if set(style.figure) != wanted:
        raise UserError(f"{path}: figure must have exactly the keys {', '.join(sorted(wanted))}")
    size = style.figure["font_size"]
    plt.rcdefaults()  # undo a matplotlibrc in the working directory
    sns.set_theme(
        context="paper",
        style="ticks",
        font=style.figure["font"],
        rc={
            "font.size": size,
            "axes.labelsize": size,
            "axes.titlesize": size,
            "xtick.labelsize": size - 1,
            "ytick.labelsize": size - 1,
            "legend.fontsize": size,
            "figure.titlesize": size + 1,
            "axes.grid": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "grid.color": "#E5E5E5",
            "grid.linewidth": 0.6,
            "axes.linewidth": 0.8,
            "legend.frameon": False,
            "image.interpolation": "nearest",
            "svg.hashsalt": "figure",
            "text.parse_math": False,  # names of cases and labels may contain dollar signs
        },
    )
    return style


def grid(
    style: Style, rows: int, columns: int, height: float = 1.0, **keywords: Any
) -> tuple[Figure, np.ndarray]:
    """Return a page-wide figure of rows × columns panels; `height` is in panel heights per row."""
    size = (style.figure["width"], style.figure["panel_height"] * height * rows + 0.45)
    return plt.subplots(
        rows, columns, figsize=size, squeeze=False, layout="constrained", **keywords
    )


def wrapped_grid(style: Style, panels: int, columns: int) -> tuple[Figure, list[Axes]]:
    """Return a figure of `panels` panels in as many rows as needed; narrower for one column."""
    columns = min(panels, columns)
    figure, axes = grid(style, math.ceil(panels / columns), columns)
    if columns == 1:
        figure.set_figwidth(0.6 * style.figure["width"])
    for axis in axes.flat[panels:]:
        axis.set_axis_off()
    return figure, list(axes.flat[:panels])


def add_legend(figure: Figure, style: Style, arms: Iterable[str], markers: bool = False) -> None:
    """Add the arms' legend below all panels."""
    handles = []
    for arm in arms:
        looks = style.arm(arm)
        line = {"linestyle": "none", "marker": looks["marker"]} if markers else style.line(arm)
        handles.append(Line2D([], [], label=looks["label"], **{**line, "color": looks["color"]}))
    below(figure, handles)


def below(figure: Figure, handles: list[Any]) -> None:
    """Add a legend of these handles below all panels, in as many columns as fit."""
    columns = min(max(1, int(figure.get_figwidth() / 1.5)), len(handles))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns)


def legend_text(name: str) -> str:
    """Return a name for a legend; matplotlib would omit names that begin with an underscore."""
    return f"\u200b{name}" if name.startswith("_") else name


def read_tables(*paths: Path) -> list[pd.DataFrame]:
    """Read tidy tables; labels, cases and patch sizes stay text."""
    return [read_csv(path) for path in paths]


def save(figure: Figure, style: Style, outputs: Iterable[Path]) -> None:
    """Save a figure as .svg and .png; the same figure always gives the same bytes."""
    for path in outputs:
        metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
        figure.savefig(path, dpi=style.figure["dpi"], metadata=metadata)
    plt.close(figure)
