"""The trainers under the pinned nnU-Net: what they share with it, and what a schedule changes."""

import json
import multiprocessing
import os
import random
import subprocess
import sys
import time
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.folds import kill_group
from helpers.processes import PATIENCE
from helpers.tree import shipped_config
from workflow_scripts.records.run_reader import without_length
from workflow_scripts.trainers.curricula.schedules.patch_plan import PatchPlan
from workflow_scripts.trainers.curricula.schedules.schedule import Schedule, plan_stages
from workflow_scripts.trainers.curricula.schedules.settings import CurriculumSettings

ROOT = Path(__file__).parents[2]
TRAINERS = ROOT / "workflow_scripts" / "trainers"
PYTHON = Path(sys.executable)
CONSTANT = "nnUNetTrainerConstantPatch"
PROGRESSIVE = "nnUNetTrainerProgressivePatch"
RANDOM = "nnUNetTrainerRandomPatch"
PLUS = "nnUNetTrainerProgressivePlusPatch"
EFFICIENCY = "nnUNetTrainerProgressiveEfficiencyPatch"
PERFORMANCE = "nnUNetTrainerProgressivePerformancePatch"
LOW, LOW_ITERATIONS = "nnUNetTrainerLowFrequency", "nnUNetTrainerLowFrequencyIterations"
ARMS = (CONSTANT, PROGRESSIVE, RANDOM, PLUS, EFFICIENCY, PERFORMANCE, LOW, LOW_ITERATIONS)
SIZES = [(8, 4, 4), (8, 8, 4), (8, 8, 8), (12, 8, 8), (16, 8, 8)]
BATCH = 4


def losses(trainer):
    return {
        name: [float(value) for value in trainer.logger.get_value(name, step=None)]
        for name in ("train_losses", "val_losses")
    }


def assert_same_losses(one, other):
    """Assert equality up to the last bit of a sum, which may depend on a batch's memory address."""
    assert one.keys() == other.keys()
    for name, values in other.items():
        assert one[name] == pytest.approx(values, rel=1e-6), name


def weights(trainer):
    return {name: value.clone() for name, value in trainer.network.state_dict().items()}


def assert_same_weights(one, other):
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert different == []


def watch_shapes(trainer):
    """Record the shape of the data of every training and validation step."""
    seen = {"train_step": [], "validation_step": []}

    def watched(step, shapes):
        def note(batch):
            shapes.append((trainer.current_epoch, tuple(batch["data"].shape)))
            return step(batch)

        return note

    for name, shapes in seen.items():
        setattr(trainer, name, watched(getattr(trainer, name), shapes))
    return seen["train_step"], seen["validation_step"]


def equal_batches(one, other):
    return (
        list(one["keys"]) == list(other["keys"])
        and torch.equal(one["data"], other["data"])
        and len(one["target"]) == len(other["target"])
        and all(map(torch.equal, one["target"], other["target"]))
    )


def draw_from(seed):
    """Seed all generators from a seed sequence."""
    word = int(np.random.SeedSequence(seed).generate_state(1)[0])
    random.seed(word)
    np.random.seed(word)
    torch.manual_seed(word)


def stop(*loaders):
    for loader in loaders:
        if hasattr(loader, "_finish"):
            loader._finish()


# --- the constant arm is nnU-Net


def test_constant_arm_is_the_stock_trainer(tiny):
    """Not one bit of losses or weights differs from stock nnU-Net for the same seed."""
    from workflow_scripts.training.trainer_factory import seed_everything

    results = []
    for name in ("nnUNetTrainer", CONSTANT):
        trainer = tiny.trainer(name, iterations=3, validation_iterations=2, seed=7)
        trainer.batch_seed = None
        first = weights(trainer)
        seed_everything(7)
        trainer.run_training()
        results.append((losses(trainer), first, weights(trainer)))
    (stock_losses, stock_first, stock), (our_losses, our_first, ours) = results
    assert stock_losses == our_losses
    assert len(set(stock_losses["train_losses"])) == 2
    assert_same_weights(stock_first, our_first)
    assert_same_weights(stock, ours)
    assert any(not torch.equal(stock[name], stock_first[name]) for name in stock)


def test_seeded_batches_are_those_of_nnunet_s_loader(tiny, monkeypatch):
    """With `batch_seed`, batch k is what nnU-Net's own loader draws from the same state."""
    from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    trainer = tiny.trainer(CONSTANT, batch_seed=99)
    ours = trainer.get_dataloaders()
    stock_class = []

    class Spy(nnUNetDataLoader):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            stock_class.append(self)

    monkeypatch.setattr("nnunetv2.training.nnUNetTrainer.nnUNetTrainer.nnUNetDataLoader", Spy)
    stock = nnUNetTrainer.get_dataloaders(trainer)
    assert len(stock_class) == 2, "the stock loaders came from nnU-Net's own class"
    for number, (our_loader, stock_loader) in enumerate(zip(ours, stock, strict=True)):
        for k in range(3):
            batch = next(our_loader)
            draw_from((99, number, 0, k))
            assert equal_batches(batch, next(stock_loader)), (number, k)


def test_a_curriculum_without_batch_seed_is_refused(tiny):
    trainer = tiny.trainer(PROGRESSIVE)
    trainer.batch_seed = None
    with pytest.raises(ValueError, match="nnUNetTrainerProgressivePatch needs a batch_seed"):
        trainer.get_dataloaders()


# --- the schedule in the loader


@pytest.mark.parametrize("name", [PROGRESSIVE, RANDOM])
def test_batches_do_not_depend_on_the_number_of_workers(tiny, monkeypatch, name):
    """Five epochs of two iterations: every pair of batches crosses a border."""
    taken = {}
    for workers in (0, 1, 3):
        monkeypatch.setenv("nnUNet_n_proc_DA", str(workers))
        monkeypatch.setattr(os, "cpu_count", lambda: 8)  # nnU-Net starts no more workers than CPUs
        trainer = tiny.trainer(name, epochs=5, iterations=2)
        loaders = trainer.get_dataloaders()
        if workers:
            assert loaders[0].num_processes == workers
        taken[workers] = [list(islice(loader, 10)) for loader in loaders]
        stop(*loaders)
    patches = [tuple(batch["data"].shape[2:]) for batch in taken[0][0]]
    if name == PROGRESSIVE:
        assert patches == [size for size in SIZES for _ in range(2)]
    assert len(set(patches)) > 1
    for workers in (1, 3):
        for one, other in zip(taken[0], taken[workers], strict=True):
            assert all(map(equal_batches, one, other)), workers
    first = taken[0][0]
    assert not any(equal_batches(a, b) for a, b in pairwise(first))


def test_batches_of_a_stage_are_those_of_nnunet_s_loader_of_that_size(tiny):
    """Changing sizes leaves no traces: a loader for one size alone draws the same batches."""
    from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader

    options = {"batch_seed": 5, "batched_augmentation": False}
    trainer = tiny.trainer(RANDOM, epochs=1, iterations=12, **options)
    ours = trainer.get_dataloaders()[0]
    schedule, plans = trainer.schedule(), ours.data_loader._plans
    stages = set()
    for k in range(12):
        plan = plans[schedule.stage_of_iteration(k)]
        alone = nnUNetDataLoader(
            ours.data_loader._data,
            plan.stage.batch_size,
            plan.initial_patch_size,
            plan.stage.patch_size,
            trainer.label_manager,
            oversample_foreground_percent=0.5,
            transforms=plan.transforms,
        )
        batch = next(ours)
        draw_from((5, 0, 0, k))
        assert equal_batches(batch, next(alone)), k
        stages.add(plan.stage)
    assert len(stages) >= 4


def test_another_seed_draws_other_batches(tiny):
    first = [next(tiny.trainer(CONSTANT, batch_seed=s).get_dataloaders()[0]) for s in (1, 1, 2)]
    assert equal_batches(first[0], first[1])
    assert not equal_batches(first[0], first[2])


def test_progressive_trains_at_the_scheduled_sizes(tiny):
    trainer = tiny.trainer(PROGRESSIVE, epochs=6, iterations=2, validation_iterations=1)
    assert [stage.patch_size for stage in trainer.stages] == SIZES
    train, validation = watch_shapes(trainer)
    trainer.run_training()
    by_epoch = [SIZES[k] for k in (0, 1, 2, 3, 4, 4)]
    assert train == [(n, (BATCH, 1, *by_epoch[n])) for n in range(6) for _ in range(2)]
    assert validation == [(n, (BATCH, 1, *SIZES[-1])) for n in range(6)], "the planned patch"
    assert np.isfinite(losses(trainer)["train_losses"]).all()


@pytest.mark.parametrize(("epochs", "stages"), [(1, [4]), (2, [0, 4]), (3, [0, 2, 4])])
def test_fewer_epochs_than_stages(tiny, epochs, stages):
    trainer = tiny.trainer(PROGRESSIVE, epochs=epochs, iterations=1)
    train, _ = watch_shapes(trainer)
    trainer.run_training()
    assert [shape[2:] for _, shape in train] == [SIZES[k] for k in stages]
    assert (Path(trainer.output_folder) / "checkpoint_final.pth").exists()


def test_random_draws_are_those_of_the_schedule(tiny):
    trainer = tiny.trainer(RANDOM, epochs=3, iterations=8, batch_seed=5)
    train, validation = watch_shapes(trainer)
    trainer.run_training()
    plan = PatchPlan(SIZES[-1], (2, 2, 2), BATCH)
    schedule = Schedule(tuple(plan_stages(plan, CurriculumSettings("random"))), 3, 8, seed=5)
    drawn = [schedule.stage_of_iteration(k) for k in range(24)]
    assert [shape[2:] for _, shape in train] == [SIZES[k] for k in drawn]
    assert len(set(drawn)) >= 4
    assert {shape[2:] for _, shape in validation} == {SIZES[-1]}


def test_foreground_is_forced_more_often_in_training_only(tiny):
    """In a batch of 4, a share of 0.5 forces two samples, nnU-Net's 0.33 forces one."""
    for name, expected in ((CONSTANT, (1, 1)), (PROGRESSIVE, (2, 1)), (RANDOM, (2, 1))):
        loaders = [loader.data_loader for loader in tiny.trainer(name).get_dataloaders()]
        forced = tuple(sum(map(loader.get_do_oversample, range(BATCH))) for loader in loaders)
        assert forced == expected, name


def test_forced_samples_hold_foreground(tiny):
    """Untransformed patches of the smallest size: half of them are centred on foreground."""
    loader = tiny.trainer(PROGRESSIVE, epochs=5, iterations=20).get_dataloaders()[0].data_loader
    from dataclasses import replace

    loader._plans = [
        replace(plan, transforms=None, initial_patch_size=plan.stage.patch_size, batched=None)
        for plan in loader._plans
    ]
    batches = list(islice(loader, 20))
    has_foreground = np.array([[bool((seg > 0).any()) for seg in b["target"]] for b in batches])
    assert has_foreground.shape == (20, BATCH)
    assert has_foreground[:, 2:].all()
    assert not has_foreground[:, :2].all()


def test_the_smallest_patch_is_halved_to_two_voxels_and_trains(tiny):
    """InstanceNorm refuses a bottleneck of one voxel; the schedule's first size leaves 2x1x1."""
    trainer = tiny.trainer(PROGRESSIVE, epochs=5, iterations=2)
    bottlenecks = []
    trainer.network.encoder.stages[-1].register_forward_hook(
        lambda *arguments: bottlenecks.append(tuple(arguments[-1].shape[2:]))
    )
    before = weights(trainer)
    trainer.on_train_start()
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    result = [trainer.train_step(next(trainer.dataloader_train))["loss"] for _ in range(2)]
    assert set(bottlenecks) == {(2, 1, 1)}
    assert np.isfinite(result).all()
    after = weights(trainer)
    deepest = [name for name in after if name.startswith("encoder.stages.2") and "conv.w" in name]
    assert deepest
    assert all(not torch.equal(before[name], after[name]) for name in deepest)


@pytest.mark.parametrize("name", ARMS)
def test_the_plan_is_left_alone(tiny, name):
    """Inference reads the results folder: its plans and its patch are those of the study."""
    trainer = tiny.trainer(name, epochs=2, iterations=1)
    trainer.run_training()
    written = json.loads((Path(trainer.output_folder_base) / "plans.json").read_text())
    assert written == tiny.plans
    assert trainer.configuration_manager.patch_size == [16, 8, 8]
    assert trainer.configuration_manager.batch_size == trainer.batch_size == BATCH
    assert Path(trainer.output_folder_base).name == f"{name}__tinyPlans__3d_fullres"
    final = Path(trainer.output_folder) / "checkpoint_final.pth"
    checkpoint = torch.load(final, weights_only=False)
    assert checkpoint["init_args"]["plans"] == tiny.plans
    assert checkpoint["trainer_name"] == name


def test_initial_patch_size_is_nnunet_s_own(tiny):
    from workflow_scripts.trainers.curricula.patch_curriculum import initial_patch_size

    for patch in ([16, 8, 8], [16, 32, 32], [8, 32, 32]):  # the last is trained with dummy 2D
        plans = tiny.plans
        plans["configurations"]["3d_fullres"]["patch_size"] = patch
        trainer = tiny.trainer(CONSTANT, plans=plans)
        rotation, dummy_2d, expected, _ = (
            trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        )
        assert dummy_2d == (patch == [8, 32, 32])
        result = initial_patch_size(tuple(patch), rotation, dummy_2d)
        assert list(result) == list(expected), patch


def test_augmentation_is_that_of_the_planned_patch_at_every_stage(tiny):
    """A plan of 8x32x32 rotates in the plane, so its isotropic first stages must do so, too."""
    plans = tiny.plans
    plans["configurations"]["3d_fullres"]["patch_size"] = [8, 32, 32]
    trainer = tiny.trainer(PROGRESSIVE, plans=plans)
    loader = trainer.get_dataloaders()[0].data_loader
    kinds = {str([type(t).__name__ for t in p.transforms.transforms]) for p in loader._plans}
    assert len(loader._plans) > 10
    assert len(kinds) == 1
    assert "Convert3DTo2DTransform" in kinds.pop()
    assert all(plan.initial_patch_size[0] == plan.stage.patch_size[0] for plan in loader._plans)


# --- interruption


class KilledError(Exception):
    """Stands for any cause that ends a training."""


@pytest.mark.parametrize("stop_after", [1, 2, 3])
@pytest.mark.parametrize("name", [PROGRESSIVE, RANDOM])
def test_a_resumed_training_equals_an_uninterrupted_one(tiny, name, stop_after):
    options = {"epochs": 4, "iterations": 2, "validation_iterations": 2, "checkpoint_seconds": 0}
    whole = tiny.trainer(name, **options)
    whole.run_training()

    killed = tiny.trainer(name, **options)
    step = killed.train_step

    def fail(batch):
        if killed.current_epoch == stop_after:
            raise KilledError
        return step(batch)

    killed.train_step = fail
    with pytest.raises(KilledError):
        killed.run_training()

    resumed = tiny.trainer(name, seed=555, **options)
    resumed.load_checkpoint(str(Path(resumed.output_folder) / "checkpoint_latest.pth"))
    assert resumed.current_epoch == stop_after
    train, _ = watch_shapes(resumed)
    resumed.run_training()
    assert len(train) == 2 * (4 - stop_after), "finished epochs are not trained again"
    assert_same_losses(losses(resumed), losses(whole))
    assert_same_weights(weights(resumed), weights(whole))
    lrs = [trainer.logger.get_value("lrs", step=None) for trainer in (whole, resumed)]
    assert lrs[0] == lrs[1]


@pytest.mark.parametrize("phase", ["train_step", "validation_step"])
@pytest.mark.parametrize("stops", [[(1, 1)], [(0, 0), (2, 1), (2, 2)]])
def test_a_stop_within_an_epoch_loses_nothing(tiny, phase, stops):
    """`stops` are (epoch, step) after which a signal is noticed; RANDOM mixes sizes in an epoch."""
    from workflow_scripts.trainers.curricula.resumable import TrainingStopped

    options = {"epochs": 4, "iterations": 3, "validation_iterations": 3}
    whole = tiny.trainer(RANDOM, **options)
    whole.run_training()
    path, trained = None, []
    for stop_at in [*stops, None]:
        trainer = tiny.trainer(RANDOM, seed=len(trained) if path else 1, **options)
        if path:
            trainer.load_checkpoint(str(path))
        steps = {"epoch": trainer.current_epoch, "step": trainer.iterations_resumed}
        if phase == "validation_step":
            steps["step"] = 0

        step = getattr(trainer, phase)

        def watch(batch, trainer=trainer, step=step, at=stop_at, now=steps):
            if now["epoch"] != trainer.current_epoch:
                now.update(epoch=trainer.current_epoch, step=0)
            trainer.stop_requested = (now["epoch"], now["step"]) == at
            now["step"] += 1
            return step(batch)

        setattr(trainer, phase, watch)
        train, _ = watch_shapes(trainer)
        if stop_at is None:
            trainer.run_training()
        else:
            with pytest.raises(TrainingStopped):
                trainer.run_training()
            assert trainer.num_iterations_per_epoch == 3
            path = Path(trainer.output_folder) / "checkpoint_latest.pth"
        trained += train
    assert len(trained) == 12, "no training iteration is done twice"
    assert_same_losses(losses(trainer), losses(whole))
    assert_same_weights(weights(trainer), weights(whole))
    assert "losses_within_epoch" not in trainer.my_init_kwargs


def test_an_epoch_longer_than_the_interval_is_checkpointed_within(tiny):
    trainer = tiny.trainer(CONSTANT, epochs=2, iterations=4, checkpoint_seconds=1e-9)
    saved, save = [], trainer.save_checkpoint

    def note(filename):
        if "latest" in filename:
            saved.append((trainer.current_epoch, trainer.iterations_done))
        save(filename)

    trainer.save_checkpoint = note
    trainer.run_training()
    # nnU-Net's epoch number is one lower in checkpoints within an epoch. Those of the four training
    # steps are followed by that of the validation step, then by the epoch's own (except the last).
    first = [(-1, 1), (-1, 2), (-1, 3), (-1, 4), (-1, 4), (0, 0)]
    assert saved == [*first, *((epoch + 1, done) for epoch, done in first[:5])]


def test_checkpoints_follow_the_clock(tiny):
    saved = []
    trainer = tiny.trainer(CONSTANT, epochs=4, iterations=1, checkpoint_seconds=0.0)
    original = trainer.save_checkpoint

    def save(filename):
        saved.append((trainer.current_epoch, Path(filename).name))
        original(filename)

    trainer.save_checkpoint = save
    trainer.run_training()
    latest = [epoch for epoch, name in saved if name == "checkpoint_latest.pth"]
    assert latest == [0, 1, 2], "each but the last, which is the final one"
    assert trainer.save_every == 50

    saved.clear()
    patient = tiny.trainer(CONSTANT, epochs=3, iterations=1, checkpoint_seconds=3600.0)
    patient.run_training()
    assert not (Path(patient.output_folder) / "checkpoint_latest.pth").exists()


def test_a_checkpoint_is_whole_or_the_former_one(tiny, monkeypatch):
    trainer = tiny.trainer(CONSTANT)
    path = tiny.results / "checkpoint_latest.pth"
    trainer.save_checkpoint(str(path))
    before = path.read_bytes()

    def half(_, filename):
        Path(filename).write_bytes(b"half")
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", half)
        with pytest.raises(OSError, match="disk full"):
            trainer.save_checkpoint(str(path))
    assert path.read_bytes() == before
    trainer.current_epoch = 3
    trainer.save_checkpoint(str(path))
    assert torch.load(path, weights_only=False)["current_epoch"] == 4
    assert [found.name for found in tiny.results.glob("checkpoint_*")] == [path.name]


def test_a_left_over_half_is_never_taken_for_whole(tiny):
    trainer = tiny.trainer(CONSTANT, disable_checkpointing=True)
    path = tiny.results / "checkpoint_latest.pth"
    path.write_bytes(b"whole")
    Path(f"{path}.partial").write_bytes(b"half")
    trainer.save_checkpoint(str(path))
    assert path.read_bytes() == b"whole"


# --- worker processes


def test_one_pool_of_workers_that_ends_with_the_training(tiny, monkeypatch):
    """One pool per stage would add up; here, nnU-Net's two pools have one worker each."""
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    before = set(multiprocessing.active_children())
    trainer = tiny.trainer(PROGRESSIVE, epochs=5, iterations=2)
    children = []
    step = trainer.train_step

    def count(batch):
        children.append({child.pid for child in set(multiprocessing.active_children()) - before})
        return step(batch)

    trainer.train_step = count
    trainer.run_training()
    assert len(children) == 10
    assert all(workers == children[0] for workers in children), "the same over four borders"
    assert len(children[0]) == 2, "one for training, one for validation"
    assert set(multiprocessing.active_children()) - before == set()
    assert not any(Path(f"/proc/{pid}").exists() for pid in children[-1])


# --- as nnU-Net sees them


def run_python(code, environment, *arguments, **options):
    return subprocess.run(
        [PYTHON, "-c", code, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        **options,
    )


def test_nnunet_finds_the_trainers_by_itself(tmp_path):
    code = (
        "import sys\n"
        "from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find\n"
        "for name in sys.argv[1:]:\n"
        "    found = find(name)\n"
        "    assert found.__name__ == name\n"
        "    print('FOUND', name, found.curriculum)\n"
    )
    environment = {"nnUNet_extTrainer": str(TRAINERS), "PYTHONPATH": ""}
    done = run_python(code, environment, *ARMS, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = [line for line in done.stdout.splitlines() if line.startswith("FOUND")]
    curricula = (
        *("constant", "progressive", "random"),
        *("progressive_plus", "progressive_efficiency", "progressive_performance"),
        *("low_frequency", "low_frequency_iterations"),
    )
    assert found == [f"FOUND {n} {c}" for n, c in zip(ARMS, curricula, strict=True)]


NAMED_BY_CURRICULUM = {"bench", "budget_sweep", "budget_sweep_acdc", "budget_sweep_folds"}
NAMED_BY_CURRICULUM |= {"demo", "hippocampus", "hippocampus_2d", "hippocampus_adamw", "paper"}


@pytest.mark.parametrize("name", sorted(NAMED_BY_CURRICULUM))
def test_arms_of_a_config_name_their_curriculum(name):
    from workflow_scripts.trainers.curricula import arms

    config = shipped_config(name)
    for arm, trainer in config["arms"].items():
        curriculum = without_length(arm).removesuffix("_short")
        assert getattr(arms, trainer["trainer"]).curriculum == curriculum


@pytest.mark.parametrize("name", ["hippocampus", "hippocampus_adamw", "paper"])
def test_low_frequency_and_the_short_reference_have_two_thirds_of_the_epochs(name):
    config = shipped_config(name)
    epochs = round(2 / 3 * config["training"]["epochs"])
    for arm in ("low_frequency", "constant_short"):
        assert config["arms"][arm]["epochs"] == epochs
    assert "epochs" not in config["arms"]["low_frequency_iterations"]


def test_every_config_is_tested():
    shipped = {path.stem for kind in ("studies", "tools") for path in ROOT.glob(f"config/{kind}/*")}
    others = {"gpu_check", "learning_rates", "low_frequency", "scale_space"}
    assert shipped == NAMED_BY_CURRICULUM | others


@pytest.mark.slow
def test_nnunet_s_own_command_trains_an_arm(tiny):
    """Use only nnU-Net's variables; an epoch has 250 iterations, so stop after the first."""
    command = PYTHON.with_name("nnUNetv2_train")
    environment = {
        **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        **tiny.environment,
        "nnUNet_n_proc_DA": "1",
        "nnUNet_extTrainer": str(TRAINERS),
        "OMP_NUM_THREADS": "1",
    }
    plans = {**tiny.plans, "plans_name": "batchOfOne"}
    plans["configurations"]["3d_fullres"]["batch_size"] = 1
    (tiny.folder / "batchOfOne.json").write_text(json.dumps(plans))
    folder = tiny.results / tiny.dataset / f"{PROGRESSIVE}__batchOfOne__3d_fullres" / "fold_0"
    arguments = [tiny.dataset, "3d_fullres", "0", "-tr", PROGRESSIVE, "-p", "batchOfOne"]
    output = tiny.results.parent / "output.txt"
    with output.open("w") as file:
        process = subprocess.Popen(
            [command, *arguments, "-device", "cpu"],
            env=environment,
            cwd=tiny.results.parent,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 400
        log = ""
        while "Epoch 1" not in log and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.2)
            log = "".join(path.read_text() for path in folder.glob("training_log_*.txt"))
    finally:
        kill_group(process)
    assert "Pseudo dice" in log, output.read_text()[-3000:]
    assert "Epoch time" in log.split("Epoch 0")[1]
    assert (folder / "checkpoint_best.pth").exists()
