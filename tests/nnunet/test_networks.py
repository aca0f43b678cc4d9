"""Every arm on `3d_lowres` and with nnU-Net's residual encoders."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet

from helpers.processes import forked_pools
from helpers.tiny_task import DATASET, OVERRIDES, PLANS, SHAPE, TinyTask
from workflow_scripts.common import nnunet_setup
from workflow_scripts.common.files import write_json
from workflow_scripts.common.hardware import Hardware, prepare_network
from workflow_scripts.common.nnunet_setup import TRAINERS, find_trainer
from workflow_scripts.forecast.gpu_memory import estimate_memory
from workflow_scripts.forecast.plans import read_plan
from workflow_scripts.forecast.workload import StudyDesign, count_work
from workflow_scripts.planning.plan_overrides import override_plans
from workflow_scripts.planning.plan_task import plan_task
from workflow_scripts.planning.preprocess_task import preprocess_task
from workflow_scripts.records.flop_counter import FlopTable
from workflow_scripts.scale_space.baking import bake_model
from workflow_scripts.study.settings import TrainingSettings
from workflow_scripts.training.final_validation import validate

CONSTANT = "nnUNetTrainerConstantPatch"
PROGRESSIVE = "nnUNetTrainerProgressivePatch"
EFFICIENCY = "nnUNetTrainerProgressiveEfficiencyPatch"
SCALE_SPACE = "nnUNetTrainerScaleSpace"
ARMS = [
    CONSTANT,
    PROGRESSIVE,
    "nnUNetTrainerProgressivePlusPatch",
    "nnUNetTrainerRandomPatch",
    EFFICIENCY,
    "nnUNetTrainerProgressivePerformancePatch",
    "nnUNetTrainerLowFrequency",
    "nnUNetTrainerLowFrequencyIterations",
    SCALE_SPACE,
]
PATCH = tuple(OVERRIDES["patch_size"])
RESIDUAL_PLANS = "nnUNetResEncUNetMPlans"


class LowTask(TinyTask):
    """The tiny task at half its resolution."""

    configuration, plans_name = "3d_lowres", "lowPlans"


class ResidualTask(TinyTask):
    """The tiny task, planned for a residual encoder; its data are those of the plain U-Net."""

    plans_name = "residualPlans"


@pytest.fixture(scope="module")
def copied(prepared, tmp_path_factory):
    """Return a context in which the workflow plans and preprocesses a copy of the tiny task."""
    raw, preprocessed = prepared
    copy = tmp_path_factory.mktemp("networks") / "preprocessed"
    shutil.copytree(preprocessed, copy)
    with pytest.MonkeyPatch.context() as patch, forked_pools():
        for name in TinyTask(raw, copy, copy).environment:
            patch.setenv(name, "")
        patch.setattr(nnunet_setup, "RAW", raw)
        patch.setattr(nnunet_setup, "PREPROCESSED", copy)
        yield raw, copy


@pytest.fixture(scope="module")
def of_low(copied):
    """The task with the plans of a cascade, as nnU-Net writes them, and data of its first half."""
    folder = LowTask(*copied, copied[0]).folder
    plans = json.loads((folder / f"{PLANS}.json").read_text())
    full = plans["configurations"]["3d_fullres"]
    low = {
        **full,
        "data_identifier": "lowPlans_3d_lowres",
        "spacing": [2 * spacing for spacing in full["spacing"]],
        "median_image_size_in_voxels": [n / 2 for n in SHAPE],
        "next_stage": "3d_cascade_fullres",
    }
    cascade = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    plans["plans_name"] = "lowPlans"
    plans["configurations"] = {
        "3d_fullres": {**full, "data_identifier": "lowPlans_3d_fullres"},
        "3d_lowres": low,
        "3d_cascade_fullres": cascade,
    }
    write_json(plans, folder / "lowPlans.json")
    preprocess_task(DATASET, "lowPlans", "3d_lowres", 1)
    return copied


@pytest.fixture(scope="module")
def of_residual(copied):
    plan_task(DATASET, "nnUNetPlannerResEncM", RESIDUAL_PLANS, None)
    folder = ResidualTask(*copied, copied[0]).folder
    planned = json.loads((folder / f"{RESIDUAL_PLANS}.json").read_text())
    plans = override_plans(planned, "residualPlans", "3d_fullres", OVERRIDES)
    plans["configurations"]["3d_fullres"]["data_identifier"] = "nnUNetPlans_3d_fullres"
    write_json(plans, folder / "residualPlans.json")
    return copied


@pytest.fixture
def ready(monkeypatch):
    """Return a function that sets nnU-Net's environment for a task; no plots, one thread."""
    from nnunetv2.training.logging.nnunet_logger import LocalLogger

    def of(task):
        for name, value in task.environment.items():
            monkeypatch.setenv(name, value)
        return task

    monkeypatch.setattr(LocalLogger, "plot_progress_png", lambda *_: None)
    torch.set_num_threads(1)
    with forked_pools():
        yield of


@pytest.fixture
def low(of_low, tmp_path, ready):
    return ready(LowTask(*of_low, tmp_path / "results"))


@pytest.fixture
def residual(of_residual, tmp_path, ready):
    return ready(ResidualTask(*of_residual, tmp_path / "results"))


def losses(trainer):
    return [float(value) for value in trainer.logger.get_value("train_losses", step=None)]


def watch(trainer):
    """Record the patches of the training steps."""
    patches, step = [], trainer.train_step

    def note(batch):
        patches.append(tuple(batch["data"].shape[2:]))
        return step(batch)

    trainer.train_step = note
    return patches


def check_trained(trainer, patches):
    """Assert that an arm trained at its sizes, and ended with the planned one unless random."""
    assert np.isfinite(losses(trainer)).all()
    assert (Path(trainer.output_folder) / "checkpoint_final.pth").is_file()
    sizes = {stage.patch_size for stage in trainer.stages}
    assert set(patches) <= sizes
    if trainer.curriculum != "random":
        assert patches[-1] == PATCH
        assert (patches[0] == PATCH) == (len(sizes) == 1)


# --- low resolution


@pytest.mark.parametrize("name", ARMS)
def test_every_arm_trains_on_low_resolution(low, name):
    trainer = low.trainer(name, epochs=2, iterations=1)
    patches = watch(trainer)
    trainer.run_training()
    check_trained(trainer, patches)


def test_low_resolution_is_validated_at_the_images_own_without_a_cascade(low):
    """The data of the cascade's second network do not exist."""
    trainer = low.trainer(PROGRESSIVE, epochs=1, iterations=1)
    trainer.run_training()
    case = trainer.do_split()[1][0]
    trainer.do_split = lambda: ([], [case])
    folder = Path(trainer.output_folder)
    validate(trainer, folder, {}, lambda *_: None, lambda *_: None)
    summary = json.loads((folder / "validation/summary.json").read_text())
    voxels = summary["metric_per_case"][0]["metrics"]["1"]
    assert sum(voxels[name] for name in ("TP", "FP", "FN", "TN")) == np.prod(SHAPE)


def test_the_forecast_counts_low_resolution(low):
    plan = read_plan(low.folder / f"{low.plans_name}.json")
    design = StudyDesign("3d_lowres", TrainingSettings(2, 3, 1, seed=0), [0], mirroring=False)
    shape = plan.plans["configurations"]["3d_lowres"]["median_image_size_in_voxels"]
    work = count_work(plan, find_trainer(PROGRESSIVE), {}, design)
    each = [-(-2 * (max(n, p) - p) // p) + 1 for n, p in zip(shape, PATCH, strict=True)]
    assert work.predictions == plan.validation_cases(0) * np.prod(each)


# --- residual encoders


@pytest.mark.parametrize("name", ARMS)
def test_every_arm_trains_and_resumes_with_a_residual_encoder(residual, name):
    options = {"epochs": 2, "iterations": 2, "checkpoint_seconds": 0.0}
    whole = residual.trainer(name, **options)
    network = whole.scale_space.primary if name == SCALE_SPACE else whole.network
    assert type(network.encoder).__name__ == "ResidualEncoder"
    patches = watch(whole)
    whole.run_training()
    check_trained(whole, patches)

    class KilledError(BaseException):
        pass

    killed = residual.trainer(name, **options)
    step = killed.train_step

    def fail(batch):
        if killed.current_epoch == 1:
            raise KilledError
        return step(batch)

    killed.train_step = fail
    with pytest.raises(KilledError):
        killed.run_training()
    resumed = residual.trainer(name, seed=555, **options)
    resumed.load_checkpoint(str(Path(resumed.output_folder) / "checkpoint_latest.pth"))
    assert resumed.current_epoch == 1
    resumed.run_training()
    assert losses(resumed) == pytest.approx(losses(whole), rel=1e-6)


def test_stock_nnunet_predicts_with_residual_encoders(residual, tmp_path, monkeypatch):
    """An arm's own model, and one baked for a scale factor."""
    from nibabel import load
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    images = tmp_path / "images"
    images.mkdir()
    shutil.copy(residual.raw / residual.dataset / "imagesTr/tiny_000_0000.nii.gz", images)

    def predict(model, out):
        out.mkdir()
        predictor = nnUNetPredictor(
            device=torch.device("cpu"), allow_tqdm=False, use_mirroring=False
        )
        predictor.initialize_from_trained_model_folder(str(model), (0,))
        predictor.predict_from_files_sequential(str(images), str(out))
        (found,) = out.glob("*.nii.gz")
        return type(predictor.network), load(found).shape

    progressive = residual.trainer(PROGRESSIVE, epochs=1, iterations=1)
    progressive.run_training()
    monkeypatch.setenv("nnUNet_extTrainer", str(TRAINERS))
    own = predict(progressive.output_folder_base, tmp_path / "own")
    assert own == (ResidualEncoderUNet, SHAPE)
    trainer = residual.trainer(SCALE_SPACE, epochs=1, iterations=1, rank=2)
    trainer.run_training()
    bake_model({0: Path(trainer.output_folder)}, {"rank": 2}, 0.3, tmp_path / "baked")
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path / "baked" / "trainers"))
    network, shape = predict(tmp_path / "baked", tmp_path / "out")
    assert (network.__name__, shape) == ("RescaledUNet", SHAPE)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [(CONSTANT, {}), (EFFICIENCY, {}), (SCALE_SPACE, {"scale_factor": 0.35})],
)
def test_the_forecast_counts_residual_encoders(residual, name, parameters):
    """As a trainer's own network is counted; the smallest bottleneck is one voxel."""
    plan = read_plan(residual.folder / f"{residual.plans_name}.json")
    training = TrainingSettings(4, 3, 1, seed=0)
    design = StudyDesign("3d_fullres", training, [0], mirroring=True)
    work = count_work(plan, find_trainer(name), parameters, design)
    trainer = residual.trainer(name, epochs=4, iterations=3, **parameters)
    table, scale = FlopTable(trainer.network, 1), parameters.get("scale_factor")
    for stage, of_stage in zip(trainer.stages, work.of_stages, strict=True):
        count = table.training_step(stage.batch_size, stage.patch_size, scale)
        assert of_stage.tflop == pytest.approx(count / 1e12)
    memory = estimate_memory(plan, find_trainer(name), parameters, design)
    assert memory.plan > 0
    assert (memory.hypernetwork > 0) == (name == SCALE_SPACE)


def test_a_residual_encoder_computes_in_bf16_and_channels_last(residual):
    trainer = residual.trainer(CONSTANT)
    hardware = Hardware(device="cpu", precision="bf16", threads=1, gpu=None, memory_format="auto")
    assert prepare_network(trainer.network, hardware) == "channels_last"
    outputs = trainer.network(torch.randn(2, 1, *PATCH))
    assert {output.dtype for output in outputs} == {torch.float32}
    sum(output.square().mean() for output in outputs).backward()
    gradients = [p.grad for p in trainer.network.parameters() if p.grad is not None]
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_residual_encoders_have_preprocessed_data_of_their_own(residual):
    """nnU-Net names those of the plain U-Net, and deletes them when it preprocesses again."""
    planned = json.loads((residual.folder / f"{RESIDUAL_PLANS}.json").read_text())
    for name, configuration in planned["configurations"].items():
        assert configuration["data_identifier"] == f"{RESIDUAL_PLANS}_{name}"
