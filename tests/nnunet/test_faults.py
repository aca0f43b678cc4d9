"""A training killed at ten random moments and at a stage border, against an undisturbed twin."""

import json
import os
import subprocess
from itertools import pairwise
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from helpers.folds import PATHS, PYTHON, ROOT, Folds, kill_group
from helpers.processes import PATIENCE

pytestmark = pytest.mark.ci
EPOCHS, ITERATIONS, VALIDATIONS = 15, 15, 2


@pytest.fixture(scope="module")
def faults(prepared, tmp_path_factory):
    """Both trainings, finished; `reports` has one entry per attempt of the killed one."""
    folds = Folds(prepared, tmp_path_factory.mktemp("faults"))
    length = {
        "epochs": EPOCHS,
        "iterations_per_epoch": ITERATIONS,
        "validation_iterations_per_epoch": VALIDATIONS,
    }
    calls = {name: folds.call(name, deterministic=True, **length) for name in ("whole", "killed")}
    folder = folds.root / "killed/nnunet/Dataset998_Tiny"
    folder /= "nnUNetTrainerProgressivePatch__tinyPlans__3d_fullres/fold_0"
    spec = folds.root / "faults.json"
    content = {"raw": str(folds.raw), "preprocessed": str(folds.preprocessed), "calls": calls}
    spec.write_text(json.dumps({**content, "seed": 2024, "ledger": str(folder / "ledger.jsonl")}))
    process = subprocess.Popen(
        [PYTHON, ROOT / "tests/helpers/faults.py", spec],
        env={**os.environ, "PYTHONPATH": PATHS, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=PATIENCE)
    finally:
        kill_group(process)
    assert process.returncode == 0, output[-4000:]
    reports = [json.loads(line) for line in spec.with_suffix(".reports").read_text().splitlines()]
    return SimpleNamespace(folds=folds, reports=reports, ledger=folds.ledger("killed"))


def test_each_attempt_ended_as_it_was_meant_to(faults):
    assert len(faults.reports) == 12
    for report in faults.reports[:10]:
        assert report["code"] == (-9 if report["kind"] == "SIGKILL" else 143), report
    assert [report["code"] for report in faults.reports[10:]] == [-9, 0]


def test_the_schedule_is_that_of_the_undisturbed_twin(faults):
    whole, killed = (faults.folds.read(name, "epochs") for name in ("whole", "killed"))
    assert killed["epoch"].tolist() == list(range(EPOCHS)), "each once"
    for column in (
        *("stage", "patch_size", "batch_size", "lr", "voxels_per_iteration"),
        *("train_loss", "val_loss", "pseudo_dice"),
    ):
        assert killed[column].tolist() == whole[column].tolist(), column
    assert killed["train_gflop"].tolist() == pytest.approx(whole["train_gflop"].tolist())
    # A validation that was interrupted within an epoch is repeated, and its work is counted.
    assert (killed["gflop"] >= whole["gflop"] * (1 - 1e-9)).all()


def test_the_weights_are_those_of_the_undisturbed_twin(faults):
    """Deterministic: not one bit of weights, momentum or log differs after twelve attempts."""
    whole, killed = (
        torch.load(faults.folds.fold(name) / "checkpoint_final.pth", weights_only=False)
        for name in ("whole", "killed")
    )
    weights = whole["network_weights"]
    assert weights.keys() == killed["network_weights"].keys()
    for name, value in weights.items():
        assert torch.equal(value, killed["network_weights"][name]), name
    for number, state in whole["optimizer_state"]["state"].items():
        momentum = killed["optimizer_state"]["state"][number]["momentum_buffer"]
        assert torch.equal(state["momentum_buffer"], momentum)
    for name in ("train_losses", "val_losses", "ema_fg_dice", "lrs"):
        assert whole["logging"][name] == killed["logging"][name], name
    scores = [faults.folds.read(name, "run")["dice_per_label"] for name in ("whole", "killed")]
    assert scores[0] == scores[1]


def test_a_signal_loses_no_iteration_and_a_kill_at_most_an_epoch(faults):
    """Compare where each attempt resumed with where the previous one ended."""
    attempts = [entry for entry in faults.ledger if entry["entry"] == "attempt"]
    assert len(attempts) == 12
    assert any(attempt["resumed_within"] for attempt in attempts)
    resumed = [(a["resumed_at"], a["resumed_within"]) for a in attempts]
    assert resumed == sorted(resumed), "never resumed before the last checkpoint"
    for (one, other), report in zip(pairwise(attempts), faults.reports, strict=False):
        work = [e for e in faults.ledger if e.get("phase") == "training"]
        mine = [entry for entry in work if entry["attempt"] == one["attempt"]]
        if report["code"] == 143:
            last = mine[-1]
            assert last["partial"], report
            before = one["resumed_within"] if last["epoch"] == one["resumed_at"] else 0
            assert other["resumed_at"] == last["epoch"]
            assert other["resumed_within"] == before + last["iterations"]
        else:
            done = [entry["epoch"] for entry in mine]
            assert other["resumed_at"] >= (done[-1] if done else one["resumed_at"])


def test_the_ledger_tells_how_each_attempt_ended(faults):
    expected = {"SIGKILL between border and checkpoint": "SIGKILL", "none": "finished"}
    kinds = [expected.get(report["kind"], report["kind"]) for report in faults.reports]
    ends = [entry for entry in faults.ledger if entry["entry"] == "end"]
    assert [end["attempt"] for end in ends] == list(range(1, 13))
    assert [end["how"] for end in ends] == [
        "without a message" if kind == "SIGKILL" else kind for kind in kinds
    ]


def test_no_energy_row_is_lost(faults):
    energy, run = (faults.folds.read("killed", name) for name in ("energy", "run"))
    assert (energy["kwh"] > 0).all()
    assert set(energy["attempt"]) == set(range(1, 13))
    assert run["total_kwh"] == pytest.approx(energy["kwh"].sum())
    kept = energy[energy["phase"] == "training"]["kwh_kept"].sum()
    assert kept == pytest.approx(run["training_kwh"])
    assert run["total_kwh"] > run["training_kwh"] + run["validation_kwh"]
    parts = [e for e in faults.ledger if e.get("partial") and e["phase"] == "training"]
    table: pd.DataFrame = faults.folds.read("killed", "epochs")
    for epoch in {part["epoch"] for part in parts}:
        row = table.set_index("epoch").loc[epoch]
        cost = [e["kwh"] for e in faults.ledger if e.get("epoch") == epoch]
        assert row["kwh"] <= sum(cost) * (1 + 1e-9)
