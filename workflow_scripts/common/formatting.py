"""Format numbers and tables for readers: suitable units, three significant digits, Markdown."""

import re
import textwrap
from collections.abc import Iterable

import pandas as pd
import tabulate

# By default each heading is two characters too wide, and tables are too wide for a screen.
tabulate.MIN_PADDING = 0

Choices = tuple[tuple[str, float], ...]
"""Units of a quantity: name and factor from the tables' unit, smallest unit first."""

TIME: Choices = (("s", 1.0), ("h", 1 / 3600))
ENERGY: Choices = (("Wh", 1e3), ("kWh", 1.0))
CARBON: Choices = (("g CO2eq", 1e3), ("kg CO2eq", 1.0))
DISK: Choices = (("MB", 1e-6), ("GB", 1e-9))
COMPUTATION: Choices = (("GFLOP", 1.0), ("TFLOP", 1e-3), ("PFLOP", 1e-6), ("EFLOP", 1e-9))


def unit(values: pd.Series, choices: Choices) -> tuple[str, float]:
    """Return the first unit (name, factor) in which the largest value has at most four digits."""
    fitting = [choice for choice in choices if values.max() * choice[1] < 1e4]
    return fitting[0] if fitting else choices[-1]


def number(value: float) -> str:
    """Return `value` with three significant digits (whole from 1000); an en dash if missing."""
    if pd.isna(value):
        return "–"
    if value != 0 and not 1e-4 <= abs(value) < 1e6:
        return f"{value:.2e}"
    return f"{value:.0f}" if abs(value) >= 999.5 else f"{value:#.3g}".rstrip(".")


def in_unit(value: float, choices: Choices) -> str:
    """Return a number with a suitable unit."""
    name, scale = unit(pd.Series([value]), choices)
    return f"{number(value * scale)} {name}"


def counted(number: float, noun: str) -> str:
    """Return a number with its noun: `1 case`, `0 cases`, `1,200 cases`."""
    return f"{number:,.0f} {noun}{'' if number == 1 else 's'}"


def repeats(folds: int, seeds: int) -> str:
    """Return the repeats of a mean: `5 folds`, `3 seeds`, `5 folds × 3 seeds`; empty for 1 × 1."""
    counts = ((folds, "fold"), (seeds, "seed"))
    return " × ".join(counted(number, noun) for number, noun in counts if number > 1)


def markdown_text(text: str) -> str:
    """Escape characters that Markdown, HTML or math in a notebook would interpret."""
    return re.sub(r"([\\`*\[\]<>|$~])", r"\\\1", text)


def pipe_table(rows: pd.DataFrame) -> str:
    """Return text cells as a Markdown table that is also readable as plain text."""
    return tabulate.tabulate(rows, "keys", "pipe", showindex=False, disable_numparse=True)


def titled_table(title: str, rows: pd.DataFrame) -> str:
    """Return text cells as a Markdown table with a title; names in title and header are escaped."""
    return f"**{markdown_text(title)}**\n\n{pipe_table(rows.rename(columns=markdown_text))}"


def bullets(notes: Iterable[str]) -> str:
    """Return notes as a Markdown list with at most 100 characters per line."""
    return "\n".join(textwrap.fill(f"- {note}", 100, subsequent_indent="  ") for note in notes)
