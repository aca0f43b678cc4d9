"""Training on low frequencies first: batches, targets, replay and resume under nnU-Net."""

import os
import random
from collections import Counter
from itertools import islice
from math import prod
from pathlib import Path

import numpy as np
import pytest
import torch

from workflow_scripts.trainers.curricula.batches.low_frequency_batches import LowFrequencyBatches
from workflow_scripts.trainers.curricula.batches.lowpass import reduce_image, reduce_labels

CONSTANT = "nnUNetTrainerConstantPatch"
COMPUTE = "nnUNetTrainerLowFrequency"
ITERATIONS = "nnUNetTrainerLowFrequencyIterations"
BOTH = pytest.mark.parametrize("name", [COMPUTE, ITERATIONS])
PATCH = [16, 16, 8]  # units of 4: bands of 8x8x8 and 12x12x8
SIZES = [(8, 8, 8)] * 2 + [(12, 12, 8)] * 4 + [(16, 16, 8)] * 4
BATCH = 2


@pytest.fixture
def make(tiny):
    """Return a factory of trainers of the tiny task, with a plan that has three different bands."""

    def trainer(name=COMPUTE, **options):
        plans = tiny.plans
        plans["configurations"]["3d_fullres"] |= {"patch_size": PATCH, "batch_size": BATCH}
        return tiny.trainer(name, plans=plans, **{"epochs": 10, "iterations": 2} | options)

    return trainer


def run_to_end(trainer):
    """Train; return (epoch, shape, batch) of every training step and every validation step."""
    seen = {"train_step": [], "validation_step": []}

    def watched(step, found):
        def note(batch):
            found.append((trainer.current_epoch, tuple(batch["data"].shape), batch))
            return step(batch)

        return note

    for name, found in seen.items():
        setattr(trainer, name, watched(getattr(trainer, name), found))
    trainer.run_training()
    return seen["train_step"], seen["validation_step"]


def losses(trainer):
    names = ("train_losses", "val_losses", "lrs")
    return {name: list(map(float, trainer.logger.get_value(name, step=None))) for name in names}


def weights(trainer):
    return {name: value.clone() for name, value in trainer.network.state_dict().items()}


def assert_same_weights(one, other):
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def equal_batches(one, other):
    return (
        list(one["keys"]) == list(other["keys"])
        and torch.equal(one["data"], other["data"])
        and len(one["target"]) == len(other["target"])
        and all(map(torch.equal, one["target"], other["target"]))
    )


def batches(trainer):
    return trainer.get_dataloaders()[0]


# --- what the network sees


@BOTH
def test_it_trains_at_the_scheduled_bands_and_validates_at_the_planned_patch(make, name):
    trainer = make(name)
    train, validation = run_to_end(trainer)
    each = {(8, 8, 8): 8, (12, 12, 8): 4, (16, 16, 8): 2}  # 2 x 2048 / voxels, rounded half up
    expected = [
        (epoch, (BATCH, 1, *size))
        for epoch, size in enumerate(SIZES)
        for _ in range(each[size] if name == COMPUTE else 2)
    ]
    assert [(epoch, shape) for epoch, shape, _ in train] == expected
    assert [(epoch, shape) for epoch, shape, _ in validation] == [
        (epoch, (BATCH, 1, *PATCH)) for epoch in range(10)
    ]
    assert np.isfinite(losses(trainer)["train_losses"]).all()
    assert trainer.num_iterations_per_epoch == 2
    lrs = losses(trainer)["lrs"]
    assert lrs == pytest.approx([0.01 * (1 - epoch / 10) ** 0.9 for epoch in range(10)])


def test_targets_are_of_the_size_of_every_output(make):
    trainer = make()
    trainer.network.train()
    seen = set()
    for batch in islice(batches(trainer), trainer.schedule().iterations_before(10)):
        outputs = trainer.network(batch["data"])
        assert [o.shape[2:] for o in outputs] == [t.shape[2:] for t in batch["target"]]
        assert {t.dtype for t in batch["target"]} == {torch.int16}
        assert [t.shape[:2] for t in batch["target"]] == [(BATCH, 1)] * len(outputs)
        seen.add(tuple(batch["data"].shape[2:]))
    assert seen == set(SIZES)


def test_a_batch_is_the_reduced_one_of_the_loader_and_its_targets_are_nnunet_s(make):
    """Compare with the same batch at full size, reduced by hand, and supervision per sample."""
    from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import (
        DownsampleSegForDSTransform,
    )

    trainer = make(ITERATIONS)
    ours, loader = batches(trainer), batches(trainer)._loader
    down = DownsampleSegForDSTransform(trainer._get_deep_supervision_scales())
    for number in range(12):
        found, full = next(ours), next(loader)
        size = SIZES[number // 2]
        assert torch.is_tensor(full["target"]), "output targets are made from the reduced labels"
        assert full["data"].shape[2:] == tuple(PATCH)
        assert torch.equal(found["data"], reduce_image(full["data"], size))
        labels = reduce_labels(full["target"], size)
        for sample in range(BATCH):
            expected = down(segmentation=labels[sample])["segmentation"]
            assert all(
                torch.equal(one[sample], other)
                for one, other in zip(found["target"], expected, strict=True)
            )


def test_the_last_stage_is_that_of_the_constant_arm(make):
    """At full strength and size, batch k is the constant arm's batch k, bit for bit."""
    ours, constant = make(ITERATIONS), make(CONSTANT)
    ours.current_epoch = constant.current_epoch = 9
    one, other = batches(ours), batches(constant)
    for _ in range(2):
        assert equal_batches(next(one), next(other))
    full = make(CONSTANT)._loading_plans()[0][0].transforms
    assert repr(make()._loading_plans()[0][-1].transforms) == repr(full)


def test_options_of_the_lowpass_reach_the_batches(make):
    found = [
        next(batches(make(lowpass=method, half_voxel_shift=shift)))["data"]
        for method, shift in (("fft", True), ("fft", False), ("dct", True), ("resize", True))
    ]
    assert {tuple(data.shape[2:]) for data in found} == {SIZES[0]}
    assert all(
        not torch.allclose(one, other, atol=1e-3)
        for number, one in enumerate(found)
        for other in found[:number]
    )


def test_foreground_is_neither_won_nor_lost_with_the_bandwidth(make):
    """Unlike in patch curricula, the field of view stays, and so does the class balance."""
    loader = batches(make(ITERATIONS, iterations=30))._loader
    for size in set(SIZES[:6]):
        shares = [
            [float((labels > 0).float().mean()) for labels in (full, reduce_labels(full, size))]
            for full in (next(loader)["target"] for _ in range(30))
        ]
        whole, reduced = np.mean(shares, axis=0)
        assert whole > 0.05
        assert reduced == pytest.approx(whole, rel=0.05), size


@pytest.mark.parametrize("channels", [1, 3])
def test_regions_and_ignored_labels_take_the_same_way(make, channels):
    """Boolean targets of several channels stay boolean, and no new value appears."""
    trainer = make(ITERATIONS)
    ours = batches(trainer)
    generator = torch.Generator().manual_seed(1)
    target = torch.rand(BATCH, channels, *PATCH, generator=generator) > 0.5
    ours._loader = iter(
        [{"data": torch.zeros(BATCH, 1, *PATCH), "target": target, "keys": ["a", "b"]}]
    )
    found = next(ours)["target"]
    assert [one.shape[2:] for one in found] == [(8, 8, 8), (4, 4, 4)]
    assert all(one.dtype == torch.bool and one.shape[:2] == (BATCH, channels) for one in found)
    labels = reduce_labels(target, (8, 8, 8))
    assert torch.equal(found[0], labels)
    assert torch.equal(found[1], reduce_labels(labels, (4, 4, 4)))


def test_without_deep_supervision_there_is_one_target(make):
    trainer = make(ITERATIONS, enable_deep_supervision=False)
    target = next(batches(trainer))["target"]
    assert target.shape == (BATCH, 1, 8, 8, 8)


# --- replay


def numbered(trainer, monkeypatch):
    """Let the loader yield cheap batches that contain nothing but their number."""
    from workflow_scripts.trainers.curricula.batches.loading import ScheduledDataLoader

    def generate(loader):
        number = loader._first_batch + loader._made
        loader._made += 1
        size = loader._schedule.stages[loader._schedule.stage_of_batch(number)].loaded_size
        return {
            "data": torch.full((BATCH, 1, *size), float(number)),
            "target": torch.zeros((BATCH, 1, *size), dtype=torch.int16),
            "keys": [str(number)] * BATCH,
        }

    monkeypatch.setattr(ScheduledDataLoader, "generate_train_batch", generate)
    return batches(trainer)


def numbers_of(loader, count):
    return [int(next(loader)["keys"][0]) for _ in range(count)]


def test_every_fourth_and_every_second_batch_is_new(make, monkeypatch):
    trainer = make(iterations=20)
    schedule = trainer.schedule()
    total = schedule.iterations_before(10)
    drawn = numbers_of(numbered(trainer, monkeypatch), total)
    first_seen = [n for n, number in enumerate(drawn) if number not in drawn[:n]]
    assert first_seen == [n for n in range(total) if schedule.loads(n)]
    assert sorted(set(drawn)) == list(range(schedule.batches_before(total)))
    # Only batches of the same stage are repeated.
    assert all(
        schedule.stage_of_batch(number) == schedule.stage_of_iteration(iteration)
        for iteration, number in enumerate(drawn)
    )
    assert drawn[: schedule.iterations_before(1)][::4] == list(range(20))


def test_draws_are_uniform_over_the_last_batches(make, monkeypatch):
    trainer = make(iterations=1000, replay_batches=8)
    drawn = numbers_of(numbered(trainer, monkeypatch), 4000)
    ages = Counter()
    for iteration, number in enumerate(drawn):
        if iteration % 4 and iteration >= 32:
            ages[iteration // 4 - number] += 1
    assert set(ages) == set(range(8)), "0 is the batch loaded last"
    expected = sum(ages.values()) / 8
    assert sum((count - expected) ** 2 / expected for count in ages.values()) < 18.5  # 99 %, 7


def test_no_replay_loads_every_batch_anew(make, monkeypatch):
    trainer = make(replay_batches=0)
    total = trainer.schedule().iterations_before(10)
    assert numbers_of(numbered(trainer, monkeypatch), total) == list(range(total))


def test_a_repeated_batch_is_the_loaded_one_and_survives_a_training_step(make):
    trainer = make()
    trainer.on_train_start()
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    first = next(trainer.dataloader_train)
    copy = {
        "data": first["data"].clone(),
        "target": [target.clone() for target in first["target"]],
        "keys": list(first["keys"]),
    }
    trainer.train_step(first)
    assert equal_batches(next(trainer.dataloader_train), copy), (
        "only one batch is kept, so it must be drawn"
    )


SAMPLES = 4


def numbered_samples(make, monkeypatch, **options):
    """Return a trainer with mixed replay whose loader numbers every sample."""
    from workflow_scripts.trainers.curricula.batches.loading import ScheduledDataLoader

    def generate(loader):
        number = loader._first_batch + loader._made
        loader._made += 1
        size = loader._schedule.stages[loader._schedule.stage_of_batch(number)].loaded_size
        samples = range(SAMPLES * number, SAMPLES * (number + 1))
        data = torch.tensor(samples, dtype=torch.float32)[:, None, None, None, None]
        labels = torch.tensor(samples, dtype=torch.int16)[:, None, None, None, None]
        return {
            "data": data.expand(SAMPLES, 1, *size),
            "target": labels.expand(SAMPLES, 1, *size),
            "keys": [str(n) for n in samples],
        }

    monkeypatch.setattr(ScheduledDataLoader, "generate_train_batch", generate)
    return make(replay="mixed", **options)


def samples_of(loader, count):
    """Return the sample numbers of `count` batches; image, targets and key must agree."""
    found = []
    for _ in range(count):
        batch = next(loader)
        numbers = [int(key) for key in batch["keys"]]
        targets = batch["target"]  # the fake loader does not split those at the planned size
        for tensor in (batch["data"], *([targets] if torch.is_tensor(targets) else targets)):
            assert tensor.shape[0] == len(numbers)
            assert [round(float(sample.float().mean())) for sample in tensor] == numbers
        found.append(numbers)
    return found


def test_every_mixed_batch_has_its_share_of_new_samples(make, monkeypatch):
    trainer = numbered_samples(make, monkeypatch, iterations=6)
    schedule = trainer.schedule()
    found = samples_of(batches(trainer), schedule.iterations_before(10))
    seen = set()
    for iteration, numbers in enumerate(found):
        replay = schedule.stages[schedule.stage_of_iteration(iteration)].replay
        share, turn = SAMPLES // replay, schedule.iteration_of_stage(iteration) % replay
        first = SAMPLES * (schedule.batches_before(iteration + 1) - 1) + share * turn
        assert numbers[:share] == list(range(first, first + share)), "a quarter, a half or all"
        assert len(numbers) == SAMPLES
        assert seen.isdisjoint(numbers[:share])
        seen |= set(numbers[:share])
        assert seen.issuperset(numbers)


def test_a_batch_smaller_than_the_replay_has_a_new_sample_every_other_time():
    """With two samples and four iterations per batch, the first and third bring new ones."""
    loaded = [{"data": torch.zeros(2, 1, 4, 4, 4), "target": torch.zeros(2, 1), "keys": ["a", "b"]}]
    mixed = LowFrequencyBatches.__new__(LowFrequencyBatches)
    mixed._kept, mixed._replay_batches = loaded, 64
    found = [mixed._mix(4, turn, random.Random(turn))["keys"] for turn in range(4)]
    assert found[0] == ["a", "a"], "nothing else is there yet"
    assert found[1] == ["a", "a"]
    assert found[2][0] == "b"
    assert set(found[3]) <= {"a", "b"}


def test_mixed_draws_are_uniform_over_the_samples_that_are_kept(make, monkeypatch):
    trainer = numbered_samples(make, monkeypatch, iterations=1000, replay_batches=4)
    ages = Counter()
    newest = 0
    for iteration, numbers in enumerate(samples_of(batches(trainer), 3000)):
        newest = max(newest, *numbers)
        if iteration >= 32:
            ages.update(newest - number for number in numbers[1:])
    assert set(ages) == set(range(4 * SAMPLES)), "0 is the new one, and none is older than kept"
    expected = sum(ages.values()) / len(ages)
    assert sum((count - expected) ** 2 / expected for count in ages.values()) < 30.6  # 99 %, 15


@pytest.mark.parametrize("kept", [1, 3, 64])
def test_mixed_batches_after_a_resume_are_those_of_an_uninterrupted_training(
    make, monkeypatch, kept
):
    trainer = numbered_samples(make, monkeypatch, iterations=6, replay_batches=kept)
    schedule = trainer.schedule()
    total = schedule.iterations_before(10)
    whole = samples_of(batches(trainer), total)
    for epoch in range(0, 10, 2):
        each = schedule.iterations_of_epoch(epoch)
        for within in {0, 1, 2, 3, each // 2, each - 1}:
            trainer.current_epoch = epoch
            trainer._resumed_outputs = ({},) * within
            start = schedule.iterations_before(epoch) + within
            assert samples_of(batches(trainer), total - start) == whole[start:], (epoch, within)


def test_a_training_with_mixed_replay_and_large_batches_runs(make):
    trainer = make(replay="mixed", large_batches_early=True, iterations=4)
    train, validation = run_to_end(trainer)
    sizes = {tuple(shape[2:]): shape[0] for _, shape, _ in train}
    assert sizes == {(8, 8, 8): 8, (12, 12, 8): 3, (16, 16, 8): 2}
    assert len(train) == 2 * 4 + 4 * 5 + 4 * 4, "4 x 4096 voxels: 3 x 1152 fit 5 times, 4.7"
    assert {shape[0] for _, shape, _ in validation} == {BATCH}
    assert np.isfinite(losses(trainer)["train_losses"]).all()


@pytest.mark.parametrize("kept", [3, 64])
def test_batches_after_a_resume_are_those_of_an_uninterrupted_training(make, monkeypatch, kept):
    """Wherever it resumes, within stages and epochs, it draws from the same batches."""
    trainer = make(iterations=6, replay_batches=kept)
    schedule = trainer.schedule()
    total = schedule.iterations_before(10)
    whole = numbers_of(numbered(trainer, monkeypatch), total)
    for epoch in range(10):
        each = schedule.iterations_of_epoch(epoch)
        for within in {0, 1, each // 2, each - 1}:
            trainer.current_epoch = epoch
            trainer._resumed_outputs = ({},) * within
            start = schedule.iterations_before(epoch) + within
            rest = numbers_of(batches(trainer), total - start)
            assert rest == whole[start:], (epoch, within)


@BOTH
def test_batches_do_not_depend_on_the_number_of_workers(make, monkeypatch, name):
    taken = {}
    for workers in (0, 2):
        monkeypatch.setenv("nnUNet_n_proc_DA", str(workers))
        monkeypatch.setattr(os, "cpu_count", lambda: 8)
        trainer = make(name)
        loaders = trainer.get_dataloaders()
        assert isinstance(loaders[0], LowFrequencyBatches)
        taken[workers] = list(islice(loaders[0], trainer.schedule().iterations_before(10)))
        for loader in loaders:
            if hasattr(loader, "_finish"):
                loader._finish()
    assert all(map(equal_batches, taken[0], taken[2]))


# --- interruption


@pytest.mark.parametrize(
    ("name", "stops"),
    [
        (COMPUTE, [(0, 5)]),
        (COMPUTE, [(1, 0), (3, 3), (6, 1)]),
        (ITERATIONS, [(0, 0), (4, 1)]),
    ],
)
def test_a_stop_within_an_epoch_loses_nothing(make, name, stops):
    """`stops` are (epoch, step) after which a signal is noticed; epochs differ in length."""
    from workflow_scripts.trainers.curricula.resumable import TrainingStopped

    whole = make(name)
    expected, _ = run_to_end(whole)
    path, trained = None, []
    for number, stop_at in enumerate([*stops, None]):
        trainer = make(name, seed=1 + number)
        if path:
            trainer.load_checkpoint(str(path))
        now = {"epoch": trainer.current_epoch, "step": trainer.iterations_resumed}
        step = trainer.train_step

        def watch(batch, trainer=trainer, step=step, now=now, at=stop_at):
            if now["epoch"] != trainer.current_epoch:
                now.update(epoch=trainer.current_epoch, step=0)
            trained.append((trainer.current_epoch, tuple(batch["data"].shape)))
            trainer.stop_requested = (now["epoch"], now["step"]) == at
            now["step"] += 1
            return step(batch)

        trainer.train_step = watch
        if stop_at is None:
            trainer.run_training()
        else:
            with pytest.raises(TrainingStopped):
                trainer.run_training()
            assert trainer.num_iterations_per_epoch == 2
            path = Path(trainer.output_folder) / "checkpoint_latest.pth"
    assert trained == [(epoch, shape) for epoch, shape, _ in expected]
    for name, values in losses(whole).items():
        # The last bit of a sum may depend on the memory address of a batch.
        assert losses(trainer)[name] == pytest.approx(values, rel=1e-6), name
    assert_same_weights(weights(trainer), weights(whole))


def test_workers_end_with_the_training(make, monkeypatch):
    import multiprocessing

    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    before = set(multiprocessing.active_children())
    trainer = make(epochs=2, iterations=1)
    trainer.run_training()
    assert set(multiprocessing.active_children()) - before == set()

    broken = make(epochs=2, iterations=1)
    broken.train_step = lambda batch: 1 / 0
    with pytest.raises(ZeroDivisionError):
        broken.run_training()
    assert set(multiprocessing.active_children()) - before == set()


# --- what is recorded


def test_the_ledger_tells_what_the_network_saw(make, tmp_path):
    from workflow_scripts.records.flop_counter import FlopTable
    from workflow_scripts.records.ledger import Ledger
    from workflow_scripts.records.recorder import Recorder
    from workflow_scripts.records.run_tables import epochs_table, stages_table

    class Meter:
        def read(self):
            from workflow_scripts.records.energy_reading import Reading

            return Reading()

    trainer = make()
    flops = FlopTable(trainer.network, 1)
    ledger = Ledger(tmp_path / "ledger.jsonl")
    Recorder(ledger, Meter(), flops, 1, 0.0).attach(trainer)
    trainer.run_training()
    epochs = epochs_table(ledger.read())
    labels = ["x".join(map(str, size)) for size in SIZES]
    assert epochs["patch_size"].tolist() == labels
    assert epochs["field_of_view"].tolist() == [*["16x16x8"] * 10]
    assert epochs["augmentation"].tolist() == pytest.approx([n / 9 for n in range(10)])
    assert epochs["stage"].tolist() == list(range(10))
    assert epochs["iterations"].tolist() == [8, 8, 4, 4, 4, 4, 2, 2, 2, 2]
    assert epochs["voxels_per_iteration"].tolist() == [BATCH * prod(size) for size in SIZES]
    expected = [
        n * flops.training_step(BATCH, size) / 1e9
        for n, size in zip(epochs["iterations"], SIZES, strict=True)
    ]
    assert epochs["train_gflop"].tolist() == pytest.approx(expected)
    stages = stages_table(epochs)
    assert stages["iterations"].tolist() == epochs["iterations"].tolist()
    assert stages["augmentation"].tolist() == pytest.approx([n / 9 for n in range(10)])
