"""nnU-Net's final validation: interrupted, and resumed at the first missing case."""

import gzip
import json
import shutil
import signal
import zlib
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
import torch

from helpers.folds import EPOCHS, Folds, kill_group
from workflow_scripts.training.final_validation import is_whole

# Runs code before this process predicts its n-th case.
AT_FIRST_CASE = """
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from workflow_scripts.training import preemption
predict, cases = nnUNetPredictor.predict_sliding_window_return_logits, []


def happen():
    {}


def predict_and_happen(self, *args):
    cases.append(1)
    if len(cases) == {}:
        happen()
    return predict(self, *args)


nnUNetPredictor.predict_sliding_window_return_logits = predict_and_happen
"""
SIGTERM = AT_FIRST_CASE.format("import signal; signal.raise_signal(signal.SIGTERM)", 1)
KILL = AT_FIRST_CASE.format("import os; os.kill(os.getpid(), 9)", 2)
LATE = AT_FIRST_CASE.format("preemption.Deadline.seconds_left = -1.0", 1)
LATE_AT_ONCE = """
from workflow_scripts.training import preemption

preemption.Deadline.seconds_left = -1.0
"""


@pytest.fixture(scope="module")
def folds(prepared, tmp_path_factory):
    """The training `whole`, and copies without a final validation."""
    folds = Folds(prepared, tmp_path_factory.mktemp("folds"))
    assert folds.run(folds.call("whole")) == ["ok"]
    for name in ("stopped", "late", "killed"):
        copy_trained(folds, name)
    return folds


def copy_trained(folds, name):
    shutil.copytree(folds.root / "whole", folds.root / name)
    folder = folds.fold(name)
    shutil.rmtree(folder / "validation")
    (folder / "validation_made_with.json").unlink()
    kept = [entry for entry in folds.ledger(name) if entry.get("phase") != "validation"]
    (folder / "ledger.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in kept))


def end(folds, name, before, spawning=False):
    """Run a process that does not finish; return its status and its messages."""
    process, said = folds.start(folds.call(name), before=before, spawning=spawning)
    try:
        process.wait(300)
    finally:
        kill_group(process)
    return process.returncode, said.read_text() if said.exists() else ""


def predictions(folds, name):
    paths = sorted((folds.fold(name) / "validation").glob("*.nii.gz"))
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}


def summary(folds, name):
    """Return nnU-Net's summary, without the folder's name."""
    return (folds.fold(name) / "validation/summary.json").read_text().replace(f"/{name}/", "/-/")


def ends(folds, name):
    return [entry["how"] for entry in folds.ledger(name) if entry["entry"] == "end"]


def check_energy(folds, name, cases):
    """Check the energy; `cases` is (attempt, whether it is a case) of each piece of validation."""
    entries = [e for e in folds.ledger(name) if e.get("phase") == "validation"]
    assert [(e["attempt"], "case" in e) for e in entries] == cases
    run, energy = folds.read(name, "run"), folds.read(name, "energy")
    rows = energy[energy["phase"] == "validation"]
    assert rows["kwh"].sum() == pytest.approx(sum(entry["kwh"] for entry in entries))
    assert run["validation_kwh"] == pytest.approx(rows["kwh_kept"].sum())
    assert run["total_kwh"] == pytest.approx(energy["kwh"].sum())
    return run, entries


@pytest.mark.slow
def test_an_undisturbed_validation_is_metered_case_by_case(folds):
    run, entries = check_energy(folds, "whole", [(1, True), (1, True), (1, False)])
    assert run["validation_kwh"] == pytest.approx(sum(entry["kwh"] for entry in entries))
    assert run["validation_seconds"] == pytest.approx(sum(entry["seconds"] for entry in entries))


@pytest.mark.slow
def test_after_sigterm_it_goes_on_with_the_next_case(folds):
    status, _ = end(folds, "stopped", SIGTERM, spawning=True)
    assert status == 143
    before = predictions(folds, "stopped")
    assert len(before) == 1
    assert all(is_whole(folds.fold("stopped") / "validation" / name) for name in before)
    assert not (folds.fold("stopped") / "validation/summary.json").exists()
    assert folds.run(folds.call("stopped")) == ["ok"]
    after = predictions(folds, "stopped")
    assert before.items() <= after.items(), "what was predicted is not predicted again"
    assert summary(folds, "stopped") == summary(folds, "whole")
    check_energy(folds, "stopped", [(2, True), (3, True), (3, False)])
    attempts = [e for e in folds.ledger("stopped") if e["entry"] == "attempt"]
    assert [attempt["resumed_at"] for attempt in attempts] == [0, EPOCHS, EPOCHS]
    assert [entry for entry in folds.ledger("stopped") if entry.get("phase") == "interrupted"]
    assert ends(folds, "stopped") == ["finished", "SIGTERM", "finished"]


@pytest.mark.slow
def test_it_ends_before_the_time_limit(folds):
    status, said = end(folds, "late", LATE)
    message = (
        f"before its time limit: all {EPOCHS} epochs done, 1 of 2 validation cases predicted; "
        "run again to continue"
    )
    assert status == 0, "the driver reports the error"
    assert message in said
    before = predictions(folds, "late")
    assert len(before) == 1
    status, said = end(folds, "late", LATE_AT_ONCE)
    assert message in said, "no time for another case"
    assert predictions(folds, "late") == before
    assert folds.run(folds.call("late")) == ["ok"]
    assert before.items() <= predictions(folds, "late").items()
    assert summary(folds, "late") == summary(folds, "whole")
    check_energy(folds, "late", [(2, True), (4, True), (4, False)])
    assert ends(folds, "late") == ["finished", "time limit", "time limit", "finished"]


@pytest.mark.slow
def test_a_case_whose_export_was_killed_is_predicted_again(folds):
    assert end(folds, "killed", KILL)[0] == -signal.SIGKILL
    (first, second) = sorted(predictions(folds, "whole"))
    path = folds.fold("killed") / "validation" / first
    path.write_bytes(predictions(folds, "whole")[first][1][:300])
    assert folds.run(folds.call("killed")) == ["ok"]
    assert summary(folds, "killed") == summary(folds, "whole")
    run, entries = check_energy(folds, "killed", [(2, True), (3, True), (3, True), (3, False)])
    again = sum(entry["kwh"] for entry in entries[1:])
    assert run["validation_kwh"] == pytest.approx(again), "the case counts as predicted last"
    assert ends(folds, "killed") == ["finished", "without a message", "finished"]
    assert "ended without a message in the final validation: " in folds.log
    assert is_whole(path)
    assert second in predictions(folds, "killed")


@pytest.mark.slow
def test_predictions_of_another_kind_are_made_anew(folds):
    """After a change of the checkpoint, then of mirroring, and back."""
    shutil.copytree(folds.root / "whole", folds.root / "changed")
    call, before = folds.call("changed"), predictions(folds, "changed")
    final = folds.fold("changed") / "checkpoint_final.pth"
    checkpoint = torch.load(final, weights_only=False)
    for weight in checkpoint["network_weights"].values():
        weight += 0.1
    torch.save(checkpoint, final)
    mirrored = {**folds.call("changed", outputs="mirrored"), "mirroring": True}
    assert folds.run(call, mirrored, call) == ["ok", "ok", "ok"]
    assert folds.read("mirrored", "run")["validation_mirroring"] is True
    assert folds.read("changed", "run")["validation_mirroring"] is False
    changed = predictions(folds, "changed")
    assert {name: content for name, (_, content) in changed.items()} != {
        name: content for name, (_, content) in before.items()
    }
    ends = [e for e in folds.ledger("changed") if "checkpoint" in e]
    assert [entry["mirroring"] for entry in ends] == [False, False, True, False]
    assert len({entry["checkpoint"] for entry in ends}) == 2
    cases = [e for e in folds.ledger("changed") if "case" in e]
    assert len(cases) == 2 * len(ends), "no prediction of another kind was reused"


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".mha", ".nrrd", ".gipl", ".png"])
def test_half_an_image_is_not_whole(tmp_path, ending):
    path = tmp_path / f"image{ending}"
    assert not is_whole(path)
    shape = (13, 14) if ending == ".png" else (12, 13, 14)
    voxels = np.random.default_rng(3).integers(0, 3, shape).astype(np.uint8)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(voxels), path)
    content = path.read_bytes()
    assert is_whole(path)
    for length in (0, 1, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        assert not is_whole(path), length


def test_an_image_of_which_nobody_notices_the_half_is_never_whole(tmp_path):
    path, voxels = tmp_path / "image.tif", np.zeros((4, 5, 6), np.uint8)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(voxels), path)
    assert not is_whole(path)


def test_a_damaged_compressed_image_is_not_whole(tmp_path):
    path = tmp_path / "image.nii.gz"
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(np.zeros((20, 30, 40), np.uint8)), path)
    content = bytearray(path.read_bytes())
    assert is_whole(path)
    content[-8] ^= 1  # in the checksum
    path.write_bytes(content)
    assert not is_whole(path)
    content[12:20] = b"\xff" * 8
    with pytest.raises(zlib.error):
        gzip.decompress(content)
    path.write_bytes(content)
    assert not is_whole(Path(path))
