"""Everything that is computed on the training's device between loader and network.

The device is a made-up one, on which an operation with a tensor of the CPU fails.
"""

import contextlib
import json

import numpy as np
import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from helpers.second_device import OnGpu, on_gpu, second_device
from workflow_scripts.forecast.gpu_memory import GB, estimate_memory
from workflow_scripts.forecast.plans import Plan
from workflow_scripts.forecast.workload import StudyDesign
from workflow_scripts.scale_space.inference import warm_up
from workflow_scripts.study.settings import TrainingSettings
from workflow_scripts.trainers.curricula.batches.batch import Draws
from workflow_scripts.trainers.curricula.batches.batched_augmentation import BatchedAugmentation
from workflow_scripts.trainers.curricula.batches.loading import Crops
from workflow_scripts.trainers.curricula.batches.low_frequency_batches import LowFrequencyBatches
from workflow_scripts.trainers.curricula.batches.lowpass import reduce_image, reduce_labels
from workflow_scripts.trainers.curricula.networks.hypernetwork import ScaleSpaceNetwork
from workflow_scripts.trainers.curricula.scale_space import resize_target

SAMPLES, PATCH, WIDE = 8, (8, 12, 10), (14, 18, 16)
SCALES = [[1.0] * 3, [0.5] * 3, [1.0, 0.5, 0.25]]
KINDS = {
    "labels": {},
    "regions": {"regions": [(1, 2), 2]},
    "regions and an ignored label": {"regions": [(1, 2), (2,)], "ignore_label": 3},
    "mask": {"use_mask_for_norm": [True, False]},
    "dummy 2D": {"do_dummy_2d_data_aug": True},
    "no deep supervision": {"deep_supervision_scales": None},
}


def crops_of(augmentation, seed, wide):
    """Return cropped samples with labels -1 to 3."""
    numbers = np.random.default_rng(seed)
    draws = Draws.of((seed,))
    placement = augmentation.place(SAMPLES, draws)

    def some(count, size):
        images = torch.from_numpy(numbers.normal(size=(count, 2, *size)).astype(np.float32))
        labels = torch.from_numpy(numbers.integers(-1, 4, (count, 1, *size)).astype(np.int16))
        return images, labels

    moved = some(len(placement.moved), wide)
    noise = draws.noise.initial_seed()
    return Crops(*some(SAMPLES, PATCH), *moved, placement, draws.numbers, noise)


@pytest.mark.parametrize("kind", KINDS)
def test_augmentation_on_the_device(kind, monkeypatch):
    """Every transform that nnU-Net uses, with the values of the CPU."""
    options = {
        "rotation_for_DA": (-0.5, 0.5),
        "deep_supervision_scales": SCALES,
        "mirror_axes": (0, 1, 2),
        "do_dummy_2d_data_aug": False,
        **KINDS[kind],
    }
    augmentation = BatchedAugmentation(nnUNetTrainer.get_training_transforms(PATCH, **options))
    monkeypatch.setattr(Draws, "happens", lambda self, p, *shape: np.random.rand(*shape) < 0.9)
    wide = (PATCH[0], *WIDE[1:]) if options["do_dummy_2d_data_aug"] else WIDE
    made = []
    for device in ("cpu", "cuda"):
        np.random.seed(3)
        crops = crops_of(augmentation, 5, wide)
        np.random.seed(4)
        if device == "cpu":
            made.append(crops.augment(augmentation))
            continue
        with second_device() as gpu:
            images, target = crops.augment(augmentation, gpu)
        outputs = target if isinstance(target, list) else [target]
        assert all(isinstance(tensor, OnGpu) for tensor in (images, *outputs))
        inner = [output.inner for output in outputs]
        made.append((images.inner, inner if isinstance(target, list) else inner[0]))
    (cpu_images, cpu_target), (images, target) = made
    torch.testing.assert_close(images, cpu_images, rtol=0, atol=0)
    for one, other in zip(target, cpu_target, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("mixed", [False, True])
def test_low_frequency_batches(tiny, mixed):
    trainer = tiny.trainer(
        "nnUNetTrainerLowFrequency", epochs=3, replay="mixed" if mixed else "whole"
    )
    schedule = trainer.schedule()

    class Loader:
        def __next__(self):
            stage = schedule.stages[0]
            size = (stage.batch_size, 1, *stage.loaded_size)
            target = torch.randint(0, 3, size, dtype=torch.int16)
            return {"data": torch.randn(size), "target": target, "keys": ["case"] * size[0]}

    with second_device() as gpu:
        scales = trainer._get_deep_supervision_scales()
        batches = LowFrequencyBatches(Loader(), schedule, 0, 2, mixed, 1, gpu, scales)
        for _ in range(4):
            batch = next(batches)
            assert isinstance(batch["data"], OnGpu)
            assert all(isinstance(target, OnGpu) for target in batch["target"])
            assert batch["data"].dtype == torch.float32
    tensors = [t for kept in batches._kept for t in (kept["data"], *kept["target"])]
    plan = Plan("tiny", tiny.plans, json.loads((tiny.folder / "dataset.json").read_text()))
    training = TrainingSettings(3, trainer.num_iterations_per_epoch, 1, seed=1)
    design = StudyDesign(tiny.configuration, training, [0], mirroring=True)
    parameters = {"replay_batches": 2, "replay": trainer.replay}
    memory = estimate_memory(plan, type(trainer), parameters, design)
    kept = sum(tensor.inner.nbytes for tensor in tensors)
    assert 0 < kept <= round(memory.replay * GB), "the estimate is for the largest repeated stage"


def test_reductions_are_those_of_the_cpu():
    images, labels = torch.randn(2, 1, 8, 8, 8), torch.randint(0, 2, (2, 2, 8, 8, 8)).bool()
    with second_device():
        image = reduce_image(on_gpu(images), (4, 6, 8)).inner
        label = reduce_labels(on_gpu(labels), (4, 6, 8)).inner
        target = resize_target(on_gpu(labels), (4, 4, 4)).inner
    torch.testing.assert_close(image, reduce_image(images, (4, 6, 8)))
    assert torch.equal(label, reduce_labels(labels, (4, 6, 8)))
    assert torch.equal(target, resize_target(labels, (4, 4, 4)))


@pytest.mark.parametrize(
    "settings", [{}, {"film": True, "rank": 0}, {"scale_encoding": "circular"}]
)
def test_weights_of_a_scale_factor(tiny, settings):
    """The hypernetwork's small tensors follow its parameters."""
    trainer = tiny.trainer("nnUNetTrainerScaleSpace", **settings)
    network: ScaleSpaceNetwork = trainer.scale_space
    expected = network.weights(0.3)
    state = {name: value.clone() for name, value in network.named_parameters()}
    with second_device(), torch.no_grad():
        moved = {name: on_gpu(value.detach()) for name, value in state.items()}
        found = torch.func.functional_call(_Weights(network), _prefixed(moved), (0.3,))
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value.inner, expected[name].detach())


class _Weights(torch.nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, scale_factor):
        return self.network.weights(scale_factor)


def _prefixed(state):
    return {f"network.{name}": value for name, value in state.items()}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_kernels_are_chosen_in_the_precision_of_the_prediction(monkeypatch, device):
    """Else the first case's seconds would include the choice for mixed precision."""
    asked = []

    def autocast(kind, enabled):
        asked.append((kind, enabled))
        return contextlib.nullcontext()

    monkeypatch.setattr(torch, "autocast", autocast)
    with second_device():
        patch = torch.zeros(1, 1, 4, 4, 4, device=device)
        warm_up(lambda x: asked.append(x.device.type), patch)
    assert asked == [(device, device == "cuda"), device]


def test_the_device_finds_a_tensor_that_was_left_behind():
    with second_device() as gpu:
        there = torch.zeros(3, device=gpu)
        with pytest.raises(RuntimeError, match="same device"):
            torch.isin(there, torch.ones(2))
        with pytest.raises(RuntimeError, match="same device"):
            there + torch.ones(3)
        assert (there + 1).inner.tolist() == [1, 1, 1]
        assert there.to("cpu").tolist() == [0, 0, 0]
        assert not isinstance(there.cpu(), OnGpu)


def test_the_transforms_are_all_of_nnunet_s():
    """One that this file does not cover would be found here."""
    options = {**KINDS["mask"], **KINDS["regions and an ignored label"]}
    pipeline = nnUNetTrainer.get_training_transforms(
        PATCH, (-0.5, 0.5), SCALES, (0, 1, 2), False, **options
    )
    covered = BatchedAugmentation(pipeline)
    assert len(covered._others) == len(pipeline.transforms) - 1
