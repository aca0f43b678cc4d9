"""Numbers and tables for readers: a unit that fits, three significant digits, Markdown."""

import pandas as pd

Choices = tuple[tuple[str, float], ...]
"""Units of a quantity: name and factor from the tables' own unit, the smallest unit first."""

TIME: Choices = (("s", 1.0), ("h", 1 / 3600))
ENERGY: Choices = (("Wh", 1e3), ("kWh", 1.0))
CARBON: Choices = (("g CO2eq", 1e3), ("kg CO2eq", 1.0))
COMPUTATION: Choices = (("GFLOP", 1.0), ("TFLOP", 1e-3), ("PFLOP", 1e-6), ("EFLOP", 1e-9))


def unit(values: pd.Series, choices: Choices) -> tuple[str, float]:
    """The first unit (name, factor) in which the largest value has at most four digits."""
    fitting = [choice for choice in choices if values.max() * choice[1] < 1e4]
    return fitting[0] if fitting else choices[-1]


def number(value: float) -> str:
    """`value` with three significant digits, whole from a thousand on; an en dash if missing."""
    if pd.isna(value):
        return "–"
    if value != 0 and not 1e-4 <= abs(value) < 1e6:
        return f"{value:.2e}"
    return f"{value:.0f}" if abs(value) >= 999.5 else f"{value:#.3g}".rstrip(".")


def pipe_table(rows: pd.DataFrame) -> str:
    """Text cells as a Markdown table, aligned and no wider than it needs to be."""
    lines = [list(rows.columns), *rows.to_numpy().tolist()]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join("| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines)
