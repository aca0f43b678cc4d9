"""Data that change after their import or their training are noticed, by case."""

import gzip
import json
import os
import re
from pathlib import Path

import pytest

from workflow_scripts.common.errors import ConfigError, UserError
from workflow_scripts.planning.preprocess_task import record_data
from workflow_scripts.study import data_changes
from workflow_scripts.study.data_changes import (
    RECORD,
    TRAINED_ON,
    changed_files,
    check_data,
    digests_of_cases,
    write_record,
)
from workflow_scripts.study.tasks import SOURCE
from workflow_scripts.training.provenance import compare_identity

TASK, DATASET = "Task501_Mine", "Dataset501_Mine"
CASES = ["a", "a_0001", "b"]


def write(folder, name, text):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode(), mtime=0))
    return path


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A finished training of the study `mine` on three cases, as the workflow leaves it."""
    monkeypatch.chdir(tmp_path)
    raw = tmp_path / "resources/nnUNet_raw" / DATASET
    preprocessed = tmp_path / "resources/nnUNet_preprocessed" / DATASET
    for case in CASES:
        write(raw, f"imagesTr/{case}_0000.nii.gz", f"image {case}")
        write(raw, f"labelsTr/{case}.nii.gz", f"left and right of {case}")
    (raw / "dataset.json").write_text("{}")
    preprocessed.mkdir(parents=True)
    (preprocessed / "dataset.json").write_text(json.dumps({"file_ending": ".nii.gz"}))
    made = write_record(raw, preprocessed / RECORD, 2)
    fold = tmp_path / f"results/mine/nnunet/constant/seed_2/{DATASET}/model/fold_0"
    fold.mkdir(parents=True)
    (fold / TRAINED_ON).write_text(json.dumps(digests_of_cases(made, ".nii.gz")))
    return raw, preprocessed, fold


def refusal():
    with pytest.raises(ConfigError) as error:
        check_data("mine", [TASK])
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


def test_unchanged_data_are_not_read_again(study, monkeypatch):
    monkeypatch.setattr(data_changes, "_digest", None)
    check_data("mine", [TASK])


def test_corrected_labels_are_noticed_in_the_folder(study):
    raw, *_ = study
    for case in CASES:
        write(raw, f"labelsTr/{case}.nii.gz", f"right and left of {case}")
    message = refusal()
    for case in CASES:
        assert f"labelsTr/{case}.nii.gz has changed" in message
    assert str(raw.relative_to(Path.cwd())) in message


def test_a_case_that_is_new_or_gone_is_noticed_but_not_a_whole_disk(study):
    raw, preprocessed, _ = study
    write(raw, "labelsTr/c.nii.gz", "c")
    (raw / "imagesTr/b_0000.nii.gz").unlink()
    assert changed_files(raw, preprocessed / RECORD) == [
        "imagesTr/b_0000.nii.gz is gone",
        "labelsTr/c.nii.gz is new",
    ]
    raw.rename(raw.with_name("not mounted"))
    check_data("mine", [TASK])


def test_copies_and_other_compression_are_the_same_data(study, monkeypatch):
    raw, preprocessed, _ = study
    for path in raw.glob("*Tr/*"):
        path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), 1, mtime=7))
        os.utime(path, (1, 1))
    assert changed_files(raw, preprocessed / RECORD) == []
    monkeypatch.setattr(data_changes, "_digest", None)  # the record knows the new dates
    assert changed_files(raw, preprocessed / RECORD) == []


def test_data_imported_afresh_are_not_those_of_the_training(study):
    """Nothing of the study may be touched: it is refused before the preprocessing."""
    raw, preprocessed, fold = study
    write(raw, "labelsTr/b.nii.gz", "corrected")
    write_record(raw, preprocessed / RECORD, 1)
    message = refusal()
    assert re.search(rf"{fold.relative_to(Path.cwd())} was trained on other data.* in b\.", message)
    with pytest.raises(UserError, match=r"fold_0 was trained on other data: b and 0 more"):
        record_data(DATASET, "mine", 1)
    record_data(DATASET, "another", 1)
    check_data("another", [TASK])


def test_a_changed_folder_is_noticed_although_it_was_copied(study, tmp_path):
    raw, *_ = study
    source = tmp_path / "mine"
    label = write(source, "labelsTr/a.nii.gz", "left")
    write_record(source, raw / RECORD, 1)
    (raw / "dataset.json").write_text(json.dumps({SOURCE: str(source)}))
    check_data("mine", [TASK])
    write(source, "labelsTr/a.nii.gz", "right")
    assert "labelsTr/a.nii.gz has changed" in refusal()
    label.unlink()  # the page allows to delete the folder
    check_data("mine", [TASK])


def test_studies_of_earlier_versions_stay_finished(study):
    _, preprocessed, fold = study
    (fold / TRAINED_ON).unlink()
    check_data("mine", [TASK])
    (preprocessed / RECORD).unlink()
    check_data("mine", [TASK])
    compare_identity({"seed": 1, "data_hash": "a"}, {"seed": 1}, fold, set())
    with pytest.raises(UserError, match="data_hash was 'b' and is now 'a'"):
        compare_identity({"data_hash": "a"}, {"data_hash": "b"}, fold, set())


def test_a_case_has_its_own_files_alone(study):
    raw, preprocessed, _ = study
    before = digests_of_cases(json.loads((preprocessed / RECORD).read_text()), ".nii.gz")
    write(raw, "imagesTr/a_0001_0000.nii.gz", "changed")
    after = digests_of_cases(write_record(raw, preprocessed / RECORD, 1), ".nii.gz")
    assert [case for case in CASES if before[case] != after[case]] == ["a_0001"]


def test_the_record_of_a_task_is_read_once_for_all_folds(study, monkeypatch):
    """The Snakefile checks all trainings whenever it is read."""
    *_, fold = study
    for number in range(1, 5):
        (fold.with_name(f"fold_{number}")).mkdir()
        (fold.with_name(f"fold_{number}") / TRAINED_ON).write_text((fold / TRAINED_ON).read_text())
    calls = []
    counted = lambda *arguments: calls.append(arguments) or digests_of_cases(*arguments)  # noqa: E731
    monkeypatch.setattr(data_changes, "digests_of_cases", counted)
    check_data("mine", [TASK])
    assert len(calls) == 1


def test_a_broken_record_is_named_and_a_lost_description_is_not_an_error(study):
    """Snakemake deletes dataset.json before a job that makes it again, which may be killed."""
    raw, preprocessed, fold = study
    write_record(raw, raw / RECORD, 1)
    for path in (raw / "dataset.json", preprocessed / "dataset.json"):
        path.unlink()
        check_data("mine", [TASK])
    (preprocessed / "dataset.json").write_text(json.dumps({"file_ending": ".nii.gz"}))
    (fold / TRAINED_ON).write_text("{")
    assert str((fold / TRAINED_ON).relative_to(Path.cwd())) in refusal()
    (preprocessed / RECORD).write_text("")
    assert str((preprocessed / RECORD).relative_to(Path.cwd())) in refusal()
