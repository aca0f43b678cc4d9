"""What a training used: memory, and the time that its steps waited for batches."""

import time

import pytest
import torch

from workflow_scripts.records.flop_counter import FlopTable
from workflow_scripts.records.ledger import EpochWork, Ledger
from workflow_scripts.records.recorder import Recorder

ITERATIONS = 3


class NoMeter:
    """An energy meter without a reading."""

    def read(self):
        from workflow_scripts.records.energy_reading import Reading

        return Reading(error="none here")


class Slowed:
    """Batches that come late; everything else is the loader's."""

    def __init__(self, loader, seconds):
        self._loader, self._seconds = loader, seconds

    def __getattr__(self, name):
        return getattr(self._loader, name)

    def __next__(self):
        time.sleep(self._seconds)
        return next(self._loader)


@pytest.mark.parametrize("name", ["nnUNetTrainer", "nnUNetTrainerProgressivePatch"])
def test_a_slow_loader_shows_in_every_epoch(tiny, tmp_path, name):
    trainer = tiny.trainer(name, epochs=2, iterations=ITERATIONS)
    made = tiny.trainer("nnUNetTrainerProgressivePatch", epochs=2).get_dataloaders

    def slowly():
        training, validation = made()
        return Slowed(training, seconds=0.2), validation

    trainer.get_dataloaders = slowly
    ledger = Ledger(tmp_path / "ledger.jsonl")
    flops = FlopTable(trainer.network, trainer.num_input_channels)
    Recorder(ledger, NoMeter(), flops, 1, 0.0).attach(trainer)
    trainer.run_training()
    epochs = [entry.steps for entry in ledger.read() if isinstance(entry, EpochWork)]
    assert len(epochs) == 2
    for steps in epochs:
        assert 0.2 * ITERATIONS <= steps.wait_seconds <= steps.train_seconds
        assert steps.process_peak_mb > 100, "torch alone is larger"
        assert steps.device_peak_mb is None


def test_the_memory_of_a_gpu_is_what_torch_reserved(tiny, tmp_path, monkeypatch):
    trainer = tiny.trainer("nnUNetTrainerProgressivePatch")
    flops = FlopTable(trainer.network, trainer.num_input_channels)
    recorder = Recorder(Ledger(tmp_path / "ledger.jsonl"), NoMeter(), flops, 1, 0.0)
    recorder.attach(trainer)
    trainer.device = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 3 * 2**30)
    assert recorder._device_peak_mb() == 3072
