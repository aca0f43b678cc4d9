"""A changed configuration is refused by `-n` as by the run, and nothing is touched."""

import json

import pytest
import yaml

from helpers.tree import ROOT, dry_run, plan, snakemake

STUDY = ("--configfile", "config/studies/demo.yaml")
TASK = "Task99_BrainTissue"
TRAINING = yaml.safe_load((ROOT / "config/studies/demo.yaml").read_text())["training"]
SECTION = "training={{epochs: {epochs}}}"


@pytest.fixture
def finished(tmp_path):
    """The records of one finished training of the demo; nnU-Net's folder was cleaned up."""
    folder = tmp_path / f"results/demo/runs/{TASK}/constant/fold_0"
    folder.mkdir(parents=True)
    record = {"task": TASK, "epochs": TRAINING["epochs"], "precision": "fp32", "fold": 0}
    (folder / "run.json").write_text(json.dumps(record))
    for name in ("epochs.csv", "stages.csv", "energy.csv", "summary.json"):
        (folder / name).write_text("kept")
    return folder


def contents(folder):
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}


def test_other_epochs_are_refused_before_anything_is_deleted(finished, tmp_path):
    before = contents(finished)
    change = ("--config", SECTION.format(epochs=TRAINING["epochs"] + 2))
    runs = [dry_run(tmp_path, *STUDY, *change), snakemake(tmp_path, "--cores", 1, *STUDY, *change)]
    for run in runs:
        assert run.returncode == 1
        assert "Job stats" not in run.stdout
        assert "Traceback" not in run.stderr
        told = run.stderr.partition("Error: ")[2]
        assert f"epochs was {TRAINING['epochs']} and is now {TRAINING['epochs'] + 2}" in told
        assert f"{TASK} constant fold 0" in told
    assert contents(finished) == before
    assert not list(tmp_path.glob(".snakemake/locks/*"))
    assert plan(tmp_path, *STUDY)[0]["train_fold"] >= 5


@pytest.mark.parametrize("target", ["plans", "forecast", "clean_archives"])
def test_what_needs_no_training_is_made_regardless(finished, tmp_path, target):
    change = ("--config", SECTION.format(epochs=TRAINING["epochs"] + 2))
    jobs, _ = plan(tmp_path, target, *STUDY, *change)
    assert "train_fold" not in jobs


def test_another_study_name_trains_anew(finished, tmp_path):
    change = ("--config", SECTION.format(epochs=TRAINING["epochs"] + 2), "study=other")
    assert plan(tmp_path, *STUDY, *change)[0]["train_fold"] == 6
