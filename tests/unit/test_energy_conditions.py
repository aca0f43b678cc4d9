"""How energies were measured: in the records, in the tables, and when they must not be compared."""

import math
from types import SimpleNamespace

import pandas as pd
import pytest

from helpers import ledger_lines
from helpers.fake_study import FakeStudy
from workflow_scripts.common.files import read_csv
from workflow_scripts.evaluation.collect_results import collect_results
from workflow_scripts.evaluation.compare_arms import compare, to_markdown
from workflow_scripts.evaluation.measure_targets import measure_targets
from workflow_scripts.evaluation.measure_targets import to_markdown as targets_markdown
from workflow_scripts.evaluation.tabulate_overview import overview
from workflow_scripts.evaluation.tabulate_overview import to_markdown as overview_markdown
from workflow_scripts.records.energy_conditions import (
    CHARGED_WHOLE,
    complete,
    conditions,
    source_notes,
    sources_of,
)
from workflow_scripts.records.energy_settings import EnergySettings
from workflow_scripts.records.run_tables import energy_table
from workflow_scripts.training import fold_training

RAPL = "CPU: intel_rapl (85 W TDP)"
COUNTED = {"cpu_source": "counter", "gpu_source": "", "ram_source": "estimate"}
TESTED = ["measure", "label", "task", "arm", "significant", "difference", "rank_biserial"]
NOTHING = pd.DataFrame(columns=TESTED)


@pytest.mark.parametrize(
    ("sensors", "sources"),
    [
        ("CPU: cpu_load (8 W TDP); RAM: estimate", ("estimate", "", "estimate")),
        (f"{RAPL}; GPU: nvml; RAM: estimate", ("counter", "counter", "estimate")),
        ("CPU: constant (85 W TDP); RAM: estimate", ("estimate", "", "estimate")),
        ("", ("", "", "")),
    ],
)
def test_sources_of_earlier_versions_follow_from_the_sensors(sensors, sources):
    assert tuple(sources_of(sensors).values()) == sources


def study(root, **changes):
    """Write a study of two arms; `changes` of an arm are columns of its energy.csv."""
    made = FakeStudy(root, arms=("constant", "progressive"), folds=(0,)).write()
    for key in made.folders():
        path = made.folder(key) / "energy.csv"
        table = pd.read_csv(path).assign(sensors="CPU: cpu_load (8 W TDP); RAM: estimate")
        table.assign(**changes.get(key[1], {})).to_csv(path, index=False)
    return made


def tables_of(made, energy=None):
    outputs = {name: made.root / f"{name}.csv" for name in ("runs", "cases", "epochs")}
    collect_results(made.folders(), outputs)
    runs = pd.read_csv(outputs["runs"])
    cases = pd.read_csv(outputs["cases"], dtype={"label": str, "case": str})
    return runs, compare(runs, cases, "constant", made.tasks, made.arms, energy)


def read_back(table, folder):
    """Return comparison.csv as the next rule reads it."""
    table.to_csv(folder / "comparison.csv", index=False)
    return read_csv(folder / "comparison.csv")


def words(table):
    return " ".join(to_markdown(table).split())


def ratios(table):
    row = table[(table["arm"] == "progressive") & (table["label"] == "")].iloc[0]
    return row["training_kwh_relative"], row["training_kg_co2eq_relative"]


def test_a_study_of_an_earlier_version_says_estimate(tmp_path):
    runs, table = tables_of(study(tmp_path))
    assert set(runs["energy_source"]) == set(table["energy_source"]) == {"estimate"}
    assert runs.loc[0, ["cpu_source", "ram_source", "country"]].tolist() == [
        "estimate",
        "estimate",
        "DEU",
    ]
    assert all(ratio > 0 for ratio in ratios(table))
    assert "CPU estimate, RAM estimate, mode machine, PUE 1" in words(table)
    assert "not measured alike" not in words(table)


def test_counters_are_told_from_estimates(tmp_path):
    runs, table = tables_of(study(tmp_path, constant=COUNTED, progressive=COUNTED))
    assert set(runs["energy_source"]) == {"mixed"}
    assert "CPU counter, RAM estimate" in words(table)


@pytest.mark.parametrize(
    ("change", "energy_too"),
    [
        ({"pue": 1.5}, True),
        ({"tracking_mode": "process"}, True),
        (COUNTED, True),
        ({"country": "FRA", "kg_co2eq": 1e-6}, False),
    ],
)
def test_energies_measured_in_other_ways_have_no_ratio(tmp_path, change, energy_too):
    _, table = tables_of(study(tmp_path, progressive=change))
    kwh, kg = ratios(table)
    assert math.isnan(kg)
    assert math.isnan(kwh) == energy_too
    text = words(table)
    assert ("Energy was not measured alike" in text) == energy_too
    assert ("CO2eq was not measured alike" in text) == (not energy_too)
    if not energy_too:
        assert "FRA" in text
    costs = overview(read_back(table, tmp_path), NOTHING)
    missing = costs[(costs["arm"] == "progressive") & costs["value"].isna()]["measure"]
    assert set(missing) == ({"energy", "CO2eq"} if energy_too else {"CO2eq"})


def test_changed_settings_of_a_finished_study_are_said(tmp_path):
    made = study(tmp_path)
    now = {"country": "FRA", "tracking_mode": "machine", "pue": 1.3}
    text = words(tables_of(made, now)[1])
    assert "country: FRA instead of DEU, pue: 1.3 instead of 1" in text
    same = {"country": "DEU", "tracking_mode": "machine", "pue": 1.0}
    assert "instead of" not in words(tables_of(made, same)[1])


def test_the_overview_says_where_energies_come_from(tmp_path):
    _, table = tables_of(study(tmp_path))
    costs = overview(read_back(table, tmp_path), NOTHING)
    sources = costs.groupby("measure")["energy_source"].unique().map(list)
    assert sources["energy"] == sources["CO2eq"] == ["estimate"]
    assert sources["FLOP"] == [""]
    assert "CPU estimate, RAM estimate" in " ".join(overview_markdown(costs, "").split())


def rows(mode, own, machine, sensors="CPU: RAPL; RAM: estimate", **entry):
    meter = {"sensors": sensors, "tracking_mode": mode, "country": "DEU", "pue": 1.0}
    meter |= {"cpu_model": "", "gpu_model": "", "codecarbon": "3.3.2"}
    energies = dict.fromkeys(("kwh", "cpu_kwh", "gpu_kwh", "ram_kwh", "kg_co2eq"), 1.0)
    times = {"cpu_seconds": own, "machine_cpu_seconds": machine}
    given = {**energies, **times, **entry}
    given = {name: value for name, value in given.items() if value is not None}
    lines = [ledger_lines.start(meter=meter), ledger_lines.work(1, "training", **given)]
    return energy_table(ledger_lines.entries_of(lines))


@pytest.mark.parametrize(
    ("mode", "own", "note"),
    [
        ("machine", 60.0, "other work used 40 % of the processor time"),
        ("machine", 95.0, ""),
        ("process", 60.0, ""),
    ],
)
def test_a_machine_shared_with_others_is_noted(mode, own, note):
    table = rows(mode, own, 100.0)
    assert table["note"].tolist() == [note]
    found = conditions(table)
    assert found["energy_note"] == note
    assert found["other_cpu_share"] == pytest.approx(1 - own / 100)


def test_the_comparison_says_beside_how_much_other_work_an_arm_was_metered(tmp_path):
    made = study(tmp_path, progressive={"cpu_seconds": 60.0, "machine_cpu_seconds": 100.0})
    text = words(tables_of(made)[1])
    assert "other work used up to 40 % of the processor time beside 1 of 1 training" in text
    assert "Energy of progressive: other work" in text


def test_a_shared_gpu_is_noted():
    table = rows("machine", 95.0, 100.0, note="another process used GPU 0")
    assert conditions(table)["energy_note"] == "another process used GPU 0"


def test_whole_processors_charged_by_earlier_versions_are_noted():
    """From the ledger, and from the finished files."""
    old = {"cpu_seconds": None, "machine_cpu_seconds": None}
    table = rows("process", own=1, machine=1, sensors=f"{RAPL}; RAM: estimate", **old)
    assert conditions(table)["energy_note"] == CHARGED_WHOLE
    added = ["cpu_source", "gpu_source", "ram_source", "note", "cpu_seconds", "machine_cpu_seconds"]
    finished = complete(table.drop(columns=added))
    assert finished["note"].tolist() == [CHARGED_WHOLE]
    assert finished["cpu_source"].tolist() == ["counter"]
    assert math.isnan(conditions(finished)["other_cpu_share"])


def test_a_finished_training_says_that_its_energy_stays(monkeypatch):
    said = []
    monkeypatch.setattr(fold_training, "announce", said.append)
    names = ("task", "arm", "fold")
    run = SimpleNamespace(**dict(zip(names, ("Task98_Fake", "constant", 0), strict=True)))
    meter = {"tracking_mode": "machine", "country": "DEU", "pue": 1.0}
    entries = ledger_lines.entries_of([ledger_lines.start(meter=meter)])
    fold_training._announce_changes(entries, EnergySettings("DEU", "machine", 1), run)
    assert said == []
    fold_training._announce_changes(entries, EnergySettings("FRA", "process", 1.0), run)
    (message,) = said
    for words in (
        "Task98_Fake constant fold 0",
        "FRA instead of DEU",
        "process instead of machine",
    ):
        assert words in message


def test_targets_compare_no_unlike_energies(tmp_path):
    made = study(tmp_path, progressive={"pue": 1.5})
    runs, _ = tables_of(made)
    epochs = pd.read_csv(tmp_path / "epochs.csv")
    table = measure_targets(epochs, runs, "constant", list(made.tasks), list(made.arms))
    found = table[(table["arm"] == "progressive") & (table["level"] == 0.9)].iloc[0]
    assert math.isnan(found["kwh_relative"])
    assert found["kwh"] > 0 < found["seconds_relative"]
    text = " ".join(targets_markdown(table, runs).split())
    assert "(nan)" not in text
    assert "Energy was not measured alike" in text
    assert source_notes(runs[runs["arm"] == "constant"]) == [
        "Energy: CPU estimate, RAM estimate, mode machine, PUE 1."
    ]
