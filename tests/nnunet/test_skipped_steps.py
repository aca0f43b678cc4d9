"""Steps whose loss overflows, with torch's gradient scaler: skipped, counted, no reason to stop.

nnU-Net has a scaler on CUDA only; here the trainers get one for the CPU.
"""

import math

import pytest
import torch

from workflow_scripts.common.errors import UserError
from workflow_scripts.records.flop_counter import FlopTable
from workflow_scripts.records.ledger import EpochWork, Ledger
from workflow_scripts.records.recorder import STUCK_EPOCHS, Recorder
from workflow_scripts.records.run_tables import epochs_table
from workflow_scripts.trainers.curricula.resumable import TrainingStopped

PROGRESSIVE, STOCK = "nnUNetTrainerProgressivePatch", "nnUNetTrainer"
SCALE = 1024.0


class NoMeter:
    """An energy meter without a reading."""

    def read(self):
        from workflow_scripts.records.energy_reading import Reading

        return Reading(error="none here")


@pytest.fixture
def train(tiny, tmp_path):
    """Return a function that trains with a scaler; losses of the `bad` steps are infinite."""

    def trained(bad, name=PROGRESSIVE, epochs=3, scaler=True, ledger="ledger", load=None, **more):
        trainer = tiny.trainer(name, epochs=epochs, iterations=3, **more)
        if scaler:
            trainer.grad_scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
        if load:
            trainer.load_checkpoint(str(load))
        loss, steps = trainer.loss, [0]
        if name == STOCK:
            trainer.get_dataloaders = tiny.trainer(PROGRESSIVE, epochs=epochs).get_dataloaders

        def overflowing(output, target):
            found = loss(output, target)
            if not torch.is_grad_enabled():
                return found
            steps[0] += 1
            return found * (math.inf if steps[0] - 1 in bad else 1)

        trainer.loss = overflowing
        book = Ledger(tmp_path / f"{ledger}.jsonl")
        flops = FlopTable(trainer.network, trainer.num_input_channels)
        Recorder(book, NoMeter(), flops, 1, 0.0).attach(trainer)
        trainer.run_training()
        return trainer, book.read()

    return trained


@pytest.mark.parametrize("name", [PROGRESSIVE, STOCK])
def test_a_skipped_step_is_counted_and_the_training_continues(train, name):
    trainer, entries = train({1, 7}, name)
    table = epochs_table(entries)
    assert table["skipped_steps"].tolist() == [1, 0, 1]
    assert table["loss_scale"].tolist() == [SCALE / 2, SCALE / 2, SCALE / 4]
    assert table["train_loss"].isna().tolist() == [True, False, True]
    assert all(weight.isfinite().all() for weight in trainer.network.parameters())


def test_a_resumed_training_passes_the_step_that_overflowed(train, tiny):
    whole, _ = train({4}, ledger="whole")
    scale, ending = whole.grad_scaler.get_scale(), whole.network.state_dict()

    with pytest.MonkeyPatch.context() as patch:
        from workflow_scripts.trainers.curricula import resumable

        step = resumable.ResumableTrainer.train_step

        def stop_early(self, batch):
            self.stop_requested = self.current_epoch == 1 and self.iterations_done == 1
            return step(self, batch)

        patch.setattr(resumable.ResumableTrainer, "train_step", stop_early)
        with pytest.raises(TrainingStopped):
            train({4}, ledger="resumed")
    latest = next(tiny.results.rglob("checkpoint_latest.pth"))
    resumed, entries = train((), ledger="resumed", load=latest)
    assert resumed.grad_scaler.get_scale() == scale == SCALE / 2
    assert [e.steps.skipped_steps for e in entries if isinstance(e, EpochWork)] == [0, 1, 0, 0]
    for key, value in resumed.network.state_dict().items():
        assert torch.equal(value, ending[key]), key


def test_a_training_that_skips_every_step_is_stopped(train):
    with pytest.raises(UserError, match=rf"last {STUCK_EPOCHS} epochs.*scale is 0\.25"):
        train(range(3, 100), epochs=9)


def test_short_epochs_do_not_stop_a_training_whose_first_scale_is_too_high(train):
    trainer, entries = train(range(9), epochs=4)
    done = [entry for entry in entries if isinstance(entry, EpochWork)]
    assert [entry.steps.skipped_steps for entry in done] == [3, 3, 3, 0]
    assert trainer.grad_scaler.get_scale() == 2


def test_weights_that_are_not_finite_stop_it_and_replace_no_checkpoint(train, tiny):
    """Without a scaler, as on a CPU, the first infinite loss reaches the weights."""
    with pytest.raises(UserError, match="weights are not finite at the end of epoch 2"):
        train({7}, scaler=False, epochs=4, checkpoint_seconds=0)
    for path in tiny.results.rglob("*.pth"):
        state = torch.load(path, weights_only=False)["network_weights"]
        assert all(value.isfinite().all() for value in state.values()), path
    with pytest.raises(UserError, match="weights are not finite before its checkpoint"):
        train({4}, scaler=False, ledger="within", checkpoint_seconds=1e-9)
    for path in tiny.results.rglob("*.pth"):
        state = torch.load(path, weights_only=False)["network_weights"]
        assert all(value.isfinite().all() for value in state.values()), path
