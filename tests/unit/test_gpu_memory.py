"""Estimates of the GPU memory against what the tensors take."""

import json
from types import SimpleNamespace

import pytest
import torch

from helpers.tree import ROOT
from workflow_scripts.common.nnunet_setup import find_trainer
from workflow_scripts.forecast import gpu_memory
from workflow_scripts.forecast.gpu_memory import GB, GpuMemory, check_memory, estimate_memory
from workflow_scripts.forecast.plans import published_plans
from workflow_scripts.forecast.workload import StudyDesign, build_network
from workflow_scripts.study.settings import TrainingSettings
from workflow_scripts.trainers.curricula.schedules.scale_factors import ScaleSpaceSettings

PLANS = published_plans(ROOT / "config/published/nnunet_plans.tsv")
DESIGN = StudyDesign("3d_fullres", TrainingSettings(1000, 250, 50, seed=0), [0], mirroring=True)
CONSTANT, LOW, SCALES = (
    f"nnUNetTrainer{name}" for name in ("ConstantPatch", "LowFrequency", "ScaleSpace")
)


def memory_of(task, trainer, **parameters):
    return estimate_memory(PLANS[task], find_trainer(trainer), parameters, DESIGN)


@pytest.mark.parametrize("task", ["Task01_BrainTumour", "Task07_Pancreas", "Task10_Colon"])
def test_nnunet_s_plans_fit_what_it_planned_for(task):
    """Its default target is 8 GB, which its planner fills as far as batches of two allow."""
    memory = memory_of(task, CONSTANT)
    assert 6 < memory.plan <= 8
    assert memory.beyond_plan == 0


def test_kept_batches():
    """Two patches of 96 of 128 voxels per axis each, in half precision, and their labels."""
    voxels = 2 * 96**3
    labels = sum(1 / 8**n for n in range(5))
    whole = memory_of("Task01_BrainTumour", LOW).replay
    assert whole == pytest.approx(64 * voxels * 2 * (4 + labels) / GB)
    mixed = memory_of("Task01_BrainTumour", LOW, replay="mixed", replay_batches=9).replay
    assert mixed == pytest.approx(whole * 10 / 64)
    assert memory_of("Task01_BrainTumour", LOW, replay_batches=0).replay == 0


def test_a_hypernetwork_s_weights_gradients_and_momentum():
    """Counted on a small network that is trained for one step."""
    plan = json.loads(json.dumps(PLANS["Task04_Hippocampus"].plans))
    chosen = plan["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    chosen["features_per_stage"] = [4, 8, 8, 8][: chosen["n_stages"]]
    settings = ScaleSpaceSettings(rank=3)
    trainer = find_trainer(SCALES)
    dataset = PLANS["Task04_Hippocampus"].dataset
    meta, channels = build_network(
        plan, dataset, "3d_fullres", trainer.build_network_architecture, settings
    )
    network = meta.to_empty(device="cpu")
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.01)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.99, nesterov=True)
    sum(output.sum() for output in network(torch.ones(1, channels, 16, 16, 16))).backward()
    optimiser.step()
    taken = 0
    primary = {id(weight) for weight in network.primary.parameters()}
    for weight in network.parameters():
        if id(weight) not in primary:
            momentum = optimiser.state[weight]["momentum_buffer"]
            taken += sum(tensor.nbytes for tensor in (weight, weight.grad, momentum))
    made = sum(weight.nbytes for weight in network.primary.parameters())
    small = SimpleNamespace(plans=plan, dataset=dataset)
    found = estimate_memory(small, trainer, {"rank": 3}, DESIGN)
    assert found.hypernetwork * GB == pytest.approx(taken + gpu_memory.MADE * made)
    assert estimate_memory(small, trainer, {"rank": 0}, DESIGN).hypernetwork == 0


def test_the_hypernetwork_of_a_full_plan_takes_gigabytes():
    assert memory_of("Task02_Heart", SCALES).hypernetwork == pytest.approx(3.1, abs=0.1)


def test_a_training_that_does_not_fit_is_refused_if_nnunet_did_not_plan_it():
    need = {
        ("Task02_Heart", "scale_space"): GpuMemory(7.5, 0, 3.1),
        ("Task02_Heart", "low_frequency"): GpuMemory(7.5, 0.5, 0),
        ("Task02_Heart", "constant"): GpuMemory(12, 0, 0),
    }
    assert check_memory(need, None) == [], "no GPU here, as on a login node"
    assert check_memory(need, 24) == []
    (fault,) = check_memory(need, 10)
    assert fault.startswith("arm scale_space, Task02_Heart: needs about 10.6 GB of GPU memory (7.5")
    assert "3.1 for its hypernetwork" in fault
    assert "the smallest GPU has 10.0 GB" in fault
    assert len(check_memory(need, 7.9)) == 2


def test_the_smallest_gpu(monkeypatch):
    sizes = [24 * GB, 11 * GB]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda n: SimpleNamespace(total_memory=sizes[n])
    )
    assert gpu_memory.smallest_gpu("auto") == 11
    assert gpu_memory.smallest_gpu("cpu") is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_memory.smallest_gpu("cuda") is None
