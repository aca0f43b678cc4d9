"""The time of torch.compile, as dynamo reports it."""

import time
from types import SimpleNamespace

import pytest
import torch

from workflow_scripts.common import hardware
from workflow_scripts.records.compilation import compilation_clock
from workflow_scripts.records.updates import UpdateCounter


@pytest.fixture
def compiled():
    """A compiled layer with a static graph per size, whose backend takes a while."""

    def backend(graph, inputs):
        time.sleep(0.05)
        return graph.forward

    torch._dynamo.config.automatic_dynamic_shapes, former = (
        False,
        torch._dynamo.config.automatic_dynamic_shapes,
    )
    yield torch.compile(torch.nn.Linear(4, 2), backend=backend)
    torch._dynamo.config.automatic_dynamic_shapes = former


def test_every_size_is_compiled_once(compiled):
    clock = compilation_clock()
    assert compilation_clock() is clock, "one for the process"
    for batch, new in ((2, 1), (2, 0), (3, 1), (2, 0)):
        count, seconds = clock.count, clock.seconds
        compiled(torch.ones(batch, 4))
        assert clock.count - count == new
        assert clock.seconds - seconds >= 0.05 * new
        assert new or clock.seconds == seconds


@pytest.mark.parametrize("fused", [False, True])
def test_only_updates_of_the_weights_count(fused):
    weight = torch.nn.Parameter(torch.ones(3))
    optimiser = torch.optim.SGD([weight], lr=0.1, fused=fused)
    trainer = SimpleNamespace(optimizer=optimiser)
    scaler, updates = torch.amp.GradScaler("cpu", init_scale=8), UpdateCounter(trainer)
    for factor in (1.0, float("inf"), 1.0):
        updates.follow()
        optimiser.zero_grad()
        scaler.scale((weight * factor).sum()).backward()
        scaler.unscale_(optimiser)
        scaler.step(optimiser)
        scaler.update()
    assert updates.count == 2
    assert scaler.get_scale() == 4


def test_updates_count_after_a_trainer_has_replaced_its_optimiser():
    """As `nnUNetTrainer_warmup` does, at its start and after the warm-up."""
    weight = torch.nn.Parameter(torch.ones(3))
    trainer = SimpleNamespace(optimizer=torch.optim.SGD([weight], lr=0.1))
    updates = UpdateCounter(trainer)
    for number in range(4):
        if number % 2:
            trainer.optimizer = torch.optim.AdamW([weight], lr=0.1)
        updates.follow()
        trainer.optimizer.step()
    assert updates.count == 4


def test_a_deterministic_training_on_cuda_is_compiled_without_measurements(monkeypatch):
    """Else a resumed training could choose another kernel."""
    import torch._inductor.config as inductor

    monkeypatch.setattr(inductor, "deterministic", False)
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda *_, **__: None)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    hardware.make_deterministic("cuda")
    assert inductor.deterministic
    assert not torch.backends.cudnn.benchmark
