"""The check that training makes the weights follow the scale factor, and networks that fail it."""

import copy

import pytest
import torch

from workflow_scripts.scale_space.baking import change_by_scale, rebuild, rebuild_untrained
from workflow_scripts.scale_space.scale_tables import COLLAPSED

SCALE_SPACE = "nnUNetTrainerScaleSpace"
SEED = 5
OPTIONS = {"rank": 2}


@pytest.fixture
def trained(tiny):
    """A short training, and its checkpoint as `train_fold` would have written it."""
    trainer = tiny.trainer(SCALE_SPACE, epochs=1, iterations=6, seed=SEED, **OPTIONS)
    initial = copy.deepcopy(trainer.scale_space.state_dict())
    trainer.my_init_kwargs["identity"] = {"seed": SEED}
    trainer.run_training()
    path = f"{trainer.output_folder}/checkpoint_final.pth"
    checkpoint = torch.load(path, map_location="cpu", weights_only=False)
    return initial, checkpoint


def networks(checkpoint):
    return rebuild(checkpoint, OPTIONS), rebuild_untrained(checkpoint, OPTIONS)


def test_the_initial_weights_follow_from_the_seed(trained):
    initial, checkpoint = trained
    before = torch.random.get_rng_state()
    found = rebuild_untrained(checkpoint, OPTIONS).state_dict()
    assert found.keys() == initial.keys()
    assert all(torch.equal(found[name], initial[name]) for name in initial)
    assert torch.equal(torch.random.get_rng_state(), before)
    del checkpoint["init_args"]["identity"]
    assert rebuild_untrained(checkpoint, OPTIONS) is None


def test_a_trained_hypernetwork_passes(trained):
    assert change_by_scale(*networks(trained[1]), 0.25) > COLLAPSED


def test_an_untrained_network_fails_although_its_weights_differ_by_scale(trained):
    _, untrained = networks(trained[1])
    one, other = untrained.weights(0.25), untrained.weights(0.5)
    length = sum(float(other[name].square().sum()) for name in other) ** 0.5
    distance = sum(float((one[name] - other[name]).square().sum()) for name in other) ** 0.5
    assert distance / length > 1e-3, "this alone would pass"
    assert change_by_scale(untrained, untrained, 0.25) == 0


def test_a_network_of_which_w0_alone_was_trained_fails(trained):
    """The control: modulation and perceptron keep their initial weights."""
    network, untrained = networks(trained[1])
    kept = {name: value for name, value in untrained.state_dict().items() if "primary" not in name}
    assert any("modulation" in name for name in kept)
    network.load_state_dict({**network.state_dict(), **kept})
    assert 0 <= change_by_scale(network, untrained, 0.25) < 1e-4 < COLLAPSED
