"""The schedule of an arm from plans, and a network prepared for a job."""

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from helpers.tree import ROOT
from workflow_scripts.common.arm_schedule import has_schedule, plan_arm
from workflow_scripts.common.hardware import Hardware, prepare_network
from workflow_scripts.common.nnunet_setup import find_trainer
from workflow_scripts.forecast.plans import published_plans
from workflow_scripts.trainers.curricula.schedules.settings import TrainingLength

PLAN = published_plans(ROOT / "config/published/nnunet_plans.tsv")["Task04_Hippocampus"]
PROGRESSIVE, CONSTANT = "nnUNetTrainerProgressivePatch", "nnUNetTrainerConstantPatch"


def planned(trainer, **parameters):
    length = TrainingLength(epochs=100, iterations_per_epoch=5, seed=1)
    return plan_arm(PLAN.plans, "3d_fullres", trainer, parameters, length)


def test_the_schedule_follows_the_trainer_and_the_arm_s_parameters():
    size = tuple(PLAN.plans["configurations"]["3d_fullres"]["patch_size"])
    growing, whole = planned(find_trainer(PROGRESSIVE)), planned(find_trainer(CONSTANT))
    assert [stage.patch_size for stage in whole.stages] == [size]
    assert len(growing.stages) > 1
    assert growing.stages[-1].patch_size == size
    assert planned(find_trainer(CONSTANT), curriculum="progressive") == growing
    with pytest.raises(ValueError, match="unknown curriculum"):
        planned(find_trainer(CONSTANT), curriculum="upwards")


def test_nnunet_s_own_trainer_has_no_schedule():
    assert has_schedule(find_trainer(PROGRESSIVE))
    assert not has_schedule(nnUNetTrainer)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_network_is_prepared_for_its_job(precision):
    wanted = {"threads": 1, "gpu": None, "memory_format": "channels_last"}
    network, seen = torch.nn.Sequential(torch.nn.Conv3d(1, 4, 3, padding=1)), []
    network[0].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    hardware = Hardware(device="cpu", precision=precision, **wanted)
    assert prepare_network(network, hardware) == "channels_last"
    assert network[0].weight.is_contiguous(memory_format=torch.channels_last_3d)
    assert network(torch.zeros(1, 1, 8, 8, 8)).dtype == torch.float32
    assert seen == [{"fp32": torch.float32, "bf16": torch.bfloat16}[precision]]
