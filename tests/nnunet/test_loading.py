"""Loading, stepping, sharing among GPUs and compiling for the journal's curricula."""

import os
from collections import Counter
from dataclasses import replace
from itertools import groupby, islice, product
from math import ceil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch._dynamo
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch._dynamo.exc import FailOnRecompileLimitHit
from torch.nn import functional

from workflow_scripts.trainers.curricula.batches.loading import (
    ScheduledDataLoader,
    force_last,
    samples_of_rank,
)
from workflow_scripts.trainers.curricula.networks.instance_norm import allow_one_voxel
from workflow_scripts.trainers.curricula.patch_curriculum import compile_every_size

PROGRESSIVE = "nnUNetTrainerProgressivePatch"
EFFICIENCY = "nnUNetTrainerProgressiveEfficiencyPatch"
PERFORMANCE = "nnUNetTrainerProgressivePerformancePatch"
LISTED = "nnUNetTrainerListedPatch"
SIZES = [(4, 4, 4), (8, 4, 4), (8, 8, 4), (8, 8, 8), (12, 8, 8), (16, 8, 8)]
BATCHES = [64, 32, 16, 8, 5, 4]
PLANNED = (4, 1, 16, 8, 8)
ORIGINAL_CHECK = functional._verify_spatial_size


class Shelf:
    """The task's cases under many names, so that no two draws are the same; records its loads."""

    def __init__(self, dataset):
        self.identifiers = [f"{case}@{n}" for case in dataset.identifiers for n in range(2000)]
        self._dataset = dataset
        self.opened = []

    def load_case(self, identifier):
        self.opened.append(identifier)
        return self._dataset.load_case(identifier.partition("@")[0])


def untransformed(trainer, dataset=None):
    """Return the training loader without transforms, and the list of its forced samples."""
    plans = [
        replace(plan, transforms=None, initial_patch_size=plan.stage.patch_size, batched=None)
        for plan in trainer._loading_plans()[0]
    ]
    loader = ScheduledDataLoader(
        dataset or trainer.get_tr_and_val_datasets()[0],
        trainer.label_manager,
        plans,
        trainer.schedule(),
        seed=(4,),
        first_batch=0,
        workers=0,
        oversample_foreground_percent=trainer._oversampling(validating=False),
        probabilistic_oversampling=trainer.probabilistic_oversampling,
    )
    return loader, note_forced(loader)


def note_forced(loader):
    """Return a list that grows by `force_fg` of every sample that nnU-Net's loader crops."""
    crop, forced = loader.get_bbox, []

    def note(shape, force_fg, locations):
        forced.append(force_fg)
        return crop(shape, force_fg, locations)

    loader.get_bbox = note
    return forced


def with_batch(plans, batch_size):
    plans["configurations"]["3d_fullres"]["batch_size"] = batch_size
    return plans


def listed(*stages):
    return [{"patch_size": list(p), "batch_size": b, "epochs": n} for p, b, n in stages]


def watch_shapes(trainer):
    seen = {"train_step": [], "validation_step": []}

    def watched(step, shapes):
        def note(batch):
            shapes.append(tuple(batch["data"].shape))
            return step(batch)

        return note

    for name, shapes in seen.items():
        setattr(trainer, name, watched(getattr(trainer, name), shapes))
    return seen["train_step"], seen["validation_step"]


def train_losses(trainer):
    return np.array(trainer.logger.get_value("train_losses", step=None), dtype=float)


def equal_batches(one, other):
    return (
        list(one["keys"]) == list(other["keys"])
        and torch.equal(one["data"], other["data"])
        and all(map(torch.equal, one["target"], other["target"]))
    )


# --- few volumes, many crops


def test_a_batch_reads_no_more_volumes_than_the_planned_one(tiny):
    trainer = tiny.trainer(PERFORMANCE, epochs=6, iterations=2)
    shelf = Shelf(trainer.get_tr_and_val_datasets()[0])
    loader, forced = untransformed(trainer, shelf)
    for size, batch_size in zip(SIZES, BATCHES, strict=True):
        for _ in range(2):
            shelf.opened.clear()
            forced.clear()
            batch = next(loader)
            assert batch["data"].shape == (batch_size, 1, *size)
            assert len(batch["target"]) == len(batch["keys"]) == batch_size
            crops = ceil(batch_size / 4)
            runs = [(key, len(list(group))) for key, group in groupby(batch["keys"])]
            assert [key for key, _ in runs] == shelf.opened, "each volume is read once"
            assert len(runs) == ceil(batch_size / crops) <= 4
            assert {length for _, length in runs[:-1]} == {crops}
            flips = [number % 2 == 1 for number, (_, n) in enumerate(runs) for _ in range(n)]
            assert forced == flips, "random first, then every second volume forced"


def test_crops_of_a_volume_differ(tiny):
    """The 64 crops of 4 volumes are at different places, not 4 crops repeated 16 times."""
    loader, _ = untransformed(tiny.trainer(PERFORMANCE, epochs=6, iterations=1))
    crops = {crop.numpy().tobytes() for crop in next(loader)["data"]}
    assert len(crops) > 60


@pytest.mark.parametrize(("batch_size", "expected"), [(9, 4), (2, 1), (4, 2), (1, 0)])
def test_share_of_forced_samples_at_the_planned_batch(tiny, batch_size, expected):
    plans = with_batch(tiny.plans, batch_size)
    trainer = tiny.trainer(EFFICIENCY, plans=plans, epochs=6, iterations=1)
    loader, forced = untransformed(trainer)
    next(loader)
    assert forced == [number % 2 == 1 for number in range(batch_size)]
    assert sum(forced) == expected


def test_validation_keeps_nnunet_s_rule(tiny):
    """The last samples are forced, cases are drawn one by one, patch and batch are as planned."""
    loader = tiny.trainer(PERFORMANCE, epochs=6).get_dataloaders()[1].data_loader
    forced = note_forced(loader)
    for _ in range(3):
        forced.clear()
        assert next(loader)["data"].shape == PLANNED
        assert forced == [False, False, False, True]
    assert loader._plan.volumes is None


def test_forced_patches_hold_less_foreground_at_every_stage(tiny):
    """This class balance is the purpose of the small patches."""
    trainer = tiny.trainer(EFFICIENCY, epochs=6, iterations=40)
    loader, forced = untransformed(trainer)
    shares = []
    for _ in SIZES:
        forced.clear()
        batches = list(islice(loader, 40))
        held = np.array([float((seg > 0).float().mean()) for b in batches for seg in b["target"]])
        assert len(held) == len(forced) == 160
        assert (held[np.array(forced)] > 0).all()
        shares.append(held[np.array(forced)].mean())
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 1.3 * shares[-1]


def test_batches_do_not_depend_on_the_number_of_workers(tiny, monkeypatch):
    taken = {}
    for workers in (0, 1, 3):
        monkeypatch.setenv("nnUNet_n_proc_DA", str(workers))
        monkeypatch.setattr(os, "cpu_count", lambda: 8)  # nnU-Net starts no more workers than CPUs
        loaders = tiny.trainer(PERFORMANCE, epochs=6, iterations=1).get_dataloaders()
        taken[workers] = [list(islice(loader, 6)) for loader in loaders]
        for loader in loaders:
            if workers:
                loader._finish()
    shapes = [tuple(batch["data"].shape) for batch in taken[0][0]]
    assert shapes == [(b, 1, *size) for b, size in zip(BATCHES, SIZES, strict=True)]
    for workers in (1, 3):
        for one, other in zip(taken[0], taken[workers], strict=True):
            assert all(map(equal_batches, one, other)), workers


# --- shares of several GPUs, against nnU-Net's own code


def test_samples_are_dealt_out_as_nnunet_does(monkeypatch):
    for batch_size, ranks in product(range(1, 41), range(1, 9)):
        if batch_size < ranks:
            with pytest.raises(ValueError, match=f"batch of {batch_size} cannot be shared by"):
                samples_of_rank(batch_size, 0, ranks)
            continue
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda ranks=ranks: ranks)
        dealt = []
        for rank in range(ranks):
            monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
            stock = SimpleNamespace(
                is_ddp=True,
                configuration_manager=SimpleNamespace(batch_size=batch_size),
                oversample_foreground_percent=0.33,
            )
            nnUNetTrainer._set_batch_size_and_oversample(stock)
            samples = samples_of_rank(batch_size, rank, ranks)
            assert len(samples) == stock.batch_size, (batch_size, ranks, rank)
            dealt += samples
        assert dealt == list(range(batch_size))


def test_the_last_samples_are_forced_as_nnunet_does():
    for batch_size, share in product(range(1, 201), (0.0, 0.1, 0.33, 0.5, 0.66, 1.0)):
        stock = SimpleNamespace(batch_size=batch_size, oversample_foreground_percent=share)
        decide = nnUNetDataLoader._oversample_last_XX_percent
        expected = [decide(stock, number) for number in range(batch_size)]
        assert force_last(batch_size, share) == expected, (batch_size, share)


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("name", [PROGRESSIVE, PERFORMANCE])
def test_the_ranks_of_a_batch_make_up_that_of_one_process(tiny, monkeypatch, name, ranks):
    trainer = tiny.trainer(name, epochs=6)
    alone = [*trainer._loading_plans()[0], trainer._loading_plans()[1]]
    trainer.is_ddp = True
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: ranks)
    shares = []
    for rank in range(ranks):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        shares.append([*trainer._loading_plans()[0], trainer._loading_plans()[1]])
    for one, *parts in zip(alone, *shares, strict=True):
        assert sum(part.stage.batch_size for part in parts) == one.stage.batch_size
        assert sum((part.forced for part in parts), ()) == one.forced
        assert {part.stage.patch_size for part in parts} == {one.stage.patch_size}
        assert [part.volumes is None for part in parts] == [one.volumes is None] * ranks
        if one.volumes is not None:
            assert sum((part.volumes for part in parts), ()) == one.volumes


def test_a_stage_with_fewer_samples_than_gpus_is_named(tiny, monkeypatch):
    stages = listed(((8, 8, 8), 1, 1), ((16, 8, 8), 4, 1))
    trainer = tiny.trainer(LISTED, stage_list=stages)
    trainer.is_ddp = True
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    message = "^patch size 8x8x8: a batch of 1 cannot be shared by 2 processes$"
    with pytest.raises(ValueError, match=message):
        trainer.get_dataloaders()


def test_the_dice_over_a_batch_needs_equal_shares(tiny, monkeypatch):
    """nnU-Net gathers it from all processes as if each had the same number of samples."""
    plans = tiny.plans
    plans["configurations"]["3d_fullres"]["batch_dice"] = True
    trainer = tiny.trainer(PERFORMANCE, plans=plans, epochs=6)
    trainer.is_ddp = True
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    with pytest.raises(ValueError, match="12x8x8: a batch of 5 is not a multiple of 2 processes"):
        trainer.get_dataloaders()


def test_probabilistic_oversampling_draws_every_sample(tiny):
    for share in (0.0, 0.5, 1.0):
        trainer = tiny.trainer(
            PROGRESSIVE,
            epochs=5,
            iterations=8,
            probabilistic_oversampling=True,
            training_oversample_foreground_percent=share,
        )
        loader, forced = untransformed(trainer)
        list(islice(loader, 40))
        assert len(forced) == 160
        if share in (0.0, 1.0):
            assert set(forced) == {bool(share)}
        else:
            of_position = np.array(forced).reshape(40, 4).mean(axis=0)
            assert ((of_position > 0.2) & (of_position < 0.8)).all()


# --- training


def test_performance_trains_at_the_scheduled_sizes_and_batches(tiny):
    trainer = tiny.trainer(PERFORMANCE, epochs=7, iterations=1, validation_iterations=1)
    train, validation = watch_shapes(trainer)
    trainer.run_training()
    expected = [(b, 1, *size) for b, size in zip(BATCHES, SIZES, strict=True)]
    assert train == [*expected, PLANNED], "the remaining epoch is the last stage's"
    assert validation == [PLANNED] * 7
    assert len(train_losses(trainer)) == 7
    assert np.isfinite(train_losses(trainer)).all()


@pytest.mark.parametrize("name", [EFFICIENCY, PERFORMANCE])
def test_max_batch_and_pacing_reach_the_training(tiny, name):
    trainer = tiny.trainer(name, epochs=12, iterations=1, max_batch=10, pacing="volume")
    loader, _ = untransformed(trainer)
    shapes = Counter(tuple(batch["data"].shape) for batch in islice(loader, 12))
    epochs = [1, 1, 1, 2, 3, 4]  # 12 epochs in proportion to 1, 2, 4, 8, 12 and 16
    batches = [10, 10, 10, 8, 5, 4] if name == PERFORMANCE else [4] * 6
    assert shapes == {(b, 1, *size): n for b, size, n in zip(batches, SIZES, epochs, strict=True)}


@pytest.mark.parametrize("last", [(16, 8, 8), (8, 12, 4)], ids=["plan", "other"])
def test_a_listed_curriculum_trains_as_listed(tiny, last):
    """Regardless of the last stage, validation uses the planned patch and batch."""
    stages = listed(((8, 8, 8), 2, 1), ((4, 4, 8), 7, 2), (last, 3, 1))
    trainer = tiny.trainer(LISTED, epochs=4, iterations=1, stage_list=stages)
    train, validation = watch_shapes(trainer)
    trainer.run_training()
    assert train == [(2, 1, 8, 8, 8), (7, 1, 4, 4, 8), (7, 1, 4, 4, 8), (3, 1, *last)]
    assert validation == [PLANNED] * 4
    assert np.isfinite(train_losses(trainer)).all()


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (None, "the list of stages is empty"),
        (listed(((8, 6, 8), 2, 2)), "stage 1.* 6 on axis 1 .* nearest are 4 and 8"),
        (listed(((8, 8, 8), 2, 3)), "add up to 3, but epochs is 2"),
    ],
)
def test_a_wrong_list_is_refused(tiny, stages, message):
    trainer = tiny.trainer(LISTED, epochs=2, stage_list=stages)
    with pytest.raises(ValueError, match=message):
        trainer.get_dataloaders()


# --- a bottleneck of one voxel


def watch_bottleneck(trainer):
    """Record shape, mode and whether torch's own check is in place, for every forward pass."""
    seen = []
    trainer.network.encoder.stages[-1].register_forward_hook(
        lambda module, _, output: seen.append(
            (
                tuple(output.shape[2:]),
                module.training,
                functional._verify_spatial_size is ORIGINAL_CHECK,
            )
        )
    )
    return seen


def test_one_voxel_trains_and_leaves_torch_as_it_was(tiny):
    trainer = tiny.trainer(EFFICIENCY, epochs=6, iterations=1)
    seen = watch_bottleneck(trainer)
    trainer.run_training()
    assert [entry for entry in seen if entry[1]] == [
        ((1, 1, 1), True, False),
        *[(tuple(n // 4 for n in size), True, True) for size in SIZES[1:]],
    ]
    assert {entry for entry in seen if not entry[1]} == {((4, 2, 2), False, True)}
    assert np.isfinite(train_losses(trainer)).all()
    assert functional._verify_spatial_size is ORIGINAL_CHECK


def test_torch_s_check_is_back_after_a_step_that_failed(tiny):
    trainer = tiny.trainer(EFFICIENCY, epochs=6, iterations=1)
    seen = watch_bottleneck(trainer)

    def fail(*_):
        raise RuntimeError("out of memory")

    trainer.loss = fail
    batch = next(trainer.get_dataloaders()[0])
    with pytest.raises(RuntimeError, match="out of memory"):
        trainer.train_step(batch)
    assert seen == [((1, 1, 1), True, False)]
    assert functional._verify_spatial_size is ORIGINAL_CHECK


def test_no_stage_has_one_voxel_where_that_is_unwanted(tiny):
    trainer = tiny.trainer(EFFICIENCY, epochs=5, iterations=1, one_voxel_bottleneck=False)
    seen = watch_bottleneck(trainer)
    trainer.run_training()
    shapes = [shape for shape, training, _ in seen if training]
    assert shapes == [tuple(n // 4 for n in size) for size in SIZES[1:]]
    assert all(in_place for _, _, in_place in seen)


def gradients_of_bottleneck(trainer, size):
    """Return the largest absolute gradient per parameter, of convolutions and of norms."""
    trainer.network.train()
    trainer.network.zero_grad()
    data = torch.randn(4, 1, *size, generator=torch.Generator().manual_seed(0))
    outputs = trainer.network(data)
    trainer.loss(outputs, [torch.ones(4, 1, *o.shape[2:]) for o in outputs]).backward()
    modules = list(trainer.network.encoder.stages[-1].modules())
    convolutions = [m for m in modules if isinstance(m, torch.nn.Conv3d)]
    norms = [m for m in modules if isinstance(m, torch.nn.InstanceNorm3d)]
    assert convolutions
    assert norms
    return (
        [float(m.weight.grad.abs().max()) for m in convolutions],
        [float(m.bias.grad.abs().max()) for m in norms],
    )


def test_one_voxel_trains_no_more_than_the_bias_above_it(tiny):
    trainer = tiny.trainer(EFFICIENCY)
    with pytest.raises(ValueError, match="Expected more than 1 spatial element"):
        gradients_of_bottleneck(trainer, (4, 4, 4))
    with allow_one_voxel():
        convolutions, biases = gradients_of_bottleneck(trainer, (4, 4, 4))
    assert max(convolutions) == 0
    assert biases[-1] > 0
    convolutions, biases = gradients_of_bottleneck(trainer, (8, 4, 4))
    assert min(convolutions) > 0
    assert min(biases) > 0


# --- compilation


class Backend:
    """A compiler backend that counts graphs, dynamic graphs, and calls of both."""

    def __init__(self):
        self.graphs = self.dynamic = self.calls = 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        self.dynamic += any(isinstance(value, torch.SymInt) for value in inputs)

        def run(*arguments):
            self.calls += 1
            return graph.forward(*arguments)

        return run


@pytest.fixture
def dynamo():
    """Return dynamo's configuration, which is restored afterwards."""
    config = torch._dynamo.config
    names = ("automatic_dynamic_shapes", "recompile_limit", "fail_on_recompile_limit_hit")
    torch._dynamo.reset()
    with config.patch({name: getattr(config, name) for name in names}):
        yield config
    torch._dynamo.reset()


def compiled_network(backend):
    """Return a network that pools by four, so that its smallest patch is 4 voxels per side."""
    network = torch.nn.Sequential(
        torch.nn.Conv3d(1, 2, 4, stride=4),
        torch.nn.InstanceNorm3d(2, affine=True),
    )
    return torch.compile(network, backend=backend)


SHAPES = [(4 * a, 4 * b, 8) for a in (1, 2, 3, 4, 5) for b in (1, 2)]
"""Each needs a graph for training and one for validation, too many for one size's limit."""


def train_and_validate(network, shapes):
    for shape in shapes:
        network.train()
        network(torch.zeros(2, 1, *shape))
        network.eval()
        with torch.no_grad():
            network(torch.zeros(2, 1, *shape))


def test_every_size_is_compiled_once(dynamo):
    compile_every_size(len(SHAPES), 1)
    backend = Backend()
    network = compiled_network(backend)
    train_and_validate(network, SHAPES)
    assert backend.graphs == 2 * len(SHAPES)
    assert backend.dynamic == 0
    train_and_validate(network, SHAPES[::-1])
    assert backend.graphs == 2 * len(SHAPES), "all of them are still known"
    assert backend.calls == 4 * len(SHAPES), "nothing fell back to eager mode"


def test_more_sizes_than_were_told_are_no_silent_fallback(dynamo):
    compile_every_size(1, 1)
    assert dynamo.recompile_limit < 2 * len(SHAPES)
    with pytest.raises(FailOnRecompileLimitHit):
        train_and_validate(compiled_network(Backend()), SHAPES)


def test_torch_alone_would_compile_a_dynamic_graph_or_fall_back(dynamo):
    backend = Backend()
    train_and_validate(compiled_network(backend), SHAPES[:6])
    assert backend.dynamic > 0

    torch._dynamo.reset()
    dynamo.automatic_dynamic_shapes = False
    backend = Backend()
    train_and_validate(compiled_network(backend), SHAPES[:6])
    assert backend.graphs == 8
    assert backend.calls < 2 * len(SHAPES[:6]), "the rest ran in eager mode without a warning"


def test_one_voxel_and_compiled_code_do_not_disturb_each_other(dynamo):
    """Switch between the stage of one voxel and others: each size is compiled once."""
    compile_every_size(3, 1)
    backend = Backend()
    network = compiled_network(backend).train()
    for _ in range(3):
        with allow_one_voxel():
            assert network(torch.ones(2, 1, 4, 4, 4)).shape[2:] == (1, 1, 1)
        for shape in ((8, 4, 4), (8, 8, 8)):
            network(torch.ones(2, 1, *shape))
        assert backend.graphs == 3
    assert backend.calls == 9
    assert functional._verify_spatial_size is ORIGINAL_CHECK


@pytest.mark.parametrize("compiles", [True, False])
def test_a_compiled_training_is_prepared_for_all_its_sizes(tiny, monkeypatch, compiles):
    prepared = []
    monkeypatch.setattr(
        "workflow_scripts.trainers.curricula.patch_curriculum.compile_every_size",
        lambda *counts: prepared.append(counts),
    )
    trainer = tiny.trainer(PERFORMANCE, epochs=6, iterations=1)
    trainer._do_i_compile = lambda: compiles
    trainer.on_train_start()
    assert prepared == ([(6, 2)] if compiles else [])


def deep_plans(plans):
    """Return plans with five network stages, a loss with three outputs, and ten sizes."""
    configuration = plans["configurations"]["3d_fullres"]
    configuration |= {"patch_size": [64, 64, 64], "batch_size": 1}
    configuration["architecture"]["arch_kwargs"] |= {
        "n_stages": 5,
        "features_per_stage": [2] * 5,
        "kernel_sizes": [[3, 3, 3]] * 5,
        "strides": [[1, 1, 1], *[[2, 2, 2]] * 4],
        "n_conv_per_stage": [1] * 5,
        "n_conv_per_stage_decoder": [1] * 4,
    }
    return plans


def test_the_compiled_loss_is_prepared_for_all_its_sizes(tiny, monkeypatch, dynamo):
    """nnU-Net also compiles the Dice loss, and calls it once per output of each size."""
    trainer = tiny.trainer(PERFORMANCE, plans=deep_plans(tiny.plans), epochs=10, iterations=1)
    backend, compile_with = Backend(), torch.compile
    monkeypatch.setattr(torch, "compile", lambda module: compile_with(module, backend=backend))
    trainer._do_i_compile = lambda: True
    loss = trainer._build_loss()
    trainer.on_train_start()
    assert len(trainer.stages) == 10
    for stage in trainer.stages:
        batch = stage.batch_size
        shapes = [tuple(n // 2**k for n in stage.patch_size) for k in range(4)]
        outputs = [torch.zeros(batch, 3, *shape) for shape in shapes]
        loss(outputs, [torch.zeros(batch, 1, *shape) for shape in shapes])
    assert backend.dynamic == 0
    assert backend.calls == 3 * 10
