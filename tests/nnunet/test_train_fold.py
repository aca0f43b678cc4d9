"""A training as the rule runs it: its outputs, and what remains after a kill."""

import contextlib
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from helpers.folds import EPOCHS, PROGRESSIVE, Folds, kill_group

SIZES = [(8, 4, 4), (8, 8, 4), (8, 8, 8), (12, 8, 8), (16, 8, 8)]
BATCH = 4
LISTED = [{"patch_size": [8, 6, 8], "batch_size": 2, "epochs": EPOCHS}]


def is_running(pid):
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@pytest.fixture(scope="module")
def folds(prepared, tmp_path_factory):
    """One training that ran through, and one that was killed in its fourth epoch, then resumed.

    `folds.said` contains the results of the second process's calls, `folds.log_of_kill` its log.
    """
    folds = Folds(prepared, tmp_path_factory.mktemp("folds"))
    process, said = folds.start(folds.call("killed"))
    ledger = folds.root / "killed" / "nnunet"
    deadline = time.monotonic() + 400
    try:
        while time.monotonic() < deadline and process.poll() is None:
            found = list(ledger.glob("*/*/fold_0/ledger.jsonl"))
            if found and '"epoch": 2' in found[0].read_text():
                break
            time.sleep(0.005)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.kill()  # the process alone, as the kernel does if memory runs out
        process.wait()
        deadline = time.monotonic() + 60
        while any(map(is_running, children)) and time.monotonic() < deadline:
            time.sleep(0.1)
        folds.left_over = list(filter(is_running, children))
        folds.workers_at_kill = len(children)
    finally:
        kill_group(process)
    assert process.returncode == -signal.SIGKILL, said.with_suffix(".log").read_text()[-3000:]
    folds.at_kill = folds.ledger("killed")
    folds.files_at_kill = {path.name for path in (folds.root / "killed").glob("[!.]*")}
    folds.said = folds.run(
        folds.call("whole"),
        folds.call("killed"),
        folds.call("killed", outputs="again"),
        folds.call("killed", outputs="changed", epochs=EPOCHS + 1),
        folds.call("killed", outputs="parameter", parameters={"batch_seed": 4}),
        folds.call("unknown", parameters={"no_such_thing": 4}),
        folds.call("listed", parameters={"curriculum": "listed", "stage_list": LISTED}),
    )
    folds.log_of_kill = folds.log
    return folds


@pytest.mark.slow
def test_train_fold_writes_all_outputs(folds):
    assert folds.said[0] == "ok"
    run, epochs = folds.read("whole", "run"), folds.read("whole", "epochs")
    assert epochs["epoch"].tolist() == list(range(EPOCHS))
    sizes = ["x".join(map(str, size)) for size in (*SIZES, *[SIZES[-1]] * 3)]
    assert epochs["patch_size"].tolist() == sizes
    assert epochs["voxels_per_iteration"].tolist() == [
        BATCH * np.prod(size) for size in (*SIZES, *[SIZES[-1]] * 3)
    ]
    assert (epochs["train_gflop"].diff()[1:5] > 0).all(), "larger patches, more work"
    assert (epochs["train_seconds"] + epochs["val_seconds"] <= epochs["seconds"]).all()
    assert (epochs["kwh"] > 0).all()
    assert (run["stages"], run["epochs"], run["attempts"]) == (5, EPOCHS, 1)
    assert run["patch_size"] == [16, 8, 8]
    assert run["training_kwh"] == pytest.approx(epochs["kwh"].sum())
    assert run["total_kwh"] > run["training_kwh"] + run["validation_kwh"]
    assert run["training_gflop"] == pytest.approx(epochs["train_gflop"].sum())
    assert set(run["dice_per_label"]) == {"1", "2"}
    assert run["label_names"] == {"1": "outer", "2": "inner"}
    assert run["cases"] == 2
    assert len(folds.read("whole", "summary")["metric_per_case"]) == 2
    stages = folds.read("whole", "stages")
    assert stages["epochs"].tolist() == [1, 1, 1, 1, 4]
    phases = folds.read("whole", "energy")["phase"].tolist()
    assert phases == ["setup", *["training"] * 5, "end of training", "validation"]


@pytest.mark.slow
def test_finished_epochs_are_not_trained_again_after_a_kill(folds):
    before = [entry["epoch"] for entry in folds.at_kill if entry.get("phase") == "training"]
    assert before == list(range(len(before)))
    assert 3 <= len(before) < EPOCHS
    assert folds.files_at_kill == {"energy.csv", "epochs.csv", "nnunet", "stages.csv"}
    assert folds.said[1] == "ok"
    after = [e for e in folds.ledger("killed")[len(folds.at_kill) :] if e["attempt"] == 2]
    resumed_at = after[0]["resumed_at"]
    assert resumed_at >= len(before) - 1, "a checkpoint follows every epoch's line in the ledger"
    again = [entry["epoch"] for entry in after if entry.get("phase") == "training"]
    assert again == list(range(resumed_at, EPOCHS))


@pytest.mark.slow
def test_the_next_attempt_tells_that_the_last_one_was_killed(folds):
    ends = [entry for entry in folds.ledger("killed") if entry["entry"] == "end"]
    assert [(end["attempt"], end["how"]) for end in ends] == [
        (1, "without a message"),
        (2, "finished"),
    ]
    trained = [entry["epoch"] for entry in folds.at_kill if entry.get("phase") == "training"]
    assert ends[0]["reached"] == f"epoch {len(trained)}"
    first, second = (e for e in folds.ledger("killed") if e["entry"] == "attempt")
    assert (
        f"the last attempt (on {first['host']}, started {first['started']}) ended without a "
        f"message in epoch {len(trained)}: killed, out of memory, or the machine failed; "
        f"continuing from epoch {second['resumed_at']}\n" in folds.log_of_kill
    )


@pytest.mark.slow
def test_no_worker_outlives_a_killed_training(folds):
    assert folds.workers_at_kill >= 2, "one for training, one for validation"
    assert folds.left_over == []


@pytest.mark.slow
def test_the_outputs_of_a_killed_training_are_complete(folds):
    epochs, whole = folds.read("killed", "epochs"), folds.read("whole", "epochs")
    assert epochs["epoch"].tolist() == list(range(EPOCHS)), "each once"
    assert set(epochs["attempt"]) == {1, 2}
    for column in ("train_loss", "val_loss", "pseudo_dice", "lr", "stage", "gflop"):
        assert epochs[column].tolist() == whole[column].tolist(), column
    assert folds.read("killed", "stages")["epochs"].tolist() == [1, 1, 1, 1, 4]
    energy, run = folds.read("killed", "energy"), folds.read("killed", "run")
    assert set(energy["attempt"]) == {1, 2}
    assert set(energy[energy["attempt"] == 1]["phase"]) == {"setup", "training"}
    assert (energy["kwh"] > 0).all()
    assert energy["error"].isna().all()
    assert run["attempts"] == 2
    assert run["total_kwh"] == pytest.approx(energy["kwh"].sum())
    assert run["training_kwh"] == pytest.approx(epochs["kwh"].sum())
    kept = energy[energy["phase"] == "training"]["kwh_kept"].sum()
    assert kept == pytest.approx(run["training_kwh"])
    assert run["dice_per_label"] == folds.read("whole", "run")["dice_per_label"]


@pytest.mark.slow
def test_a_finished_training_is_not_touched_again(folds):
    assert folds.said[2] == "ok"
    entries = folds.ledger("killed")
    assert sum(entry["entry"] == "attempt" for entry in entries) == 2, "no third attempt"
    first, again = folds.read("killed", "run"), folds.read("again", "run")
    assert again == first
    for name in ("epochs", "stages", "energy"):
        pd.testing.assert_frame_equal(folds.read("again", name), folds.read("killed", name))


@pytest.mark.slow
def test_a_changed_training_is_refused(folds):
    assert "epochs was 8 and is now 9." in folds.said[3]
    assert "parameters was {} and is now {'batch_seed': 4}." in folds.said[4]
    assert not (folds.root / "changed").exists()
    assert folds.said[5] == (
        f"UserError: arms.progressive.parameters: {PROGRESSIVE} has no parameter no_such_thing"
    )


@pytest.mark.slow
def test_a_finished_training_by_another_default_is_refused(folds):
    """Its parameters are the same, but their meaning has changed."""
    changed = f"""
from workflow_scripts.trainers.curricula import arms
arms.{PROGRESSIVE}.curriculum = "constant"
"""
    (said,) = folds.run(folds.call("killed", outputs="by_another"), before=changed)
    assert (
        f"{folds.fold('killed')} was trained with a different schedule than its arm has now" in said
    )
    assert not (folds.root / "by_another").exists()


@pytest.mark.slow
def test_a_stage_that_the_network_cannot_pool_is_named(folds):
    assert folds.said[6] == (
        "UserError: arms.progressive, Task98_Tiny: stage 1: patch size [8, 6, 8]: 6 on axis 1 is "
        "not a multiple of 4, which this plan's network requires; the nearest are 4 and 8"
    )


@pytest.mark.slow
def test_a_damaged_or_foreign_checkpoint_is_refused(folds):
    """Neither is silently restarted, and the folder stays as it was."""
    shutil.copytree(folds.root / "killed", folds.root / "damaged")
    final = folds.fold("damaged") / "checkpoint_final.pth"
    (folds.fold("damaged") / "validation/summary.json").unlink()
    final.write_bytes(final.read_bytes()[:5000])
    shutil.copytree(folds.root / "killed", folds.root / "foreign")
    shutil.copy(folds.fold("whole") / "identity.json", folds.fold("foreign") / "identity.json")
    (folds.fold("foreign") / "validation/summary.json").unlink()
    path = folds.fold("foreign") / "checkpoint_final.pth"
    checkpoint = torch.load(path, weights_only=False)
    checkpoint["init_args"]["identity"]["splits_hash"] = "other"
    torch.save(checkpoint, path)
    before = {file: file.read_bytes() for file in (final, path)}
    said = folds.run(folds.call("damaged"), folds.call("foreign"))
    assert said[0].startswith(f"UserError: the checkpoint {final} cannot be read (")
    assert "delete" in said[0]
    assert f"{path}: splits_hash was 'other' and is now" in said[1]
    assert {file: file.read_bytes() for file in before} == before
