"""Observers of a trainer's methods."""

import pytest

from workflow_scripts.common.observers import observe


class Trainer:
    def __init__(self):
        self.seen = []

    def step(self, batch, scale=1):
        """Train one step."""
        self.seen.append("step")
        if batch is None:
            raise ValueError("no batch")
        return scale * batch


@pytest.fixture
def trainer():
    """A trainer with two observers."""
    trainer = Trainer()
    for name in ("inner", "outer"):
        observe(
            trainer,
            "step",
            before=lambda *args, name=name, **more: trainer.seen.append((name, args, more)),
            after=lambda result, name=name: trainer.seen.append((name, result)),
        )
    return trainer


def test_observers_see_arguments_and_result_and_change_nothing(trainer):
    assert trainer.step(3, scale=2) == 6
    assert trainer.seen == [
        ("outer", (3,), {"scale": 2}),
        ("inner", (3,), {"scale": 2}),
        "step",
        ("inner", 6),
        ("outer", 6),
    ]
    assert trainer.step.__name__ == "step"
    assert Trainer().step(3) == 3, "other trainers are not observed"


def test_a_method_that_fails_has_no_result(trainer):
    with pytest.raises(ValueError, match="no batch"):
        trainer.step(None)
    assert trainer.seen[-1] == "step"


def test_an_observer_can_stop_a_call(trainer):
    def stop(batch):
        raise KeyboardInterrupt

    observe(trainer, "step", before=stop)
    with pytest.raises(KeyboardInterrupt):
        trainer.step(3)
    assert trainer.seen == []
