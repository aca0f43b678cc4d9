"""Optimiser and learning rate of any arm: nnU-Net's own, and exact on resume."""

from pathlib import Path

import pytest
import torch

CONSTANT = "nnUNetTrainerConstantPatch"
PROGRESSIVE = "nnUNetTrainerProgressivePatch"
LOW = "nnUNetTrainerLowFrequency"
ARMS = [CONSTANT, PROGRESSIVE, LOW, "nnUNetTrainerScaleSpace"]


def groups(trainer):
    """Return the optimiser's settings for each group of parameters."""
    skipped = {"params", "initial_lr"}
    return [
        {key: value for key, value in group.items() if key not in skipped}
        for group in trainer.optimizer.param_groups
    ]


@pytest.mark.parametrize("name", ARMS)
def test_by_default_it_is_nnunet_s_sgd(tiny, name):
    trainer, stock = tiny.trainer(name), tiny.trainer("nnUNetTrainer")
    assert type(trainer.optimizer) is type(stock.optimizer) is torch.optim.SGD
    assert groups(trainer) == groups(stock)
    assert trainer.initial_lr == stock.initial_lr == 1e-2


@pytest.mark.parametrize("name", ARMS)
def test_any_arm_may_take_another_optimiser_and_rate(tiny, name):
    trainer = tiny.trainer(name, optimizer_name="adamw")
    (found,) = groups(trainer)
    assert type(trainer.optimizer) is torch.optim.AdamW
    assert (found["lr"], found["amsgrad"]) == (1e-3, True), "nnU-Net's own AdamW"
    trainer = tiny.trainer(name, initial_lr=0.003, weight_decay=0.1)
    (found,) = groups(trainer)
    assert type(trainer.optimizer) is torch.optim.SGD
    assert (found["lr"], found["weight_decay"]) == (0.003, 0.1)


def test_a_class_may_set_them_as_attributes(tiny, monkeypatch):
    from workflow_scripts.trainers.curricula.arms import nnUNetTrainerProgressivePatch

    monkeypatch.setattr(nnUNetTrainerProgressivePatch, "initial_lr", 0.003)
    monkeypatch.setattr(nnUNetTrainerProgressivePatch, "weight_decay", 0.1)
    (found,) = groups(tiny.trainer(PROGRESSIVE))
    assert (found["lr"], found["weight_decay"]) == (0.003, 0.1)


def test_an_unknown_optimiser_is_named(tiny):
    with pytest.raises(ValueError, match="unknown optimizer_name 'lion'; known are sgd, adamw"):
        tiny.trainer(CONSTANT, optimizer_name="lion")


def test_adamw_resumes_bit_by_bit(tiny):
    options = {"optimizer_name": "adamw", "epochs": 3, "iterations": 2}
    whole = tiny.trainer(PROGRESSIVE, **options)
    whole.run_training()
    first = tiny.trainer(PROGRESSIVE, **options)
    first.num_epochs, stop = 3, first.on_epoch_end

    def leave():
        stop()
        if first.current_epoch == 2:
            raise InterruptedError

    first.on_epoch_end, first.save_every = leave, 1
    with pytest.raises(InterruptedError):
        first.run_training()
    rest = tiny.trainer(PROGRESSIVE, seed=99, **options)
    rest.load_checkpoint(str(Path(first.output_folder) / "checkpoint_latest.pth"))
    rest.run_training()
    for (name, one), other in zip(
        whole.network.state_dict().items(), rest.network.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other), name
