"""`make gpu-check` on the tiny task: on the CPU, and on a GPU if there is one (`-m gpu`)."""

import json
import math
from pathlib import Path

import pytest
import torch

from helpers.processes import run_forked, start_forked
from workflow_scripts.benchmark import gpu_check
from workflow_scripts.benchmark.gpu_check import (
    FAILED,
    IMPOSSIBLE,
    PASSED,
    Arm,
    Checks,
    FailedError,
    ImpossibleError,
    _check_finite,
    _check_steps,
    _compare,
    describe_machine,
    run_checks,
    to_markdown,
)
from workflow_scripts.study.settings import RunSettings
from workflow_scripts.study.specification import RunSpec

ARMS = {
    "constant": Arm("nnUNetTrainerConstantPatch"),
    "progressive": Arm("nnUNetTrainerProgressivePatch"),
    "random": Arm("nnUNetTrainerRandomPatch"),
    "low_frequency": Arm("nnUNetTrainerLowFrequency"),
    "scale_space": Arm("nnUNetTrainerScaleSpace"),
}


def checks_on(device, tiny, folder, arms, **more):
    """Return the checks of the tiny task on a device."""
    names = {"study": "gpu_check", "task": "Task98_Tiny", "dataset": tiny.dataset, "arm": ""}
    names |= {"configuration": tiny.configuration, "plans": tiny.plans_name, "trainer": ""}
    training = {"epochs": 1, "iterations_per_epoch": 1, "validation_iterations_per_epoch": 1}
    training |= {"seed": 1, "device": device}
    energy = {"country": "DEU", "tracking_mode": "process", "pue": 1.0}
    return Checks(
        run=RunSpec(**names, fold=0),
        settings=RunSettings.of(training, energy, mirroring=False, threads=1),
        plans_file=tiny.folder / f"{tiny.plans_name}.json",
        splits_file=tiny.folder / "splits_final.json",
        folder=folder,
        arms=arms,
        iterations=2,
        **more,
    )


@pytest.fixture
def workdir(tiny, tmp_path, monkeypatch):
    (tmp_path / "resources").mkdir()
    (tmp_path / "resources/nnUNet_preprocessed").symlink_to(tiny.preprocessed)
    (tmp_path / "resources/nnUNet_raw").symlink_to(tiny.raw)
    (tmp_path / "results").mkdir()
    monkeypatch.chdir(tmp_path)
    return Path("results")  # relative, as in the rule


@pytest.mark.ci
def test_on_a_cpu_everything_passes_that_needs_no_gpu(tiny, workdir, monkeypatch):
    monkeypatch.setattr("workflow_scripts.benchmark.variants.subprocess.run", run_forked)
    monkeypatch.setattr("workflow_scripts.benchmark.gpu_check.subprocess.Popen", start_forked)
    rows = run_checks(checks_on("cpu", tiny, workdir, ARMS))
    outcomes = {row["check"]: row["outcome"] for row in rows}
    impossible = {name for name, outcome in outcomes.items() if outcome == IMPOSSIBLE}
    assert impossible == {"torch.compile", "energy of the GPU (NVML)"}
    assert {name for name, outcome in outcomes.items() if outcome == FAILED} == set(), rows
    detail = {row["check"]: row["detail"] for row in rows}
    assert "losses differ by 0e+00" in detail["losses in fp32 equal those on a CPU"]
    assert "bit by bit" in detail["deterministic resume after kill -9"]
    assert detail["arm progressive"].startswith("15 iterations at 5 sizes, time over FLOPs ")
    assert detail["arm low_frequency"].startswith("40 iterations at 3 sizes")
    assert all(text.endswith("eager") for name, text in detail.items() if name[:4] == "arm ")


def test_every_size_of_an_arm_is_compiled(tiny, workdir, monkeypatch):
    """With dynamo alone (backend `eager`), which compiles in a second what takes inductor 30."""
    monkeypatch.setattr("workflow_scripts.benchmark.variants.subprocess.run", run_forked)
    # Its smallest patch has a bottleneck of one voxel.
    arm = Arm("nnUNetTrainerProgressivePerformancePatch")
    checks = checks_on("cpu", tiny, workdir, {"arm": arm}, backend="eager")
    found = checks._train("arm", arm)
    checks._check_compiled(found)
    assert found["compiled"]
    assert found["compile_seconds"] > 0
    sizes = [tuple(size) for _, size, *_ in found["iterations"]]
    compiled = {size for size, frames in zip(sizes, found["compilations"], strict=True) if frames}
    assert compiled == set(sizes)
    assert len(compiled) == 6
    eager = {**found, "compilations": [0] * len(sizes)}
    with pytest.raises(FailedError, match="nothing was compiled in the first step at the sizes"):
        checks._check_compiled(eager)


@pytest.mark.ci
def test_compiled_and_eager_networks_agree(tiny, workdir, monkeypatch):
    monkeypatch.setattr("workflow_scripts.benchmark.variants.subprocess.run", run_forked)
    arms = {name: ARMS[name] for name in ("constant", "progressive")}
    checks = checks_on("cpu", tiny, workdir, arms, backend="eager")
    said = checks.check_compile()
    assert said.count("first 3 losses differ by 0e+00") == 2
    assert ", compiled in " in checks.check_arm("progressive")


def test_a_path_that_was_not_taken_does_not_pass(tiny, workdir, monkeypatch):
    checks = checks_on("cpu", tiny, workdir, ARMS, backend="eager")
    monkeypatch.setattr(Checks, "_measure", lambda *_, **__: {"compiled": False})
    with pytest.raises(FailedError, match="was not compiled, unlike nnU-Net's default"):
        checks.check_arm("progressive")
    monkeypatch.setattr(Checks, "device", "cuda")
    checks = checks_on("cuda", tiny, workdir, ARMS)
    fp32 = {"scaler": False, "output": "float32"}
    monkeypatch.setattr(Checks, "_measure", lambda *_, **__: fp32)
    with pytest.raises(FailedError, match="output is float32, gradient scaler: False"):
        checks.check_mixed_precision()
    of_cpu = {
        "losses": [1.0] * 2,
        "updated": [True] * 2,
        "devices": ["cpu"] * 2,
        "iterations": [[0, [4, 4, 4], 1.0, 1.0], [1, [8, 8, 8], 1.0, 1.0]],
    }
    monkeypatch.setattr(Checks, "_train", lambda *_: of_cpu)
    with pytest.raises(FailedError, match="0 of 1 batches were made on the device"):
        checks.check_device_augmentation()


def test_skipped_steps():
    """Some skipped steps are nnU-Net's normal course; a run that skips most has not trained."""
    found = {"losses": [math.inf, 1.0, 0.9, 0.8, 0.7], "updated": [False, *[True] * 4]}
    _check_steps(found)
    with pytest.raises(FailedError, match="skipped 5 of 5 steps"):
        _check_steps({**found, "updated": [False] * 5})
    with pytest.raises(FailedError, match="not finite"):
        _check_steps({**found, "updated": [True] * 5})
    whole = {"losses": [1.0, 0.5, 0.2], "updated": [True] * 3}
    skipped = {"losses": [1.0, 0.51, 0.6], "updated": [True, False, True]}
    assert "first 2 losses" in _compare(skipped, whole, 0.05)
    assert "first 1 losses" in _compare({**skipped, "losses": [1.0, math.nan, 0.6]}, whole, 0.05)
    with pytest.raises(FailedError, match="no loss can be compared"):
        _compare({"losses": [math.inf, 1, 1], "updated": [False, True, True]}, whole, 0.05)


def test_memory_of_random_includes_what_is_reserved(tiny, workdir, monkeypatch):
    peaks = {"constant": (100.0, 110.0), "random": (100.0, 160.0)}
    arm = {name: {"peak_mb": a, "reserved_mb": r} for name, (a, r) in peaks.items()}
    monkeypatch.setattr(Checks, "_arm", lambda self, name: arm[name])
    monkeypatch.setattr(Checks, "device", "cuda")
    with pytest.raises(FailedError, match=r"1\.00 allocated, 1\.45 reserved, more than 1\.2"):
        checks_on("cuda", tiny, workdir, ARMS).check_memory()


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
def test_on_a_gpu_nothing_fails(tiny, workdir):
    rows = run_checks(checks_on("cuda", tiny, workdir, ARMS))
    assert [row for row in rows if row["outcome"] == FAILED] == []


@pytest.mark.slow
def test_two_processes_share_a_training(tiny, workdir):
    checks = checks_on("cpu", tiny, workdir, ARMS)
    assert checks.check_sharing() == "2 epochs, eager; both processes have the same weights"


def test_a_check_that_fails_is_a_line_and_the_others_follow(tiny, workdir, monkeypatch):
    def fail(self):
        raise FailedError("weights differ | by much")

    def break_down(self):
        raise ZeroDivisionError("division by zero")

    def impossible(self):
        raise ImpossibleError("there is only one GPU")

    checks = checks_on("cpu", tiny, workdir, {})
    for name in [name for name in dir(Checks) if name.startswith("check_")]:
        monkeypatch.setattr(Checks, name, lambda self: "well")
    monkeypatch.setattr(Checks, "check_resume", fail)
    monkeypatch.setattr(Checks, "check_memory", break_down)
    monkeypatch.setattr(Checks, "check_sharing", impossible)
    rows = run_checks(checks)
    assert [row["outcome"] for row in rows] == [*[PASSED] * 5, *[FAILED] * 2, PASSED, IMPOSSIBLE]
    page = to_markdown(rows, describe_machine())
    assert page.startswith("GPU check: 6 passed, 2 failed, 1 not possible here.\n")
    assert "ZeroDivisionError: division by zero" in page
    lines = [line for line in page.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(rows)
    assert {line.count("|") for line in lines} == {5}, "no detail breaks the table"
    assert sum("| failed " in line for line in lines) == 2, "what `make gpu-check` looks for"
    json.dumps(rows)


def test_losses_are_compared():
    done = {"updated": [True] * 4}
    one = {"losses": [1.0, 0.5, -0.2, 9.0], **done}
    assert "3 losses" in _compare(one, {"losses": [1.0, 0.5, -0.2, 1.0], **done}, 1e-6)
    with pytest.raises(FailedError, match=r"differ by 1\.1e-01, more than 0\.05"):
        _compare(one, {"losses": [1.0, 0.5, -0.18], **done}, 0.05)
    with pytest.raises(FailedError, match="not finite"):
        _compare(one, {"losses": [1.0, float("nan"), 1.0], **done}, 1)
    with pytest.raises(FailedError):
        _check_finite([1.0, float("inf")])


def test_weights_that_differ_after_a_kill_are_named(tiny, workdir, monkeypatch):
    paths = {name: workdir / f"{name}.pth" for name in ("whole", "killed")}
    weights = {"a": torch.ones(2), "b": torch.zeros(2)}
    torch.save({"network_weights": weights}, paths["whole"])
    torch.save({"network_weights": {**weights, "b": torch.ones(2)}}, paths["killed"])
    monkeypatch.setattr(gpu_check.Checks, "_fold", lambda self, name, kill: paths[name])
    with pytest.raises(FailedError, match="1 of 2 weights differ, b first"):
        checks_on("cpu", tiny, workdir, ARMS).check_resume()
