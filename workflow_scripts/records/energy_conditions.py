"""How the energy of a training was measured, and whether two measurements can be compared."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from workflow_scripts.records.run_columns import COUNTER, ESTIMATE

COMPONENTS = {"cpu": "CPU", "gpu": "GPU", "ram": "RAM"}
SOURCES = [f"{component}_source" for component in COMPONENTS]
ADDED = [*SOURCES, "cpu_seconds", "machine_cpu_seconds", "note"]
"""Columns of energy.csv that runs of earlier versions lack."""
MIXED = "mixed"
"""`energy_source` if some components are read from counters and others are estimated."""
SETTINGS = ["tracking_mode", "country", "pue"]
CONDITIONS = [
    "energy_source", *SOURCES, *SETTINGS, "g_co2eq_per_kwh", "other_cpu_share", "energy_note",
]  # fmt: skip
"""Keys of `conditions`, which run.json and runs.csv contain."""
SHARED = 0.1
"""Share of the processor time that others may use before a reading of the machine is marked."""
OTHER_WORK = "other work used"
"""Beginning of the note on a reading of the machine that includes much work of others."""
CHARGED_WHOLE = "an earlier version charged each process with the whole processor"


def sources_of(sensors: str) -> dict[str, str]:
    """Return the sources that follow from `sensors`, for records of earlier versions."""
    parts = {part.partition(":")[0]: part for part in sensors.split("; ")}
    counted = {"CPU": "intel_rapl" in sensors, "GPU": True, "RAM": False}
    return {
        f"{component}_source": (COUNTER if counted[name] else ESTIMATE) if name in parts else ""
        for component, name in COMPONENTS.items()
    }


def meter_note(meter: Mapping[str, Any]) -> str:
    """Return what is wrong with the readings of a meter of an earlier version, or ""."""
    wrong = "intel_rapl" in str(meter["sensors"]) and meter["tracking_mode"] == "process"
    return CHARGED_WHOLE if wrong else ""


def other_share(cpu_seconds: float, machine_cpu_seconds: float) -> float:
    """Return the share of the machine's processor time that was not the training's."""
    return 1 - cpu_seconds / machine_cpu_seconds if machine_cpu_seconds else math.nan


def shared_note(tracking_mode: str, share: float) -> str:
    """Return a note if a reading of the whole machine includes much work of others, or ""."""
    if tracking_mode != "machine" or not share > SHARED:
        return ""
    return f"{OTHER_WORK} {100 * share:.0f} % of the processor time"


def complete(energy: pd.DataFrame) -> pd.DataFrame:
    """Return energy.csv with the columns that earlier versions did not write."""
    table = energy.reindex(columns=[*energy, *(name for name in ADDED if name not in energy)])
    if "cpu_source" not in energy:
        rows = table.fillna({"sensors": "", "tracking_mode": ""}).to_dict("records")
        for name in SOURCES:
            table[name] = [sources_of(row["sensors"])[name] for row in rows]
        table["note"] = [meter_note(row) for row in rows]
    table[[*SOURCES, "note"]] = table[[*SOURCES, "note"]].astype(object).fillna("")
    return table


def conditions(energy: pd.DataFrame) -> dict[str, Any]:
    """Return how the energy of a training was measured, for run.json and runs.csv.

    Values that differ between its attempts are joined by `; `.

    Args:
        energy: the training's energy.csv.
    """
    table = complete(energy)
    table = table[table["phase"] == "training"]
    found = {name: _joined(table[name]) for name in (*SOURCES, *SETTINGS)}
    words = {word for name in SOURCES for word in found[name].split("; ") if word}
    share = other_share(table["cpu_seconds"].sum(skipna=False), table["machine_cpu_seconds"].sum())
    shared = shared_note(found["tracking_mode"], share)
    notes = {note for text in table["note"] for note in text.split("; ")}
    notes = {note for note in notes if note and not note.startswith(OTHER_WORK)}
    kwh, kg = (table[name].sum(skipna=False) for name in ("kwh", "kg_co2eq"))
    return {
        "energy_source": MIXED if len(words) > 1 else "".join(words),
        **found,
        "g_co2eq_per_kwh": 1000 * kg / kwh if kwh else math.nan,
        "other_cpu_share": share,
        "energy_note": "; ".join(sorted({*notes, shared} - {""})),
    }


def _joined(values: Iterable[Any]) -> str:
    texts = {f"{value:g}" if isinstance(value, float) else str(value) for value in values}
    return "; ".join(sorted(texts - {"", "nan", "None"}))


def describe(run: Mapping[str, Any]) -> str:
    """Return how the energy of a row of runs.csv was measured, without the country."""
    sources = {name: run[f"{component}_source"] for component, name in COMPONENTS.items()}
    parts = [f"{name} {source}" for name, source in sources.items() if source]
    parts += [f"mode {run['tracking_mode']}"] if run["tracking_mode"] else []
    pue = _joined([run["pue"]])
    return ", ".join([*parts, f"PUE {pue}"] if pue else parts)


def describe_carbon(run: Mapping[str, Any]) -> str:
    """Return the electricity behind the CO2eq of a row of runs.csv."""
    grams = run["g_co2eq_per_kwh"]
    return f"{run['country']}" + ("" if pd.isna(grams) else f" ({grams:.3g} g CO2eq/kWh)")


def measured_as(runs: pd.DataFrame) -> pd.Series:
    """Return how the energy of each row of runs.csv was measured; empty if nothing is known."""
    known = runs.reindex(columns=[*CONDITIONS, "training_kwh"]).astype(object).fillna("")
    texts = [describe(row) if row["training_kwh"] != "" else "" for row in known.to_dict("records")]
    return pd.Series(texts, index=runs.index, dtype=object)


def source_notes(runs: pd.DataFrame) -> list[str]:
    """Return a note on the sources of the energies in runs.csv, and whether they differ."""
    texts = sorted(set(measured_as(runs)) - {""})
    if len(texts) < 2:
        return [f"Energy: {text}." for text in texts]
    return [f"Energy was not measured alike, so do not compare it: {'; '.join(texts)}."]


def changed_settings(run: Mapping[str, Any], energy: Mapping[str, Any]) -> str:
    """Return which settings of the config's section `energy` differ from a run's, or ""."""
    pairs = {name: (_joined([energy[name]]), _joined([run.get(name)])) for name in SETTINGS}
    return ", ".join(
        f"{name}: {now} instead of {then}"
        for name, (now, then) in pairs.items()
        if then and now != then
    )
