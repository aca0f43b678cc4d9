"""Reading runs strictly and laying them out as tidy tables."""

import json
import math
from dataclasses import replace

import pandas as pd
import pytest

from helpers.fake_study import FakeStudy
from workflow_scripts.common.errors import UserError
from workflow_scripts.evaluation.collect_results import collect_results
from workflow_scripts.records.run_columns import ADDED_LATER, STAGES, TABLES
from workflow_scripts.records.run_reader import (
    KEYS,
    count_steps,
    foreground_mean,
    read_run,
    read_study,
    tidy_tables,
)

KEY = ("Task98_Fake", "progressive", 1, 1)
NAN = math.nan


@pytest.fixture
def study(tmp_path):
    return FakeStudy(tmp_path).write()


def refused(study, *words):
    with pytest.raises(UserError) as error:
        read_study(study.folders())
    for word in words:
        assert word in str(error.value)


def test_tables_have_a_row_for_everything(study):
    tables = tidy_tables(read_study(study.folders()))
    assert len(tables["runs"]) == 6
    assert len(tables["cases"]) == 6 * 3 * 2
    assert len(tables["epochs"]) == 6 * 6
    assert len(tables["stages"]) == 2 * (1 + 3 + 1)
    for table in tables.values():
        assert set(KEYS) <= set(table)
    assert tables["runs"].notna()["version_torch"].all()
    assert tables["runs"]["patch_size"].unique().tolist() == ["16x16x16"]


def test_columns_of_cases(study):
    cases = tidy_tables(read_study(study.folders()))["cases"]
    expected = "task arm fold seed case label label_name dice iou tp fp fn n_ref n_pred"
    expected += " nsd nsd_tolerance_mm nsd_tolerance_px"
    assert cases.columns.tolist() == expected.split()
    assert cases["label_name"].unique().tolist() == ["inner", "outer & rim"]
    assert cases["case"].iloc[0] == "case_000"


def test_tables_survive_the_way_through_csv(study, tmp_path):
    outputs = {name: tmp_path / f"{name}.csv" for name in ("runs", "epochs")}
    collect_results(study.folders(), outputs)
    runs = pd.read_csv(outputs["runs"])
    record = json.loads((study.folder(KEY) / "run.json").read_text())
    row = runs[(runs["arm"] == KEY[1]) & (runs["fold"] == KEY[2])].iloc[0]
    assert row["training_kwh"] == pytest.approx(record["training_kwh"], rel=1e-12)
    assert pd.api.types.is_integer_dtype(pd.read_csv(outputs["epochs"])["stage"])


def test_nan_dice_is_left_out_of_the_mean_and_counted(tmp_path):
    dice = {"a": {"1": 0.8, "2": NAN}, "b": {"1": 0.6, "2": 0.5}, "c": {"1": NAN, "2": 0.1}}
    study = FakeStudy(tmp_path, arms=("constant",), folds=(0,))
    study.dice = {study.keys()[0]: dice}
    run = read_run(study.write().folder(study.keys()[0]), study.keys()[0])
    assert foreground_mean(run.cases) == pytest.approx((0.7 + 0.3) / 2)
    assert run.record["nan_dice"] == 2
    assert run.cases["dice"].isna().sum() == 2


def test_missing_folds_are_all_named(study):
    for fold in (0, 1):
        (study.folder(("Task98_Fake", "random", fold, 1)) / "run.json").unlink()
    refused(study, "arm random, fold 0", "arm random, fold 1", "run.json")


@pytest.mark.parametrize("name", [*TABLES, "summary.json"])
def test_missing_file_is_named(study, name):
    path = study.folder(KEY) / name
    path.unlink()
    refused(study, str(path), "missing")


@pytest.mark.parametrize("name", [*TABLES, "run.json", "summary.json"])
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9])
def test_half_written_file_is_named(study, name, kept):
    path = study.folder(KEY) / name
    text = path.read_text()
    path.write_text(text[: int(len(text) * kept)])
    refused(study, str(path))


def test_row_cut_before_its_last_values_is_named(study):
    path = study.folder(KEY) / "epochs.csv"
    lines = path.read_text().splitlines()
    lines[3] = lines[3].rsplit(",", 4)[0]
    path.write_text("\n".join(lines) + "\n")
    refused(study, f"{path}, line 4")


def test_lacking_column_is_named(study):
    path = study.folder(KEY) / "stages.csv"
    pd.read_csv(path).drop(columns=["kwh"]).to_csv(path, index=False)
    refused(study, str(path), "kwh")


@pytest.mark.parametrize("column", ["kwh", "iterations"])
def test_text_in_a_column_of_numbers_is_named(study, column):
    path = study.folder(KEY) / "epochs.csv"
    table = pd.read_csv(path).assign(iterations=2).astype({column: object})
    table.loc[2, column] = "much"
    table.to_csv(path, index=False)
    refused(study, str(path), column)


def test_runs_of_earlier_versions_are_read(study):
    """Also beside runs of this version, whose tables have more columns."""
    newer = study.folder(("Task98_Fake", "random", 1, 1))
    for name, columns in TABLES.items():
        older = pd.read_csv(study.folder(KEY) / name)
        assert set(columns) - set(older) <= ADDED_LATER
        pd.read_csv(newer / name).reindex(columns=columns).to_csv(newer / name, index=False)
    tables = tidy_tables(read_study(study.folders()))
    assert tables["stages"].columns.tolist()[len(KEYS) :] == STAGES


def test_column_of_a_silent_meter_stays_empty(study):
    path = study.folder(KEY) / "epochs.csv"
    pd.read_csv(path).assign(kwh=None).to_csv(path, index=False)
    epochs = tidy_tables(read_study(study.folders()))["epochs"]
    chosen = (epochs["arm"] == KEY[1]) & (epochs["fold"] == KEY[2])
    assert epochs.loc[chosen, "kwh"].isna().all()


@pytest.mark.parametrize("rows", [slice(0, -1), [0, 1, 2, 3, 4, 4]])
def test_missing_or_doubled_epoch_is_named(study, rows):
    path = study.folder(KEY) / "epochs.csv"
    pd.read_csv(path).iloc[rows].to_csv(path, index=False)
    refused(study, str(path), "once each")


def test_a_copied_fold_is_named(study):
    source, target = study.folder(("Task98_Fake", "progressive", 0, 1)), study.folder(KEY)
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    refused(study, str(target / "run.json"), "fold 0", "fold 1")


def test_a_seed_of_another_folder_is_named(tmp_path):
    study = FakeStudy(tmp_path, arms=("constant",), folds=(0,), seeds=(1, 2)).write()
    first, second = study.folders().values()
    assert second.name == "fold_0_seed_2"
    (second / "run.json").write_bytes((first / "run.json").read_bytes())
    refused(study, str(second / "run.json"), "seed 1", "seed 2")


def test_every_table_has_the_seeds(tmp_path):
    tables = tidy_tables(read_study(FakeStudy(tmp_path, seeds=(1, 5)).write().folders()))
    for table in tables.values():
        assert set(table["seed"]) == {1, 5}


def test_one_folder_for_two_runs_is_refused(study):
    folders = study.folders() | {("Task98_Fake", "random", 3, 1): study.folder(KEY)}
    with pytest.raises(UserError, match="two runs"):
        read_study(folders)


def test_summary_of_another_training_is_named(study):
    path = study.folder(KEY) / "summary.json"
    path.write_bytes((study.folder(("Task98_Fake", "random", 1, 1)) / "summary.json").read_bytes())
    refused(study, str(path), "dice_foreground_mean")


@pytest.mark.parametrize("change", ["missing", "twice", "other"])
def test_surface_of_other_cases_is_named(study, change):
    path = study.folder(KEY) / "surface.csv"
    table = pd.read_csv(path)
    rows = {"missing": [0, 1, 2], "twice": [0, *range(len(table))]}
    table = table.iloc[rows[change]] if change in rows else table.assign(label=table["label"] + 1)
    table.to_csv(path, index=False)
    refused(study, str(path), "exactly once")


def test_surface_is_joined_by_case_and_label_whatever_its_order(study):
    path = study.folder(KEY) / "surface.csv"
    pd.read_csv(path).iloc[::-1].to_csv(path, index=False)
    cases = read_run(study.folder(KEY), KEY).cases
    assert cases["nsd"].tolist() == pytest.approx(((1 + cases["dice"]) / 2).tolist())


def test_surface_without_a_tolerance_stays_empty(study):
    path = study.folder(KEY) / "surface.csv"
    pd.read_csv(path).assign(nsd=None, tolerance_mm=None).to_csv(path, index=False)
    assert read_run(study.folder(KEY), KEY).cases["nsd"].isna().all()


def test_case_twice_in_a_summary_is_named(study):
    path = study.folder(KEY) / "summary.json"
    summary = json.loads(path.read_text())
    summary["metric_per_case"].append(summary["metric_per_case"][0])
    path.write_text(json.dumps(summary))
    refused(study, str(path), "case_100")


def test_nothing_is_written_unless_all_is_whole(study, tmp_path):
    (study.folder(KEY) / "energy.csv").unlink()
    with pytest.raises(UserError):
        collect_results(study.folders(), {"runs": tmp_path / "runs.csv"})
    assert not (tmp_path / "runs.csv").exists()


def test_steps_are_those_of_every_epoch(study):
    """Epochs of equal computation have more steps; runs of earlier versions do not record them."""
    run = read_run(study.folder(KEY), KEY)
    planned = run.record["iterations_per_epoch"]
    run.epochs["iterations"] = planned
    run.epochs.loc[0, "iterations"] = 5 * planned
    assert count_steps(run) == planned * (len(run.epochs) + 4)
    run.epochs["iterations"] = float("nan")
    assert count_steps(run) == planned * len(run.epochs)
    old = replace(run, epochs=run.epochs.drop(columns="iterations"))
    assert count_steps(old) == planned * len(run.epochs)
