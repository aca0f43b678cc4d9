"""nnU-Net's transformer Primus with the curricula: its positions, trainings and predictions."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from dynamic_network_architectures.architectures.primus import Primus
from torch._dynamo.testing import CompileCounter

from helpers.processes import forked_pools
from helpers.tiny_task import SHAPE, TinyTask
from workflow_scripts.common.errors import UserError
from workflow_scripts.common.files import write_json
from workflow_scripts.common.hardware import Hardware, prepare_network
from workflow_scripts.common.nnunet_setup import TRAINERS, find_trainer
from workflow_scripts.forecast.check_needs import check_plans
from workflow_scripts.forecast.forecast_page import memory_note
from workflow_scripts.forecast.forecaster import calibrate
from workflow_scripts.forecast.gpu_memory import check_memory, estimate_memory
from workflow_scripts.forecast.plans import read_plan
from workflow_scripts.forecast.workload import StudyDesign, count_work
from workflow_scripts.planning import plan_overrides
from workflow_scripts.planning.plan_overrides import PRIMUS, override_plans
from workflow_scripts.records.flop_counter import FlopTable
from workflow_scripts.study.settings import TrainingSettings
from workflow_scripts.study.specification import Arm
from workflow_scripts.trainers.curricula.networks.primus import (
    PATCH_EMBEDDING,
    REGULARISATION,
    GrowingPrimus,
)
from workflow_scripts.trainers.curricula.standalone.model_export import export_model

PATCH = (24, 24, 16)
SMALL = {"embed_dim": 24, "eva_depth": 2, "eva_numheads": 2}
CONSTANT = "nnUNetTrainerConstantPatch"
PROGRESSIVE = "nnUNetTrainerProgressivePatch"
EFFICIENCY = "nnUNetTrainerProgressiveEfficiencyPatch"
SCALE_SPACE = "nnUNetTrainerScaleSpace"
# Of two epochs: the patch of the first training step.
ARMS = {
    CONSTANT: PATCH,
    PROGRESSIVE: (16, 8, 8),
    "nnUNetTrainerProgressivePlusPatch": (16, 8, 8),
    "nnUNetTrainerRandomPatch": None,
    EFFICIENCY: (8, 8, 8),
    "nnUNetTrainerProgressivePerformancePatch": (8, 8, 8),
    "nnUNetTrainerLowFrequency": None,
    "nnUNetTrainerLowFrequencyIterations": None,
}


class PrimusTask(TinyTask):
    """The tiny task with a tiny Primus."""

    plans_name = "primusPlans"


@pytest.fixture
def task(prepared, tmp_path, monkeypatch):
    from nnunetv2.training.logging.nnunet_logger import LocalLogger

    monkeypatch.setitem(plan_overrides.PRIMUS, "primus_s", SMALL)
    task = PrimusTask(*prepared, tmp_path / "results")
    planned = json.loads((task.folder / "nnUNetPlans.json").read_text())
    overrides = {"network": "primus_s", "patch_size": list(PATCH), "batch_size": 2}
    plans = override_plans(planned, task.plans_name, task.configuration, overrides)
    write_json(plans, task.folder / f"{task.plans_name}.json")
    for name, value in task.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(LocalLogger, "plot_progress_png", lambda *_: None)
    torch.set_num_threads(1)
    with forked_pools():
        yield task


def losses(trainer):
    return [float(value) for value in trainer.logger.get_value("train_losses", step=None)]


def rates(trainer):
    return [float(value) for value in trainer.logger.get_value("lrs", step=None)]


# --- the network


def made(kind, **options):
    torch.manual_seed(3)
    return kind(1, num_classes=3, **SMALL, **options).eval()


def stock_of(patch):
    options = {"patch_embed_size": PATCH_EMBEDDING, "input_shape": patch, **REGULARISATION}
    return made(Primus, **options)


def test_at_the_planned_patch_it_is_nnunet_s_bit_for_bit():
    ours, stock = made(GrowingPrimus, patch_size=PATCH), stock_of(PATCH)
    assert ours.state_dict().keys() == stock.state_dict().keys()
    x = torch.randn(2, 1, *PATCH)
    with torch.no_grad():
        first = ours(x)
        assert torch.equal(first, stock(x)), "the same seed gives the same weights"
        ours(x[..., :8])
        assert torch.equal(ours(x), first), "a smaller patch leaves no trace"


def test_a_smaller_patch_has_the_rotary_embedding_of_its_grid():
    """With the absolute embedding equal everywhere, it is the stock network of that patch."""
    patch = (16, 8, 16)
    ours, stock = made(GrowingPrimus, patch_size=PATCH), stock_of(patch)
    weights = ours.state_dict()
    weights["eva.pos_embed"][:] = weights["eva.pos_embed"][:, :1].clone()
    ours.load_state_dict(weights)
    weights["eva.pos_embed"] = weights["eva.pos_embed"][:, : 2 * 1 * 2]
    stock.load_state_dict(weights)
    x = torch.randn(2, 1, *patch)
    with torch.no_grad():
        assert torch.allclose(ours(x), stock(x), atol=1e-6)


def test_the_absolute_embedding_is_resampled_along_each_axis():
    """An embedding that grows along an axis grows along it on every grid."""
    network = made(GrowingPrimus, patch_size=PATCH)
    along = torch.arange(3.0).view(3, 1, 1).expand(3, 3, 2).reshape(1, -1, 1)
    network.eva.pos_embed.data[:] = along
    network.eva.grid = (2, 1, 2)
    found, rotary, kept = network.eva._pos_embed(torch.zeros(1, 4, SMALL["embed_dim"]))
    assert kept is None
    assert rotary.shape[0] == 4
    places = found[0, :, 0].view(2, 1, 2)
    assert torch.allclose(places, torch.tensor([0.25, 1.75]).view(2, 1, 1).expand(2, 1, 2))


def test_its_sizes_are_those_of_nnunet_s_trainers():
    from nnunetv2.training.nnUNetTrainer.primus import primus_trainers

    for name, size in PRIMUS.items():
        trainer = getattr(primus_trainers, f"nnUNet_Primus_{name[-1].upper()}_Trainer")
        configuration = SimpleNamespace(patch_size=(16, 16, 16))
        with torch.device("meta"):
            stock = trainer.build_network_architecture(None, configuration, 1, 3)
            ours = GrowingPrimus(1, 3, (16, 16, 16), **size)
        assert {k: v.shape for k, v in stock.state_dict().items()} == {
            k: v.shape for k, v in ours.state_dict().items()
        }


# --- training


def watch(trainer):
    patches, step = [], trainer.train_step

    def note(batch):
        patches.append(tuple(batch["data"].shape[2:]))
        return step(batch)

    trainer.train_step = note
    return patches


class KilledError(BaseException):
    """Ends a training."""


def kill_and_resume(task, name, at, **options):
    """Kill a training in an epoch; return the one that resumed it."""
    killed = task.trainer(name, **options)
    step = killed.train_step

    def fail(batch):
        if killed.current_epoch == at:
            raise KilledError
        return step(batch)

    killed.train_step = fail
    with pytest.raises(KilledError):
        killed.run_training()
    resumed = task.trainer(name, seed=555, **options)
    resumed.load_checkpoint(str(Path(resumed.output_folder) / "checkpoint_latest.pth"))
    assert resumed.current_epoch == at
    resumed.run_training()
    return resumed


@pytest.mark.parametrize("name", ARMS)
def test_every_arm_but_scale_space_trains_and_resumes(task, name):
    options = {"epochs": 2, "iterations": 2, "checkpoint_seconds": 0.0}
    whole = task.trainer(name, **options)
    patches = watch(whole)
    whole.run_training()
    assert np.isfinite(losses(whole)).all()
    assert isinstance(whole.optimizer, torch.optim.AdamW)
    assert all(n % unit == 0 for patch in patches for n, unit in zip(patch, (8,) * 3, strict=True))
    if ARMS[name]:
        assert patches[0] == ARMS[name]
        assert patches[-1] == PATCH
    resumed = kill_and_resume(task, name, at=1, **options)
    assert losses(resumed) == pytest.approx(losses(whole), rel=1e-6)


def test_the_constant_arm_is_nnunet_s_primus_trainer(task, monkeypatch):
    """The same losses, weights and learning rates over the end of the warm-up."""
    from nnunetv2.training.nnUNetTrainer.primus import primus_trainers

    from workflow_scripts.training.trainer_factory import seed_everything

    def build(
        plans_manager,
        configuration_manager,
        num_input_channels,
        num_output_channels,
        enable_deep_supervision=True,
    ):
        return Primus(
            num_input_channels,
            num_classes=num_output_channels,
            patch_embed_size=PATCH_EMBEDDING,
            input_shape=configuration_manager.patch_size,
            **SMALL,
            **REGULARISATION,
        )

    stock_class = primus_trainers.nnUNet_Primus_S_Trainer
    monkeypatch.setattr(stock_class, "build_network_architecture", staticmethod(build))
    found = []
    for name in ("nnUNet_Primus_S_Trainer", CONSTANT):
        trainer = task.trainer(name, epochs=4, iterations=1, warmup_duration_whole_net=2)
        trainer.batch_seed = None
        seed_everything(7)
        trainer.run_training()
        found.append((losses(trainer), rates(trainer), trainer.network.state_dict()))
    (stock_losses, stock_rates, stock), (our_losses, our_rates, ours) = found
    assert our_losses == stock_losses
    assert our_rates == stock_rates
    assert len(set(our_rates)) == 3, "rises, is at its largest twice, falls"
    assert all(torch.equal(ours[key], stock[key]) for key in stock)


def test_a_training_resumes_after_the_warm_up(task):
    options = {"epochs": 4, "iterations": 1, "checkpoint_seconds": 0.0}
    options["warmup_duration_whole_net"] = 1
    whole = task.trainer(PROGRESSIVE, **options)
    whole.run_training()
    resumed = kill_and_resume(task, PROGRESSIVE, at=3, **options)
    assert losses(resumed) == pytest.approx(losses(whole), rel=1e-6)
    assert rates(resumed) == rates(whole)


def test_the_plain_predictor_predicts_at_the_planned_patch(task, tmp_path, monkeypatch):
    from nibabel import load
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    trainer = task.trainer(EFFICIENCY, epochs=1, iterations=1)
    trainer.run_training()
    images, out = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    out.mkdir()
    shutil.copy(task.raw / task.dataset / "imagesTr/tiny_000_0000.nii.gz", images)
    monkeypatch.setenv("nnUNet_extTrainer", str(TRAINERS))
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False, use_mirroring=False)
    predictor.initialize_from_trained_model_folder(trainer.output_folder_base, (0,))
    predictor.predict_from_files_sequential(str(images), str(out))
    (found,) = out.glob("*.nii.gz")
    assert load(found).shape == SHAPE
    model = Path(trainer.output_folder_base)
    for name in ("progress.png", "validation/summary.json"):
        path = model / "fold_0" / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    with pytest.raises(ValueError, match="does not build a transformer from plans"):
        export_model(model, tmp_path / "exported")


def test_it_computes_in_bf16_on_a_processor(task):
    trainer = task.trainer(CONSTANT)
    hardware = Hardware(device="cpu", precision="bf16", threads=1, gpu=None, memory_format="auto")
    prepare_network(trainer.network, hardware)
    for patch in (PATCH, (8, 8, 8)):
        output = trainer.network(torch.randn(2, 1, *patch))
        assert (output.dtype, tuple(output.shape[2:])) == (torch.float32, patch)
        output.square().mean().backward()
    assert all(torch.isfinite(weight.grad).all() for weight in trainer.network.parameters())


def test_it_is_compiled_once_for_each_size(monkeypatch):
    monkeypatch.setattr(torch._dynamo.config, "automatic_dynamic_shapes", False)
    network = made(GrowingPrimus, patch_size=PATCH)
    counter = CompileCounter()
    compiled = torch.compile(network, backend=counter)
    with torch.no_grad():
        for patch in (PATCH, (8, 8, 8), PATCH, (16, 8, 8), (8, 8, 8)):
            x = torch.randn(2, 1, *patch)
            assert torch.allclose(compiled(x), network(x), atol=1e-6)
    assert counter.frame_count == 3


# --- what comes before


def design_of(epochs=5):
    return StudyDesign("3d_fullres", TrainingSettings(epochs, 1, 1, seed=0), [0], mirroring=False)


def test_the_forecast_counts_it_at_every_size(task):
    """Attention grows faster than the voxels, so no size follows from the others."""
    plan, trainer = read_plan(task.folder / f"{task.plans_name}.json"), find_trainer(PROGRESSIVE)
    work = count_work(plan, trainer, {}, design_of())
    network = task.trainer(PROGRESSIVE)
    table = FlopTable(network.network, 1)
    for stage, of_stage in zip(network.stages, work.of_stages, strict=True):
        count = table.training_step(1, stage.patch_size) * stage.batch_size
        assert of_stage.tflop == pytest.approx(count / 1e12)
    per_voxel = [w.tflop / s.voxels for s, w in zip(network.stages, work.of_stages, strict=True)]
    assert per_voxel[0] < per_voxel[-1]
    memory = estimate_memory(plan, trainer, {}, design_of())
    assert np.isnan(memory.total)
    assert check_memory({("task", "arm"): memory}, 1.0) == []


def test_the_estimated_size_of_a_checkpoint_is_that_of_its_tensors(task):
    plan = read_plan(task.folder / f"{task.plans_name}.json")
    sizes, _, faults = check_plans({"task": plan}, {"arm": Arm(CONSTANT)}, design_of())
    assert faults == []
    trainer = task.trainer(CONSTANT, epochs=1, iterations=1)
    trainer.run_training()
    states = trainer.optimizer.state_dict()["state"].values()
    stored = [*trainer.network.parameters(), *(v for state in states for v in state.values())]
    found = sum(4 * tensor.numel() for tensor in stored if tensor.numel() > 1)
    assert sizes["task", "arm"] == pytest.approx(found, rel=1e-3)


def test_its_memory_and_time_are_not_estimated():
    known = pd.DataFrame({"arm": ["a"], "gpu_memory_gb": [np.nan], "beyond_plan_gb": [0.0]})
    assert memory_note(known).startswith("GPU memory is not estimated")
    study = SimpleNamespace(
        calibration="published",
        configuration="3d_fullres",
        device="auto",
        overrides={"task": {"network": "primus_s"}},
    )
    found, loading = calibrate(study, {}, Path(), Path())
    assert (found.device, loading) == ("GPU with a transformer", None)
    assert np.isnan(found.seconds_per_tflop)


@pytest.mark.parametrize(
    ("name", "parameters", "said"),
    [
        (SCALE_SPACE, {}, "rescales the stages of a U-Net"),
        ("nnUNetTrainer", {}, "one of the workflow's own trainers"),
        (CONSTANT, {"optimizer_name": "adamw"}, "has its own optimiser"),
    ],
)
def test_an_arm_that_cannot_train_it_is_refused(task, name, parameters, said):
    plan = read_plan(task.folder / f"{task.plans_name}.json")
    with pytest.raises(UserError, match=said):
        count_work(plan, find_trainer(name), parameters, design_of())


@pytest.mark.parametrize(
    ("configuration", "overrides", "said"),
    [
        ("2d", {}, "primus_s is for 3D"),
        ("3d_fullres", {"features_per_stage": [4, 8]}, "no features_per_stage"),
        ("3d_fullres", {"patch_size": [20, 24, 16]}, r"multiples of \[8, 8, 8\].* \[16, 24, 16\]"),
    ],
)
def test_a_plan_that_does_not_fit_it_is_refused(task, configuration, overrides, said):
    planned = json.loads((task.folder / "nnUNetPlans.json").read_text())
    with pytest.raises(UserError, match=said):
        override_plans(planned, "p", configuration, {"network": "primus_s", **overrides})
